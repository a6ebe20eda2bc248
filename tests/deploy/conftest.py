from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.machine import Site

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def site(tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"), tiny_atlas)
