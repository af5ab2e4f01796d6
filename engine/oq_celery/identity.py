"""In whose name root acts on what the engine's database says.

Whoever reaches the DbServer's port can write any row, so a row is no reason for root to do what its writer could not
do. Root deletes as the person whose calculation it is, so that the kernel's permissions decide.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Person:
    """A Linux user, in as far as the kernel asks for it."""

    name: str
    uid: int
    gid: int


def keeper() -> Person:
    """The user whose DbServer and WebUI write the engine's database; root where these run as root.

    Its group can put a link in the file's place, but not in its directory's.

    Raises:
        LookupError: if its directory is not there.
    """
    from openquake.baselib import config

    directory = Path(config.dbserver.file).expanduser().parent
    try:
        found = directory.stat()
    except OSError as error:
        raise LookupError(f"whose the engine's database is nobody knows: {error}") from error
    try:
        name = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        name = str(found.st_uid)
    return Person(name, found.st_uid, found.st_gid)


def person(name: str) -> Person:
    """The Linux user of a calculation; that of the WebUI, which computes for them, for its accounts.

    Raises:
        LookupError: if that is asked for, and nobody knows.
    """
    try:
        found = pwd.getpwnam(name)
    except (KeyError, ValueError):  # ValueError: a zero byte
        return keeper()
    return Person(name, found.pw_uid, found.pw_gid)


def acting_for(name: str) -> contextlib.AbstractContextManager[None]:
    """Root is the person whose calculation it is; whoever is not root stays who they are.

    Root stays, too, where the database is root's, as on a developer's machine: who can write it is root there.

    Args:
        name: of the database.

    Raises:
        LookupError: if nobody knows whose the database is.
    """
    if os.geteuid() != 0 or keeper().uid == 0:
        return contextlib.nullcontext()
    return acting_as(person(name))


@contextlib.contextmanager
def acting_as(one: Person) -> Iterator[None]:
    """Root is somebody else to the kernel's checks for files; whoever is not root stays who they are.

    The group of the database, whose members share all results, is among the groups of everybody: who has left it, or
    has an account of the WebUI alone, still owns files there.
    """
    if os.geteuid() != 0 or one.uid == os.getuid():
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    os.setgroups(sorted({*os.getgrouplist(one.name, one.gid), keeper().gid} - {gid}))
    try:
        os.setegid(one.gid)
        os.seteuid(one.uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)
