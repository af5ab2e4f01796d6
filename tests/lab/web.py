"""The WebUI and its API as somebody's computer reaches them: from a client's address of the lab, by HTTP or HTTPS."""

from __future__ import annotations

import io
import json
import secrets
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from components import facts
from lab.cluster.cluster import Lab
from lab.linux.network import enter
from tests.lab.support import on

UNFINISHED = ("created", "submitted", "executing")
ADMINISTRATOR = "admin"


def administrators_password(lab: Lab) -> str:
    """What the output webUiPasswordCommand shows, as the master has it."""
    return str(json.loads(on(lab, "master", f"cat {facts.WEBUI_SECRETS}"))["admin_password"])


def account(lab: Lab, *words: str) -> str:
    """The password that `oq-webui add` or `oq-webui password` prints."""
    name, _, password = on(lab, "master", f"oq-webui {' '.join(words)}").strip().partition(": ")
    assert name in words
    return password


class Client:
    """A computer of a client's network, with the session of its own that a browser or the QGIS plugin has."""

    def __init__(self, lab: Lab, user: str = "", password: str = "", trusted: str = "") -> None:
        """With `trusted`, certificates as PEM, it speaks HTTPS, and to nobody whom those do not vouch for."""
        self.url = f"{'https' if trusted else 'http'}://{lab.master().address}:{facts.WEBUI_PORT}"
        self.session = requests.Session()
        if trusted:
            file = lab.paths.state / f"trusted-{secrets.token_hex(4)}.pem"
            file.write_text(trusted)
            self.session.verify = str(file)
            self.session.trust_env = False  # this machine's REQUESTS_CA_BUNDLE would come before it
        # A thread of its own is in the client's namespace, and the test is not.
        namespace = Path("/run/netns", lab.paths.netns("client"))
        self._thread = ThreadPoolExecutor(1, initializer=enter, initargs=(namespace,))
        if user:
            assert self.login(user, password).status_code == 200

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """The answer to one request; a redirection is one."""
        options = {"timeout": 60, "allow_redirects": False} | options
        return self._thread.submit(self.session.request, method, self.url + path, **options).result()

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.ask("GET", path, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        return self.ask("POST", path, **options)

    def login(self, user: str, password: str) -> requests.Response:
        """As the QGIS plugin does it."""
        return self.post("/accounts/ajax_login/", data={"username": user, "password": password})

    def run(self, job: Path, **fields: str) -> requests.Response:
        """Upload a job with all files of its directory, as a zip, and start it."""
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as packed:
            for file in job.parent.iterdir():
                packed.write(file, file.name)
        files = {"archive": ("job.zip", archive.getvalue())}
        return self.post("/v1/calc/run", files=files, data=fields)

    def status(self, number: int) -> str:
        return str(self.get(f"/v1/calc/{number}/status").json()["status"])

    def wait(self, number: int, seconds: float = 600) -> str:
        """How a calculation ends."""
        deadline = time.monotonic() + seconds
        while (status := self.status(number)) in UNFINISHED:
            assert time.monotonic() < deadline, status
            time.sleep(0.5)
        return status

    def listed(self) -> set[int]:
        """The calculations of the WebUI's list."""
        return {int(one["id"]) for one in self.get("/v1/calc/list").json()}


def administrator(lab: Lab) -> Client:
    """The administrator's computer."""
    return Client(lab, ADMINISTRATOR, administrators_password(lab))


def calculations(lab: Lab) -> list[dict[str, Any]]:
    """All calculations, the oldest first: what the WebUI lists to the administrator."""
    found: list[dict[str, Any]] = administrator(lab).get("/v1/calc/list").json()
    wanted = ("id", "owner", "description", "status", "calculation_mode")
    return sorted(({key: one[key] for key in wanted} for one in found), key=lambda one: int(one["id"]))


def submit(lab: Lab, job_ini: Path, seconds: float = 600) -> str:
    """The log of a calculation that a client's computer has run through the engine's API."""
    client = administrator(lab)
    answer = client.run(job_ini)
    assert answer.status_code == 200, answer.text
    number = int(answer.json()["job_id"])
    assert client.wait(number, seconds) == "complete"
    return "\n".join(" ".join(map(str, line)) for line in client.get(f"/v1/calc/{number}/log/0:").json())
