"""The configuration of nginx in front of the WebUI; that people get through it is shown by the lab's tests."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components import facts
from tests.unit.conftest import Record
from tests.unit.node import node_files

ENGINE = Path(__file__).parent.parent.parent / "engine"


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


def test_uploads_are_neither_limited_nor_collected_by_nginx(conf: str) -> None:
    assert "client_max_body_size 0;" in conf
    assert "proxy_request_buffering off;" in conf


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
