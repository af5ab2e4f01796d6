"""Taking a lab down: finds all that carries its name, whatever became of the lab that made it."""

from __future__ import annotations

import shutil

from lab.linux import volumes
from lab.linux.host import Paths, kill, mounts_below, namespaces, processes, remove_control_groups, run


def exists(paths: Paths) -> bool:
    """Whether anything of a lab of this name is there."""
    return paths.state.exists() or bool(namespaces(paths)) or bool(processes(paths))


def stop(paths: Paths) -> None:
    """End every process, control group, namespace, mount and loop device of the lab; its files stay."""
    while pids := processes(paths):  # again for what a process started while the others were dying
        kill(pids)
    remove_control_groups(f"{paths.name}-")
    for namespace in namespaces(paths):
        run(["ip", "netns", "delete", namespace])
    for mount in mounts_below(paths.state):
        run(["umount", mount])
    volumes.detach_all(paths)


def remove(paths: Paths) -> None:
    """Stop the lab and remove its files; nothing happens when there is none."""
    stop(paths)
    if paths.state.exists():
        shutil.rmtree(paths.state)
