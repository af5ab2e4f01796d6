"""The pure parts of the explorer of faults: what a seed asks for, and a checker that sees what is planted."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oq_celery.losses import LENIENT, Losses

from explorer import checker, injector, ledger, runs, schedule, workload
from explorer.checker import Left, Seen, Struck
from explorer.ledger import Entry
from explorer.schedule import Fault, Trigger
from explorer.workload import Task, Workload
from lab.base import REPOSITORY
from lab.cluster import fleet
from lab.trials import matrix
from tests.transport import fork_server, rabbitmq
from tests.transport.processes import wait_until

SEEDS = st.integers(0, 10**9)
SIMPLE = Workload(
    seed=1,
    profile="mixed",
    shared=(10,),
    sets=((Task((0,), (5, Task((0, 0), (7, 8)), 6), shared=0), Task((1,), (9,), own=3)),),
)


def ideal(job: Workload) -> Seen:
    """What a run without faults looks like."""
    events: list[dict[str, Any]] = [{"event": "channel", "name": "oq.one"}]
    for number, task in job.tasks():
        name = workload.label(number, task.path)
        events += [{"event": event, "task": name, "pid": 1, "attempt": name} for event in ("begin", "end")]
    for number, path, *rest in workload.expected(job):
        events.append({"event": "handed", "item": [number, list(path), *rest]})
    events.append({"event": "done"})
    return Seen([event | {"t": float(time)} for time, event in enumerate(events)], 0, float(len(events)))


def failed(job: Workload, kind: str, text: str, status: int = 1) -> Seen:
    """The same, but with an error at the end."""
    seen = ideal(job)
    seen.events[-1] = {"event": "error", "type": kind, "text": text, "t": seen.ended}
    seen.status = status
    return seen


def struck(*kinds: str, hit: bool = True, number: int = 1) -> list[Struck]:
    """Faults of these kinds."""
    at = Trigger("begin", 1, 0.0)
    return [Struck(Fault(kind, at, 0, 1.0, number), 1.0, 2.0, hit) for kind in kinds]


def handed(seen: Seen) -> list[dict[str, Any]]:
    return seen.of("handed")


def wrong(seen: Seen, faults: Sequence[Struck] = (), job: Workload = SIMPLE) -> str:
    """The first thing that is wrong."""
    return next(iter(checker.check_job(job, seen, faults)), "")


@given(SEEDS)
def test_a_seed_always_means_the_same_run(seed: int) -> None:
    assert schedule.draw(seed) == schedule.draw(seed)


def test_seeds_mean_different_runs_and_all_kinds_of_faults_and_jobs_come() -> None:
    plans = [schedule.draw(seed) for seed in range(400)]
    assert len({plan.faults for plan in plans}) > 390
    assert {fault.kind for plan in plans for fault in plan.faults} == set(schedule.KINDS)
    assert {job.profile for plan in plans for job in plan.jobs} == {
        *workload.PROFILES,
        *workload.ENGINE_JOBS,
    }


def test_without_root_no_fault_that_needs_it_is_drawn() -> None:
    kinds = {fault.kind for seed in range(400) for fault in schedule.draw(seed, root=False).faults}
    assert kinds == {name for name, kind in schedule.KINDS.items() if not kind.root}


@given(SEEDS)
def test_the_paths_of_a_job_are_those_that_its_tasks_ask_for(seed: int) -> None:
    for _, task in workload.draw(seed).tasks():
        assert [subtask.path for subtask in task.subtasks] == [
            (*task.path, index) for index in range(len(list(task.subtasks)))
        ]
        assert not task.plain or (len(task.steps) == 1 and isinstance(task.steps[0], int))


def test_results_are_expected_by_generation_and_then_by_path() -> None:
    assert [item[1:3] for item in workload.expected(SIMPLE)] == [
        ((0,), 0),
        ((0,), 1),
        ((1,), 0),
        ((0, 0), 0),
        ((0, 0), 1),
    ]


@settings(max_examples=8)  # the bytes of all results are made
@given(SEEDS)
def test_an_ideal_run_is_right_unless_its_job_has_to_fail(seed: int) -> None:
    job = workload.draw(seed)
    assert bool(wrong(ideal(job), job=job)) == bool(job.errors or job.deadly)


@pytest.mark.parametrize("field", [3, 4])
def test_a_changed_digest_is_seen(field: int) -> None:
    seen = ideal(SIMPLE)
    handed(seen)[2]["item"][field] = "0" * 16
    assert wrong(seen).startswith("results: number 2 is 0:1[0] instead of 0:1[0] with other")


def test_a_result_that_comes_twice_is_seen() -> None:
    seen = ideal(SIMPLE)
    place = seen.events.index(handed(seen)[1])
    seen.events.insert(place, copy.deepcopy(seen.events[place]))
    assert wrong(seen) == "results: number 2 is 0:0[1] instead of 0:1[0] a second time"


def test_a_result_too_many_at_the_end_is_seen() -> None:
    seen = ideal(SIMPLE)
    seen.events.append(copy.deepcopy(handed(seen)[-1]))
    assert wrong(seen) == "results: 1 too many, the first is 0:0.0[1]"


def test_two_results_that_have_changed_places_are_seen() -> None:
    seen = ideal(SIMPLE)
    one, other = handed(seen)[1:3]
    one["item"], other["item"] = other["item"], one["item"]
    assert wrong(seen) == "results: number 1 is 0:1[0] instead of 0:0[1]"


def test_a_lost_task_is_seen() -> None:
    seen = ideal(SIMPLE)
    seen.events = [event for event in seen.events if event.get("item", [0, 0])[1] != [0, 0]]
    assert wrong(seen) == "results: the job is done, but 2 are missing, the first is 0:0.0[0]"


def test_a_job_without_an_end_is_seen() -> None:
    seen = ideal(SIMPLE)
    seen.events.pop()
    seen.status = None
    assert wrong(seen, struck("purge the task queue")) == "ending: none, the job hangs"


def test_the_death_of_a_master_needs_a_fault() -> None:
    seen = ideal(SIMPLE)
    seen.events.pop()
    seen.status = -signal.SIGKILL
    assert wrong(seen) == "ending: killed, but not by a fault"
    assert wrong(seen, struck("kill the master", hit=False)) != ""
    assert wrong(seen, struck("kill the master")) == ""


def turned_down() -> str:
    """What the transport says of a task that no worker was able to do."""
    losses = Losses(1)
    for attempt in range(LENIENT):
        losses.unable(f"{attempt}", "one", "No space left")
    verdict = losses.verdict(1)
    assert verdict
    return verdict


def gone_silent() -> str:
    """What it says of a task of which all workers were heard no more."""
    losses = Losses(1)
    for attempt in range(LENIENT):
        losses.silent("one", f"{attempt}")
    verdict = losses.verdict(1)
    assert verdict
    return verdict


@pytest.mark.parametrize(
    ("kind", "text", "reasons"),
    [
        (
            "TransportError",
            "Task #1 was lost with a worker 4 times. Was it out of memory?",
            ["kill a process"] * 4,
        ),
        (
            "TransportError",
            f"Task #1 {turned_down()}",
            ["fill the shared directory"],
        ),
        ("TransportError", f"Task #1 {gone_silent()}", ["partition a worker"] * checker.LENIENT),
        ("OSError", "[Errno 28] No space left on device: '/x/oq_celery'", ["fill the shared directory"]),
        (
            "LostWrite",
            "Can't decrement id ref count (… No space left on device)",
            ["fill the shared directory"],
        ),
        ("KeyboardInterrupt", "", ["interrupt the master"]),
    ],
)
def test_an_error_is_true_only_with_the_faults_that_explain_it(
    kind: str, text: str, reasons: list[str]
) -> None:
    seen = failed(SIMPLE, kind, text)
    assert "ending: " in wrong(seen)
    assert "ending: " in wrong(seen, struck("cut a worker off"))
    assert "ending: " in wrong(seen, struck(*reasons, hit=False))
    assert wrong(seen, struck(*reasons)) == ""


def test_an_error_of_the_transports_own_code_is_not_taken_for_one_of_a_file() -> None:
    """A reply of a task that fails has the traceback of its worker, in which the names of its files are."""
    text = 'Task #1 failed on worker one/1:\n  File "…/oq_celery/attempt.py", line 1, in run\n'
    full = struck("fill the shared directory")
    assert "no fault explains it" in wrong(
        failed(SIMPLE, "TransportError", f"{text}KeyError: 'shared'"), full
    )
    assert "no fault explains it" in wrong(failed(SIMPLE, "ValueError", f"{text}ValueError: shared"), full)
    assert wrong(failed(SIMPLE, "TransportError", f"{text}OSError: [Errno 28] No space left"), full) == ""


def test_a_job_that_was_interrupted_before_it_began_says_nothing() -> None:
    seen = Seen([], fork_server.INTERRUPTED, 1.0)
    assert wrong(seen, struck("interrupt the master")) == ""
    assert wrong(seen, struck("cut a worker off")) == "ending: exit code 130 without an error"


def test_an_error_that_no_fault_can_explain_is_seen() -> None:
    everything = struck(*schedule.KINDS)
    assert "no fault explains it" in wrong(
        failed(SIMPLE, "AttributeError", "'str' has no decode"), everything
    )


def test_the_error_of_a_task_has_to_end_its_job() -> None:
    task = Task((0,), (5,), raises=True)
    job = Workload(1, "failing", (), ((task, Task((1,), (5,))),))
    assert "this had to fail: task 0:0 fails" in wrong(ideal(job), job=job)
    assert wrong(failed(job, "ValueError", f"\n...ValueError: {workload.fails(0, task)}"), job=job) == ""


def test_a_job_may_be_refused_for_want_of_a_dbserver_but_does_not_fail_by_its_end() -> None:
    refused = failed(SIMPLE, "SystemExit", "Please start the DbServer: see the documentation for details")
    assert wrong(refused, struck("kill the DbServer")) == ""
    assert "the DbServer was there" in wrong(refused, struck("kill the DbServer", hit=False))
    lost = failed(SIMPLE, "TimeoutError", "While sending ('log', 1, …) to tcp://127.0.0.1:1999")
    assert "no fault explains it" in wrong(lost, struck("kill the DbServer"))


def test_attempts_that_no_fault_explains_are_seen() -> None:
    seen = ideal(SIMPLE)
    again = seen.of("begin")[0] | {"attempt": "again", "t": 100.0}
    seen.events.append(again)
    seen.ended = 101.0
    assert wrong(seen) == "attempts: 4 at 3 tasks, where faults explain 3"
    assert wrong(seen, struck("slow a worker's network")) != ""
    assert wrong(seen, struck("kill a worker")) == ""
    assert wrong(seen, struck("copy task messages")) == ""


def test_results_that_waited_for_the_master_may_be_lost_with_their_queue() -> None:
    seen = ideal(SIMPLE)
    begin = seen.of("begin")[0]
    seen.events += [begin | {"attempt": f"again-{number}", "t": 100.0 + number} for number in range(12)]
    seen.ended = 200.0
    assert wrong(seen, struck("kill a worker")) == "attempts: 15 at 3 tasks, where faults explain 9"
    assert wrong(seen, struck("delete a result queue")) == ""
    (away,) = struck("cut the master off")
    assert wrong(seen, [away]) == "attempts: 15 at 3 tasks, where faults explain 9"
    assert wrong(seen, [replace(away, end=away.begin + 11)]) == ""  # for longer than its lease


def test_a_task_that_is_computed_twice_at_once_is_seen() -> None:
    seen = ideal(SIMPLE)
    begin, end = seen.of("begin")[0], seen.of("end")[0]
    again = begin | {"attempt": "again", "t": (begin["t"] + end["t"]) / 2}
    seen.events.insert(seen.events.index(end), again)
    (cut,) = struck("close all connections")
    cut = replace(cut, begin=begin["t"] + 0.6, end=begin["t"] + 0.6)
    faults = [cut]
    assert wrong(seen, faults) == "attempts: 0:0 was computed again 0.5 s after it had begun elsewhere"
    assert wrong(seen, [*faults, *struck("copy task messages")]) == ""
    assert wrong(seen, [replace(cut, begin=begin["t"] + 0.4)]) == ""  # its word may not have arrived
    assert wrong(seen, [replace(cut, begin=begin["t"] + 0.4, hit=False)]) != ""
    again["t"] = end["t"] + 1  # the first one was over: its end may have been lost
    assert wrong(seen, faults) == ""


def test_a_task_that_several_short_outages_together_hide_may_be_computed_twice() -> None:
    seen = ideal(SIMPLE)
    begin, end = seen.of("begin")[0], seen.of("end")[0]
    end["t"] = begin["t"] + 20
    seen.events.append(begin | {"attempt": "again", "t": begin["t"] + 10})
    seen.ended = begin["t"] + 30
    (cut,) = struck("cut a worker off")
    cuts = [replace(cut, begin=begin["t"] + at, end=begin["t"] + at + 2) for at in (3, 6)]
    assert "computed again 10.0 s after" in wrong(seen, cuts[:1])
    assert wrong(seen, cuts) == ""


def test_a_job_that_was_interrupted_after_it_was_done_was_done() -> None:
    seen = ideal(SIMPLE)
    seen.status = fork_server.INTERRUPTED
    assert wrong(seen) == "ending: done, but with exit code 130"
    assert wrong(seen, struck("interrupt the master")) == ""


def test_a_task_that_begins_after_the_end_of_its_job_is_seen() -> None:
    seen = ideal(SIMPLE)
    seen.events.append(dict(seen.of("begin")[0]) | {"t": seen.ended + 30})
    assert "attempts: 0:0 began 30 s after the end of the job" in checker.check_job(
        SIMPLE, seen, struck("kill a worker")
    )


def test_a_process_that_has_outlived_its_master_is_seen() -> None:
    command = ["sh", "-c", "sleep 600 & echo $!"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as master:
        assert master.stdout
        left = int(master.stdout.readline())
        try:
            master.wait()
            (found,) = runs._of_sessions({master.pid})
            assert found.startswith(f"{left} (")
        finally:
            os.kill(left, signal.SIGKILL)
    assert list(runs._of_sessions({master.pid + 1})) == []


def test_a_shared_directory_that_is_away_is_not_made_anew_by_who_misses_it(tmp_path: Path) -> None:
    """As the engine makes its data directory, with what leads there; so it could not come back."""
    world: Any = SimpleNamespace(shared=tmp_path / "shared", files_lock=threading.Lock())
    (kept := world.shared / "kept").mkdir(parents=True)
    fault = Fault("take the shared directory away", Trigger("begin", 1, 0.0), 0, 1.0, 1)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(injector.strike, injector.Scene(world, [], lambda _job: [], 0), fault)
        wait_until(lambda: not kept.exists(), "the directory to go")
        with pytest.raises(FileNotFoundError):
            os.makedirs(world.shared / "data/calculations")  # noqa: PTH103  as the engine does
        assert (taken.result().hit, taken.result().detail) == (True, "")
    assert kept.exists()


def test_whatever_is_left_is_seen() -> None:
    assert checker.check_left(Left()) == []
    left = Left(["oq.root.0.1"], ["oq.root.0.1 with []"], 3, ["17"], ["worker: 1 ended by itself"])
    assert len(checker.check_left(left)) == 5


@given(st.sets(st.integers(0, 30), min_size=1, max_size=4))
def test_shrinking_finds_the_items_that_matter(guilty: set[int]) -> None:
    found = schedule.shrink(range(31), lambda items: guilty <= set(items))
    assert set(found) == guilty


@given(SEEDS)
def test_on_the_lab_a_seed_always_means_the_same_run_and_changes_the_group_once(seed: int) -> None:
    case = matrix.draw(seed)
    assert case == matrix.draw(seed)
    assert sum(fault.kind.name in matrix.ALONE for fault in case.faults) <= 1


def test_on_the_lab_all_kinds_of_faults_and_jobs_come() -> None:
    cases = [matrix.draw(seed) for seed in range(200)]
    assert {fault.kind.name for case in cases for fault in case.faults} == {
        kind.name for kind in matrix.KINDS
    }
    assert {case.job.name for case in cases} == {job.name for job in matrix.JOBS}


def test_on_the_lab_a_last_worker_is_replaced_before_the_fault_that_waits_for_a_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab: Any = SimpleNamespace(staying=lambda: [SimpleNamespace(name="worker-1")])
    replaced = threading.Event()

    def strike(_lab: Any, _begin: float, _job: Any, fault: matrix.Fault, _tasks: int) -> Any:
        return fault if fault.kind.name != "restart RabbitMQ" or replaced.wait(5) else None

    monkeypatch.setattr(matrix, "_strike", strike)
    monkeypatch.setattr(matrix, "_lives", lambda _lab, _name: replaced.is_set())
    monkeypatch.setattr(matrix, "_left", lambda *_: [])
    monkeypatch.setattr(matrix, "compare", lambda *_: SimpleNamespace(absolute=0))
    monkeypatch.setattr(matrix, "run_job", lambda *_, **__: SimpleNamespace(seconds=float(replaced.wait(10))))
    monkeypatch.setattr(fleet, "scale", lambda _lab, _number: replaced.set())
    kinds = {kind.name: kind for kind in matrix.KINDS}
    faults = tuple(
        matrix.Fault(kinds[name], 0.0, 0.0) for name in ("scale in", "kill a worker", "restart RabbitMQ")
    )
    nothing: Any = None
    result = matrix.run_case(lab, matrix.Case(1, matrix.JOBS[0], faults), Path(), nothing, 9, set())
    assert (result.struck, result.trouble, result.seconds) == (faults, "", 1.0)


def test_the_page_has_the_figures_of_both_tiers_and_the_seeds_of_failures(tmp_path: Path) -> None:
    data = tmp_path / "faults.json"
    good = Entry(1, ("mixed", "mixed"), ("kill a worker", "kill a worker"), "equal")
    bad = Entry(
        2, ("tiny",), ("kill a worker", "restart RabbitMQ"), "wrong", ("ending: none, the job hangs",)
    )
    ledger.record(data, "transport", ledger.sum_up([good, bad], {"engine": "3.26.2"}, 120))
    ledger.record(data, "lab", ledger.sum_up([good], {}, 60))
    page = data.with_suffix(".md").read_text()
    assert "engine 3.26.2: 2 runs with 4 faults in 2 minutes; 1 with something wrong." in page
    assert "| fault | runs | equal bit for bit | wrong |" in page
    assert "| kill a worker | 2 | 1 | 1 |" in page
    assert "| mixed | 1 | 1 | 0 |" in page
    assert "- seed 2: ending: none, the job hangs" in page
    assert page.index("## Transport tier") < page.index("## Lab tier") < page.index("## What is not tried")


def test_the_page_in_the_documents_is_that_of_the_figures_beside_it() -> None:
    documents = REPOSITORY / "docs"
    assert (documents / "faults.md").read_text() == ledger.page(ledger.read(documents / "faults.json"))


def test_the_page_names_what_was_found_with_tests_that_are_there() -> None:
    page = ledger.page({})
    for seed, _, test in ledger.FOUND:
        assert f"| {seed} |" in page
        assert (REPOSITORY / ledger.TESTS / test).exists()
    for seed, what in ledger.KNOWN:
        assert f"- seed {seed}: {what}." in page


def test_what_is_known_is_of_seeds_that_went_wrong_in_the_newest_figures() -> None:
    tiers = ledger.read(REPOSITORY / "docs/faults.json").values()
    assert {seed for seed, _ in ledger.KNOWN} <= {seed for tier in tiers for seed, _ in tier.failures}


@pytest.mark.parametrize(
    ("answer", "queues"),
    [
        ('{ok, "celery 3 4 2;oq.one 0 0 1;"}', {"celery": (3, 4, 2), "oq.one": (0, 0, 1)}),
        ("{ok, []}", {}),
        # A queue whose process is down has no number.
        ("{ok, \"celery 3 4 2;oq.one '' '' '';\"}", {"celery": (3, 4, 2)}),
        ("{error, {badarg, [{erlang, element, [4, undefined], []}]}}", {}),
        ("", {}),
    ],
)
def test_queues_are_read_of_what_rabbitmq_answers_and_of_no_error(
    answer: str, queues: dict[str, tuple[int, int, int]]
) -> None:
    assert rabbitmq.queues_of(rabbitmq.value_of(answer)) == queues


def test_an_error_of_rabbitmqs_is_no_value() -> None:
    assert rabbitmq.value_of("{ok, ok}") == "ok"
    assert rabbitmq.value_of("{ok, {a, b}}\n") == "{a, b}"
    assert rabbitmq.value_of("{error, {undef, []}}") == ""
