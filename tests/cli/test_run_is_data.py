"""The config.yaml of a run that goes on is data: settings of a fit, and nothing that reaches out of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml

from scamac_scale.cli.main import main
from scamac_scale.durable.plain import read_yaml

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pipeline / "run", tmp_path / "run"))


def refusal(capsys: Capture, run: Path, *options: str) -> str:
    assert main(["train", "--store", "nowhere.h5ad", "--run", str(run), "--resume", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize(
    "line",
    [
        "json: {precious}",
        "config: /etc/passwd",
        "devices: 40",
        "num_nodes: 3",
        "max_restarts: 9",
        "store: {precious}",
        "run: {precious}",
        "resume: true",
        "debug: true",
        "quiet: true",
        "seeed: 3",
        "print_config: true",
        "3: 4",
        "null: 4",
    ],
)
@pytest.mark.slow
def test_a_saved_config_holds_settings_only(line: str, run: Path, tmp_path: Path, capsys: Capture) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    with (run / "config.yaml").open("a") as file:
        file.write(line.format(precious=precious) + "\n")
    message = refusal(capsys, run)
    key = line.partition(":")[0]
    assert f"{run}/config.yaml cannot be used: the settings: there is no setting {yaml.safe_load(key)!r}." in message
    assert precious.read_text() == "precious"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: /etc/passwd", "model must be keys and values, not '/etc/passwd'"),
        ("train: {phases: /etc/passwd}", "train.phases='/etc/passwd'; it must be a list"),
        ("train: {pretrain: {epochs: /etc/passwd}}", "train.pretrain.epochs='/etc/passwd'; it must be a finite number"),
        ("train: {devices: 3}", "train: there is no setting 'devices'"),
        ("model: {class_path: os.system}", "model: there is no setting 'class_path'"),
        ("seed: 1.5", "seed=1.5; it must be a whole number"),
        ("seed: 99999999999999999999", "seed=99999999999999999999; it must be a whole number"),
        ("loss: {gamma: .nan}", "loss.gamma=nan; it must be a finite number"),
        ("loss: {similarity: off}", "similarity"),
        ("loader: {cache: hots}", "loader.cache='hots' is not known"),
        ("seed: &a 3", "an anchor, an alias or a tag"),
        ("a: &a [x, x]\nb: [*a, *a]", "an anchor, an alias or a tag"),
        ("seed: !!python/name:os.system", "an anchor, an alias or a tag"),
        ("seed: 3\nseed: 4", "stands there twice"),
        ("[" * 10**4, "nested too deeply"),
        ("- seed", "does not hold keys and values"),
        ("seed: '", "not YAML"),
        ("#" * 2**18, "more than 262,144 bytes"),
    ],
)
@pytest.mark.slow
def test_what_no_run_writes_is_refused(text: str, words: str, run: Path, capsys: Capture) -> None:
    (run / "config.yaml").write_text(text + "\n")
    message = refusal(capsys, run)
    assert words in message
    assert f"{run}/config.yaml" in message
    assert "root:" not in message


@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "bytes"])
def test_what_is_no_file_of_text_is_refused(kind: str, run: Path, capsys: Capture) -> None:
    (run / "config.yaml").unlink()
    if kind == "pipe":
        os.mkfifo(run / "config.yaml")
    elif kind == "link":
        (run / "config.yaml").symlink_to("/etc/passwd")
    elif kind == "folder":
        (run / "config.yaml").mkdir()
    else:
        (run / "config.yaml").write_bytes(b"seed: \xff\n")
    assert "config.yaml cannot be used: " in refusal(capsys, run)


def test_a_setting_that_has_changed_since_is_seen(run: Path, capsys: Capture) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    assert "not what was written (wrong SHA-256" in refusal(capsys, run)
    (run / "config.yaml").write_text("".join(text.splitlines(keepends=True)[:-3]))
    assert "not what was written" in refusal(capsys, run)


def test_a_run_that_goes_on_has_all_its_settings_and_takes_others_that_are_given(run: Path, capsys: Capture) -> None:
    capsys.readouterr()
    for options, threads in (((), None), (("--loader.threads", "2"), 2)):
        assert main(["train", "--run", str(run), "--resume", *options, "--print_config"]) == 0
        found = yaml.safe_load(capsys.readouterr().out)
        saved = read_yaml(run / "config.yaml")
        saved["loader"]["threads"] = threads
        assert {key: found[key] for key in saved} == saved


def test_a_finished_run_goes_on_with_its_own_settings(pipeline: Path, run: Path, capsys: Capture) -> None:
    assert main(["train", "--store", str(pipeline / "store.zarr"), "--run", str(run), "--resume"]) == 0
    assert "is finished; there is nothing to resume" in capsys.readouterr().err
