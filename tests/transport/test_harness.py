"""What the other tests rely on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.transport import harness, isolation, processes, rabbitmq
from tests.transport.harness import Cluster
from tests.transport.processes import wait_until
from tests.transport.rabbitmq import Broker

KEPT = """
import os, sys
here = {os.getpid(): "own", os.getppid(): "parent's", "oqlab-parent": "parent's", "oqlab-child": "own"}
for module, found in sorted(sys.modules.items()):
    if module.partition(".")[0] in ("openquake", "oq_celery"):
        for name, value in sorted(vars(found).items()):
            if type(value) in (int, str) and value in here:
                print(f"{module}.{name} is {here[value]}")
print(f"{__name__} {sys.argv[1:]} {os.getsid(0) == os.getpid()}")
sys.exit("the end")
"""

NEW = """
import io, json, multiprocessing, os, signal, sys, tempfile, threading
import __main__
handlers = {str(number): str(signal.getsignal(number)) for number in signal.valid_signals()}
print(json.dumps({
    "environment": dict(os.environ) | {"PYTEST_CURRENT_TEST": ""},
    "argv": sys.argv[1:-1],
    "path": sys.path[1:],
    "first": sys.path[0] in ("", os.path.dirname(sys.argv[0])),
    "main": [__name__, vars(__main__) is globals()],
    "directory": os.getcwd(),
    "umask": os.umask(0o22),
    "temporary": tempfile.gettempdir(),
    "handlers": handlers,
    "buffered": [isinstance(sys.stdout.buffer, io.BufferedWriter), sys.stdout.encoding],
    "input": os.readlink("/proc/self/fd/0"),
    "threads": [thread.name for thread in threading.enumerate()],
    "process": [multiprocessing.current_process().name, multiprocessing.current_process().pid == os.getpid()],
    "ours": sorted(name for name in sys.modules if name.startswith(("openquake", "oq_"))),
}))
import openquake.baselib, h5py, setproctitle
setproctitle.setproctitle("oqlab-title")
print(open("/proc/self/comm").read().strip(), file=sys.stderr)
print(sorted(name for name in sys.modules if name.startswith("openquake")), file=sys.stderr)
file = h5py.File(sys.argv[-1], "w")
try:
    h5py.File(sys.argv[-1], "r")
except OSError:
    print("locked", file=sys.stderr)
file["kept"] = 5  # though nobody closes it
raise SystemExit(7)
"""


def test_the_broker_has_the_nodes_limits(broker: Broker) -> None:
    assert (
        broker.control("eval", "application:get_env(rabbit, max_message_size).").strip() == "{ok,134217728}"
    )
    assert (
        broker.control("eval", "application:get_env(rabbit, consumer_timeout).").strip() == "{ok,2592000000}"
    )


def test_a_broker_that_does_not_answer_is_not_one_without_queues(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or every test that wants none left would pass."""
    assert isinstance(broker.queues(), dict)
    monkeypatch.setattr(rabbitmq, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(broker, "erlang", lambda _: "")
    with pytest.raises(AssertionError, match="RabbitMQ does not say which queues it has"):
        broker.result_queues()


def test_the_broker_in_the_nodes_image_is_of_their_debian(broker: Broker) -> None:
    if broker.image is None:
        pytest.skip("this machine's own RabbitMQ")
    assert broker.version().startswith("4.0.")


@pytest.mark.skipif(not isolation.inside(), reason="not in namespaces of its own")
def test_what_has_lost_its_parent_is_reaped(tmp_path: Path) -> None:
    """Other tests wait for the processes of workers that they killed to be gone."""
    orphan = tmp_path / "orphan"
    subprocess.run(["sh", "-c", f"sleep 0.1 & echo $! > {orphan}"], check=True)
    wait_until(lambda: not Path(f"/proc/{orphan.read_text().strip()}").exists(), "the orphan to be gone")


@pytest.mark.skipif(not isolation.inside(), reason="not in namespaces of its own")
def test_nothing_outside_the_namespaces_is_seen() -> None:
    assert Path("/proc/1/comm").read_text().strip() == "sh"
    assert [name for _, name in socket.if_nameindex()] == ["lo"]


def test_a_forked_command_is_what_a_new_one_would_be(tmp_path: Path, broker: Broker) -> None:
    """Nothing that the engine's import has kept is the parent's process or user; only such values are looked at."""
    script, out, err = (tmp_path / name for name in ("script.py", "out", "err"))
    script.write_text(KEPT)
    with harness.cluster(tmp_path / "oqlab-forks", broker) as cluster:
        cluster.env["LOGNAME"] = "oqlab-parent"
        child = cluster.fork([script, "word"], out, err, {"LOGNAME": "oqlab-child"})
        assert child.over.wait(processes.DEADLINE)
    assert out.read_text().splitlines() == [
        "openquake.calculators.base.USER is own",
        "openquake.engine.engine.USER is own",
        "openquake.engine.engine._PID is own",
        "openquake.engine.engine._PPID is parent's",
        "__main__ ['word'] True",
    ]
    assert (err.read_text(), child.status) == ("the end\n", 1)


@pytest.mark.parametrize("script", [False, True], ids=["a line", "a script"])
def test_a_forked_python_is_what_a_new_one_would_be(
    tmp_path: Path, broker: Broker, script: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "program.py"
    program.write_text(NEW)
    words = [program] if script else ["-c", NEW]
    command = [processes.ENGINE / "bin/python", *words, "word"]
    env = Cluster(tmp_path / "oqlab-new", broker).env | {"OQ_SOMETHING": "else"}
    before = os.umask(0o027)
    try:
        new, forked = (
            processes.run([*command, f"{fresh}.hdf5"], env, fresh=fresh) for fresh in (True, False)
        )
    finally:
        os.umask(before)
    code = "import h5py, sys; print(h5py.File(sys.argv[1])['kept'][()])"
    assert processes.python(code, tmp_path / "False.hdf5") == ["5"]
    assert json.loads(forked.stdout) == json.loads(new.stdout)
    assert forked.stderr.splitlines() == new.stderr.splitlines()
    assert (new.returncode, forked.returncode) == (7, 7)
    assert json.loads(new.stdout)["environment"]["OQ_SOMETHING"] == "else"


def test_what_an_import_reads_is_not_changed_by_a_fork() -> None:
    command = [str(processes.ENGINE / "bin/python"), "-c", "pass"]
    assert processes.Pythons.may_fork(command, dict(os.environ) | {"OQ_DISTRIBUTE": "no"})
    assert not processes.Pythons.may_fork(command, dict(os.environ) | {"NUMBA_DISABLE_JIT": "1"})
    assert not processes.Pythons.may_fork([command[0], "-u", *command[1:]], dict(os.environ))
    assert not processes.Pythons.may_fork(["taskset", "1", *command], dict(os.environ))
