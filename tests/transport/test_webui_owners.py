"""Who may do what in the WebUI with login: Django's own client against upstream's views, without a server.

That nginx and gunicorn hand requests on to these views is shown in the lab.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.transport import processes

# Ann's calculations 1, 2 and 3, of which the last runs; `ask` prints status and answer of somebody's request.
OFFICE = """
    import json, os, sys
    from unittest import mock
    sys.path.insert(0, sys.argv[1])
    os.environ |= {"OQ_APPLICATION_MODE": "RESTRICTED", "DJANGO_SETTINGS_MODULE": "oq_webui.settings"}
    import django
    django.setup()
    from django.contrib.auth import get_user_model
    from django.test import Client
    from openquake.commonlib import dbapi, logs
    from openquake.server.db import actions
    with mock.patch("os.path.isfile", return_value=True):  # the nodes' image has words of mails there
        import oq_webui.urls
    from oq_webui import accounts

    actions.upgrade_db(dbapi.db)
    accounts.prepare()
    accounts.add("chief", administrator=True)
    for name in ("ann", "bob"):
        accounts.add(name)
    for status in ("complete", "complete", "executing"):
        number = logs.dbcmd("create_job", sys.argv[2], "classical", "a job", "ann", None, None)
        logs.dbcmd("UPDATE job SET status=?x WHERE id=?x", status, number)

    def ask(name, what, method="post", **fields):
        client = Client(SERVER_NAME="localhost")
        client.force_login(get_user_model().objects.get(username=name))
        answer = getattr(client, method)(f"/v1/calc/{what}", fields)
        print(json.dumps([name, answer.status_code, answer.content.decode()]))

"""


def configuration(directory: Path) -> Path:
    """The file by which the WebUI has its database and all that people upload below a directory."""
    config = directory / "openquake.cfg"
    config.write_text(
        f"[celery]\nuse_celery = true\n[amqp]\nhost = 127.0.0.1\nuser = oq\npassword = none\n"
        f"[dbserver]\nfile = {directory}/db.sqlite3\nhost = 127.0.0.1\nmulti_user = false\n"
        f"[directory]\nshared_dir = {directory}\n"
    )
    return config


def office(directory: Path, *requests: str) -> list[Any]:
    """What some lines of code print after that, as JSON."""
    code = OFFICE + "".join(f"    {line}\n" for line in requests)
    return [
        *map(
            json.loads,
            processes.python(code, processes.ROOT / "engine", directory, config=configuration(directory)),
        )
    ]


def test_an_administrator_aborts_and_removes_everybodys_calculations_and_others_their_own(
    tmp_path: Path,
) -> None:
    bob, chief, again, ann, of_bob, aborted, removed, left, chiefs = office(
        tmp_path,
        "ask('bob', '1/remove')",
        "ask('chief', '1/remove')",
        "ask('chief', '1/remove')",
        "ask('ann', '2/remove')",
        "ask('bob', '3/abort')",
        "ask('chief', '3/abort')",
        "ask('chief', '3/remove')",
        "print(json.dumps([job.id for job in logs.dbcmd('SELECT id FROM job')]))",
        "print(json.dumps(get_user_model().objects.filter(username='chief').count()))",
    )
    assert bob == ["bob", 403, "This calculation is another user's."]
    assert chief[1] == 200, chief
    assert json.loads(chief[2])["success"] == "1"
    assert again[1] == 403  # upstream's answer for one that there is not
    assert ann[1] == 200, ann
    assert of_bob == bob
    assert json.loads(aborted[2]) == {"success": "Calculation 3 is aborted"}
    assert removed[1] == 200, removed
    assert left == []
    assert chiefs == 1  # who has kept the name


# All addresses of upstream's about calculations, each with what Bob gets who asks for it by a method, and by which
# methods it can be asked for where that says so (405). A number is Ann's calculation and its output.
ROUTES = (
    "import re",
    "from django.urls import resolve",
    "def walk(patterns, before=''):",
    "    for one in patterns:",
    "        route = before + str(one.pattern).removeprefix('^')",
    "        if hasattr(one, 'url_patterns'): yield from walk(one.url_patterns, route)",
    "        elif route.startswith(('v1/', 'engine')): yield route",
    "logs.dbcmd('create_outputs', 1, [('hcurves', 1)], 1)",
    "client = Client(SERVER_NAME='localhost', raise_request_exception=False)",
    "client.force_login(get_user_model().objects.get(username='bob'))",
    "def ask_all(method, which=''):",
    "    for route in sorted(set(walk(oq_webui.urls.urlpatterns))):",
    r"        address = re.sub(r'\(\\d[+*]\)|<int:\w+>|\(\?P<\w+>\[0-9\]\+\)', '1', '/' + route)",
    r"        address = re.sub(r'[$?]', '', re.sub(r'\(\[.*?\]\+\)|<str:\w+>', 'x', address))",
    "        resolve(address)",  # fails if it is none
    "        if not re.search(which, address): continue",
    "        answer = getattr(client, method)(address)",
    "        print(json.dumps([address, answer.status_code, answer.headers.get('Allow', '').split(', ')]))",
)
# Without a calculation's number; what starts a calculation starts it in the name of who asks, as the next tests show.
POSTED = {
    "/v1/calc/run",
    "/v1/on_same_fs",
    "/v1/valid/",
}
# They take a path of the server, or unpack on its disk: nobody may.
REFUSED = {
    f"/v1/calc/{name}"
    for name in (
        "jobs_from_inis",
        "run_ini",
        "run_scenario_calc_from_ses_rupture/1",
        "validate_ini",
        "validate_zip",
    )
}
LOOKS = {"", "datastore", "download_png", "extract", "job_zip", "log", "outputs", "result", "results"}
LOOKS |= {"status", "traceback"}
CHANGES = {"abort", "remove", "share", "unshare", "add_tag", "remove_tag", "set_preferred_job_for_tag"}


def numbered(address: str) -> bool:
    """Whether an address of the tests has a calculation's number."""
    return bool(re.search(r"/(calc|engine)/1\b", address))


@pytest.mark.parametrize("method", ["get", "post"])
def test_whatever_upstream_has_about_a_calculation_is_refused_to_others(tmp_path: Path, method: str) -> None:
    """A new version of the engine may have more."""
    found = office(tmp_path, *ROUTES, f"ask_all({method!r}, '/(calc|engine|result)/1')")
    of_calculations = {address: status for address, status, _ in found if numbered(address)}
    assert len(of_calculations) >= len(LOOKS | CHANGES)
    assert set(of_calculations.values()) == {403}, of_calculations
    outputs = {address: status for address, status, _ in found if address == "/v1/calc/result/1"}
    assert outputs == {"/v1/calc/result/1": 403 if method == "get" else 405}


def test_what_is_shared_is_looked_at_and_not_changed(tmp_path: Path) -> None:
    share = "logs.dbcmd(\"UPDATE job SET status='shared' WHERE id=1\")"
    found = office(tmp_path, *ROUTES, share, "ask_all('patch')")  # which is none of upstream's methods
    status = {
        address.split("/")[4] if address.startswith("/v1/calc/1/") else address.rpartition("/1/")[2]: status
        for address, status, _ in found
        if numbered(address)
    }
    status[""] = status.pop("/v1/calc/1")
    assert status == dict.fromkeys(LOOKS, 405) | dict.fromkeys(CHANGES, 403)


def test_what_else_upstream_takes_from_people_is_known(tmp_path: Path) -> None:
    """Each has been looked at for whose name and whose files it acts on."""
    found = office(tmp_path, *ROUTES, "ask_all('patch')")
    refused = {address for address, status, _ in found if status == 403 and not numbered(address)}
    assert refused == REFUSED | {"/v1/calc/delete_tag/x", "/v1/calc/unset_preferred_job_for_tag/x"}
    for address, status, allowed in found:
        if not numbered(address) and address not in refused:
            # One is a page, by any method.
            assert status == (200 if address == "/engine/" else 405), address
            assert (address in POSTED) == ("POST" in allowed), address
    assert {address for address, *_ in found} > POSTED


def test_nobody_computes_in_anothers_name_or_takes_away_everybodys_tags(tmp_path: Path) -> None:
    run, before, after, made, unset, deleted, there, chiefs = office(
        tmp_path,
        "ask('bob', 'run', job_owner='ann')",
        "jobs = 'SELECT count(*) AS n FROM job'",
        "print(3)",
        "print(logs.dbcmd(jobs)[0].n)",
        "ask('ann', 'create_tag/national', 'get')",
        "ask('bob', 'unset_preferred_job_for_tag/national', 'get')",
        "ask('bob', 'delete_tag/national', 'get')",
        "print(json.dumps([tag.name for tag in logs.dbcmd('SELECT name FROM tag')]))",
        "ask('chief', 'delete_tag/national', 'get')",
    )
    assert run[1:] == [403, "This calculation is another user's."]
    assert before == after
    assert made[1] == 200, made
    assert (unset[1], deleted[1]) == (403, 403), (unset, deleted)
    assert there == ["national"]
    assert chiefs[1] == 200, chiefs


def test_a_hazard_is_its_owners_however_its_number_is_written(tmp_path: Path) -> None:
    """Upstream reads it by int(), which takes more than digits."""
    found = office(
        tmp_path,
        "logs.dbcmd(\"UPDATE job SET user_name='chief' WHERE id=1\")",
        *[f"ask('bob', 'run', hazard_job_id={number!r})" for number in ("1", " 1", "+1", "0_1", "\u0661")],
        "ask('bob', 'run', hazard_job_id='')",
    )
    assert [status for _, status, _ in found] == [403] * 5 + [found[-1][1]]
    assert found[-1][1] != 403  # nothing is continued; that it has no archive is another matter


def test_the_pages_about_everybodys_tags_are_the_administrators(tmp_path: Path) -> None:
    """Upstream lets in whom it shows all pages."""
    see = "client = Client(SERVER_NAME='localhost'); client.force_login(get_user_model().objects.get(username={!r}))"
    page = "print(client.get('/tagadmin/db/job/').status_code)"
    assert office(tmp_path, see.format("bob"), page, see.format("chief"), page) == [403, 200]


def test_the_directory_of_input_files_is_the_servers_before_anybody_computes(tmp_path: Path) -> None:
    """Its owner counts as the workers' account; a user whose calculation came first would be taken for it."""
    found = office(
        tmp_path,
        "shared = sys.argv[2]",  # of which gunicorn is to see nothing
        'os.environ["OQ_WEBUI_UPLOADS"] = shared + "/uploads"',
        "from oq_webui import cli, server",
        "server.Server = mock.Mock()",
        'cli._serve("/none")',
        'print(json.dumps(oct(os.stat(shared + "/oq_celery_inputs").st_mode)[-4:]))',
        'print(json.dumps(server.Server.mock_calls == [mock.call("/none"), mock.call().run()]))',
    )
    assert found == ["3730", True]


def test_what_is_uploaded_is_not_taken_for_results(tmp_path: Path) -> None:
    """Upstream adds the rates of every HDF5 file beside a calculation's to its own: those of `calc_9.hdf5`, too."""
    beside, inside = office(
        tmp_path,
        "import io, zipfile",
        "from openquake.server import views",
        "packed = io.BytesIO()",
        "packed.name = 'job.zip'",
        "archive = zipfile.ZipFile(packed, 'w')",
        "archive.writestr('job.ini', '[general]\\ndescription = a job\\ncalculation_mode = custom')",
        "archive.writestr('calc_9.hdf5', 'results of another')",
        "archive.close()",
        "packed.seek(0)",
        "files = mock.Mock(getlist=lambda _: [packed])",
        "number = logs.dbcmd('create_job', sys.argv[2], 'custom', 'a job', 'ann', None, None)",
        "from pathlib import Path",
        "ini = Path(views.store(files, '.ini', number))",
        "print(json.dumps([path.name for path in Path(sys.argv[2], f'calc_{number}').glob('*')]))",
        "print(json.dumps(sorted(path.name for path in ini.parent.iterdir())))",
    )
    assert (beside, inside) == (["inputs"], ["calc_9.hdf5", "job.ini"])


def test_an_export_lies_where_uploads_do_and_goes_with_its_answer(tmp_path: Path) -> None:
    """Also one that has failed: the disk of the databases must not fill with what is left of them."""
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    found = office(
        tmp_path,
        "from pathlib import Path",
        "from django.conf import settings",
        "from openquake.server import views",
        "uploads = settings.FILE_UPLOAD_TEMP_DIR = sys.argv[2] + '/uploads'",
        "logs.dbcmd('create_outputs', 1, [('hcurves', 1)], 1)",
        "say = lambda *words: print(json.dumps(words))",
        "def export(key, number, datadir, directory):",
        "    Path(directory, 'curves.csv').write_text('numbers')",
        "    say(os.path.dirname(directory) == uploads)",
        "    if failing: raise views.DataStoreExportError('no room')",
        "    return [directory + '/curves.csv']",
        "views.core = mock.Mock(export_from_db=export)",
        "client = Client(SERVER_NAME='localhost')",
        "client.force_login(get_user_model().objects.get(username='ann'))",
        "for failing in (True, False):",
        "    answer = client.get('/v1/calc/result/1')",
        "    say(answer.status_code, bool(answer.streaming), b''.join(answer).decode())",
        "    answer.close()",
        "    say(os.listdir(uploads))",
    )
    assert found == [
        [True],
        [500, False, "DataStoreExportError: no room"],
        [[]],
        [True],
        [200, True, "numbers"],
        [[]],
    ]


UPLOAD = (
    "import io",
    "from django.test import RequestFactory",
    "from openquake.server.wsgi import application",
    "from oq_webui.server import whole",
    "client = Client()",
    "client.force_login(get_user_model().objects.get(username='ann'))",
    "cookies = '; '.join(f'{name}={cookie.value}' for name, cookie in client.cookies.items())",
    "def upload(cut, application=whole(application), **fields):",
    "    files = {name: io.BytesIO(bytes(100_000)) for name in ('one', 'two')}",
    "    for name, file in files.items(): file.name = name",
    "    environ = RequestFactory().post('/v1/calc/run', {**fields, **files}, HTTP_COOKIE=cookies).environ",
    "    body = environ['wsgi.input'].read(int(environ['CONTENT_LENGTH']))",
    "    environ |= {'wsgi.input': io.BytesIO(body[:len(body) - cut]), 'SERVER_NAME': 'localhost'}",
    "    b''.join(application(environ, lambda status, headers: None))",
    "    print(logs.dbcmd('SELECT count(*) AS n FROM job')[0].n)",
)


def test_an_upload_that_breaks_off_starts_nothing(tmp_path: Path) -> None:
    """Wherever it does. Django alone takes what has arrived for all that there is, as the last line shows."""
    cuts = (1, 2, 8, 40, 50_000, 150_000, 200_100)
    *broken, all_of_it, without = office(
        tmp_path, *UPLOAD, *(f"upload({cut})" for cut in cuts), "upload(0)", "upload(50_000, application)"
    )
    assert broken == [3] * len(cuts)  # those that there are before
    assert (all_of_it, without) == (4, 5)


def test_a_form_that_breaks_off_is_none(tmp_path: Path) -> None:
    """A name or a number that has lost its end would be another one."""
    whole, of_less, control = office(
        tmp_path,
        *UPLOAD,
        "def send(cut, application=whole(application)):",
        "    environ = RequestFactory().post('/v1/valid/', 'xml_text=<a>1</a>', "
        "content_type='application/x-www-form-urlencoded', HTTP_COOKIE=cookies).environ",
        "    body = environ['wsgi.input'].read(int(environ['CONTENT_LENGTH']))",
        "    environ |= {'wsgi.input': io.BytesIO(body[:len(body) - cut]), 'SERVER_NAME': 'localhost'}",
        "    said = b''.join(application(environ, lambda status, headers: None))",
        "    print(json.dumps(b'valid' in said))",
        "send(0)",
        "send(4)",
        "send(4, application)",
    )
    assert (whole, of_less, control) == (True, False, True)


def test_an_upload_that_names_itself_is_found_by_that_in_its_calculations_log(tmp_path: Path) -> None:
    token = "0123456789abcdef" * 2
    *_, said = office(
        tmp_path,
        *UPLOAD,
        f"upload(0, upload='{token}')",
        "upload(0)",
        "upload(0, upload='Calculation 1 is complete')",
        "found = logs.dbcmd('SELECT job_id, message FROM log ORDER BY id')",
        "print(json.dumps([(line.job_id, line.message) for line in found if 'Upload' in line.message]))",
    )
    assert said == [[4, f"Uploaded as {token}"]]


UPLOADED = (
    "import io, zipfile",
    "from pathlib import Path",
    "client = Client(SERVER_NAME='localhost')",
    "client.force_login(get_user_model().objects.get(username='bob'))",
    "secret = Path(sys.argv[2], 'secret.csv')",
    "secret.write_text('the password')",
    "def archive(files):",
    "    packed = io.BytesIO()",
    "    with zipfile.ZipFile(packed, 'w') as made:",
    "        for name, text in files.items(): made.writestr(name, text)",
    "    packed.seek(0)",
    "    packed.name = 'job.zip'",
    "    return packed",
    "def upload(**files):",
    "    answer = client.post('/v1/calc/run', {'archive': archive({'in/job.ini': INI + files.pop('names'), **files})})",
    "    said = answer.content.decode() + str([line.message for line in logs.dbcmd('SELECT message FROM log')])",
    "    print(json.dumps([answer.status_code, 'the password' in said, 'files that were uploaded' in said]))",
    "INI = '[general]\\ndescription = a job\\ncalculation_mode = custom\\ntruncation_level = 3\\n'",
    "outside = os.path.relpath(secret, Path(sys.argv[2], 'calc_4', 'inputs', 'in'))",
)
LOGIC_TREE = """<?xml version='1.0'?><nrml xmlns='http://openquake.org/xmlns/nrml/0.5'><logicTree logicTreeID='lt1'>
<logicTreeBranchSet uncertaintyType='sourceModel' branchSetID='bs1'><logicTreeBranch branchID='b1'>
<uncertaintyModel>NAMED</uncertaintyModel><uncertaintyWeight>1</uncertaintyWeight></logicTreeBranch></logicTreeBranchSet>
</logicTree></nrml>"""


@pytest.mark.parametrize(
    "names",
    [
        "f'sites_csv = {outside}'",
        "f'site_model_file = {outside}'",
        "f'reqv_hdf5 = {{\\'a\\': {outside!r}}}'",
        "f'exposure_file = {outside[:-4]}.zip'",
        "f'base_path = /\\nsites_csv = {outside}'",
    ],
)
def test_an_upload_names_no_file_that_did_not_come_with_it(tmp_path: Path, names: str) -> None:
    """What comes through the WebUI is computed as the cluster's own user, who may read everybody's."""
    [(status, shown, refused)] = office(tmp_path, *UPLOADED, f"upload(names={names})")
    assert (status, shown, refused) == (500, False, True)


# What an upload of a job and a file of another folder amounts to: `files` and what `look` prints of them.
LOOKED_AT = (
    *UPLOADED,
    "from openquake.server import views",
    "def look(names, files):",
    "    packed = archive({'in/job.ini': INI + names, **files})",
    "    given = mock.Mock(getlist=lambda _: [packed])",
    "    number = logs.dbcmd('create_job', sys.argv[2], 'custom', 'a job', 'ann', None, None)",
    "    try:",
    "        oq = views.readinput.get_oqparam(views.store(given, '.ini', number), kw={}, validate=False)",
    "        said = [os.path.relpath(path, sys.argv[2]) for path in oq._input_files]",
    "    except Exception as error: said = str(error)",
    "    print(json.dumps(said))",
)


def test_nor_does_a_file_that_came_with_it(tmp_path: Path) -> None:
    (said,) = office(
        tmp_path,
        *LOOKED_AT,
        f"tree = {LOGIC_TREE!r}.replace('NAMED', outside)",
        "look('source_model_logic_tree_file = ../tree/ssmLT.xml', {'tree/ssmLT.xml': tree})",
    )
    assert said.startswith(f"Not among the files that were uploaded: {tmp_path}/secret.csv. A job"), said


MODELS = """<?xml version='1.0'?><nrml xmlns='http://openquake.org/xmlns/nrml/0.5'>TREES</nrml>"""
TREE = """<logicTree logicTreeID='lt1'><logicTreeBranchSet uncertaintyType='gmpeModel' branchSetID='bs1'
applyToTectonicRegionType='*'><logicTreeBranch branchID='b1'><uncertaintyModel>MODEL</uncertaintyModel>
<uncertaintyWeight>1</uncertaintyWeight></logicTreeBranch></logicTreeBranchSet></logicTree>"""
SADIGH = TREE.replace("MODEL", "SadighEtAl1997")
LOOK_AT_MODEL = "look('gsim_logic_tree_file = gmmLT.xml', {'in/gmmLT.xml': %r.replace('MODEL', %s)})"


@pytest.mark.parametrize(
    "model",
    [
        "f'[ChiouYoungs2014]\\ndelta_gamma_tab = {str(secret)!r}'",  # which upstream opens, and does not list
        "f'[ChiouYoungs2014]\\ndelta_gamma_tab = {os.path.relpath(secret)!r}'",  # from where the server stands
        "f'[ChiouYoungs2014]\\ndelta_gamma_tab = {outside!r}'",
        "f'[GMPETable]\\n\"gmpe_table\" = {outside!r}'",
        "f'[ModifiableGMPE]\\ngmpe = {{GMPETable = {{gmpe_table = {outside!r}}}}}'",
        "f'[ModifiableGMPE.gmpe.GMPETable]\\ngmpe_table = {outside!r}'",
    ],
)
@pytest.mark.parametrize("trees", [TREE, SADIGH + TREE], ids=["one", "second"])
def test_nor_is_a_ground_motion_model_given_one_by_whatever_argument(
    tmp_path: Path, trees: str, model: str
) -> None:
    (said,) = office(tmp_path, *LOOKED_AT, LOOK_AT_MODEL % (MODELS.replace("TREES", trees), model))
    assert said.startswith("Not among the files that were uploaded: "), said
    assert "/secret.csv. A job" in said


def test_nor_is_the_one_ground_motion_model_of_a_job(tmp_path: Path) -> None:
    (said,) = office(
        tmp_path,
        *LOOKED_AT,
        "look(f'gsim = [ChiouYoungs2014]\\n  delta_gamma_tab = {str(secret)!r}', {})",
    )
    assert said.startswith(f"Not among the files that were uploaded: {tmp_path}/secret.csv. A job"), said


def test_what_a_ground_motion_model_has_in_the_upload_is_its_own(tmp_path: Path) -> None:
    """That the engine takes such a file is shown by its own jobs, which the lab computes (make qa)."""
    (found,) = office(
        tmp_path,
        *LOOKED_AT,
        f"tree = {MODELS.replace('TREES', SADIGH + TREE)!r}",
        "tree = tree.replace('MODEL', '[GMPETable]\\ngmpe_table = \"../tables/table.hdf5\"')",
        "look('gsim_logic_tree_file = gmmLT.xml', {'in/gmmLT.xml': tree, 'tables/table.hdf5': 'x'})",
    )
    assert "in/gmmLT.xml" in str(found), found


def test_the_master_writes_to_no_address_that_an_upload_names(tmp_path: Path) -> None:
    """It would reach its own ports and the machine's metadata."""
    [(status, said)], count = office(
        tmp_path,
        *UPLOADED,
        "form = {'archive': archive({'job.ini': INI}), 'notify_to': 'http://169.254.169.254/'}",
        "answer = client.post('/v1/calc/run', form)",
        "print(json.dumps([[answer.status_code, answer.json().get('error')]]))",
        "print(logs.dbcmd('SELECT count(*) AS n FROM job')[0].n)",
    )
    assert status == 400
    assert said.startswith("notify_to: the cluster writes to no address. Leave it out")
    assert count == 3  # those that there are before


def test_files_in_other_folders_of_an_upload_are_its_own(tmp_path: Path) -> None:
    (found,) = office(
        tmp_path, *LOOKED_AT, "look('sites_csv = ../sites/sites.csv', {'sites/sites.csv': '1 2'})"
    )
    assert found == ["calc_4/inputs/in/job.ini", "calc_4/inputs/sites/sites.csv"]


@pytest.mark.parametrize("member", ["sys.argv[2] + '/secret.csv'", "'../secret.csv'"])
def test_unpacking_a_model_renames_nothing_outside_of_its_folder(tmp_path: Path, member: str) -> None:
    """Upstream renames what has the name of a member of the archive, wherever that is."""
    said, left = office(
        tmp_path,
        *UPLOADED,
        "from openquake.commonlib import readinput",
        "model = Path(sys.argv[2], 'model')",
        "model.mkdir()",
        f"model.joinpath('e.zip').write_bytes(archive({{{member}: ''}}).read())",
        "try: readinput.unzip_rename(str(model / 'e.zip'), 'exposure.xml'); said = ''",
        "except ValueError as error: said = str(error)",
        "print(json.dumps('members that are not inside of it' in said))",
        "print(json.dumps(secret.exists()))",
    )
    assert (said, left) == (True, True)


def test_no_address_opens_a_path_of_the_master(tmp_path: Path) -> None:
    """Of a file that is no job file, the error had the first line."""
    found = office(
        tmp_path,
        *UPLOADED,
        "def look(method, address, **fields):",
        "    answer = getattr(client, method)(address, fields)",
        "    print(json.dumps([answer.status_code, 'the password' in answer.content.decode()]))",
        "for name in ('run', 'run_ini', 'validate_ini', 'run_scenario_calc_from_ses_rupture/1'):",
        "    look('post', f'/v1/calc/{name}', job_ini=str(secret), exposure_filepath=str(secret))",
        "look('post', '/v1/calc/validate_zip', archive=archive({'job.ini': INI}))",
        "look('get', '/v1/calc/jobs_from_inis', ini=str(secret))",
    )
    assert found == [[400, False], *[[403, False]] * 5]


ORIGINS = (
    "person = Client(SERVER_NAME='localhost')",
    "person.force_login(get_user_model().objects.get(username='ann'))",
    "def say(path, method='post', **headers):",
    "    headers = {'HTTP_' + name: value for name, value in headers.items()}",
    "    print(getattr(person, method)(path, **headers).status_code)",
)


def test_pages_of_others_change_nothing_by_somebodys_session_and_programs_do(tmp_path: Path) -> None:
    """A browser sends the session to every port of a name; QGIS and scripts say nothing of where they come from."""
    share, add = "'/v1/calc/1/share'", "'/v1/calc/1/add_tag/mine', 'get'"
    refused = [
        f"say({share}, ORIGIN='http://localhost:9000')",
        f"say({share}, ORIGIN='https://localhost')",
        f"say({share}, ORIGIN='null')",
        f"say({share}, SEC_FETCH_SITE='same-site')",
        f"say({share}, SEC_FETCH_SITE='cross-site')",
        "say('/accounts/ajax_login/', SEC_FETCH_SITE='cross-site')",
        f"say({add}, SEC_FETCH_SITE='same-site')",
        "say('/v1/calc/create_tag/mine', 'get', SEC_FETCH_SITE='cross-site')",
        "say('/v1/calc/1/remove_tag/mine', 'get', SEC_FETCH_SITE='cross-site')",
        "say('/v1/calc/1/set_preferred_job_for_tag/mine', 'get', SEC_FETCH_SITE='cross-site')",
        "say('/v1/calc/list', 'get', ORIGIN='http://localhost:9000')",  # upstream lets everybody read that
    ]
    taken = [
        "say('/v1/calc/create_tag/mine', 'get', SEC_FETCH_SITE='none')",
        f"say({add}, SEC_FETCH_SITE='same-origin')",
        f"say({share}, ORIGIN='http://localhost', SEC_FETCH_SITE='same-origin')",
        "say('/v1/calc/1/unshare')",
        "say('/engine/', 'get', SEC_FETCH_SITE='cross-site')",  # a link in a mail
        "say('/v1/calc/list_tags', 'get', SEC_FETCH_SITE='cross-site')",
    ]
    found = office(tmp_path, *ORIGINS, *refused, *taken)
    assert found == [403] * len(refused) + [200] * len(taken)


def test_nobody_is_told_which_files_there_are_nor_held_up_by_one_that_is_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    ask = (
        "fields = {'filename': sys.argv[2] + '/%s', 'checksum': 7929977}; "  # Adler-32 of an x
        "print(json.dumps(client.post('/v1/on_same_fs', fields).json()))"
    )
    found = office(tmp_path, "import threading", *AS_ANN, ask % "there", *STUCK, ask % "pipe")
    assert found == [{"success": False}] * 2


AS_ANN = (
    "client = Client(SERVER_NAME='localhost')",
    "client.force_login(get_user_model().objects.get(username='ann'))",
)
STUCK = (
    "timer = threading.Timer(60, os._exit, [1])",
    "timer.daemon = True",
    "timer.start()",
)  # for ever, else
