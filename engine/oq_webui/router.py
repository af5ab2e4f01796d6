"""Which of the two databases a model is in: the engine's own tables in the engine's, accounts and sessions not."""

from __future__ import annotations

from typing import Any

ENGINE_APP = "db"  # Django's label of openquake.server.db


class EngineRouter:
    """A database router of Django's."""

    def db_for_read(self, model: Any, **_hints: Any) -> str | None:
        """The database that a model is read from; None for the default."""
        return "engine" if model._meta.app_label == ENGINE_APP else None

    db_for_write = db_for_read

    def allow_migrate(self, db: str, _app_label: str, **_hints: Any) -> bool | None:
        """Whether Django makes tables in a database: never in the engine's."""
        return False if db == "engine" else None
