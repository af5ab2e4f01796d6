"""What comes through the WebUI names no file but those that came with it.

Upstream opens every path that a job file names. What comes through the WebUI is computed as the cluster's own user, who
can read and write everybody's uploads and results, and the accounts: with `sites_csv = ../../…` they were in the log of
whoever had asked for them.
"""

from __future__ import annotations

import functools
import os
import threading
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

_thread = threading.local()  # `directory`, where an upload is that this thread looks at


class OutsideError(ValueError):
    """A name of a file that is none of an upload's, or of an archive's; the message says what to do."""


@contextmanager
def only(directory: Path) -> Iterator[None]:
    """Let the job files that this thread reads name files below a directory alone, or raise OutsideError."""
    _thread.directory = directory
    try:
        yield
    finally:
        del _thread.directory


def extend_readinput(readinput: Any) -> None:
    """Change `openquake.commonlib.readinput`: what `only` says holds before a file that a job file names is opened, or
    one that a ground motion model is given, and of those that other models name before the calculation begins.
    Unpacking a model touches nothing outside of its folder, where upstream renames what has the name of a member,
    `../../…` too.
    """
    upstream_normalize, upstream_unzip = readinput._normalize, readinput.unzip_rename
    upstream_input_files, upstream_gsim = readinput.get_input_files, readinput.valid.gsim

    @functools.wraps(upstream_normalize)
    def normalize(key: str, fnames: Iterable[Any], base_path: str) -> Any:
        given = list(fnames)
        names = [name for one in given for name in (one if isinstance(one, list) else [one])]
        _check(Path(base_path, name) for name in names)
        return upstream_normalize(key, given, base_path)

    @functools.wraps(upstream_input_files)
    def get_input_files(oqparam: Any) -> Any:
        found = upstream_input_files(oqparam)
        _check(found)
        if tree := oqparam.inputs.get("gsim_logic_tree"):
            # Those too of a file's further trees, which are read when the calculation has begun.
            for model in ElementTree.parse(tree).iter():  # noqa: S314 - upstream has read it
                if model.tag.rpartition("}")[2] == "uncertaintyModel":
                    check_arguments(model, Path(tree).parent)
        return found

    def check_arguments(model: Any, folder: str | Path) -> None:
        """Refuse files outside, whatever the argument is called that names one: upstream lists few, and opens others
        from where this process stands.
        """
        if getattr(_thread, "directory", None):
            given = list(_texts(readinput.valid.toml.loads(readinput.valid.to_toml(model))))
            _check(Path(folder, text) for text in given)
            _check(text for text in given if os.path.exists(text))  # noqa: PTH110 - a text may be too long for a path

    @functools.wraps(upstream_gsim)
    def gsim(value: Any, basedir: str = "") -> Any:
        check_arguments(value, basedir)
        return upstream_gsim(value, basedir)

    @functools.wraps(upstream_unzip)
    def unzip_rename(zpath: str, name: str) -> Any:
        folder = Path(zpath).parent
        with zipfile.ZipFile(zpath) as archive:
            outside = [member for member in archive.namelist() if not _below(folder / member, folder)]
        if outside:
            raise OutsideError(f"{zpath}: members that are not inside of it: {', '.join(map(repr, outside))}")
        return upstream_unzip(zpath, name)

    readinput._normalize, readinput.unzip_rename = normalize, unzip_rename
    readinput.get_input_files, readinput.valid.gsim = get_input_files, gsim


def _texts(value: Any) -> Iterator[str]:
    """All texts in what TOML says."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _check(paths: Iterable[str | Path]) -> None:
    """Refuse files that are not in this thread's upload, with all of them, by whatever way they get there."""
    directory = getattr(_thread, "directory", None)
    outside = [str(path) for path in paths if not _below(path, directory)] if directory else []
    if outside:
        raise OutsideError(
            f"Not among the files that were uploaded: {', '.join(sorted(outside))}. A job that comes through the WebUI "
            "has those files alone: put what it names into the archive, and name it from where the naming file lies"
        )


def _below(path: str | Path, directory: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory))
