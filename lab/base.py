"""What all packages of the lab share."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


class LabError(Exception):
    """Something that the user can act on; printed without a traceback."""
