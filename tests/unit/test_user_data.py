"""The user data that the program gives to its machines: decoded, and taken apart.

That a node boots from it is shown by the lab's tests, not here.
"""

from __future__ import annotations

import ast
import base64
import configparser
import hashlib
import json
import os
import pwd
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from oq_celery import settings

from components import facts, userdata
from lab.aws import user_data
from lab.aws.recording import Recording
from tests.unit.conftest import ENDPOINTS, ENDPOINTS_DISKLESS, MODES, NAT, NAT_DISKLESS, Record
from tests.unit.test_program import INSTANCE, MOUNT_TARGET, SECRET, SIZES, TEMPLATE, VOLUME

# Some of the limit stays free for what comes next, and for longer names. What is larger is for the engine bundle: see
# "What a node publishes is in the engine's bundle" in docs/decisions.md.
ROOM = 0.93
ENGINE = Path(__file__).parent.parent.parent / "engine"


def encoded(recording: Recording) -> dict[str, str]:
    """The user data of master and worker as EC2 gets it."""
    return {
        "master": recording.one(INSTANCE).inputs["userDataBase64"],
        "worker": recording.one(TEMPLATE).inputs["userData"],
    }


def configs(recording: Recording) -> dict[str, dict[str, Any]]:
    """The cloud-config of master and worker."""
    return {role: user_data.decode(data) for role, data in encoded(recording).items()}


def files(config: dict[str, Any]) -> dict[str, str]:
    """The files that a cloud-config writes, by path."""
    return {entry["path"]: entry["content"] for entry in config["write_files"]}


def openquake_cfg(config: dict[str, Any]) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(files(config)[facts.OPENQUAKE_CFG])
    return parser


def test_user_data_is_small_enough_with_room_to_spare(each_mode: Recording) -> None:
    for role, data in encoded(each_mode).items():
        assert len(base64.b64decode(data)) <= ROOM * facts.USER_DATA_LIMIT, role


def test_what_only_readers_of_the_repository_need_is_not_in_it(each_mode: Recording) -> None:
    for role, config in configs(each_mode).items():
        written = files(config)
        for path, content in written.items():
            comments = [line for line in content.splitlines() if re.match(r" *#(?!!)", line)]
            assert comments == [], f"{role}: {path}"
        programs = {Path(path): text for path, text in written.items() if path.endswith(".py")}
        assert programs
        for program, text in programs.items():
            source = (userdata.CLOUD_INIT_DIR / "oq_node" / program.name).read_text()
            assert ast.dump(ast.parse(text)) == ast.dump(_Undocumented().visit(ast.parse(source))), program


class _Undocumented(ast.NodeTransformer):
    """The same program without docstrings, where there is more in a block."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            node.body = node.body[1:] or node.body
        return node


def test_user_data_is_compressed_to_the_same_bytes_by_every_python_on_every_machine() -> None:
    """If this fails, libdeflate has changed: every master of a cluster that exists will be replaced once."""
    text = "".join(
        f"- path: /usr/lib/{n * n % 97}\n  content: {n % 13 * '=' + str(n**3)}\n" for n in range(1000)
    )
    assert hashlib.sha256(userdata.compress(text)).hexdigest() == (
        "a50a67df8f62495ec74c0bf404701b5a83dfb6ba60266a33650e03a857016f83"
    )


def test_a_node_is_told_what_its_program_asks_for_and_nothing_else(record: Record) -> None:
    """Every other value would replace the master, too, when it changes. The engine's programs ask the master's."""
    engine = "".join(path.read_text() for path in ENGINE.glob("oq_*/*.py"))
    assert "FACTS[" in engine
    for role, config in configs(record()).items():
        written = files(config)
        programs = "".join(text for path, text in written.items() if path.endswith(".py"))
        programs += engine if role == "master" else ""
        asked = set(re.findall(r"FACTS\[.(\w+).\]", programs))
        assert set(json.loads(written["/etc/openquake/node.json"])) == asked, role


def test_every_node_has_the_openquake_cfg_of_a_cluster_with_celery(each_mode: Recording) -> None:
    address = each_mode.exports["masterAddress"]
    for role, config in configs(each_mode).items():
        parser = openquake_cfg(config)
        assert parser.getboolean("celery", "use_celery"), role
        amqp = dict(parser["amqp"])
        assert {key: amqp[key] for key in ("host", "port", "vhost", "celery_queue")} == {
            "host": address,
            "port": "5672",
            "vhost": facts.AMQP_VHOST,
            "celery_queue": "celery",
        }
        dbserver = dict(parser["dbserver"])
        assert {key: dbserver[key] for key in ("multi_user", "file", "log", "host", "port")} == {
            "multi_user": "true",
            "file": "/var/lib/openquake/db.sqlite3",
            "log": "/var/lib/openquake/dbserver.log",
            "host": address,
            "port": "1999",
        }
        assert parser["directory"]["shared_dir"] == facts.SHARED_DIR
        # Upstream knows no "celery" here, and raises when it is imported.
        assert parser["distribution"]["oq_distribute"] == "processpool"
        said = {section: dict(parser[section]) for section in parser.sections()}
        said["amqp"].setdefault("password", "filled in on the node")
        assert settings.load(said).shared_dir == Path(facts.SHARED_DIR), role  # nothing is missing


def test_another_size_of_the_fleet_changes_no_machine(record: Record) -> None:
    """No master is replaced and no worker rolled: `pulumi up` changes the group, its policies and a tag."""
    small, large = (record(**SIZES | {"workerMax": str(maximum)}) for maximum in (5, 50))
    assert encoded(small) == encoded(large)
    for type_ in (INSTANCE, TEMPLATE):
        inputs = [dict(one.one(type_).inputs) for one in (small, large)]
        tags = [one.pop("tags") for one in inputs]
        assert inputs[0] == inputs[1]
        assert {key for key, value in tags[0].items() if tags[1][key] != value} <= {facts.NUM_CORES_TAG}


def test_no_password_is_in_the_user_data(each_mode: Recording) -> None:
    """Not under its key, nor under a default's value; test_program shows that nothing in it is random."""
    for role, config in configs(each_mode).items():
        parser = openquake_cfg(config)
        assert not parser["amqp"].get("password"), role
        assert not parser["dbserver"].get("authkey"), role
        assert parser["amqp"]["user"] != "guest"
        assert "changeme" not in yaml.safe_dump(config)
        assert (
            json.loads(files(config)["/etc/openquake/node.json"])["secret_id"]
            == each_mode.one(SECRET, "secrets-cluster").outputs["arn"]
        )


def test_only_the_master_has_dbserver_webui_and_broker_and_only_workers_have_celery(
    each_mode: Recording,
) -> None:
    webui = "webUiUrl" in each_mode.exports
    written = {role: " ".join(files(config)) for role, config in configs(each_mode).items()}
    for unit, on_master, on_worker in (
        (facts.DBSERVER_UNIT, True, False),
        (facts.WEBUI_UNIT, webui, False),
        (facts.NGINX_UNIT, webui, False),
        ("bin/oq-webui", webui, False),
        (facts.RABBITMQ_UNIT, True, False),
        (facts.CELERY_UNIT, False, True),
    ):
        assert (unit in written["master"], unit in written["worker"]) == (on_master, on_worker), unit


def test_with_login_the_webui_is_in_upstreams_restricted_mode(record: Record) -> None:
    path = f"/etc/systemd/system/{facts.WEBUI_UNIT}"
    for login, mode in (("true", "RESTRICTED"), ("false", "PUBLIC")):
        unit = files(configs(record(webuiLogin=login))["master"])[path]
        assert f"\nEnvironment=OQ_APPLICATION_MODE={mode}\n" in unit


def test_the_webui_alone_is_handed_its_secrets_and_its_restart_ends_no_calculation(record: Record) -> None:
    written = files(configs(record())["master"])
    unit = written[f"/etc/systemd/system/{facts.WEBUI_UNIT}"]
    assert [text for text in written.values() if "OpenFile=" in text] == [unit]
    assert f"OpenFile={facts.WEBUI_SECRETS}:secrets:read-only\n" in unit
    # What it computes for people runs as its user, who could read the file of a credential.
    assert not any("LoadCredential=" in text for text in written.values())
    assert "KillMode=process\n" in unit


def test_nginx_alone_reaches_the_webuis_socket(record: Record) -> None:
    """By its group, which root gives the socket; gunicorn makes it for its own and that."""
    written = files(configs(record())["master"])
    assert (
        f"ExecStartPost=+chgrp www-data {facts.WEBUI_SOCKET}\n"
        in written[f"/etc/systemd/system/{facts.WEBUI_UNIT}"]
    )
    assert "Group=www-data\n" in written[f"/etc/systemd/system/{facts.NGINX_UNIT}"]


HTTPS = ("self", "arn:aws:secretsmanager:eu-central-1:123456789012:secret:webui-AbC123")


@pytest.mark.parametrize("certificate", HTTPS)
def test_with_a_certificate_nginx_and_the_webui_wait_for_it_and_nginx_alone_is_handed_the_key(
    record: Record, certificate: str
) -> None:
    recording = record(webuiCertificate=certificate)
    assert len(base64.b64decode(encoded(recording)["master"])) <= ROOM * facts.USER_DATA_LIMIT
    written = files(configs(recording)["master"])
    units = {Path(path).name: text for path, text in written.items() if path.endswith(".service")}
    for unit in (facts.NGINX_UNIT, facts.WEBUI_UNIT):
        for order in ("Requires", "After"):
            assert re.search(rf"^{order}=.* {facts.CERTIFICATE_UNIT}\b", units[unit], re.MULTILINE), unit
    handed = [unit for unit, text in units.items() if f"LoadCredential=tls:{facts.WEBUI_PAIR}\n" in text]
    assert handed == [facts.NGINX_UNIT]
    assert " --pair %d/tls " in units[facts.NGINX_UNIT]
    assert f" OQ_WEBUI_CERTIFICATE={facts.WEBUI_CERTIFICATE}\n" in units[facts.WEBUI_UNIT]
    command, renewal = (
        re.findall(r"^ExecStart=(.*)", units[unit], re.MULTILINE)
        for unit in (facts.CERTIFICATE_UNIT, facts.CERTIFICATE_RENEWAL_SERVICE)
    )
    assert f" --source {certificate} --directory {facts.WEBUI_TLS_DIR} " in command[0]
    assert renewal == [f"{command[0]} --restart"]


def test_a_certificate_of_the_masters_own_is_kept_on_a_data_volume_that_only_root_writes() -> None:
    kept = Path(facts.WEBUI_KEPT_PAIR)
    assert kept.is_relative_to(facts.VAR_MOUNT)
    # boot/volumes.sh leaves these two to the image, and people's calculations write below the third.
    assert not any(kept.is_relative_to(other) for other in ("/var/lib", "/var/cache", facts.CUSTOM_TMP))


def test_without_a_certificate_no_node_knows_of_one(each_mode: Recording) -> None:
    for role, config in configs(each_mode).items():
        written = files(config)
        assert not [path for path in written if path.startswith("/etc/systemd/system/openquake-certificate")]
        units = "".join(text for path, text in written.items() if path.endswith(".service"))
        assert not re.search(facts.CERTIFICATE_UNIT + "|--pair|tls:|OQ_WEBUI_CERTIFICATE=[^\n]", units), role


def test_nginx_is_installed_where_there_is_a_webui_and_never_started_by_debian(each_mode: Recording) -> None:
    config = configs(each_mode)["master"]
    node = json.loads(files(config)["/etc/openquake/node.json"])
    assert ("nginx" in node["packages"]) == ("webUiUrl" in each_mode.exports)
    assert any("systemctl mask" in step and " nginx.service" in step for step in config["bootcmd"])


def test_the_master_finds_its_volumes_by_their_ids(each_mode: Recording) -> None:
    (script,) = [step for step in configs(each_mode)["master"]["bootcmd"] if "VOLUMES=" in step]
    for mount, name in (("/home", "home"), ("/var", "var"), ("/var/lib/rabbitmq", "rabbitmq")):
        volume = each_mode.one(VOLUME, f"storage-{name}").id
        assert f"{mount}={facts.EBS_DEVICE_PREFIX}{volume.replace('-', '')}" in script
    assert "/dev/sd" not in script


def test_the_boot_waits_for_the_volumes_but_not_for_ever(each_mode: Recording) -> None:
    """A unit waits without end; who cannot log in cannot attach what is missing."""
    (script,) = [step for step in configs(each_mode)["master"]["bootcmd"] if "VOLUMES=" in step]
    units = " ".join(userdata.volume_unit(mount) for mount in sorted(facts.VOLUME_MOUNTS))
    assert f"timeout $wait systemctl start {units} || " in script
    # The unit that the boot starts is the one that the script writes.
    assert "/etc/systemd/system/openquake-volume@.service" in script


def test_the_nodes_program_takes_nothing_from_the_directory_in_which_it_is_called(
    each_mode: Recording, tmp_path: Path
) -> None:
    """An administrator may stand in one where anybody writes."""
    for role, config in configs(each_mode).items():
        for place in ("ours", "theirs"):
            module = tmp_path / place / "oq_node" / f"{role}.py"
            module.parent.mkdir(parents=True, exist_ok=True)
            module.write_text(f"print('{place}')\n")
        program = files(config)[facts.NODE_PROGRAM].replace(userdata.LIBRARY_PARENT, str(tmp_path / "ours"))
        done = subprocess.run(["sh", "-c", program], cwd=tmp_path / "theirs", capture_output=True, text=True)
        assert done.stdout == "ours\n", role


def test_a_script_that_runs_while_a_boot_writes_it_anew_is_not_cut_off(
    record: Record, tmp_path: Path
) -> None:
    """Its unit begins before bootcmd does, and again when it fails; a shell that reads nothing ends with success."""
    (step,) = [step for step in configs(record())["master"]["bootcmd"] if "VOLUMES=" in step]
    writes = step.partition("systemctl enable")[0].replace(" /", f" {tmp_path}/")
    script = tmp_path / "usr/local/sbin/openquake-volume"
    subprocess.run(["sh", "-ec", writes], check=True)
    assert os.access(script, os.X_OK)
    with script.open() as running:
        subprocess.run(["sh", "-ec", writes], check=True)
        assert os.fstat(running.fileno()).st_nlink == 0, "it was emptied and written under those who read it"
    assert not list(tmp_path.rglob("*.new"))


def webui_units(config: dict[str, Any]) -> set[str]:
    """The units of the WebUI, if a master has one."""
    node = json.loads(files(config)["/etc/openquake/node.json"])
    return {facts.WEBUI_UNIT} if node["webui"] else set()


def test_no_service_fails_for_good_because_a_mount_comes_late(each_mode: Recording) -> None:
    """RequiresMountsFor would make it depend on a mount unit, which is tried once and fails what depends on it."""
    for role, config in configs(each_mode).items():
        units = {
            path: text for path, text in files(config).items() if path.startswith("/etc/systemd/system/")
        }
        assert not [path for path, text in units.items() if "RequiresMountsFor" in text], role
        of_the_engine = set()
        for path, text in units.items():
            if re.search(rf"^ExecStart=(/usr/local/bin/oq|{facts.ENGINE_DIR}/)", text, re.MULTILINE):
                assert re.search(rf"^Requires={facts.MOUNTS_UNIT}\b", text, re.MULTILINE), path
                assert re.search(rf"^After={facts.MOUNTS_UNIT}\b", text, re.MULTILINE), path
                of_the_engine.add(Path(path).name)
        assert of_the_engine >= (
            {facts.CELERY_UNIT}
            if role == "worker"
            else {facts.DBSERVER_UNIT, facts.METRICS_UNIT, facts.FLEET_UNIT, *webui_units(config)}
        )


def test_nfs_is_read_fifteen_blocks_ahead_as_by_awss_own_mount_helper(each_mode: Recording) -> None:
    """Linux's default for NFS is 128 kB since 5.4; the engine alone has 344 MB."""
    for role, config in configs(each_mode).items():
        unit = files(config)[f"/etc/systemd/system/{facts.MOUNTS_UNIT}"]
        assert f"echo {15 * 1024} > /sys/class/bdi/$$(mountpoint -d {facts.NFS_DIR})/read_ahead_kb" in unit, (
            role
        )


def test_every_node_reboots_after_a_panic_and_gives_huge_pages_to_those_who_ask(each_mode: Recording) -> None:
    for role, config in configs(each_mode).items():
        script = "\n".join(config["bootcmd"])
        assert "kernel.panic=10" in script, role
        assert "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled" in script, role


@pytest.mark.parametrize(("version", "series"), [("4.0.5-6+deb13u2", "4.0"), ("4.3.10-1", "4.3")])
def test_another_series_of_rabbitmq_begins_with_a_directory_of_its_own(
    record: Record, tmp_path: Path, version: str, series: str
) -> None:
    """It upgrades from the series before it at most, and Debian's next image may bring any."""
    query = tmp_path / "dpkg-query"
    query.write_text(f"#!/bin/sh\necho '{version}'\n")
    query.chmod(0o755)
    configuration = files(configs(record())["master"])["/etc/rabbitmq/rabbitmq-env.conf"]
    done = subprocess.run(
        ["sh", "-c", f"{configuration}\necho $RABBITMQ_MNESIA_BASE"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"{facts.RABBITMQ_DIR}/{series}"


def test_shared_memory_outlives_the_shell_that_started_a_calculation(each_mode: Recording) -> None:
    """Where logind is: it removes what users have there when they log out for the last time, as logind.conf(5) says."""
    script = "\n".join(configs(each_mode)["master"]["bootcmd"])
    assert re.search(
        r"^printf '.*\[Login\]\\nRemoveIPC=no\\n' > /run/systemd/logind.conf.d/", script, re.MULTILINE
    )


def test_every_node_mounts_the_file_system_in_its_own_zone(each_mode: Recording) -> None:
    targets = {
        each_mode.by_id(one.inputs["subnetId"]).inputs["availabilityZone"]: one.inputs["ipAddress"]
        for one in each_mode.of_type(MOUNT_TARGET)
    }
    for config in configs(each_mode).values():
        assert json.loads(files(config)["/etc/openquake/node.json"])["nfs_addresses"] == targets


def test_all_nodes_run_the_engine_of_the_bundle_that_the_program_uploads(each_mode: Recording) -> None:
    bundle = each_mode.one("aws:s3/bucketObjectv2:BucketObjectv2").inputs
    nodes = {
        role: json.loads(files(config)["/etc/openquake/node.json"])
        for role, config in configs(each_mode).items()
    }
    assert nodes["master"]["bundle_key"] == bundle["key"]
    assert nodes["master"]["bundle_bucket"] == bundle["bucket"]
    assert nodes["master"]["bundle_sha256"] in bundle["key"]
    assert nodes["master"]["engine_id"] == nodes["worker"]["engine_id"]


def test_an_engine_that_was_built_for_another_processor_has_another_name() -> None:
    """The shared file system keeps it when the instance types change; x86-64 has the name that it always had."""
    assert userdata.engine_id("0123456789abcdef" * 4, "arm64") == "0123456789abcdef-arm64"
    assert userdata.engine_id("0123456789abcdef" * 4, "x86_64") == "0123456789abcdef"


def test_a_server_that_ends_without_an_error_comes_back(each_mode: Recording) -> None:
    """systemd takes death by SIGTERM or SIGINT for a clean end, as by `kill` or `oq dbserver stop`."""
    found = files(configs(each_mode)["master"])
    webui = json.loads(found["/etc/openquake/node.json"])["webui"]
    units = {facts.DBSERVER_UNIT} | ({facts.WEBUI_UNIT, facts.NGINX_UNIT} if webui else set())
    for unit in (facts.DBSERVER_UNIT, facts.WEBUI_UNIT, facts.NGINX_UNIT):
        text = found.get(f"/etc/systemd/system/{unit}", "")
        assert ("Restart=always\n" in text) == (unit in units), unit


def test_what_a_timer_starts_has_a_time_to_end_in(each_mode: Recording) -> None:
    """A oneshot has none by default: it would be "activating" for ever, and its timer start no other."""
    found = files(configs(each_mode)["master"])
    timers = [path for path in found if path.endswith(".timer")]
    assert len(timers) >= 2
    for path in timers:
        assert "TimeoutStartSec=" in found[path.removesuffix("timer") + "service"], path


def test_what_is_left_of_jobs_and_exports_goes_after_a_month(each_mode: Recording) -> None:
    """/var/tmp's own age does not hold below a path with a line of its own."""
    (line,) = [
        line
        for text in files(configs(each_mode)["master"]).values()
        for line in text.splitlines()
        if line.startswith(f"d {facts.CUSTOM_TMP} ")
    ]
    assert line.split()[5] == "30d"


def test_a_worker_installs_nothing(each_mode: Recording) -> None:
    config = configs(each_mode)["worker"]
    assert not {"packages", "apt", "package_update", "package_upgrade", "snap"} & config.keys()
    assert "bundle_key" not in json.loads(files(config)["/etc/openquake/node.json"])


@pytest.mark.parametrize(
    ("mode", "diskless"), [(NAT, False), (ENDPOINTS, False), (NAT_DISKLESS, True), (ENDPOINTS_DISKLESS, True)]
)
def test_only_a_diskless_worker_gets_a_root_that_is_not_written(
    record: Record, mode: str, diskless: bool
) -> None:
    config = configs(record(**MODES[mode]))["worker"]
    assert ("openquake-readonly-root.service" in " ".join(files(config))) == diskless


def test_the_engines_commands_work_without_a_home_as_run_commands_agent_calls_them(
    record: Record, tmp_path: Path
) -> None:
    """The environment that it gives its scripts is in amazon-ssm-agent's issue 427."""
    script = files(configs(record())["master"])["/usr/local/bin/oq-celery"]
    for path, name in (
        (facts.OPENQUAKE_CFG, "cfg"),
        ("/etc/default/openquake", "default"),
        (facts.ENGINE_DIR, "engine"),
    ):
        script = script.replace(path, str(tmp_path / name))
    for name in ("cfg", "default", "engine/numba-cache/index", "engine/bin/oq-celery", "oq-celery"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    program = tmp_path / "engine/bin/oq-celery"
    program.write_text('#!/bin/sh\necho "$HOME $*"\n')
    program.chmod(0o755)
    (tmp_path / "oq-celery").write_text(script)
    done = subprocess.run(
        ["sh", tmp_path / "oq-celery", "status", "--json"],
        env={"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == (f"{pwd.getpwuid(os.getuid()).pw_dir} status --json\n", "")


def test_every_program_and_script_in_it_parses(each_mode: Recording) -> None:
    parsed = 0
    for config in configs(each_mode).values():
        for path, content in files(config).items():
            if path.endswith(".py"):
                compile(content, path, "exec")
                parsed += 1
            elif content.startswith("#!/bin/sh"):
                subprocess.run(["sh", "-n"], input=content, text=True, check=True)
                parsed += 1
        for step in config["bootcmd"]:
            # A script within it, too, which is but text to its shell.
            for text in (
                step,
                *re.findall(r"<< '(\S+)'\n(#!/bin/sh\n.*?)^\1$", step, re.DOTALL | re.MULTILINE),
            ):
                script = text if isinstance(text, str) else text[1]
                subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    assert parsed >= 6
