"""The file systems of the data volumes grow with their volumes."""

from __future__ import annotations

import re

from oq_node.common import FACTS, run, say


def grow() -> None:
    """Enlarge each file system whose volume has become larger, mounted as it is."""
    for mount, volume in FACTS["volumes"].items():
        device = FACTS["ebs_device_prefix"] + volume.replace("-", "")
        described = dict(
            re.findall(r"^(Block count|Block size): +(\d+)$", run("dumpe2fs", "-h", device), re.M)
        )
        blocks, size = int(described["Block count"]), int(described["Block size"])
        if int(run("blockdev", "--getsize64", device)) // size > blocks:
            run("resize2fs", device)
            say(f"{mount} has grown with its volume")
