"""Which files a job consists of, without the engine.

The rule is about files, not about the engine's parameters: whatever a value of the job file names and is there, is an
input; so is whatever an XML input names in its text or attributes and is there, relative to the XML file. Files that
the engine looks for beside an input, by its name, come along. `tests/transport/test_client_inputs.py` compares this
with the engine's own list for the engine's own jobs.
"""

from __future__ import annotations

import ast
import configparser
import contextlib
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from oq_cluster.errors import UsageError

# Parameters whose value the engine takes for file names (openquake.commonlib.readinput.update).
_FILE_KEYS: Final = ("_file", "_csv", "_hdf5")
# Those that may have several, without spaces in them. All others have one.
_LISTS: Final = frozenset(
    {
        *(
            "hazard_curves_csv",
            "hazard_curves_file",
            "gmfs_csv",
            "gmfs_file",
            "site_model_csv",
            "site_model_file",
        ),
        *("source_model_file", "exposure_csv", "exposure_file"),
    }
)
# A word that may be a file's name: numbers are not tried, of which large models have millions.
_NAME: Final = re.compile(r"""[^\s"'<>=,;{}()\[\]]*\.[A-Za-z]\w*""")
_ARCHIVES: Final = frozenset({"source_model_logic_tree_file", "exposure_file"})  # which it may unpack
_MOSAIC: Final = "${mosaic}/"  # a directory of the server
_MODEL_FILES: Final = (".xml", ".nrml", ".csv", ".hdf5", ".zip")
# Elements of XML inputs whose text the engine takes for file names: those of source models in logic trees, of assets in
# exposures, of policies in reinsurance. A table that a ground motion model names may be the engine's own.
_FILE_ELEMENTS: Final = frozenset({"assets", "policies"})
_SOURCE_BRANCHES: Final = frozenset({"sourceModel", "extendModel"})
_XML: Final = (".xml", ".nrml")
_SHAPEFILES: Final = (".shp", ".dbf", ".prj", ".shx")


@dataclass(frozen=True)
class Job:
    """A job file with all its inputs.

    Attributes:
        ini: the job file, an absolute path like the others.
        files: all files of the job, the job file among them, sorted.
        root: the directory that all of them are below, by which their relative paths are kept.
        description: as the job file has it.
        hazard: what the job file says of the calculation to continue, mostly nothing.
    """

    ini: Path
    files: tuple[Path, ...]
    root: Path
    description: str
    hazard: str = ""

    def name(self, file: Path) -> str:
        """A file's name in the archive."""
        return file.relative_to(self.root).as_posix()

    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)


def gather(job_ini: Path) -> Job:
    """The files of a job.

    Raises:
        UsageError: it is no job file, or names files that are not there or cannot be read; all in one message.
    """
    ini = Path(os.path.abspath(job_ini))  # noqa: PTH100  a link's neighbours count, not its target's
    values = _values(ini)
    gathering = _Gathering(ini)
    gathering.take(ini)
    if problems := gathering.problems():
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise UsageError(f"{job_ini}: files that the job names cannot be uploaded:\n{lines}")
    files = tuple(sorted(gathering.files))
    root = Path(os.path.commonpath([file.parent for file in files]))
    job = Job(
        ini, files, root, values.get("description", ""), values.get("hazard_calculation_id", "").strip()
    )
    # The server takes the first of all files that end in the job file's name.
    first = min((file for file in files if file.name.endswith(ini.name)), key=job.name)
    if first != ini:
        raise UsageError(
            f"{job_ini}: the server would take {first} for the job file. Rename one of them: "
            f"no name may end in {ini.name} and come first"
        )
    return job


def _values(ini: Path) -> dict[str, str]:
    """The parameters of a job file, as the engine reads them."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        text = ini.read_text(encoding="utf-8-sig")
        parser.read_string(text, str(ini))
    except FileNotFoundError:
        raise UsageError(f"{ini}: there is no such file") from None
    except (configparser.Error, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{ini}: this is not a job file of OpenQuake: {error}") from None
    return {key: value for section in parser.sections() for key, value in parser.items(section)}


class _Gathering:
    """The files of the job file `ini` found so far, and what is missing."""

    def __init__(self, ini: Path) -> None:
        self.ini = ini
        self.files: set[Path] = set()
        self.archives: set[Path] = set()
        self.missing: list[tuple[Path, str, str]] = []  # by which file, what, and how it says so
        self.unreadable: list[str] = []

    def take(self, file: Path) -> None:
        """Take a file, what it names, and what the engine looks for beside it."""
        if file in self.files:
            return
        self.files.add(file)
        try:
            with file.open("rb") as opened:
                opened.read(1)
            self._follow(file)
        except OSError as error:
            self.unreadable.append(f"{error.filename or file} cannot be read: {error.strerror}")

    def _follow(self, file: Path) -> None:
        for beside in _beside(file):
            self.take(beside)
        # The job file, whatever its name's ending, and that of a calculation with which this one begins.
        if file == self.ini or file.suffix.lower() == ".ini":
            for key, value in _values(file).items():
                self._ini_value(file, key, value)
        elif file.suffix.lower() in _XML:
            for name, wanted in _xml_names(file):
                self._name(file, name, wanted and name.lower().endswith(_MODEL_FILES), f"names {name}")

    def _ini_value(self, ini: Path, key: str, value: str) -> None:
        wanted = set(_listed(key, value)) if key.endswith(_FILE_KEYS) else set()
        for name in sorted({value.strip(), *_words(value)} | wanted):
            self._name(ini, name, name in wanted, f"{key} = {name}")
            # The engine takes an unpacked one that is there for it.
            found = self._found(name, ini.parent) if key in _ARCHIVES and name.endswith(".zip") else None
            if found is not None and not found.with_suffix(".xml").exists():
                self.archives.add(found)

    def _name(self, file: Path, name: str, wanted: bool, context: str) -> None:
        """Take what a file names; complain of what the engine would look for and not find."""
        name = name.removeprefix("file://")
        if (found := self._found(name, file.parent)) is not None:
            self.take(found)
        elif wanted and not name.startswith(_MOSAIC):
            self.missing.append((file, name, context))

    def problems(self) -> list[str]:
        """What cannot be read, and what the engine would look for and not find, a line for each; when all is taken."""
        return self.unreadable + [
            f"{file.name}: {context}: {self._trouble(name, file.parent)}"
            for file, name, context in self.missing
            if Path(name).is_absolute() or Path(os.path.normpath(file.parent / name)) not in self._packed
        ]

    @staticmethod
    def _found(name: str, base: Path) -> Path | None:
        """The file of a name; directories are none, such as where to export to, and absolute paths are not taken."""
        if not name or Path(name).is_absolute() or "\0" in name:
            return None
        path = Path(os.path.normpath(base / name))
        try:
            return path if path.is_file() else None
        except OSError:  # too long for a name
            return None

    @cached_property
    def _packed(self) -> frozenset[Path]:
        """What comes with the archives of the job that the engine unpacks where they lie; when all is taken."""
        found = set[Path]()
        for archive in self.archives:
            with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(archive) as opened:
                found |= {archive.parent / name for name in opened.namelist()}
        return frozenset(found)

    @staticmethod
    def _trouble(name: str, base: Path) -> str:
        if Path(name).is_absolute():
            return "an absolute path; write it relative to the job file"
        path = Path(os.path.normpath(base / name))
        return f"{path} is a directory" if path.is_dir() else f"there is no {path}"


def _listed(key: str, value: str) -> Iterator[str]:
    """The file names of a parameter that the engine takes for files: a dictionary, words, or one name."""
    if value.startswith("{"):
        try:
            dictionary = ast.literal_eval(value)
            named = list(dictionary.values())
        except (ValueError, SyntaxError, AttributeError):
            return  # the engine will say so
        for item in named:
            yield from (str(name) for name in (item if isinstance(item, list) else [item]))
    elif key in _LISTS:
        yield from value.split()
    elif value.strip():
        yield value.strip()


def _words(text: str) -> Iterator[str]:
    yield from (found[0] for found in _NAME.finditer(text))


def _beside(file: Path) -> Iterator[Path]:
    """What the engine looks for by the name of an input: the arrays of a source model, the parts of a shapefile, the
    unpacked model that it prefers to an archive.
    """
    other = {".xml": ".hdf5", ".nrml": ".hdf5", ".zip": ".xml"}.get(file.suffix.lower())
    if other and (beside := file.with_suffix(other)).is_file():
        yield beside
    if file.suffix in _SHAPEFILES:
        yield from (path for path in file.parent.iterdir() if path.suffix in _SHAPEFILES)


def _xml_names(file: Path) -> Iterator[tuple[str, bool]]:
    """The words of an XML file that may name files, and whether the engine takes them for files.

    A source model names none, and may be huge: it is not read to its end. Nor is what is not XML; the engine says that.
    """
    branches = ""
    try:
        for event, element in ElementTree.iterparse(file, events=("start", "end")):  # noqa: S314  the user's own files
            tag = element.tag.rpartition("}")[2]
            if event == "start":
                if tag == "sourceModel":
                    return
                branches = element.get("uncertaintyType", branches)
                for value in element.attrib.values():
                    yield from ((name, False) for name in _words(value))
            else:
                text = element.text or ""
                if tag in _FILE_ELEMENTS or (tag == "uncertaintyModel" and branches in _SOURCE_BRANCHES):
                    yield from ((name, True) for name in text.split())  # as the engine does
                else:
                    yield from ((name, False) for name in _words(text))
                element.clear()
    except (ElementTree.ParseError, ValueError, LookupError):  # the others: an unknown encoding
        return
