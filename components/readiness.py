"""`pulumi up` ends when the cluster answers, not when AWS has started a machine."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pulumi
import pulumi_command as command

from components.component import Component

_PROJECT_DIRECTORY: Final = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class ReadinessArgs:
    """The master to wait for, as started from `user_data` on that type and with everything in `after`; `minutes` at
    most.
    """

    region: str
    instance_id: pulumi.Input[str]
    instance_type: str
    user_data: pulumi.Output[str]
    minutes: int
    after: Sequence[pulumi.Resource]


class Readiness(Component):
    """A command on the user's machine that waits for the master, again whenever it is another machine, or has
    another type and was stopped and started for it.

    It finds AWS as boto3 does, and in the profile `aws:profile` if the stack has one: by its own argument, since of
    AWS_PROFILE and keys in the environment botocore takes the keys, and the provider the profile. The interpreter is
    the one that runs this program, so an update from another checkout waits again, which takes a moment where all is
    well.
    """

    def __init__(self, name: str, args: ReadinessArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, opts)
        profile = pulumi.Config("aws").get("profile")
        waiting = command.local.Command(
            self.named("wait"),
            # The command line is the interpreter's list with `create`, the instance, at its end.
            interpreter=[
                sys.executable,
                "-m",
                "components.wait_until_ready",
                "--region",
                args.region,
                "--minutes",
                str(args.minutes),
                *(["--profile", profile] if profile else []),
            ],
            create=args.instance_id,
            dir=str(_PROJECT_DIRECTORY),
            triggers=[args.instance_id, args.user_data.apply(_fingerprint), args.instance_type],
            opts=self.child(depends_on=list(args.after)),
        )
        self.register_outputs({"said": waiting.stdout})


def _fingerprint(user_data: str) -> str:
    return hashlib.sha256(user_data.encode()).hexdigest()
