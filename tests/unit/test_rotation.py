"""The rotation of the cluster's secrets, with Secrets Manager, RabbitMQ, processes and workers made up.

tests/lab/test_cluster.py does it on nodes that compute.
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from oq_keys import holders

from components import facts
from tests.unit.conftest import Record
from tests.unit.node import node_facts, node_module

FIRST = {"amqp_password": "first", "dbserver_authkey": "key"}
FIRST_WEBUI = {"secret_key": "signs", "admin_password": "opens"}
MASTER = "10.20.0.10"
STEPS = 8  # of a rotation, that change something


class Killed(BaseException):
    """The program ends here, as by kill -9."""


class OperationalError(Exception):
    """Kombu's: the broker does not answer."""


class World:
    """What a rotation changes, and what it looks at.

    Attributes:
        secrets: of Secrets Manager, by what they are for.
        broker: RabbitMQ's users, with the hash of each one's password.
        effects: how often something was changed; before the change number `kill_before`, and after number `kill_after`,
            the program is killed.
        services: what was done with units, and ("now",) where the time was taken.
        processes: those of the master that began before it had the new values.
        workers: by host, the user with which each has come; those that end have None as the user of their commands.
        silent: the workers' commands find no broker.
    """

    def __init__(self, cfg: Path, webui: Path) -> None:
        self.secrets = {"cluster": FIRST, "webui": FIRST_WEBUI}
        self.broker: dict[str, str] = {}
        self.defined = ""
        self.cfg, self.webui = cfg, webui
        self.effects, self.kill_before, self.kill_after = 0, 0, 0
        self.services: list[tuple[str, ...]] = []
        self.processes: list[str] = []
        self.workers: dict[str, str] = {}
        self.ending: list[str] = []
        self.silent = False

    def change(self, effect: Callable[[], Any]) -> None:
        """Do something that lasts; at each moment everybody who reads secret or file gets in."""
        self.effects += 1
        if self.effects == self.kill_before:
            raise Killed
        effect()
        assert self.accepts(self.secrets["cluster"])
        assert self.accepts(self.on_master())
        if self.effects == self.kill_after:
            raise Killed

    def accepts(self, secret: Mapping[str, str]) -> bool:
        """Whether RabbitMQ lets in who comes with this secret."""
        kept = base64.b64decode(self.broker.get(secret.get("amqp_user", facts.AMQP_USER), ""))
        return kept[4:] == hashlib.sha256(kept[:4] + secret["amqp_password"].encode()).digest()

    def on_master(self) -> dict[str, str]:
        """The secret as openquake.cfg has it."""
        config = configparser.ConfigParser(interpolation=None)
        config.read(self.cfg)
        return {"amqp_user": config["amqp"]["user"], "amqp_password": config["amqp"]["password"]}

    def now(self) -> holders.Moment:
        self.services.append(("now",))
        return holders.Moment("this", float(self.effects))

    def import_definitions(self, text: str) -> None:
        self.broker |= {user["name"]: user["password_hash"] for user in json.loads(text)["users"]}

    def run(self, *command: str, **_options: Any) -> str:
        """rabbitmqctl and systemctl."""
        match command:
            case "systemctl", "stop" | "start" as verb, *units:
                self.change(lambda: self.services.append((verb, *units)))
            case "rabbitmqctl", "--quiet", "import_definitions", file:
                text = Path(file).read_text()
                self.change(lambda: self.import_definitions(text))
            case "rabbitmqctl", "--quiet", "delete_user", user:
                self.change(lambda: self.broker.pop(user))
            case "rabbitmqctl", *_, "list_users":
                return json.dumps([{"user": user, "tags": []} for user in self.broker])
            case "rabbitmqctl", *_, "list_connections", "user", "peer_host":
                users = {MASTER: self.on_master()["amqp_user"], **self.workers}
                rows = [
                    {"user": user, "peer_host": [int(part) for part in host.split(".")]}
                    for host, user in users.items()
                ]
                return json.dumps(rows)  # as rabbitmqctl's JSON has addresses
            case _:
                raise AssertionError(command)
        return ""

    def celery(self) -> Any:
        """The workers that answer, and the command that ends them in order."""

        def stats() -> dict[str, Any] | None:
            if self.silent:
                raise OperationalError("timed out")
            return answers or None

        answers = {
            host: {"broker": {"userid": user}}
            for host, user in self.workers.items()
            if host not in self.ending
        }
        return SimpleNamespace(
            control=SimpleNamespace(
                inspect=lambda timeout: SimpleNamespace(stats=stats),  # noqa: ARG005
                shutdown=lambda destination: self.ending.extend(destination),
            )
        )

    def come_back(self) -> None:
        """Those that end have ended, and systemd has started them anew."""
        for host in self.ending:
            self.workers[host] = self.secrets["cluster"].get("amqp_user", facts.AMQP_USER)
        self.ending.clear()


@pytest.fixture
def world(tmp_path: Path) -> World:
    cfg = tmp_path / "openquake.cfg"
    cfg.write_text(f"[amqp]\nhost = h\nuser = {facts.AMQP_USER}\npassword = first\n[dbserver]\nport = 1999\n")
    return World(cfg, tmp_path / "webui.json")


@pytest.fixture
def rotation(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: World) -> Iterator[Any]:
    """oq_keys.rotation of a master."""
    state = tmp_path / "rotation.json"
    own = {
        "openquake_cfg": str(world.cfg),
        "webui_secrets": str(world.webui),
        "rotation": str(state),
        "secret_id": "cluster",
        "webui_secret_id": "webui",
    }
    with node_module("master", node_facts(record(), "master") | own) as master:
        module = importlib.import_module("oq_keys.rotation")
        common = importlib.import_module("oq_node.common")
        write = common.write

        def written(path: str, *rest: Any) -> None:
            if path == str(state):  # what it knows of itself
                write(path, *rest)
            else:
                world.change(lambda: write(path, *rest))

        def put(secret_id: str, values: dict[str, str]) -> None:
            world.change(lambda: world.secrets.update({secret_id: values}))

        kombu = SimpleNamespace(OperationalError=OperationalError)
        monkeypatch.setitem(sys.modules, "kombu.exceptions", kombu)
        monkeypatch.setattr(common.shutil, "chown", lambda *_: None)
        monkeypatch.setattr(common, "write", written)
        monkeypatch.setattr(common, "run", world.run)
        monkeypatch.setattr(master, "cluster_secret", lambda: world.secrets["cluster"])
        monkeypatch.setattr(master, "webui_secret", lambda: world.secrets["webui"])
        monkeypatch.setattr(
            master, "write_definitions", lambda secret: setattr(world, "defined", master.definitions(secret))
        )
        monkeypatch.setattr(module, "LOCK", tmp_path / "lock")
        monkeypatch.setattr(module, "NEW_USER", tmp_path / "definitions.json")
        monkeypatch.setattr(module, "_put", put)
        monkeypatch.setattr(module, "_celery", world.celery)
        monkeypatch.setattr(module.holders, "older", lambda *_: iter(world.processes))
        monkeypatch.setattr(module.holders, "now", world.now)
        world.import_definitions(master.definitions(FIRST))
        yield module


def test_a_rotation_makes_another_user_and_other_values_of_everything(rotation: Any, world: World) -> None:
    said = rotation.rotate()
    cluster, webui = world.secrets["cluster"], world.secrets["webui"]
    assert cluster["amqp_user"] == f"{facts.AMQP_USER}-2"
    assert cluster.keys() == {*FIRST, "amqp_user", "generation"}
    assert not {*cluster.values()} & {*FIRST.values()}
    assert webui["secret_key"] not in FIRST_WEBUI.values()
    assert webui["admin_password"] not in FIRST_WEBUI.values()
    assert world.on_master().items() <= cluster.items()
    assert json.loads(world.webui.read_text()) == webui
    assert world.webui.stat().st_mode & 0o777 == 0o600
    assert "generation 2" in said
    for secret in (cluster, webui):
        assert not [value for key, value in secret.items() if key != "generation" and value in said]


def test_what_began_before_is_told_from_the_servers_that_begin_anew(rotation: Any, world: World) -> None:
    """The old ones have gone at that moment, with new files in place, and the new ones have not begun."""
    rotation.rotate()
    units = (facts.WEBUI_UNIT, facts.METRICS_UNIT, facts.FLEET_UNIT)
    assert world.services == [("stop", *units), ("now",), ("start", *units)]
    state = json.loads(rotation.STATE.read_text())
    assert (state["boot"], state["moved"]) == (
        "this",
        STEPS - 1,
    )  # of all changes only the start comes after it


def test_after_a_restart_the_broker_knows_the_new_user(rotation: Any, world: World) -> None:
    rotation.rotate()
    world.broker.clear()
    world.import_definitions(world.defined)
    assert world.accepts(world.secrets["cluster"])


def test_the_webuis_former_key_goes_on_to_verify_sessions_until_the_next_rotation(
    rotation: Any, world: World
) -> None:
    keys = [world.secrets["webui"]["secret_key"]]
    for _ in range(2):
        rotation.rotate()
        webui = world.secrets["webui"]
        assert webui["previous_secret_key"] == keys[-1]
        keys.append(webui["secret_key"])
    assert len(set(keys)) == 3


def test_without_anybody_who_needs_it_the_old_user_goes_at_the_second_look(
    rotation: Any, world: World
) -> None:
    rotation.rotate()
    assert rotation.settle() == ""
    assert world.accepts(FIRST)  # the broker may have been restarted just now, and all be on their way back
    assert "the rotation is over" in rotation.settle()
    assert list(world.broker) == [f"{facts.AMQP_USER}-2"]
    assert not rotation.STATE.exists()
    assert rotation.settle() == ""


def test_a_calculation_that_began_before_keeps_the_old_user_without_any_connection(
    rotation: Any, world: World
) -> None:
    rotation.rotate()
    world.processes = ["oq-job-7 (process 4711)"]
    world.workers = {"10.20.2.5": facts.AMQP_USER}
    assert rotation.settle() == f"RabbitMQ's {facts.AMQP_USER} stays for oq-job-7 (process 4711)"
    assert rotation.settle() == ""  # which has been said
    assert world.ending == []  # its tasks are not held up
    assert world.accepts(FIRST)
    world.processes = []
    world.workers = {}
    rotation.settle()
    world.processes = ["oq-job-8 (process 4712)"]
    rotation.settle()
    world.processes = []
    rotation.settle()
    assert world.accepts(FIRST)  # two looks in a row, not two in all


def test_workers_begin_anew_half_of_them_at_once(rotation: Any, world: World) -> None:
    world.workers = {f"10.20.2.{number}": facts.AMQP_USER for number in range(5)}
    rotation.rotate()
    ended = []
    for _ in range(10):
        rotation.settle()
        assert len(world.ending) <= 2
        ended.append(len(world.ending))
        if world.ending and ended[-1] == ended[-2 if len(ended) > 1 else -1]:
            world.come_back()
    assert set(world.workers.values()) == {f"{facts.AMQP_USER}-2"}
    assert not world.accepts(FIRST)


def test_a_broker_that_is_silent_when_workers_are_to_end_is_asked_at_the_next_look(
    rotation: Any, world: World
) -> None:
    world.workers = {"10.20.2.5": facts.AMQP_USER}
    rotation.rotate()
    world.silent = True
    with pytest.raises(rotation.common.NodeError, match="RabbitMQ does not answer: timed out"):
        rotation.settle()
    world.silent = False
    rotation.settle()
    assert world.ending == ["10.20.2.5"]


def test_a_worker_that_still_finishes_its_tasks_keeps_the_old_user(rotation: Any, world: World) -> None:
    world.workers = {"10.20.2.5": facts.AMQP_USER}
    rotation.rotate()
    for _ in range(5):
        rotation.settle()
    assert world.ending == ["10.20.2.5"]  # told once
    assert world.accepts(FIRST)


def test_another_rotation_while_the_first_settles_leaves_nobody_behind(rotation: Any, world: World) -> None:
    world.workers = {"10.20.2.5": facts.AMQP_USER}
    rotation.rotate()
    second = world.secrets["cluster"]
    world.workers["10.20.2.6"] = second["amqp_user"]
    rotation.rotate()
    assert world.accepts(FIRST)
    assert world.accepts(second)
    for _ in range(8):
        rotation.settle()
        world.come_back()
    assert list(world.broker) == [f"{facts.AMQP_USER}-3"]
    assert set(world.workers.values()) == {f"{facts.AMQP_USER}-3"}


@pytest.mark.parametrize("when", ["kill_before", "kill_after"])
@pytest.mark.parametrize("effect", range(1, STEPS + 1))
def test_wherever_a_rotation_is_killed_the_next_look_ends_it(
    rotation: Any, world: World, when: str, effect: int
) -> None:
    """`World.change` looks after each step whether all who read a secret or a file get in."""
    setattr(world, when, effect)
    with pytest.raises(Killed):
        rotation.rotate()
    assert world.accepts(FIRST)
    for _ in range(3):
        rotation.settle()
    cluster, webui = world.secrets["cluster"], world.secrets["webui"]
    assert cluster["amqp_user"] == f"{facts.AMQP_USER}-2"  # one generation, not two
    assert world.on_master().items() <= cluster.items()
    assert webui["previous_secret_key"] == FIRST_WEBUI["secret_key"]
    assert json.loads(world.webui.read_text()) == webui
    assert world.services[-1] == ("start", facts.WEBUI_UNIT, facts.METRICS_UNIT, facts.FLEET_UNIT)
    assert list(world.broker) == [cluster["amqp_user"]]
    assert not rotation.STATE.exists()


def test_a_rotation_has_no_more_steps_than_those_in_which_it_is_killed(rotation: Any, world: World) -> None:
    rotation.rotate()
    assert world.effects == STEPS


def test_a_second_call_goes_on_with_a_rotation_that_was_interrupted(rotation: Any, world: World) -> None:
    world.kill_after = 2
    with pytest.raises(Killed):
        rotation.rotate()
    assert "generation 2" in rotation.rotate()


def test_a_new_master_takes_the_users_of_earlier_secrets_away(rotation: Any, world: World) -> None:
    """Its bootstrap leaves an empty state: the volume may have them."""
    world.broker |= {f"{facts.AMQP_USER}-7": "", "monitoring": ""}
    rotation.STATE.write_text("{}")
    for _ in range(2):
        rotation.settle()
    assert list(world.broker) == [facts.AMQP_USER, "monitoring"]


@pytest.mark.parametrize("found", ["", "{", '{"other": 1}'])
@pytest.mark.parametrize("effects", range(1, STEPS + 1))
def test_a_rotation_whose_state_cannot_be_read_goes_on_from_the_secret(
    rotation: Any, world: World, found: str, effects: int
) -> None:
    """As a power cut may leave it, whatever has been done."""
    world.kill_after = effects
    with pytest.raises(Killed):
        rotation.rotate()
    rotation.STATE.write_text(found)
    generation = world.secrets["cluster"].get("generation", "1")
    assert f"(generation {generation})" in rotation.settle()
    assert world.on_master()["amqp_password"] == world.secrets["cluster"]["amqp_password"]
    while rotation.STATE.exists():
        rotation.settle()
    assert list(world.broker) == [world.secrets["cluster"].get("amqp_user", facts.AMQP_USER)]


def test_a_new_rotation_is_one_though_the_state_of_the_last_cannot_be_read(
    rotation: Any, world: World
) -> None:
    rotation.rotate()
    rotation.STATE.write_text("")
    before = world.secrets["cluster"]
    assert "(generation 3)" in rotation.rotate()
    assert world.secrets["cluster"]["amqp_password"] != before["amqp_password"]


@pytest.mark.parametrize(
    ("ready", "command", "status"),
    [(True, "rotate", ""), (False, "settle", ""), (False, "rotate", "not the master yet")],
)
def test_only_a_machine_that_has_become_the_master_rotates_anything(
    rotation: Any,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ready: bool,
    command: str,
    status: str,
) -> None:
    done = tmp_path / "bootstrap-done"
    monkeypatch.setitem(rotation.FACTS, "bootstrap_done", str(done))
    if ready:
        done.touch()
    cli = importlib.import_module("oq_keys.cli")
    monkeypatch.setattr(cli.os, "geteuid", lambda: 0)
    monkeypatch.setattr("sys.argv", ["oq-keys", command])
    monkeypatch.setenv("OQ_DISTRIBUTE", "no")
    monkeypatch.setenv("AWS_CA_BUNDLE", "")
    rotation.STATE.write_text("{}")
    if status:
        with pytest.raises(SystemExit, match=status):
            cli.main()
    else:
        cli.main()
    assert bool(world.effects) == ready


# --- processes --------------------------------------------------------------------------------------------------------


def process(proc: Path, number: int, seconds: float, maps: str, unit: str = "session-1.scope") -> None:
    """A process that began so many seconds after the boot."""
    directory = proc / str(number)
    directory.mkdir(parents=True)
    ticks = int(seconds * os.sysconf("SC_CLK_TCK"))
    (directory / "stat").write_text(f"{number} (oq-job ({number})) S {'0 ' * 18}{ticks} 0 0\n")
    (directory / "cgroup").write_text(f"0::/system.slice/{unit}\n")
    (directory / "maps").write_text(f"7f0 r-xp 00000000 00:1f 12 {maps}\n")


def test_only_older_processes_with_the_engine_may_have_the_old_password(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("this\n")
    engine = f"{facts.ENGINE_DIR}/lib/python3.13/site-packages/h5py/h5.so"
    process(tmp_path, 1, 10, engine)
    process(tmp_path, 2, 30, engine)
    process(tmp_path, 3, 10, "/usr/lib/libc.so.6")
    process(tmp_path, 4, 10, engine, facts.DBSERVER_UNIT)
    moment = holders.Moment("this", 20)
    found = list(holders.older(moment, facts.ENGINE_DIR, facts.DBSERVER_UNIT, tmp_path))
    assert found == ["oq-job (1) (process 1)"]
    earlier = holders.Moment("another boot", 20)
    assert list(holders.older(earlier, facts.ENGINE_DIR, facts.DBSERVER_UNIT, tmp_path)) == []


def test_a_process_with_any_bytes_for_a_name_or_a_file_holds_up_no_rotation(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("this\n")
    process(tmp_path, 1, 10, f"{facts.ENGINE_DIR}/h5.so")
    for file in "stat", "cgroup", "maps":
        path = tmp_path / "1" / file
        path.write_bytes(path.read_bytes().replace(b"oq-job", b"caf\xc3") + b"caf\xc3")
    (found,) = holders.older(holders.Moment("this", 20), facts.ENGINE_DIR, facts.DBSERVER_UNIT, tmp_path)
    assert found.endswith("(process 1)")
