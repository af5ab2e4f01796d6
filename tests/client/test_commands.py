"""The commands, against a stand-in for the WebUI."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from oq_cluster import cli, completion, config, diag, reach, submit
from oq_cluster.inputs import gather
from oq_cluster.terminal import Terminal

from tests.client.conftest import OUTPUTS, World
from tests.client.stand_ins import COOKIE, CSV, DATASTORE, PASSWORD, PATIENCE_SECONDS, Calculation, uploaded


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


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


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


@pytest.mark.parametrize(
    ("words", "given"), [(("login", "ann"), ""), (("password",), ""), (("password",), f"{PASSWORD}\n")]
)
def test_a_password_that_standard_input_lacks_is_wrong_usage_and_nothing_is_sent(
    world: World, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], given: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(given))
    world.oq(*words, "--password-stdin", status=2)
    needed = len(words) % 2 + 1
    assert f"standard input has {given.count(chr(10))} of {needed} lines" in world.errors
    assert world.webui.asked == []


@pytest.mark.parametrize(("words", "typed"), [(("login", "ann"), 0), (("password",), 0), (("password",), 2)])
def test_ctrl_d_in_place_of_a_password_is_wrong_usage(
    world: World, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], typed: int
) -> None:
    left = [PASSWORD] * typed

    def prompt(_: str) -> str:
        if not left:
            raise EOFError
        return left.pop()

    monkeypatch.setattr("getpass.getpass", prompt)
    monkeypatch.setattr("sys.stdin", Screen())
    world.oq(*words, status=2)
    assert "no password was typed: try again, or use --password-stdin" in world.errors
    assert world.webui.asked == []


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
    assert "this cluster needs no password (webuiLogin is false)" in world.errors


def test_a_session_of_before_the_cookies_had_their_clusters_name_goes_on_or_a_login_is_asked_for(
    ann: World,
) -> None:
    sessions = ann.path / "config/oq-cluster" / config.SESSIONS
    kept_before = {
        identity: {"user": one["user"], "cookie": one["cookie"]}
        for identity, one in json.loads(sessions.read_text()).items()
    }
    sessions.write_text(json.dumps(kept_before))
    ann.oq("list", status=1)
    assert "log in again: oq-cluster login ann" in ann.errors
    ann.webui.suffix = ""  # a cluster of before
    ann.oq("list")


def test_a_cluster_whose_cookies_have_no_name_takes_logins_and_new_passwords(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.webui.suffix = ""
    world.login(monkeypatch)
    change(world, monkeypatch, PASSWORD, "another horse")
    world.oq("list")


def test_who_logs_out_has_no_session(ann: World) -> None:
    ann.oq("logout")
    assert COOKIE not in kept(ann)


def test_a_cluster_without_a_login_needs_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.webui.login = False
    world.oq("list")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PASSWORD}\n"))
    world.oq("login", "ann", "--password-stdin", status=1)
    assert "this cluster needs no login (webuiLogin is false)" in world.errors


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


def test_where_outputs_go_is_no_option_of_who_does_not_wait_for_them(ann: World) -> None:
    before, out = list(ann.webui.asked), ann.path / "out"
    ann.oq("run", ann.job(), "--no-wait", "--out", out, status=2)
    assert f"oq-cluster get ID --out {out}" in ann.errors
    assert ann.webui.asked == before
    assert not out.exists()


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
    assert f"broke off {submit.ATTEMPTS} times" in ann.errors
    # So small a job may have been sent to its end before it broke off.
    assert re.search(
        "; (nothing has started|the upload was complete, and .* run it again)$", ann.errors.strip()
    )
    assert ann.webui.calculations == {}


def test_an_upload_whose_answer_is_lost_is_found_and_not_repeated(ann: World) -> None:
    breaks(ann, "POST /v1/calc/run", 1, after=True)
    assert json.loads(ann.oq("run", ann.job(), "--json"))["id"] == 1
    assert "the calculation has started" in ann.errors
    assert list(ann.webui.calculations) == [1]


def at(world: World, request: str, do: Callable[[], object], number: int = 1) -> None:
    """Do something before the nth request of a kind is answered."""
    seen = [0]

    def fault(method: str, path: str) -> bool:
        if f"{method} {path}".startswith(request):
            seen[0] += 1
            if seen[0] == number:
                do()
        return False

    world.webui.faults.append(fault)


def other(world: World, number: int = 1, **values: Any) -> None:
    """Another calculation of the same user, begun in another terminal with a copy of the job file."""
    world.webui.calculations[number] = Calculation(number, [], {}, "a job", **values)


def test_an_upload_that_broke_off_is_not_taken_for_a_calculation_that_began_meanwhile(ann: World) -> None:
    at(ann, "GET /v1/calc/list", lambda: other(ann), 2)  # while the upload goes on
    breaks(ann, "POST /v1/calc/run", 1)
    assert json.loads(ann.oq("run", ann.job("a job"), "--json"))["id"] == 2
    assert "trying again" in ann.errors


@pytest.mark.parametrize("log", [[], [uploaded("another")]])
def test_an_upload_whose_answer_is_lost_is_known_by_its_token_among_others_like_it(
    ann: World, log: list[list[str]]
) -> None:
    breaks(ann, "POST /v1/calc/run", 1, after=True)
    at(ann, "GET /v1/calc/list", lambda: other(ann, 2, log=log), 3)  # after the upload
    assert json.loads(ann.oq("run", ann.job("a job"), "--json"))["id"] == 1
    assert sorted(ann.webui.calculations) == [1, 2]


def dropped(world: World) -> None:
    """Break the connection of a complete upload that the server does nothing with."""

    def drop(method: str, path: str) -> bool:
        if f"{method} {path}" != "POST /v1/calc/run":
            return False
        world.webui.calculations.popitem()
        world.webui.after.remove(drop)
        return True

    world.webui.after.append(drop)


@pytest.mark.parametrize("others", [1, 2])
def test_an_upload_whose_calculation_cannot_be_told_from_another_one_is_not_guessed(
    ann: World, others: int
) -> None:
    """Its own has not appeared yet, or the WebUI is of before the tokens."""
    ann.webui.names_uploads = False
    if others == 1:
        dropped(ann)
    else:
        breaks(ann, "POST /v1/calc/run", 1, after=True)
    at(ann, "GET /v1/calc/list", lambda: other(ann, others), 3)  # after the upload
    ann.oq("run", ann.job("a job"), status=1)
    numbers = [str(number) for number in ann.webui.calculations]
    assert re.search(f"may be calculation ({', '.join(numbers)}|{', '.join(numbers[::-1])}):", ann.errors)
    assert len(numbers) == others


@pytest.mark.parametrize("values", [{"log": [uploaded("another")]}, {"owner": "bob"}])
def test_a_calculation_of_another_upload_or_another_person_is_none_of_this_job(
    ann: World, values: dict[str, Any]
) -> None:
    """Though it has begun since this one's upload broke off."""
    dropped(ann)
    at(ann, "GET /v1/calc/list", lambda: other(ann, **values), 3)
    assert json.loads(ann.oq("run", ann.job("a job"), "--json"))["id"] == 2


def test_a_repeat_of_an_upload_has_the_same_token_and_another_job_has_another(
    ann: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: list[bytes] = []
    form = submit.Form

    def spied(archive: Any, fields: dict[str, str], *rest: Any) -> submit.Form:
        tokens.append(fields["upload"].encode())
        return form(archive, fields, *rest)

    monkeypatch.setattr(submit, "Form", spied)
    breaks(ann, "POST /v1/calc/run", 1)
    ann.oq("run", ann.job())
    ann.oq("run", ann.job())
    assert tokens[0] == tokens[1] != tokens[2]


def left_unread(world: World, status: str) -> None:
    """Break the connection of an upload whose job the server does not read; upstream leaves it this description."""

    def leave(method: str, path: str) -> bool:
        if f"{method} {path}" != "POST /v1/calc/run":
            return False
        one = world.webui.calculations[1]
        one.description, one.status = "Calculation waiting to start", status
        return True

    world.webui.after.append(leave)


def test_a_job_that_is_refused_after_its_answer_was_lost_ends_the_command(ann: World) -> None:
    left_unread(ann, "failed")
    assert "calculation 1 is failed" in ann.oq("run", ann.job(), status=1)


def test_between_two_attempts_at_an_upload_the_way_is_waited_for(ann: World) -> None:
    """A WebUI that restarts is away for longer than four attempts take."""
    away = [0.0]

    def restarts(method: str, path: str) -> bool:
        if f"{method} {path}" == "POST /v1/calc/run" and not away[0]:
            away[0] = time.monotonic() + 1
            return True
        return time.monotonic() < away[0]

    ann.webui.faults[:] = [restarts]
    ann.oq("run", ann.job())
    assert list(ann.webui.calculations) == [1]


def test_a_calculation_that_a_broken_webui_has_left_unread_is_not_waited_for_for_ever(
    ann: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_unread(ann, "created")
    monkeypatch.setattr(submit, "_READ_SECONDS", 0.5)
    ann.oq("run", ann.job(), status=1)
    assert "may be calculation 1" in ann.errors


def test_without_a_login_a_lost_answer_is_not_guessed(world: World) -> None:
    world.direct()
    world.webui.login = False
    breaks(world, "POST /v1/calc/run", 2, after=True)
    assert json.loads(world.oq("run", world.job(), "--json"))["id"] == 1
    world.webui.names_uploads = False
    world.oq("run", world.job(), status=1)
    assert "may be calculation 2" in world.errors


@pytest.mark.parametrize("refuse", ["aws", "login"])
def test_when_nobody_can_be_asked_after_a_complete_upload_it_is_said_that_the_calculation_may_start(
    forwarded: World, refuse: str
) -> None:
    def end() -> None:
        if refuse == "aws":
            forwarded.aws.error = "ExpiredTokenException"
        else:
            forwarded.webui.cookie = "another"

    at(forwarded, "POST /v1/calc/run", end)
    breaks(forwarded, "POST /v1/calc/run", 1, after=True)
    forwarded.oq("run", forwarded.job(), status=1)
    assert "the upload was complete, and the calculation may start" in forwarded.errors
    assert {"aws": "aws sso login", "login": "log in again"}[refuse] in forwarded.errors


def test_a_job_that_is_refused_at_once_may_not_start(ann: World) -> None:
    ann.webui.refusal = "InvalidFile: job.ini: unknown key"
    ann.oq("run", ann.job(), status=1)
    assert "may start" not in ann.errors


def test_when_credentials_expire_while_a_log_is_followed_it_is_said_that_the_calculation_goes_on(
    forwarded: World,
) -> None:
    def expire() -> None:
        forwarded.aws.error = "ExpiredTokenException"

    at(forwarded, "GET /v1/calc/1/log", expire)
    breaks(forwarded, "GET /v1/calc/1/log", 1)
    forwarded.oq("run", forwarded.job(), status=1)
    assert "The calculation goes on" in forwarded.errors
    assert "aws sso login" in forwarded.errors


def test_a_calculation_that_somebody_removes_does_not_go_on(ann: World) -> None:
    at(ann, "GET /v1/calc/1/log", ann.webui.calculations.clear)
    ann.oq("run", ann.job(), status=1)
    assert "there is no such calculation" in ann.errors
    assert "goes on" not in ann.errors


@pytest.mark.parametrize(
    ("complete", "words"), [(True, "calculation may start"), (False, "nothing has started")]
)
def test_ctrl_c_during_an_upload_says_whether_something_may_start(
    ann: World, monkeypatch: pytest.MonkeyPatch, complete: bool, words: str
) -> None:
    def start(_: Any, form: submit.Form, content_type: str) -> int:
        assert content_type
        while complete and form.read():
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr("oq_cluster.webui.WebUI.start", start)
    ann.oq("run", ann.job(), status=130)
    assert words in ann.errors


def test_the_hazard_that_a_job_file_names_is_continued(ann: World) -> None:
    """The server would compute it anew, since what it is told of the hazard overrides the file."""
    other(ann, 5, status="complete")
    job = ann.job()
    job.write_text(job.read_text() + "hazard_calculation_id = 5\n")
    ann.oq("run", job)
    assert ann.webui.calculations[6].fields["hazard_job_id"] == "5"
    ann.oq("run", job, "--hazard", "5")
    before = list(ann.webui.asked)
    ann.oq("run", job, "--hazard", "4", status=2)
    assert "hazard_calculation_id = 5: the server ignores it" in ann.errors
    risk = ann.job("risk", "risk.ini")
    ann.oq("run", job, risk, status=2)
    assert "Then write --hazard 5" in ann.errors
    ann.oq("run", job, risk, "--hazard", "4", "--dry-run", status=2)
    risk.write_text(risk.read_text() + "hazard_calculation_id = job.ini\n")
    ann.oq("run", risk, status=2)
    ann.oq("run", job, risk, status=2)
    assert ann.webui.asked == before
    ann.oq("run", ann.job(), risk)
    assert ann.webui.calculations[9].fields["hazard_job_id"] == "8"
    ann.oq("run", ann.job(), ann.job("loss", "loss.ini"), "--hazard", "5")
    assert [ann.webui.calculations[number].fields["hazard_job_id"] for number in (10, 11)] == ["5", "5"]


def test_a_hazard_that_is_no_number_is_not_passed_over(ann: World) -> None:
    job = ann.job()
    job.write_text(job.read_text() + "hazard_calculation_id = None\n")
    before = list(ann.webui.asked)
    ann.oq("run", job, status=2)
    assert "hazard_calculation_id = None: the server ignores it" in ann.errors
    assert ann.webui.asked == before


def test_what_has_ended_is_said_before_the_next_job_and_though_that_is_refused(ann: World) -> None:
    ann.webui.broken_outputs[11] = 500

    def refuse() -> None:
        ann.webui.refusal = "InvalidFile: risk.ini"

    at(ann, "POST /v1/calc/run", refuse, 2)
    printed = ann.oq(
        "run", ann.job(), ann.job("risk", "risk.ini"), "--out", ann.path / "out", "--json", status=1
    )
    assert [one["id"] for one in json.loads(printed)] == [1]
    assert ann.errors.index("Hazard Curves as csv") < ann.errors.index("InvalidFile: risk.ini")


@pytest.mark.parametrize(("answered", "status"), [(404, 0), (500, 1)])
def test_an_output_that_cannot_be_had_keeps_no_other_back(ann: World, answered: int, status: int) -> None:
    """An exporter may have nothing to export."""
    ann.webui.broken_outputs[11] = answered
    out = ann.path / "out"
    printed = ann.oq("run", ann.job(), "--out", out, status=status)
    assert [path.name for path in out.iterdir()] == ["report_1.rst"]
    assert ("Hazard Curves as csv: the WebUI answers 500" in printed) == (answered == 500)
    assert ("Hazard Curves has nothing to export as csv" in ann.errors) == (answered == 404)


def test_a_type_that_one_of_several_jobs_has_not_stops_none(ann: World) -> None:
    out = ann.path / "out"
    result = json.loads(
        ann.oq("run", ann.job(), ann.job("r", "risk.ini"), "--out", out, "--type", "shp", "--json", status=1)
    )
    assert [one["id"] for one in result] == [1, 2]
    assert [one["problems"] for one in result] == [
        ["no output is available as shp; available: csv, rst, xml"]
    ] * 2


def test_a_directory_that_cannot_be_written_is_wrong_usage_and_nothing_is_sent(ann: World) -> None:
    before, file = list(ann.webui.asked), ann.path / "file"
    file.touch()
    ann.oq("run", ann.job(), "--out", file, status=2)
    assert "nothing can be written there" in ann.errors
    assert ann.webui.asked == before


def test_an_archive_for_which_there_is_no_room_says_which_directory(
    ann: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(submit, "pack", full)
    ann.oq("run", ann.job(), status=1)
    assert "TMPDIR" in ann.errors
    assert "an error of oq-cluster itself" not in ann.errors


def test_an_input_that_cannot_be_read_any_more_is_named_and_has_nothing_to_do_with_the_archive(
    ann: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = gather(ann.job())
    (job.root / "sites.csv").unlink()  # meanwhile
    monkeypatch.setattr("oq_cluster.inputs.gather", lambda _: job)
    ann.oq("run", job.ini, status=2)
    assert f"{job.root / 'sites.csv'} cannot be read: No such file or directory" in ann.errors
    assert "TMPDIR" not in ann.errors
    assert ann.webui.calculations == {}


def test_files_of_before_1980_are_packed(ann: World) -> None:
    """As reproducible archives and Nix have them."""
    job = ann.job()
    os.utime(job.parent / "sites.csv", (0, 0))
    ann.oq("run", job)


def test_a_proxy_of_the_environment_is_not_asked_for_this_computer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    reach._probe(f"http://127.0.0.1:{os.environ['STAND_IN_PORT']}")
    assert world.webui.asked[-1] == f"GET {reach.PROBE}"


def test_a_network_that_is_away_for_a_while_is_waited_for(forwarded: World) -> None:
    """The plugin dies with it, and AWS starts no session meanwhile."""

    def away(method: str, path: str) -> bool:
        del method
        if path == "/v1/calc/1/log/2:" and not forwarded.aws.error:
            os.kill(forwarded.plugins()[-1]["pid"], 9)
            forwarded.aws.error = "TargetNotConnected"
            threading.Timer(3, lambda: setattr(forwarded.aws, "error", "")).start()
            forwarded.webui.faults.remove(away)
            return True
        return False

    forwarded.webui.faults.append(away)
    assert "calculation 1 is complete" in forwarded.oq("run", forwarded.job())
    assert "trying again" in forwarded.errors


def test_a_long_download_that_breaks_off_is_tried_again_as_long_as_it_gets_further(
    ann: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann.oq("run", ann.job())
    good, sizes = requests.Response.iter_content, iter((1, 2, 3))

    def content(answer: requests.Response, size: int) -> Iterator[bytes]:
        if "datastore" not in answer.url or (part := next(sizes, None)) is None:
            yield from good(answer, size)
            return
        time.sleep(0.4)  # longer than one is patient
        yield b"x" * part
        raise requests.ConnectionError("broken off")

    monkeypatch.setattr("requests.Response.iter_content", content)
    monkeypatch.setattr("oq_cluster.webui.PATIENCE_SECONDS", 0.3)
    ann.oq("get", "1", "--datastore", "--out", ann.path / "out")
    assert (ann.path / "out/calc_1.hdf5").read_bytes() == DATASTORE


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
        if path == "/v1/calc/1/log/2:" and not killed:
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
    assert lines[1]["message"].startswith("classical  25%")


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
    assert "available: csv, rst, xml" in ann.errors
    assert "Hazard Curves" in ann.oq("get", "1", "--list")


def test_an_archive_that_does_not_fit_on_the_disk_leaves_no_half_file_and_the_former_one_whole(
    ann: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann.oq("run", ann.job())
    out = ann.path / "out"
    out.mkdir()
    (out / "hazard_curve-mean-PGA_1.csv").write_bytes(b"yesterday's")

    def full(source: Any, target: Any, *_: Any) -> None:
        target.write(source.read(4))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", full)
        ann.oq("get", "1", "--out", out, status=1)
    assert "No space left" in ann.errors
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [
        ("hazard_curve-mean-PGA_1.csv", b"yesterday's")
    ]
    ann.oq("get", "1", "--out", out)
    assert (out / "hazard_curve-mean-PGA_1.csv").read_bytes() == CSV
    assert len(list(out.iterdir())) == 3


def test_who_may_read_a_download_is_as_the_umask_says(ann: World) -> None:
    ann.oq("run", ann.job())
    before = os.umask(0o027)
    try:
        ann.oq("get", "1", "--datastore", "--out", ann.path / "out")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (ann.path / "out").iterdir()} == {0o640}


def test_while_an_answer_is_waited_for_something_else_goes_over_the_connection(
    forwarded: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export may take longer than Session Manager keeps a session without traffic."""
    forwarded.oq("run", forwarded.job())
    monkeypatch.setattr("oq_cluster.webui._KEEP_SECONDS", 0.1)
    seen: list[int] = []

    def export() -> None:
        before, end = len(forwarded.webui.asked), time.monotonic() + PATIENCE_SECONDS
        while (count := forwarded.webui.asked[before:].count(f"GET {reach.PROBE}")) < 2:
            if time.monotonic() > end:
                break
            time.sleep(0.05)
        seen.append(count)

    at(forwarded, "GET /v1/calc/1/datastore", export)
    monkeypatch.setattr("oq_cluster.submit.download", lambda *_: ([], []))
    forwarded.oq("get", "1", "--datastore", "--out", forwarded.path)
    assert seen[0] >= 2
    after = len(forwarded.webui.asked)
    time.sleep(0.5)
    assert len(forwarded.webui.asked) == after


def test_the_rest_of_an_answer_is_not_waited_for_as_long_as_its_beginning(
    ann: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann.oq("run", ann.job())
    monkeypatch.setattr("oq_cluster.webui._BODY_SECONDS", 0.3)
    ann.webui.stalls = 1
    monkeypatch.setattr("oq_cluster.submit.download", lambda *_: ([], []))
    try:
        ann.oq("get", "1", "--datastore", "--out", ann.path)
        assert ann.webui.gone_on == []  # it has not waited for the rest
    finally:
        ann.webui.goes_on.set()
    assert "the download has broken off" in ann.errors
    assert (ann.path / "calc_1.hdf5").read_bytes() == DATASTORE


def test_a_refusal_of_the_servers_is_shown_in_its_words(ann: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ann.oq("run", ann.job())
    good = ann.webui.answer

    def refuses(method: str, path: str, *rest: Any) -> tuple[int, bytes, dict[str, str]]:
        if path.endswith("/remove"):
            return 403, b'{"error": "Cannot delete calculation 1: it is shared"}', {}
        return good(method, path, *rest)

    monkeypatch.setattr(ann.webui, "answer", refuses)
    ann.oq("remove", "1", status=1)
    assert ann.errors == "oq-cluster: Cannot delete calculation 1: it is shared\n"


def test_what_others_have_written_does_not_act_on_the_terminal(ann: World) -> None:
    other(
        ann,
        1,
        status="complete",
        log=[["2026-11-26T10:00:00.00", "INFO", "main", "a\tb\n\x1b]0;c\x07\x9b2J"]],
    )
    ann.webui.calculations[1].description = "\x1b[2Jdescribed"
    for command in (("list",), ("status", "1"), ("log", "1"), ("log", "1", "--follow")):
        printed = ann.oq(*command) + ann.errors
        assert not re.search(r"[\x1b\x07\x9b]", printed), command
    assert "?[2Jdescribed" in ann.oq("list")
    assert "a\tb\n?]0;c??2J" in ann.oq("log", "1")


def test_a_character_that_the_output_has_not_is_written_in_another_way(ann: World) -> None:
    other(ann, 1, status="complete")
    ann.webui.calculations[1].description = "Zürich"
    done = subprocess.run(
        [sys.executable, "-m", "oq_cluster", "list"],
        env=os.environ
        | {"PYTHONPATH": str(Path(cli.__file__).parent.parent), "PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Z\\xfcrich" in done.stdout


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
        patch.setattr("oq_cluster.submit.download", lambda *_: ([], []))
        ann.oq("get", "1", "--datastore", "--out", out, status=1)
    assert "broken off" in ann.errors
    assert "an error of oq-cluster itself" not in ann.errors
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


def test_the_list_shows_as_many_as_are_wanted(ann: World) -> None:
    for number in range(1, 131):
        other(ann, number, status="complete")
    for limit, shown in (("5", 5), ("120", 120), ("0", 130)):
        assert len(json.loads(ann.oq("list", "--limit", limit, "--json"))) == shown


def test_an_error_of_the_server_is_no_wrong_password(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PASSWORD}\n"))
    monkeypatch.setattr(world.webui, "answer", lambda *_: (500, b"database or disk is full", {}))
    world.oq("login", "ann", "--password-stdin", status=1)
    assert "the WebUI answers 500" in world.errors
    assert "wrong name or password" not in world.errors


def test_share_unshare_and_remove_ask_for_just_that(ann: World) -> None:
    ann.oq("run", ann.job())
    for action in ("share", "unshare", "remove"):
        ann.oq(action, "1")
        assert ann.webui.asked[-1] == f"POST /v1/calc/1/{action}"


def test_remove_says_what_it_has_done(ann: World) -> None:
    ann.oq("run", ann.job())
    assert ann.oq("remove", "1") == "calculation 1 is removed, with its results\n"


# --- the cluster ---


def test_outputs_of_an_update_that_has_not_ended_are_to_be_waited_for(world: World) -> None:
    unfinished = world.path / "unfinished.json"
    unfinished.write_text('{"region": "eu-central-1"}')
    world.oq("use", "--outputs", unfinished, status=1)
    assert "there is no masterInstanceId, workerGroupName, secretName" in world.errors
    assert "pulumi up makes one, or wait until it has ended" in world.errors


def test_diag_has_no_secret_even_if_a_program_printed_one(ann: World) -> None:
    journal = "password=hunter2 amqp://openquake:hunter3@10.20.0.10 SECRET_KEY: 'hunter4' all is well"
    for name in diag.COMMANDS:
        ann.aws.answers[diag.COMMANDS[name]] = 0, journal
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


@pytest.fixture
def without_webui(world: World) -> World:
    """A cluster without a WebUI (webui: false), whose outputs are the default."""
    outputs = world.path / "without.json"
    outputs.write_text(json.dumps({name: value for name, value in OUTPUTS.items() if name != "webUiUrl"}))
    world.oq("use", "--outputs", outputs)
    return world


def test_diag_of_a_cluster_without_a_webui_has_the_rest_and_says_why_in_place_of_its_parts(
    without_webui: World,
) -> None:
    archive = without_webui.path / "diag.tar.gz"
    without_webui.oq("diag", "1", "--out", archive)
    with tarfile.open(archive) as opened:
        parts = {member.name.partition("/")[2]: opened.extractfile(member).read() for member in opened}  # type: ignore[union-attr]
    lacking = {name for name, text in parts.items() if b"not to be had: this cluster has no WebUI" in text}
    assert lacking == {"engine.txt", "calculations.json", "calculation-1.json", "calculation-1.log"}
    assert json.loads(parts["outputs.json"])["region"] == "eu-central-1"


@pytest.mark.parametrize("words", [("list",), ("add", "eve"), ("password", "eve"), ("remove", "eve")])
def test_users_of_a_cluster_without_a_webui_says_so_and_asks_the_master_nothing(
    without_webui: World, words: tuple[str, ...]
) -> None:
    without_webui.oq("users", *words, status=1)
    assert "this cluster has no WebUI" in without_webui.errors
    assert without_webui.aws.asked == []


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
    screen, file = Screen(), io.StringIO()
    for stream in (screen, file):
        terminal = Terminal(stream)
        terminal.status("10 %")
        terminal.say("done")
    assert screen.getvalue() == "\r\x1b[K10 %\r\x1b[Kdone\n"
    assert file.getvalue() == "done\n"


def test_rotate_lets_the_master_do_it_and_shows_what_it_says(world: World) -> None:
    world.aws.answers["oq-node rotate"] = 0, "new passwords and keys (generation 2)\n"
    assert world.oq("rotate") == "new passwords and keys (generation 2)\n"
    world.aws.answers["oq-node rotate"] = 1, "the rotation of the secrets goes on at the next try"
    world.oq("rotate", status=1)
    assert world.errors == "oq-cluster: the rotation of the secrets goes on at the next try\n"
