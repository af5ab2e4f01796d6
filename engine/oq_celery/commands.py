"""Upstream's commands and WebUI views that abort and delete, where several people compute on one cluster.

Everybody's calculations lie in directories that the whole group writes, and in one database of the DbServer. Upstream
takes what it may write for its user's own: `oq purge` and `oq reset` remove the files of others, also of calculations
that run. Here a user's are those that the database says, and root's are everybody's, in whose name it deletes
(`removal.py`).
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from openquake.baselib import config
from openquake.baselib.general import humansize

from oq_celery import identity, removal, settings, turn, uploads
from oq_celery.abort import Refused, abort, remove_leftovers
from oq_celery.jobs import GOOD, UNFINISHED, lives, printable
from oq_celery.removal import DATASTORES, datastores, has_own_files
from oq_celery.replacing import replaced
from oq_celery.runs import end_others, skip_taken

INPUTS = "inputs"  # of a calculation that was uploaded, in its directory; upstream takes capitals for a mosaic's model
# Of the form that starts a calculation: 32 hexadecimal digits that nobody else has sent.
UPLOAD_FIELD = "upload"
UPLOAD_IT = "Upload the job with all its files to /v1/calc/run: what is wrong with it is in its log then"
NO_NOTICES = (
    "notify_to: the cluster writes to no address. Leave it out, and ask /v1/calc/<number>/status how it ends"
)
WEBUI_REMEDY = "`oq abort {0}` as that user, or `sudo oq abort {0}`"
# Finished calculations of a user, or of everybody for root; the newest first, since others may depend on older ones.
_FINISHED = """SELECT id, user_name, ds_calc_dir FROM job WHERE (user_name=?x OR ?x=0) AND status IN (?X)
AND workflow_id IS NULL AND datetime(start_time) <= datetime('now', ?x) ORDER BY id DESC"""
_ALL = "SELECT id FROM job WHERE user_name=?x ORDER BY id DESC"
# The last number of a calculation, and another one if it is higher.
_LAST = "SELECT coalesce(max(seq), 0) AS number FROM sqlite_sequence WHERE name='job'"
_SKIP = "UPDATE sqlite_sequence SET seq=max(seq, ?x) WHERE name='job'"
_SKIP_FIRST = """INSERT INTO sqlite_sequence (name, seq) SELECT 'job', ?x
WHERE NOT EXISTS (SELECT * FROM sqlite_sequence WHERE name='job')"""
# Others that `cache = true` has taken from a calculation.
_SAME_FILES = (
    "SELECT id, user_name FROM job WHERE ds_calc_dir=?x AND id<>?x AND status<>'deleted' ORDER BY id"
)
# Those that start from a calculation, from these, and so on; the newest first, which nothing of them starts from.
_DEPENDENTS = """SELECT * FROM job WHERE id IN (
WITH RECURSIVE dependent(id) AS (SELECT id FROM job WHERE hazard_calculation_id=?x
UNION SELECT job.id FROM job JOIN dependent ON job.hazard_calculation_id=dependent.id) SELECT id FROM dependent)
AND id<>?x AND status<>'deleted' ORDER BY id DESC"""
# How many calculations a user, or everybody, has after one.
_NEWER = "SELECT count(*) AS number FROM job WHERE id>?x AND (?x OR user_name=?x) AND status<>'deleted'"
_SUBMIT = "UPDATE job SET status='submitted', pid=?x WHERE id=?x AND status='created'"
_MARK = "UPDATE job SET status='aborted', is_running=0 WHERE id=?x AND status IN (?X)"


def extend_actions(actions: Any) -> None:
    """Change `openquake.server.db.actions`: what runs is not deleted, nothing of what is deleted stays, and nothing
    else goes with it; a negative number beyond a user's first calculation is none.
    """
    upstream_del_calc, upstream_get_job = actions.del_calc, actions.get_job

    @functools.wraps(upstream_get_job)
    def get_job(db: Any, job_id: Any, username: str | None = None) -> Any:
        """Upstream's, which for a negative number that is too large means the first calculation."""
        job, number = upstream_get_job(db, job_id, username), int(job_id)
        if job is not None and number < 0:
            newer = db(_NEWER, job.id, 0 if username else 1, username)[0].number
            return job if newer == -number - 1 else None
        return job

    @functools.wraps(upstream_del_calc)
    def del_calc(db: Any, job_id: Any, user: str, delete_file: bool = True, force: bool = False) -> Any:
        jobs = db("SELECT * FROM job WHERE id=?x AND user_name=?x", int(job_id), user)
        if jobs and _runs(jobs[0]):
            return {"error": f"Cannot delete calculation {job_id}: it runs. `oq abort {job_id}` first"}
        own = not jobs or has_own_files(jobs[0])
        if jobs and own and (others := db(_SAME_FILES, jobs[0].ds_calc_dir, int(job_id))):
            names = ", ".join(f"calculation {one.id} ({one.user_name})" for one in others)
            return {
                "error": f"Cannot delete calculation {job_id}: its results are also those of {names} (`cache = true`). "
                "Delete those first; root can: `sudo oq purge`"
            }
        # The database would delete them with it, whoever's they are and whatever they do, and leave their files.
        if force and jobs and (dependents := db(_DEPENDENTS, int(job_id), int(job_id))):
            names = ", ".join(f"calculation {one.id} ({one.user_name}, {one.status})" for one in dependents)
            return {
                "error": f"Cannot delete calculation {job_id}: {names} started from it. Delete those first"
            }
        answer = upstream_del_calc(db, job_id, user, delete_file and own, force)
        if "hdf5paths" in answer and jobs:
            with contextlib.suppress(Refused, OSError), removal.files(jobs[0]) as found:
                found.remove(results=delete_file)
        return answer

    def delete_uncompleted_calculations(db: Any, user: str) -> None:
        """Upstream's, but not of those that run."""
        db("UPDATE job SET status='deleted' WHERE user_name=?x AND status IN ('failed', 'aborted')", user)

    def submit(db: Any, job_id: int, pid: int) -> int:
        """Give a calculation that was created its process; 0 if it was aborted or removed meanwhile, else 1."""
        return int(db(_SUBMIT, pid, job_id).rowcount)

    def abort_unfinished(db: Any, job_id: int) -> None:
        """Note that a calculation which has not ended is aborted."""
        db(_MARK, job_id, list(UNFINISHED))

    def last_number(db: Any) -> int:
        """The highest number that a calculation has had."""
        return int(db(_LAST)[0].number)

    def skip_numbers(db: Any, last: int) -> None:
        """Give calculations numbers above `last` from now on."""
        db(_SKIP, last)
        db(_SKIP_FIRST, last)

    actions.del_calc, actions.get_job = del_calc, get_job
    actions.last_number, actions.skip_numbers = last_number, skip_numbers
    actions.abort_unfinished, actions.submit = abort_unfinished, submit
    actions.delete_uncompleted_calculations = delete_uncompleted_calculations


def _runs(job: Any) -> bool:
    """Whether a process computes a calculation, or waits for its turn to."""
    return bool(job.status in UNFINISHED and job.pid and lives(job))


def extend_abort(module: Any) -> None:
    """Change `oq abort`."""
    from openquake.commonlib.logs import dbcmd

    @functools.wraps(module.main)
    def main(job_id: Iterable[int]) -> None:
        failed = False
        for given in job_id:
            try:
                print(_abort(dbcmd, _number(dbcmd, given)))
            except Refused as error:
                print(printable(str(error)), file=sys.stderr)
                failed = True
        if failed:
            sys.exit(1)

    module.main = main


def extend_collect_jobs(module: Any) -> None:
    """Change `oq collect_jobs`: it ends, too, when a calculation was aborted or deleted, or is not there.

    Upstream knows complete and failed ones, and waits for ever for others.
    """
    upstream_main, logs = module.main, module.logs
    upstream_dbcmd = logs.dbcmd

    @functools.wraps(upstream_main)
    def main(job_ids: Sequence[int], save: bool = False) -> None:
        def dbcmd(action: str, *args: Any) -> Any:
            rows = upstream_dbcmd(action, *args)
            if args != (job_ids,):
                return rows
            found = {row.id: row.status for row in rows}
            for number in job_ids:
                if (status := found.get(number, "deleted")) in ("aborted", "deleted"):
                    sys.exit(f"Calculation {number} was {status}")
            return [
                SimpleNamespace(id=number, status="complete" if status in GOOD else status)
                for number, status in found.items()
            ]

        with replaced(logs, "dbcmd", dbcmd):
            upstream_main(job_ids, save)

    module.main = main


def extend_workers(module: Any) -> None:
    """Change `oq workers`, which knows those of upstream's own clusters only."""

    @functools.wraps(module.main)
    def main(cmd: str, job_id: int = -1) -> None:
        del job_id  # of upstream's workers, which a calculation starts
        if cmd != "status":
            sys.exit(
                f"oq workers {cmd}: the workers of this cluster are machines that take tasks as long as they run; "
                "`oq-celery status` shows them"
            )
        command = Path(sys.executable).with_name("oq-celery")
        os.execv(command, [str(command), cmd])  # noqa: S606 - no shell is wanted

    module.main = main


def extend_engine(module: Any) -> None:
    """Change `oq engine`: what it deletes does not run on, and a command does not wait where too many wait already."""
    dbcmd, upstream_create = module.logs.dbcmd, module.create_jobs

    def create_jobs(job_inis: Iterable[Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Upstream's; where a file cannot be read, those before it are not left created for ever."""
        if why := turn.refusal(dbcmd):
            sys.exit(why)
        made: list[Any] = []
        try:
            for job_ini in job_inis:
                made += upstream_create([job_ini], *args, **kwargs)
        except BaseException as error:
            end_others(
                dbcmd,
                made,
                "aborted",
                f"Not computed, because of another job file of the same command: {error}",
            )
            raise
        return made

    def del_calculation(job_id: int, confirmed: bool = False) -> None:
        """Abort and delete a calculation and all associated outputs."""
        question = "Do you want to (abort and) delete this calculation and all its outputs, for ever? (y/n): "
        try:
            number = _number(dbcmd, job_id)
            if confirmed or module.confirm(question):
                _delete(dbcmd, number, getpass.getuser())
                print(f"Removed {number}")
        except Refused as error:
            sys.exit(str(error))

    module.create_jobs, module.del_calculation = create_jobs, del_calculation


def extend_dump(module: Any) -> None:
    """Change `oq dump`: the archive has all of a calculation's files, and the records of all that have results.

    The rates of a large calculation are in files of a directory beside its datastore, without which whoever starts from
    a restored one computes with too little hazard. The DbServer holds the newest records beside the database's file.
    Each person's datastores are in a directory of their own; `oq restore` takes those that are at the top. One that is
    shared is complete, too, which upstream's words for it leave out.
    """
    upstream_db = module.db

    @functools.wraps(module.zipfiles)
    def zipfiles(
        fnames: Iterable[str], archive: str, mode: Literal["w", "a"], log: Callable[[str], None]
    ) -> str:
        with zipfile.ZipFile(archive, mode, zipfile.ZIP_DEFLATED) as made:
            for file in dict.fromkeys(map(Path, fnames)):  # equal calculations (`cache = true`) have the same
                for path in (file, *sorted(file.with_suffix("").glob("*.hdf5"))):
                    log(f"Archiving {path}")
                    made.write(path, path.relative_to(file.parent))
        return archive

    def smart_save(database: str, archive: str, number: int) -> None:
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(directory, Path(database).name)
            with (
                contextlib.closing(sqlite3.connect(database)) as source,
                contextlib.closing(sqlite3.connect(copy)) as made,
            ):
                source.backup(made)
                made.execute("PRAGMA journal_mode = DELETE")  # all in one file
                made.execute("DELETE FROM job WHERE status NOT IN (?, ?)", GOOD)
                if number:
                    made.execute("DELETE FROM job WHERE id != ?", [number])
                made.commit()
            zipfiles([str(copy)], archive, "a", module.safeprint)

    def db(query: str, *words: Any) -> list[Any]:
        match words:
            case [{"status": "complete", **others}]:
                return [row for status in GOOD for row in upstream_db(query, {"status": status, **others})]
        return list(upstream_db(query, *words))

    db.path = upstream_db.path  # type: ignore[attr-defined]
    module.zipfiles, module.smart_save, module.db = zipfiles, smart_save, db


def extend_importcalc(module: Any) -> None:
    """Change `oq importcalc`: it takes a file from another file system, too, overwrites no results, leaves none out.

    What it has imported is complete, where upstream's is "created" for ever. Upstream renames the file to one where
    results are, with its own number, before it gives it another one; the rates of a large calculation, which are in
    files of a directory beside it, it leaves behind, and whoever starts from it computes without them.
    """
    upstream_main = module.main
    logs = module.logs

    def taken_in(calc_id: str, rates: Sequence[Path] = ()) -> None:
        """Import what is where results are, or on another server, and its files of rates."""
        made: list[int] = []

        def noting(action: str, *args: Any) -> Any:
            answer = dbcmd(action, *args)
            if action == "create_job":
                made.append(answer)
            return answer

        dbcmd, status = logs.dbcmd, "failed"
        try:
            with replaced(logs, "dbcmd", noting):
                upstream_main(calc_id)
            for file in rates:
                directory = Path(logs.get_datadir(), f"calc_{made[0]}")
                directory.mkdir(exist_ok=True)
                _copy_new(file, directory / file.name)
            status = "complete"
        finally:
            for number in made:
                dbcmd("finish", number, status)

    @functools.wraps(upstream_main)
    def main(calc_id: str) -> None:
        skip_taken(logs)
        if re.fullmatch(r"\d+", str(calc_id)):
            taken_in(calc_id)
            return
        source = Path(calc_id)
        target = Path(module.datastore.get_datadir(), source.name)
        try:
            if target.exists() and source.samefile(target):
                taken_in(str(target), _rates(module.datastore, source))
                return
            _copy_new(source, target)
            try:
                taken_in(str(target), _rates(module.datastore, source))
            except BaseException:
                target.unlink(missing_ok=True)
                raise
        except OSError as error:
            sys.exit(f"oq importcalc: {error}")
        try:
            source.unlink()
        except OSError as error:
            print(f"It is imported, and {source} stays: {error}")

    module.main = main


def _parent(datastore: Any, file: Path) -> int:
    """The number of the calculation that a file's calculation started from; 0 for none."""
    with datastore.read(str(file), read_parent=False) as found:
        try:
            parent = datastore.get_oq(found).hazard_calculation_id
        except KeyError:
            return 0
    return parent if isinstance(parent, int) else 0


def _rates(datastore: Any, file: Path) -> list[Path]:
    """The files with a calculation's rates that are not in its datastore.

    Args:
        datastore: the module openquake.commonlib.datastore.
        file: a calculation's results.

    Raises:
        OSError: if these need others, which are not there.
    """
    import h5py

    if parent := _parent(datastore, file):
        raise OSError(
            f"{file.name} started from calculation {parent} of where it was computed, and reads a part of that; here "
            "this number is another calculation's. Import that one's file, and compute this one anew from it (--hc)"
        )
    found = sorted(file.with_suffix("").glob("*.hdf5"))
    with h5py.File(file, "r") as results:
        tasks = results["task_info"]["taskname"] if "task_info" in results else ()
        if b"save_rates" in tasks and not found:
            raise OSError(
                f"its rates are not in {file.name} but in the directory {file.stem} that was beside it, without which "
                "whatever starts from it would be too low: copy that, too"
            )
    return found


def _copy_new(source: Path, target: Path) -> None:
    """Copy a file; OSError where there is one already, or anything goes wrong, and then there is no copy."""
    with source.open("rb") as old:
        try:
            new = target.open("xb")
        except FileExistsError:
            raise OSError(
                f"{target} is there already, the results of another calculation. Rename your file to calc_N.hdf5, "
                "with a number N that is not there"
            ) from None
        try:
            with new:
                shutil.copyfileobj(old, new)
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def extend_purge(module: Any) -> None:
    """Change `oq purge`."""
    dbcmd = module.logs.dbcmd

    @functools.wraps(module.main)
    def main(what: str, force: bool = False, *, days: int = 30) -> None:
        if what in ("failed", "old"):
            # Of deleted ones the files may be there: `oq engine --delete-uncompleted-calculations` leaves them.
            wanted = ["failed", "aborted", "deleted"] + (["complete"] if what == "old" else [])
            age = "0 days" if what == "failed" else f"-{days} days"
            _purge(dbcmd, dbcmd(_FINISHED, getpass.getuser(), os.geteuid(), wanted, age), force)
        elif what == "orphan":
            _purge_orphans(dbcmd, Path(module.datadir), force)
        elif not re.fullmatch(r"-?\d+", what):
            sys.exit(f"oq purge {what}: say a calculation's number, failed, old or orphan")
        else:
            try:
                number = _number(dbcmd, int(what))
                _delete(dbcmd, number, _owner(dbcmd, number), running=False, force=force)
                print(f"Removed {number}")
            except Refused as error:
                sys.exit(str(error))

    module.main = main


def extend_reset(module: Any) -> None:
    """Change `oq reset`: it removes the calculations of its user and leaves the database to the others."""
    dbcmd = module.logs.dbcmd

    @functools.wraps(module.main)
    def main(yes: bool = False) -> None:
        if os.geteuid() == 0:
            sys.exit(
                "oq reset removes the calculations of its user, and root has none. `oq purge old --days 0 --force` as "
                "root removes those of everybody, but for those that run"
            )
        if not yes and not module.confirm("Do you really want to destroy all your data? (y/n) "):
            return
        refused = []
        user = getpass.getuser()
        for job in dbcmd(_ALL, user):
            try:
                _delete(dbcmd, job.id, user, force=True)
                print(f"Removed {job.id}")
            except Refused as error:
                refused.append(str(error))
        if refused:
            sys.exit("\n".join(refused))

    module.main = main


def extend_views(views: Any) -> None:
    """Change the WebUI's views: an abort that they call done is done, what is removed does not run on, an export lies
    where uploads do and goes with the answer, what is uploaded is not taken for results, and an upload has a name. What
    a job wants to be exported at its end nobody could fetch: it is exported when somebody asks for it, and not before.
    A file of the master has nobody computed or looked at: jobs are uploaded, and name what is uploaded with them.
    Nobody has the master write to an address of theirs at the end of a calculation.
    Nobody's files are looked at to find out whether a client has the same: upstream opens whatever it is told.
    """
    dbcmd, answer = views.logs.dbcmd, views.JsonResponse
    upstream_parallel = views.parallel
    upstream_abort, upstream_remove = views.calc_abort, views.calc_remove

    def may(request: Any, job: Any) -> bool:
        return bool(
            job.user_name in views.utils.get_valid_users(request) or views.utils.is_superuser(request)
        )

    @functools.wraps(upstream_abort)
    def calc_abort(request: Any, calc_id: Any) -> Any:
        job = dbcmd("get_job", calc_id)
        if request.method != "POST" or job is None or job.status not in UNFINISHED or not may(request, job):
            return upstream_abort(request, calc_id)  # which refuses it
        try:
            return answer({"success": _abort(dbcmd, job.id, WEBUI_REMEDY, may=True)})
        except Refused as error:
            return answer({"error": str(error)}, status=403)

    @functools.wraps(upstream_remove)
    def calc_remove(request: Any, calc_id: Any) -> Any:
        job = dbcmd("get_job", calc_id)
        mine = job is not None and job.user_name == views.utils.get_username(request)
        if request.method == "POST" and mine and job.status in UNFINISHED:
            try:
                _abort(dbcmd, job.id, WEBUI_REMEDY, may=True)
            except Refused as error:
                if dbcmd("get_job", job.id).status in UNFINISHED:
                    return answer({"error": str(error)}, status=403)
        return upstream_remove(request, calc_id)

    upstream_same = views.on_same_fs

    @functools.wraps(upstream_same)
    def on_same_fs(request: Any) -> Any:
        """A pipe would hold the view up for ever. Who is told "no" uploads the files."""
        return answer({"success": False}) if request.method == "POST" else upstream_same(request)

    making = threading.local()
    upstream_run, upstream_create = views.calc_run, views.engine.create_jobs

    @functools.wraps(upstream_run)
    def calc_run(request: Any) -> Any:
        if request.method == "POST" and not request.FILES:  # upstream would take a path of this machine
            return answer({"error": UPLOAD_IT}, status=400)
        if request.POST.get("notify_to"):  # upstream has this machine write to whatever address that is
            return answer({"error": NO_NOTICES}, status=400)
        token = request.POST.get(UPLOAD_FIELD, "")
        making.token = token if re.fullmatch(r"[0-9a-f]{32}", token) else ""
        try:
            return upstream_run(request)
        finally:
            making.token = ""

    @functools.wraps(upstream_create)
    def create_jobs(*args: Any, **kwargs: Any) -> Any:
        """What an upload has started says so from the first: whose answer is lost finds its calculation by that."""
        made = upstream_create(*args, **kwargs)
        if token := getattr(making, "token", ""):
            dbcmd("log", made[0].calc_id, datetime.now(UTC), "INFO", "oq_celery", f"Uploaded as {token}")
        return made

    def in_place(make: Callable[..., Any]) -> Callable[..., Any]:
        """One of tempfile's functions, which makes what a view makes where there is room for it, and notes it."""

        @functools.wraps(make)
        def made(**options: Any) -> Any:
            found = make(**options | {"dir": views.settings.FILE_UPLOAD_TEMP_DIR})
            making.paths.append(Path(found if isinstance(found, str) else found[1]))
            return found

        return made

    def leaving_nothing(view: Callable[..., Any]) -> Callable[..., Any]:
        """A view whose files go with its answer; upstream leaves those of an export that has failed."""

        @functools.wraps(view)
        def answering(*args: Any, **kwargs: Any) -> Any:
            paths: list[Path] = []
            making.paths = paths
            response = None
            try:
                response = view(*args, **kwargs)
            finally:
                if not getattr(response, "streaming", False):
                    _remove(paths)
            if response.streaming:
                upstream_close = response.close

                def close() -> None:
                    # Upstream puts its own way to do this into an attribute that Django has read before.
                    upstream_close()
                    _remove(paths)

                response.close = close
            return response

        return answering

    def calc_dir(number: int) -> str:
        """Where upstream unpacks an upload: not among a calculation's files of rates, to which all HDF5 files count."""
        directory = Path(upstream_parallel.calc_dir(number), INPUTS)
        directory.mkdir(exist_ok=True)
        making.inputs = directory
        return str(directory)

    upstream_oqparam = views.readinput.get_oqparam

    @functools.wraps(upstream_oqparam)
    def get_oqparam(job_ini: Any, *args: Any, kw: Mapping[str, Any], **kwargs: Any) -> Any:
        kw = {**kw, "exports": ""}  # into upstream's export_dir, on the master's root disk
        with uploads.only(making.inputs):
            return upstream_oqparam(job_ini, *args, kw=kw, **kwargs)

    def refused(view: Callable[..., Any]) -> Callable[..., Any]:
        """A view that takes the path of a file of this machine, which it would open as this server's user."""

        @functools.wraps(view)
        def refuse(_request: Any, **_given: Any) -> Any:
            return answer({"error": UPLOAD_IT}, status=403)

        return refuse

    views.readinput = SimpleNamespace(**vars(views.readinput) | {"get_oqparam": get_oqparam})
    views.calc_run, views.engine.create_jobs = calc_run, create_jobs
    views.calc_abort, views.calc_remove, views.on_same_fs = calc_abort, calc_remove, on_same_fs
    views.parallel = SimpleNamespace(calc_dir=calc_dir)
    views.tempfile = SimpleNamespace(
        mkdtemp=in_place(tempfile.mkdtemp), mkstemp=in_place(tempfile.mkstemp), gettempdir=tempfile.gettempdir
    )
    for name in ("calc_result", "calc_zip", "extract"):
        setattr(views, name, leaving_nothing(getattr(views, name)))
    for name in (
        "calc_run_ini",
        "calc_run_scenario_from_ses",
        "jobs_from_inis",
        "validate_ini",
        "validate_zip",
    ):
        setattr(views, name, refused(getattr(views, name)))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _abort(dbcmd: Callable[..., Any], number: int, *args: Any, **kwargs: Any) -> str:
    said = abort(dbcmd, number, *args, **kwargs)
    with identity.acting_as(identity.keeper()) if os.geteuid() == 0 else contextlib.nullcontext():
        remove_leftovers(settings.load(config).spool, number)
    return said


def _number(dbcmd: Callable[..., Any], given: int) -> int:
    """A calculation's number; a negative one counts this user's from the last."""
    job = dbcmd("get_job", given, getpass.getuser() if given < 0 else None)
    if job is None:
        raise Refused(f"There is no calculation {given}" + (" of yours" if given < 0 else ""))
    return int(job.id)


def _owner(dbcmd: Callable[..., Any], number: int) -> str:
    """In whose name this user deletes a calculation: root in its owner's."""
    return str(dbcmd("get_job", number).user_name) if os.geteuid() == 0 else getpass.getuser()


def _delete(
    dbcmd: Callable[..., Any], number: int, user: str, *, running: bool = True, force: bool = False
) -> None:
    """Delete a calculation of a user; one that runs is aborted before.

    Args:
        dbcmd: of openquake.commonlib.logs.
        number: of the calculation.
        user: whose it is.
        running: whether to delete it also if it runs.
        force: whether to delete it also if others start from it: with these, where all of them are the user's.

    Raises:
        Refused: if it is another user's, others depend on it, or it runs on.
    """
    dependents = dbcmd(_DEPENDENTS, number, number) if force else []
    if all(one.user_name == user and (running or not _runs(one)) for one in dependents):
        for one in dependents:
            _delete(dbcmd, one.id, user, running=running)
    job = dbcmd("get_job", number)
    if running and job is not None and job.user_name == user and job.status in UNFINISHED:
        try:
            _abort(dbcmd, number)
        except Refused:
            if dbcmd("get_job", number).status in UNFINISHED:
                raise
    with contextlib.ExitStack() as stack:
        # The files by this process: the DbServer's user may not remove those in a directory of the user's own. Whether
        # that can be is known before the database forgets where they are.
        files = stack.enter_context(removal.files(job)) if job is not None and job.user_name == user else None
        answer = dbcmd("del_calc", number, user, False, force)
        if "error" in answer:
            raise Refused(answer["error"])
        if files is not None and "hdf5paths" in answer:
            try:
                files.remove(results=True)
            except OSError as error:
                raise Refused(f"Removed {number}, but not its results: {error}") from None


def _purge(dbcmd: Callable[..., Any], jobs: Iterable[Any], force: bool) -> None:
    """List calculations with their size, or delete them."""
    found = list(jobs)
    sizes = [sum(path.stat().st_size for path in datastores(job) if path.exists()) for job in found]
    if not force:
        for job in found:
            print(printable(f"{job.id} of {job.user_name}: {job.ds_calc_dir}.hdf5"))
        print(f"Found {len(found)} calculations, {humansize(sum(sizes))}")
        if found:
            print("Use --force to really delete them")
        return
    removed = []
    for job, size in zip(found, sizes, strict=True):
        try:
            _delete(dbcmd, job.id, job.user_name, running=False)
            removed.append(size)
        except (Refused, OSError) as error:
            print(printable(str(error)), file=sys.stderr)
    print(f"Removed {len(removed)} calculations, {humansize(sum(removed))}")


def _purge_orphans(dbcmd: Callable[..., Any], datadir: Path, force: bool) -> None:
    """List this user's datastores of which the database does not know, or remove them."""
    # By whatever path, and under the number of an equal calculation (`cache = true`), too.
    named = {Path(job.ds_calc_dir) for job in dbcmd("SELECT ds_calc_dir FROM job WHERE ds_calc_dir <> ''")}
    known = {path.parent.resolve() / f"{path.name}{ending}" for path in named for ending in DATASTORES}
    mine = [
        path
        for path in sorted(datadir.glob("*.hdf5"))
        if path.parent.resolve() / path.name not in known and os.geteuid() in (0, path.stat().st_uid)
    ]
    size = humansize(sum(path.stat().st_size for path in mine))
    for path in mine:
        print(path)
    if force and mine:
        try:
            with removal.opened(datadir, removal.own_places()) as directory:
                for path in mine:
                    os.unlink(path.name, dir_fd=directory)
        except OSError as error:
            sys.exit(str(error))
    print(f"{'Removed' if force else 'Found'} {len(mine)} orphan files [{size}]")
    if mine and not force:
        print("Use --force to really delete the files")
