"""The command line. The only place that prints errors and chooses exit statuses."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from oq_cluster import __version__, commands, completion, stack
from oq_cluster.commands import INTERRUPTED, Context, Shown
from oq_cluster.errors import ClientError, LostConnection, Offline, Unreachable, UsageError
from oq_cluster.stack import Source
from oq_cluster.terminal import Terminal, plain

Command = Callable[[Context, argparse.Namespace], Shown | None]
# Adds a command: its name, function, help, and more of its description.
Add = Callable[..., argparse.ArgumentParser]
_NO_VALUE: Final = "--lab="


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    common = common_options()
    top = argparse.ArgumentParser(
        prog="oq-cluster",
        description="OpenQuake calculations on a cluster, from your own computer.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong usage or a job that is not complete, 130 after Ctrl-C. "
        "Each command has --help.",
        parents=[common],
    )
    top.add_argument("--version", action="version", version=__version__)
    subs = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Command, text: str, more: str = "") -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}. {more}".strip()
        sub = subs.add_parser(name, help=text, description=description, parents=[common])
        sub.set_defaults(run=run)
        return sub

    _add_login(add)
    _add_calculations(add)
    _add_cluster(add)
    sub = add(
        "completion",
        lambda _context, given: Shown(None, completion.script(parser(), given.shell)),
        "print a completion script for a shell",
        'In the shell\'s startup file: eval "$(oq-cluster completion bash)", or zsh in place of bash.',
    )
    sub.add_argument("shell", choices=completion.SHELLS, help="which shell")
    return top


def _add_login(add: Add) -> None:
    """Which cluster, and as whom."""
    sub = add(
        "use",
        commands.use,
        "remember a cluster as the default",
        "The options say which: --stack, --outputs or --lab, with --profile or --direct.",
    )
    sub.add_argument(
        "--certificate",
        type=Path,
        metavar="FILE",
        help="a file written by oq-cluster certificate; needed only if you may not use Run Command",
    )
    sub = add("login", commands.login, "log in to the WebUI; only the session is kept, not the password")
    sub.add_argument("name", metavar="NAME", help="the account (oq-cluster users add NAME makes one)")
    sub.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    sub = add("password", commands.password, "change your own password of the WebUI, and stay logged in")
    sub.add_argument(
        "--password-stdin",
        action="store_true",
        help="read two lines from standard input: the present password and the new one",
    )
    add("logout", commands.logout, "end the session")


def _add_calculations(add: Add) -> None:
    """What one does with calculations."""
    sub = add(
        "run",
        commands.run,
        "upload a job with exactly the files that it names, follow it, and download its outputs",
        "Ctrl-C ends the command, not the calculation. A lost connection is opened again; an upload that broke off has "
        "started nothing. The log goes to standard error.",
    )
    sub.add_argument(
        "job_ini",
        nargs="+",
        type=Path,
        metavar="JOB_INI",
        help="the job file; others continue the first calculation",
    )
    sub.add_argument("--hazard", "--hc", type=int, metavar="ID", help="continue this calculation")
    sub.add_argument("--no-wait", action="store_true", help="print the calculation's number, and end")
    sub.add_argument("--dry-run", action="store_true", help="only show which files would be uploaded")
    _downloads(sub, None)
    sub = add("list", commands.list_, "list calculations, the newest first")
    sub.add_argument("--limit", type=int, default=20, metavar="N", help="how many, 0 for all (default: 20)")
    _calculation(add("status", commands.status, "show the status of a calculation"))
    sub = _calculation(add("log", commands.log, "show a calculation's log"))
    sub.add_argument(
        "--follow",
        action="store_true",
        help="show more until it ends; the exit status is 0 if it is complete",
    )
    sub = _calculation(add("get", commands.get, "download a calculation's outputs"))
    _downloads(sub, Path())
    sub.add_argument(
        "--list", action="store_true", help="only list them, with the types of file that there are"
    )
    sub.add_argument(
        "--datastore",
        action="store_true",
        help="also the datastore; of the rates of a large classical calculation a part stays on the master",
    )
    for name, text in (
        ("abort", "end a calculation"),
        ("share", "let everybody with a login see a calculation"),
        ("unshare", "stop sharing a calculation"),
        ("remove", "remove a calculation with all its results"),
    ):
        _calculation(add(name, commands.act, text))
    sub = add(
        "cost", commands.cost, "show what calculations have cost: the time of workers that their tasks took"
    )
    sub.add_argument("id", nargs="?", type=int, metavar="ID", help="a calculation (default: the last ones)")


def _add_cluster(add: Add) -> None:
    """What one does with the cluster itself."""
    sub = add("webui", commands.webui, "open the WebUI in the browser, until Ctrl-C")
    sub.add_argument("--port", type=_port, default=0, help="the local port (default: any free one)")
    sub.add_argument("--no-browser", action="store_true", help="only print the address")
    add(
        "certificate",
        commands.show_certificate,
        "print the certificate of a WebUI with HTTPS, as the master has it",
    )
    sub = add("users", commands.users, "manage the WebUI's accounts, as root of the master")
    sub.add_argument("action", choices=("list", "add", "password", "remove"), help="what to do")
    sub.add_argument("name", nargs="?", metavar="NAME", help="the account")
    sub.add_argument(
        "--admin", action="store_true", help="add: sees, aborts and removes everybody's calculations"
    )
    add("workers", commands.workers, "show the workers, what they do, and why none starts")
    sub = add("logs", commands.logs, "show the journal of a worker, also of one that is gone; or list them")
    sub.add_argument(
        "worker",
        nargs="?",
        metavar="WORKER",
        help="its instance id, host name or address (default: list all)",
    )
    sub.add_argument(
        "--lines", type=int, default=100, metavar="N", help="how many, from its end (default: 100)"
    )
    add("shell", commands.shell, "open a shell on the master")
    add(
        "sleep",
        commands.sleep,
        "stop the master if nothing computes",
        "You save the master's price; everything else is still billed. People who are logged in are not waited for.",
    )
    add("wake", commands.wake, "start the master, and wait until it answers")
    add(
        "rotate",
        commands.rotate,
        "give the cluster new passwords and keys; calculations go on",
        "The WebUI's admin gets a new password; the output webUiPasswordCommand is the command that shows it.",
    )
    sub = add("diag", commands.collect, "write one archive for a bug report, without secrets")
    sub.add_argument("id", nargs="?", type=int, metavar="ID", help="a calculation to describe, too")
    sub.add_argument(
        "--out",
        type=Path,
        default=Path("oq-cluster-diag.tar.gz"),
        metavar="FILE",
        help="(default: %(default)s)",
    )


def common_options() -> argparse.ArgumentParser:
    """The options of all commands, before or after the command's name."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    which = common.add_argument_group("which cluster (default: that of the last oq-cluster use)")
    which.add_argument("--stack", metavar="NAME", help="a Pulumi stack")
    which.add_argument("--outputs", metavar="FILE", help="what pulumi stack output --json has printed")
    which.add_argument(
        "--lab", nargs="?", metavar="=NAME", help="a lab on this machine (default: $OQLAB_NAME)"
    )
    which.add_argument(
        "--directory", metavar="DIR", help="directory of the Pulumi program (default: the current one)"
    )
    which.add_argument("--profile", metavar="NAME", help="AWS profile (default: $AWS_PROFILE)")
    which.add_argument(
        "--direct", action="store_true", help="the WebUI's address is in reach, such as through a VPN"
    )
    common.add_argument("--json", action="store_true", help="print JSON")
    common.add_argument("--debug", action="store_true", help="show where an error comes from")
    return common


def _calculation(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
    sub.add_argument("id", type=int, metavar="ID", help="the calculation's number")
    return sub


def _port(text: str) -> int:
    if text.isdecimal() and int(text) < 2**16:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text}: a port is a number from 0 to 65535")


def _downloads(sub: argparse.ArgumentParser, default: Path | None) -> None:
    shown = "this one" if default is not None else "none, outputs stay on the cluster"
    sub.add_argument(
        "--out", type=Path, default=default, metavar="DIR", help=f"where outputs go (default: {shown})"
    )
    sub.add_argument(
        "--type",
        action="append",
        default=[],
        metavar="TYPE",
        help="file type, such as csv, xml or npz; repeat for several (default: csv where available)",
    )


def source(given: argparse.Namespace) -> Source:
    """The cluster that the options name, or the remembered one.

    Raises:
        UsageError: they name two.
    """
    options: dict[str, Any] = vars(given)
    lab = options.get("lab")
    if lab == "":
        lab = os.environ.get("OQLAB_NAME", stack.DEFAULT_LAB)
    named = {"stack": options.get("stack"), "outputs": options.get("outputs"), "lab": lab}
    chosen = {key: str(value) for key, value in named.items() if value}
    if len(chosen) > 1:
        raise UsageError(f"--{' and --'.join(chosen)}: name one of them")
    if not chosen:
        if given.command == "use":
            raise UsageError("name the cluster to use: --stack NAME, --outputs FILE or --lab")
        over = {key: options[key] for key in ("profile", "direct", "directory") if key in options}
        return replace(stack.remembered(), **over)
    if "outputs" in chosen:
        chosen["outputs"] = str(Path(chosen["outputs"]).absolute())
    directory = str(Path(options.get("directory", ".")).absolute())
    return Source(
        **chosen, directory=directory, profile=options.get("profile", ""), direct=options.get("direct", False)
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    words = sys.argv[1:] if words is None else words
    # Alone, --lab means this machine's usual lab; the word after it is not its name.
    given = parser().parse_args([_NO_VALUE if word == "--lab" else word for word in words])
    debug = getattr(given, "debug", False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of which an old code page has not every character
            stream.reconfigure(errors="backslashreplace")
    terminal = Terminal()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the port forward ends then, too
    # And when its terminal is closed, unless nohup wants it to go on.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        return _run(given, terminal)
    except KeyboardInterrupt:
        terminal.status("")
        return INTERRUPTED
    except ClientError as error:
        if debug:
            raise
        terminal.say(f"oq-cluster: {error}")
        return error.status
    except BrokenPipeError:  # `oq-cluster log ID | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        terminal.say(
            f"oq-cluster: {type(error).__name__}: {error}: an error of oq-cluster itself; "
            "--debug shows where, and oq-cluster diag writes what a bug report needs"
        )
        return 1


def _run(given: argparse.Namespace, terminal: Terminal) -> int:
    if given.command == "users" and (given.name is None) != (given.action == "list"):
        raise UsageError("users list has no NAME; add, password and remove have one")
    as_json = getattr(given, "json", False)
    alone = given.command == "completion" or getattr(given, "dry_run", False)
    named = Source() if alone else source(given)  # those need no cluster
    context = Context(named, as_json, terminal, getattr(given, "port", 0))
    try:
        shown = given.run(context, given)
    except (LostConnection, Unreachable) as error:
        if not isinstance(error, Offline) and (reason := context.asleep()):
            raise reason from error
        raise
    finally:
        context.close()
    if shown is None:
        return 0
    if as_json and shown.data is not None:
        print(commands.json_text(shown.data))
    elif shown.text:
        print(plain(shown.text))
    return int(shown.status)
