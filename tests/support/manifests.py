"""What the files in deploy/ say, read from them: machines, processes, commands, variables, mounted folders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
SBATCH = ROOT / "deploy" / "slurm" / "train.sbatch"
KUBERNETES = ROOT / "deploy" / "kubernetes" / "train-job.yaml"
VOLUME = ROOT / "deploy" / "kubernetes" / "volume.yaml"
BUCKET_KUBERNETES = ROOT / "deploy" / "kubernetes" / "train-bucket-job.yaml"
BUCKET_BATCH = ROOT / "deploy" / "aws-batch" / "train-bucket-job-definition.json"
BATCH = ROOT / "deploy" / "aws-batch" / "train-job-definition.json"

Plain = dict[str, Any]  # what YAML and JSON hold


class Launch(NamedTuple):
    """How a platform starts one machine's part.

    Attributes
    ----------
    n_nodes, n_devices
        Machines, and GPUs of each, that the platform gives.
    arguments
        Behind the entrypoint of the image.
    environ
        Variables that the manifest sets.
    mounts
        Folders of a volume that all machines see.
    """

    n_nodes: int
    n_devices: int
    arguments: list[str]
    environ: dict[str, str]
    mounts: list[str]

    def option(self, name: str) -> str:
        """Value of an option of the command."""
        return self.arguments[self.arguments.index(name) + 1]

    def arguments_in(self, folder: Path) -> list[str]:
        """The command, with a folder in the place of the mounted ones."""
        found = list(self.arguments)
        for mount in self.mounts:
            found = [re.sub(f"^{re.escape(mount)}(?=/|$)", str(folder), argument) for argument in found]
        return found


def entrypoint() -> list[str]:
    """Of the image."""
    match = re.search(r"^ENTRYPOINT (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert match is not None
    found: list[str] = json.loads(match[1])
    return found


def sbatch_options() -> dict[str, str]:
    """Long options of the script; empty where one has no value."""
    lines = [line.split()[1:] for line in SBATCH.read_text().splitlines() if line.startswith("#SBATCH")]
    assert all(len(words) == 1 for words in lines), lines  # one option a line, nothing behind it
    pairs = [words[0].partition("=") for words in lines]
    return {name: value for name, _, value in pairs}


def documents(path: Path) -> list[Plain]:
    """All objects of a YAML file."""
    return list(yaml.safe_load_all(path.read_text()))


def of_kind(path: Path, kind: str) -> Plain:
    """The object of a kind."""
    (found,) = [each for each in documents(path) if each["kind"] == kind]
    return found


def kubernetes_launch() -> Launch:
    """What a pod runs."""
    spec = of_kind(KUBERNETES, "Job")["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    shared = {volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}
    return Launch(
        spec["completions"],
        container["resources"]["limits"]["nvidia.com/gpu"],
        container["args"],
        {entry["name"]: entry["value"] for entry in container["env"]},
        [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in shared],
    )


def batch_definition() -> Plain:
    """The job definition of AWS Batch."""
    found: Plain = json.loads(BATCH.read_text())
    return found


def batch_secrets() -> list[str]:
    """Variables in which a node of an AWS Batch job finds secrets."""
    (nodes,) = batch_definition()["nodeProperties"]["nodeRangeProperties"]
    return [entry["name"] for entry in nodes["container"]["secrets"]]


def batch_launch() -> Launch:
    """What a node of an AWS Batch job runs."""
    properties = batch_definition()["nodeProperties"]
    (nodes,) = properties["nodeRangeProperties"]
    container = nodes["container"]
    resources = {entry["type"]: entry["value"] for entry in container["resourceRequirements"]}
    return Launch(
        properties["numNodes"],
        int(resources["GPU"]),
        container["command"],
        {entry["name"]: entry["value"] for entry in container["environment"]},
        [mount["containerPath"] for mount in container["mountPoints"]],
    )
