"""The last steps of an h5ad: an error leaves none, whatever call to the system fails."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from scamac_scale.infer.output.h5ad import Conversion
from tests.support.failing import failures

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("is_lasting", [False, True])
def test_an_error_leaves_no_h5ad(tmp_path: Path, caplog: pytest.LogCaptureFixture, is_lasting: bool) -> None:
    new, target = tmp_path / "new.h5ad", tmp_path / "out.h5ad"

    def finish() -> None:
        new.write_bytes(b"of a child that has ended well")
        ended: Any = SimpleNamespace(returncode=0)
        conversion = Conversion(tmp_path / "a.zarr", new, target)
        conversion._child = ended
        conversion.finish()

    for found, error in failures(finish, tmp_path, errno.EIO, is_lasting=is_lasting):
        assert target.exists() is (error is None), found.failed
        target.unlink(missing_ok=True)
    assert "does not confirm its name" in caplog.text
