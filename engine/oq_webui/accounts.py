"""People's accounts of the WebUI. Django has to be set up when this is imported."""

from __future__ import annotations

import re
import secrets
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management import call_command

from oq_webui.settings import DATABASE

ADMINISTRATOR = "admin"
_NAME = re.compile(r"[a-z_][a-z0-9_.-]{0,31}")
_PASSWORD_BYTES = 12
_ALL_OF_THE_PAGES = 2  # upstream's level that hides nothing


class AccountError(Exception):
    """What is asked for cannot be; the message says why, and what to do."""


def prepare() -> None:
    """Make the tables, or bring them up to this version; forget the sessions that have ended."""
    DATABASE.touch(mode=0o600)
    call_command("migrate", verbosity=0, interactive=False)
    call_command("clearsessions")


def ensure_administrator(password: str) -> None:
    """See to it that the administrator is there with this password, whatever volumes this cluster has taken over."""
    users = get_user_model().objects
    user = users.filter(username=ADMINISTRATOR).first() or users.create_user(ADMINISTRATOR)
    if not (user.is_active and user.is_superuser and user.check_password(password)):
        user.is_active = user.is_staff = user.is_superuser = True
        user.set_password(password)
        user.save()
        _show_everything(user)


def add(name: str, *, administrator: bool = False) -> str:
    """Make an account; its password."""
    if not _NAME.fullmatch(name):
        raise AccountError(f"{name}: write a name as of Linux users, up to 32 of a-z, 0-9, _ . and -")
    _not_the_clusters(name)
    users = get_user_model().objects
    if users.filter(username=name).exists():
        raise AccountError(f"{name} has an account; `password {name}` gives it a new password")
    password = _new_password()
    user = users.create_user(name, password=password, is_staff=administrator, is_superuser=administrator)
    _show_everything(user)
    return password


def renew_password(name: str) -> str:
    """Give an account a new password, which ends its sessions."""
    user = _existing(name)
    password = _new_password()
    user.set_password(password)
    user.save()
    return password


def remove(name: str) -> None:
    """Take an account away. Its calculations stay, and are its again should the name get another account."""
    _existing(name).delete()


def listed() -> list[str]:
    """A line for each account."""
    return [
        user.username + (" (administrator)" if user.is_superuser else "")
        for user in get_user_model().objects.order_by("username")
    ]


def _existing(name: str) -> Any:
    _not_the_clusters(name)
    user = get_user_model().objects.filter(username=name).first()
    if user is None:
        raise AccountError(f"{name} has no account; `list` shows those that there are")
    return user


def _not_the_clusters(name: str) -> None:
    if name == ADMINISTRATOR:
        raise AccountError(
            f"{name} is the cluster's own: its password is the one in the cluster's secret, which the output "
            "webUiPasswordCommand shows; `oq-cluster rotate`, or `sudo oq-node rotate`, gives it a new one"
        )


def _new_password() -> str:
    return secrets.token_urlsafe(_PASSWORD_BYTES)


def _show_everything(user: Any) -> None:
    user.profile.level = _ALL_OF_THE_PAGES
    user.profile.save()
