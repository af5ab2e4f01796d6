"""The tasks of the explorer's jobs; in the engine's environment, on masters and workers."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from explorer.workload import Task, digest, fails, label, result


def note(history: str, **fields: Any) -> None:
    """Append one event to a job's history: one write, so that those of several processes do not mix."""
    line = json.dumps({"t": time.monotonic(), "pid": os.getpid(), **fields})
    file = os.open(history, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, line.encode() + b"\n")
    finally:
        os.close(file)


def note_error(history: str, error: BaseException) -> None:
    """Append the error that has ended a job, with the text of those in whose handling it came."""
    texts, before = [str(error)], error.__context__
    while before is not None:
        texts.append(str(before))
        before = before.__context__
    note(history, event="error", type=type(error).__name__, text="; after: ".join(texts)[-6000:])


def whole(call: dict[str, Any], own: bytes, shared: bytes, monitor: Any) -> dict[str, Any]:
    """A task that returns its one result."""
    del monitor
    attempt = _Attempt(call, own, shared)
    attempt.pause()
    (size,) = attempt.task.sizes
    found = attempt.result(0, size)
    attempt.end()
    return found


def stream(call: dict[str, Any], own: bytes, shared: bytes, monitor: Any) -> Iterator[Any]:
    """A task that yields results and asks for subtasks."""
    del monitor
    attempt = _Attempt(call, own, shared)
    index = 0
    for step in attempt.task.steps:
        attempt.pause()
        if isinstance(step, Task):
            yield call_of(call, step)
        else:
            yield attempt.result(index, step)
            index += 1
    if not attempt.task.steps:
        attempt.pause()
    attempt.end()


def call_of(call: dict[str, Any], task: Task) -> tuple[Any, ...]:
    """What the engine wants for a subtask: its function and its arguments."""
    from explorer.workload import own_argument, payload

    own = own_argument(call["seed"], call["number"], task)
    shared = b""
    if task.shared is not None:
        shared = payload(call["seed"], f"shared {task.shared}", call["sizes"][task.shared])
    return (whole if task.plain else stream), call | {"task": task}, own, shared


class _Attempt:
    """One execution of a task, which the history knows from its beginning to its end."""

    def __init__(self, call: dict[str, Any], own: bytes, shared: bytes) -> None:
        self.task: Task = call["task"]
        self._seed, self._number, self._history = call["seed"], call["number"], call["history"]
        self._arguments = digest(own, shared)
        self._label = label(self._number, self.task.path)
        self._name = uuid.uuid4().hex[:12]
        self._steps = max(1, len(self.task.steps))
        note(self._history, event="begin", task=self._label, attempt=self._name)

    def pause(self) -> None:
        """Take the time of one step."""
        time.sleep(self.task.seconds / self._steps)

    def result(self, index: int, size: int) -> dict[str, Any]:
        """One result, which says of which arguments it is."""
        data = result(self._seed, self._number, self.task, index, size)
        return {"of": (self._number, self.task.path, index), "arguments": self._arguments, "data": data}

    def end(self) -> None:
        """Come to the end, or die or fail as the task has to."""
        self._die()
        note(self._history, event="end", task=self._label, attempt=self._name)
        if self.task.raises:
            raise ValueError(fails(self._number, self.task))

    def _die(self) -> None:
        for number in range(self.task.deaths):
            mark = Path(self._history).with_name(f"death-{self._label}-{number}")
            try:
                mark.touch(exist_ok=False)
            except FileExistsError:
                continue
            note(self._history, event="dies", task=self._label, attempt=self._name)
            if self.task.death == "exit":
                sys.exit()
            if self.task.death == "exit with words":
                sys.exit("no use for this task")
            os.kill(os.getpid(), signal.SIGKILL)
