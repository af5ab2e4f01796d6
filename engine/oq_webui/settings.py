"""Upstream's Django settings, and what is otherwise on a server.

Upstream reads OQ_APPLICATION_MODE: RESTRICTED is the WebUI with login, PUBLIC that without.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

from openquake.baselib import config
from openquake.server import settings as upstream
from openquake.server.settings import *  # noqa: F403 - Django takes each name in capitals

from oq_webui.certificate import names_of
from oq_webui.handed import handed

CLUSTER = "OQ_WEBUI_CLUSTER"
"""What no other cluster has: the ARN of its secret."""
HOSTS = "OQ_WEBUI_HOSTS"
"""By which names and addresses people reach the server besides its own, separated by spaces."""
CERTIFICATE = "OQ_WEBUI_CERTIFICATE"
"""Names the file of the certificate by which nginx speaks HTTPS; empty where it speaks plain HTTP."""
UPLOADS = "OQ_WEBUI_UPLOADS"
"""A directory of the server's own for what is being uploaded."""
DATABASE = Path(config.dbserver.file).expanduser().with_name("webui.sqlite3")
"""Accounts and sessions. Not in the engine's database, which every member of the group can read and which is locked
while the DbServer writes a job's log."""


DEBUG = False
SECRET_KEY = handed("secret_key") or secrets.token_hex(32)
# A rotation of the secret ends nobody's session; the next one ends those that are older than both.
SECRET_KEY_FALLBACKS = [key for key in [handed("previous_secret_key")] if key]
# A page elsewhere whose name is made to point here (DNS rebinding) must not get through people's browsers to the API.
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]", socket.gethostname(), socket.getfqdn()]
ALLOWED_HOSTS += os.environ.get(HOSTS, "").split()
if file := os.environ.get(CERTIFICATE):
    ALLOWED_HOSTS += names_of(Path(file))
    # nginx says with each request that it came by HTTPS, and gunicorn believes it: so do Django's checks of forms.
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True

DATABASES: dict[str, dict[str, Any]] = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(DATABASE), "OPTIONS": {"timeout": 20}},
    "engine": {**upstream.DATABASES["default"], "OPTIONS": {"timeout": 20}},
}
DATABASE_ROUTERS = ["oq_webui.router.EngineRouter"]

# An upload lies beside the calculations until it is unpacked there, and an export until it is sent
# (`oq_celery.commands.extend_views`): gigabytes of them would fill the disk of the databases.
FILE_UPLOAD_TEMP_DIR = os.environ.get(UPLOADS) or upstream.FILE_UPLOAD_TEMP_DIR

# A job may have more files than Django's 100. Where one logs in, nginx takes 64 kB.
DATA_UPLOAD_MAX_NUMBER_FILES = 2000

# Where the engine's build collects them, and nginx serves them.
STATIC_ROOT = str(Path(sys.prefix, "static"))

# Nothing here sends mail: who has forgotten a password gets a new one from an administrator.
EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"
# The cluster's version is the one that it was made with; upstream's server may be out of reach, too.
DISABLE_VERSION_WARNING = True
SUPPRESS_PERMISSION_DENIED_WARNINGS = True

INSTALLED_APPS = ("oq_webui", *upstream.INSTALLED_APPS)  # first, so that its templates are
MIDDLEWARE = ("oq_webui.origins.OwnPages", "oq_webui.activity.Activity", *upstream.MIDDLEWARE)
if upstream.LOCKDOWN:
    ROOT_URLCONF = "oq_webui.urls"
    MIDDLEWARE = (*MIDDLEWARE, "oq_webui.owners.OwnersOnly")
    # Of several clusters, whose port forwards are all at 127.0.0.1, a browser sends each the sessions of all.
    SESSION_COOKIE_NAME = f"sessionid_{hashlib.sha256(os.environ.get(CLUSTER, '').encode()).hexdigest()[:12]}"
    SESSION_COOKIE_HTTPONLY = True
    SESSION_COOKIE_SAMESITE = "Lax"
