"""Taking a lab down: finds all that carries its name, whatever became of the lab that made it."""

from __future__ import annotations

import shutil

from lab import volumes
from lab.host import Paths, kill, mounts_below, namespaces, processes, run


def exists(paths: Paths) -> bool:
    """Whether anything of a lab of this name is there."""
    return paths.state.exists() or bool(namespaces(paths)) or bool(processes(paths))


def remove(paths: Paths) -> None:
    """Remove every process, namespace, mount, loop device and file of the lab; nothing when there is none."""
    kill(processes(paths))
    kill(processes(paths))  # what a process started while the first were dying
    for namespace in namespaces(paths):
        run(["ip", "netns", "delete", namespace])
    for mount in mounts_below(paths.state):
        run(["umount", mount])
    volumes.detach_all(paths)
    if paths.state.exists():
        shutil.rmtree(paths.state)
