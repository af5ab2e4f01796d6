"""Accounts on the master's /home volume, with users, groups and commands made up; the lab has real ones."""

from __future__ import annotations

import grp
import json
import pwd
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.unit.conftest import Record
from tests.unit.node import node_facts, node_module

DEBIAN = {"root": 0, "backup": 34, "nobody": 65534, "openquake": 600}


@dataclass
class Machine:
    """A master: who has an account, whose each directory is, and what the module says."""

    module: Any
    homes: Path
    users: dict[str, pwd.struct_passwd] = field(default_factory=dict)
    groups: dict[str, grp.struct_group] = field(default_factory=dict)
    owners: dict[str, int] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def add(self, name: str, uid: int, home: str, gid: int | None = None, login: str = "/bin/bash") -> None:
        self.users[name] = pwd.struct_passwd((name, "x", uid, gid or uid, "", home, login))
        if gid is None:
            self.groups[name] = grp.struct_group((name, "x", uid, []))

    def join(self, name: str, group: str) -> None:
        old = self.groups[group]
        self.groups[group] = grp.struct_group((group, "x", old.gr_gid, [*old.gr_mem, name]))

    def directory(self, name: str, uid: int, *files: str) -> Path:
        path = self.homes / name
        path.mkdir()
        for file in files:
            (path / file).touch()
        self.owners[name] = uid
        return path

    def person(self, name: str, uid: int) -> None:
        self.add(name, uid, str(self.directory(name, uid, ".profile")))

    def run(self, *command: str) -> str:
        """What shadow's commands do, and what they refuse."""
        program, *words = command
        given = dict(pairwise(words))
        if program == "groupadd":
            self.groups[words[-1]] = grp.struct_group((words[-1], "x", int(given["--gid"]), []))
        elif program == "usermod":
            if words[-1] not in self.users or given["--groups"] not in self.groups:
                raise self.module.NodeError("no such user or group")
            self.join(words[-1], given["--groups"])
        else:
            uid = int(given["--uid"])
            if words[-1] in self.users or uid in {user.pw_uid for user in self.users.values()}:
                raise self.module.NodeError(f"useradd: {words[-1]}: taken")
            gid = None if "--user-group" in words else int(given["--gid"])
            if gid is not None and gid not in {group.gr_gid for group in self.groups.values()}:
                raise self.module.NodeError(f"useradd: group {gid} does not exist")
            self.add(words[-1], uid, given["--home-dir"], gid, given["--shell"])
        return ""

    def replaced(self) -> None:
        """The same volume on a new machine."""
        self.users.clear()
        self.groups.clear()
        for name, number in DEBIAN.items():
            self.add(name, number, "/")
        self.groups["sudo"] = grp.struct_group(("sudo", "x", 27, []))
        self.module.AGENT_SUDOERS.unlink(missing_ok=True)

    def people(self) -> dict[str, int]:
        return {user.pw_name: user.pw_uid for user in self.users.values() if user.pw_name not in DEBIAN}


@pytest.fixture
def machine(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    homes = tmp_path / "home"
    homes.mkdir()
    facts = node_facts(record(), "master") | {"home_mount": str(homes)}
    with node_module("accounts", facts) as module:
        machine = Machine(module, homes)
        monkeypatch.setattr(module, "AGENT_SUDOERS", tmp_path / "ssm-agent-users")
        monkeypatch.setattr(module, "run", machine.run)
        monkeypatch.setattr(module, "say", machine.said.append)
        monkeypatch.setattr(module, "_owner", lambda path: machine.owners.get(path.name))
        monkeypatch.setattr(module.os.path, "ismount", lambda path: path == homes)
        monkeypatch.setattr(module.pwd, "getpwall", lambda: list(machine.users.values()))
        monkeypatch.setattr(module.grp, "getgrall", lambda: list(machine.groups.values()))
        monkeypatch.setattr("oq_node.common.shutil.chown", lambda *_arguments: None)
        machine.replaced()
        yield machine


def test_a_new_master_has_the_accounts_of_the_old_one(machine: Machine) -> None:
    machine.person("ann", 1001)
    machine.person("bob", 1002)
    machine.add("cid", 1003, str(machine.directory("elsewhere", 1003)), gid=1500, login="/bin/zsh")
    machine.groups["hazard"] = grp.struct_group(("hazard", "x", 1500, ["ann"]))
    machine.join("ann", "openquake")
    machine.join("bob", "sudo")
    machine.module.keep()
    before = dict(machine.users), {name: sorted(group.gr_mem) for name, group in machine.groups.items()}
    machine.replaced()
    machine.module.adopt()
    assert machine.users == before[0]
    assert {name: sorted(group.gr_mem) for name, group in machine.groups.items()} == before[1]


def test_the_file_is_roots_alone_and_written_only_when_something_has_changed(machine: Machine) -> None:
    machine.person("ann", 1001)
    machine.module.keep()
    kept = machine.homes / ".openquake-accounts"
    assert kept.stat().st_mode & 0o777 == 0o600
    before = kept.stat().st_ino, kept.stat().st_mtime_ns
    machine.module.keep()
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == before


def test_without_the_volume_nothing_is_written(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.module.os.path, "ismount", lambda _path: False)
    machine.module.keep()
    assert list(machine.homes.iterdir()) == []


@pytest.mark.parametrize("kept", ["never", "before it was made", "since"])
def test_session_managers_user_is_root_on_a_new_master_too(machine: Machine, kept: str) -> None:
    """The agent gives its account root only when it makes it."""
    sudoers = machine.module.AGENT_SUDOERS
    if kept == "before it was made":
        machine.module.keep()
    machine.person("ssm-user", 1001)
    sudoers.touch()
    if kept == "since":
        machine.module.keep()
    machine.replaced()
    machine.module.adopt()
    assert machine.people() == {"ssm-user": 1001}
    assert sudoers.read_text() == "ssm-user ALL=(ALL) NOPASSWD:ALL\n"
    assert sudoers.stat().st_mode & 0o777 == 0o440


def test_session_managers_user_from_whom_root_was_taken_does_not_get_it_back(machine: Machine) -> None:
    machine.person("ssm-user", 1001)
    machine.module.keep()
    machine.replaced()
    machine.module.adopt()
    assert not machine.module.AGENT_SUDOERS.exists()


def test_where_nobody_has_come_by_session_manager_yet_the_agent_makes_its_user(machine: Machine) -> None:
    machine.module.adopt()
    assert not machine.module.AGENT_SUDOERS.exists()


def test_of_homes_without_an_entry_only_those_that_can_be_one_become_accounts(machine: Machine) -> None:
    machine.directory("a-archive", 1002)
    machine.directory("ann", 1001, ".bashrc")
    machine.directory("backup", 1001, ".profile")
    machine.directory("bob", 1002, ".profile")
    machine.directory("Data 2026", 1003, ".profile")
    machine.directory("everybody", 65534, ".profile")
    machine.directory("lost+found", 0)
    machine.module.adopt()
    assert machine.people() == {"ann": 1001, "bob": 1002}
    assert machine.groups["openquake"].gr_mem == ["ann", "bob"]


def test_of_two_homes_with_one_owner_none_becomes_an_account_and_both_are_named(machine: Machine) -> None:
    machine.directory("bob", 1002, ".profile")
    machine.directory("bob-old", 1002, ".profile")
    machine.module.adopt()
    assert machine.people() == {}
    assert "bob-old" in " ".join(machine.said)


def test_an_account_that_cannot_be_made_holds_up_no_other_and_stays_written_down(machine: Machine) -> None:
    machine.person("ann", 1000)
    machine.person("bob", 1002)
    machine.join("ann", "sudo")
    machine.module.keep()
    machine.replaced()
    machine.add("admin", 1000, "/home/admin")  # of another image, with ann's id
    machine.module.adopt()
    assert machine.people() == {"admin": 1000, "bob": 1002}
    assert "ann" in " ".join(machine.said)
    machine.module.keep()
    kept = json.loads(machine.module.KEPT.read_text())
    assert kept["users"]["ann"]["uid"] == 1000
    assert kept["groups"]["sudo"]["members"] == ["ann"]


def test_a_file_that_is_broken_is_named_and_the_homes_are_looked_at(machine: Machine) -> None:
    machine.directory("bob", 1002, ".profile")
    machine.module.KEPT.write_text("{")
    machine.module.adopt()
    assert machine.people() == {"bob": 1002}
    assert str(machine.module.KEPT) in machine.said[0]
