"""The WebUI's API (openquake.server), as far as this command uses it, over a door that may break."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from http.cookiejar import Cookie
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import requests

from oq_cluster import config, reach
from oq_cluster.certificate import Certificate, PinnedCertificateAdapter, verification_error
from oq_cluster.errors import ClientError, LostConnection, Missing, NotLoggedIn, Unreachable
from oq_cluster.reach import Door

UNFINISHED: Final = frozenset({"created", "submitted", "executing"})
GOOD: Final = frozenset({"complete", "shared"})  # a shared one is complete
# How the names of Django's cookies begin. What follows names the cluster, so that a browser keeps several apart.
_COOKIE: Final = "sessionid"
_FORGERY_COOKIE: Final = "csrftoken"
_OWN_ACCOUNT: Final = "/accounts/password/"
_CONNECT_SECONDS: Final = 20
# For a block of an upload, while which urllib3 has the connection's own limit; nginx waits as long for one.
_SEND_SECONDS: Final = 300
# Until an answer begins: reading a large model, or exporting a result, takes minutes. Then between two bytes of it.
_ANSWER_SECONDS: Final = 3600
_BODY_SECONDS: Final = 60
# How often something else is asked meanwhile: Session Manager ends a session without traffic after 20 minutes.
_KEEP_SECONDS: Final = 240.0
_GLANCE_SECONDS: Final = 60  # for what the server only looks up
_NOT_NOW: Final = frozenset({502, 503, 504})  # nginx is there, and what is behind it is not
# How long a broken connection is tried again, and the pauses.
PATIENCE_SECONDS: Final = 300.0
_PAUSES: Final = (0.5, 1, 2, 5, 10)
_BLOCK: Final = 1024**2

T = TypeVar("T")
Tell = Callable[[str], None]


class WebUI:
    """The WebUI of one cluster, as one user."""

    def __init__(
        self,
        door: Door,
        identity: str,
        tell: Tell,
        asleep: Callable[[], ClientError | None],
        certificate: Certificate,
    ) -> None:
        """`identity` names the cluster among the sessions that are kept; `tell` hears of lost connections; `asleep`
        says why it is in vain to try again, if it is; `certificate` is that of a WebUI with HTTPS.
        """
        self.certificate = certificate
        self._trusts = False
        self.door = door
        self.asleep = asleep
        self.identity = identity
        self.tell = tell
        self.session = requests.Session()
        self.session.trust_env = False  # no proxy and no .netrc between here and the port forward
        kept = config.read(config.SESSIONS).get(identity, {})
        self.user = str(kept.get("user", ""))
        if cookie := kept.get("cookie"):
            # Who logged in before the names had an end has kept none; such a session may have to begin anew.
            self.session.cookies.set(str(kept.get("name", _COOKIE)), str(cookie))

    # --- login ---

    def login(self, user: str, password: str) -> None:
        """Log in, and keep the session.

        Raises:
            ClientError: wrong name or password, or too many attempts.
        """
        self.session.cookies.clear()
        answer = self._request("POST", "/accounts/ajax_login/", data={"username": user, "password": password})
        if answer.status_code == 404:
            raise ClientError("this cluster needs no login (webuiLogin is false)")
        self._not_too_many(answer)
        cookie = _cookie(self.session, _COOKIE)
        if answer.status_code != 403:
            self._good(answer)
        if cookie is None:
            raise ClientError(
                f"{user}: wrong name or password. Somebody who can start sessions on the master makes accounts and new "
                f"passwords: oq-cluster users add {user}, oq-cluster users password {user}"
            )
        self.user = user
        self._keep(cookie)

    def change_password(self, present: str, new: str) -> None:
        """Change one's own password. Other sessions end; this one goes on.

        Raises:
            ClientError: the server refuses one of the passwords; NotLoggedIn without a session.
        """
        page = self._patiently(_OWN_ACCOUNT)
        if page.status_code == 404:
            raise ClientError("this cluster needs no password (webuiLogin is false)")
        if page.status_code == 302:  # to the page for the login
            raise NotLoggedIn(f"log in first: oq-cluster login {self.user or 'NAME'}")
        self._not_too_many(page)
        answer = self._request(
            "POST",
            _OWN_ACCOUNT,
            data={"old_password": present, "new_password1": new, "new_password2": new},
            headers={
                "Accept": "application/json",
                "X-CSRFToken": token.value or "" if (token := _cookie(page, _FORGERY_COOKIE)) else "",
                "Referer": page.url,  # which Django wants with HTTPS
            },
        )
        self._not_too_many(answer)
        if answer.status_code == 400:
            raise ClientError("the password stays as it was: " + " ".join(answer.json()["errors"]))
        cookie = _cookie(self._good(answer), _COOKIE)
        self.session.cookies.clear()
        if cookie is not None:
            self.session.cookies.set_cookie(cookie)
        self._keep(cookie)

    @staticmethod
    def _not_too_many(answer: requests.Response) -> None:
        if answer.status_code == 429:
            raise ClientError(
                "too many logins at once (one a second, counted for everyone who comes through a port forward "
                "together): try again in a few seconds"
            )

    def logout(self) -> None:
        """End the session, there and here."""
        self._request("POST", "/accounts/ajax_logout/")
        self._keep(None)

    def _keep(self, cookie: Cookie | None) -> None:
        sessions = config.read(config.SESSIONS)
        sessions.pop(self.identity, None)
        if cookie is not None:
            sessions[self.identity] = {"user": self.user, "cookie": cookie.value, "name": cookie.name}
        config.write(config.SESSIONS, sessions)

    # --- calculations ---

    def version(self) -> str:
        """Of the engine."""
        return self.get("/v1/engine_version").text.strip()

    def keep_alive(self) -> None:
        """Use the connection, and open it again if it is lost, whether or not somebody has logged in."""
        self._probe()

    def answers(self) -> bool:
        """Whether it answers now, with or without a login."""
        try:
            self._request("GET", reach.PROBE, seconds=_GLANCE_SECONDS)
        except (LostConnection, Unreachable):
            self.door.close()
            return False
        return True

    def calculations(self, limit: int = 100, *, patiently: bool = True) -> list[dict[str, Any]]:
        """The last ones that this user sees, the newest first.

        Args:
            limit: how many at most, 0 for all.
            patiently: whether to ask again after a lost connection.
        """
        path = f"/v1/calc/list?limit={limit or -1}"  # SQLite's word for no limit
        ask = self._patiently if patiently else self._glance
        found: list[dict[str, Any]] = self._good(ask(path)).json()
        return found

    def calculation(self, number: int) -> dict[str, Any]:
        """One of them."""
        found: dict[str, Any] = self.get(f"/v1/calc/{number}/status").json()
        return found

    def log(self, number: int, start: int = 0) -> list[list[str]]:
        """The lines of a log from one on: time, level, process, message."""
        found: list[list[str]] = self.get(f"/v1/calc/{number}/log/{start}:").json()
        return found

    def outputs(self, number: int) -> list[dict[str, Any]]:
        """What a calculation has to export; none before its end."""
        answer = self._patiently(f"/v1/calc/{number}/results")
        if answer.status_code == 404:
            return []
        found: list[dict[str, Any]] = self._good(answer).json()
        return found

    def act(self, number: int, action: str) -> str:
        """abort, remove, share or unshare a calculation; what the server says.

        Raises:
            ClientError: it says no.
        """
        answer = self._good(self._request("POST", f"/v1/calc/{number}/{action}"))
        said: dict[str, str] = answer.json()
        if "error" in said:
            raise ClientError(said["error"])
        return said["success"]

    def start(self, body: Any, content_type: str) -> int:
        """Upload a job, and start it; the calculation's number.

        Raises:
            LostConnection: before the answer; it may have started.
            ClientError: the engine refuses the job.
        """
        answer = self._request(
            "POST",
            "/v1/calc/run",
            data=body,
            headers={"Content-Type": content_type},
            connect_seconds=_SEND_SECONDS,
        )
        if answer.status_code == 500:
            try:
                refusal = answer.json()
                number, lines = refusal["job_id"], [line for line in refusal["traceback"] if line.strip()]
            except (ValueError, KeyError, TypeError):
                self._good(answer)
            else:
                raise ClientError(f"the engine refuses the job (calculation {number}): {lines[-1].strip()}")
        return int(self._good(answer).json()["job_id"])

    def download(self, path: str, target: Path) -> str:
        """Write an answer's body to a file; the name that the server gives it."""

        most = 0

        def once() -> str:
            nonlocal most
            with self._request("GET", path, stream=True) as answer:
                self._good(answer)
                try:
                    with target.open("wb") as file:
                        for block in answer.iter_content(_BLOCK):
                            file.write(block)
                            most = max(most, file.tell())
                except requests.RequestException as error:
                    raise LostConnection(f"the download has broken off: {error}") from error
                named = re.search(r"filename=([^;]+)", answer.headers.get("Content-Disposition", ""))
                return Path(named[1].strip('" ')).name if named else target.name

        return self._repeated(once, lambda: most)

    # --- requests ---

    def get(self, path: str) -> requests.Response:
        """Ask for something, again after a lost connection.

        Raises:
            ClientError: the server refuses; NotLoggedIn for want of a login.
            LostConnection: it has not answered for minutes.
        """
        return self._good(self._patiently(path))

    def _patiently(self, path: str) -> requests.Response:
        return self._repeated(lambda: self._glance(path))

    def _glance(self, path: str) -> requests.Response:
        return self._request("GET", path, seconds=_GLANCE_SECONDS)

    def _request(
        self,
        method: str,
        path: str,
        seconds: float = _ANSWER_SECONDS,
        connect_seconds: float = _CONNECT_SECONDS,
        **options: Any,
    ) -> requests.Response:
        base = self.door.url()
        stream = options.pop("stream", False)

        def ask() -> requests.Response:
            return self.session.request(
                method,
                base + path,
                timeout=(connect_seconds, seconds),
                allow_redirects=False,
                stream=True,  # so that the rest of the answer has a limit of its own
                **options,
            )

        try:
            with self._kept_alive(base) if seconds > _KEEP_SECONDS else nullcontext():
                answer = self._trusting(ask) if base.startswith("https:") else ask()
            _limit_body_wait(answer)
            if not stream:
                _ = answer.content  # which reads it
        except requests.RequestException as error:
            raise LostConnection(f"the WebUI does not answer: {error}") from error
        if answer.status_code in _NOT_NOW:
            raise LostConnection("the WebUI does not answer: it is starting or restarting")
        return answer

    @contextmanager
    def _kept_alive(self, base: str) -> Iterator[None]:
        """Use a connection for something else from time to time, while a request waits for its answer."""
        done = threading.Event()

        def keep() -> None:
            with requests.Session() as other:  # none is for two threads
                other.trust_env = False
                while not done.wait(_KEEP_SECONDS):
                    if base.startswith("https:"):
                        other.verify = self.session.verify
                        other.mount("https://", PinnedCertificateAdapter())
                    with suppress(Exception):  # the request itself notices what is wrong
                        other.get(base + reach.PROBE, timeout=_CONNECT_SECONDS, allow_redirects=False)

        threading.Thread(target=keep, daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def _trusting(self, ask: Callable[[], requests.Response]) -> requests.Response:
        """Ask what shows the WebUI's certificate, and nobody else. Before that is known, nothing is sent.

        Raises:
            ClientError: it shows another one than the master has, or one that is not valid any more.
        """
        if not self._trusts:
            self._trust()
        while True:
            try:
                return ask()
            except requests.RequestException as error:
                if not (reason := verification_error(error)):
                    raise
                if not self.certificate.renew():  # unless the master has got another one
                    raise ClientError(
                        f"what answers is not this cluster's WebUI, or its certificate has to be renewed ({reason}): "
                        "sudo oq-node status on the master (oq-cluster shell) says what to do"
                    ) from error
                self._trust()

    def _trust(self) -> None:
        """Take the certificate that is known here for the WebUI's."""
        self.session.verify = str(self.certificate.file())
        self.session.mount("https://", PinnedCertificateAdapter())
        self._trusts = True

    def _repeated(self, ask: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """Ask until there is an answer, through a new door after each lost connection.

        Args:
            ask: raises LostConnection.
            progress: how far it has ever come. From where it has not come any further it is tried for
                PATIENCE_SECONDS.
        """
        deadline, best, failures = 0.0, -1, 0
        while True:
            try:
                return ask()
            except LostConnection as error:
                if reason := self.asleep():
                    raise reason from error
                if progress() > best:
                    best, failures = progress(), 0
                    deadline = time.monotonic() + PATIENCE_SECONDS
                if time.monotonic() > deadline:
                    raise
                if not failures:
                    self.tell(f"trying again: {error}")
                time.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
                failures += 1
                self.door.close()

    def _good(self, answer: requests.Response) -> requests.Response:
        """The same answer, unless it is a refusal."""
        if answer.status_code == 200:
            return answer
        text = _said(answer)
        if answer.status_code == 404:
            raise Missing(
                f"there is no such calculation or output, or it is not yours to see: {_path(answer)}"
            )
        if answer.status_code == 403 and self._probe() == 403:
            name = self.user or "NAME"
            if _cookie(self.session, _COOKIE):
                raise NotLoggedIn(f"your session has ended: log in again: oq-cluster login {name}")
            raise NotLoggedIn(f"the cluster asks for a login: oq-cluster login {name}")
        if answer.status_code == 403:
            raise ClientError(
                text or "this is another user's calculation; its owner or an administrator may do that"
            )
        raise ClientError(f"the WebUI answers {answer.status_code} to {_path(answer)}: {text[:500]}")

    def _probe(self) -> int:
        return self._patiently(reach.PROBE).status_code


def _path(answer: requests.Response) -> str:
    return urlsplit(answer.url).path


def _said(answer: requests.Response) -> str:
    """What an answer says to people; the API's refusals are JSON."""
    with suppress(ValueError, KeyError, TypeError):
        return str(answer.json()["error"])
    return answer.text.strip()


def _cookie(where: requests.Session | requests.Response, name: str) -> Cookie | None:
    """The cookie of a kind, however its cluster ends the name."""
    return next((cookie for cookie in where.cookies if re.fullmatch(f"{name}(_.*)?", cookie.name)), None)


def _limit_body_wait(answer: requests.Response) -> None:
    """Wait for the rest of an answer that has begun no longer than _BODY_SECONDS at a time."""
    connection = answer.raw.connection  # none has the rest when all of it was read
    if (
        sock := getattr(connection, "sock", None)
    ) is not None:  # nor where the connection ends with the answer
        sock.settimeout(_BODY_SECONDS)
