"""The file systems of the data volumes grow with their volumes."""

from __future__ import annotations

import re

from oq_node import common

FACTS = common.FACTS


def grow() -> str:
    """Enlarge each file system whose volume has become larger, mounted as it is; says which."""
    said = []
    for mount, volume in FACTS["volumes"].items():
        device = FACTS["ebs_device_prefix"] + volume.replace("-", "")
        described = dict(
            re.findall(r"^(Block count|Block size): +(\d+)$", common.run("dumpe2fs", "-h", device), re.M)
        )
        blocks, size = int(described["Block count"]), int(described["Block size"])
        if int(common.run("blockdev", "--getsize64", device)) // size > blocks:
            common.run("resize2fs", device)
            said.append(f"{mount} has grown with its volume")
    return "\n".join(said)
