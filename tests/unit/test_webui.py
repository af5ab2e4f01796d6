"""The configuration of nginx in front of the WebUI; that people get through it is shown by the lab's tests."""

from __future__ import annotations

import base64
import hashlib
import http.server
import importlib
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components import facts
from tests.unit.conftest import Record
from tests.unit.node import node_files

ENGINE = Path(__file__).parent.parent.parent / "engine"
# Code in attributes of upstream's pages: a button's, and Select2's. tests/transport/test_webui_pages.py looks for more.
UPSTREAMS_HANDLERS = (b"closeModal()", b"return false;")


@pytest.fixture
def conf(monkeypatch: pytest.MonkeyPatch, record: Record, capsys: pytest.CaptureFixture[str]) -> str:
    """What the unit's own command line prints."""
    return printed(monkeypatch, record, capsys)


def printed(
    monkeypatch: pytest.MonkeyPatch,
    record: Record,
    capsys: pytest.CaptureFixture[str],
    **settings: str,
) -> str:
    unit = node_files(record(**settings), "master")[f"/etc/systemd/system/{facts.NGINX_UNIT}"]
    command = re.search(rf"{facts.ENGINE_DIR}/bin/(oq-webui .*) > ", unit)
    assert command
    monkeypatch.syspath_prepend(ENGINE)
    monkeypatch.setattr(sys, "argv", command[1].split())
    importlib.import_module("oq_webui.cli").main()
    return capsys.readouterr().out


def test_nginx_listens_on_one_port_and_hands_on_to_the_socket_of_the_webui(conf: str, record: Record) -> None:
    assert re.findall(r"^ *listen +(.*);", conf, re.MULTILINE) == [str(facts.WEBUI_PORT)]
    handed_on = set(re.findall(r"proxy_pass +(.*);", conf))
    assert handed_on == {f"http://unix:{facts.WEBUI_SOCKET}"}
    webui = node_files(record(), "master")[f"/etc/systemd/system/{facts.WEBUI_UNIT}"]
    assert f"/usr/local/bin/oq-webui serve {facts.WEBUI_SOCKET}\n" in webui
    assert f"alias {facts.ENGINE_DIR}/static/;" in conf


@pytest.fixture
def https(monkeypatch: pytest.MonkeyPatch, record: Record, capsys: pytest.CaptureFixture[str]) -> str:
    """The same with a certificate."""
    return printed(monkeypatch, record, capsys, webuiCertificate="self")


def test_with_a_certificate_the_one_port_speaks_tls_and_no_old_version_of_it(https: str) -> None:
    assert re.findall(r"^ *listen +(.*);", https, re.MULTILINE) == [f"{facts.WEBUI_PORT} ssl"]
    assert set(re.findall(r"ssl_certificate(?:_key)? (.*);", https)) == {"%d/tls"}
    assert "ssl_protocols TLSv1.2 TLSv1.3;" in https
    ciphers = re.findall(r"ssl_ciphers (.*);", https)[0].split(":")
    assert all(name.startswith("ECDHE-") and ("GCM" in name or "CHACHA20" in name) for name in ciphers)
    assert "X-Forwarded-Proto $scheme;" in https  # by which Django knows


def test_without_one_it_speaks_plain_http(conf: str) -> None:
    assert "ssl" not in conf


def test_a_browser_does_not_remember_the_port_of_localhost_as_one_of_https(https: str) -> None:
    """Another cluster may be behind it tomorrow."""
    assert "Strict-Transport-Security" not in https
    assert "return 307 https://$http_host$request_uri;" in https


def test_what_is_nginxs_own_stays_and_nothing_else_is_left_to_fill_in(conf: str) -> None:
    assert "${" not in conf
    assert (
        "proxy_set_header Host $http_host;" in conf
    )  # Django compares it with where a form says it comes from


def locations(conf: str) -> dict[str, str]:
    """What nginx does at which addresses: its `location`s, without those of plain HTTP."""
    return dict(re.findall(r"\n        location ([^@{]+) \{(.*?)\n        \}", conf, re.DOTALL))


def test_models_are_neither_limited_nor_collected_by_nginx_and_all_else_is(conf: str) -> None:
    """A thread of the WebUI's would wait for whoever sends a byte a minute, with an account or without."""
    found = locations(conf)
    before = conf.partition("location")[0]
    assert "client_max_body_size 64k;" in before
    assert "client_body_buffer_size 64k;" in before  # in memory: /run is no place for what strangers send
    assert "request_buffering" not in before
    as_they_come = {name for name, what in found.items() if "proxy_request_buffering off;" in what}
    assert as_they_come == {"= /v1/calc/run", "/v1/valid/"}
    assert {name for name, what in found.items() if "client_max_body_size" in what} == as_they_come
    assert "client_max_body_size 0;" in found["= /v1/calc/run"]


@pytest.mark.parametrize(
    ("location", "taken", "left"),
    [
        ("= /v1/calc/run", ["/v1/calc/run", "/v1/calc/run?x=/"], ["/v1/calc/run/", "//v1/calc/run"]),
        ("/v1/valid/", ["/v1/valid/", "/v1/valid/?x"], ["/cookies/accept/a/../../../v1/valid/"]),
    ],
)
def test_what_is_sent_as_it_comes_goes_to_no_other_address(
    conf: str, location: str, taken: list[str], left: list[str]
) -> None:
    """nginx takes dots and slashes out of an address to find its location, and the WebUI does not."""
    (wanted,) = re.findall(r'if \(\$request_uri !~ "?(.+?)"?\) \{\s+return 404;', locations(conf)[location])
    assert all(re.match(wanted, address) for address in taken)
    assert not any(re.match(wanted, address) for address in left)


def test_code_in_attributes_runs_on_no_page_but_upstreams_own(conf: str) -> None:
    (policy,) = re.findall(r'default "(.*)";', conf)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    hashes = [base64.b64encode(hashlib.sha256(code).digest()).decode() for code in UPSTREAMS_HANDLERS]
    assert rules["script-src-attr"].split() == ["'unsafe-hashes'", *(f"'sha256-{one}'" for one in hashes)]
    assert rules["frame-ancestors"] == "'self'"
    (of_the_api,) = re.findall(r'~\^/v1/ "(.*)";', conf)
    assert "default-src 'none'" in of_the_api
    assert "sandbox" in of_the_api
    # A location with a header of its own would have none of these.
    assert not any("add_header" in what for what in locations(conf).values())


@pytest.mark.parametrize(
    "path",
    [
        "/accounts/login/",
        "/accounts/ajax_login/",
        "/accounts/password/",
        "/admin/login/",
        "/admin/password_change/",
        "/tagadmin/login/",
        "/tagadmin/password_change/",
    ],
)
def test_wherever_a_password_is_tried_nginx_limits_how_often(conf: str, path: str) -> None:
    (limited,) = re.findall(r"location ~ (\S+) \{\s+limit_req zone=login", conf)
    assert re.match(limited, path)
    assert not re.match(limited, "/engine/")


def test_nginx_writes_only_where_its_unit_lets_it(conf: str) -> None:
    written = re.findall(r"^ *(?:pid|\w+_temp_path) +(.*);", conf, re.MULTILINE)
    assert len(written) == 6
    assert all(path.startswith("%t/openquake-nginx/") for path in written)


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the accounts, of which none is there; Django is on the nodes alone."""
    users = SimpleNamespace(filter=lambda **_: SimpleNamespace(exists=lambda: False, first=lambda: None))
    made = {
        "django.contrib.auth": SimpleNamespace(get_user_model=lambda: SimpleNamespace(objects=users)),
        "django.core.management": SimpleNamespace(call_command=None),
        "oq_webui.settings": SimpleNamespace(DATABASE=None),
    }
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "oq_webui.accounts", raising=False)
    yield importlib.import_module("oq_webui.accounts")
    sys.modules.pop("oq_webui.accounts")


@pytest.mark.parametrize("action", ["add", "renew_password", "remove"])
def test_the_administrators_account_is_the_clusters_and_a_rotation_gives_it_a_password(
    accounts: Any, action: str
) -> None:
    with pytest.raises(accounts.AccountError, match="webUiPasswordCommand shows; `oq-cluster rotate`"):
        getattr(accounts, action)("admin")


HANDED = """
import os, sys
os.environ["LISTEN_PID"] = {pid}
from oq_webui.handed import handed
names = "secret_key", "admin_password", "previous_secret_key"
print([handed(name) for name in names], [handed(name) for name in names])
print([name for name in os.environ if name.startswith("LISTEN_")], os.path.exists("/proc/self/fd/4"))
"""


@pytest.mark.parametrize(
    ("pid", "found", "left"),
    [("str(os.getpid())", ["key", "password", None], False), ("'1'", [None, None, None], True)],
)
def test_the_secrets_are_read_once_from_the_open_file_that_systemd_hands_to_this_process_and_closed(
    tmp_path: Path, pid: str, found: list[str | None], left: bool
) -> None:
    """As sd_listen_fds(3) says: from the third on, in the order of their names, for the process with this number."""
    secrets = tmp_path / "webui.json"
    secrets.write_text('{"secret_key": "key", "admin_password": "password"}')
    shell = f'exec 3< /dev/null 4< {secrets}; exec "$0" -c "$1"'
    done = subprocess.run(
        ["bash", "-c", shell, sys.executable, HANDED.format(pid=pid)],
        env={"LISTEN_FDS": "2", "LISTEN_FDNAMES": "other:secrets", "PYTHONPATH": str(ENGINE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [f"{found} {found}", f"[] {left}"], done.stderr


class Front(http.server.BaseHTTPRequestHandler):
    """What answers on the port; a status of 0 is no answer, and 1 none of HTTP."""

    status: int
    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["User-Agent"]))
        if self.status == 1:
            self.wfile.write(b"SSH-2.0\r\n")
        elif self.status:
            self.send_response(self.status)
            self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def checked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `oq-webui check` prints."""
    monkeypatch.syspath_prepend(ENGINE)
    monkeypatch.setattr(sys, "argv", ["oq-webui", "check", "127.0.0.1", *words])
    importlib.import_module("oq_webui.cli").main()
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (200, ""),
        (302, ""),  # to where people log in
        (502, "the WebUI answers 502 Bad Gateway instead of a page (sudo journalctl"),
        (500, "the WebUI answers 500 Internal Server Error"),
        (400, "the WebUI answers 400 Bad Request"),
        (0, "the WebUI does not answer: Remote end closed connection"),
        (1, "the WebUI does not answer: SSH-2.0"),
    ],
)
@pytest.mark.parametrize("tls", [False, True])
def test_a_webui_that_gives_no_page_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tls: bool,
    status: int,
    words: str,
) -> None:
    """Of a real WebUI the lab's tests ask it, and tests/transport/test_webui_server.py."""
    front = type("Answering", (Front,), {"status": status, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), front) as server:
        where = [str(server.server_port)]
        if tls:
            monkeypatch.syspath_prepend(ENGINE)
            module = importlib.import_module("oq_webui.certificate")
            module.renew(module.OWN, ["127.0.0.1"], tmp_path / "tls", tmp_path / "kept")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tmp_path / "tls/pair.pem")
            server.socket = context.wrap_socket(server.socket, server_side=True)
            where += ["--certificate", str(tmp_path / "tls")]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = checked(monkeypatch, capsys, *where)
        server.shutdown()
    assert said.startswith(words)
    assert bool(said) == bool(words)
    assert front.asked == [("/engine/", "oq-node status")]  # type: ignore[attr-defined]


def test_where_nobody_listens_is_no_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # so that nobody else listens there meanwhile
        said = checked(monkeypatch, capsys, str(closed.getsockname()[1]))
    assert "the WebUI does not answer: [Errno 111] Connection refused" in said
