"""The WebUI with login, as several people use it from addresses of a client's network."""

from __future__ import annotations

import hashlib
import io
import re
import shlex
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
import requests

from components import facts
from lab.cluster import cluster
from lab.cluster.cluster import Lab
from lab.linux.host import wait_until
from lab.trials import matrix
from lab.trials.job import CLASSICAL, USER, DemoJob, fetch_job, make_user, run_job
from tests.lab.browser import Browser, browser, missing
from tests.lab.support import DEADLINE, READY_SECONDS, held, on
from tests.lab.web import Client, account, administrator, administrators_password

pytestmark = pytest.mark.lab

UPLOAD_BYTES = 64 * 1024**2
RESTART = f"systemctl restart {facts.WEBUI_UNIT}"
SEVERAL_SOURCE_MODELS = DemoJob("logic tree", "demos/hazard/LogicTreeCase1ClassicalPSHA")
HAZARD_AND_RISK = DemoJob("risk", "demos/risk/ClassicalRisk", file="job_hazard.ini")
SHORT, LONG = 3, 2  # km from one source to the next, of jobs that compute for a while
OWN_PASSWORD = "/accounts/password/"
CALCULATIONS, LOG, OUTPUTS = "#calculation_table", "#errorDialog .modal-body", "#output_table"


@dataclass
class Office:
    """Two seismologists and the administrator, all logged in; `job` is a small one."""

    lab: Lab
    ann: Client
    bob: Client
    admin: Client
    password: str
    job: Path

    def finished(self) -> int:
        """A calculation of Ann's that is complete."""
        answer = self.ann.run(self.job)
        assert answer.status_code == 200, answer.text
        number = int(answer.json()["job_id"])
        assert self.ann.wait(number) == "complete"
        return number

    def running(self, discretization: float = LONG) -> int:
        """A calculation of Ann's that computes, for a while."""
        long = self.job.with_name("long.ini")
        long.write_text(slower(self.job, discretization))
        since = time.time()
        try:
            number = int(self.ann.run(long, job_ini="long.ini").json()["job_id"])
        finally:
            long.unlink()
        self.wait_until_a_task_runs(since)
        return number

    def wait_until_a_task_runs(self, since: float) -> None:
        wait_until(
            "a task to run",
            lambda: any(matrix.is_busy(self.lab, node.name, since) for node in self.lab.workers()),
            DEADLINE,
        )


def slower(job: Path, discretization: float = LONG) -> str:
    """The text of the small job with more sources (km from one to the next), so that it computes for a while."""
    text = re.sub(r"(area_source_discretization *=).*", rf"\1 {discretization}", job.read_text())
    assert text != job.read_text()
    return text


@pytest.fixture(scope="module")
def office(nfs_cluster: Lab) -> Office:
    ann, bob = account(nfs_cluster, "add", "ann"), account(nfs_cluster, "add", "bob")
    return Office(
        nfs_cluster,
        Client(nfs_cluster, "ann", ann),
        Client(nfs_cluster, "bob", bob),
        administrator(nfs_cluster),
        ann,
        fetch_job(nfs_cluster, CLASSICAL),
    )


def test_who_has_not_logged_in_gets_the_login_page_and_nothing_of_the_api(office: Office) -> None:
    stranger = Client(office.lab)
    assert stranger.get("/engine/").headers["Location"] == "/accounts/login/"
    assert stranger.get("/admin/").status_code == 302
    for path in ("/v1/calc/list", "/v1/calc/1/log/0:", "/v1/engine_version"):
        assert stranger.get(path).status_code == 403, path
    assert stranger.run(office.job).status_code == 403


def test_a_wrong_password_is_refused(office: Office) -> None:
    stranger = Client(office.lab)
    for name, password in (("ann", "wrong"), ("ann", ""), ("nobody", office.password)):
        assert stranger.login(name, password).status_code == 403, name
    assert stranger.get("/v1/calc/list").status_code == 403
    assert stranger.login("ann", office.password).status_code == 200


def test_who_guesses_passwords_has_to_wait(office: Office) -> None:
    guessers = [Client(office.lab) for _ in range(40)]

    def guess(number: int) -> int:
        return guessers[number].login("ann", str(number)).status_code

    def guess_her_own(number: int) -> int:
        return guessers[number].get(OWN_PASSWORD).status_code

    # At once: the server's answers take so long on a busy machine that it may take all that come one by one.
    with ThreadPoolExecutor(len(guessers)) as pool:
        assert 429 in set(pool.map(guess, range(len(guessers))))
        assert 429 in set(pool.map(guess_her_own, range(len(guessers))))
    time.sleep(5)  # the others come from the same address


def test_somebody_logs_in_and_out_by_the_page(office: Office) -> None:
    """As a browser does it, which says where it comes from."""
    browser = Client(office.lab)
    page = browser.get("/accounts/login/").text
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
    assert token
    form = {"username": "ann", "password": office.password, "csrfmiddlewaretoken": token[1]}
    origin = {"Origin": browser.url, "Referer": f"{browser.url}/accounts/login/"}
    assert browser.post("/accounts/login/", data=form, headers=origin).headers["Location"] == "/engine/"
    front = browser.get("/engine/").text
    assert "ann" in front
    statics = set(re.findall(r'(?:src|href)="?(/static/[^" >]+)', front))
    assert statics
    for static in statics:
        assert browser.get(static).status_code == 200, static
    assert browser.post("/accounts/ajax_logout/").status_code == 200
    assert browser.get("/engine/").status_code == 302
    assert browser.get("/v1/calc/list").status_code == 403


def test_a_page_of_another_site_cannot_log_somebody_in_or_reach_the_api_by_a_name_of_its_own(
    office: Office,
) -> None:
    form = {"username": "ann", "password": office.password}
    assert Client(office.lab).post("/accounts/login/", data=form).status_code == 403
    assert office.ann.get("/v1/calc/list", headers={"Host": "rebound.example"}).status_code == 400


def test_a_wrong_address_is_answered_without_djangos_debug_page(office: Office) -> None:
    for path in ("/nothing", "/v1/calc/x", "/engine/x", "/v1/calc/1/extract/nothing"):
        answer = office.admin.get(path)
        assert answer.status_code in (404, 500), path
        assert not re.search(r"DEBUG|URLconf|settings", answer.text), path
        assert len(answer.text) < 2000


def test_a_job_uploaded_as_by_the_qgis_plugin_gives_what_the_command_line_gives(office: Office) -> None:
    number = office.finished()
    (mine,) = [one for one in office.ann.get("/v1/calc/list").json() if one["id"] == number]
    assert (mine["owner"], mine["status"]) == ("ann", "complete")
    log = office.ann.get(f"/v1/calc/{number}/log/0:").json()
    assert any("celery workers" in line[-1] for line in log)
    results = office.ann.get(f"/v1/calc/{number}/results").json()
    (curves,) = [one for one in results if one["type"] == "hcurves"]
    assert "csv" in curves["outtypes"]
    answer = office.ann.get(f"/v1/calc/result/{curves['id']}", params={"export_type": "csv"})
    packed = zipfile.ZipFile(io.BytesIO(answer.content))
    downloaded = {name: hashlib.sha256(packed.read(name)).hexdigest() for name in packed.namelist()}
    make_user(office.lab)
    export = f"oq engine --export-output {curves['id']} ~/webui >&2; cd ~/webui; sha256sum *; rm *"
    printed = on(office.lab, "master", f"runuser --login {USER} --command '{export}'")
    assert {name: digest for digest, name in map(str.split, printed.splitlines())} == downloaded
    assert len(downloaded) > 1
    extracted = numpy.load(io.BytesIO(office.ann.get(f"/v1/calc/{number}/extract/hcurves?kind=mean").content))
    assert "mean" in extracted.files
    datastore = office.ann.get(f"/v1/calc/{number}/datastore")
    assert datastore.content[:4] == b"\x89HDF"
    # The server removes an export when it has sent it.
    exports = f"find {facts.CUSTOM_TMP} -ignore_readdir_race -mindepth 1"
    wait_until("the exports to be gone", lambda: not on(office.lab, "master", exports).strip(), DEADLINE)


def test_a_calculation_that_has_ended_stays_as_no_zombie(office: Office) -> None:
    """Of the server's processes the one that began it reaps it with its next request."""
    office.finished()
    zombies = "ps -A -o stat= -o args= | grep ^Z || true"
    wait_until(
        "its process to be reaped",
        lambda: office.ann.get("/v1/calc/list").ok and not on(office.lab, "master", zombies).strip(),
        DEADLINE,
    )


def refused(client: Client, number: int, result: int) -> dict[str, int]:
    """The answers to all that somebody may want of a calculation, which should be 403 or 404."""
    looks = ("", "/status", "/log/0:", "/log/size", "/results", "/traceback", "/datastore", "/job_zip",
             "/extract/oqparam", "/add_tag/mine")  # fmt: skip
    calculation = f"/v1/calc/{number}"
    found = {path: client.get(calculation + path).status_code for path in looks}
    found |= {path: client.post(calculation + path).status_code for path in ("/abort", "/remove", "/share")}
    found["result"] = client.get(f"/v1/calc/result/{result}").status_code
    found["page"] = client.get(f"/engine/{number}/outputs").status_code
    return found


def test_a_calculation_is_its_owners_until_it_is_shared(office: Office) -> None:
    number = office.finished()
    result = office.ann.get(f"/v1/calc/{number}/results").json()[0]["id"]
    assert number not in office.bob.listed()
    assert number in office.admin.listed()
    answers = refused(office.bob, number, result)
    assert set(answers.values()) <= {403, 404}, answers
    assert office.ann.post(f"/v1/calc/{number}/share").status_code == 200
    assert number in office.bob.listed()
    assert office.bob.get(f"/v1/calc/{number}/results").status_code == 200
    assert office.bob.get(f"/v1/calc/{number}/log/0:").status_code == 200
    for action in ("remove", "unshare"):
        assert office.bob.post(f"/v1/calc/{number}/{action}").status_code == 403, action
    assert office.ann.post(f"/v1/calc/{number}/unshare").status_code == 200
    assert number not in office.bob.listed()
    assert office.ann.post(f"/v1/calc/{number}/remove").status_code == 200
    assert number not in office.ann.listed()


def test_nobody_computes_in_anothers_name_or_on_anothers_calculation(office: Office) -> None:
    number = office.finished()
    before = office.admin.listed()
    assert office.bob.run(office.job, job_owner="ann").status_code == 403
    assert office.bob.run(office.job, hazard_job_id=str(number)).status_code == 403
    assert office.admin.listed() == before


def test_who_has_the_name_of_a_user_of_the_master_sees_what_that_user_computes_there(office: Office) -> None:
    make_user(office.lab)
    run = f"cd {facts.ENGINE_DIR}/{CLASSICAL.folder} && oq engine --run job.ini"
    on(office.lab, "master", f"runuser --login {USER} --command '{run}'")
    same = Client(office.lab, USER, account(office.lab, "add", USER))
    number = max(same.listed())
    assert same.get(f"/v1/calc/{number}/results").status_code == 200
    assert number not in office.bob.listed()


def packed(job: Path, target: Path, text: str | None = None) -> str:
    """The path of a zip with one job file, perhaps with another text, and what it may need beside it."""
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(job.name, text or job.read_text())
        for file in job.parent.iterdir():
            if file.suffix != ".ini":
                archive.write(file, file.name)
    return str(target)


def log_in(window: Browser, name: str, password: str) -> None:
    window.open("/engine/")
    assert window.path() == "/accounts/login/"
    window.write("#id_username", name)
    window.write("#id_password", password)
    window.click("//button[.='Log in']")


@pytest.fixture(scope="module")
def window(office: Office, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if lacks := missing():
        pytest.skip(f"missing here: {', '.join(lacks)}")
    with browser(office.lab, tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def page(office: Office, window: Browser) -> Browser:
    """The page with the calculations of Ann, who has logged in."""
    window.open("/engine/")
    if window.path() != "/engine/":
        log_in(window, "ann", office.password)
    window.text(CALCULATIONS)
    return window


def listed(page: Browser) -> dict[int, str]:
    """The numbers of the page's calculations, and the status that it shows."""
    return {int(row[0]): row[6] for row in page.rows(CALCULATIONS) if row[0].isdecimal()}


def upload(office: Office, page: Browser, field: str, archive: str) -> int:
    """Put a file into a field of the page; the number of the calculation that begins."""
    before = office.ann.listed()
    page.write(field, archive)
    # The page may not have shown the earlier ones yet.
    wait_until("the calculation", lambda: set(listed(page)) - before, DEADLINE)
    (number,) = set(listed(page)) - before
    return number


def wait_for(page: Browser, number: int, status: str) -> None:
    def shown() -> bool:
        found = listed(page).get(number, "")
        assert status in found or "failed" not in found, found
        return status in found

    wait_until(f"calculation {number}: {status}", shown, DEADLINE)


def of_calculation(number: int, rest: str) -> str:
    return f"//table[@id='calculation_table']/tbody/tr[td[1]='{number}']{rest}"


def below_the_header(file: Path, calculation: int) -> tuple[str, list[str]]:
    """A CSV file's name without the calculation's number, and its lines but the first, which says when it began."""
    return file.name.replace(f"_{calculation}.", "."), file.read_text().splitlines()[1:]


def test_in_a_browser_a_wrong_password_is_refused(window: Browser) -> None:
    log_in(window, "ann", "wrong")
    assert "enter a correct username and password" in window.text("form .errorlist")
    window.open("/engine/")
    assert window.path() == "/accounts/login/"
    window.picture("webui-login")


def test_in_a_browser_several_source_models_are_uploaded_and_give_what_the_command_line_computes(
    office: Office, page: Browser, tmp_path: Path
) -> None:
    job = fetch_job(office.lab, SEVERAL_SOURCE_MODELS)
    assert len(list(job.parent.glob("source_model_?.xml"))) > 1
    number = upload(office, page, "#hazard_archive", packed(job, tmp_path / "job.zip"))
    page.click(of_calculation(number, "//a[.='Console']"))
    first = page.text(LOG)
    wait_until("the log to move", lambda: len(page.text(LOG)) > len(first), DEADLINE)
    wait_for(page, number, "complete")
    wait_until("the log's end", lambda: "finished" in page.text("#errorDialog .modal-title"), DEADLINE)
    page.picture("webui-log")
    assert "celery workers" in page.text(LOG)
    page.click("//div[@id='errorDialog']//button[.='Close']")
    page.click(of_calculation(number, "//a[.='Outputs']"))
    archive = page.downloaded("//table[@id='output_table']//tr[td[3]='hcurves']//a[.='Download csv']")
    page.picture("webui-outputs")
    run = run_job(office.lab, job, tmp_path / "exported", show=False)
    zipfile.ZipFile(archive).extractall(tmp_path / "downloaded")
    computed = dict(
        below_the_header(file, run.calculation) for file in (tmp_path / "exported").glob("*_curve-*.csv")
    )
    downloaded = dict(below_the_header(file, number) for file in (tmp_path / "downloaded").iterdir())
    assert len(downloaded) > 1
    assert downloaded == computed


def test_in_a_browser_a_calculation_is_aborted(office: Office, page: Browser, tmp_path: Path) -> None:
    since = time.time()
    archive = packed(office.job, tmp_path / "long.zip", slower(office.job))
    number = upload(office, page, "#hazard_archive", archive)
    office.wait_until_a_task_runs(since)
    wait_for(page, number, "executing")
    page.picture("webui-calculations")
    page.click(of_calculation(number, "//a[.='Abort']"))
    assert str(number) in page.text("#confirmModal .modal-body")
    page.click("//div[@id='confirmModal']//button[contains(., 'abort')]")
    wait_for(page, number, "aborted")
    assert office.ann.status(number) == "aborted"


def test_in_a_browser_a_hazard_calculation_is_continued_with_risk(
    office: Office, page: Browser, tmp_path: Path
) -> None:
    hazard = fetch_job(office.lab, HAZARD_AND_RISK)
    exposure = hazard.with_name("exposure_model.csv")
    exposure.write_text("".join(exposure.read_text().splitlines(keepends=True)[:100]))
    number = upload(office, page, "#hazard_archive", packed(hazard, tmp_path / "hazard.zip"))
    wait_for(page, number, "complete")
    risk = packed(hazard.with_name("job_risk.ini"), tmp_path / "risk.zip")
    continued = upload(office, page, of_calculation(number, "//input[@name='archive']"), risk)
    wait_for(page, continued, "complete")
    page.click(of_calculation(continued, "//a[.='Outputs']"))
    page.text(f"{OUTPUTS} td")
    assert "loss_curves-stats" in {row[2] for row in page.rows(OUTPUTS)}


def test_in_a_browser_somebody_logs_out(page: Browser) -> None:
    page.click("//a[.='logout']")
    page.text("#id_username")
    page.open("/engine/")
    assert page.path() == "/accounts/login/"


def test_in_a_browser_people_change_their_own_password(office: Office, window: Browser) -> None:
    old, new = account(office.lab, "add", "eve"), "of my own choice"
    log_in(window, "eve", old)
    window.click("//a[.='Password']")
    window.picture("webui-password")
    for field, text in (("old_password", old), ("new_password1", new), ("new_password2", new)):
        window.write(f"#id_{field}", text)
    window.click("//button[.='Change password']")
    assert "is changed" in window.text("#changed")
    window.click("//a[.='logout']")
    window.text("#id_username")
    log_in(window, "eve", new)
    assert window.text("//li[@class='user']/strong") == "eve"
    on(office.lab, "master", "oq-webui remove eve")


def restart_and_kill(office: Office, number: int, status: str) -> None:
    """Restart the WebUI, and kill it after that; a calculation keeps its status."""
    on(office.lab, "master", RESTART)
    assert office.ann.status(number) == status
    server = f"systemctl show --property=MainPID --value {facts.WEBUI_UNIT}"
    killed = on(office.lab, "master", f"pid=$({server}); kill -KILL $pid; echo $pid").strip()
    up = f"systemctl is-active --quiet {facts.WEBUI_UNIT} && {server} || true"
    wait_until("the restart", lambda: on(office.lab, "master", up).strip() not in ("", "0", killed), DEADLINE)
    assert office.ann.status(number) == status


def test_a_restart_of_the_webui_ends_no_calculation_and_nobodys_session(office: Office) -> None:
    number = office.running(SHORT)
    with held(office.lab):
        restart_and_kill(office, number, "executing")
    assert office.ann.wait(number) == "complete"


@contextmanager
def the_queue_full(lab: Lab) -> Iterator[None]:
    """More calculations run than may at once, as far as the database knows: of a process that is always there."""

    def tell(statement: str) -> None:
        code = (
            "import socket, sqlite3\n"
            f"database = sqlite3.connect('{facts.DBSERVER_DIR}/db.sqlite3', timeout=60)\n"
            f"with database: database.execute({statement!r}, {{'host': socket.gethostname()}})\n"
        )
        on(lab, "master", f"runuser --user {facts.OPENQUAKE_USER} -- python3 -c {shlex.quote(code)}")

    columns = "user_name, status, ds_calc_dir, calculation_mode, description, is_running, pid, host"
    values = "'nobody', 'executing', '', 'classical', 'full', 1, 1, :host"
    tell(
        f"INSERT INTO job ({columns}) WITH RECURSIVE count(n) AS "  # noqa: S608 - constants
        f"(SELECT 1 UNION SELECT n + 1 FROM count WHERE n < 8) SELECT {values} FROM count"
    )
    try:
        yield
    finally:
        tell("DELETE FROM job WHERE description='full' AND host=:host")


def test_a_calculation_that_waits_for_its_turn_survives_a_restart_of_the_webui_and_begins(
    office: Office,
) -> None:
    with the_queue_full(office.lab):
        number = int(office.ann.run(office.job).json()["job_id"])
        restart_and_kill(office, number, "submitted")
    assert office.ann.wait(number) == "complete"


def test_a_calculation_can_be_aborted_after_a_restart_of_the_webui(office: Office) -> None:
    number = office.running()
    on(office.lab, "master", RESTART)
    assert office.bob.post(f"/v1/calc/{number}/abort").status_code == 403
    assert "success" in office.ann.post(f"/v1/calc/{number}/abort").json()
    assert office.ann.status(number) == "aborted"


class Upload:
    """A request's body of many megabytes that calls `seen` before its last bytes are sent."""

    def __init__(self, seen: Callable[[], None]) -> None:
        head = b'--x\r\nContent-Disposition: form-data; name="archive"; filename="job.zip"\r\n\r\n'
        self.data = io.BytesIO(head + b"\0" * UPLOAD_BYTES + b"\r\n--x--\r\n")
        self.seen = seen

    def __len__(self) -> int:
        return len(self.data.getbuffer())

    def read(self, size: int) -> bytes:
        """The next bytes."""
        if 0 < len(self) - self.data.tell() <= size:
            self.seen()
        return self.data.read(size)


def test_an_upload_streams_to_the_shared_file_system_and_fills_no_disk_of_the_databases(
    office: Office,
) -> None:
    def uploads(*directories: str) -> str:
        large = f"-type f -size +{UPLOAD_BYTES // 2 // 1024}k -name '*upload*'"
        return on(office.lab, "master", f"find {' '.join(directories)} -ignore_readdir_race -xdev {large}")

    def seen() -> None:
        wait_until("the upload", lambda: uploads(facts.SHARED_DIR), DEADLINE)
        assert uploads("/tmp", "/var", "/run") == ""
        held = on(office.lab, "master", f"find /run/openquake-nginx -size +{UPLOAD_BYTES // 2 // 1024}k")
        assert held == ""

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = office.ann.post("/v1/calc/run", data=Upload(seen), headers=kind)
    assert answer.status_code == 500  # it is no zip
    assert "zip" in answer.text
    wait_until(
        "the upload to be gone", lambda: not uploads(facts.SHARED_DIR), DEADLINE
    )  # it goes after the answer


def test_a_new_password_ends_sessions_and_an_account_that_is_removed_is_none(office: Office) -> None:
    old = account(office.lab, "add", "eve")
    eve = Client(office.lab, "eve", old)
    new = account(office.lab, "password", "eve")
    assert eve.get("/v1/calc/list").status_code == 403
    assert eve.login("eve", old).status_code == 403
    assert eve.login("eve", new).status_code == 200
    on(office.lab, "master", "oq-webui remove eve")
    assert eve.get("/v1/calc/list").status_code == 403
    assert "eve" not in on(office.lab, "master", "oq-webui list").split()


def change_password(client: Client, present: str, new: str, **headers: str) -> requests.Response:
    """As oq-cluster does it."""
    token = client.get(OWN_PASSWORD).cookies["csrftoken"]
    form = {"old_password": present, "new_password1": new, "new_password2": new}
    asked = {"Accept": "application/json", "X-CSRFToken": token}
    return client.post(OWN_PASSWORD, data=form, headers=asked | headers)


def test_people_change_their_own_password_which_ends_their_other_sessions(office: Office) -> None:
    old, new = account(office.lab, "add", "eve"), "of my own choice"
    eve, elsewhere = Client(office.lab, "eve", old), Client(office.lab, "eve", old)
    for present, refused in (("wrong", new), (old, "short"), (old, "12345678"), (old, "password")):
        answer = change_password(eve, present, refused)
        assert (answer.status_code, len(answer.json()["errors"]) > 0) == (400, True), refused
    assert elsewhere.get("/v1/calc/list").status_code == 200
    assert change_password(eve, old, new).json() == {"changed": True}
    assert eve.get("/v1/calc/list").status_code == 200
    assert elsewhere.get("/v1/calc/list").status_code == 403
    assert elsewhere.login("eve", old).status_code == 403
    assert elsewhere.login("eve", new).status_code == 200
    on(office.lab, "master", "oq-webui remove eve")


def test_a_page_of_another_site_changes_nobodys_password(office: Office) -> None:
    assert (
        change_password(
            office.ann, office.password, "theirs, not hers", **{"X-CSRFToken": "x" * 32}
        ).status_code
        == 403
    )
    assert (
        change_password(
            office.ann, office.password, "theirs, not hers", Origin="http://elsewhere"
        ).status_code
        == 403
    )
    assert Client(office.lab).get(OWN_PASSWORD).headers["Location"].startswith("/accounts/login/")
    assert Client(office.lab).login("ann", office.password).status_code == 200


def test_the_administrators_password_stays_the_one_of_the_secret(office: Office) -> None:
    answer = change_password(office.admin, administrators_password(office.lab), "another one of admin")
    assert answer.status_code == 400
    assert "the cluster's secret" in answer.json()["errors"][0]
    administrator(office.lab)


def test_who_has_forgotten_a_password_is_told_whom_to_ask(office: Office) -> None:
    assert "sudo oq-webui password NAME" in Client(office.lab).get("/reset_password/").text


def test_accounts_are_roots_to_manage(office: Office) -> None:
    make_user(office.lab)
    done = office.lab.machine("master").execute(["runuser", "--login", USER, "--command", "oq-webui add eve"])
    assert (done.returncode, "sudo oq-webui add eve" in done.stderr) == (1, True), done.stderr
    read = f"cat {facts.DBSERVER_DIR}/webui.sqlite3 {facts.WEBUI_SECRETS} 2>&1 || true"
    assert (
        on(office.lab, "master", f"runuser --login {USER} --command '{read}'").count("Permission denied") == 2
    )


def test_what_the_webuis_user_runs_finds_no_file_with_its_secrets(office: Office) -> None:
    """Everybody's calculations are such processes. The files of a server that runs are in /proc."""
    pid = f"$(systemctl show --value --property MainPID {facts.WEBUI_UNIT})"
    look = f"find /run/credentials -type f -readable; ls -l /proc/{pid}/fd; cat {facts.WEBUI_SECRETS} 2>&1"
    seen = on(office.lab, "master", f'runuser --user {facts.OPENQUAKE_USER} -- sh -c "{look}" || true')
    assert "socket:" in seen
    assert seen.count(facts.WEBUI_SECRETS) == seen.count("Permission denied") == 1
    assert "secrets" not in seen
    assert office.bob.post("/v1/calc/run_ini", data={"job_ini": facts.WEBUI_SECRETS}).status_code == 403


def test_a_reboot_of_the_master_aborts_what_came_through_the_webui_and_is_not_held_up_by_it(
    office: Office,
) -> None:
    """Else its processes hold the file systems for as long as systemd waits, 90 seconds."""
    number = office.running()
    machine = office.lab.machine("master")
    before = machine.init()
    machine.execute(["systemctl", "reboot"])
    wait_until("the master to go down", lambda: machine.init() != before, 80)
    wait_until("the boot", lambda: machine.init() is not None, DEADLINE)
    office.lab.nodes["master"].ready_after = None
    cluster.wait_until_ready(office.lab, print, timeout=READY_SECONDS)
    assert office.ann.status(number) == "aborted"  # by a session that has outlived the machine's boot
