"""The bootstrap's steps and what a node says of them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.base import REPOSITORY
from tests.unit.conftest import Record
from tests.unit.node import node_facts, node_module


@pytest.fixture
def common(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    known = node_facts(record(), "worker") | {"bootstrap_done": str(tmp_path / "done")}
    with node_module("common", known) as module:
        monkeypatch.setattr(module, "STATE", tmp_path / "run" / "state.json")
        yield module


def status(common: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The problems of a node where all else is well."""
    monkeypatch.setattr("sys.argv", ["oq-node", "status"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        common.main("worker", lambda: None, list, {})
    answer = json.loads(capsys.readouterr().out)
    assert (end.value.code == 0) == answer["ready"] == (not answer["problems"])
    found: list[str] = answer["problems"]
    return found


def test_a_node_is_ready_when_its_bootstrap_has_succeeded_once(
    common: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(common, monkeypatch, capsys) == ["bootstrap waits for its turn"]
    with common.step("engine"):
        assert status(common, monkeypatch, capsys) == ["bootstrap is at engine"]
    monkeypatch.setattr("sys.argv", ["oq-node", "bootstrap"])
    common.main("worker", lambda: None, list, {})
    assert status(common, monkeypatch, capsys) == []
    common.STATE.unlink()  # a reboot
    assert status(common, monkeypatch, capsys) == []


def test_who_looks_while_the_state_is_written_sees_all_of_the_former_one(common: Any) -> None:
    common.record(step="engine")
    with common.STATE.open() as looking:
        common.record(step="mounts")
        assert json.load(looking) == {"step": "engine"}
    assert common.recorded() == {"step": "mounts"}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("no route"), "no route"),
        (ValueError("not JSON"), "ValueError('not JSON')"),
        (KeyError("zone"), "KeyError('zone')"),
    ],
)
def test_whatever_goes_wrong_in_a_step_is_said_and_still_known_when_it_is_tried_again(
    common: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    words: str,
) -> None:
    with pytest.raises(SystemExit, match="1"), common.step("engine"):
        raise error
    failed = f"it has failed at engine: {words}"
    assert status(common, monkeypatch, capsys) == [f"bootstrap waits for its turn; {failed}"]
    with common.step("system user"):
        assert status(common, monkeypatch, capsys) == [f"bootstrap is at system user; {failed}"]


def test_the_shared_file_system_is_mounted_by_the_address_in_this_zone_and_asks_again_for_what_was_not_there(
    common: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted: dict[str, tuple[str, ...]] = {}
    commands: list[str] = []
    monkeypatch.setattr(common, "run", lambda *command: commands.append(" ".join(command)))
    monkeypatch.setattr(common, "mount_unit", lambda what, where, *how: mounted.update({where: (what, *how)}))
    zone, address = next(iter(common.FACTS["nfs_addresses"].items()))
    monkeypatch.setattr(common, "metadata", {"placement/availability-zone": zone}.get)
    common.mount_shared()
    what, kind, options = mounted[common.FACTS["nfs_dir"]]
    assert (what, kind) == (f"{address}:/", "nfs4")
    assert {f"addr={address}", "vers=4.1", "hard", "lookupcache=positive"} <= set(options.split(","))
    # That this is so, a virtual machine shows.
    denied = "IPAddressDeny=" + " ".join(common.FACTS["nfs_addresses"].values())
    assert commands == [f"systemctl set-property {unit} {denied}" for unit in ("system.slice", "user.slice")]


def test_the_engine_is_a_mount_for_which_no_boot_waits(common: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted: dict[str, tuple[str, ...]] = {}
    started: list[str] = []
    monkeypatch.setattr(common, "mount_unit", lambda what, where, *how: mounted.update({where: (what, *how)}))
    monkeypatch.setattr(common, "start", started.append)
    common.mount_engine()
    assert {"ro", "_netdev"} <= set(mounted[common.FACTS["engine_dir"]][-1].split(","))
    assert started == [common.FACTS["mounts_unit"]]


def test_whatever_a_check_raises_is_waited_out(common: Any) -> None:
    outcomes = iter([ValueError("half an answer"), KeyError("x"), None])

    def check() -> bool:
        if error := next(outcomes):
            raise error
        return True

    assert common.until("the secret", 10, check, every=0)
    with pytest.raises(
        common.NodeError, match=r"^timed out after 0 s waiting for the secret \(JSONDecodeError"
    ):
        common.until("the secret", 0, lambda: json.loads("half an answer"), every=0)


def test_what_is_written_is_on_the_disk_before_and_after_it_takes_the_old_ones_place(
    common: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else a power cut leaves an empty file under the name."""
    target = tmp_path / "file"
    synced: list[tuple[str, bool]] = []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((path.read_text() if path.is_file() else path.name, target.exists()))

    monkeypatch.setattr(common.os, "fsync", fsync)
    monkeypatch.setattr(common.shutil, "chown", lambda *_: None)
    common.write(str(target), "text")
    assert synced == [("text", False), (tmp_path.name, True)]  # and its name
    assert target.read_text() == "text"


def test_two_that_change_the_configuration_do_so_one_after_the_other(
    common: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each writes the whole file: the timer must not put a password back that a rotation has just changed."""
    cfg = tmp_path / "openquake.cfg"
    cfg.write_text("[amqp]\npassword = old\n")
    monkeypatch.setitem(common.FACTS, "openquake_cfg", str(cfg))
    monkeypatch.setattr(common.shutil, "chown", lambda *_: None)
    write, read, first = common.write, threading.Event(), threading.current_thread()

    def written(*arguments: Any) -> None:
        if threading.current_thread() is first:  # which has read the file, and now lets the other try
            other.start()
            read.wait(0.5)
        write(*arguments)

    def change() -> None:
        common.write_configuration({"amqp": {"password": "new"}})
        read.set()

    other = threading.Thread(target=change)
    monkeypatch.setattr(common, "write", written)
    common.write_configuration({"distribution": {"num_cores": "4"}})
    other.join()
    config = common.read_configuration()
    assert (config["amqp"]["password"], config["distribution"]["num_cores"]) == ("new", "4")


@pytest.mark.parametrize(
    ("mountpoint", "problems"),
    [("exit 0", []), ("exit 1", ["/srv is not mounted"]), ("exec sleep 600", ["/srv does not answer"])],
)
def test_a_file_server_that_does_not_answer_holds_up_no_look(
    common: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mountpoint: str, problems: list[str]
) -> None:
    """As with NFS: whoever asks for the state of the directory waits until the server is back."""
    program = tmp_path / "mountpoint"
    program.write_text(f"#!/bin/sh\n{mountpoint}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(common, "MOUNT_SECONDS", 1 if problems and "answer" in problems[0] else 60)
    assert common.mount_problems("/srv") == problems


def test_all_that_show_what_others_have_written_take_the_same_characters_for_control() -> None:
    """Three programs that cannot import each other: the node's, the engine's, and the one on people's computers."""
    files = ("cloud-init/oq_node/journal.py", "engine/oq_celery/jobs.py", "client/oq_cluster/terminal.py")
    found = {
        re.findall(r'CONTROL\b.* = re\.compile\((r".*?")\)', (REPOSITORY / file).read_text())[0]
        for file in files
    }
    assert len(found) == 1
