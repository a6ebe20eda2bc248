from pathlib import Path

import pytest

from scamac_scale.api import report
from tests.support.atlas import build_tiny_atlas
from tests.support.reported import fit, with_odd_names


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run and result of the small atlas; read only."""
    return fit(with_odd_names(build_tiny_atlas()), tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def written(finished: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all parts but markers; read only."""
    run, result = finished
    out = tmp_path_factory.mktemp("written") / "report"
    report(run, result, label="odd", batch_key="donor", layout="tsne", out=out)
    return out
