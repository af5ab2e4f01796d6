"""What upstream leaves open between people who have logged in.

Upstream lists each one's calculations and guards their results, but hands out anybody's log and traceback, lets
anybody share or tag anybody's calculation, and remove everybody's tags, and takes the owner of a new one from the
request. An administrator may abort everybody's, but remove only those of the administrator's own name.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

from django.http import HttpResponseForbidden
from openquake.commonlib import logs
from openquake.server import utils

# What is done to a calculation, in upstream's addresses; everything else only looks at it.
_CHANGES = ("abort", "remove", "share", "unshare", "add_tag", "remove_tag", "set_preferred_job_for_tag")
# Tags are everybody's.
_TAGS = re.compile(r"/v1/calc/(delete_tag|unset_preferred_job_for_tag)\b")
_CALCULATION = re.compile(r"/(?:v1/calc|engine)/(\d+)(?:/(\w+))?")


class OwnersOnly:
    """Django middleware: a calculation is seen by those upstream lists it for, and changed by its owner.

    As upstream has it, members of a group of Django's count as owners of each other's, what is shared is seen by all,
    and a superuser may do everything.
    """

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        """Answer one request."""
        if request.user.is_authenticated and not request.user.is_superuser:
            # Upstream lets in whom it shows all pages, which is everybody here.
            if request.path_info.startswith("/tagadmin"):
                return HttpResponseForbidden("Tags are the administrators'.", content_type="text/plain")
            if not _may(request):
                return HttpResponseForbidden("This calculation is another user's.", content_type="text/plain")
        if request.user.is_superuser:
            _remove_in_owners_name(request)
        return self.get_response(request)


def _remove_in_owners_name(request: Any) -> None:
    """Let upstream's view, which deletes what belongs to the name of who asks, find the owner's name there."""
    found = _CALCULATION.match(request.path_info)
    if found and found[2] == "remove" and (job := logs.dbcmd("get_job", int(found[1]))) is not None:
        request.user = copy.copy(request.user)  # for this request alone: nothing saves it
        request.user.username = job.user_name


def _may(request: Any) -> bool:
    if found := _CALCULATION.match(request.path_info):
        number, action = found.groups()
        return _sees(request, number, changes=action in _CHANGES)
    if _TAGS.match(request.path_info):
        return False
    if request.method == "POST":  # there are several ways to start one
        owner, parent = request.POST.get("job_owner"), request.POST.get("hazard_job_id")
        return owner in (None, "", request.user.username) and (not parent or _sees(request, parent))
    return True


def _sees(request: Any, number: str, changes: bool = False) -> bool:
    """Whether a user may see a calculation, or change it; upstream answers for one that there is not."""
    if not re.fullmatch("[0-9]+", number):  # what int() takes besides is no number to upstream's pages
        return False
    job = logs.dbcmd("get_job", int(number))
    if job is None:
        return True
    if changes:
        return job.user_name in utils.get_valid_users(request)
    return bool(utils.user_has_permission(request, job.user_name, job.status))
