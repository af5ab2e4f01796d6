"""The command `oq-webui`: serve the WebUI, or manage its accounts."""

from __future__ import annotations

import argparse
import getpass
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from oq_webui import answers, certificate


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(
        prog="oq-webui", description="The WebUI of the OpenQuake Engine, and people's accounts of it."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    add = commands.add_parser("add", help="make an account, and print its password")
    add.add_argument(
        "name", help="of the account; that of a user of this machine has their calculations in its list"
    )
    add.add_argument(
        "--admin", action="store_true", help="sees and ends everybody's calculations, manages accounts"
    )
    add.set_defaults(run=lambda given: _accounts("add", given.name, administrator=given.admin))
    for name, text in (
        ("password", "give an account a new password, and print it"),
        ("remove", "remove an account; its calculations stay"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("name", help="of the account")
        command.set_defaults(run=lambda given, name=name: _accounts(name, given.name))
    list_ = commands.add_parser("list", help="show the accounts")
    list_.set_defaults(run=lambda _given: _accounts("list"))
    serve = commands.add_parser("serve", help="serve the WebUI on a Unix socket (a systemd unit does)")
    serve.add_argument("socket")
    serve.set_defaults(run=lambda given: _serve(given.socket))
    nginx = commands.add_parser("nginx", help="print the configuration of nginx (a systemd unit wants it)")
    for name in ("port", "socket", "static", "writable"):
        nginx.add_argument(f"--{name}", required=True)
    nginx.add_argument(
        "--pair", default="", help="certificates and private key, for HTTPS; plain HTTP without"
    )
    nginx.set_defaults(
        run=lambda given: print(
            nginx_conf(given.port, given.socket, given.static, given.writable, given.pair), end=""
        )
    )
    renew = commands.add_parser("renew-certificate", help="prepare what HTTPS needs (a systemd unit does)")
    renew.add_argument("--source", required=True, help=f"{certificate.OWN}, or the ARN of a secret")
    renew.add_argument("--directory", required=True, type=Path, help="where it is prepared")
    renew.add_argument(
        "--kept", required=True, type=Path, help="the file that keeps a certificate of our own"
    )
    renew.add_argument(
        "--restart",
        action="store_true",
        help="restart the services that use the certificate if it has changed",
    )
    renew.add_argument("address", help="of this machine, by which people reach it")
    renew.set_defaults(run=_renew)
    check = commands.add_parser("check", help="print why people get no page (oq-node status does)")
    check.add_argument("address")
    check.add_argument("port", type=int)
    check.add_argument(
        "--certificate",
        type=Path,
        help="the directory where what HTTPS needs is prepared; plain HTTP without",
    )
    check.set_defaults(
        run=lambda given: print(*_problems(given.certificate, given.address, given.port), sep="\n", end="")
    )
    given = parser.parse_args()
    given.run(given)


def nginx_conf(port: str, socket: str, static: str, writable: str, pair: str = "") -> str:
    """nginx's configuration.

    Args:
        port: where people come in.
        socket: of gunicorn.
        static: the directory of Django's static files.
        writable: a directory that nginx may write to.
        pair: the file with the certificates and the private key; plain HTTP without.
    """
    values = {"port": port, "socket": socket, "static": static, "writable": writable}
    values |= {"ssl": "", "tls": "", "pair": pair}
    if pair:
        values |= {"ssl": " ssl", "tls": _filled("tls.conf", values)}
    return _filled("nginx.conf", values)


def _filled(name: str, values: Mapping[str, str]) -> str:
    text = resources.files("oq_webui").joinpath(name).read_text()
    # nginx's own variables stay: they have no braces.
    return re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], text)


def _problems(prepared: Path | None, host: str, port: int) -> list[str]:
    if prepared is None:
        return answers.problems(host, port, None)
    return certificate.problems(prepared, host, port) or answers.problems(
        host, port, certificate.trusting(prepared / certificate.CERTIFICATE)
    )


def _renew(given: argparse.Namespace) -> None:
    names = ["localhost", "127.0.0.1", "::1", given.address, socket.gethostname(), socket.getfqdn()]
    before = certificate.prepared(given.directory)
    try:
        certificate.renew(given.source, list(dict.fromkeys(names)), given.directory, given.kept)
    except certificate.CertificateError as error:
        sys.exit(f"oq-webui renew-certificate: {error}")
    if given.restart and certificate.prepared(given.directory) != before:
        print("the WebUI has a new certificate: it and nginx are restarted")
        subprocess.run(["systemctl", "restart", certificate.UNIT], check=True)


def _serve(socket: str) -> None:
    _set_up()
    from openquake.baselib import config
    from openquake.server import settings as upstream
    from oq_celery import inputs
    from oq_celery import settings as celery

    from oq_webui import settings
    from oq_webui.handed import handed
    from oq_webui.server import Server

    if upstream.LOCKDOWN:
        from oq_webui import accounts

        accounts.prepare()
        if (password := handed("admin_password")) is not None:
            accounts.ensure_administrator(password)
    if directory := os.environ.get(settings.UPLOADS):
        uploads = Path(directory)
        uploads.mkdir(mode=0o700, exist_ok=True)
        for left in uploads.iterdir():  # by a server that was killed
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
        # A worker that started before its file system was there has not made it, and a calculation would make it its
        # user's. Nobody computes before the master is ready, which this server's start is a part of.
        inputs.make_root(celery.load(config))
    sys.argv[1:] = []  # gunicorn and upstream look at them
    Server(socket).run()


def _accounts(action: str, name: str = "", **options: bool) -> None:
    """Do something about accounts, as the user whose files they are in."""
    os.environ["OQ_APPLICATION_MODE"] = "RESTRICTED"  # or there would be no accounts
    from openquake.baselib import config

    owner = Path(config.dbserver.file).expanduser().parent.owner()
    if os.geteuid() == 0:
        # By the node's own command again, which finds numba's cache of that user. Another one's cannot be read, and
        # numba would compile for a minute.
        environment = {"PATH": os.environ["PATH"], "HOME": pwd.getpwnam(owner).pw_dir}
        os.execvpe("runuser", ["runuser", "--user", owner, "--", "oq-webui", *sys.argv[1:]], environment)  # noqa: S606
    if getpass.getuser() != owner:
        sys.exit(f"oq-webui {action}: accounts are root's to manage: sudo oq-webui {action} {name}".rstrip())
    _set_up()
    from oq_webui import accounts

    accounts.prepare()
    try:
        if action == "add":
            print(f"{name}: {accounts.add(name, **options)}")
        elif action == "password":
            print(f"{name}: {accounts.renew_password(name)}")
        elif action == "remove":
            accounts.remove(name)
        else:
            print("\n".join(accounts.listed()))
    except accounts.AccountError as error:
        sys.exit(f"oq-webui {action}: {error}")


def _set_up() -> None:
    """Let Django read its settings."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "oq_webui.settings"
    import django

    django.setup()
