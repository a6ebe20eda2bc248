"""What files hold is shown without a control character, whatever shows it."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scamac_scale.cli.commands import COMMANDS, Command
from scamac_scale.cli.main import main
from scamac_scale.cli.show import print_json, print_result
from scamac_scale.host.outlet import outlets
from scamac_scale.progress import show_progress, track
from tests.support.atlas import build_tiny_atlas

ODD = "\x1b]0;t\x07\x9b2J\x7f\u202e\u2066\u200b\u2028\r\nerror: faked"


def is_clean(text: str) -> bool:
    return (
        re.sub(r"[\n]", "", text).isprintable() and "\nerror: faked" not in text and not text.startswith("error: faked")
    )


@pytest.fixture(scope="module")
def odd_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    adata = build_tiny_atlas()
    adata.layers[f"{ODD}layer"] = adata.X.copy()
    adata.obs[f"{ODD}column"] = pd.Categorical([f"{ODD}{i % 2}" for i in range(adata.n_obs)])
    adata.obs[f"{ODD}number"] = np.arange(adata.n_obs, dtype=float)
    path = tmp_path_factory.mktemp("odd") / "odd.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.mark.parametrize(
    "options", [[], ["--ingest.matrix", "nope"], ["--ingest.batch_key", "nope"], ["--batch-key", ODD]]
)
def test_names_of_a_file_do_not_command_the_terminal(
    options: list[str], odd_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "S")
    code = main(["ingest", str(odd_file), "--out", store, *options])
    assert code == (2 if options else 0)
    for more in ([], ["--json"]):
        main(["inspect", store if not options else str(odd_file), *more])
        captured = capfd.readouterr()
        assert is_clean(captured.out)
        assert is_clean(captured.err)
    if not options:
        assert ODD + "column" in json.loads(captured.out)["obs_columns"]


def test_a_path_and_an_option_do_not_either(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (["inspect", str(tmp_path / ODD)], [ODD], ["inspect", f"--{ODD}"], ["train", "--config", ODD]):
        assert main(arguments) == 2
        captured = capfd.readouterr()
        assert is_clean(captured.err + captured.out)
        assert captured.err.count("\n") == 1


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: Any) -> dict[str, Any]:
        raise RuntimeError(ODD)

    monkeypatch.setitem(COMMANDS, "work", Command(summary="Work.", usage="", declare=lambda parser: None, run=run))


@pytest.mark.usefixtures("failing")
def test_the_traceback_of_an_error_is_escaped_and_stands_behind_a_bar(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["work", "--debug"]) == 1
    text = capfd.readouterr().err
    assert is_clean(text)
    assert [line[:2] for line in text.splitlines()[:-1]] == ["| "] * (text.count("\n") - 1)


def test_tables_show_values_keys_and_titles_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    result = {ODD: ODD, "rows": [{ODD: ODD, "n": 1}], "warnings": [ODD], "next": [ODD], "nested": {ODD: [ODD]}}
    with outlets():
        print_result(ODD, result)
        print_json(result, "-")
    assert is_clean(capfd.readouterr().out)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_labels_of_progress_are_escaped(
    is_terminal: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    monkeypatch.setenv("TERM", "dumb")
    show_progress(every_s=0.0)
    try:
        with outlets(), track(f"[/x]{ODD}", 2, ODD) as progress:
            progress.advance(2, f"[red]{ODD}")
    finally:
        show_progress(False)
    text = capfd.readouterr().err
    assert "\\x1b]0;t" in text
    assert not re.search("[\x07\x7f\x9b\u202e\u2066\u200b\u2028]", text)


def test_json_is_exact(capfd: pytest.CaptureFixture[str]) -> None:
    with outlets():
        print_json({ODD: [ODD, "\udc80"]}, "-")
    text = capfd.readouterr().out
    assert text.isascii()
    assert json.loads(text) == {ODD: [ODD, "\udc80"]}
