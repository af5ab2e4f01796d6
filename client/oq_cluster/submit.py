"""Upload a job, and follow its calculation."""

from __future__ import annotations

import re
import secrets
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from oq_cluster.errors import ClientError, LostConnection, Missing, NotLoggedIn, Unreachable, UsageError
from oq_cluster.inputs import Job
from oq_cluster.terminal import Terminal, megabytes
from oq_cluster.webui import UNFINISHED, WebUI

ATTEMPTS: Final = 4  # of an upload that breaks off
# After an upload whose answer was lost: how long the server may take to show the calculation in its list.
_APPEARS_SECONDS: Final = 15.0
# And to read the largest model; a WebUI that ended meanwhile leaves such a calculation for ever.
_READ_SECONDS: Final = 3600.0
# How the server calls a calculation whose job file it has not read yet (submit_job in openquake.server.views).
_WAITING: Final = "Calculation waiting to start"
# What the WebUI writes into the log of a calculation, before the upload's token (engine/oq_webui of the program).
_UPLOADED: Final = "Uploaded as "
_POLL_SECONDS: Final = 1.0
_BLOCK: Final = 64 * 1024  # of an upload; each is to be sent in some minutes
# How the engine logs progress (Starmap.log_percent in openquake.baselib.parallel).
_PERCENT: Final = re.compile(r"^(\S+)\s+(\d+)% \[")


def pack(job: Job, file: IO[bytes]) -> None:
    """Write a job's archive. Models are text, which the fastest compression makes a fifth of."""
    with zipfile.ZipFile(
        file, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False
    ) as archive:
        for path in job.files:
            archive.write(path, job.name(path))


class Form:
    """An upload's body, which is read from the archive as it is sent.

    `requests` sends what has a length and `read` in blocks.
    """

    def __init__(
        self,
        archive: IO[bytes],
        fields: dict[str, str],
        sent: Callable[[int, int], None],
        ends: Callable[[], object] = lambda: None,
    ) -> None:
        """`sent` is told the bytes that are sent, and all of them; `ends` is called before the last ones are."""
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
        self._report, self._ends = sent, ends
        self._blocks = self._parts()
        self._read = 0

    def _parts(self) -> Iterator[bytes]:
        yield self._before
        while block := self._archive.read(_BLOCK):
            yield block
        self._ends()
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
    calculation is looked for among those that were not there when the last bytes were sent. It is the one whose log
    names the upload's token, which the repeats share: whichever of them has started a calculation, it is this job's.

    Args:
        hazard: the calculation to continue.

    Raises:
        UsageError: one of the job's files cannot be read.
        ClientError: the engine refuses the job, or it is not clear whether it has started.
    """
    with tempfile.TemporaryFile() as archive:
        try:
            pack(job, archive)
        except OSError as error:
            if error.filename is not None:  # the archive has no name
                raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from None
            raise ClientError(
                f"the job cannot be packed in {tempfile.gettempdir()}: {error}. TMPDIR may name a directory with more "
                "room"
            ) from error
        return _upload(webui, job, hazard, archive, terminal)


def _upload(webui: WebUI, job: Job, hazard: int | None, archive: IO[bytes], terminal: Terminal) -> int:
    token = secrets.token_hex(16)
    fields = {"job_ini": job.ini.name, "upload": token}
    if hazard is not None:
        fields["hazard_job_id"] = str(hazard)
    sent = _Sent(webui)
    unanswered = False  # a complete one
    try:
        attempt = 0
        while True:
            attempt += 1
            progress = _Progress(terminal)
            form = Form(archive, fields, progress, sent.nearly)
            try:
                number = webui.start(form, form.content_type)
            except LostConnection as error:
                webui.door.close()
                if form.complete:
                    unanswered = True
                    if (found := _started(webui, job, hazard, sent.newest, token)) is not None:
                        terminal.say("the connection was lost after the upload; the calculation has started")
                        return found
                if attempt == ATTEMPTS:
                    raise LostConnection(f"the upload broke off {ATTEMPTS} times: {error}") from error
                terminal.say("the connection was lost during the upload, nothing has started; trying again")
                if not form.complete:
                    webui.calculations()  # which waits until there is a way again
            else:
                progress.done(job)
                return number
    except KeyboardInterrupt:
        terminal.say(f"\n{sent.words()}")
        raise
    except LostConnection as error:
        raise LostConnection(f"{error}; {sent.words()}") from error
    except _UnclearError:  # says it itself
        raise
    except ClientError:  # nor is it clear when nobody can be asked any more
        if unanswered:
            terminal.say(sent.words())
        raise


class _UnclearError(ClientError):
    """Which calculation a job has become."""


class _Sent:
    """Whether some attempt at an upload was complete, so that its calculation may be there.

    Attributes:
        newest: the highest number of a calculation before that.
        complete: whether all was sent, or all but the last bytes.
    """

    def __init__(self, webui: WebUI) -> None:
        self._webui = webui
        self.newest = self._last(webui.calculations())
        self.complete = False

    @staticmethod
    def _last(calculations: list[dict[str, Any]]) -> int:
        return max((int(found["id"]) for found in calculations), default=0)

    def nearly(self) -> None:
        """The last bytes are about to be sent. What began while the others were is none of this job's."""
        if not self.complete:
            with suppress(ClientError):  # then what was there before counts
                self.newest = max(self.newest, self._last(self._webui.calculations(patiently=False)))
        self.complete = True

    def words(self) -> str:
        """What may have come of it."""
        if self.complete:
            return (
                "the upload was complete, and the calculation may start: look with oq-cluster list before you run it "
                "again"
            )
        return "nothing has started"


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


def _started(webui: WebUI, job: Job, hazard: int | None, newest: int, token: str) -> int | None:
    """The calculation that a complete upload without an answer has started; None if none has appeared in time.

    One that the engine has refused counts: who follows it sees why.

    Args:
        newest: the number of the last calculation before it.
        token: the upload's, by which it is known.

    Raises:
        ClientError: there are calculations that may be it, and whose log does not say of which upload they are.
    """
    begun = time.monotonic()
    while True:
        new = [
            (found, _token(webui, found["id"]))
            for found in webui.calculations()
            if found["id"] > newest and webui.user in ("", found["owner"].partition("@")[0])
        ]
        waiting = [
            found for found, uploaded in new if found["description"] == _WAITING and uploaded in ("", token)
        ]
        reading = [found for found in waiting if found["status"] in UNFINISHED]
        own = [found for found, uploaded in new if uploaded == token]
        if len(own) == 1 and own[0] not in reading:
            return int(own[0]["id"])
        seconds = time.monotonic() - begun
        if (seconds > _APPEARS_SECONDS and not reading) or seconds > _READ_SECONDS:
            break
        time.sleep(_POLL_SECONDS)
    like = [
        found
        for found, uploaded in new
        if not uploaded
        and found not in waiting
        and found["description"] == (job.description or found["description"])
        and found["parent_id"] == hazard
    ]
    if may_be := own or [*like, *waiting]:
        raise _UnclearError(
            "the connection was lost after the upload, and the job may be calculation "
            f"{', '.join(str(found['id']) for found in may_be)}: "
            "look with oq-cluster status before you run it again"
        )
    return None


def _token(webui: WebUI, number: int) -> str:
    """The token of the upload that has started a calculation; empty if its log has none (yet)."""
    try:
        messages = [str(row[3]) for row in webui.log(number)]
    except Missing:  # it was removed meanwhile
        return ""
    return next((text.removeprefix(_UPLOADED) for text in messages if text.startswith(_UPLOADED)), "")


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


def downloads(
    outputs: list[dict[str, Any]], kinds: list[str]
) -> tuple[list[tuple[dict[str, Any], str]], list[str]]:
    """Which outputs to download in which type of file: all of the wanted types, or csv where there is one.

    Returns:
        Those, and a line if some types are none of any output.
    """
    offered = {kind for output in outputs for kind in output["outtypes"]}
    problems = []
    if unknown := sorted(set(kinds) - offered):
        problems = [
            f"no output is available as {', '.join(unknown)}; available: {', '.join(sorted(offered))}"
        ]
    if kinds:
        wanted = [(output, kind) for output in outputs for kind in kinds if kind in output["outtypes"]]
    else:
        wanted = [
            (output, "csv" if "csv" in output["outtypes"] else output["outtypes"][0]) for output in outputs
        ]
    return wanted, problems


def writable(directory: Path) -> None:
    """See whether downloads can be written into a directory, which is made.

    Raises:
        UsageError: they cannot.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise UsageError(f"{directory}: nothing can be written there: {error}") from error


def download(
    webui: WebUI, number: int, directory: Path, kinds: list[str], terminal: Terminal
) -> tuple[list[Path], list[str]]:
    """Download a calculation's outputs into a directory. What cannot be had keeps none of the others back.

    Returns:
        The files, and a line for each thing that could not be had.

    Raises:
        ClientError: it has no outputs (yet), or there is no way to the cluster or into the directory.
    """
    outputs = webui.outputs(number)
    if not outputs:
        status = webui.calculation(number)["status"]
        raise ClientError(f"calculation {number} is {status} and has no outputs: oq-cluster log {number}")
    writable(directory)
    wanted, problems = downloads(outputs, kinds)
    written = []
    for output, kind in wanted:
        terminal.status(f"downloading {output['name']} as {kind} …")
        try:
            with _part(directory) as partial:
                name = webui.download(f"/v1/calc/result/{output['id']}?export_type={kind}", partial)
                written += unpack(partial, name, output, kind, directory)
        except Missing:  # it is listed, and the engine's exporter gives no file: nothing is wrong
            terminal.say(f"{output['name']} has nothing to export as {kind}")
        except (LostConnection, NotLoggedIn, Unreachable):
            raise
        except ClientError as error:
            problems.append(f"{output['name']} as {kind}: {error}")
        except OSError as error:
            problems.append(
                f"{directory}: {error}; the rest was not tried: oq-cluster get {number} --out DIR"
            )
            break
    terminal.status("")
    return written, problems


def download_datastore(webui: WebUI, number: int, directory: Path, terminal: Terminal) -> Path:
    """Download the engine's own file of a calculation into a directory; the file."""
    target = directory / f"calc_{number}.hdf5"
    terminal.status("downloading the datastore …")
    try:
        with _part(directory) as partial:
            webui.download(f"/v1/calc/{number}/datastore", partial)
            partial.replace(target)
    except OSError as error:
        raise ClientError(f"{directory}: {error}") from error
    terminal.status("")
    return target


@contextmanager
def _part(directory: Path) -> Iterator[Path]:
    """A file beside the wanted ones, for what may break off; what is not moved away goes."""
    partial = directory / f".{secrets.token_hex(8)}.part"  # tempfile's would be readable to the user alone
    partial.touch(exist_ok=False)
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def unpack(file: Path, name: str, output: Mapping[str, Any], kind: str, directory: Path) -> list[Path]:
    """Put a downloaded output into a directory under the engine's names, each file when it is complete.

    The server sends an archive where an output is several files.

    Args:
        file: the download.
        name: that the server gives it.
        output: as the server lists it.
        kind: the type of file that was asked for, such as csv.

    Returns:
        the files.
    """
    own = name.removeprefix(f"output-{output['id']}-")
    if own != f"{output['type']}-{kind}.zip":
        return [file.replace(directory / own)]
    written = []
    with (
        zipfile.ZipFile(file) as archive,
        tempfile.TemporaryDirectory(dir=directory, prefix=".", suffix=".part") as parts,
    ):
        for member in archive.infolist():
            part = Path(archive.extract(member, parts))
            if not member.is_dir():
                target = directory / part.relative_to(parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                written.append(part.replace(target))
    return written
