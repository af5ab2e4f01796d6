"""The page, and the API, by which people change their own password."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.forms import PasswordChangeForm
from django.contrib.auth.views import PasswordChangeView
from django.core.exceptions import ValidationError
from django.http import JsonResponse

from oq_webui.accounts import ADMINISTRATOR


class OwnPasswordForm(PasswordChangeForm):  # type: ignore[misc]  # Django has no types
    """The present password, and twice the new one, which Django's validators judge."""

    def clean(self) -> dict[str, Any]:
        """Refuse what the next start of the WebUI would undo."""
        if self.user.username == ADMINISTRATOR:
            raise ValidationError(
                f"The password of {ADMINISTRATOR} is the one in the cluster's secret. Make an account of your own: "
                "sudo oq-webui add NAME --admin"
            )
        found: dict[str, Any] = super().clean()
        return found


class OwnPassword(PasswordChangeView):  # type: ignore[misc]
    """Change the password of who has logged in. Other sessions of theirs end; this one goes on under a new key.

    Django's view wants the present password and a token against requests forged by other sites. A program that asks
    for `Accept: application/json` gets `{"changed": true}`, or with status 400 `{"errors": [...]}`.
    """

    form_class = OwnPasswordForm
    template_name = "oq_webui/password.html"
    success_url = "."  # not gone to: the page itself says that it is done

    def form_valid(self, form: Any) -> Any:
        """Save it, and say so."""
        super().form_valid(form)
        if self._for_a_program():
            return JsonResponse({"changed": True})
        return self.render_to_response({"changed": True})

    def form_invalid(self, form: Any) -> Any:
        """Say what is wrong with it."""
        if self._for_a_program():
            errors = [str(error) for errors in form.errors.values() for error in errors]
            return JsonResponse({"errors": errors}, status=400)
        return super().form_invalid(form)

    def _for_a_program(self) -> bool:
        return bool(self.request.headers.get("Accept") == "application/json")
