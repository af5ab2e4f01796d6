"""The rotation of the cluster's secrets, in steps that may all be done again, and the farewell to what was before.

RabbitMQ knows one password of a user, and a process that computes has read its own when it began. So each rotation
makes a user of its own, named after its generation. The user of before stays for those that have its password, and
goes when nobody can need it any more: not for want of a connection alone, for a calculation may have none for hours
and then open one.

1. `rotate` lets RabbitMQ know the new user, puts the new values into the secrets, from where workers that boot read
   them, and then into the files of this machine, and restarts what serves here.
2. `settle`, each minute, waits for the processes of this machine that began before. Then it lets the workers that
   still have the old password end in order, at most half of them at once: systemd starts them again with the new one.
   When it has found nobody twice, the old user goes.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from oq_node import common, master

from oq_keys import holders

FACTS: Final = common.FACTS
STATE: Final = Path(FACTS["rotation"])
LOCK: Final = Path("/run/openquake/rotation.lock")
# A file, since rabbitmqctl 4.0.5 waits for ever for its input.
NEW_USER: Final = Path("/run/openquake/definitions.json")
BROKER_SECONDS: Final = 120  # that RabbitMQ may take for a command
GENERATION: Final = "generation"
REPLY_SECONDS: Final = 2.0  # that workers may take to say with which user they came
EXCHANGE_SECONDS: Final = 5.0  # and the broker to answer


@dataclass
class State:
    """How far it is. Not there: there is no user but the secret's.

    Attributes:
        bringing: the generation that is on its way into secrets and files; 0 when it has arrived.
        boot, moved: when everything that serves on this machine had it, as a holders.Moment.
        unused: the last look has found nobody with an earlier password.
        said: who was waited for then.
    """

    bringing: int = 0
    boot: str = ""
    moved: float = 0.0
    unused: bool = False
    said: str = ""

    def save(self) -> None:
        """Write it down."""
        common.write(str(STATE), json.dumps(asdict(self)), 0o600)


def rotate() -> str:
    """Give the secrets new values, or go on where the last call was interrupted; says what is so now.

    Raises:
        common.NodeError: if a step fails; the next call, or `settle`, goes on there.
    """
    with _lock():
        state = _state(State) or State()
        if not state.bringing:
            state.bringing = _generation(master.cluster_secret()) + 1
            state.save()
        return _bring(state)


def settle() -> str:
    """Look once whether the users of earlier secrets can go; says what has changed since the last look.

    Raises:
        common.NodeError: if the broker or AWS does not answer.
    """
    with _lock():
        # Where that is lost, all steps once more, with what the secret is.
        state = _state(lambda: State(bringing=_generation(master.cluster_secret())))
        if state is None:
            return ""
        if state.bringing:  # `rotate` was killed
            return _bring(state)
        old = _old_users()
        if not old:
            STATE.unlink()
            return ""
        waiting = _waiting(state, old)
        if waiting or not state.unused:
            said = f"RabbitMQ's {', '.join(old)} stays for {', '.join(waiting)}" if waiting else state.said
            news = said if said != state.said else ""
            state.unused, state.said = not waiting, said
            state.save()
            return news
        for user in old:
            common.run("rabbitmqctl", "--quiet", "delete_user", user, timeout=BROKER_SECONDS)
        STATE.unlink()
        return f"the rotation is over: RabbitMQ knows {', '.join(old)} no more"


def _bring(state: State) -> str:
    """Step 1."""
    generation = state.bringing
    cluster = master.cluster_secret()
    if _generation(cluster) < generation:
        cluster = {
            GENERATION: str(generation),
            "amqp_user": f"{FACTS['amqp_user']}-{generation}",
            "amqp_password": secrets.token_hex(32),
            "dbserver_authkey": secrets.token_hex(32),
        }
        # Before anybody can read of it. What was interrupted here leaves a user whose password nobody knows; the next
        # call gives it another one.
        common.write(str(NEW_USER), master.definitions(cluster), 0o640, FACTS["rabbitmq_user"])
        common.run("rabbitmqctl", "--quiet", "import_definitions", str(NEW_USER), timeout=BROKER_SECONDS)
        NEW_USER.unlink()
        _put(FACTS["secret_id"], cluster)
    common.write_configuration(common.passwords(cluster))
    master.write_definitions(cluster)
    if FACTS["webui"]:
        _bring_webuis(generation)
    # Of a calculation it ends nothing: those of the WebUI are processes of their own.
    units = [unit for unit in master.background() if unit.endswith(".service")]
    common.run("systemctl", "stop", *units)
    moment = holders.now()  # nothing that begins from now on has read the old files
    common.run("systemctl", "start", *units)
    State(boot=moment.boot, moved=moment.seconds).save()
    return (
        f"new passwords and keys (generation {generation}) are in Secrets Manager and on this machine. Running "
        "calculations keep the old password, which is removed when none of them needs it any more; progress: "
        "sudo journalctl -t oq-node"
    )


def _bring_webuis(generation: int) -> None:
    """The WebUI's part. Sessions stay: its present key goes on to verify what it has signed."""
    webui = master.webui_secret()
    if _generation(webui) < generation:
        webui = {
            GENERATION: str(generation),
            "secret_key": secrets.token_hex(32),
            "previous_secret_key": webui["secret_key"],
            "admin_password": secrets.token_hex(12),
        }
        _put(FACTS["webui_secret_id"], webui)
    common.write(FACTS["webui_secrets"], json.dumps(webui), 0o600)


def _waiting(state: State, old: list[str]) -> list[str]:
    """Who may still come with an old password, in words; where these are workers alone, some are told to begin anew."""
    moment = holders.Moment(state.boot, state.moved)
    if here := list(holders.older(moment, FACTS["engine_dir"], FACTS["dbserver_unit"])):
        return here
    connections = _listed("list_connections", "user", "peer_host")
    # An address comes as its numbers.
    hosts = {".".join(map(str, one["peer_host"])) for one in connections if one["user"] in old}
    if hosts:
        _begin_anew(hosts, old)
    return sorted(hosts)


def _begin_anew(hosts: set[str], old: list[str]) -> None:
    """Let workers end when their running tasks have, no more than half of all at once."""
    from kombu.exceptions import OperationalError

    control = _celery().control
    try:
        users = {
            name: said["broker"]["userid"]
            for name, said in (control.inspect(timeout=REPLY_SECONDS).stats() or {}).items()
        }
        staying = sorted(name for name, user in users.items() if user in old)
        going = max(0, len(hosts) - len(staying))  # those that end answer no more
        room = max(1, (len(users) + going) // 2) - going
        if staying and room > 0:
            control.shutdown(destination=staying[:room])
    except OperationalError as error:
        raise common.NodeError(f"RabbitMQ does not answer: {error}") from error


def _celery() -> Any:
    from openquake.baselib import config
    from oq_celery import app, settings

    return app.asking(settings.load(config), EXCHANGE_SECONDS)


def _old_users() -> list[str]:
    """RabbitMQ's users of earlier secrets. Others that an administrator has made are not meant."""
    present = common.amqp_user(master.cluster_secret())
    names = [one["user"] for one in _listed("list_users")]
    base = FACTS["amqp_user"]
    return sorted(name for name in names if name != present and (name == base or name.startswith(f"{base}-")))


def _listed(*command: str) -> list[dict[str, Any]]:
    words = ("rabbitmqctl", "--quiet", "--formatter", "json", *command)
    return list(json.loads(common.run(*words, timeout=BROKER_SECONDS)))


def _generation(secret: Mapping[str, str]) -> int:
    return int(secret.get(GENERATION, "1"))


def _put(secret_id: str, values: Mapping[str, str]) -> None:
    import boto3

    try:
        boto3.client("secretsmanager", region_name=FACTS["region"]).put_secret_value(
            SecretId=secret_id, SecretString=json.dumps(values)
        )
    except Exception as error:  # boto3 has no common base of its errors
        raise common.NodeError(f"{secret_id}: {error}") from error


def _state(lost: Callable[[], State]) -> State | None:
    """How far the last rotation is; `lost` says it where that cannot be read, as a power cut may leave it."""
    if not STATE.exists():
        return None
    try:
        return State(**json.loads(STATE.read_text()))
    except (ValueError, TypeError):
        return lost()


@contextmanager
def _lock() -> Iterator[None]:
    """One at a time: the timer's looks and people's calls."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with common.locked(str(LOCK)):
        yield
