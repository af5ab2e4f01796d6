"""Upload a job, and follow its calculation."""

from __future__ import annotations

import re
import secrets
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from oq_cluster.errors import ClientError, LostConnection
from oq_cluster.inputs import Job
from oq_cluster.terminal import Terminal, megabytes
from oq_cluster.webui import UNFINISHED, WebUI, unpack

ATTEMPTS: Final = 4  # of an upload that breaks off
# After an upload whose answer was lost: how long the server may take to show the calculation in its list.
_APPEARS_SECONDS: Final = 15.0
# How the server calls a calculation whose job file it has not read yet (submit_job in openquake.server.views).
_WAITING: Final = "Calculation waiting to start"
_POLL_SECONDS: Final = 1.0
# How the engine logs progress (Starmap.log_percent in openquake.baselib.parallel).
_PERCENT: Final = re.compile(r"^(\S+)\s+(\d+)% \[")


def pack(job: Job, file: IO[bytes]) -> None:
    """Write a job's archive. Models are text, which the fastest compression makes a fifth of."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in job.files:
            archive.write(path, job.name(path))


class Form:
    """An upload's body, which is read from the archive as it is sent.

    `requests` sends what has a length and `read` in blocks.
    """

    def __init__(self, archive: IO[bytes], fields: dict[str, str], sent: Callable[[int, int], None]) -> None:
        """`sent` is told the bytes that are sent, and all of them."""
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        head = "".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        )
        head += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="archive"; filename="job.zip"\r\n'
            "Content-Type: application/zip\r\n\r\n"
        )
        self._before, self._archive = head.encode(), archive
        self._after = f"\r\n--{boundary}--\r\n".encode()
        self._total = len(self._before) + archive.seek(0, 2) + len(self._after)
        archive.seek(0)
        self._report = sent
        self._blocks = self._parts()
        self._read = 0

    def _parts(self) -> Iterator[bytes]:
        yield self._before
        while block := self._archive.read(256 * 1024):
            yield block
        yield self._after

    def __len__(self) -> int:
        """All bytes."""
        return self._total

    @property
    def complete(self) -> bool:
        """Whether all of it was handed over."""
        return self._read == self._total

    def read(self, size: int = -1) -> bytes:
        """The next block, of any size; `size` is only how HTTP clients call it."""
        del size
        block = next(self._blocks, b"")
        self._read += len(block)
        self._report(self._read, self._total)
        return block


def upload(webui: WebUI, job: Job, hazard: int | None, terminal: Terminal) -> int:
    """Start a job on the cluster; the calculation's number.

    An upload that breaks off has started nothing, and is repeated. One whose answer is lost may have: then the
    calculation is found in the list.

    Args:
        hazard: the calculation to continue.

    Raises:
        ClientError: the engine refuses the job, or it is not clear whether it has started.
    """
    fields = {"job_ini": job.ini.name}
    if hazard is not None:
        fields["hazard_job_id"] = str(hazard)
    before = {calculation["id"] for calculation in webui.calculations()}
    with tempfile.TemporaryFile() as archive:
        pack(job, archive)
        for attempt in range(1, ATTEMPTS + 1):
            progress = _Progress(terminal)
            form = Form(archive, fields, progress)
            try:
                number = webui.start(form, form.content_type)
            except LostConnection as error:
                webui.door.close()
                found = _started(webui, job, before, _APPEARS_SECONDS if form.complete else 0.0)
                if found is not None:
                    terminal.say("the connection was lost after the upload; the calculation has started")
                    return found
                if attempt == ATTEMPTS:
                    raise LostConnection(
                        f"the upload broke off {ATTEMPTS} times, nothing has started: {error}"
                    ) from error
                terminal.say("the connection was lost during the upload, nothing has started; trying again")
            else:
                progress.done(job)
                return number
    raise AssertionError("unreachable")


class _Progress:
    """Shows how far an upload is."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.begin = time.monotonic()
        self.total = 0

    def _speed(self, sent: int) -> str:
        return f"{megabytes(sent / max(time.monotonic() - self.begin, 0.001))}/s"

    def __call__(self, sent: int, total: int) -> None:
        self.total = total
        share = 100 * sent // total
        if sent == total:
            self.terminal.status("uploaded, the engine reads the job …")
        else:
            self.terminal.status(f"uploading {share:3d} % of {megabytes(total)}, {self._speed(sent)}")

    def done(self, job: Job) -> None:
        seconds = time.monotonic() - self.begin
        self.terminal.say(
            f"uploaded {len(job.files)} files, {megabytes(job.size())}, packed {megabytes(self.total)}: "
            f"{seconds:.1f} s, {self._speed(self.total)}"
        )


def _started(webui: WebUI, job: Job, before: set[int], seconds: float) -> int | None:
    """The calculation that an upload without an answer has started.

    Raises:
        ClientError: there are several that it could be.
    """
    deadline = time.monotonic() + seconds
    while True:
        new = [
            calculation
            for calculation in webui.calculations()
            if calculation["id"] not in before and webui.user in ("", calculation["owner"].partition("@")[0])
        ]
        mine = [found for found in new if found["description"] == (job.description or found["description"])]
        reading = [found for found in new if found["description"] == _WAITING]
        if len(mine) > 1:
            numbers = ", ".join(str(found["id"]) for found in mine)
            raise ClientError(
                f"the connection was lost after the upload, and the job may be calculation {numbers}: "
                "look with oq-cluster status before you run it again"
            )
        if mine:
            return int(mine[0]["id"])
        if time.monotonic() > deadline and not reading:
            return None
        time.sleep(_POLL_SECONDS)


@dataclass(frozen=True)
class Line:
    """A line of a calculation's log."""

    time: str
    level: str
    process: str
    message: str

    @property
    def percent(self) -> str:
        """The progress that it tells, such as "classical 45 %"; empty for other lines."""
        found = _PERCENT.match(self.message)
        return f"{found[1]} {found[2]} %" if found else ""

    def __str__(self) -> str:
        """As the engine writes it."""
        return f"[{self.time[:19].replace('T', ' ')} {self.level}] {self.message}"


def follow(webui: WebUI, number: int, show: Callable[[Line], None], terminal: Terminal) -> dict[str, Any]:
    """Show a log from its beginning until its calculation ends; the calculation then.

    A lost connection is opened again, and the log goes on where it was.
    """
    seen = 0
    began = time.monotonic()
    percent = ""
    while True:
        calculation = webui.calculation(number)  # before the log, which is complete then
        ended = calculation["status"] not in UNFINISHED
        if ended:
            time.sleep(_POLL_SECONDS / 2)  # the last lines are written just after the status
        for row in webui.log(number, seen):
            seen += 1
            line = Line(*map(str, row))
            show(line)
            percent = line.percent or percent
        if ended:
            terminal.status("")
            return calculation
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        terminal.status(f"calculation {number} {calculation['status']}  {percent}  {minutes}:{seconds:02d}")
        time.sleep(_POLL_SECONDS)


def reasons(lines: list[Line]) -> list[str]:
    """Why a calculation failed: the last lines of its log that say so, or simply the last ones."""
    grave = [str(line) for line in lines if line.level in ("ERROR", "CRITICAL")]
    last = grave[-1:] or [str(line) for line in lines[-5:]]
    return [text for line in last for text in line.splitlines()[-15:]]


def downloads(outputs: list[dict[str, Any]], kinds: list[str]) -> list[tuple[dict[str, Any], str]]:
    """Which outputs to download in which type of file: all of the wanted types, or csv where there is one.

    Raises:
        ClientError: a wanted type is none of any output.
    """
    offered = {kind for output in outputs for kind in output["outtypes"]}
    if unknown := sorted(set(kinds) - offered):
        raise ClientError(
            f"no output can be had as {', '.join(unknown)}; there is {', '.join(sorted(offered))}"
        )
    if kinds:
        return [(output, kind) for output in outputs for kind in kinds if kind in output["outtypes"]]
    return [(output, "csv" if "csv" in output["outtypes"] else output["outtypes"][0]) for output in outputs]


def download(webui: WebUI, number: int, directory: Path, kinds: list[str], terminal: Terminal) -> list[Path]:
    """Download a calculation's outputs into a directory; the files.

    Raises:
        ClientError: it has none (yet), or not of such a type.
    """
    outputs = webui.outputs(number)
    if not outputs:
        status = webui.calculation(number)["status"]
        raise ClientError(f"calculation {number} is {status} and has no outputs: oq-cluster log {number}")
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for output, kind in downloads(outputs, kinds):
        terminal.status(f"downloading {output['name']} as {kind} …")
        with _part(directory) as partial:
            name = webui.download(f"/v1/calc/result/{output['id']}?export_type={kind}", partial)
            written += unpack(partial, name, output, kind, directory)
    terminal.status("")
    return written


def download_datastore(webui: WebUI, number: int, directory: Path, terminal: Terminal) -> Path:
    """Download the engine's own file of a calculation into a directory; the file."""
    target = directory / f"calc_{number}.hdf5"
    terminal.status("downloading the datastore …")
    with _part(directory) as partial:
        webui.download(f"/v1/calc/{number}/datastore", partial)
        partial.replace(target)
    terminal.status("")
    return target


@contextmanager
def _part(directory: Path) -> Iterator[Path]:
    """A file beside the wanted ones, for what may break off; what is not moved away goes."""
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".", suffix=".part", delete=False) as part:
        partial = Path(part.name)
    try:
        partial.chmod(0o644)
        yield partial
    finally:
        partial.unlink(missing_ok=True)
