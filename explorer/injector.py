"""How each kind of fault is done to a world."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from explorer.checker import Struck
from explorer.schedule import Fault
from explorer.world import BrokerClient, World
from tests.transport.forks import Child
from tests.transport.processes import wait_until
from tests.transport.rabbitmq import ANSWER_SECONDS

END_SECONDS: Final = 60.0  # for a worker that was asked to end: longer than any task
WAIT_SECONDS: Final = 20.0  # that a fault waits at most for its byte or its message
QUEUE_SECONDS: Final = 0.05  # between two looks at the queue
AT_FDCWD, RENAME_EXCHANGE = -100, 1 << 1  # fcntl.h, linux/fs.h


@dataclass
class Scene:
    """What a fault may need to know.

    Attributes:
        world: to break.
        masters: of the run's jobs.
        channels: the channels that a job has opened so far, by its number.
        pid: the process of the event that has set the fault off; 0 if it is not a worker's.
    """

    world: World
    masters: list[Child]
    channels: Callable[[int], list[str]]
    pid: int

    def __post_init__(self) -> None:
        self._until = time.monotonic() + WAIT_SECONDS

    def runs(self) -> bool:
        """Whether a job of the run still runs, and not for too long since the fault."""
        return time.monotonic() < self._until and any(master.running() for master in self.masters)

    def worker(self, fault: Fault) -> int:
        """The worker that is struck: one by number, or in half of the cases that of the event."""
        found = self.world.worker_of(self.pid) if fault.target >= 3 else None
        return fault.target % len(self.world.workers) if found is None else found

    def master(self, fault: Fault) -> int:
        """The job that is struck."""
        return fault.target % len(self.masters)


def strike(scene: Scene, fault: Fault) -> Struck:
    """Do it, and put right what it broke; returns when it is over."""
    begin = time.monotonic()
    try:
        hit = _STRIKES[fault.kind](scene, fault)
        detail = ""
    except Exception as error:  # what has been broken until then stays so, and excuses what comes of it
        hit, detail = True, f"{type(error).__name__}: {error}"
    return Struck(fault, begin, time.monotonic(), hit, detail)


def _kill_process(scene: Scene, fault: Fault) -> bool:
    pid = scene.pid
    if not (fault.target >= 3 and scene.world.worker_of(pid) is not None):
        children = scene.world.workers[fault.target % len(scene.world.workers)].children()
        if not children:
            return False
        pid = children[fault.number % len(children)]
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def _kill_worker(scene: Scene, fault: Fault) -> bool:
    return _end_worker(scene, fault, signal.SIGKILL)


def _end_worker(scene: Scene, fault: Fault, number: int = signal.SIGTERM) -> bool:
    place = scene.worker(fault)
    worker = scene.world.workers[place]
    if place in scene.world.ended or not worker.running():
        return False
    scene.world.ended.add(place)
    worker.signal(number)
    if not worker.over.wait(END_SECONDS):
        worker.signal_all(signal.SIGKILL)
        worker.over.wait(10)
        raise OSError(f"worker {place} did not end in {END_SECONDS:.0f} s")
    time.sleep(fault.seconds)
    scene.world.restart_worker(place)
    return True


def _stop_worker(scene: Scene, fault: Fault) -> bool:
    worker = scene.world.workers[scene.worker(fault)]
    return _stopped(worker, fault.seconds, worker.signal_all)


def _stop_process(scene: Scene, fault: Fault) -> bool:
    children = scene.world.workers[scene.worker(fault)].children()
    if not children:
        return False
    pid = children[fault.number % len(children)]
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(fault.seconds)
        os.kill(pid, signal.SIGCONT)
    return True


def _stop_master(scene: Scene, fault: Fault) -> bool:
    master = scene.masters[scene.master(fault)]
    return _stopped(master, fault.seconds, master.signal)


def _stopped(child: Child, seconds: float, send: Callable[[int], None]) -> bool:
    if not child.running():
        return False
    send(signal.SIGSTOP)
    time.sleep(seconds)
    send(signal.SIGCONT)
    return True


def _signal_master(number: int) -> Callable[[Scene, Fault], bool]:
    def strike_master(scene: Scene, fault: Fault) -> bool:
        master = scene.masters[scene.master(fault)]
        running = master.running()
        master.signal(number)
        return running

    return strike_master


def _end_broker(number: int) -> Callable[[Scene, Fault], bool]:
    def strike_broker(scene: Scene, fault: Fault) -> bool:
        with scene.world.broker_lock:
            scene.world.end_broker(number)
            time.sleep(fault.seconds)
            scene.world.broker.start()
        return True

    return strike_broker


def _close_connections(scene: Scene, _: Fault) -> bool:
    # One after another, whatever has ended meanwhile: RabbitMQ's own way stops at the first that it does not find.
    close = '[catch rabbit_networking:close_connection(P, "explorer") || P <- rabbit_networking:connections()], ok'
    return bool(scene.world.broker.erlang(close))


def _alarm(scene: Scene, fault: Fault) -> bool:
    """RabbitMQ's alarm of memory or of disk: it reads no more from those who publish."""
    with scene.world.broker_lock:
        if fault.number % 2:
            on = "vm_memory_monitor:set_vm_memory_high_watermark(0.0000001)"
            off = "vm_memory_monitor:set_vm_memory_high_watermark(0.4)"
        else:
            on = "rabbit_disk_monitor:set_disk_free_limit(1000000000000000)"
            off = "rabbit_disk_monitor:set_disk_free_limit(50000000)"
        done = scene.world.broker.erlang(on)
        time.sleep(fault.seconds)
        wait_until(lambda: scene.world.broker.erlang(off), "the alarm to end", ANSWER_SECONDS)
    return bool(done)


def _cut_worker(scene: Scene, fault: Fault) -> bool:
    return scene.world.worker_proxies[scene.worker(fault)].cut(fault.seconds) > 0


def _cut_master(scene: Scene, fault: Fault) -> bool:
    return scene.world.master_proxies[scene.master(fault)].cut(fault.seconds) > 0


def _cut_worker_message(scene: Scene, fault: Fault) -> bool:
    return scene.world.worker_proxies[scene.worker(fault)].cut_after(fault.number, scene.runs)


def _cut_master_message(scene: Scene, fault: Fault) -> bool:
    return scene.world.master_proxies[scene.master(fault)].cut_after(fault.number, scene.runs)


def _partition_worker(scene: Scene, fault: Fault) -> bool:
    scene.world.worker_proxies[scene.worker(fault)].stall(fault.seconds)
    return True


def _partition_master(scene: Scene, fault: Fault) -> bool:
    scene.world.master_proxies[scene.master(fault)].stall(fault.seconds)
    return True


def _slow_worker(scene: Scene, fault: Fault) -> bool:
    scene.world.worker_proxies[scene.worker(fault)].slow(0.1, fault.seconds)
    return True


def _slow_master(scene: Scene, fault: Fault) -> bool:
    scene.world.master_proxies[scene.master(fault)].slow(0.1, fault.seconds)
    return True


def _files_away(scene: Scene, fault: Fault) -> bool:
    """Nothing is found in it, and nobody can make it anew, as nobody can on a node below the mount point of root's."""
    with scene.world.files_lock:
        shared = scene.world.shared
        away = shared.with_name("away")
        away.symlink_to("nowhere")
        _exchange(shared, away)
        time.sleep(fault.seconds)
        _exchange(shared, away)
        away.unlink()
    return True


def _exchange(one: Path, other: Path) -> None:
    """Let two names change places, with no moment in which there is but one of them."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one))


def _cover_files(scene: Scene, fault: Fault) -> bool:
    """An empty directory that cannot be written to, as a node has whose mount has failed."""
    place = scene.worker(fault)
    with scene.world.files_lock:
        shared = scene.world.shared
        if not scene.world.in_namespace(place, "mount", "-t", "tmpfs", "-o", "ro", "none", shared):
            return False
        time.sleep(fault.seconds)
        scene.world.in_namespace(place, "umount", "--lazy", shared)
    return True


def _fill_files(scene: Scene, fault: Fault) -> bool:
    with scene.world.files_lock:
        ballast = scene.world.mount / "ballast"
        try:
            with ballast.open("wb") as file:
                free = os.statvfs(scene.world.mount)
                try:
                    os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    # Others have written meanwhile: it is full as well.
            time.sleep(fault.seconds)
        finally:
            ballast.unlink()
    return True


def _broker_client(scene: Scene) -> BrokerClient:
    assert scene.world.broker_client is not None
    return scene.world.broker_client


def _end_database(number: int) -> Callable[[Scene, Fault], bool]:
    def strike_database(scene: Scene, fault: Fault) -> bool:
        with scene.world.database_lock:
            hit = scene.world.end_database(number)
            time.sleep(fault.seconds)
            scene.world.start_database()
        return hit

    return strike_database


def _tasks(action: str) -> Callable[[Scene, Fault], bool]:
    """Do something to messages in the task queue, as soon as some wait there."""

    def strike_tasks(scene: Scene, fault: Fault) -> bool:
        while scene.runs():
            if _broker_client(scene).do(action, scene.world.queue, fault.number):
                return True
            time.sleep(QUEUE_SECONDS)
        return False

    return strike_tasks


def _delete_tasks(scene: Scene, _: Fault) -> bool:
    return _broker_client(scene).do("delete", scene.world.queue) is not None


def _delete_results(scene: Scene, fault: Fault) -> bool:
    channels = scene.channels(scene.master(fault))
    return bool(channels) and _broker_client(scene).do("delete", channels[-1]) is not None


def _purge_results(scene: Scene, fault: Fault) -> bool:
    """Lose messages to a master, which is stopped until some wait: otherwise it has them at once."""
    channels = scene.channels(scene.master(fault))
    master = scene.masters[scene.master(fault)]
    if not channels or not master.running():
        return False
    master.signal(signal.SIGSTOP)
    time.sleep(fault.seconds)
    try:
        lost = _broker_client(scene).do("purge", channels[-1])
    finally:
        master.signal(signal.SIGCONT)
    return bool(lost != 0)  # None: the answer was lost, and maybe the messages


_STRIKES: Final[dict[str, Callable[[Scene, Fault], bool]]] = {
    "kill a process": _kill_process,
    "kill a worker": _kill_worker,
    "end a worker": _end_worker,
    "stop a worker": _stop_worker,
    "stop a process": _stop_process,
    "kill the master": _signal_master(signal.SIGKILL),
    "interrupt the master": _signal_master(signal.SIGINT),
    "stop the master": _stop_master,
    "restart RabbitMQ": _end_broker(signal.SIGTERM),
    "kill RabbitMQ": _end_broker(signal.SIGKILL),
    "close all connections": _close_connections,
    "stop RabbitMQ's intake": _alarm,
    "cut a worker off": _cut_worker,
    "cut a worker's message": _cut_worker_message,
    "cut the master off": _cut_master,
    "cut the master's message": _cut_master_message,
    "partition a worker": _partition_worker,
    "partition the master": _partition_master,
    "slow a worker's network": _slow_worker,
    "slow the master's network": _slow_master,
    "take the shared directory away": _files_away,
    "cover a worker's shared directory": _cover_files,
    "fill the shared directory": _fill_files,
    "delete the task queue": _delete_tasks,
    "purge the task queue": _tasks("purge"),
    "lose task messages": _tasks("steal"),
    "copy task messages": _tasks("copy"),
    "delete a result queue": _delete_results,
    "lose results": _purge_results,
    "restart the DbServer": _end_database(signal.SIGINT),
    "kill the DbServer": _end_database(signal.SIGKILL),
}
