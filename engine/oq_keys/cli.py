"""The command `oq-keys`, for root on the master: `rotate` (`sudo oq-node rotate`), and `settle`, a timer's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Do it, and say what there is to say; status 1 and the reason where it fails."""
    os.environ["OQ_DISTRIBUTE"] = "no"  # this command distributes nothing
    if os.geteuid() != 0:
        sys.exit("only root can change the cluster's secrets: sudo oq-node rotate")
    from oq_node import common

    from oq_keys import rotation

    os.environ["AWS_CA_BUNDLE"] = common.FACTS["ca_bundle"]
    command = {"rotate": rotation.rotate, "settle": rotation.settle}[sys.argv[1]]
    if not Path(common.FACTS["bootstrap_done"]).exists():
        if command == rotation.settle:  # there is time
            return
        sys.exit("this machine is not the master yet: sudo oq-node status says what is missing")
    try:
        said = command()
    except (common.NodeError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"the rotation of the secrets goes on at the next try, within a minute: {error}")
    if said:
        print(said)
