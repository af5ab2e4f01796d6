"""The WebUI's addresses where people log in: upstream's, and those about one's own password."""

from __future__ import annotations

from django.urls import path
from django.views.generic import TemplateView
from openquake.server.urls import urlpatterns as upstream

from oq_webui.password import OwnPassword

urlpatterns = [
    path("accounts/password/", OwnPassword.as_view(), name="own_password"),
    # Upstream's page says that it has sent a mail, which nothing here does.
    path("reset_password/", TemplateView.as_view(template_name="oq_webui/forgotten.html")),
    *upstream,
]
