"""What each command does. Each gets a `Context` and its arguments, and returns what is to be shown."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import shlex
import sys
import time
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from oq_cluster import certificate, config, diag, inputs, reach, stack, submit
from oq_cluster.certificate import Certificate
from oq_cluster.errors import ClientError, Missing, Offline, Unreachable, UsageError
from oq_cluster.session_manager import Answer
from oq_cluster.stack import Outputs, Source
from oq_cluster.submit import Line
from oq_cluster.terminal import Terminal, megabytes, plain
from oq_cluster.webui import GOOD, UNFINISHED, WebUI

INTERRUPTED: Final = 130
_POLL_SECONDS: Final = 2.0  # between two looks at a master that stops or starts
# AWS stops a machine within a minute or two, and by force after some more. A boot takes as long.
_STOP_SECONDS: Final = 600.0
_WAKE_SECONDS: Final = 900.0
_RECENT: Final = timedelta(hours=1)  # what else has failed says nothing of now (engine/oq_fleet/watch.py)
_LEAVES: Final = (
    "Terminating",
    "Terminated",
    "Detaching",
    "Detached",
)  # the beginnings of such states, as there
IDLE_MINUTES: Final = 5
"""After how long without tasks the workers leave, as components/scaling.py has it; a test compares."""


@dataclass(frozen=True)
class Shown:
    """A command's result: for programs, for people, and its exit status."""

    data: Any
    text: str
    status: int = 0


@dataclass
class Context:
    """The cluster that is meant, opened as far as a command needs it."""

    source: Source
    json: bool
    terminal: Terminal = field(default_factory=Terminal)
    port: int = 0

    @cached_property
    def outputs(self) -> Outputs:
        """The stack's outputs."""
        return stack.read(self.source)

    @cached_property
    def webui(self) -> WebUI:
        """The WebUI, which is opened with the first request."""
        door = reach.door(self.source, self.outputs, self.port)
        return WebUI(door, self.outputs.identity, self.terminal.say, self.asleep, self.certificate)

    @cached_property
    def certificate(self) -> Certificate:
        """What is known of the WebUI's certificate."""
        return Certificate(self.outputs.identity, self.shown_certificate)

    def shown_certificate(self) -> str:
        """The WebUI's certificate, by the master's word."""
        answer = self.master.run(f"cat {certificate.ON_THE_MASTER}")
        if answer.status:
            raise Unreachable(
                "the master has no certificate for its WebUI yet: sudo oq-node status there (oq-cluster shell) says why"
            )
        return answer.output

    @cached_property
    def master(self) -> reach.Master:
        """The master."""
        return reach.master(self.source, self.outputs)

    def asleep(self) -> ClientError | None:
        """That the master sleeps, if it does and AWS tells this user."""
        return reach.asleep(self.master)

    def close(self) -> None:
        """Take away what was opened."""
        try:
            self.terminal.status("")
        finally:  # also when that terminal is gone
            if "webui" in self.__dict__:
                self.webui.door.close()

    def printed(self, data: dict[str, Any], text: str) -> None:
        """Print a line of something that goes on, at once."""
        print(json_text(data, indent=None) if self.json else plain(text), flush=True)


def json_text(value: Any, indent: int | None = 2) -> str:
    """JSON for standard output."""
    return json.dumps(value, indent=indent, default=str)


# --- the cluster and the login ---


def use(context: Context, given: argparse.Namespace) -> Shown:
    """Remember the cluster that the options name, and its WebUI's certificate."""
    master = context.outputs["masterInstanceId"]  # so that a wrong name is not remembered
    if given.certificate:
        try:
            text = config.given(given.certificate)
        except (OSError, ValueError) as error:
            raise UsageError(f"{given.certificate} cannot be read: {error}") from None
        context.certificate.keep(text, str(given.certificate))
    stack.remember(context.source)
    data = {key: value for key, value in asdict(context.source).items() if value}
    return Shown(data, f"from now on: {context.source}, master {master}")


def login(context: Context, given: argparse.Namespace) -> Shown:
    """Log in, and keep the session."""
    (password,) = _passwords(given, f"password of {given.name}: ")
    context.webui.login(given.name, password)
    return Shown({"user": given.name}, f"logged in as {given.name}")


def password(context: Context, given: argparse.Namespace) -> Shown:
    """Change the password of who has logged in."""
    present, new = _passwords(given, "your present password: ", "a new one: ")
    if not given.password_stdin and _typed("the new one again: ") != new:
        raise UsageError("the two new passwords differ: try again")
    context.webui.change_password(present, new)
    user = context.webui.user
    return Shown({"user": user}, f"{user}: the password is changed; other computers have to log in again")


def _passwords(given: argparse.Namespace, *prompts: str) -> list[str]:
    """A password for each prompt, from the terminal, or a line for each from standard input."""
    if given.password_stdin:
        lines = [line for _ in prompts if (line := sys.stdin.readline())]
        if len(lines) < len(prompts):
            raise UsageError(
                f"standard input has {len(lines)} of {len(prompts)} lines: --password-stdin reads a password from each"
            )
        return [line.rstrip("\n") for line in lines]
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask for the password: use --password-stdin")
    return [_typed(prompt) for prompt in prompts]


def _typed(prompt: str) -> str:
    try:
        return getpass.getpass(prompt)
    except EOFError:  # Ctrl-D
        raise UsageError("no password was typed: try again, or use --password-stdin") from None


def logout(context: Context, given: argparse.Namespace) -> Shown:
    """End the session."""
    del given
    context.webui.logout()
    return Shown({}, "logged out")


# --- calculations ---


def run(context: Context, given: argparse.Namespace) -> Shown:
    """Compute one job, or several of which each continues the first."""
    if given.no_wait and len(given.job_ini) > 1:
        raise UsageError("--no-wait takes one job: the next one needs the first one's results")
    if given.no_wait and given.out is not None:
        raise UsageError(
            f"--no-wait downloads nothing: leave --out out, and when the calculation is complete: oq-cluster get ID "
            f"--out {shlex.quote(str(given.out))}"
        )
    jobs = [inputs.gather(path) for path in given.job_ini]
    hazard = _hazard(jobs, given.hazard)
    if given.dry_run:
        return _files(jobs)
    if given.out is not None:
        submit.writable(given.out)  # not to be found out after hours
    ended: list[Shown] = []
    try:
        for job in jobs:
            if ended:
                context.terminal.say(ended[-1].text)
            number = submit.upload(context.webui, job, hazard, context.terminal)
            context.terminal.say(f"calculation {number}: {job.ini}")
            if hazard is None:
                hazard = number
            if given.no_wait:
                return Shown({"id": number}, str(number))
            ended.append(_followed(context, number, given.out, given.type))
            if ended[-1].data["status"] not in GOOD:
                break
    except (ClientError, KeyboardInterrupt):
        if context.json and ended:  # programs hear of those that have come to an end
            print(json_text([shown.data for shown in ended]), flush=True)
        raise
    if len(jobs) == 1:
        return ended[0]
    return Shown([shown.data for shown in ended], ended[-1].text, max(shown.status for shown in ended))


def _hazard(jobs: list[inputs.Job], given: int | None) -> int | None:
    """The calculation that the first job continues: of the command line, or the job file's own.

    Raises:
        UsageError: a job file names another one, which the server would not heed.
    """
    problems = []
    if given is None and jobs[0].hazard.isdecimal():
        given = int(jobs[0].hazard)
        if any(job.hazard != str(given) for job in jobs):
            problems.append(
                f"{jobs[0].ini}: hazard_calculation_id = {given}: are the other jobs to continue that calculation, "
                f"too? Then write --hazard {given}; otherwise run them one by one"
            )
    for job in jobs:
        heeded = set() if given is None else {str(given)}
        if job is not jobs[0]:
            heeded.add(os.path.normpath(os.path.relpath(jobs[0].ini, job.ini.parent)))
        if job.hazard and os.path.normpath(job.hazard) not in heeded:
            problems.append(
                f"{job.ini}: hazard_calculation_id = {job.hazard}: the server ignores it. Remove it, and give "
                "--hazard ID for a calculation that is there, or the first job's file before this one for a new one"
            )
    if problems:
        raise UsageError("\n".join(problems))
    return given


def _files(jobs: list[inputs.Job]) -> Shown:
    data = [
        {"job_ini": job.name(job.ini), "root": str(job.root), "files": [job.name(file) for file in job.files]}
        for job in jobs
    ]
    text = "\n".join(
        f"{megabytes(job.size())} below {job.root}:\n"
        + "\n".join(f"  {job.name(file)}" for file in job.files)
        for job in jobs
    )
    return Shown(data, text)


def _followed(context: Context, number: int, out: Path | None, kinds: list[str]) -> Shown:
    """Follow a calculation on standard error, then download its outputs."""
    lines: list[Line] = []

    def show(line: Line) -> None:
        lines.append(line)
        if not (context.terminal.live and line.percent):  # the status line shows it
            context.terminal.say(str(line))

    with _left_alone(context, number, ClientError):
        calculation = submit.follow(context.webui, number, show, context.terminal)
    status = str(calculation["status"])
    data: dict[str, Any] = {"id": number, "status": status}
    if status not in GOOD:
        why = submit.reasons(lines)
        text = f"calculation {number} is {status}:\n" + "\n".join(f"  {line}" for line in why)
        return Shown(data | {"reasons": why}, text, 1)
    text = f"calculation {number} is {status}"
    again = f"oq-cluster get {number} --out {out or 'DIR'}"
    if out is None:
        return Shown(data, f"{text}; its outputs: {again}")
    try:
        files, problems = submit.download(context.webui, number, out, kinds, context.terminal)
    except BaseException:
        context.terminal.say(f"\n{text}; its outputs: {again}")
        raise
    data |= {"files": list(map(str, files))} | ({"problems": problems} if problems else {})
    return Shown(data, "\n".join([*problems, f"{text}; {len(files)} files in {out}"]), 1 if problems else 0)


@contextmanager
def _left_alone(context: Context, number: int, *others: type[ClientError]) -> Iterator[None]:
    """Ctrl-C, and other things that end the command, leave the calculation alone."""
    ends: tuple[type[BaseException], ...] = (KeyboardInterrupt, *others)
    try:
        yield
    except Missing:  # somebody has removed it
        raise
    except ends:
        context.terminal.say(
            f"\nThe calculation goes on. To see it: oq-cluster log {number} --follow; to end it: "
            f"oq-cluster abort {number}"
        )
        raise


def list_(context: Context, given: argparse.Namespace) -> Shown:
    """The calculations that the user sees."""
    found = context.webui.calculations(given.limit)
    names = ("id", "owner", "status", "start_time", "calculation_mode", "description")
    rows = [[str(calculation[name]) for name in names] for calculation in found]
    return Shown(found, table(("id", "owner", "status", "started", "mode", "description"), rows))


def status(context: Context, given: argparse.Namespace) -> Shown:
    """One calculation."""
    found = context.webui.calculation(given.id)
    text = "\n".join(
        f"{name.replace('_', ' '):16} {found[name]}"
        for name in ("id", "status", "owner", "description", "calculation_mode", "start_time", "parent_id")
        if found.get(name) is not None
    )
    return Shown(found, text)


def log(context: Context, given: argparse.Namespace) -> Shown | None:
    """A calculation's log; with --follow until it ends."""
    if not given.follow:
        lines = [Line(*map(str, row)) for row in context.webui.log(given.id)]
        if not lines:
            context.webui.calculation(given.id)  # says so if there is none
        return Shown([asdict(line) for line in lines], "\n".join(map(str, lines)))
    with _left_alone(context, given.id):
        found = submit.follow(
            context.webui, given.id, lambda line: context.printed(asdict(line), str(line)), context.terminal
        )
    end = {"id": given.id, "status": found["status"]}
    context.printed(end, f"calculation {given.id} is {found['status']}")
    return Shown(None, "", 0 if found["status"] in GOOD else 1)


def get(context: Context, given: argparse.Namespace) -> Shown:
    """Download outputs, or list them."""
    if given.list:
        found = context.webui.outputs(given.id)
        rows = [[str(output["id"]), output["name"], ", ".join(output["outtypes"])] for output in found]
        return Shown(found, table(("id", "output", "types"), rows))
    files, problems = submit.download(context.webui, given.id, given.out, given.type, context.terminal)
    if given.datastore:
        files.append(submit.download_datastore(context.webui, given.id, given.out, context.terminal))
    data = {"id": given.id, "files": list(map(str, files))} | ({"problems": problems} if problems else {})
    for problem in problems:
        context.terminal.say(f"oq-cluster: {problem}")
    return Shown(data, "\n".join(map(str, files)), 1 if problems else 0)


def act(context: Context, given: argparse.Namespace) -> Shown:
    """abort, share, unshare or remove."""
    said = context.webui.act(given.id, given.command)
    if given.command == "abort":
        said = _aborted(context, given.id)
    elif given.command == "remove":  # of which the engine says the number alone
        said = f"calculation {given.id} is removed, with its results"
    return Shown({"id": given.id, "done": given.command}, said)


def _aborted(context: Context, number: int) -> str:
    """Wait a moment for the end of an aborted calculation; what became of it."""
    deadline = time.monotonic() + 30
    while (found := context.webui.calculation(number)["status"]) in UNFINISHED:
        if time.monotonic() > deadline:
            raise ClientError(f"calculation {number} is {found} 30 s after it was told to end; try again")
        time.sleep(1)
    return f"calculation {number} is {found}"


# --- the cluster itself ---


def shell(context: Context, given: argparse.Namespace) -> Shown:
    """A shell on the master."""
    del given
    return Shown(None, "", context.master.shell())


def webui(context: Context, given: argparse.Namespace) -> Shown:
    """Hold the port forward open for a browser."""
    url = context.webui.door.url()
    try:
        context.printed({"url": url}, f"{url}  (Ctrl-C ends it)")
        if not given.no_browser:
            webbrowser.open(url)
        while True:
            time.sleep(20)
            context.webui.keep_alive()  # without traffic Session Manager ends a session after 20 minutes
            if (now := context.webui.door.url()) != url:  # another program has taken the port meanwhile
                url = now
                context.printed({"url": url}, f"from now on: {url}")
    except KeyboardInterrupt:
        return Shown(None, "")


def show_certificate(context: Context, given: argparse.Namespace) -> Shown:
    """The WebUI's certificate, for programs that have to be told what to trust."""
    del given
    if not context.outputs.webui[0].startswith("https:"):
        raise ClientError(
            "this cluster's WebUI speaks plain HTTP: pulumi config set webuiCertificate self && pulumi up, which "
            "replaces the master (running calculations are lost)"
        )
    context.certificate.renew()
    text = context.certificate.file().read_text()
    return Shown({"certificate": text}, text)


def users(context: Context, given: argparse.Namespace) -> Shown:
    """Manage accounts of the WebUI, as root of the master."""
    _ = context.outputs.webui  # says so if there is none
    if given.action == "list":
        printed = _done(context, ["oq-webui", "list"])
        accounts = [line.split(maxsplit=1) for line in printed.splitlines()]
        return Shown([{"user": words[0], "admin": len(words) > 1} for words in accounts], printed.rstrip())
    words = ["oq-webui", given.action, given.name]
    if given.action == "remove":
        _done(context, words)
        return Shown({"user": given.name}, f"{given.name} is removed; the calculations stay")
    if given.action == "add" and given.admin:
        words.append("--admin")
    printed = context.master.reveal(words)
    found = [
        line.partition(": ")[2].strip() for line in printed.splitlines() if line.startswith(f"{given.name}: ")
    ]
    if not found:
        raise ClientError(f"oq-webui {given.action}: {printed}")
    return Shown({"user": given.name, "password": found[0]}, f"{given.name}: {found[0]}")


def _done(context: Context, words: Sequence[str], instead: str = "") -> str:
    """All that a command on the master prints.

    Args:
        words: of the command.
        instead: what to do when that is too much, apart from asking on the master.
    """
    answer = _answer(context, words)
    if answer.cut:
        raise ClientError(
            f"the output is too long for Run Command, which returns only its beginning: {instead}oq-cluster shell, "
            f"then sudo {shlex.join(words)}"
        )
    return answer.output


def _answer(context: Context, words: Sequence[str]) -> Answer:
    """What a command on the master prints, as much as AWS hands over.

    Raises:
        ClientError: it has failed; with its words.
    """
    answer = context.master.run_packed(shlex.join(words), 120)
    if answer.status:
        raise ClientError(
            answer.errors.strip() or answer.output.strip() or f"{words[0]}: exit status {answer.status}"
        )
    return answer


def workers(context: Context, given: argparse.Namespace) -> Shown:
    """The fleet: what it is, what it does, and why no worker starts."""
    del given
    fleet = context.master.fleet()
    try:
        now: dict[str, Any] | None = json.loads(_done(context, ["oq-celery", "status", "--json"]))
        problem = ""
    except Unreachable as error:
        now, problem = None, str(error if isinstance(error, Offline) else context.asleep() or error)
    except (ClientError, ValueError) as error:
        now, problem = None, str(error)
    text = fleet_text(fleet, now, problem)
    return Shown({"fleet": fleet, "queue": now, "problem": problem}, text, 1 if now is None else 0)


def fleet_text(fleet: dict[str, Any], now: dict[str, Any] | None, problem: str) -> str:
    """The fleet in words."""
    instances = fleet["instances"]
    present = sum(not instance["state"].startswith(_LEAVES) for instance in instances)
    text = (
        f"workers: {present} of {fleet['desired']} wanted ({fleet['minimum']} to {fleet['maximum']} allowed)"
    )
    lines = [text, *(f"  {instance['id']}  {instance['state']}" for instance in instances)]
    if now is None:
        lines.append(f"the master does not say what they are doing: {problem}")
    else:
        busy = sum(worker["busy"] for worker in now["workers"])
        processes = sum(worker["processes"] for worker in now["workers"])
        lines.append(
            f"tasks: {now['waiting']} waiting; {len(now['workers'])} workers respond, "
            f"{busy} of {processes} processes busy"
        )
        if now.get("alarm"):
            lines.append(f"RabbitMQ takes no messages: {now['alarm']}")
    since = datetime.now(UTC) - _RECENT
    failed = [
        activity
        for activity in fleet["activities"]
        if activity["status"] in ("Failed", "Cancelled") and datetime.fromisoformat(activity["time"]) > since
    ]
    if present < fleet["desired"]:
        lines += [f"no worker started at {activity['time']}: {activity['text']}" for activity in failed[:1]]
        if not failed:
            lines.append("workers are starting; one is ready about a minute after that")
    elif now is not None and now["waiting"] and present >= fleet["maximum"]:
        lines.append("the fleet is at workerMax; to allow more: pulumi config set workerMax N && pulumi up")
    return "\n".join(lines)


def logs(context: Context, given: argparse.Namespace) -> Shown:
    """The workers that have left a journal, or the end of one's, dead or alive."""
    words = ["oq-node", "logs"]
    if given.worker is None:
        answer = _answer(context, [*words, "--json"] if context.json else words)
        text = answer.output.rstrip()
        if answer.cut:  # the last heard come first, and the last one of these has no end
            text = text[: text.rindex("}") + 1] + "]" if context.json else text.rpartition("\n")[0]
            context.terminal.say(
                "oq-cluster: the list is too long for Run Command, which returns only its beginning; for older ones: "
                f"oq-cluster shell, then sudo {shlex.join(words)}"
            )
        return Shown(json.loads(text), "") if context.json else Shown(None, text)
    words += [given.worker, "--lines", str(given.lines)]
    printed = _done(context, words, "ask for fewer lines (--lines N), or: ")
    return Shown({"worker": given.worker, "lines": printed.splitlines()}, printed.rstrip())


def cost(context: Context, given: argparse.Namespace) -> Shown:
    """What the tasks of a calculation, or of the last ones, have cost."""
    words = ["oq-celery", "cost", *([] if given.id is None else [str(given.id)])]
    if context.json:
        return Shown(json.loads(_done(context, [*words, "--json"])), "")
    return Shown(None, _done(context, words).rstrip())


def rotate(context: Context, given: argparse.Namespace) -> Shown:
    """Give the cluster's secrets new values; the master says no value, only what becomes of the old ones."""
    del given
    said = _done(context, ["oq-node", "rotate"]).strip()
    return Shown({"said": said}, said)


def sleep(context: Context, given: argparse.Namespace) -> Shown:
    """Stop the master, if nothing computes."""
    del given
    master = context.master
    state = master.state()
    if state not in reach.OFF:
        try:
            answer = master.run("oq-node sleep", 120)
        except Unreachable:
            if master.state() not in reach.OFF:
                raise
            answer = Answer(0, "")  # it went before its answer came
        if answer.status:
            said = f"{answer.errors}\n{answer.output}".strip().partition("\n")[0]
            raise ClientError(
                f"the master stays awake: {said}. Wait for the end, or end a calculation with oq-cluster abort ID; "
                f"workers without tasks leave after {IDLE_MINUTES} minutes, unless workerMin keeps them"
            )
        state = reach.STOPPING
    if state != reach.STOPPED:
        _until(context, "the master stops", lambda: master.state() == reach.STOPPED, _STOP_SECONDS)
    return Shown({"state": reach.STOPPED}, "the master sleeps: oq-cluster wake starts it")


def wake(context: Context, given: argparse.Namespace) -> Shown:
    """Start the master, and wait until it answers."""
    del given
    master = context.master
    if (state := master.state()) == reach.STOPPING:
        _until(context, "the master still stops", lambda: master.state() != reach.STOPPING, _STOP_SECONDS)
        state = master.state()
    if state in reach.GONE:
        raise ClientError(
            "this master has been terminated: pulumi up creates another one; if there is one and you use --outputs, "
            "export them again"
        )
    if state == reach.STOPPED:
        context.terminal.say("starting the master")
        master.start()
    seen: set[str] = set()
    seconds = _until(context, "the master boots", lambda: _boots(context, seen), _WAKE_SECONDS)
    data = {"state": reach.RUNNING, "seconds": round(seconds, 1)}
    return Shown(data, f"the master is awake and answers, after {seconds:.0f} s")


def _boots(context: Context, seen: set[str]) -> bool:
    """Whether a master that was started answers; `seen` are its states until now.

    Raises:
        ClientError: it has stopped again.
    """
    if _answers(context):
        return True
    state = context.master.state()
    if state == reach.STOPPED and seen - {reach.STOPPED}:  # at first AWS may still show the state of before
        raise ClientError(
            f"the master has stopped again: {context.master.reason() or 'AWS does not say why'}. "
            "Where its disks have a KMS key of your own (kmsKeyId), you need kms:CreateGrant and kms:Decrypt on it"
        )
    seen.add(state)
    return False


def _answers(context: Context) -> bool:
    """Whether the WebUI answers; where there is none, whether the master says that all its services do."""
    if context.outputs.values.get("webUiUrl"):
        return context.webui.answers()
    try:
        return context.master.run("oq-node status").status == 0
    except Unreachable:
        return False


def _until(context: Context, what: str, is_so: Callable[[], bool], limit: float) -> float:
    """Wait for something, which the status line shows; the seconds that it took.

    Raises:
        ClientError: it took too long.
    """
    begin = time.monotonic()
    while not is_so():
        seconds = time.monotonic() - begin
        if seconds > limit:
            raise ClientError(
                f"{what}, for {seconds:.0f} s now: look at it with oq-cluster shell, then sudo oq-node status, or in "
                "AWS's console"
            )
        context.terminal.status(f"{what} … {seconds:.0f} s")
        time.sleep(_POLL_SECONDS)
    return time.monotonic() - begin


def collect(context: Context, given: argparse.Namespace) -> Shown:
    """Write the archive for a bug report."""
    found = diag.collect(context.outputs, lambda: context.webui, context.master, given.id, context.terminal)
    diag.write(given.out, found)
    names = ", ".join(sorted(found))
    text = f"{given.out}: {names}\nRead it before you send it: it has no passwords, but your jobs' names and logs."
    return Shown({"file": str(given.out), "members": sorted(found)}, text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    )
