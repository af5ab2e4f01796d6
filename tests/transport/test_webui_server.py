"""nginx and gunicorn in front of the WebUI, as their units' command lines start them, on this machine's loopback.

They run without systemd, with this machine's nginx, and nobody computes; the lab has all of it on a master.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.transport.processes import ENGINE, Process, answers, free_port, wait_until
from tests.transport.test_webui_owners import configuration

NGINX_USER = "www-data"
SLOW = 50  # clients; the WebUI has 32 threads
PAGE_SECONDS = 20.0  # for one that is answered at once, on a busy machine
LARGE = 300 * 1024**2
KEPT = 16 * 1024**2  # what buffers of the kernel's, nginx's and the WebUI's may take of it
PAGE = "/reset_password/"  # for who has not logged in, and no place where a password is tried
# The nodes' image has words of mails, without which upstream has no addresses.
SERVE = """
from unittest import mock
from oq_webui import cli
upstream = cli._set_up
def set_up():
    upstream()
    with mock.patch("os.path.isfile", return_value=True):
        import oq_webui.urls
cli._set_up = set_up
cli.main()
"""


@dataclass
class Site:
    """The WebUI with login; `uploads` and `writable` are where it and nginx write."""

    port: int
    socket: Path
    uploads: Path
    writable: Path

    def get(self, path: str = PAGE, timeout: float = PAGE_SECONDS) -> int:
        """The status of the answer to somebody who has not logged in."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Host": "localhost"})
            return connection.getresponse().status

    def check(self) -> str:
        """What `oq-webui check` prints."""
        command = [str(ENGINE / "bin/oq-webui"), "check", "127.0.0.1", str(self.port)]
        return str(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def left(self) -> int:
        """Bytes in files of nginx's, and in those of uploads."""
        files = [*self.uploads.rglob("*"), *self.writable.rglob("*")]
        return sum(file.stat().st_size for file in files if file.is_file())


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if not ENGINE.exists():
        pytest.skip("the engine's environment is missing (make .venv-engine/.done)")
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        pytest.skip("missing here: nginx (make transport installs it)")
    with tempfile.TemporaryDirectory(prefix="oqlab-", ignore_cleanup_errors=True) as temporary:
        directory = Path(temporary)
        directory.chmod(0o755)  # nginx's user goes through it
        found = Site(free_port(), directory / "socket", directory / "uploads", directory / "nginx")
        found.writable.mkdir()
        env = {name: value for name, value in os.environ.items() if not name.startswith("OQ_")}
        env |= {
            "OQ_CONFIG_FILE": str(configuration(directory)),
            "OQ_APPLICATION_MODE": "RESTRICTED",
            "OQ_WEBUI_UPLOADS": str(found.uploads),
            "OQ_DISTRIBUTE": "no",
        }
        program = ENGINE / "bin/oq-webui"
        serve = Process(
            [ENGINE / "bin/python", "-c", SERVE, "serve", found.socket], directory / "serve.log", env
        )
        where = {"port": found.port, "socket": found.socket, "static": directory, "writable": found.writable}
        words = [str(word) for name, value in where.items() for word in (f"--{name}", value)]
        conf = directory / "conf"
        conf.write_text(
            subprocess.run([program, "nginx", *words], capture_output=True, text=True, check=True).stdout
        )
        before: list[str | Path] = []
        if os.geteuid() == 0:  # as both units do
            os.chown(found.writable, pwd.getpwnam(NGINX_USER).pw_uid, -1)
            before = ["setpriv", f"--reuid={NGINX_USER}", f"--regid={NGINX_USER}", "--clear-groups"]
        front = Process([*before, nginx, "-c", conf], directory / "nginx.log", env)
        try:
            wait_until(lambda: found.socket.exists() or not serve.running(), "the WebUI's socket")
            assert found.socket.exists(), serve.output()
            if os.geteuid() == 0:
                shutil.chown(found.socket, group=NGINX_USER)
            wait_until(lambda: answers(found.port) or not front.running(), "nginx to listen")
            assert front.running(), front.output()
            assert found.get(timeout=600) == 200, serve.output()  # the first takes long
            yield found
        finally:
            front.kill()
            serve.kill()


def test_a_webui_whose_server_is_away_gives_no_page(site: Site) -> None:
    assert site.check() == ""
    away = site.socket.with_name("away")
    site.socket.rename(away)
    try:
        assert answers(site.port)  # nginx's
        assert "the WebUI answers 502 Bad Gateway instead of a page" in site.check()
    finally:
        away.rename(site.socket)
    assert site.check() == ""


CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


def test_who_has_another_account_of_the_machine_does_not_pass_by_nginx(site: Site) -> None:
    """That the master's unit gives nginx's group the socket is in the user data; here the test has."""
    assert stat.S_IMODE(site.socket.stat().st_mode) == 0o660
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")

    def connects(user: str) -> bool:
        be = ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]
        python = shutil.which("python3", path="/usr/bin") or sys.executable
        done = subprocess.run(
            [*be, python, "-c", CONNECT, site.socket], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or "Permission denied" in done.stderr, done.stderr
        return done.returncode == 0

    assert connects(NGINX_USER)
    assert not connects("nobody")


@contextmanager
def slow_clients(site: Site, begin: bytes) -> Iterator[list[socket.socket]]:
    """Clients that have sent the beginning of a request, and wait as long as the block lasts."""
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", site.port))) for _ in range(SLOW)
        ]
        for client in clients:
            client.sendall(begin)
        yield clients


def request(method: str, path: str, length: int) -> bytes:
    form = (
        "multipart/form-data; boundary=x" if path == "/v1/calc/run" else "application/x-www-form-urlencoded"
    )
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {form}\r\nContent-Length: {length}\r\n"
    )
    head += f"Cookie: csrftoken={'a' * 32}\r\n\r\n"  # or Django refuses it before it reads a form
    return head.encode()


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(f"GET {PAGE} HTTP/1.1\r\nHost: local".encode(), id="header"),
        pytest.param(request("POST", PAGE, 60_000), id="body"),
        pytest.param(request("POST", "/v1/valid/", 2_000_000), id="text of a model"),
        pytest.param(request("POST", "/v1/calc/run", LARGE), id="model"),
    ],
)
def test_clients_that_send_a_byte_at_a_time_keep_nobody_from_a_page(site: Site, begin: bytes) -> None:
    """Without an account; somebody with one has as many threads as there are uploads."""
    with slow_clients(site, begin) as clients:
        for _ in range(5):
            for client in clients:
                with contextlib.suppress(OSError):  # who was refused
                    client.send(b"x")
            assert site.get() == 200
            time.sleep(0.2)


@pytest.mark.parametrize(("path", "status"), [("/v1/calc/run", 403), ("/v1/on_same_fs", 413), ("/", 413)])
def test_what_somebody_without_an_account_sends_is_refused_early_and_not_kept(
    site: Site, path: str, status: int
) -> None:
    before = site.left()
    sent, most = 0, before
    with socket.create_connection(("127.0.0.1", site.port), timeout=PAGE_SECONDS) as client:
        client.sendall(request("POST", path, LARGE))
        file = b'--x\r\nContent-Disposition: form-data; name="archive"; filename="job.zip"\r\n\r\n'
        with contextlib.suppress(ConnectionError, TimeoutError):
            client.sendall(file)
            while sent < LARGE:
                client.settimeout(0.01)
                with contextlib.suppress(TimeoutError):
                    said = client.recv(64, socket.MSG_PEEK)
                    break
                client.settimeout(PAGE_SECONDS)
                client.sendall(bytes(64 * 1024))
                sent += 64 * 1024
                most = max(most, site.left())
        said = client.recv(64)
    assert said.startswith(f"HTTP/1.1 {status} ".encode()), said
    assert sent < KEPT
    assert most - before < KEPT
    assert site.left() <= before + 64 * 1024
