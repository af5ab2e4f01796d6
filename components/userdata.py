"""User data: what cloud-init makes of a stock Debian image on a master and on a worker.

Pure functions of plain values. The cloud-config is built as data and dumped with PyYAML; the files that it writes are
kept as files in cloud-init/, with the few values they need put in by string.Template, and without their comments and
docstrings: EC2 takes 16 KB.
"""

from __future__ import annotations

import base64
import configparser
import dataclasses
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any, Final

import deflate
import yaml

from components import facts
from components.instance_types import Architecture
from components.settings import WorkerStorage
from components.tags import of_stack

CLOUD_INIT_DIR: Final = Path(__file__).resolve().parent.parent / "cloud-init"
_ENGINE_DIR: Final = CLOUD_INIT_DIR.with_name("engine")
LIBRARY_PARENT: Final = "/usr/local/lib"
LIBRARY_DIR: Final = f"{LIBRARY_PARENT}/oq_node"
_COMMON: Final = ("common", "secret")  # modules of both kinds of node
# How long a boot waits for the data volumes, which are attached after the first power-on and before later ones. Then it
# goes on, to where people can log in, and the volumes come when they come.
FIRST_VOLUMES_SECONDS: Final = 120
LATER_VOLUMES_SECONDS: Final = 20
_COMPRESSION: Final = 12  # the best of libdeflate's levels
# A line of its own, and not the first of a script.
_COMMENT: Final = re.compile(r"^ *#(?!!).*\n", re.MULTILINE)
# Not where it is all that there is of a block.
_DOCSTRING: Final = re.compile(r'^( *)"""(?:(?!""").)*"""\n(?=\n*\1\S)', re.MULTILINE | re.DOTALL)
_FACT: Final = re.compile(r"""FACTS\[["'](\w+)["']\]""")

# Debian packages that the master needs and the official image has not. A custom image may carry them already; with
# `egress: endpoints` it has to.
MASTER_PACKAGES: Final = (
    "rabbitmq-server",  # the broker
    "squashfs-tools",  # builds the engine's image
    "python3-venv",  # builds the engine
    "python3-boto3",  # the bundle from S3 and the secret, before there is an engine
)
WEBUI_PACKAGES: Final = ("nginx",)  # and with a WebUI

CERTIFICATE_UNITS: Final = (
    facts.CERTIFICATE_UNIT,
    facts.CERTIFICATE_RENEWAL_SERVICE,
    facts.CERTIFICATE_RENEWAL_TIMER,
)  # and where it speaks HTTPS

# Between two attempts of a bootstrap that fails, in seconds, and how often a worker tries: 10 minutes at least, for
# somebody to look. Then it powers off and its Auto Scaling group replaces it, to which a machine that runs is healthy.
BOOTSTRAP_RETRY_SECONDS: Final = 30
WORKER_ATTEMPTS: Final = 20

# What the image starts and a node must not: the SSH server, since people come by Session Manager and nothing should
# listen that need not; Debian's own upgrades, which would restart the broker in the middle of a calculation (nodes are
# upgraded by a new image) and which a worker, without a way out, could only fail at.
MASKED_UNITS: Final = (
    "ssh.service",
    "ssh.socket",
    "apt-daily.service",
    "apt-daily.timer",
    "apt-daily-upgrade.service",
    "apt-daily-upgrade.timer",
    "nginx.service",  # Debian's, on port 80; the WebUI has a unit of its own
    "epmd.service",  # the broker starts its own, on loopback
    "epmd.socket",
    "sshd-unix-local.socket",  # systemd makes these two wherever there is an SSH server
    "sshd-vsock.socket",
)

# One level of x86-64 for the whole fleet, AVX2, which every Nitro type has: the engine's compiled code (numba, numpy,
# OpenBLAS) would otherwise follow each machine's own CPU, and a task that moves from one type to another could change
# the last bits of its result. It also makes the numba cache of the master's image good for every worker.
CPU_ENVIRONMENT: Final[Mapping[str, Mapping[str, str]]] = {
    "x86_64": {
        "NUMBA_CPU_NAME": "x86-64-v3",
        "NUMBA_CPU_FEATURES": "+avx2,+fma",
        "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "arm64": {"NUMBA_CPU_NAME": "generic", "OPENBLAS_CORETYPE": "ARMV8"},
}


@dataclasses.dataclass(frozen=True)
class Node:
    """What both kinds of node are told.

    nfs_addresses maps the name of a zone to the address of the mount target of the shared file system, file_system_id,
    there; cluster is this cluster's name in CloudWatch.
    """

    region: str
    architecture: Architecture
    master_address: str
    secret_id: str
    bundle_sha256: str
    nfs_addresses: Mapping[str, str]
    file_system_id: str
    cluster: str


@dataclasses.dataclass(frozen=True)
class MasterNode(Node):
    """The master: volumes maps each of facts.VOLUME_MOUNTS to the id of its EBS volume (vol-…).

    Without a WebUI, webui_secret_id is empty. webui_certificate is that of settings.Settings. By the name of the stack,
    which is in a tag, it finds the group of workers.
    """

    stack: str
    bundle_bucket: str
    bundle_key: str
    volumes: Mapping[str, str]
    webui: bool
    webui_login: bool
    webui_certificate: str
    webui_secret_id: str


@dataclasses.dataclass(frozen=True)
class WorkerNode(Node):
    """A worker: storage is `nfs` (a root disk, engine and data on NFS) or `diskless` (its boot alone writes to a disk).

    drain_seconds is what its running tasks may take when the Auto Scaling group ends it.
    """

    storage: WorkerStorage
    drain_seconds: int


def engine_id(bundle_sha256: str, architecture: str = "x86_64") -> str:
    """The name of the engine's image: 64 bits of the bundle's hash, and the processor, if it is not the usual one."""
    return bundle_sha256[:16] + ("" if architecture == "x86_64" else f"-{architecture}")


def ebs_device(volume_id: str) -> str:
    """The device node of an EBS volume, by its id: facts.EBS_DEVICE_PREFIX says why."""
    return facts.EBS_DEVICE_PREFIX + volume_id.replace("-", "")


def volume_unit(mount: str) -> str:
    """The systemd unit that mounts a data volume; systemd writes a path's slashes as dashes."""
    return f"openquake-volume@{mount.strip('/').replace('/', '-')}.service"


def values(node: Node) -> dict[str, Any]:
    """All that files of a node may name: the node's values, and the facts that this program and the nodes share."""
    shared = {name.lower(): value for name, value in vars(facts).items() if name.isupper()}
    extra: dict[str, Any] = {
        "engine_id": engine_id(node.bundle_sha256, node.architecture),
        "cpu_environment": CPU_ENVIRONMENT[node.architecture],
        "ca_bundle": "/etc/ssl/certs/ca-certificates.crt",
        "bootstrap_retry_seconds": BOOTSTRAP_RETRY_SECONDS,
        "read_ahead_kb": 15 * facts.NFS_BLOCK // 1024,  # as aws/efs-utils sets it
        "bootstrap_limit": "StartLimitIntervalSec=0",
    }
    if isinstance(node, MasterNode):
        extra["packages"] = MASTER_PACKAGES + (WEBUI_PACKAGES if node.webui else ())
        extra["application_mode"] = "RESTRICTED" if node.webui_login else "PUBLIC"  # upstream's words
        # By which the group of workers is found.
        found_by = (f" --tag {key}={value}" for key, value in of_stack(node.stack).items())
        extra["group_options"] = f"--region {node.region}{''.join(found_by)}"
        extra["webui_check"] = (
            f"{facts.ENGINE_DIR}/bin/oq-webui check {node.master_address} {facts.WEBUI_PORT}"
        )
        https = _https(node)
        if node.webui_certificate:
            extra["webui_check"] += f" --certificate {facts.WEBUI_TLS_DIR}"
        extra |= https if node.webui_certificate else dict.fromkeys(https, "")
        extra["home_unit"], extra["var_unit"], extra["rabbitmq_volume_unit"] = map(
            volume_unit, (facts.HOME_MOUNT, facts.VAR_MOUNT, facts.RABBITMQ_DIR)
        )
    if isinstance(node, WorkerNode):
        extra["reserved_mb"] = facts.RESERVED_MB[node.storage]
        extra["bootstrap_limit"] = (
            f"StartLimitIntervalSec=infinity\nStartLimitBurst={WORKER_ATTEMPTS}\nStartLimitAction=poweroff"
        )
    return shared | extra | dataclasses.asdict(node)


def _https(node: MasterNode) -> dict[str, str]:
    """What the units of the WebUI and of nginx have besides, where port 8800 speaks HTTPS."""
    return {
        "certificate_unit": facts.CERTIFICATE_UNIT,
        "certificate_timer": facts.CERTIFICATE_RENEWAL_TIMER,
        "certificate_renewal": facts.CERTIFICATE_RENEWAL_SERVICE,
        "renew_certificate": f"{facts.ENGINE_DIR}/bin/oq-webui renew-certificate --source {node.webui_certificate} "
        f"--directory {facts.WEBUI_TLS_DIR} --kept {facts.WEBUI_KEPT_PAIR} {node.master_address}",
        "certificate_shown": facts.WEBUI_CERTIFICATE,
        "nginx_credential": f"LoadCredential=tls:{facts.WEBUI_PAIR}",
        "nginx_pair": " --pair %d/tls",
    }


def node_facts(node: Node, *modules: str) -> dict[str, Any]:
    """The values that these modules of the node's program ask for, as `FACTS["name"]`, and those of the engine's
    bundle that only the master runs.

    No others: each is a part of the user data, and a master with other user data is another master. Raises KeyError
    where a module asks for what there is not.
    """
    asked = {name for module in modules for name in _FACT.findall(_read(f"oq_node/{module}.py"))}
    if isinstance(node, MasterNode):
        asked |= {
            name for path in _ENGINE_DIR.glob("oq_*/*.py") for name in _FACT.findall(path.read_text("utf-8"))
        }
    known = values(node)
    return {name: known[name] for name in sorted(asked)}


def openquake_cfg(node: Node) -> str:
    """openquake.cfg with the sections and keys of a cluster with Celery, the same on every node.

    Password and authkey are filled in on the node, and so is the master's `num_cores`, which is the fleet's.
    """
    config = configparser.ConfigParser(interpolation=None)
    config["celery"] = {
        "use_celery": "true",
        "memory_per_process_mb": str(facts.MEMORY_PER_PROCESS_MB),
    }
    config["amqp"] = {
        "host": node.master_address,
        "port": str(facts.AMQP_PORT),
        "user": facts.AMQP_USER,
        "vhost": facts.AMQP_VHOST,
        "celery_queue": facts.CELERY_QUEUE,
    }
    config["dbserver"] = {
        "multi_user": "true",
        "file": f"{facts.DBSERVER_DIR}/db.sqlite3",
        "log": f"{facts.DBSERVER_DIR}/dbserver.log",
        "host": node.master_address,
        "port": str(facts.DBSERVER_PORT),
    }
    # Upstream knows no value `celery` here and refuses it at import: [celery] use_celery is the switch.
    # serialize_jobs: job N waits for all up to N - serialize_jobs (upstream's 1 is for one machine).
    config["distribution"] = {
        "oq_distribute": "processpool",
        "serialize_jobs": "4",
    }
    config["directory"] = {"shared_dir": facts.SHARED_DIR, "custom_tmp": facts.CUSTOM_TMP}
    # Percent of the machine's memory: warn, and stop the job before the kernel stops the machine.
    config["memory"] = {"soft_mem_limit": "80", "hard_mem_limit": "95"}
    text = io.StringIO()
    config.write(text)
    return text.getvalue()


def user_data(node: Node) -> str:
    """The node's user data as EC2 wants it: base64 of the gzipped cloud-config.

    Raises ValueError if it exceeds EC2's limit of 16 KB (before base64).
    """
    packed = compress("#cloud-config\n" + dump(cloud_config(node)))
    if len(packed) > facts.USER_DATA_LIMIT:
        raise ValueError(f"user data of {len(packed)} bytes; EC2 takes {facts.USER_DATA_LIMIT}")
    return base64.b64encode(packed).decode()


def compress(text: str) -> bytes:
    """Compressed as by gzip, to the same bytes on every machine: others would replace the master.

    Python's own gzip writes another header in some versions, and zlib's variants compress differently.
    """
    return bytes(deflate.gzip_compress(text.encode(), _COMPRESSION))


def dump(config: Mapping[str, Any]) -> str:
    """YAML with scripts as readable blocks."""
    return yaml.dump(config, Dumper=_BlockDumper, sort_keys=False, width=1000)


class _BlockDumper(yaml.SafeDumper):
    """Dumps text of several lines in literal style."""


def _literal(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_BlockDumper.add_representer(str, _literal)


@dataclasses.dataclass(frozen=True)
class _Role:
    """What tells one kind of node from the other: modules of its program, units, further files, programs of
    the engine, boot scripts.
    """

    modules: tuple[str, ...]
    units: tuple[str, ...]
    templates: Mapping[str, str]
    programs: tuple[str, ...]
    boot: tuple[str, ...]


def _role(node: Node) -> _Role:
    if isinstance(node, MasterNode):
        return _Role(
            modules=("master", "accounts"),
            units=(
                facts.DBSERVER_UNIT,
                facts.METRICS_UNIT,
                facts.FLEET_UNIT,
                facts.REFRESH_SERVICE,
                facts.REFRESH_TIMER,
                facts.REAP_SERVICE,
                facts.REAP_TIMER,
                *([facts.WEBUI_UNIT, facts.NGINX_UNIT] if node.webui else []),
                *(CERTIFICATE_UNITS if node.webui_certificate else []),
            ),
            templates={
                f"/etc/systemd/system/{facts.RABBITMQ_UNIT}.d/openquake.conf": "units/rabbitmq-server.conf",
                "/etc/systemd/system/amazon-ssm-agent.service.d/openquake.conf": "units/amazon-ssm-agent.conf",
                "/etc/rabbitmq/rabbitmq.conf": "etc/rabbitmq.conf",
                "/etc/rabbitmq/rabbitmq-env.conf": "etc/rabbitmq-env.conf",
            },
            programs=("oq-webui",) if node.webui else (),
            # RabbitMQ, of the image or installed before a reboot in the middle, must not start before its users and its
            # volume are there: the bootstrap starts it, and later boots find all in place.
            boot=(
                _read("boot/kernel.sh"),
                _mask(*MASKED_UNITS),
                f"[ -e {facts.BOOTSTRAP_DONE} ] || {_mask('--runtime', facts.RABBITMQ_UNIT)}",
                _volumes(node),
            ),
        )
    if not isinstance(node, WorkerNode):
        raise TypeError(f"neither a master nor a worker: {node}")
    diskless = node.storage == "diskless"
    return _Role(
        modules=("worker", "drain", "journal"),
        units=(
            facts.CELERY_UNIT,
            facts.DRAIN_UNIT,
            facts.JOURNAL_UNIT,
            *(["openquake-readonly-root.service"] if diskless else []),
        ),
        templates={},
        programs=(),
        boot=(
            *([_read("boot/diskless.sh")] if diskless else []),
            _read("boot/kernel.sh"),
            _mask(*MASKED_UNITS, facts.RABBITMQ_UNIT),
        ),
    )


def cloud_config(node: Node) -> dict[str, Any]:
    """The cloud-config of a node as data."""
    role = _role(node)
    program = f'#!/bin/sh\nPYTHONPATH={LIBRARY_PARENT} exec python3 -P -m oq_node.{role.modules[0]} "$@"\n'
    return {
        # SSH keys that nobody uses cost seconds of every boot.
        "ssh_genkeytypes": ["ed25519"],
        "no_ssh_fingerprints": True,
        "ssh": {"emit_keys_to_console": False},
        "bootcmd": list(role.boot),
        "write_files": [
            _file("/etc/openquake/node.json", json.dumps(node_facts(node, *_COMMON, *role.modules))),
            _file(facts.OPENQUAKE_CFG, openquake_cfg(node), "0640"),
            _template(node, facts.ENVIRONMENT_FILE, "etc/default-openquake"),
            _template(node, "/etc/tmpfiles.d/openquake.conf", "etc/tmpfiles.conf"),
            *(
                _template(node, f"/usr/local/bin/{name}", "etc/oq", "0755")
                for name in ("oq", "oq-celery", *role.programs)
            ),
            *(
                _file(f"{LIBRARY_DIR}/{name}.py", _read(f"oq_node/{name}.py"))
                for name in _COMMON + role.modules
            ),
            _file(facts.NODE_PROGRAM, program, "0755"),
            *(_template(node, path, name) for path, name in role.templates.items()),
            *(
                _template(node, f"/etc/systemd/system/{unit}", f"units/{unit}")
                for unit in (facts.BOOTSTRAP_UNIT, facts.MOUNTS_UNIT, *role.units)
            ),
        ],
        # Once per instance, whatever the image's own machine has been.
        "runcmd": [
            ["rm", "-f", facts.BOOTSTRAP_DONE],
            ["systemctl", "enable", "--now", "--no-block", facts.BOOTSTRAP_UNIT],
        ],
    }


def _mask(*units: str) -> str:
    return f"systemctl mask --quiet --now --no-block {' '.join(units)}"


def _volumes(node: MasterNode) -> str:
    """bootcmd's part of the data volumes: write their units, which write_files could do only after it, and start them.

    The units run at later boots even where bootcmd does not, because the metadata service is away.
    """
    devices = " ".join(f"{mount}={ebs_device(volume)}" for mount, volume in sorted(node.volumes.items()))
    script = _read("boot/volumes.sh").replace("\n", f"\nVOLUMES='{devices}'\n", 1)
    units = " ".join(volume_unit(mount) for mount in sorted(node.volumes))
    written = [
        _file("/usr/local/sbin/openquake-volume", script, "0755"),
        _template(node, "/etc/systemd/system/openquake-volume@.service", "units/openquake-volume@.service"),
        _template(
            node,
            "/etc/systemd/system/systemd-journal-flush.service.d/openquake.conf",
            "units/systemd-journal-flush.conf",
        ),
    ]
    return (
        _PUT
        + "".join(_here(**file) for file in written)
        + f"systemctl enable --quiet {units}\n"
        + f"wait={FIRST_VOLUMES_SECONDS}\n"
        + f"[ ! -e {facts.BOOTSTRAP_DONE} ] || wait={LATER_VOLUMES_SECONDS}\n"
        + f"timeout $wait systemctl start {units} || echo 'the boot goes on'\n"
    )


# At once, since a unit may be about to run what is written anew: a shell that finds its script empty has done it.
_PUT = "put() { mkdir -p ${1%/*}; cat > $1.new && chmod $2 $1.new && mv $1.new $1; }\n"


def _here(path: str, content: str, permissions: str) -> str:
    """The lines of shell, after `_PUT`, that write a file."""
    return f"put {path} {permissions} << 'END'\n{content}END\n"


def _read(name: str) -> str:
    """A file of cloud-init/ as nodes get it, without the words for those who read the repository."""
    return _DOCSTRING.sub("", _COMMENT.sub("", (CLOUD_INIT_DIR / name).read_text("utf-8")))


def _file(path: str, content: str, permissions: str = "0644") -> dict[str, str]:
    return {"path": path, "permissions": permissions, "content": content}


def _template(node: Node, path: str, name: str, permissions: str = "0644") -> dict[str, str]:
    known = values(node)
    environment = "\n".join(f'{key}="{value}"' for key, value in known["cpu_environment"].items())
    text = Template(_read(name)).substitute(known | {"cpu_environment": environment})
    return _file(path, text, permissions)
