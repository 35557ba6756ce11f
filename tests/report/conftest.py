"""What tests of the terminal share."""

from __future__ import annotations

import pytest
from screen import Clock


@pytest.fixture
def now() -> Clock:
    return Clock()
