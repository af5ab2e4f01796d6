"""What can go wrong in ways that the user can do something about. `cli.main` prints these; nothing else does."""

from __future__ import annotations


class ClientError(Exception):
    """A message for the user, with the remedy. `status` is the command's exit status."""

    status = 1


class UsageError(ClientError):
    """The command line, a setting or a job file is wrong; nothing has been sent."""

    status = 2


class LostConnection(ClientError):
    """The WebUI does not answer (any more). What it was asked may have been done."""


class Unreachable(ClientError):
    """Nothing runs commands or takes sessions on the master: it is off, booting, busy or gone."""


class Offline(Unreachable):
    """There is no way to AWS, so that nothing is known of the master."""


class Missing(ClientError):
    """There is no such thing, or it is not this user's to see."""


class Asleep(ClientError):
    """The master is stopped, and can be started."""


class NotLoggedIn(ClientError):
    """The WebUI wants a login, or the session has ended."""
