import sys
from pathlib import Path

import pytest
import yaml

from scamac_scale.cli.main import main

Capture = pytest.CaptureFixture[str]


def refusal(capsys: Capture, *argv: str) -> str:
    """The message of a command that must refuse its arguments."""
    assert main(["train", *argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def printed(capsys: Capture, *argv: str) -> dict[str, object]:
    assert main(["train", *argv, "--print_config"]) == 0
    found: dict[str, object] = yaml.safe_load(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("option", "nearest"),
    [
        ("--model.latent_widht", "--model.latent_width"),
        ("--latent_width", "--model.latent_width"),
        ("--latent-width", "--model.latent_width"),
        ("--optim.gamma", "--loss.gamma"),
        ("--n_cluster", "--n_clusters"),
        ("--sotre", "--store"),
        ("--learning_rate", "--train.p"),
    ],
)
def test_an_unknown_option_names_the_nearest(option: str, nearest: str, capsys: Capture) -> None:
    assert f"Unknown option {option}. Did you mean {nearest}" in refusal(capsys, option, "3")
    assert f"Unknown option {option}. Did you mean {nearest}" in refusal(capsys, f"{option}=3")


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("model: {latent_widht: 3}", "model.latent_widht", "model.latent_width"),
        ("seeed: 3", "seeed", "seed"),
        ("train: {phases: [{epoch: 3}]}", "train.phases.epoch", "train.phases.epochs"),
        ("train: {pretrain: {min_step: 3}}", "train.pretrain.min_step", "train.pretrain.min_steps"),
        ("latent_width: 3", "latent_width", "model.latent_width"),
    ],
)
def test_an_unknown_config_key_names_the_nearest(
    text: str, key: str, nearest: str, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert f"Unknown config key {key} in {file}. Did you mean {nearest}?" in refusal(capsys, "--config", str(file))
    assert f"Unknown config key {key} in {file}. Did you mean {nearest}?" in refusal(capsys, f"--config={file}")


def test_an_unknown_key_in_a_value_names_the_nearest(capsys: Capture) -> None:
    message = refusal(capsys, "--train.phases", "[{epochs: 3, term: [layers]}]")
    assert "Unknown config key train.phases.term in --train.phases. Did you mean train.phases.terms?" in message


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--model.latent_width", "wide", "model.latent_width=wide is of the wrong type; expected int."),
        ("--model.latent_width", "3.5", "model.latent_width=3.5 is of the wrong type; expected int."),
        ("--input.gene_sd", "big", "input.gene_sd=big is of the wrong type; expected float or null."),
        ("--input.center", "2", "input.center=2"),
        ("--train.phases", "3", "train.phases=3 is of the wrong type"),
        ("--train.phases", "[{epochs: many}]", "epochs=many is of the wrong type; expected float or null."),
        ("--model.latent_width", "0", "model.latent_width=0; it must be at least 1."),
        ("--n-clusters", "some", "n_clusters='some'; it must be a whole number or 'auto'."),
    ],
)
def test_a_wrong_value_names_key_value_and_what_was_expected(
    option: str, value: str, words: str, capsys: Capture
) -> None:
    assert words in refusal(capsys, option, value)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["--loader.cache", "hots"],
            "loader.cache='hots' is not known; it is one of auto, device, host, none. Did you mean 'host'?",
        ),
        (["--loader.cache=hots"], "Did you mean 'host'?"),
        (["--loader", "{cache: hots}"], "loader.cache='hots' is not known"),
        (["--loader.cache", "[host]"], "loader.cache='[host]' is not known"),
        (["--loader.cache"], "--loader.cache: expected one argument"),
        (["--loader.cache", "--seed", "3"], "--loader.cache: expected one argument"),
        (
            ["--model.scales", "[encoding, hiden]"],
            "model.scales='hiden' is not known; it is one of decoding, encoding, hidden. Did you mean 'hidden'?",
        ),
        (["--model.scales", "hidden"], "model.scales='hidden'; it takes a list of names, such as [hidden]."),
        (["--train.pretrain.optimizer", "adm"], "train.pretrain.optimizer='adm' is not known"),
        (["--train.phases", "[{terms: [layrs]}]"], "train.phases[0].terms='layrs' is not known"),
        (["--n-clusters", "3.5"], "n_clusters=3.5; it must be a whole number or 'auto'."),
        (["--loss.similarity", "off", "--train.precision", "32"], "train.precision='32' is not known"),
        (["--loss", "{similarity: off}"], "loss.similarity=off is false in YAML; write 'off', with its quotes."),
    ],
)
def test_a_name_that_is_none_is_refused_before_any_data_is_opened(argv: list[str], words: str, capsys: Capture) -> None:
    assert words in refusal(capsys, "--store", "nowhere", "--run", "nowhere", *argv)


def test_a_misspelt_name_in_a_file_is_refused(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "run.yaml").write_text("loader: {cache: hots}")
    (tmp_path / "loader.yaml").write_text("cache: hots")
    for argv in (["--config", str(tmp_path / "run.yaml")], ["--loader", str(tmp_path / "loader.yaml")]):
        assert "loader.cache='hots' is not known; it is one of auto, device, host, none." in refusal(capsys, *argv)


def test_a_misspelt_name_of_another_command_is_refused(capsys: Capture) -> None:
    assert main(["predict", "--run", "nowhere", "--input", "a", "--out", "b.zarr", "--attention", "atlass"]) == 2
    assert (
        "attention='atlass' is not known; it is one of atlas, trained. Did you mean 'atlas'?" in capsys.readouterr().err
    )
    assert main(["ingest", "nowhere", "--out", "b.zarr", "--ingest.kind", "count"]) == 2
    assert "ingest.kind='count' is not known; it is one of auto, counts, linear, log." in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help-all"], ["--train.phases.help"]])
def test_help_lists_the_names_of_a_choice_in_front(argv: list[str], capsys: Capture) -> None:
    assert main(["train", *argv]) == 0
    text = capsys.readouterr().out
    assert "optimizer {adamw,adam,sgd}" in text
    assert "type: list of names" in " ".join(text.split())
    assert "Literal" not in text


@pytest.mark.parametrize(
    ("content", "words"),
    [("a: [", "is not YAML"), ("- 3", "does not hold keys and values"), (None, "cannot be read")],
)
def test_a_config_file_that_is_none_says_so(content: str | None, words: str, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_text(content)
    message = refusal(capsys, "--config", str(file))
    assert str(file) in message
    assert words in message


@pytest.mark.parametrize(
    "text",
    [
        "model: {class_path: planted.Model}",
        "train: {phases: [{class_path: planted.Phase}]}",
        "train: {pretrain: {class_path: planted.Phase}}",
        "input: planted.yaml",
    ],
)
def test_a_config_cannot_name_code(text: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text("class Model: ...\nclass Phase: ...\n")
    (tmp_path / "planted.yaml").write_text("class_path: planted.Model\n")
    (tmp_path / "run.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    refusal(capsys, "--config", "run.yaml")
    assert "planted" not in sys.modules


def test_options_override_the_config_file(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "run.yaml").write_text("seed: 3\nn_clusters: 7\nmodel: {latent_width: 8}\n")
    found = printed(capsys, "--config", str(tmp_path / "run.yaml"), "--model.latent_width", "9", "--n-clusters=5")
    assert (found["seed"], found["n_clusters"]) == (3, 5)
    assert found["model"]["latent_width"] == 9  # type: ignore[index]  # YAML is not typed


def test_print_config_holds_settings_only_and_can_be_read_back(tmp_path: Path, capsys: Capture) -> None:
    found = printed(capsys, "--model.latent_width", "9")
    assert list(found) == [
        *("n_clusters", "batch_key", "seed", "correction", "input", "model", "loss", "start", "loader", "train")
    ]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(found))
    assert printed(capsys, "--config", str(tmp_path / "run.yaml")) == found


def test_a_config_file_may_name_store_and_run(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "run.yaml").write_text("store: a.zarr\nrun: b\n")
    assert printed(capsys, "--config", str(tmp_path / "run.yaml"))["store"] == ["a.zarr"]
    (tmp_path / "many.yaml").write_text("store: [a.h5ad, b.h5ad]\nrun: b\n")
    assert printed(capsys, "--config", str(tmp_path / "many.yaml"))["store"] == ["a.h5ad", "b.h5ad"]


def test_a_run_that_goes_on_has_its_settings_also_by_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no shell expands what follows an equals sign
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 3\n")
    assert printed(capsys, "--run=~/run", "--resume")["seed"] == 3


def test_help_says_types_in_words(capsys: Capture) -> None:
    assert main(["train", "--help-all"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "list of whole numbers, default: (10, 20, 40)" in text
    assert "The phases of one round, in order. A list; see --print_config." in text
    for python in ("tuple[", "Literal[", "<class", "PhaseConfig("):
        assert python not in text
