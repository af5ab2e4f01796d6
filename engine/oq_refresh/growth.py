"""The file systems of the data volumes grow with their volumes."""

from __future__ import annotations

import re

from oq_node import common

FACTS = common.FACTS
LIMIT_SECONDS = 300  # for a program, which has next to nothing to do


def grow() -> str:
    """Enlarge each file system whose volume has become larger, mounted as it is; says which."""
    said = []
    for mount, volume in FACTS["volumes"].items():
        device = FACTS["ebs_device_prefix"] + volume.replace("-", "")
        described = dict(
            re.findall(
                r"^(Block count|Block size): +(\d+)$",
                common.run("dumpe2fs", "-h", device, timeout=LIMIT_SECONDS),
                re.M,
            )
        )
        blocks, size = int(described["Block count"]), int(described["Block size"])
        if int(common.run("blockdev", "--getsize64", device, timeout=LIMIT_SECONDS)) // size > blocks:
            common.run("resize2fs", device, timeout=LIMIT_SECONDS)
            said.append(f"{mount} has grown with its volume")
    return "\n".join(said)
