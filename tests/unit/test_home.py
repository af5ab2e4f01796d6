"""A user's own openquake.cfg against the cluster's: what is refused, what is said, and what is their own business."""

from __future__ import annotations

from pathlib import Path

import pytest
from oq_celery import home, settings

# Of upstream's template, in the engine's package; people copy it into their homes.
TEMPLATE = """
[distribution]
oq_distribute = processpool
serialize_jobs = 1
# num_cores = 1
[memory]
soft_mem_limit = 90
[dbserver]
file = ~/oqdata/db.sqlite3
host = 127.0.0.1
port = 1908
receiver_ports = 1912-1930
authkey = changeme
[directory]
shared_dir =
custom_tmp =
"""
SITE = """
[celery]
use_celery = true
[amqp]
host = 10.0.0.5
password = of-rabbitmq
[dbserver]
file = /var/lib/openquake/db.sqlite3
host = 10.0.0.5
port = 1999
authkey = of-the-dbserver
[distribution]
num_cores = 64
[directory]
shared_dir = /srv/openquake
"""


class Files:
    """The files that the engine reads, in its order."""

    def __init__(self, directory: Path) -> None:
        self.base, self.site, self.home, self.named = (
            directory / name for name in ("base.cfg", "site.cfg", "home.cfg", "named.cfg")
        )
        self.base.write_text(TEMPLATE)
        self.site.write_text(SITE)

    def paths(self) -> list[str]:
        return [str(path) for path in (self.base, self.site, self.home, self.named)]

    def refusal(self, text: str) -> list[str]:
        """What is said of a user's file, in lines."""
        self.home.write_text(text)
        with pytest.raises(settings.SettingsError) as refused:
            home.check(self.paths(), str(self.home))
        return str(refused.value).splitlines()

    def accept(self, text: str) -> None:
        self.home.write_text(text)
        home.check(self.paths(), str(self.home))

    def num_cores(self) -> str | None:
        return home.num_cores(self.paths(), str(self.home))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_upstreams_template_is_refused_with_every_line_that_has_to_go(files: Files) -> None:
    assert files.refusal(TEMPLATE) == [
        f"{files.home} changes what all calculations of this cluster have in common; remove from it:",
        "  - [dbserver] file = ~/oqdata/db.sqlite3, where the cluster has /var/lib/openquake/db.sqlite3 in "
        f"{files.site}",
        f"  - [dbserver] host = 127.0.0.1, where the cluster has 10.0.0.5 in {files.site}",
        f"  - [dbserver] port = 1908, where the cluster has 1999 in {files.site}",
        f"  - [dbserver] authkey = (not shown), where the cluster has another one in {files.site}",
        f"  - [directory] shared_dir = nothing, where the cluster has /srv/openquake in {files.site}",
    ]


def test_no_password_is_shown(files: Files) -> None:
    said = "\n".join(files.refusal("[amqp]\npassword = mine\n[dbserver]\nauthkey = mine-too\n"))
    assert "[amqp] password" in said
    assert "[dbserver] authkey" in said
    assert not any(secret in said for secret in ("mine", "of-rabbitmq", "of-the-dbserver"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "[celery]\nuse_celery = false\n",
            "[celery] use_celery = false, where the cluster has true in {site}",
        ),
        ("[celery]\nmax_attempts = 1\n", "[celery] max_attempts = 1, where the cluster has nothing"),
        ("[amqp]\nvhost = /\n", "[amqp] vhost = /, where the cluster has nothing"),
        (
            "[dbserver]\nreceiver_ports = 1-2\n",
            "[dbserver] receiver_ports = 1-2, where the cluster has 1912-1930 in {base}",
        ),
        (
            "[directory]\nshared_dir = /home/ann\n",
            "[directory] shared_dir = /home/ann, where the cluster has /srv/openquake in {site}",
        ),
    ],
)
def test_whatever_calculations_have_in_common_is_refused(files: Files, text: str, line: str) -> None:
    assert files.refusal(text)[1:] == [f"  - {line.format(site=files.site, base=files.base)}"]


@pytest.mark.parametrize(
    "text",
    [
        SITE,  # a copy of the cluster's own
        "[memory]\nmax_assets_chunk = 77\n",
        "[distribution]\nserialize_jobs = 2\nlog_level = debug\n",
        "[directory]\ncustom_tmp = /home/ann/tmp\n",
        "[distribution]\nnum_cores = 1\n",
    ],
)
def test_what_else_a_user_wants_counts(files: Files, text: str) -> None:
    files.accept(text)


def test_a_file_that_the_command_names_wins_over_the_users(files: Files) -> None:
    files.named.write_text("[dbserver]\nhost = 127.0.0.1\n")
    files.accept("[dbserver]\nhost = 10.0.0.9\n")


def test_a_user_may_name_the_own_file_for_a_command(files: Files) -> None:
    files.home.write_text(TEMPLATE)
    home.check([*files.paths()[:3], str(files.home)], str(files.home))


def test_without_a_cluster_a_users_file_says_what_it_likes(files: Files) -> None:
    files.site.write_text(SITE.replace("use_celery = true", "use_celery = false"))
    files.accept(TEMPLATE + "num_cores = 1\n[amqp]\nhost = 10.0.0.9\n")
    assert files.num_cores() is None


def test_another_number_of_cores_is_said_with_both_files(files: Files) -> None:
    assert files.num_cores() is None
    files.home.write_text("[distribution]\nnum_cores = 64\n")
    assert files.num_cores() is None
    files.home.write_text("[distribution]\nnum_cores = 1\n")
    assert files.num_cores() == (
        f"{files.home} says [distribution] num_cores = 1, where the cluster has 64 in {files.site}"
    )


def test_the_switch_of_later_clusters_of_old_is_refused_with_the_one_of_today() -> None:
    with pytest.raises(settings.SettingsError) as refused:
        settings.use_celery({"distribution": {"oq_distribute": "celery"}})
    assert str(refused.value).splitlines()[1:] == [
        "  - [distribution] oq_distribute = celery: say processpool, and use_celery = true in section [celery], "
        "which is the switch"
    ]
    both = {"celery": {"use_celery": "true"}, "distribution": {"oq_distribute": "celery"}}
    assert settings.use_celery(both)
