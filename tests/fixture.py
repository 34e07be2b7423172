"""``pytest.fixture``; where there is no pytest, as tests.gpu allows, what it marks stays as it is."""

from __future__ import annotations

from typing import Any

try:
    from pytest import fixture  # noqa: PT013
except ImportError:

    def fixture(function: Any = None, **_: Any) -> Any:
        return function or (lambda given: given)
