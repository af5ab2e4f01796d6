"""The commands, against a stand-in for the WebUI."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from oq_cluster import cli, completion, config, diag, submit
from oq_cluster.inputs import gather
from oq_cluster.terminal import Terminal

from tests.client.conftest import World
from tests.client.stand_ins import COOKIE, CSV, DATASTORE, PASSWORD


@pytest.fixture
def ann(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Ann has logged in; the WebUI's address is in reach."""
    world.direct()
    world.login(monkeypatch)
    return world


@pytest.fixture
def forwarded(ann: World) -> World:
    """The same through a port forward."""
    ann.oq("use", "--outputs", ann.path / "cluster.json")
    return ann


def kept(world: World) -> str:
    return "\n".join(path.read_text() for path in (world.path / "config").rglob("*.json"))


# --- login ---


def test_a_login_keeps_the_session_for_the_user_alone_and_never_the_password(ann: World) -> None:
    ann.oq("list")
    assert COOKIE in kept(ann)
    assert PASSWORD not in kept(ann)
    for path in (ann.path / "config").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_without_a_login_or_with_one_that_has_ended_the_message_says_what_to_do(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.oq("list", status=1)
    assert "the cluster asks for a login: oq-cluster login NAME" in world.errors
    world.login(monkeypatch)
    sessions = world.path / "config/oq-cluster" / config.SESSIONS
    sessions.write_text(sessions.read_text().replace(COOKIE, "old"))
    world.oq("list", status=1)
    assert "log in again: oq-cluster login ann" in world.errors


def test_a_wrong_password_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("wrong\n"))
    world.oq("login", "ann", "--password-stdin", status=1)
    assert "wrong name or password" in world.errors
    assert not (world.path / "config/oq-cluster" / config.SESSIONS).exists()


def change(world: World, monkeypatch: pytest.MonkeyPatch, present: str, new: str, status: int = 0) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{present}\n{new}\n"))
    world.oq("password", "--password-stdin", status=status)


def test_who_changes_the_own_password_stays_logged_in_and_keeps_none_of_the_two(
    ann: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(ann, monkeypatch, PASSWORD, "another horse")
    assert ann.webui.password == "another horse"
    ann.oq("list")
    assert f'"{COOKIE}2"' in kept(ann)
    assert not re.search("horse", kept(ann))


def test_a_password_that_the_server_refuses_is_not_changed(
    ann: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(ann, monkeypatch, "wrong", "another horse", status=1)
    assert "stays as it was: Your old password was entered incorrectly." in ann.errors
    ann.oq("list")


def test_a_password_is_changed_by_who_has_logged_in(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    change(world, monkeypatch, PASSWORD, "another horse", status=1)
    assert "oq-cluster login NAME" in world.errors
    world.webui.login = False
    change(world, monkeypatch, PASSWORD, "another horse", status=1)
    assert "webuiLogin" in world.errors


def test_who_logs_out_has_no_session(ann: World) -> None:
    ann.oq("logout")
    assert COOKIE not in kept(ann)


def test_a_cluster_without_a_login_needs_none(world: World) -> None:
    world.webui.login = False
    world.oq("list")


# --- run ---


def test_run_uploads_the_jobs_files_follows_the_log_and_downloads_the_outputs(ann: World) -> None:
    out = ann.path / "out"
    result = json.loads(ann.oq("run", ann.job(), "--out", out, "--json"))
    assert (result["id"], result["status"]) == (1, "complete")
    calculation = ann.webui.calculations[1]
    assert sorted(calculation.files) == ["job.ini", "sites.csv"]
    assert calculation.fields == {"job_ini": "job.ini"}
    assert ann.errors.count("classical 100%") == 1
    assert "uploaded 2 files" in ann.errors
    assert (out / "hazard_curve-mean-PGA_1.csv").read_bytes() == CSV
    assert sorted(path.name for path in out.iterdir()) == [
        "hazard_curve-mean-PGA_1.csv", "quantile_curve-0.5-PGA_1.csv", "report_1.rst",
    ]  # fmt: skip


def test_a_job_that_fails_gives_status_1_and_the_error_of_its_log(ann: World) -> None:
    ann.webui.ends = "failed"
    ann.webui.lines.append(
        ["2026-11-26T10:00:09.00", "CRITICAL", "main", "Traceback\n  ValueError: bad depth"]
    )
    ann.webui.lines += [["2026-11-26T10:00:10.00", "INFO", "main", "closing"]] * 9
    printed = ann.oq("run", ann.job(), status=1)
    assert "calculation 1 is failed" in printed
    assert "ValueError: bad depth" in printed


def test_a_job_that_the_engine_refuses_shows_the_engines_reason(ann: World) -> None:
    ann.webui.refusal = "InvalidFile: job.ini: unknown key"
    ann.oq("run", ann.job(), status=1)
    assert "InvalidFile: job.ini: unknown key" in ann.errors
    assert "Traceback" not in ann.errors


def test_a_second_job_continues_the_first(ann: World) -> None:
    ann.oq("run", ann.job(), ann.job("risk", "risk.ini"))
    assert ann.webui.calculations[2].fields == {"job_ini": "risk.ini", "hazard_job_id": "1"}


def test_the_second_job_is_not_run_when_the_first_fails(ann: World) -> None:
    ann.webui.ends = "failed"
    ann.oq("run", ann.job(), ann.job("risk", "risk.ini"), status=1)
    assert list(ann.webui.calculations) == [1]


def test_a_missing_file_is_wrong_usage_and_nothing_is_sent(ann: World) -> None:
    before = list(ann.webui.asked)
    job = ann.job()
    (job.parent / "sites.csv").unlink()
    ann.oq("run", job, status=2)
    assert "sites_csv = sites.csv" in ann.errors
    assert ann.webui.asked == before
    ann.oq("run", job, job.with_name("other.ini"), "--no-wait", status=2)
    assert ann.webui.asked == before


def test_a_dry_run_lists_the_files_and_needs_no_cluster(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(world.path / "fresh"))
    assert json.loads(world.oq("run", world.job(), "--dry-run", "--json"))[0]["files"] == [
        "job.ini", "sites.csv",
    ]  # fmt: skip
    assert world.webui.asked == []


def breaks(world: World, request: str, times: int, after: bool = False) -> None:
    """Break the connection at the next requests of a kind, before or after they are done."""
    left = [times]

    def fault(method: str, path: str) -> bool:
        if f"{method} {path}".startswith(request) and left[0]:
            left[0] -= 1
            return True
        return False

    (world.webui.after if after else world.webui.faults).append(fault)


def test_an_upload_that_breaks_off_is_repeated_and_starts_one_calculation(ann: World) -> None:
    breaks(ann, "POST /v1/calc/run", 2)
    ann.oq("run", ann.job())
    assert ann.errors.count("nothing has started; trying again") == 2
    assert list(ann.webui.calculations) == [1]


def test_an_upload_that_always_breaks_off_ends_in_one_message(ann: World) -> None:
    breaks(ann, "POST /v1/calc/run", 99)
    ann.oq("run", ann.job(), status=1)
    assert f"broke off {submit.ATTEMPTS} times, nothing has started" in ann.errors
    assert ann.webui.calculations == {}


def test_an_upload_whose_answer_is_lost_is_found_and_not_repeated(ann: World) -> None:
    breaks(ann, "POST /v1/calc/run", 1, after=True)
    assert json.loads(ann.oq("run", ann.job(), "--json"))["id"] == 1
    assert "the calculation has started" in ann.errors
    assert list(ann.webui.calculations) == [1]


def test_a_connection_lost_while_following_is_opened_again_and_no_line_is_lost_or_repeated(
    forwarded: World,
) -> None:
    breaks(forwarded, "GET /v1/calc/1/log", 2)
    plugins = len(forwarded.plugins())
    forwarded.oq("run", forwarded.job())
    assert [line for line in forwarded.errors.splitlines() if "submitted, 0 queued" in line] == [
        f"[2026-11-26 10:00:00 INFO] classical {percent:3d}% [8 submitted, 0 queued]"
        for percent in (25, 50, 100)
    ]
    assert len(forwarded.plugins()) == plugins + 3
    # A browser, which `webui` has opened, still has the first address.
    (port,) = {
        json.loads(given["arguments"][4])["Parameters"]["localPortNumber"][0]
        for given in forwarded.plugins()[plugins:]
    }
    assert port != "0"


def test_a_plugin_that_dies_while_a_log_is_followed_is_replaced(forwarded: World) -> None:
    def kill(method: str, path: str) -> bool:
        del method
        if path == "/v1/calc/1/log/1:" and not killed:
            killed.append(forwarded.plugins()[-1]["pid"])
            os.kill(killed[0], 9)
        return False

    killed: list[int] = []
    forwarded.webui.faults.append(kill)
    forwarded.oq("run", forwarded.job())
    assert killed


def test_the_upload_is_read_in_blocks_and_its_size_is_told_before(world: World) -> None:
    job = gather(world.job())
    with (world.path / "archive.zip").open("w+b") as file:
        submit.pack(job, file)
        sent: list[int] = []
        form = submit.Form(file, {"job_ini": "job.ini"}, lambda done, _total: sent.append(done))
        data = b"".join(iter(form.read, b""))
    assert len(form) == len(data) == sent[-1]
    assert form.complete


# --- looking, getting, changing ---


def test_list_status_and_log_show_calculations(ann: World) -> None:
    ann.oq("run", ann.job("Curves of the Alps"))
    assert re.search(r"1 +ann +complete .*Curves of the Alps", ann.oq("list"))
    assert json.loads(ann.oq("status", "1", "--json"))["description"] == "Curves of the Alps"
    assert ann.oq("log", "1").count("classical") == 3
    lines = [json.loads(line) for line in ann.oq("log", "1", "--follow", "--json").splitlines()]
    assert lines[-1] == {"id": 1, "status": "complete"}
    assert lines[0]["message"].startswith("classical  25%")


@pytest.mark.parametrize("command", ["status", "log", "get", "abort", "share", "remove"])
def test_a_calculation_that_is_not_there_is_one_line(ann: World, command: str) -> None:
    ann.oq(command, "9", status=1)
    assert "there is no such calculation" in ann.errors
    assert len(ann.errors.splitlines()) == 1


def test_get_downloads_the_wanted_types(ann: World) -> None:
    ann.oq("run", ann.job())
    files = json.loads(ann.oq("get", "1", "--out", ann.path / "xml", "--type", "rst", "--json"))["files"]
    assert [Path(file).name for file in files] == ["report_1.rst"]
    ann.oq("get", "1", "--out", ann.path / "none", "--type", "shp", status=1)
    assert "there is csv, rst, xml" in ann.errors
    assert "Hazard Curves" in ann.oq("get", "1", "--list")


def test_a_download_that_breaks_off_leaves_no_half_file(ann: World) -> None:
    ann.oq("run", ann.job())
    breaks(ann, "GET /v1/calc/result", 1)
    ann.oq("get", "1", "--out", ann.path / "out")
    assert len(list((ann.path / "out").iterdir())) == 3
    breaks(ann, "GET /v1/calc/result", 99)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oq_cluster.webui.PATIENCE_SECONDS", 0.1)
        ann.oq("get", "1", "--out", ann.path / "broken", status=1)
    assert list((ann.path / "broken").iterdir()) == []


def test_a_datastore_is_replaced_by_a_complete_one_only(ann: World) -> None:
    ann.oq("run", ann.job())
    out = ann.path / "out"
    ann.oq("get", "1", "--datastore", "--out", out)
    (datastore,) = out.glob("calc_1.hdf5")
    assert datastore.read_bytes() == DATASTORE
    files = set(out.iterdir())
    datastore.write_bytes(b"yesterday's")
    # It breaks off when there is an answer already.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("requests.Response.iter_content", broken_off)
        patch.setattr("oq_cluster.webui.PATIENCE_SECONDS", 0.1)
        patch.setattr("oq_cluster.submit.download", lambda *_: [])
        ann.oq("get", "1", "--datastore", "--out", out, status=1)
    assert datastore.read_bytes() == b"yesterday's"
    assert set(out.iterdir()) == files


def broken_off(*_: Any) -> Iterator[bytes]:
    yield DATASTORE[:4]
    raise requests.ConnectionError("broken off")


def test_abort_waits_for_the_end_and_says_no_to_one_that_has_ended(ann: World) -> None:
    ann.webui.endless = True
    ann.oq("run", ann.job(), "--no-wait")
    assert "is aborted" in ann.oq("abort", "1")
    ann.oq("abort", "1", status=1)
    assert "not running" in ann.errors


def test_share_unshare_and_remove_ask_for_just_that(ann: World) -> None:
    ann.oq("run", ann.job())
    for action in ("share", "unshare", "remove"):
        ann.oq(action, "1")
        assert ann.webui.asked[-1] == f"POST /v1/calc/1/{action}"


# --- the cluster ---


def test_diag_has_no_secret_even_if_a_program_printed_one(ann: World) -> None:
    journal = "password=hunter2 amqp://openquake:hunter3@10.20.0.10 SECRET_KEY: 'hunter4' all is well"
    packed = subprocess.run(
        ["sh", "-c", f'echo "{journal}" | gzip | base64 -w0'], capture_output=True, text=True, check=True
    ).stdout
    for name in diag.COMMANDS:
        ann.aws.answers[diag.COMMANDS[name]] = 0, packed
    ann.oq("run", ann.job())
    archive = ann.path / "diag.tar.gz"
    members = json.loads(ann.oq("diag", "1", "--out", archive, "--json"))["members"]
    assert {"outputs.json", "journal.txt", "calculation-1.log", *diag.COMMANDS} <= set(members)
    with tarfile.open(archive) as opened:
        text = "".join(opened.extractfile(member).read().decode() for member in opened)  # type: ignore[union-attr]
    assert "all is well" in text
    assert "10.20.0.10" in text
    assert not re.search(rf"hunter|{COOKIE}|{PASSWORD}", text)


def test_what_diag_cannot_have_says_why_in_its_place(ann: World) -> None:
    archive = ann.path / "diag.tar.gz"
    ann.oq("diag", "--out", archive)
    with tarfile.open(archive) as opened:
        part = opened.extractfile("oq-cluster-diag/fleet.json")
        assert part is not None
        assert b"not to be had" in part.read()


# --- the command line ---


def test_without_a_cluster_the_message_says_how_to_name_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(world.path / "fresh"))
    world.oq("list", status=2)
    assert "oq-cluster use --stack NAME" in world.errors
    world.oq("list", "--stack", "a", "--outputs", "b", status=2)
    assert "name one of them" in world.errors


def test_an_error_of_the_client_itself_is_one_line_and_debug_shows_where(
    ann: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("oops")

    monkeypatch.setattr("oq_cluster.webui.WebUI.calculations", broken)
    ann.oq("list", status=1)
    assert "RuntimeError: oops" in ann.errors
    assert "Traceback" not in ann.errors
    with pytest.raises(RuntimeError):
        cli.main(["list", "--debug"])


def test_every_command_has_a_description_and_json() -> None:
    subs = completion.subcommands(cli.parser())
    assert len(subs) > 15
    for name, sub in subs.items():
        assert (sub.description or "").endswith("."), name
        assert "--json" in sub.format_help(), name


def test_bash_completes_commands_and_their_options() -> None:
    script = completion.script(cli.parser(), "bash")

    def completed(*words: str) -> set[str]:
        given = " ".join(f"'{word}'" for word in words)
        test = f"{script}\nCOMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; _oq_cluster; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", test], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    assert completed("oq-cluster", "st") == {"status"}
    assert "--follow" in completed("oq-cluster", "log", "--f")
    assert completed("oq-cluster", "users", "p") == {"password"}
    assert completed("oq-cluster", "--json", "run", "--dr") == {"--dry-run"}


def test_the_status_line_is_only_on_a_terminal_and_goes_before_a_line() -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen, file = Screen(), io.StringIO()
    for stream in (screen, file):
        terminal = Terminal(stream)
        terminal.status("10 %")
        terminal.say("done")
    assert screen.getvalue() == "\r\x1b[K10 %\r\x1b[Kdone\n"
    assert file.getvalue() == "done\n"


def test_rotate_lets_the_master_do_it_and_shows_what_it_says(world: World) -> None:
    world.aws.answers["oq-node rotate"] = 0, "new passwords and keys, of generation 2\n"
    assert world.oq("rotate") == "new passwords and keys, of generation 2\n"
    world.aws.answers["oq-node rotate"] = 1, "the rotation of the secrets goes on at the next try"
    world.oq("rotate", status=1)
    assert world.errors == "oq-cluster: the rotation of the secrets goes on at the next try\n"
