"""The files of calculations, as far as a command removes them: where they belong, and nowhere else.

The database says where a calculation's files are, and whoever reaches the DbServer's port can write there what they
like: a directory in somebody's home, which a deletion by that person, or by root, would empty. So files are removed
below the shared directory and the data directory of whoever removes them alone, through no symbolic link, since members
of the group can make one there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from openquake.baselib import config

from oq_celery import identity, settings
from oq_celery.abort import Refused

DATASTORES = (".hdf5", "_tmp.hdf5")  # what the names of a calculation's files have after its directory's
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def has_own_files(job: Any) -> bool:
    """Whether the files that a calculation names are its own, not those of an equal one (`cache = true`)."""
    return Path(job.ds_calc_dir).name == f"calc_{job.id}"


def datastores(job: Any) -> Iterator[Path]:
    """Where the database says that a calculation's own results are."""
    if has_own_files(job):
        for ending in DATASTORES:
            yield Path(job.ds_calc_dir + ending)


@contextlib.contextmanager
def opened(directory: Path, places: Sequence[Path]) -> Iterator[int]:
    """A descriptor of a directory in which this user may remove files of calculations.

    Args:
        directory: its absolute path.
        places: where files are removed.

    Raises:
        FileNotFoundError: if it is not there.
        NotADirectoryError: if something on the way is a symbolic link.
        PermissionError: if it is elsewhere, or the kernel refuses it.
    """
    place = next((one for one in places if directory.is_relative_to(one)), None)
    if place is None or ".." in directory.parts:
        raise PermissionError(f"{directory} is not in {' or '.join(map(str, places))}")
    found = os.open(place, _DIRECTORY)
    try:
        for part in directory.relative_to(place).parts:
            former, found = found, os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=found)
            os.close(former)
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=found, effective_ids=True):
            raise PermissionError(f"{directory} is not theirs to change")
        yield found
    finally:
        os.close(found)


def own_places() -> list[Path]:
    """Where this user removes files; the way to each may have links, for no member of the group has made these."""
    from openquake.commonlib.logs import get_datadir

    places = [settings.load(config).shared_dir]
    if os.geteuid() != 0:
        places.append(Path(get_datadir()))  # in the shared directory, or $OQ_DATADIR
    elif chosen := os.environ.get("OQ_DATADIR"):
        places.append(Path(chosen))
    return sorted(places, key=lambda one: -len(one.parts))


@contextlib.contextmanager
def files(job: Any) -> Iterator[Files]:
    """What a calculation has on the disk, to be removed in the name of whose it is.

    Raises:
        Refused: if its results are where this user must not remove them.
    """
    directory, places = Path(job.ds_calc_dir).parent, own_places()
    with contextlib.ExitStack() as stack:
        found: int | None = None
        if has_own_files(job):
            try:
                _check_roots_own(job.user_name, directory)
                with identity.acting_for(job.user_name):
                    found = stack.enter_context(opened(directory, places))
            except FileNotFoundError:
                pass
            except OSError as error:
                if any(map(os.path.lexists, datastores(job))):
                    raise Refused(
                        f"Calculation {job.id} of {job.user_name} stays, and its results, {job.ds_calc_dir}.hdf5: "
                        f"{error}. Whose they are may remove it with OQ_DATADIR={directory}"
                    ) from None
        yield Files(job, found)


def _check_roots_own(name: str, directory: Path) -> None:
    """The kernel refuses nothing to root: on a cluster, whose database is another user's, root's have one place.

    Raises:
        PermissionError: if they are not.
    """
    from openquake.commonlib.logs import get_datadir

    if os.geteuid() != 0 or identity.person(name).uid != 0 or identity.keeper().uid == 0:
        return
    if directory != Path(get_datadir()):
        raise PermissionError(f"root's are in {get_datadir()}")


class Files:
    """A calculation's files; made by `files`."""

    def __init__(self, job: Any, directory: int | None) -> None:
        self._name, self._user, self._directory = f"calc_{job.id}", job.user_name, directory

    def remove(self, *, results: bool) -> None:
        """Remove the inputs that came through the WebUI and the rates, and the datastores, too, if wanted.

        Raises:
            OSError: if a datastore stays.
        """
        if self._directory is None:
            return
        with identity.acting_for(self._user):
            shutil.rmtree(self._name, ignore_errors=True, dir_fd=self._directory)
            for ending in DATASTORES if results else ():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._name + ending, dir_fd=self._directory)
