"""When nobody needs the master, and what becomes of requests then; that it comes back as it was is shown in the lab."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from oq_fleet import watch
from oq_fleet.watch import Fleet
from oq_idle import cli, gate
from oq_idle.gate import Gate
from oq_webui import answers
from oq_webui.activity import Activity

from components import facts
from tests.unit.conftest import Record
from tests.unit.node import node_files

NOW = 1_790_000_000.0
GROUP = ["--region", "eu-central-1", "--tag", "Project=openquake-cluster", "--tag", "Stack=test"]
NO_WORKERS = Fleet(wanted=0, present=0, failure=None)


@pytest.mark.parametrize(
    ("name", "uid", "why"),
    [
        ("oq-job-17", 600, "calculation 17 runs"),
        ("ssm-session-worker", 0, "a session or a port forward"),
        ("ssm-session-wor", 0, "a session or a port forward"),
        ("bash", 1000, "a user's program runs: bash"),
        ("tmux: server", 59999, "a user's program runs"),
    ],
)
def test_calculations_sessions_and_programs_of_people_need_the_master(name: str, uid: int, why: str) -> None:
    (said,) = cli.of_processes([("systemd", 0), (name, uid)], people=True)
    assert why in said


def test_who_computes_nothing_is_no_reason_where_somebody_sends_the_master_to_sleep() -> None:
    idle = [("ssm-session-worker", 0), ("bash", 1000), ("tmux: server", 1000)]
    assert list(cli.of_processes(idle, people=False)) == []
    computing = [("oq-job-17", 600), ("oq", 1000)]
    assert len(list(cli.of_processes(computing, people=False))) == 2


def test_what_a_master_runs_by_itself_does_not_need_it() -> None:
    own = [
        ("systemd", 0),
        ("gunicorn: worke", 600),
        ("beam.smp", 601),
        ("amazon-ssm-agen", 0),
        ("nobody", 65534),
        ("oq-job-waits", 600),  # a calculation without its turn, of which the database knows
    ]
    assert list(cli.of_processes(own, people=True)) == []


@contextmanager
def called(name: bytes) -> Iterator[subprocess.Popen[str]]:
    """A process that has this name, until it is told a line or the block ends."""
    line = (
        f"import sys; open('/proc/self/comm', 'wb').write({name!r}); print(flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", line], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


def test_the_process_of_a_calculation_that_has_ended_needs_nothing_even_before_its_parent_asks_for_it() -> (
    None
):
    number = os.getpid()
    with called(f"oq-job-{number}".encode()) as process:
        assert process.stdin is not None
        calculation = f"oq-job-{number}", os.getuid()
        assert calculation in list(cli.living())
        process.stdin.write("\n")
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie from now on
        assert calculation not in list(cli.living())


@pytest.mark.parametrize("name", [b"caf\xc3", b"a\rb\x0cc\x85"])
def test_a_process_may_have_any_bytes_for_a_name(name: bytes) -> None:
    with called(name):
        assert (name.decode(errors="replace"), os.getuid()) in list(cli.living())


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"consumers": 2}, "2 workers are there"),
        ({"outstanding": 5}, "5 tasks wait or run"),
        ({"alarm": "low on disk"}, "low on disk"),
    ],
)
def test_workers_tasks_and_a_broker_that_cannot_tell_need_the_master(
    changed: dict[str, object], why: str
) -> None:
    idle = {"consumers": 0, "outstanding": 0, "alarm": None}
    assert list(cli.of_cluster(SimpleNamespace(**idle))) == []
    (said,) = cli.of_cluster(SimpleNamespace(**idle | changed))
    assert why in said


@pytest.fixture
def webui(tmp_path: Path) -> Gate:
    """The gate of a WebUI that has started."""
    made = Gate(tmp_path)
    made.make()
    os.utime(made.file, (NOW - 10**6, NOW - 10**6))
    return made


def test_the_time_counts_from_the_first_look_and_from_the_last_that_found_somebody(tmp_path: Path) -> None:
    seen, none = tmp_path / "busy", Gate(tmp_path / "no-webui")
    assert cli.idle_seconds(NOW, none, seen) == 0
    assert cli.idle_seconds(NOW + 60, none, seen) == 60
    cli.needed(NOW + 120, seen)
    assert cli.idle_seconds(NOW + 180, none, seen) == 60


def test_a_request_to_the_webui_counts_too(webui: Gate, tmp_path: Path) -> None:
    seen = tmp_path / "busy"
    cli.idle_seconds(NOW, webui, seen)
    os.utime(webui.file, (NOW + 50, NOW + 50))
    assert cli.idle_seconds(NOW + 60, webui, seen) == 10


# --- the command ---


Look = Callable[..., list[list[str]]]


@pytest.fixture
def commands() -> list[list[str]]:
    """What the command has run."""
    return []


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch, webui: Gate, tmp_path: Path, commands: list[list[str]]) -> Look:
    """Looks with the command, and returns what it has run this time."""

    def looked(
        word: str, idle: float, group: Fleet = NO_WORKERS, **reasons: Callable[..., Iterator[str]]
    ) -> list[list[str]]:
        commands.clear()
        for name in ("_processes", "_calculations", "_cluster"):
            monkeypatch.setattr(cli, name, reasons.get(name, lambda *_: iter(())))
        monkeypatch.setattr(watch, "asked", lambda _: lambda: group)
        cli.needed(NOW - idle, tmp_path / "busy")
        monkeypatch.setattr("sys.argv", ["oq-idle", word, *GROUP])
        monkeypatch.setattr(
            "oq_idle.cli.subprocess.run", lambda command, **_options: commands.append(command)
        )
        monkeypatch.setattr("oq_idle.cli.time.time", lambda: NOW)
        monkeypatch.setattr(gate, "TRY_SECONDS", 0.0)
        monkeypatch.setattr(cli, "WEBUI", webui.file.parent)
        monkeypatch.setattr(cli, "BUSY", tmp_path / "busy")
        monkeypatch.setenv("OQ_DISTRIBUTE", "no")
        cli.main()
        return list(commands)

    return looked


def computes(*_: Any) -> Iterator[str]:
    return cli.of_calculations([4])


def powers_off(commands: list[list[str]]) -> bool:
    return [command[-1].endswith("systemctl poweroff") for command in commands] == [True]


def test_it_powers_off_after_its_minutes_and_not_before(look: Look) -> None:
    assert look("30", 30 * 60 - 1) == []
    assert look("30", 30 * 60, _calculations=computes) == []
    assert powers_off(look("30", 30 * 60))


def test_after_a_look_that_found_somebody_the_minutes_begin_anew(look: Look, tmp_path: Path) -> None:
    look("30", 10**6, _calculations=computes)
    assert (tmp_path / "busy").stat().st_mtime == NOW


def test_who_sends_it_to_sleep_waits_for_no_minutes_and_hears_what_computes(look: Look) -> None:
    assert powers_off(look("now", 0))
    with pytest.raises(SystemExit, match="calculation 4 has not ended"):
        look("now", 10**6, _calculations=computes)


@pytest.mark.parametrize(
    "group",
    [
        Fleet(2, 0, None),  # that boot, or that AWS has no capacity for: RabbitMQ knows of none of them
        Fleet(0, 1, None),  # that leaves
    ],
)
def test_instances_of_the_group_keep_the_master_on_before_rabbitmq_knows_them(
    look: Look, group: Fleet
) -> None:
    assert look("30", 30 * 60, group) == []
    with pytest.raises(SystemExit, match=f"starts {max(group.wanted, group.present)} instances"):
        look("now", 30 * 60, group)


def test_a_look_that_fails_leaves_the_master_on_and_says_so(look: Look, commands: list[list[str]]) -> None:
    def broken() -> Iterator[str]:
        raise ConnectionRefusedError("the broker is away")

    for word in ("30", "now"):
        with pytest.raises(SystemExit, match="cannot tell whether anything is running: the broker is away"):
            look(word, 10**6, _cluster=broken)
        assert not commands


def test_what_has_begun_between_two_looks_keeps_the_master_on(look: Look) -> None:
    looks = iter([[], [4]])
    assert look("30", 10**6, _calculations=lambda: cli.of_calculations(next(looks))) == []


# --- the WebUI's requests ---


class Request(str):
    """A request; it has the headers of nobody in particular."""

    headers: Mapping[str, str] = {}


class Status(Request):
    """The master's own, of `oq-node status`."""

    headers: Mapping[str, str] = {"User-Agent": answers.AGENT}


@pytest.fixture
def activity(monkeypatch: pytest.MonkeyPatch, webui: Gate) -> Activity:
    """Django's middleware in the WebUI's unit; its answers can be closed."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(webui.file.parent))
    made = Activity(lambda request: SimpleNamespace(request=request, close=lambda: None))
    os.utime(webui.file, (NOW - 10**6, NOW - 10**6))
    return made


def test_a_request_that_is_not_answered_yet_keeps_the_master_on(
    look: Look, activity: Activity, webui: Gate
) -> None:
    answer = activity(Request("an upload"))
    os.utime(webui.file, (NOW - 10**6, NOW - 10**6))  # it takes long
    assert look("30", 10**6) == []
    with pytest.raises(SystemExit, match="answering a request"):
        look("now", 10**6)
    answer.close()
    assert powers_off(look("30", 10**6))


def test_who_asks_the_master_how_it_is_does_not_keep_it_on(look: Look, activity: Activity) -> None:
    activity(Status("a page")).close()
    assert powers_off(look("30", 10**6))


def test_a_request_that_comes_while_it_looks_waits_and_is_answered_if_the_master_stays(
    activity: Activity, webui: Gate
) -> None:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(activity(Request("a job"))))
    with webui.closed() as empty:
        assert empty
        thread.start()
        thread.join(0.2)
        assert answers == []
    thread.join(10)
    assert [answer.request for answer in answers] == ["a job"]


def test_a_request_that_comes_while_it_looks_is_refused_if_the_master_goes(
    look: Look, activity: Activity, webui: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    django = ModuleType("django.http")
    django.HttpResponse = lambda text, **options: (text, options["status"])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "django.http", django)
    accepted: list[Any] = []
    activity._get_response = accepted.append
    thread = threading.Thread(target=lambda: refusals.append(activity(Request("a job"))))
    refusals: list[Any] = []

    def comes_now(*_: Any) -> Iterator[str]:
        if not thread.ident and not webui_is_open(webui):
            thread.start()
            thread.join(0.2)
        return iter(())

    assert powers_off(look("30", 10**6, _cluster=comes_now))
    thread.join(10)
    assert [status for _, status in refusals] == [503]
    assert activity(Request("another"))[1] == 503
    assert accepted == []


def webui_is_open(webui: Gate) -> bool:
    with webui.closed() as empty:
        return empty


def test_a_power_off_that_has_failed_lets_requests_in_again(
    activity: Activity, webui: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself, also where nobody looks whether the master is idle."""
    webui.bar()
    barred = webui.asked()
    monkeypatch.setattr("oq_idle.gate.time.time", lambda: barred + gate.STALE_SECONDS)
    assert webui.enter() is None
    monkeypatch.setattr("oq_idle.gate.time.time", lambda: barred + gate.STALE_SECONDS + 1)
    for request in map(Request, ("the first", "the next")):
        answer = activity(request)
        assert answer.request == request
        answer.close()


@pytest.mark.parametrize("make", [os.symlink, lambda _, name: os.mkfifo(name)], ids=["link", "pipe"])
def test_root_follows_nothing_that_the_webuis_user_has_put_in_the_gates_place(
    webui: Gate, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's")
    webui.file.unlink()
    make(secret, webui.file)
    assert not webui_is_open(webui)
    with pytest.raises(OSError, match=r"no file|symbolic links|No such device"):
        webui.bar()
    assert secret.read_text() == "root's"


def test_a_master_whose_power_off_is_refused_bars_nobody(
    look: Look, webui: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> None:
        raise OSError("no systemd")

    monkeypatch.setattr(cli, "_power_off", refused)
    with pytest.raises(OSError, match="no systemd"):
        look("30", 10**6)
    assert webui.file.stat().st_size == 0


def test_the_webui_leaves_the_time_of_requests_where_it_is_looked_for(
    activity: Activity, webui: Gate, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = node_files(record(), "master")[f"/etc/systemd/system/{facts.WEBUI_UNIT}"]
    assert f"RuntimeDirectory={cli.WEBUI.name}\n" in unit
    os.utime(webui.file, (NOW, NOW))
    activity(Request("one")).close()
    assert webui.asked() > NOW
    os.utime(webui.file, (NOW, NOW))
    activity(Request("two")).close()
    assert webui.asked() == NOW  # not for each of many
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    assert Activity(lambda _request: "answer")("three") == "answer"


def test_what_says_how_long_is_a_tag_of_the_instance_and_no_part_of_its_user_data(record: Record) -> None:
    never, hour = record(), record(stopWhenIdleMinutes="60")
    instance = "aws:ec2/instance:Instance"
    assert never.one(instance).inputs["tags"][facts.STOP_WHEN_IDLE_TAG] == "0"
    assert hour.one(instance).inputs["tags"][facts.STOP_WHEN_IDLE_TAG] == "60"
    assert never.one(instance).inputs["userDataBase64"] == hour.one(instance).inputs["userDataBase64"]


def test_root_reads_the_database_as_the_engines_account_whatever_lies_in_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Members of the group may put a link to a file of root's there, into which SQLite would write."""
    became: list[tuple[str, int]] = []
    account = SimpleNamespace(pw_uid=600, pw_gid=601)
    database = tmp_path / "db.sqlite3"
    database.symlink_to("/etc/environment")

    class Db:
        path = str(database)

        def __call__(self, _: str) -> list[Any]:
            became.append(("read", 0))
            return []

    monkeypatch.setitem(sys.modules, "openquake.commonlib.dbapi", SimpleNamespace(db=Db()))
    monkeypatch.setattr(pwd, "getpwnam", {facts.OPENQUAKE_USER: account}.__getitem__)
    monkeypatch.setattr(os, "seteuid", lambda uid: became.append(("user", uid)))
    monkeypatch.setattr(os, "setegid", lambda gid: became.append(("group", gid)))
    assert list(cli._calculations()) == []
    assert became == [("group", 601), ("user", 600), ("read", 0), ("user", 0), ("group", 0)]
