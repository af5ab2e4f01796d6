"""A master: runs one job of a seed, and tells its history what it gets; in the engine's environment."""

from __future__ import annotations

import logging
from pathlib import Path

from explorer import tasks
from explorer.workload import Workload, digest, shared_argument


def run(workload: Workload, history: Path) -> int:
    """Run the job to its end; the exit code of the process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        for number in range(len(workload.sets)):
            _run_set(workload, number, str(history))
    except BaseException as error:
        tasks.note_error(str(history), error)
        raise
    tasks.note(str(history), event="done")
    return 0


def _run_set(workload: Workload, number: int, history: str) -> None:
    from openquake.baselib import parallel

    roots = workload.sets[number]
    call = {"seed": workload.seed, "number": number, "sizes": workload.shared, "history": history}
    # Equal bytes of several tasks are one object here, as a shared argument is in the engine.
    shared = {task.shared: shared_argument(workload, task) for task in roots}
    arguments = [(*tasks.call_of(call, task)[1:3], shared[task.shared]) for task in roots]
    # The engine takes one function for a set; a plain task of a set is asked for by a subtask only, or all are plain.
    func = tasks.whole if all(task.plain for task in roots) else tasks.stream
    given = iter(arguments) if workload.lazy else arguments
    for found in parallel.Starmap(func, given):
        of, index = (found["of"][0], found["of"][1]), found["of"][2]
        tasks.note(
            history,
            event="handed",
            item=[of[0], list(of[1]), index, found["arguments"], digest(found["data"])],
        )
