"""What a node's user data say."""

from __future__ import annotations

import base64
import gzip
from typing import Any

import yaml


def decode(encoded: str) -> dict[str, Any]:
    """The cloud-config inside user data: the inverse of components.userdata.user_data().

    Raises:
        ValueError: if there is none.
    """
    text = gzip.decompress(base64.b64decode(encoded)).decode()
    config = yaml.safe_load(text)
    if not text.startswith("#cloud-config\n") or not isinstance(config, dict):
        raise ValueError("not a cloud-config")
    return config
