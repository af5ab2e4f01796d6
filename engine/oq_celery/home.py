"""What a user's own openquake.cfg changes of the cluster's.

Upstream reads `~/openquake.cfg` after the site's file, so that it wins, and has people copy its template there. Most of
it is their own business. But a calculation with another database is in nobody's list, waits in no queue and runs for
ever there when its process dies, and for another broker or shared directory there are no workers. So what the
calculations of a cluster have in common is refused in that file, and another `num_cores` is said in their log.
"""

from __future__ import annotations

from collections.abc import Sequence
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

from oq_celery.settings import SettingsError, use_celery

COMMON = ("amqp", "celery", "dbserver")  # sections; of [directory] it is shared_dir alone
SECRETS = ("authkey", "password")


@dataclass(frozen=True)
class Change:
    """A value of the user's file where the cluster has another one."""

    section: str
    key: str
    value: str
    clusters: str | None  # None where no other file has the key
    file: Path | None  # where the cluster's value is

    def __str__(self) -> str:
        """For people, without what is secret."""
        if self.key in SECRETS:
            own, clusters = "(not shown)", "another one"
        else:
            own, clusters = _shown(self.value), _shown(self.clusters or "")
        place = f" in {self.file}" if self.file else ""
        return f"[{self.section}] {self.key} = {own}, where the cluster has {clusters}{place}"


def check(paths: Sequence[str], home: str) -> None:
    """Refuse a user's file that changes what the calculations of a cluster have in common.

    Args:
        paths: the files that the engine reads, the last one wins.
        home: the user's among them.

    Raises:
        SettingsError: with everything that has to go, in one text.
    """
    found = [
        str(change)
        for change in changes(paths, home)
        if change.section in COMMON or (change.section, change.key) == ("directory", "shared_dir")
    ]
    if found:
        lines = "\n".join(f"  - {line}" for line in found)
        raise SettingsError(
            f"{home} changes what all calculations of this cluster have in common; remove from it:\n{lines}"
        )


def num_cores(paths: Sequence[str], home: str) -> str | None:
    """What the user's file says of `num_cores`, for people, if the cluster has another one."""
    for change in changes(paths, home):
        if (change.section, change.key) == ("distribution", "num_cores"):
            return f"{home} says {change}"
    return None


def changes(paths: Sequence[str], home: str) -> list[Change]:
    """What the user's file changes of a cluster's configuration; nothing where the other files make no cluster."""
    if not Path(home).exists():
        return []
    others = list(paths)
    others.remove(home)  # once: OQ_CONFIG_FILE may name it, too, and is what its user has chosen
    clusters = _read(others)
    if not use_celery(clusters):
        return []
    return [
        Change(section, key, value, clusters.get(section, {}).get(key), _origin(others, section, key))
        for section, values in _read(paths).items()
        for key, value in values.items()
        if value != clusters.get(section, {}).get(key)
    ]


def _read(paths: Sequence[str]) -> dict[str, dict[str, str]]:
    """What openquake.cfg says by section and key, as the engine reads it."""
    parser = ConfigParser(interpolation=None)
    parser.read([Path(path).expanduser() for path in paths], encoding="utf-8")
    return {section: dict(parser.items(section)) for section in parser.sections()}


def _shown(value: str) -> str:
    return " ".join(value.split()) or "nothing"


def _origin(paths: Sequence[str], section: str, key: str) -> Path | None:
    """The last file that has a key; on a node that of /etc, to which the engine's directory has a link."""
    for path in reversed(paths):
        if key in _read([path]).get(section, {}):
            return Path(path).expanduser().resolve()
    return None
