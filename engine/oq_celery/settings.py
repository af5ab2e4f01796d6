"""What oq_celery reads from openquake.cfg, as one frozen value.

The sections and keys are those of the engine's own Celery mode of old (`[celery] use_celery`, `[amqp] ...`). Since 2.4
its switch was `[distribution] oq_distribute = celery`, which the engine of today refuses: of such an openquake.cfg that
line has to change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

Config = Mapping[str, Mapping[str, str | int]]


class SettingsError(ValueError):
    """openquake.cfg cannot be used; the text lists every problem with section, key, value and remedy."""


@dataclass(frozen=True)
class Settings:
    """The Celery mode's part of openquake.cfg."""

    host: str
    port: int
    user: str
    password: str
    vhost: str
    queue: str  # where the tasks of all jobs wait
    shared_dir: Path  # the directory that master and workers share
    memory_per_process_mb: int  # a worker starts no more processes than its memory divided by this
    max_message_kb: int  # a larger task or result travels through shared_dir, not through RabbitMQ
    max_attempts: int  # so many workers may die of one task before the job fails
    # packages that workers can import, besides those of the engine's environment
    worker_modules: frozenset[str] = frozenset()

    @property
    def url(self) -> str:
        """The broker's URL, with the password: not for logs."""
        return (
            f"amqp://{quote(self.user, safe='')}:{quote(self.password, safe='')}"
            f"@{self.host}:{self.port}/{quote(self.vhost, safe='')}"
        )

    @property
    def spool(self) -> Path:
        """Where tasks and results that are too large for a message lie."""
        return self.shared_dir / "oq_celery"


def use_celery(config: Config) -> bool:
    """Read the one switch, `[celery] use_celery`; missing means false, as upstream.

    Raises:
        SettingsError: for a value that is no boolean, and for the switch of later 2.x and 3.x clusters in its place.
    """
    value = str(config.get("celery", {}).get("use_celery", "false"))
    state = ConfigParser.BOOLEAN_STATES.get(value.lower())
    if state is None:
        raise SettingsError(_report(config, [f"[celery] use_celery = {value}: say true or false"]))
    if not state and config.get("distribution", {}).get("oq_distribute") == "celery":
        remedy = "say processpool, and use_celery = true in section [celery], which is the switch"
        raise SettingsError(_report(config, [f"[distribution] oq_distribute = celery: {remedy}"]))
    return state


def load(config: Config) -> Settings:
    """Read the settings from the engine's `config`, which has read and merged openquake.cfg already.

    Raises:
        SettingsError: with every problem in one text.
    """
    problems: list[str] = []

    def text(section: str, key: str, remedy: str, default: str | None = None) -> str:
        value = str(config.get(section, {}).get(key, "")).strip() or default
        if value is None:
            problems.append(f"[{section}] {key} is missing: {remedy}")
        return value or ""

    def number(section: str, key: str, default: int, valid: Callable[[int], bool], remedy: str) -> int:
        value = text(section, key, remedy, str(default))
        try:
            result = int(value)
        except ValueError:
            result = None
        if result is None or not valid(result):
            problems.append(f"[{section}] {key} = {value}: {remedy}")
            return default
        return result

    shared_dir = text(
        "directory",
        "shared_dir",
        "give the directory that the master and every worker mount at the same path",
    )
    if shared_dir and not Path(shared_dir).is_absolute():
        problems.append(f"[directory] shared_dir = {shared_dir}: give an absolute path")
    settings = Settings(
        host=text("amqp", "host", "give the address of the RabbitMQ server"),
        port=number("amqp", "port", 5672, lambda n: 0 < n < 65536, "give a TCP port, 1-65535"),
        user=text("amqp", "user", "give the RabbitMQ user"),
        password=text("amqp", "password", "give the RabbitMQ user's password"),
        vhost=text("amqp", "vhost", "give the RabbitMQ virtual host", "/"),
        queue=text("amqp", "celery_queue", "give the name of the task queue", "celery"),
        shared_dir=Path(shared_dir),
        memory_per_process_mb=number(
            "celery", "memory_per_process_mb", 2048, lambda n: n > 0, "give megabytes, 1 or more"
        ),
        # RabbitMQ 4 accepts 16 MB by default, what Celery adds to a task included; a message of 1 MB costs it little
        # and spares the file system a file.
        max_message_kb=number(
            "celery", "max_message_kb", 1024, lambda n: 16 <= n <= 15360, "give kilobytes, 16-15360"
        ),
        max_attempts=number(
            "celery", "max_attempts", 4, lambda n: n > 0, "give a number of attempts, 1 or more"
        ),
        worker_modules=frozenset(
            text("celery", "worker_modules", "name packages", "").replace(",", " ").split()
        ),
    )
    if problems:
        raise SettingsError(_report(config, problems))
    return settings


def _report(config: Config, problems: list[str]) -> str:
    files: list[str] = getattr(config, "found", [])  # of the engine's, in the order in which it has read them
    read = f" (read: {', '.join(files)}; the last one wins)" if files else ""
    return f"openquake.cfg cannot be used by oq_celery{read}:\n" + "\n".join(
        f"  - {problem}" for problem in problems
    )
