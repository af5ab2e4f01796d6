"""People's accounts on the master: written down beside their homes, since a new machine's /etc/passwd knows none.

An account is people's where its id is one that Debian gives to people and its home is on the /home volume.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import stat
from pathlib import Path
from typing import Any

from oq_node.common import FACTS, NodeError, run, say, write

HOMES = Path(FACTS["home_mount"])
KEPT = HOMES / ".openquake-accounts"
PEOPLE = range(1000, 60000)  # FIRST_UID to LAST_UID of Debian's adduser.conf
LOGIN_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
# Of /etc/skel: what tells a home from another directory below /home.
SKELETON = (".profile", ".bashrc", ".bash_logout")
# Session Manager's account. The agent makes it at the first session and gives it this file then, but only then: one
# that is there already stays without root. amazon-ssm-agent, agent/session/utility/utility_unix.go
AGENT_USER = "ssm-user"
AGENT_SUDOERS = Path("/etc/sudoers.d/ssm-agent-users")


def keep() -> None:
    """Write down who has an account, where that has changed; nothing without the volume.

    What is written of an account that this machine has not got stays as long as its home does.
    """
    if not os.path.ismount(HOMES):
        return
    found: dict[str, Any] = {
        user.pw_name: {"uid": user.pw_uid, "gid": user.pw_gid, "gecos": user.pw_gecos, "home": user.pw_dir,
                       "shell": user.pw_shell}
        for user in pwd.getpwall()
        if _is_persons(user)
    }  # fmt: skip
    groups: dict[str, Any] = {
        group.gr_name: {"gid": group.gr_gid, "members": sorted(set(group.gr_mem) & set(found))}
        for group in grp.getgrall()
        if group.gr_gid in PEOPLE or set(group.gr_mem) & set(found)
    }
    before = _kept()
    for name, user in before["users"].items():
        if name in found or not Path(user["home"]).is_dir():
            continue
        found[name] = user
        for group, its in before["groups"].items():
            if name in its["members"]:
                groups.setdefault(group, {**its, "members": []})["members"].append(name)
            elif its["gid"] == user["gid"]:
                groups.setdefault(group, {**its, "members": []})
    now = {"users": found, "groups": groups, "agent_is_root": AGENT_SUDOERS.exists() or not _user(AGENT_USER)}
    if now != before:
        write(str(KEPT), json.dumps(now, indent=1), 0o600)


def adopt() -> None:
    """Give people their accounts back: those that are written down, and those that homes without an entry tell of.

    An account that cannot be made is named, and holds nothing else up.
    """
    kept = _kept()
    for name, group in kept["groups"].items():
        if group["gid"] in PEOPLE and not _group(name):
            _do("groupadd", "--gid", str(group["gid"]), name)
    for name, user in kept["users"].items():
        if _user(name):
            continue
        _make(name, user["uid"], user["home"], "--gid", str(user["gid"]), "--shell", user["shell"],
              "--comment", user["gecos"])  # fmt: skip
    for name, group in kept["groups"].items():
        for member in group["members"]:
            if _group(name) and _user(member):
                _do("usermod", "--append", "--groups", name, member)
    for home, uid in _unknown_homes():
        _make(home.name, uid, str(home), "--user-group", "--shell", "/bin/bash")
    for user in pwd.getpwall():  # everybody of whom nothing else is written may run calculations
        if _is_persons(user) and user.pw_name not in kept["users"]:
            _do("usermod", "--append", "--groups", FACTS["openquake_user"], user.pw_name)
    if _user(AGENT_USER) and kept["agent_is_root"]:
        write(str(AGENT_SUDOERS), f"{AGENT_USER} ALL=(ALL) NOPASSWD:ALL\n", 0o440)


def _kept() -> dict[str, Any]:
    """What is written down; of a file that is not there or broken, what a master without one has had."""
    nothing: dict[str, Any] = {"users": {}, "groups": {}, "agent_is_root": True}
    try:
        return {**nothing, **json.loads(KEPT.read_text())}
    except FileNotFoundError:
        return nothing
    except ValueError as error:
        say(f"{KEPT} cannot be read, so accounts are guessed from the homes: {error}")
        return nothing


def _unknown_homes() -> list[tuple[Path, int]]:
    """The directories that look like homes of people who have no account, and their owners' ids."""
    homes: dict[int, list[Path]] = {}
    for path in sorted(HOMES.iterdir()):
        uid = _owner(path)
        if (
            uid is not None
            and uid in PEOPLE
            and any((path / file).exists() for file in SKELETON)
            and LOGIN_NAME.fullmatch(path.name)
            and not _user(path.name)
            and not any(user.pw_uid == uid for user in pwd.getpwall())
        ):
            homes.setdefault(uid, []).append(path)
    for uid, paths in homes.items():
        if len(paths) > 1:
            say(
                f"{', '.join(map(str, paths))}: which of them is the home of user {uid}? None gets an account"
            )
    return [(paths[0], uid) for uid, paths in homes.items() if len(paths) == 1]


def _owner(path: Path) -> int | None:
    """The id of a directory's owner; None of what is none, a link to one included."""
    status = path.lstat()
    return status.st_uid if stat.S_ISDIR(status.st_mode) else None


def _is_persons(user: pwd.struct_passwd) -> bool:
    return user.pw_uid in PEOPLE and Path(user.pw_dir).parent == HOMES


def _user(name: str) -> bool:
    return any(user.pw_name == name for user in pwd.getpwall())


def _group(name: str) -> bool:
    return any(group.gr_name == name for group in grp.getgrall())


def _make(name: str, uid: int, home: str, *options: str) -> None:
    if _do("useradd", "--uid", str(uid), "--no-create-home", "--home-dir", home, *options, name):
        say(f"user {name} ({uid}) is back: {home} is theirs")


def _do(*command: str) -> bool:
    try:
        run(*command)
    except NodeError as error:
        say(str(error))
        return False
    return True
