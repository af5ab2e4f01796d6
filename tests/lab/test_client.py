"""`oq-cluster` on a cluster: what a seismologist does at a computer of their own."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from components import facts
from lab.base import REPOSITORY
from lab.cluster import build, cluster, fleet
from lab.cluster.cluster import Lab
from lab.linux.host import Paths, wait_until
from lab.linux.network import enter
from lab.trials.job import CLASSICAL, USER, DemoJob, fetch_job, make_user
from tests.certificates import certificate, key, private
from tests.lab.computer import Computer, person
from tests.lab.conftest import booted
from tests.lab.support import DEADLINE, listening, on
from tests.lab.web import Client

pytestmark = pytest.mark.lab

ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:seismology/webui-AbC123"
NAME = "openquake.example.org"
AUTHORITY = key()
CA = certificate(AUTHORITY, AUTHORITY, "an authority", ca=True)
TREE = DemoJob("tree", "demos/hazard/LogicTreeCase2ClassicalPSHA")


def shown_until(process: subprocess.Popen[str], text: str) -> str:
    """What a command writes until a text."""
    assert process.stderr is not None
    shown = ""
    while text not in shown:
        line = process.stderr.readline()
        assert line, shown
        shown += line
    return shown


def rest_of(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a command writes until it ends, after `shown_until`: standard output and error."""
    assert process.stderr is not None
    assert process.stdout is not None
    errors = process.stderr.read()
    printed = process.stdout.read()
    process.wait(30)
    return printed, errors


def forwards(process: subprocess.Popen[str]) -> list[int]:
    """The processes of a command's port forward."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"forward" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.fixture(scope="module")
def nfs_cluster(paths: Paths) -> Iterator[Lab]:
    """A master and two workers; the WebUI speaks HTTPS, with a certificate that the users have."""
    with booted(paths, lambda lab: build.give_secret(lab, ARN, pair()), webuiCertificate=ARN) as lab:
        yield lab


def pair(**differently: Any) -> str:
    """A certificate of an authority, and its key, as users put them into the secret."""
    own = key()
    return certificate(own, AUTHORITY, NAME, **differently) + private(own)


@pytest.fixture(scope="module")
def ann(nfs_cluster: Lab, tmp_path_factory: pytest.TempPathFactory) -> Computer:
    """Ann has made herself an account and has logged in."""
    return person(nfs_cluster, tmp_path_factory.mktemp("ann"), "ann")


@pytest.fixture(scope="module")
def bob(nfs_cluster: Lab, tmp_path_factory: pytest.TempPathFactory) -> Computer:
    """So has Bob."""
    return person(nfs_cluster, tmp_path_factory.mktemp("bob"), "bob")


@pytest.fixture(scope="module")
def job(nfs_cluster: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job with two source models in folders of their own, and one file outside of the job's."""
    demo = fetch_job(nfs_cluster, TREE).parent
    top = tmp_path_factory.mktemp("models")
    for folder in ("study/models/a", "study/models/b", "shared"):
        (top / folder).mkdir(parents=True)
    model = (demo / "source_model.xml").read_text()
    (top / "study/models/a/one.xml").write_text(model)
    (top / "study/models/b/two.xml").write_text(re.sub(r' id="(\w+)"', r' id="other_\1"', model))
    tree = (demo / "source_model_logic_tree.xml").read_text()
    first = re.search(r"(?s).*?</logicTreeBranchSet>", tree)
    assert first
    alone = first[0].replace("source_model.xml", "a/one.xml b/two.xml") + "</logicTree></nrml>"
    (top / "study/models/tree.xml").write_text(alone)
    shutil.copy(demo / "gmpe_logic_tree.xml", top / "shared")
    text = (demo / "job.ini").read_text()
    text = text.replace(" source_model_logic_tree.xml", " models/tree.xml")
    text = text.replace(" gmpe_logic_tree.xml", " ../shared/gmpe_logic_tree.xml")
    (top / "study/job.ini").write_text(text)
    (top / "study/notes.txt").write_text("nobody names this\n")
    return top / "study/job.ini"


@pytest.fixture(scope="module")
def long(nfs_cluster: Lab) -> Path:
    """A job that computes for a while."""
    job = fetch_job(nfs_cluster, CLASSICAL)
    long = job.with_name("long.ini")
    text, number = re.subn(r"(area_source_discretization *=).*", r"\1 1", job.read_text())
    assert number == 1
    long.write_text(text)
    return long


def test_a_job_with_models_in_folders_gives_what_the_command_line_gives(
    ann: Computer, job: Path, tmp_path: Path
) -> None:
    result = ann.json("run", job, "--out", tmp_path / "out")
    number = result["id"]
    assert result["status"] == "complete"
    assert re.search(r"uploaded 5 files, .* MB/s", ann.errors)
    assert "read_source_model 100%" in ann.errors
    assert "celery workers" in ann.errors
    downloaded = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").glob("*.csv")
    }
    make_user(ann.lab)
    export = f"oq engine --export-outputs {number} ~/client >&2; cd ~/client; sha256sum *.csv"
    printed = on(ann.lab, "master", f"runuser --login {USER} --command '{export}'")
    exported = {name: digest for digest, name in map(str.split, printed.splitlines())}
    assert len(downloaded) > 3
    assert downloaded == exported


def finished(ann: Computer) -> int:
    """A calculation of ann's that is complete."""
    return int(next(one["id"] for one in ann.json("list") if one["status"] == "complete"))


def test_the_datastore_comes_as_the_master_has_it(ann: Computer, tmp_path: Path) -> None:
    number = finished(ann)
    files = ann.json("get", str(number), "--out", tmp_path, "--datastore")["files"]
    assert str(tmp_path / f"calc_{number}.hdf5") in files
    digest = hashlib.sha256((tmp_path / f"calc_{number}.hdf5").read_bytes()).hexdigest()
    printed = on(ann.lab, "master", f"sha256sum $(find {facts.SHARED_DIR} -name calc_{number}.hdf5)")
    assert printed.split()[0] == digest


def test_the_webui_is_opened_on_this_computer_until_ctrl_c(ann: Computer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with ann.running("webui", "--no-browser", "--port", str(port)) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == f"https://127.0.0.1:{port}  (Ctrl-C ends it)\n"
        connection = socket.create_connection(("127.0.0.1", port), 60)
        page = answer(connection, CA, NAME, f"127.0.0.1:{port}", "/accounts/login/")
        assert (page.splitlines()[0].split()[1], "Log in" in page) == ("200", True), page[:2000]
        children = forwards(process)
        assert children
        process.send_signal(signal.SIGINT)
        rest_of(process)
    assert process.returncode == 0
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def test_a_shell_of_the_master_has_this_terminal_and_ends_with_its_status(ann: Computer) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ann.command("shell"), env=ann.environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        os.write(ours, b"test -t 0 && echo on $(hostname) as $(id --user --name); exit 7\n")
        assert process.wait(60) == 7
        shown = os.read(ours, 1 << 16).decode()
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    hostname = on(ann.lab, "master", "hostname").strip()
    assert f"on {hostname} as root" in shown


def test_a_job_that_fails_says_why_and_has_status_1(ann: Computer, job: Path) -> None:
    models = job.parent / "models"
    depth = "<upperSeismoDepth>"
    model = (models / "a/one.xml").read_text().replace(depth, f"{depth}deep")
    assert f"{depth}deep" in model
    (models / "wrong.xml").write_text(model)
    (models / "wrong_tree.xml").write_text(
        (models / "tree.xml").read_text().replace("b/two.xml", "wrong.xml")
    )
    wrong = job.with_name("wrong.ini")
    wrong.write_text(job.read_text().replace("models/tree.xml", "models/wrong_tree.xml"))
    printed = ann.oq("run", wrong, status=1)
    assert "is failed" in printed
    assert "could not convert string to float" in printed or "upperSeismoDepth" in printed
    refused = job.with_name("refused.ini")
    refused.write_text(job.read_text().replace("classical", "clasical"))
    ann.oq("run", refused, status=1)
    assert "the engine refuses the job" in ann.errors
    assert "clasical" in ann.errors


def test_ctrl_c_leaves_the_calculation_alone_and_abort_ends_it(ann: Computer, long: Path) -> None:
    with ann.running("run", long) as process:
        shown = shown_until(process, "Sent ")
        children = forwards(process)
        assert children
        process.send_signal(signal.SIGINT)
        _, rest = rest_of(process)
    assert process.returncode == 130
    (number,) = re.findall(r"calculation (\d+): ", shown)
    assert f"oq-cluster abort {number}" in rest
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert ann.json("status", number)["status"] == "executing"
    assert ann.oq("abort", number).split() == ["calculation", number, "is", "aborted"]
    assert ann.oq("abort", number, status=1) == ""


def test_a_calculation_is_followed_past_a_lost_connection_and_a_restart_of_the_webui(
    ann: Computer, job: Path
) -> None:
    with ann.running("run", job) as process:
        shown = shown_until(process, "Sent ")
        for pid in forwards(process):
            os.kill(pid, signal.SIGKILL)
        on(ann.lab, "master", f"systemctl restart {facts.WEBUI_UNIT}")
        printed, rest = rest_of(process)
    assert process.returncode == 0, rest
    assert "trying again" in rest
    (number,) = re.findall(r"calculation (\d+): ", shown)
    log = ann.oq("log", number).splitlines()
    followed = [line for line in (shown + rest).splitlines() if line.startswith("[")]
    assert followed == [line for line in log if line.startswith("[")]
    assert f"calculation {number} is complete" in printed


def test_others_see_a_calculation_while_it_is_shared(ann: Computer, bob: Computer, job: Path) -> None:
    number = ann.json("run", job)["id"]
    bob.oq("status", str(number), status=1)
    ann.oq("share", str(number))
    assert number in [one["id"] for one in bob.json("list")]
    bob.oq("remove", str(number), status=1)
    ann.oq("unshare", str(number))
    assert number not in [one["id"] for one in bob.json("list")]
    ann.oq("remove", str(number))
    assert number not in [one["id"] for one in ann.json("list")]


def test_a_session_that_has_ended_says_log_in_again(bob: Computer) -> None:
    on(bob.lab, "master", "oq-webui password bob")
    bob.oq("list", status=1)
    assert "log in again: oq-cluster login bob" in bob.errors


def test_accounts_are_listed_and_removed(ann: Computer) -> None:
    ann.json("users", "add", "eve")
    assert {"user": "eve", "admin": False} in ann.json("users", "list")
    ann.oq("users", "add", "eve", status=1)
    ann.oq("users", "remove", "eve")
    assert "eve" not in [one["user"] for one in ann.json("users", "list")]


def test_somebody_changes_their_own_password_and_stays_logged_in(ann: Computer, tmp_path: Path) -> None:
    password, new = ann.json("users", "add", "eve")["password"], "of my own choice"
    eve = Computer(ann.lab, tmp_path)
    eve.oq("login", "eve", "--password-stdin", stdin=f"{password}\n")
    eve.oq("password", "--password-stdin", stdin=f"{password}\n12345678\n", status=1)
    assert "too common" in eve.errors
    eve.oq("password", "--password-stdin", stdin=f"{password}\n{new}\n")
    eve.oq("list")
    eve.oq("login", "eve", "--password-stdin", stdin=f"{password}\n", status=1)
    eve.oq("login", "eve", "--password-stdin", stdin=f"{new}\n")
    ann.oq("users", "remove", "eve")


def test_the_workers_are_told_with_what_they_do(ann: Computer, long: Path) -> None:
    idle = ann.json("workers")
    assert [one["state"] for one in idle["fleet"]["instances"]] == ["InService", "InService"]
    assert sum(worker["busy"] for worker in idle["queue"]["workers"]) == 0
    number = ann.json("run", long, "--no-wait")["id"]
    wait_until(
        "a busy worker",
        lambda: sum(worker["busy"] for worker in ann.json("workers")["queue"]["workers"]),
        DEADLINE,
    )
    ann.oq("abort", str(number))
    on(ann.lab, "master", f"systemctl stop {facts.RABBITMQ_UNIT}")
    try:
        assert "does not answer" in ann.oq("workers", status=1)
    finally:
        on(ann.lab, "master", f"systemctl start {facts.RABBITMQ_UNIT}")


def test_where_amazon_has_no_room_for_a_worker_the_log_of_a_calculation_says_why(
    ann: Computer, long: Path
) -> None:
    for worker in ann.lab.staying():  # so that tasks wait for certain
        on(ann.lab, worker.name, f"systemctl stop {facts.CELERY_UNIT}")
    fleet.limit(ann.lab, 2)
    number = str(ann.json("run", long, "--no-wait")["id"])
    try:
        fleet.set_capacity(ann.lab, 3)
        wait_until("the reason", lambda: "No further worker starts" in ann.oq("log", number), DEADLINE)
        (line,) = [line for line in ann.json("log", number) if "No further worker" in line["message"]]
        assert line["level"] == "WARNING"
        assert "2 of 3 are there: AWS has no spot capacity" in line["message"]
        assert "workerOnDemandBase" in line["message"]
        shown = ann.oq("workers")
        assert "2 of 3 wanted" in shown
        assert re.search("no worker started at .*UnfulfillableCapacity", shown)
        fleet.limit(ann.lab, None)
        fleet.set_capacity(ann.lab, 2)
        wait_until("its end", lambda: "Workers start again" in ann.oq("log", number), DEADLINE)
        assert ann.oq("log", number).count("No further worker starts") == 1
    finally:
        fleet.limit(ann.lab, None)
        fleet.set_capacity(ann.lab, 2)
        for worker in ann.lab.staying():
            on(ann.lab, worker.name, f"systemctl start {facts.CELERY_UNIT}")
        ann.oq("abort", number)


def test_what_a_worker_has_said_and_what_a_calculation_has_cost_can_be_seen_from_afar(ann: Computer) -> None:
    number = finished(ann)
    (cost,) = ann.json("cost", str(number))
    assert cost["id"] == number
    assert cost["seconds"] > 0
    assert f"{cost['seconds']:.1f} s" in ann.oq("cost", str(number))
    worker = ann.lab.workers()[0]
    on(ann.lab, worker.name, "logger --tag oqlab a word of a worker")
    wait_until(
        "the worker's word",
        lambda: "a word of a worker" in ann.oq("logs", str(worker.address), "--lines", "50"),
        DEADLINE,
    )
    assert str(worker.address) in [one["address"] for one in ann.json("logs")]
    ann.oq("logs", "10.99.99.99", status=1)
    assert "get-console-output" in ann.errors


def test_a_bug_reports_archive_has_the_journal_and_no_secret(ann: Computer, tmp_path: Path) -> None:
    number = finished(ann)
    archive = tmp_path / "diag.tar.gz"
    ann.oq("diag", str(number), "--out", archive)
    with tarfile.open(archive) as opened:
        files = {Path(member.name).name: opened.extractfile(member) for member in opened}
        texts = {name: file.read().decode() for name, file in files.items() if file is not None}
    assert "not to be had" not in "".join(texts.values())
    assert "oq-node" in texts["journal.txt"]
    assert f"calculation-{number}.log" in texts
    webui = json.loads(on(ann.lab, "master", f"cat {facts.WEBUI_SECRETS}"))
    cfg = on(ann.lab, "master", f"grep -E '^(password|authkey|.*key) *=' {facts.OPENQUAKE_CFG}")
    (session,) = json.loads((ann.home / "config/oq-cluster/sessions.json").read_text()).values()
    secrets = [*webui.values(), *re.findall(r"= *(\S{8,})", cfg), session["cookie"]]
    secrets += on(ann.lab, "master", f"grep -v -- ----- {facts.WEBUI_PAIR}").splitlines()[-3:]
    assert len(secrets) > 6
    assert [secret for secret in secrets if str(secret) in "".join(texts.values())] == []


def test_the_lab_is_found_by_its_outputs_as_a_cluster_on_aws_is(ann: Computer) -> None:
    command = [sys.executable, "-m", "lab", "outputs"]
    environment = os.environ | {"OQLAB_NAME": ann.lab.paths.name}
    printed = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, check=True).stdout
    outputs = json.loads(printed)
    assert outputs["webUiUrl"] == f"https://{ann.lab.master().address}:{facts.WEBUI_PORT}"
    assert outputs["masterInstanceId"] == ann.lab.master().id


def answer(connection: socket.socket, authority: str, name: str, host: str, path: str) -> str:
    """The WebUI's answer to a client who trusts an authority's certificates of a name, and calls the WebUI `host`."""
    context = ssl.create_default_context(cadata=authority)
    with context.wrap_socket(connection, server_hostname=name) as tls:
        tls.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        return tls.makefile().read()


def asked_by_name(lab: Lab, authority: str, name: str) -> str:
    """The status line of the WebUI's answer to a client who trusts an authority, and has the name in their own DNS."""

    def ask() -> str:
        connection = socket.create_connection((str(lab.master().address), facts.WEBUI_PORT), 30)
        host = f"{name}:{facts.WEBUI_PORT}"
        return answer(connection, authority, name, host, "/v1/engine_version").splitlines()[0]

    namespace = Path("/run/netns", lab.paths.netns("client"))
    with ThreadPoolExecutor(1, initializer=enter, initargs=(namespace,)) as thread:
        return thread.submit(ask).result()


def test_the_webui_is_believed_by_the_names_of_the_users_certificate_alone(ann: Computer) -> None:
    assert " 403 " in asked_by_name(ann.lab, CA, NAME)  # which wants a login
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'other\.example\.org'"):
        asked_by_name(ann.lab, CA, "other.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        asked_by_name(ann.lab, certificate(key(), key(), ca=True), NAME)


def test_a_browser_logs_in_by_https_with_cookies_that_go_no_other_way(ann: Computer) -> None:
    password = ann.json("users", "add", "eve")["password"]
    browser = Client(ann.lab, trusted=CA)
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', browser.get("/accounts/login/").text)
    assert token
    form = {"username": "eve", "password": password, "csrfmiddlewaretoken": token[1]}

    def submitted(origin: str) -> requests.Response:
        return browser.post("/accounts/login/", data=form, headers={"Origin": origin})

    assert submitted(browser.url.replace("https", "http")).status_code == 403
    assert submitted(browser.url).headers["Location"] == "/engine/"
    assert "eve" in browser.get("/engine/").text
    secure = {cookie.name.partition("_")[0]: cookie.secure for cookie in browser.session.cookies}
    assert (secure["sessionid"], secure["csrftoken"]) == (True, True)
    ann.oq("users", "remove", "eve")


def test_the_users_key_is_roots_and_on_no_volume_that_has_snapshots(ann: Computer) -> None:
    assert on(ann.lab, "master", f"stat --format '%a %U' {facts.WEBUI_PAIR}") == "600 root\n"
    on(ann.lab, "master", f"test ! -e {facts.WEBUI_KEPT_PAIR}")
    assert listening(ann.lab, "master") == {facts.AMQP_PORT, facts.DBSERVER_PORT, facts.WEBUI_PORT}


RENEW = f"systemctl restart {facts.CERTIFICATE_UNIT}"


def problems(lab: Lab) -> tuple[str, ...]:
    return cluster.state(lab, lab.master()).problems


def renewed(lab: Lab) -> str:
    """What a renewal has left: what is wrong, if anything is, and the certificate that is shown."""
    shown = f"cat {facts.WEBUI_TLS_DIR}/problem {facts.WEBUI_CERTIFICATE} 2>/dev/null || true"
    return on(lab, "master", f"{RENEW}; {shown}")


def test_a_bad_certificate_is_said_and_the_former_one_is_shown_until_there_is_a_good_one(
    ann: Computer,
) -> None:
    build.give_secret(ann.lab, ARN, pair(begins=-9, days=8))
    wait_until("the secret to be refused", lambda: "certificate has expired" in renewed(ann.lab), DEADLINE)
    wait_until("the services", lambda: len(problems(ann.lab)) == 1, DEADLINE)
    assert f"put-secret-value --secret-id {ARN}" in problems(ann.lab)[0]
    ann.oq("list")
    good = pair()
    build.give_secret(ann.lab, ARN, good)
    shown = good.partition("-----BEGIN PRIVATE KEY")[0]
    wait_until("the secret to be taken", lambda: shown in renewed(ann.lab), DEADLINE)
    wait_until("the services", lambda: not problems(ann.lab), DEADLINE)
    ann.oq("list")  # asks the master for the new one


def test_without_any_good_certificate_nothing_is_served_until_there_is_one(ann: Computer) -> None:
    former = on(ann.lab, "master", f"mv {facts.WEBUI_TLS_DIR} /root/tls && cat /root/tls/pair.pem")
    build.give_secret(ann.lab, ARN, "no PEM")
    on(ann.lab, "master", f"{RENEW} --no-block")
    wait_until("the problem", lambda: "holds 0 certificates" in "".join(problems(ann.lab)), DEADLINE)
    assert facts.WEBUI_PORT not in listening(ann.lab, "master")
    build.give_secret(ann.lab, ARN, former)
    # Without anybody on the master.
    wait_until("the WebUI", lambda: not problems(ann.lab), DEADLINE)
    ann.oq("list")
