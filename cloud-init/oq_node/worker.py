"""A worker: shared file system, engine, Celery. No apt, no pip, no internet."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from oq_node.common import (
    FACTS,
    NodeError,
    engine_image,
    ensure_user,
    main,
    mount_engine,
    mount_problems,
    mount_shared,
    passwords,
    run,
    start,
    step,
    unit_problems,
    until,
    write_configuration,
)

# A worker boots together with the master, whose first boot makes the secret and builds the engine: minutes, on a small
# machine many.
ENGINE_DEADLINE_SECONDS = 3600
SECRET_DEADLINE_SECONDS = 300
SECRET_SECONDS = 60  # for one look at it


def secret() -> dict[str, str]:
    """The secret's values, read with the engine's boto3."""
    command = [f"{FACTS['engine_dir']}/bin/python", "/usr/local/lib/oq_node/secret.py", "get"]
    done = subprocess.run(
        [*command, FACTS["region"], FACTS["secret_id"]],
        capture_output=True,
        text=True,
        env={**os.environ, "AWS_CA_BUNDLE": FACTS["ca_bundle"]},
        timeout=SECRET_SECONDS,
    )
    if done.returncode:
        raise NodeError(f"the secret cannot be read: {done.stderr.strip()[-500:] or 'it has no value yet'}")
    return dict(json.loads(done.stdout))


def refresh() -> None:
    """Let openquake.cfg follow the secret, which may have been rotated since Celery began."""
    if not Path(FACTS["draining_flag"]).exists():  # a worker that goes begins nothing any more
        write_configuration(passwords(secret()))


OTHER_COMMANDS = {"refresh": ("openquake.cfg follows the secret (Celery's unit calls it)", refresh)}


def bootstrap() -> None:
    """Make this machine a worker."""
    with step("system user"):
        ensure_user(FACTS["openquake_user"], FACTS["openquake_id"], FACTS["dbserver_dir"])
        Path(FACTS["dbserver_dir"]).mkdir(parents=True, exist_ok=True)
        run("chown", f"{FACTS['openquake_user']}:{FACTS['openquake_user']}", FACTS["dbserver_dir"])
        run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/openquake.conf")
    with step("shared file system"):
        mount_shared()
        # Not waited for: a worker computes without it, too.
        run("systemctl", "enable", "--now", "--no-block", FACTS["journal_unit"])
    with step("engine"):
        until(
            f"{engine_image()} to be published by the master", ENGINE_DEADLINE_SECONDS, engine_image().exists
        )
        mount_engine()
        # From here on a worker that has to go can say so, whatever the rest of the bootstrap waits for.
        start(FACTS["drain_unit"])
    with step("configuration"):
        write_configuration(passwords(until("the secret", SECRET_DEADLINE_SECONDS, secret, every=5)))
    with step("Celery"):
        if FACTS["storage"] == "diskless":
            run("systemctl", "start", "--no-block", "openquake-readonly-root.service")
        start(FACTS["celery_unit"])


def problems() -> list[str]:
    """What keeps this worker from computing; empty when it consumes tasks."""
    found = mount_problems(FACTS["nfs_dir"], FACTS["engine_dir"])
    found += unit_problems(FACTS["celery_unit"], FACTS["drain_unit"])
    if FACTS["storage"] == "diskless" and not os.statvfs("/").f_flag & os.ST_RDONLY:
        found.append("the root disk is still writable")
    return found


if __name__ == "__main__":
    main("worker", bootstrap, problems, OTHER_COMMANDS)
