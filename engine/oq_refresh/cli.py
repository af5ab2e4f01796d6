"""The command `oq-refresh`, for root on the master: `oq-node refresh`, which a timer calls every minute."""

from __future__ import annotations

import os
import subprocess
import sys


def main() -> None:
    """Do each part, whatever becomes of the others; status 1 and the reasons where some fail."""
    os.environ["OQ_DISTRIBUTE"] = "no"  # this command distributes nothing
    if os.geteuid() != 0:
        sys.exit("only root can refresh the master: sudo oq-node refresh")
    from oq_node import common

    from oq_refresh import parts

    failed = []
    for name, part in parts.PARTS.items():
        try:
            if said := part():
                print(said, flush=True)
        except (common.NodeError, OSError, subprocess.SubprocessError) as error:
            failed.append(f"{name}: {error}")
        except Exception as error:  # one that nobody has thought of says little without its type
            failed.append(f"{name}: {error!r}")
    if failed:
        sys.exit("\n".join(failed))
