"""The Nextflow module and the SkyPilot task: what their tools would check, and the module's own script, run twice after a stop."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from scamac_scale.errors import LostRankError
from tests.support.machine import model_sha256
from tests.support.manifests import BUCKET_KUBERNETES, ROOT, of_kind

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.machine import Site

MODULE = ROOT / "deploy" / "nextflow" / "modules" / "scamac" / "cluster"
SKYPILOT = ROOT / "deploy" / "skypilot" / "train-bucket.yaml"
RESUMABLE = LostRankError.exit_code


def script(**values: str) -> str:
    """The script of the process with values in the place of Groovy's names."""
    text = (MODULE / "main.nf").read_text()
    found = re.search(r'script:.*?"""\n(.*?)"""', text, re.DOTALL)
    assert found is not None
    body = re.sub(r"(?<!\\)\$\{([\w.]+)\}", lambda name: values[name[1]], found[1])
    return re.sub(r"^    ", "", body.replace("\\$", "$"), flags=re.MULTILINE)


def meta() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((MODULE / "meta.yml").read_text())
    return found


def test_the_module_and_its_description_agree() -> None:
    text = (MODULE / "main.nf").read_text()
    assert meta()["name"] == "_".join(MODULE.parts[-2:])
    assert f"process {meta()['name'].upper()} {{" in text
    inputs = re.search(r"input:\n(.*?)\n\n", text, re.DOTALL)
    assert inputs is not None
    names = re.findall(r"(?:val|path)\(?\s?(\w+)", inputs[1])
    described = [
        name for each in meta()["input"] for part in (each if isinstance(each, list) else [each]) for name in part
    ]
    assert names == described
    assert re.findall(r"emit: (\w+)", text) == [*meta()["output"]]
    assert {"description", "keywords", "tools", "authors"} <= meta().keys()


def test_the_module_tries_again_after_a_stop_alone_and_outside_of_the_work_folder() -> None:
    text = (MODULE / "main.nf").read_text()
    assert f"errorStrategy {{ task.exitStatus == {RESUMABLE} ? 'retry' : 'finish' }}" in text
    for name in ("--out ${folder}/", "--run ${folder}/"):
        assert name in text


@pytest.mark.slow
def test_the_script_of_the_module_goes_on_in_another_work_folder(site: Site, tiny_atlas: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"

    def attempt(work: Path, **more: str) -> int:
        work.mkdir()
        (work / "atlas.zarr").symlink_to(tiny_atlas)
        values = {"h5ad": "atlas.zarr", "folder": str(folder), "prefix": "cells", "n_clusters": "4", "predict": ""}
        options = {"ingest": "--ingest.n_genes 100", "train": " ".join(site.options)}
        text = script(**values, **options, **{"task.cpus": "1"})
        return subprocess.run(["bash", "-euc", text], cwd=work, env={**site.environ, **more}, check=False).returncode

    assert attempt(tmp_path / "first", SCAMAC_FAULT="train.step:9:term") == RESUMABLE
    assert not (tmp_path / "first" / "cells.scamac.h5ad").exists()
    assert attempt(tmp_path / "second") == 0
    assert model_sha256(folder / "cells.run") == site.alone
    assert (tmp_path / "second" / "cells.scamac.h5ad").is_file()


def test_the_task_of_skypilot_says_the_same_as_the_job_of_kubernetes() -> None:
    task = yaml.safe_load(SKYPILOT.read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [RESUMABLE]
    assert task["resources"]["use_spot"] is True
    (container,) = of_kind(BUCKET_KUBERNETES, "Job")["spec"]["template"]["spec"]["containers"]
    words = task["run"].replace("\\\n", " ").split()
    for name, value in task["envs"].items():
        words = [word.strip('"').replace(f"${name}", value) for word in words]
    assert words[words.index("train") :] == container["args"]
    _, _, gpus = task["resources"]["accelerators"].partition(":")
    assert words[words.index("--devices") + 1] == gpus
    assert subprocess.run(["bash", "-n", "-c", task["run"]], check=False).returncode == 0


@pytest.mark.slow
def test_skypilot_reads_the_task() -> None:
    sky = pytest.importorskip("sky")
    task = sky.Task.from_yaml(str(SKYPILOT))
    assert task.name == "scamac-train"
