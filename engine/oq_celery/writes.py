"""A calculation whose results could not be written has failed, also where Python cannot raise the error.

h5py writes what HDF5 still holds of a dataset when the last reference to it goes. What fails in that moment (the disk
is full, say) Python prints as "Exception ignored in" and forgets. The lost part of the dataset reads as zeros: a
calculation that went on would end as complete, with wrong numbers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Any, Final, NoReturn

H5PY: Final = "h5py."
"""What the names of the destructors of h5py begin with."""


def extend(logs: Any) -> None:
    """Change `openquake.commonlib.logs`: a calculation that has lost a write ends at once, as failed."""
    upstream_enter, upstream_exit = logs.LogContext.__enter__, logs.LogContext.__exit__
    upstream_hook = sys.unraisablehook
    running: list[Any] = []  # contexts; a risk calculation may run its hazard calculation

    def enter(self: Any) -> Any:
        running.append(self)
        return upstream_enter(self)

    def leave(self: Any, *exc_info: Any) -> None:
        try:
            upstream_exit(self, *exc_info)
        finally:
            running.remove(self)

    def hook(unraisable: Any) -> None:
        upstream_hook(unraisable)
        if running and is_lost_write(unraisable):
            end(logs.dbcmd, running, " ".join(str(unraisable.exc_value).split()))

    logs.LogContext.__enter__, logs.LogContext.__exit__ = enter, leave
    sys.unraisablehook = hook


def is_lost_write(unraisable: Any) -> bool:
    """Whether an error that Python ignores, an argument of `sys.unraisablehook`, is one of h5py's destructors.

    These give back what HDF5 has open, which fails only if something cannot be written.
    """
    return isinstance(unraisable.object, str) and unraisable.object.startswith(H5PY)


def end(dbcmd: Any, running: list[Any], error: str) -> NoReturn:
    """End this process and its calculations, the inner one last.

    Nothing is raised, since it must not call HDF5 again, which crashes after such an error.
    """
    from oq_celery import inputs
    from oq_celery.channel import Channel
    from oq_celery.runs import end_others

    line = (
        f"Results could not be written, so the calculation has failed: {error}. "
        "Make room on the disk with the results, then compute it again"
    )
    *outer, context = running
    for step in (
        lambda: logging.error("%s", line),
        lambda: dbcmd("finish", context.calc_id, "failed"),
        lambda: end_others(dbcmd, outer, "failed", line),
        Channel.close_all,
        inputs.remove_all,
    ):
        # It ends in any case, also when Ctrl-C comes now; `reap` finds a calculation whose process is gone.
        with contextlib.suppress(BaseException):
            step()
    os._exit(1)
