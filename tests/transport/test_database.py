"""What becomes of a request to the DbServer when that ends. `make faults` does it with a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.transport import harness
from tests.transport.processes import free_port
from tests.transport.rabbitmq import Broker

REQUESTS = {
    "log": "number, datetime(2026, 1, 1, 12, 30, 0, 123456, UTC), 'INFO', 'one', 'a line'",
    "create_outputs": "number, [('hcurves', 1.5), ('hmaps', 0.5)], 2.0",
    "import_job": "10 * number, 'classical', 'of elsewhere', 'ann', 'complete', None, '/nowhere'",
}
"""By action, its arguments for the calculation `number`."""
ROWS = {
    "log": ("log WHERE job_id=?x", 1),
    "create_outputs": ("output WHERE oq_job_id=?x", 2),
    "import_job": ("job WHERE id=10*?x", 1),
}
# Upstream's client with a DbServer in a thread, which ends with the first request that it takes, done or not, and then
# is there again.
PROGRAM = """
import json, os, pickle, threading, time, zmq
from datetime import UTC, datetime
from openquake.baselib import config, parallel, zeromq
from openquake.commonlib import logs
from openquake.commonlib.dbapi import db
from openquake.server.db import actions
from oq_celery.database import DONE, Connection

def do(action, *arguments):
    known = getattr(actions, action, None)
    return parallel.safely_call(known, (db, *arguments)) if known else parallel.safely_call(db, (action, *arguments))

class Harm:
    def __reduce__(self):
        return os.mkdir, (os.environ["HARMED"],)

def bind(socket):
    while True:  # ZeroMQ closes sockets in its own time
        try:
            return socket.bind(f"tcp://127.0.0.1:{config.dbserver.port}")
        except zmq.ZMQError:
            time.sleep(0.05)

def serve(does, stop):
    taken = False
    while not stop.is_set():
        with context.socket(zmq.REP) as socket:
            socket.linger = 0
            bind(socket)
            while not stop.is_set():
                if not socket.poll(100):
                    continue
                request = socket.recv_pyobj()
                if not taken:
                    taken = True
                    if does:
                        do(*request)
                    break
                socket.send_pyobj(do(*request))

def ask(does, action, *arguments):
    stop = threading.Event()
    server = threading.Thread(target=serve, args=(does, stop))
    server.start()
    try:
        return logs.dbcmd(action, *arguments)
    finally:
        stop.set()
        server.join()

context = zmq.Context()
actions.upgrade_db(db)
found = {"known": list(DONE)}
number = 0
for action, (arguments, rows) in REQUESTS.items():
    for does in (False, True):
        number = actions.create_job(db, "/nowhere")
        answer = ask(does, action, *eval(arguments))
        count = db("SELECT count(*) FROM " + rows, number)[0][0]
        found[f"{action} {does}"] = [answer, count]
found["get_job"] = ask(False, "get_job", number).id == number
(row,) = ask(False, "SELECT id, start_time, pid FROM job WHERE id=?x", number)
found["list"] = type(ask(False, "get_executing_jobs")).__name__
found["rows"] = [type(value).__name__ for value in row]
try:
    ask(False, "SELECT nothing")
except Exception as error:
    found["error"] = type(error).__name__
actions.harm = lambda db: Harm()
do_harm, found["harm"] = parallel.safely_call, []
for outside in (False, True):
    if outside:
        parallel.safely_call = lambda *_: Harm()
    try:
        ask(False, "harm")
    except pickle.UnpicklingError as error:
        found["harm"].append(str(error))
parallel.safely_call = do_harm
found["harmed"] = os.path.exists(os.environ["HARMED"])
try:
    with Connection(f"tcp://127.0.0.1:{config.dbserver.port}", zmq.REQ, "connect", timeout=1) as connection:
        connection.send(("get_job", 1))
except zeromq.TimeoutError as error:
    found["late"] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, broker: Broker) -> dict[str, Any]:
    """What the program has found."""
    requests = {action: (arguments, ROWS[action][0]) for action, arguments in REQUESTS.items()}
    directory: Path = tmp_path_factory.mktemp("database")
    # By this name another machine's as far as the engine knows, which would open the file itself otherwise.
    changes = {"dbserver.host": "localhost", "dbserver.port": str(free_port())}
    with harness.cluster(directory / "oqlab-database", broker, **changes) as made:
        code = f"REQUESTS = {requests!r}\n{PROGRAM}"
        printed = made.python(code, HARMED=str(directory / "harmed"), LOGNAME="openquake")
        return dict(json.loads(printed.splitlines()[-1]))


def test_every_action_that_must_not_be_done_twice_is_tried_here(found: dict[str, Any]) -> None:
    assert set(found["known"]) == REQUESTS.keys()


@pytest.mark.parametrize("action", REQUESTS)
@pytest.mark.parametrize("does", [False, True], ids=["not-done", "done"])
def test_a_request_that_goes_down_with_the_dbserver_is_done_once_all_the_same(
    action: str, does: bool, found: dict[str, Any]
) -> None:
    assert found[f"{action} {does}"] == [None, ROWS[action][1]]


def test_what_only_reads_gets_its_answer_from_the_next_dbserver(found: dict[str, Any]) -> None:
    assert found["get_job"]


def test_an_answer_is_read_as_values_and_rows_and_errors(found: dict[str, Any]) -> None:
    assert found["rows"] == ["int", "datetime", "int"]
    assert found["list"] == "List"
    assert found["error"] == "OperationalError"


def test_an_answer_that_would_run_something_is_not_read(found: dict[str, Any]) -> None:
    """Whoever may ask the DbServer may make it answer anything, and root asks it, too."""
    assert found["harm"] == ["an answer of the DbServer has posix.mkdir in it"] * 2
    assert not found["harmed"]


def test_without_a_dbserver_a_request_ends_in_time_and_says_so(found: dict[str, Any]) -> None:
    assert "('get_job', 1)" in found["late"]
