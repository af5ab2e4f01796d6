"""The master: data volumes, RabbitMQ, the engine built once for everybody, DbServer, WebUI."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path

from oq_node import accounts
from oq_node.common import (
    FACTS,
    NodeError,
    amqp_user,
    answers,
    engine_image,
    ensure_user,
    failed_units,
    main,
    metadata,
    mount_engine,
    mount_problems,
    mount_shared,
    passwords,
    run,
    say,
    start,
    step,
    unit_problems,
    until,
    write,
    write_configuration,
)

AGENT = "amazon-ssm-agent"
AGENT_DEADLINE_SECONDS = 30
VOLUMES_DEADLINE_SECONDS = 30
SECRET_DEADLINE_SECONDS = 120
METADATA_DEADLINE_SECONDS = 60
ALARMS_SECONDS = 60
# An update fails when one list cannot be had: apt-get takes the old one otherwise, or none, such as that of security.
ALL_OR_NONE = ("--option", "APT::Update::Error-Mode=any")
ENVIRONMENT = {**os.environ, "AWS_CA_BUNDLE": FACTS["ca_bundle"], "DEBIAN_FRONTEND": "noninteractive"}


def install_ssm_agent() -> None:
    """Install the Session Manager agent from AWS's regional bucket; Debian's image has none.

    Where there is no such bucket (the lab), this says so and goes on: the agent is how people reach the node, not how
    it computes. NodeError where the bucket does not answer.
    """
    if installed(AGENT):
        start(f"{AGENT}.service")
        return
    region, machine = FACTS["region"], {"x86_64": "amd64", "arm64": "arm64"}[FACTS["architecture"]]
    url = f"https://s3.{region}.amazonaws.com/amazon-ssm-{region}/latest/debian_{machine}/{AGENT}.deb"
    package = Path(f"/run/openquake/{AGENT}.deb")

    def download() -> str:
        """How it ended; OSError when it may end otherwise next time."""
        try:
            with urllib.request.urlopen(url, timeout=20) as answer, package.open("wb") as file:
                shutil.copyfileobj(answer, file)
        except urllib.error.HTTPError as error:
            if error.code >= 500:
                raise
            return str(error)
        return "downloaded"

    ended = until(url, AGENT_DEADLINE_SECONDS, download, every=10)
    if ended != "downloaded":
        say(f"no Session Manager on this node: {url}: {ended}")
        return
    run("dpkg", "--install", str(package))
    start(f"{AGENT}.service")


def install_packages() -> None:
    """Install the Debian packages that the image does not have."""
    missing = [name for name in FACTS["packages"] if not installed(name)]
    if not missing:
        return
    run("dpkg", "--force-confold", "--configure", "--pending", env=ENVIRONMENT)  # a reboot has interrupted it
    until(
        "apt-get update",
        120,
        lambda: run("apt-get", "--quiet", "update", *ALL_OR_NONE, env=ENVIRONMENT),
        every=10,
    )
    run(
        "apt-get", "--quiet", "--yes", "--no-install-recommends", "--option", "Dpkg::Options::=--force-confold",
        "--option", "Dpkg::Options::=--force-unsafe-io", "--option", "DPkg::Lock::Timeout=120",
        "install", *missing, env=ENVIRONMENT,
    )  # fmt: skip


def installed(package: str) -> bool:
    """Whether dpkg has this package installed."""
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    return subprocess.run(query, capture_output=True, text=True).stdout == "installed"


def share_directories() -> None:
    """Make the directories of the shared file system: group openquake writes, new files belong to that group."""
    user = FACTS["openquake_user"]
    shared, logs = FACTS["shared_dir"], FACTS["logs_dir"]
    for path, mode in ((shared, "2770"), (logs, "2750"), (FACTS["engine_image_dir"], "0755")):
        Path(path).mkdir(parents=True, exist_ok=True)
        run("chown", f"root:{user}", path)
        run("chmod", mode, path)
    run("chown", f"{user}:{user}", FACTS["dbserver_dir"])
    run("chmod", "2770", FACTS["dbserver_dir"])
    run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/openquake.conf")


def ensure_secret(secret_id: str, **sizes: int) -> dict[str, str]:
    """A secret's values; made now, of so many random bytes each, if this cluster has none yet."""
    command = ["/usr/bin/python3", "/usr/local/lib/oq_node/secret.py", "ensure", FACTS["region"], secret_id]
    command += [f"{name}={size}" for name, size in sizes.items()]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode:
        raise NodeError(f"the secret cannot be read or made: {done.stderr.strip()[-800:]}")
    return dict(json.loads(done.stdout))


def cluster_secret() -> dict[str, str]:
    """What all nodes know."""
    return ensure_secret(FACTS["secret_id"], amqp_password=32, dbserver_authkey=32)


def webui_secret() -> dict[str, str]:
    """What the master alone knows: the key that signs the WebUI's sessions, and its first administrator's password."""
    return ensure_secret(FACTS["webui_secret_id"], secret_key=32, admin_password=12)


def configure_broker(secret: Mapping[str, str]) -> None:
    """Give RabbitMQ the one vhost of the cluster and the user of its secret, and leave to start it."""
    ensure_user(
        FACTS["rabbitmq_user"],
        FACTS["rabbitmq_id"],
        FACTS["rabbitmq_dir"],
        FACTS["rabbitmq_dir"],
        "/var/log/rabbitmq",
    )
    write_definitions(secret)
    # A volume of another master may have users of earlier secrets, and workers that still need them.
    write(FACTS["rotation"], "{}", 0o600)
    run("systemctl", "unmask", "--runtime", FACTS["rabbitmq_unit"])  # bootcmd has masked it


def write_definitions(secret: Mapping[str, str]) -> None:
    """Let RabbitMQ have the secret's user whenever it starts."""
    write("/etc/rabbitmq/definitions.json", definitions(secret), 0o640, FACTS["rabbitmq_user"])


def definitions(secret: Mapping[str, str]) -> str:
    """RabbitMQ's definitions of the vhost and the secret's user, with a hash of its password."""
    user, vhost = amqp_user(secret), FACTS["amqp_vhost"]
    # https://www.rabbitmq.com/docs/passwords: base64 of a 4-byte salt and SHA-256 of salt and password.
    salt = secrets.token_bytes(4)
    salted = salt + secret["amqp_password"].encode()
    password_hash = base64.b64encode(salt + hashlib.sha256(salted).digest()).decode()
    defined = {
        "vhosts": [{"name": vhost}],
        "users": [
            {
                "name": user,
                "password_hash": password_hash,
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": [],
            }
        ],
        "permissions": [{"user": user, "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*"}],
    }
    return json.dumps(defined)


def fetch_bundle(directory: Path) -> Path:
    """Download and unpack the engine's bundle (lock file, oq_celery, build script), checked by its hash."""
    import boto3

    os.environ["AWS_CA_BUNDLE"] = FACTS["ca_bundle"]
    archive = directory / "bundle.zip"
    try:
        boto3.client("s3", region_name=FACTS["region"]).download_file(
            FACTS["bundle_bucket"], FACTS["bundle_key"], str(archive)
        )
    except Exception as error:  # boto3 has no common base of its errors
        raise NodeError(f"s3://{FACTS['bundle_bucket']}/{FACTS['bundle_key']}: {error}") from error
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != FACTS["bundle_sha256"]:
        raise NodeError(f"the engine's bundle has sha256 {found} and not {FACTS['bundle_sha256']}")
    zipfile.ZipFile(archive).extractall(directory / "engine")
    return directory / "engine"


def build_engine() -> None:
    """Publish the engine as one image on the shared file system, unless that is there already.

    An image of the machine that has everything baked in has the engine, too; otherwise it is built from PyPI.
    """
    image = engine_image()
    new = image.with_suffix(".new")
    if image.exists():
        say(f"{image} is there already")
        return
    baked = Path(FACTS["baked_engine_dir"], image.name)
    if baked.exists():
        say(f"taking {baked} of this machine's image")
        shutil.copyfile(baked, new)
        new.rename(image)
        return
    say(f"neither {image} nor {baked} is there: building the engine, which needs a way to PyPI")
    log = Path("/var/log/openquake-engine-build.log")
    with log.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with tempfile.TemporaryDirectory(prefix="openquake-engine-", dir="/var/tmp") as directory:
            source = fetch_bundle(Path(directory))
            done = subprocess.run(
                ["/bin/sh", str(source / "build-image"), FACTS["engine_dir"], str(new)],
                env={**ENVIRONMENT, **FACTS["cpu_environment"], "TMPDIR": directory},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            tail = "\n".join(log.read_text().splitlines()[-20:])
            raise NodeError(f"the engine does not build, see {log}:\n{tail}")
        new.rename(image)


def bootstrap() -> None:
    """Make this machine the master.

    The way in comes first, so that somebody can see why the rest fails; without it the rest goes on all the same.
    """
    with step("Session Manager agent"):
        try:
            install_ssm_agent()
        except (NodeError, OSError) as error:
            say(f"no Session Manager yet: {error}")
    with step("data volumes"):
        until(
            f"all volumes to be mounted (sudo journalctl -t {FACTS['volumes_log']})",
            VOLUMES_DEADLINE_SECONDS,
            volumes_mounted,
        )
    with step("users"):
        ensure_user(FACTS["openquake_user"], FACTS["openquake_id"], FACTS["dbserver_dir"])
        ensure_user(FACTS["rabbitmq_user"], FACTS["rabbitmq_id"], FACTS["rabbitmq_dir"])
        accounts.adopt()
        accounts.keep()
    with step("Debian packages"):
        install_packages()
    with step("configuration"):
        secret = until("the secret", SECRET_DEADLINE_SECONDS, cluster_secret, every=5)
        num_cores = until("the fleet's size", METADATA_DEADLINE_SECONDS, fleet_cores)
        write_configuration({**passwords(secret), "distribution": {"num_cores": num_cores}})
        tell_price()
        if FACTS["webui"]:
            values = until("the WebUI's secret", SECRET_DEADLINE_SECONDS, webui_secret, every=5)
            write(FACTS["webui_secrets"], json.dumps(values), 0o600)
    with step("RabbitMQ's configuration"):
        configure_broker(secret)
    with step("shared file system"):
        mount_shared()
        share_directories()
    with step("engine"):
        build_engine()
        mount_engine()
    with step("services"):
        start(*services(), *background())
    with step("Session Manager agent, once more"):
        install_ssm_agent()


def volumes_mounted() -> bool:
    """Whether the data volumes are where they belong; NodeError that names those which are not."""
    if found := mount_problems(*FACTS["volumes"], FACTS["dbserver_dir"]):
        raise NodeError("; ".join(found))
    return True


def fleet_cores() -> str:
    """How many processes the full fleet has, by a tag of this instance: tags change while it runs."""
    value = metadata(f"tags/instance/{FACTS['num_cores_tag']}")
    if not value.isdecimal() or int(value) < 1:
        raise NodeError(
            f"the tag {FACTS['num_cores_tag']} of this instance is {value!r}, not a number of cores"
        )
    return value


def tell_price() -> None:
    """Let the engine's environment say what an hour of a worker's process costs: a tag, if that is known."""
    try:
        price = metadata(f"tags/instance/{FACTS['process_hour_tag']}")
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        price = ""  # there is no such tag
    old = Path(FACTS["environment_file"]).read_text()
    variable = FACTS["process_hour_variable"] + "="
    lines = [line for line in old.splitlines(True) if not line.startswith(variable)]
    new = "".join(lines) + (f"{variable}{price}\n" if price else "")
    if new != old:
        write(FACTS["environment_file"], new)


def idle(when: str) -> list[str]:
    """The engine's program that powers the master off: after so many minutes, or "now", if nothing computes."""
    return [f"{FACTS['engine_dir']}/bin/oq-idle", when, *FACTS["group_options"].split()]


def become(program: str, *words: str) -> None:
    """Become a program of the engine."""
    os.execve(program, [program, *words], ENVIRONMENT)  # noqa: S606


OTHER_COMMANDS = {
    "refresh": (
        "what follows tags, volumes and people (a timer calls it)",
        lambda: become(f"{FACTS['engine_dir']}/bin/oq-refresh"),
    ),
    "sleep": ("power this machine off, if nothing computes", lambda: become(*idle("now"))),
    "rotate": (
        "new passwords and keys for the cluster; what runs goes on",
        lambda: become(f"{FACTS['engine_dir']}/bin/oq-keys", "rotate"),
    ),
    "logs": (
        "the workers, dead ones too; with the name of one, its log (--help)",
        lambda: become(
            f"{FACTS['engine_dir']}/bin/oq-logs", FACTS["logs_dir"], FACTS["region"], *sys.argv[2:]
        ),
    ),
}


def services() -> dict[str, int]:
    """The units that people and workers talk to, and their ports."""
    found = {FACTS["rabbitmq_unit"]: FACTS["amqp_port"], FACTS["dbserver_unit"]: FACTS["dbserver_port"]}
    if FACTS["webui"]:
        found[FACTS["nginx_unit"]] = FACTS["webui_port"]
    return found


def background() -> list[str]:
    """The units that nobody talks to from elsewhere."""
    behind_nginx = [FACTS["webui_unit"]] if FACTS["webui"] else []
    reports = [FACTS["metrics_unit"], FACTS["fleet_unit"]]
    renewal = [FACTS["certificate_timer"]] if FACTS["certificate_timer"] else []
    return [*behind_nginx, *reports, *renewal, FACTS["refresh_timer"], FACTS["reap_timer"]]


def problems() -> list[str]:
    """What keeps this master from serving; empty when all services answer."""
    found = mount_problems(*FACTS["volumes"], FACTS["dbserver_dir"], FACTS["nfs_dir"], FACTS["engine_dir"])
    found += unit_problems(*services(), *background())
    renewal = [FACTS["certificate_renewal"]] if FACTS["certificate_renewal"] else []
    found += failed_units(FACTS["refresh_service"], FACTS["reap_service"], *renewal)
    for unit, port in services().items():
        if not answers(FACTS["master_address"], port):
            found.append(f"{unit} does not answer on {port}")
    if FACTS["webui"] and not mount_problems(FACTS["nfs_dir"], FACTS["engine_dir"]):
        found += run(*FACTS["webui_check"].split()).splitlines()
    return found or broker_alarms()


def broker_alarms() -> list[str]:
    """A line for each reason why RabbitMQ takes no messages, in its own words."""
    command = ["rabbitmq-diagnostics", "--quiet", "--formatter", "json", "alarms"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ALARMS_SECONDS)
    except subprocess.TimeoutExpired:
        return [f"{FACTS['rabbitmq_unit']} does not say in {ALARMS_SECONDS} s whether it takes messages"]
    if done.returncode:
        return [f"{FACTS['rabbitmq_unit']} does not say whether it takes messages: {done.stderr.strip()}"]
    return [
        f"{FACTS['rabbitmq_unit']} takes no messages: {alarm} "
        f"(make room in {FACTS['rabbitmq_dir']}, or give the master more memory)"
        for alarm in json.loads(done.stdout).get("local", [])  # not there where there is none
    ]


if __name__ == "__main__":
    main("master", bootstrap, problems, OTHER_COMMANDS)
