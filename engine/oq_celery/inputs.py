"""A calculation's input files where workers see them, under the names that they have on the master.

Users' files are the master's: `/home` and `custom_tmp` are no shared directories. The engine opens some of them in
tasks, by their absolute paths. So before the first task of a calculation goes to a worker, all input files that the
engine knows of the job, and the calculations that it starts from, are copied once below `<shared_dir>` (`Staged`),
unless they lie there anyway. A worker that does one of its tasks opens the copy wherever the task asks for the
original (`seen`). Neither the engine nor any of its results meets another path than the user's.

What is not covered by this is kept on the master, see `unseen`.

The copies are for the workers' eyes: they lie in a directory with a name that nobody can guess, below one that users
of the cluster can go through but not list. They go with the calculation; those of one that was killed are removed by
`oq-celery reap` (`sweep`).
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import dataclasses
import functools
import io
import json
import logging
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oq_celery.settings import Settings, load

# Users add directories that the workers' account removes: its group may pass and write, but not list. With the sticky
# bit nobody removes another's, but for the owner of the root, which is the workers' account.
ROOT_MODE = 0o3730
DIRECTORY_MODE = 0o2770
FILE_MODE = 0o640
MANIFEST = "manifest.json"
DIRECTORY = -1  # instead of a size
FILES = "files"
# A file takes a network file system some exchanges, one after the other; national models have thousands of files.
COPIES_AT_ONCE = 16
# What another machine has left here is nobody's then; no calculation takes so long.
FOREIGN_SECONDS = 30 * 86400.0
# How a classical task is told its groups of sources. A typing error (`> log 2>1`) makes a file of such a name.
_GROUPS = re.compile(r"[0-9]+(-[0-9]+)*")
DEPTH = 3  # of lists in lists that may hold paths

log = logging.getLogger(__name__)
_calculations: dict[int, Staged] = {}  # those that this process runs, the inner one last


def visible(path: str | os.PathLike[str], settings: Settings) -> bool:
    """Whether workers find the same file under this path: by its name, and where symbolic links lead."""
    shared = settings.shared_dir
    return Path(_absolute(path)).is_relative_to(shared) and Path(path).resolve().is_relative_to(
        shared.resolve()
    )


def _readable(path: Path, settings: Settings) -> bool:
    """Whether the workers' account may read a visible file, as far as its mode and those of its folders say."""
    return _closed(path, settings) is None


def _closed(path: Path, settings: Settings) -> Path | None:
    """What the workers' account may not read of a visible file and its folders, the outermost; None if it may."""
    workers, shared = make_root(settings).stat(), settings.shared_dir.resolve()
    found = path.resolve()
    closed = None
    for part in (found, *found.parents):
        if part == shared:
            break
        status = part.stat()
        needed = 0o5 if stat.S_ISDIR(status.st_mode) else 0o4
        if status.st_uid == workers.st_uid:
            granted = status.st_mode >> 6
        elif status.st_gid == workers.st_gid:
            granted = status.st_mode >> 3
        else:
            granted = status.st_mode
        if granted & needed != needed:
            closed = part
    return closed


def refusal(data_directory: str, settings: Settings, user: str) -> str | None:
    """Why calculations cannot have their data in a directory, for people; None if they can."""
    path = Path(data_directory)
    if not path.is_absolute():
        why = "this is not an absolute path"
    elif not visible(path, settings):
        why = "workers cannot see this directory"
    else:
        # What is not there yet upstream makes, for the group to read.
        closed = _closed(next(one for one in (path, *path.parents) if one.exists()), settings)
        if closed is None:
            return None
        why = f"workers may not read {closed}, which `chmod g+rx` allows them"
    return (
        f"OQ_DATADIR={data_directory}: {why}; "
        f"unset it, or set it to one below {settings.shared_dir}, such as {settings.shared_dir / user / 'oqdata'}"
    )


def unpacked(params: Mapping[str, Any], temporary: str) -> Path | None:
    """The directory into which upstream has unpacked a calculation's archive; None for one without.

    Args:
        params: of the calculation, as upstream has read them.
        temporary: the directory in which upstream makes such directories.
    """
    inputs = params.get("inputs", {})
    if "input_zip" not in inputs:
        return None
    place, job_ini = Path(temporary).resolve(), Path(inputs["job_ini"]).resolve()
    if not job_ini.is_relative_to(place) or job_ini.parent == place:
        return None
    return place / job_ini.relative_to(place).parts[0]


def beside_archive(export_dir: str, directory: Path, inputs: Mapping[str, str]) -> str:
    """Where a calculation from an archive exports to: beside that, for the directory of its files goes.

    Args:
        export_dir: as upstream has it, mostly the folder of the unpacked job file.
        directory: into which the archive was unpacked.
        inputs: of the calculation's parameters.
    """
    wanted = Path(export_dir).resolve()
    if not wanted.is_relative_to(directory):
        return export_dir
    within = os.path.relpath(wanted, Path(inputs["job_ini"]).resolve().parent)
    target = Path(inputs["input_zip"]).parent / within
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError:
        target = Path.cwd()
    return str(target if os.access(target, os.W_OK) else Path.cwd())


def extend(logs: Any) -> None:
    """Let the engine's module `openquake.commonlib.logs`, just imported, say which calculations begin and end."""
    from openquake.baselib import config

    settings = load(config)
    temporary = config.directory.custom_tmp or tempfile.gettempdir()
    context = logs.LogContext
    upstream_new, upstream_oqparam, upstream_exit = context.__init__, context.get_oqparam, context.__exit__

    @functools.wraps(upstream_new)
    def new(self: Any, *args: Any, **kwargs: Any) -> None:
        from openquake.baselib import parallel

        if parallel.oq_distribute() == "celery":
            refused = refusal(logs.get_datadir(), settings, logs.getpass.getuser())
            if refused:
                sys.exit(refused)
        upstream_new(self, *args, **kwargs)

    def get_oqparam(self: Any, *args: Any, **kwargs: Any) -> Any:
        oqparam = upstream_oqparam(self, *args, **kwargs)
        if directory := unpacked(self.params, temporary):
            oqparam.export_dir = beside_archive(oqparam.export_dir, directory, self.params["inputs"])
        _calculations[self.calc_id] = Staged(settings, oqparam)
        return oqparam

    def leave(self: Any, *exc_info: Any) -> None:
        try:
            upstream_exit(self, *exc_info)
        finally:
            staged = _calculations.pop(self.calc_id, None)
            if staged is not None:
                staged.remove()
            if directory := unpacked(self.params, temporary):
                shutil.rmtree(directory, ignore_errors=True)

    context.__init__ = new
    context.get_oqparam = get_oqparam
    context.__exit__ = leave
    atexit.register(remove_all)


def current() -> Staged | None:
    """The input files of the calculation that this process is busy with, None outside of calculations."""
    return next(reversed(_calculations.values()), None)


def directory() -> str:
    """Where the workers find the inputs of the calculation under way: copied now, if they are not there yet.

    Returns:
        The directory, or nothing if they need none.

    Raises:
        OSError: if they cannot be copied.
    """
    staged = current()
    return staged.directory() if staged else ""


class Staged:
    """The input files of one calculation; they are copied when the first task needs them."""

    def __init__(self, settings: Settings, oqparam: Any) -> None:
        self._settings = settings
        self._oqparam = oqparam
        self._pid = os.getpid()
        self._directory: Path | None = None
        self._files: dict[str, int] | None = None

    def __contains__(self, path: str) -> bool:
        """Whether workers find this path because of us."""
        return _absolute(path) in self.files()

    def files(self) -> dict[str, int]:
        """Those that workers do not see where they are: the size of each in bytes, or DIRECTORY."""
        if self._files is None:
            self._files = {}
            for path in map(Path, map(_absolute, _inputs(self._oqparam))):
                if path.exists() and not (visible(path, self._settings) and _readable(path, self._settings)):
                    self._files[str(path)] = DIRECTORY if path.is_dir() else path.stat().st_size
        return self._files

    def directory(self) -> str:
        """Where the copies are; nothing if there need be none."""
        if self._directory is None and self.files():
            self._directory = make_root(self._settings) / _name()
            self._copy(self._directory)
        return str(self._directory or "")

    def remove(self) -> None:
        """Remove the copies; a process that was forked leaves its parent's."""
        if self._directory is not None and self._pid == os.getpid():
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _copy(self, target: Path) -> None:
        began = time.monotonic()
        copies = {path: copied(target, path) for path in self.files()}
        made: set[Path] = set()
        for path, copy in copies.items():
            _make(copy if self.files()[path] == DIRECTORY else copy.parent, target, made)
        plain = [(path, copy) for path, copy in copies.items() if self.files()[path] != DIRECTORY]
        with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
            # As they are now: what the user writes from here on is the next calculation's.
            self.files().update(pool.map(_copy_file, plain))
        _write(target / MANIFEST, json.dumps(self.files()).encode())
        size = sum(self.files()[path] for path, _ in plain)
        log.info(
            "Copied %d input files, %.1f MB, in %.1f s to where workers see them",
            len(plain),
            size / 1e6,
            time.monotonic() - began,
        )


def unseen(starmap: Any, args: Iterable[Any], settings: Settings) -> str | None:
    """A path that a set of tasks needs and that workers do not see; it is for the master's own processes then.

    Those of a calculation's inputs they do see. What is left are the files of commands that are no calculations, of
    calculations that have been kept elsewhere, and what a later version of the engine may hand to its tasks.
    """
    if starmap.calc_id is not None and not visible(starmap.monitor.filename, settings):
        return str(starmap.monitor.filename)
    staged = current()
    listed = starmap.task_args if starmap.num_tasks else []
    for path in (path for task in [args, *listed] for arg in task for path in _paths(arg, DEPTH)):
        # Not of pathlib, whose questions fail for a text that is too long for a name.
        if not os.path.isabs(path):  # noqa: PTH117
            # Of this process's directory, which is not the workers'. Many a word is the name of a directory, too.
            there = os.path.exists if os.sep in path else os.path.isfile
            if not _GROUPS.fullmatch(path) and there(path):
                return path
        elif os.path.exists(path) and not visible(path, settings) and not (staged and path in staged):  # noqa: PTH110
            return path
    return None


@contextlib.contextmanager
def seen(directory: str) -> Iterator[None]:
    """Let this process find the inputs of a calculation under the paths that they have on its master.

    Args:
        directory: of the copies; nothing if there are none.

    Raises:
        OSError: if they are not there.
    """
    if not directory:
        yield
        return
    views = _views(directory)
    for view in views:
        setattr(view.owner, view.name, view.copies)
    try:
        yield
    finally:
        for view in views:
            setattr(view.owner, view.name, view.originals)


def make_root(settings: Settings) -> Path:
    """The directory of all calculations' copies; it should belong to the workers' account, so that makes it first."""
    root = settings.shared_dir / "oq_celery_inputs"
    with contextlib.suppress(FileExistsError):
        root.mkdir()
        root.chmod(ROOT_MODE)
    return root


def sweep(settings: Settings) -> None:
    """Remove the copies of calculations of this machine whose process is gone.

    Raises:
        PermissionError: if the directory belongs to another account.
    """
    for path in make_root(settings).iterdir():
        if not _owner_lives(path):
            shutil.rmtree(path, ignore_errors=True)


def copied(directory: Path, path: str) -> Path:
    """Where the copy of an absolute path is."""
    return Path(f"{directory / FILES}{path}")


def remove_all() -> None:
    """Remove the copies of the input files of all calculations of this process."""
    for staged in _calculations.values():
        staged.remove()


def _inputs(oqparam: Any) -> Iterator[str]:
    """All files of a job that a task may open, as far as the engine knows them; some may not exist."""
    archive = oqparam.inputs.get("input_zip")  # its content has been unpacked and is listed file by file
    for path in oqparam._input_files:
        if path == archive:
            continue
        # What is not there upstream takes out of an archive.
        yield path if Path(path).exists() else str(Path(path).with_suffix(".zip"))
        if path.endswith(".shp"):
            yield from (str(Path(path).with_suffix(other)) for other in (".dbf", ".shx", ".prj", ".cpg"))
    yield from _parents(oqparam.hazard_calculation_id)


def _parents(calculation: int | str | None) -> Iterator[str]:
    """The files of the calculation that one starts from, and of the one which that had started from."""
    from openquake.commonlib import datastore

    while calculation and not str(calculation).endswith(".ini"):
        with contextlib.closing(datastore.read(calculation, read_parent=False)) as dstore:
            yield dstore.filename
            yield dstore.tempname
            tables = Path(dstore.filename).with_suffix("")
            if tables.is_dir():
                yield str(tables)
                yield from map(str, tables.iterdir())
            calculation = datastore.get_oq(dstore).hazard_calculation_id


def _absolute(path: str | os.PathLike[str]) -> str:
    """A path from the root, as it is written: symbolic links stay."""
    return os.path.abspath(path)  # noqa: PTH100 - Path.resolve would follow links


def _paths(value: Any, depth: int) -> Iterator[str]:
    """The texts in an argument of a task that may be paths."""
    from openquake.commonlib.datastore import DataStore

    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        if isinstance(path, str) and "\0" not in path:
            yield path
    elif isinstance(value, DataStore):
        yield value.filename
        for other in (value.ppath, value.parent):
            yield from _paths(other, depth)
    elif depth and dataclasses.is_dataclass(value) and not isinstance(value, type):
        for each in dataclasses.fields(value):
            yield from _paths(getattr(value, each.name, None), depth - 1)
    elif depth and isinstance(value, Mapping):
        yield from _paths(list(value.values()), depth)
    elif depth and isinstance(value, Sequence | AbstractSet):
        first = next(iter(value), None)
        # Blocks of sources and ruptures are long lists of one kind.
        if dataclasses.is_dataclass(first) or isinstance(
            first, str | os.PathLike | Mapping | list | tuple | DataStore | None
        ):
            for item in value:
                yield from _paths(item, depth - 1)


def _copy_file(paths: tuple[str, Path]) -> tuple[str, int]:
    path, copy = paths
    shutil.copyfile(path, copy)
    copy.chmod(FILE_MODE)
    return path, copy.stat().st_size


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(FILE_MODE)


def _make(directory: Path, top: Path, made: set[Path]) -> None:
    """Make a directory and those above it down from `top`, all of them open to the group."""
    if directory in made:
        return
    if directory != top:
        _make(directory.parent, top, made)
    directory.mkdir(exist_ok=True)
    directory.chmod(DIRECTORY_MODE)
    made.add(directory)


@dataclass(frozen=True)
class _View:
    """A function that opens files or looks at them, and the one that takes its place during a task."""

    owner: Any
    name: str
    originals: Callable[..., Any]
    copies: Callable[..., Any]


@functools.lru_cache(maxsize=4)
def _views(directory: str) -> list[_View]:
    """How a process opens the copies in a directory: Python's ways and HDF5's, which are those of the engine."""
    import h5py

    manifest = json.loads((Path(directory) / MANIFEST).read_bytes())
    copies = {path: (str(copied(Path(directory), path)), size) for path, size in manifest.items()}
    return [
        _View(owner, name, original, _opening_copies(original, position, argument, copies))
        for owner, name, position, argument in (
            (builtins, "open", 0, "file"),
            (io, "open", 0, "file"),
            (os, "open", 0, "path"),
            (os, "stat", 0, "path"),
            (os, "lstat", 0, "path"),
            (os, "access", 0, "path"),
            (os, "listdir", 0, "path"),
            (os, "scandir", 0, "path"),
            (h5py.File, "__init__", 1, "name"),
            (h5py, "is_hdf5", 0, "fname"),
        )
        for original in [getattr(owner, name)]
    ]


def _opening_copies(
    function: Callable[..., Any], position: int, argument: str, copies: dict[str, tuple[str, int]]
) -> Callable[..., Any]:
    """A function that opens the copy of a file, if there is one, and otherwise the file of that name.

    Args:
        function: to take its place.
        position: of the path among its arguments.
        argument: the path's name among its keyword arguments.
        copies: the copy of each path, and its size.
    """
    look = os.stat

    def translate(path: Any) -> Any:
        if not isinstance(path, str | os.PathLike):
            return path
        copy, size = copies.get(_absolute(path), (None, DIRECTORY))
        if copy is None:
            return path
        if size != DIRECTORY and look(copy).st_size != size:
            raise OSError(
                f"The copy of {path} for the workers, {copy}, has not the {size} bytes of the original"
            )
        return copy

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) > position:
            args = (*args[:position], translate(args[position]), *args[position + 1 :])
        elif argument in kwargs:
            kwargs[argument] = translate(kwargs[argument])
        return function(*args, **kwargs)

    return call


def _name() -> str:
    """A name that says whose it is and that nobody can guess."""
    pid = os.getpid()
    return f"{socket.gethostname()}.{_boot()}.{pid}.{_started(pid)}.{secrets.token_hex(16)}"


def _owner_lives(path: Path) -> bool:
    """Whether the process that made a directory is there; a look at another machine's is not possible."""
    try:
        host, boot, pid, started, _ = path.name.rsplit(".", 4)
        if host != socket.gethostname():
            return time.time() - path.stat().st_mtime < FOREIGN_SECONDS
        return boot == _boot() and started == _started(int(pid))
    except (ValueError, OSError):
        return False


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]


def _started(pid: int) -> str:
    """When a process has started, in the kernel's ticks since the boot: it tells two of one number apart.

    Raises:
        OSError: if there is none.
    """
    state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if state == "Z":
        raise ProcessLookupError(pid)
    return fields[18]
