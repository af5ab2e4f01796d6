"""How the program asks AWS: where AWS does not answer, the user is told what was asked and what to look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pulumi

Answer = TypeVar("Answer")


class Unanswered(pulumi.RunError):
    """AWS has not answered; `why` is AWS's reason. Pulumi shows the text without a traceback."""

    def __init__(self, what: str, why: str) -> None:
        self.why = why
        super().__init__(
            f"AWS could not be asked for {what}: {why}. Check the credentials and their permissions "
            "(aws sts get-caller-identity)"
        )


def asked(what: str, call: Callable[..., Answer], **arguments: Any) -> Answer:
    """What AWS answers to a call of the provider (`aws.ec2.get_vpc`) for `what`, in the user's words.

    Raises:
        Unanswered: AWS refuses, or cannot be asked: credentials that have expired, rights that are missing.
    """
    try:
        return call(**arguments)
    except Exception as error:  # a failed invoke raises no narrower type
        raise Unanswered(what, str(error)) from None
