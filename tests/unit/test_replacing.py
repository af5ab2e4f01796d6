"""Names of a module that have another value for a while."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from oq_celery.replacing import replaced


def test_a_name_has_its_value_again_also_after_an_error() -> None:
    module = SimpleNamespace(num_cores=64)
    with pytest.raises(ValueError, match="in it"), replaced(module, "num_cores", 4):
        assert module.num_cores == 4
        raise ValueError("in it")
    assert module.num_cores == 64


def test_a_name_that_there_is_not_is_not_made() -> None:
    module = SimpleNamespace()
    with pytest.raises(AttributeError), replaced(module, "num_cores", 4):
        pass
    assert vars(module) == {}
