"""The lab's commands."""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from components import facts
from lab.base import REPOSITORY, LabError
from lab.cluster import cluster, fleet
from lab.linux import forward
from lab.linux.host import Paths, lab_paths, require_host, require_root
from lab.trials import faults

# Commands import what they alone need: `oq-cluster --lab` starts one of them for each of its own, and Pulumi's library
# and numpy take longer than most of them do.


def say(line: str) -> None:
    """Print a line of progress with the time of day."""
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


def _up(paths: Paths, arguments: argparse.Namespace) -> int:
    from lab.aws.plan import make_plan
    from lab.cluster import build
    from lab.cluster.program import read_config, record

    plan = make_plan(record(read_config(arguments.stack, arguments.set)))
    lab = build.up(paths, plan, say, cold=arguments.cold)
    say(f"powered on: {', '.join(lab.nodes)}")
    if not arguments.no_wait:
        cluster.wait_until_ready(lab, say)
    return 0


def _demo(paths: Paths, arguments: argparse.Namespace) -> int:
    from lab.trials import demo, scale_demo

    show = scale_demo.run_scale_demo if arguments.scale else demo.run_demo
    show(paths, arguments.stack, arguments.set, arguments.out, say, cold=arguments.cold, keep=arguments.keep)
    return 0


def _pulumi(paths: Paths, arguments: argparse.Namespace) -> int:
    from lab.cluster import region

    return region.pulumi(paths, arguments.words, say)


def _status(paths: Paths, arguments: argparse.Namespace) -> int:
    del arguments
    lab = cluster.load(paths)
    ready = True
    for node in lab.nodes.values():
        answer = cluster.state(lab, node)
        words = "ready" if answer.ready else "; ".join(answer.problems)
        print(f"{node.name:12} {node.address!s:15} {node.template.instance_type:12} {words}")
        ready = ready and answer.ready
    return 0 if ready else 1


def _exec(paths: Paths, arguments: argparse.Namespace) -> int:
    return _call(
        cluster.load(paths).machine(arguments.node).command(arguments.command or ["bash", "--login"])
    )


def _outputs(paths: Paths, arguments: argparse.Namespace) -> int:
    del arguments
    lab = cluster.load(paths)
    exports = lab.plan.exports
    if cluster.region_record(paths).exists():
        from lab.cluster import region

        exports = region.outputs(paths)
    own = {
        "name": paths.name,
        "master": cluster.power(lab, lab.master()),
        "fleet": fleet.described(lab),
    }
    print(json.dumps({**exports, "lab": own}, indent=2))
    return 0


def _forward(paths: Paths, arguments: argparse.Namespace) -> int:
    node = cluster.load(paths).machine(arguments.node)
    if node.init() is None:
        raise LabError(f"{arguments.node} is off")
    forward.serve(Path("/run/netns", paths.netns(node.name)), arguments.port, arguments.local_port)
    return 0


def _secret(paths: Paths, arguments: argparse.Namespace) -> int:
    from lab.cluster import build

    lab = cluster.load(paths)
    try:
        value = arguments.file.read_text()
    except (OSError, ValueError) as error:
        raise LabError(f"{arguments.file} cannot be read: {error}") from error
    build.give_secret(lab, arguments.arn, value)
    return 0


def _logs(paths: Paths, arguments: argparse.Namespace) -> int:
    machine = cluster.load(paths).machine(arguments.node)
    if machine.init() is None:
        print(machine.console.read_text(errors="replace"))
        return 0
    follow = ["--follow"] if arguments.follow else []
    return _call(machine.command(["journalctl", "--no-pager", *follow]))


def _call(command: Sequence[str]) -> int:
    """Run a command on this terminal; its exit code."""
    return subprocess.run(command, check=False).returncode


def _mail(paths: Paths, arguments: argparse.Namespace) -> int:
    from lab.cluster import scaler

    for mail in scaler.mails(cluster.load(paths), arguments.speedup):
        moment = time.strftime("%H:%M:%S", time.localtime(mail.time))
        print(f"{moment}  to {mail.address}: {mail.alarm}\n          {mail.text}")
    return 0


def _run(paths: Paths, arguments: argparse.Namespace) -> int:
    from lab.trials import job

    lab = cluster.load(paths)
    run = job.run_job(lab, arguments.job_ini, arguments.out, processpool=arguments.processpool)
    say(f"calculation {run.calculation}: {run.seconds:.1f} s; outputs in {arguments.out}")
    return 0


def _kill(paths: Paths, arguments: argparse.Namespace) -> int:
    cluster.kill(cluster.load(paths), arguments.node)
    return 0


def _start(paths: Paths, arguments: argparse.Namespace) -> int:
    lab = cluster.load(paths)
    if lab.machine(arguments.node).init() is not None:
        raise LabError(f"{arguments.node} is on")
    cluster.power_on(lab, lab.nodes[arguments.node])
    if not arguments.no_wait:
        cluster.wait_until_ready(lab, say)
    return 0


def _replace(paths: Paths, arguments: argparse.Namespace) -> int:
    from lab.cluster import build

    del arguments
    if cluster.region_record(paths).exists():
        raise LabError("this lab's machines are Pulumi's: python -m lab pulumi up --replace URN")
    lab = cluster.load(paths)
    build.replace_master(lab, say)
    cluster.wait_until_ready(lab, say)
    return 0


def _scale(paths: Paths, arguments: argparse.Namespace) -> int:
    lab = cluster.load(paths)
    fleet.scale(lab, arguments.number)
    cluster.wait_until_ready(lab, say)
    return 0


def _room(paths: Paths, arguments: argparse.Namespace) -> int:
    fleet.limit(cluster.load(paths), arguments.number)
    return 0


def _interrupt(paths: Paths, arguments: argparse.Namespace) -> int:
    lab = cluster.load(paths)
    say(f"{arguments.node} has {arguments.seconds:.0f} s")
    faults.interrupt(lab, arguments.node, arguments.seconds)
    say(f"{arguments.node} is off")
    return 0


def _partition(paths: Paths, arguments: argparse.Namespace) -> int:
    lab = cluster.load(paths)
    say(f"{arguments.node} is cut off for {arguments.seconds:.0f} s")
    faults.partition(lab, arguments.node, arguments.seconds)
    return 0


def _restart(paths: Paths, arguments: argparse.Namespace) -> int:
    faults.restart(cluster.load(paths), arguments.service)
    return 0


def _faults(paths: Paths, arguments: argparse.Namespace) -> int:
    from lab.trials import matrix

    storages = arguments.storage or list(matrix.STORAGES)
    first = secrets.randbelow(10**9) if arguments.seed is None else arguments.seed
    say(f"seeds {first} to {first + arguments.runs - 1}")
    seeds = range(first, first + arguments.runs)
    results = matrix.explore(paths, arguments.stack, arguments.set, storages, seeds, arguments.document, say)
    return 1 if any(result.entry().wrong for result in results) else 0


def _qa(paths: Paths, arguments: argparse.Namespace) -> int:
    from lab.trials.qa import command as qa

    good = qa.run(paths, arguments.stack, arguments.set, arguments.jobs, arguments.document, say)
    return 0 if good else 1


def _down(paths: Paths, arguments: argparse.Namespace) -> int:
    from lab.cluster import build

    del arguments
    build.down(paths)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lab", description="The cluster of the Pulumi program on this machine."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[Paths, argparse.Namespace], int], text: str, *, boots: bool = False
    ) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        one.set_defaults(run=run, boots=boots)
        return one

    def config(one: argparse.ArgumentParser) -> None:
        one.add_argument(
            "--stack", default="dev", help="the stack whose configuration is taken (default: dev)"
        )
        one.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="override a setting of the stack; may be repeated",
        )
        one.add_argument(
            "--cold", action="store_true", help="build the engine, even if an earlier lab has built it"
        )

    def node(one: argparse.ArgumentParser) -> None:
        one.add_argument("node", help="master, worker-1 …: see status")

    one = command(
        "up", _up, "boot the cluster that the program registers and wait until it is ready", boots=True
    )
    config(one)
    one.add_argument("--no-wait", action="store_true", help="return when the nodes are powered on")
    one = command(
        "demo",
        _demo,
        "boot, compute a hazard curve on the cluster, show the figures, take it down",
        boots=True,
    )
    config(one)
    one.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help="for the outputs (default: out)"
    )
    one.add_argument("--keep", action="store_true", help="leave the cluster up")
    one.add_argument(
        "--scale", action="store_true", help="no workers at first: they come with the job and go after it"
    )
    command("status", _status, "list the nodes and their problems; exit code 0 when all are ready")
    one = command(
        "mail", _mail, "print the e-mails that the alarms would have sent (with --set alarmEmail=…)"
    )
    one.add_argument(
        "--speedup",
        type=int,
        default=1,
        metavar="N",
        help="alarms look at N times fewer minutes (default: 1)",
    )
    one = command("run", _run, "run a calculation on the cluster as an ordinary user and export its outputs")
    one.add_argument("job_ini", type=Path, metavar="JOB_INI", help="the job file; its whole folder is copied")
    one.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help="for the outputs (default: out)"
    )
    one.add_argument(
        "--processpool", action="store_true", help="on the master alone, as the engine does without a cluster"
    )
    one = command("exec", _exec, "run a command on a node, as root; without one a shell")
    node(one)
    one.add_argument("command", nargs="*", metavar="-- COMMAND", help="the command and its arguments")
    command("outputs", _outputs, "print what pulumi stack output --json does, and the workers, as JSON")
    one = command(
        "forward", _forward, "forward a local port to a port of a node, as Session Manager does, until Ctrl-C"
    )
    node(one)
    one.add_argument("port", type=int, metavar="PORT", help="the node's, such as 8800")
    one.add_argument("local_port", type=int, metavar="LOCAL_PORT", help="this machine's")
    one = command(
        "secret",
        _secret,
        "give a secret that a setting names (webuiCertificate) its value, as its owner does",
    )
    one.add_argument("arn", metavar="ARN", help="of the secret")
    one.add_argument("file", type=Path, metavar="FILE", help="with the value")
    one = command("logs", _logs, "print a node's journal, or its console when it is off")
    node(one)
    one.add_argument("--follow", action="store_true", help="keep printing new lines")
    node(command("kill", _kill, "kill -9 a whole node"))
    one = command("start", _start, "power a node on again and wait until it is ready")
    node(one)
    one.add_argument("--no-wait", action="store_true", help="return when it is powered on")
    command(
        "replace",
        _replace,
        "replace the master and keep its volumes, as a change of its user data does",
    )
    one = command("scale", _scale, "replace dead workers, then start or remove some until there are NUMBER")
    one.add_argument("number", type=int, metavar="NUMBER")
    one = command("room", _room, "limit AWS's capacity to NUMBER workers; without NUMBER remove the limit")
    one.add_argument("number", type=int, nargs="?", metavar="NUMBER", help="without: no limit")
    one = command("interrupt", _interrupt, "announce a spot interruption to a node, then switch it off")
    node(one)
    one.add_argument(
        "--seconds", type=float, default=faults.SPOT_SECONDS, help="from the notice to the end (default: 120)"
    )
    one = command("partition", _partition, "drop all packets from and to a node for some time")
    node(one)
    one.add_argument("--seconds", type=float, required=True, help="how long")
    one = command("restart", _restart, "restart a service of the master")
    one.add_argument("service", choices=faults.SERVICES)
    one = command(
        "faults",
        _faults,
        "run jobs under faults drawn from random seeds, each storage mode on a cluster of its own",
        boots=True,
    )
    config(one)
    one.add_argument(
        "--storage", choices=facts.RESERVED_MB, action="append", help="only this one (default: all)"
    )
    one.add_argument("--seed", type=int, help="the first one (default: a fresh one)")
    one.add_argument("--runs", type=int, default=60, metavar="N", help="how many seeds (default: 60)")
    one.add_argument(
        "--document",
        type=Path,
        default=REPOSITORY / "docs/faults.json",
        metavar="FILE",
        help="for the figures; the page is written beside it",
    )
    one = command(
        "qa", _qa, "run the engine's own jobs on the cluster and with one process, and compare", boots=True
    )
    config(one)
    one.add_argument("jobs", nargs="?", default="", metavar="JOBS", help="the beginning of folders' names")
    one.add_argument(
        "--document", type=Path, default=REPOSITORY / "docs/qa.md", metavar="FILE", help="for the figures"
    )
    one = command(
        "pulumi",
        _pulumi,
        "run a command of Pulumi (up, preview, config set …) with this machine in the place of AWS",
        boots=True,
    )
    one.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND …", help="what Pulumi is told")
    command("down", _down, "remove all that belongs to the lab, after a crash too")
    return parser


def main(words: Sequence[str]) -> int:
    """Run one command; its exit code. What goes wrong is one message on stderr."""
    arguments = _parser().parse_args(words)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is up is taken down then, too
    try:
        paths = lab_paths()
        require_root()
        if arguments.boots:  # what a lab is up on has been found good
            require_host(paths)
        code: int = arguments.run(paths, arguments)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; python -m lab down removes what is there", file=sys.stderr)
        return 130
    return code
