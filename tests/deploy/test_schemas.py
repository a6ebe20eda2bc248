"""The files in deploy/ are what their platforms take, and agree with the program and with themselves."""

from __future__ import annotations

import json
import os
import re
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scamac_scale.cli.main import EXIT_NOT_WRITABLE
from scamac_scale.errors import ConfigError, LostRankError, NumericalError
from scamac_scale.ranks.secret import SECRET, SECRET_FILE
from scamac_scale.remote.patience import PATIENCE_VARIABLE
from scamac_scale.remote.work import VARIABLE as WORK_DIR
from tests.support.manifests import (
    BUCKET_BATCH,
    BUCKET_KUBERNETES,
    KUBERNETES,
    SBATCH,
    VOLUME,
    Launch,
    batch_definition,
    batch_launch,
    batch_secrets,
    documents,
    kubernetes_launch,
    of_kind,
    sbatch_options,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOPELESS = {ConfigError.exit_code, EXIT_NOT_WRITABLE, NumericalError.exit_code}
"""Exit codes after which another try changes nothing."""
RESUMABLE = LostRankError.exit_code
STOP_S = 20
"""Seconds in which a run that is told to stop saves and ends."""

# ---------------------------------------------------------------------- Slurm

NUMBER, DURATION = r"[1-9]\d*", r"(\d+-)?\d{1,2}:\d\d:\d\d"
SBATCH_OPTIONS = {
    "--job-name": r"[\w-]+",
    "--nodes": NUMBER,
    "--ntasks-per-node": NUMBER,
    "--gpus-per-node": rf"(\w+:)?{NUMBER}",
    "--cpus-per-task": NUMBER,
    "--mem": r"\d+[KMGT]?",
    "--time": DURATION,
    "--signal": r"(B:)?(USR1|TERM|INT)@\d+",
    "--requeue": "",
    "--open-mode": "append|truncate",
    "--output": r"[\w%./-]+",
    "--partition": r"[\w,-]+",
    "--account": r"[\w-]+",
    "--constraint": r".+",
    "--exclusive": r"|user|mcs|topo",
}
"""Long options of sbatch, with the form of their values."""


def test_the_script_is_bash() -> None:
    assert SBATCH.read_text().startswith("#!/usr/bin/env bash\n")
    assert subprocess.run(["bash", "-n", SBATCH], check=False).returncode == 0


def test_sbatch_reads_all_options() -> None:
    lines = SBATCH.read_text().splitlines()
    first_command = next(at for at, line in enumerate(lines) if line.strip() and not line.startswith("#"))
    assert all(at < first_command for at, line in enumerate(lines) if line.startswith("#SBATCH"))
    options = sbatch_options()
    assert len(options) == sum(line.startswith("#SBATCH") for line in lines)  # none is given twice
    for name, value in options.items():
        assert name in SBATCH_OPTIONS, name
        assert re.fullmatch(SBATCH_OPTIONS[name], value), (name, value)


def test_slurm_starts_one_process_for_each_gpu_and_tells_it_in_time() -> None:
    options = sbatch_options()
    assert options["--ntasks-per-node"] == options["--gpus-per-node"].rpartition(":")[2]
    name, _, seconds = options["--signal"].partition("@")
    assert name == "USR1"  # without B:, which would tell the script alone
    assert int(seconds) >= 60 + STOP_S  # Slurm may be a minute late
    assert "--requeue" in options
    assert options["--open-mode"] == "append"


def test_each_start_of_the_script_gives_its_tasks_a_secret_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "srun").write_text(
        f"#!/bin/sh\nprintenv SCAMAC_JOB_SECRET SCAMAC_JOB_SECRET_FILE >> {tmp_path}/secrets\n"
    )
    (tmp_path / "srun").chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "1"}
    for more in ({}, {}, {"SCAMAC_JOB_SECRET_FILE": "/secrets/job"}):
        subprocess.run(["bash", SBATCH, "store", "run"], env={**environ, **more}, check=False)
    first, second, file = (tmp_path / "secrets").read_text().splitlines()
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert re.fullmatch("[0-9a-f]{64}", second)
    assert first != second
    assert file == "/secrets/job"


# ---------------------------------------------------------------------- Kubernetes

SCHEMA: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "kubernetes-1.33.json").read_text())
"""Kubernetes' own definitions of what the files use: the type of each field, without descriptions; ``any`` is not looked into,
and behind a ``=`` are the values that it may have."""
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "scalar": (str, int, float),
    "any": (object,),
}


def faults(value: Any, kind: Any, where: str) -> Iterator[str]:
    """What is wrong with a value, by the definition of its kind."""
    if isinstance(kind, list):
        if not isinstance(value, list):
            yield f"{where} is no list"
            return
        for at, item in enumerate(value):
            yield from faults(item, kind[0], f"{where}[{at}]")
    elif isinstance(kind, dict):
        for key, item in value.items():
            yield from faults(item, kind["*"], f"{where}.{key}")
    elif kind in SCHEMA:
        if not isinstance(value, dict):
            yield f"{where} is no {kind}"
            return
        fields = SCHEMA[kind]["fields"]
        yield from (f"{where} lacks {name}" for name in SCHEMA[kind]["required"] if name not in value)
        yield from (f"{where}.{name} is no field of {kind}" for name in value if name not in fields)
        for name in value.keys() & fields.keys():
            yield from faults(value[name], fields[name], f"{where}.{name}")
    elif kind in TYPES:
        if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind in ("integer", "scalar")):
            yield f"{where}={value!r} is no {kind}"
    elif value not in kind.removeprefix("=").split("|"):
        yield f"{where}={value!r} is none of {kind}"


@pytest.mark.parametrize("path", [KUBERNETES, VOLUME, BUCKET_KUBERNETES], ids=lambda path: path.name)
def test_kubernetes_knows_every_field(path: Path) -> None:
    for each in documents(path):
        assert list(faults(each, each["kind"], each["kind"])) == []


def test_what_is_not_in_the_schema_is_seen() -> None:
    job = of_kind(KUBERNETES, "Job")
    job["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = 8
    job["spec"]["completionsMode"] = "Indexed"
    del job["spec"]["podFailurePolicy"]["rules"]
    job["spec"]["parallelism"] = True
    assert len(list(faults(job, "Job", "Job"))) == 4


def test_the_pods_of_a_job_start_together_and_are_found_by_name() -> None:
    spec = of_kind(KUBERNETES, "Job")["spec"]
    service, job = of_kind(KUBERNETES, "Service"), of_kind(KUBERNETES, "Job")["metadata"]["name"]
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job}
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert kubernetes_launch().environ["MASTER_ADDR"] == f"{job}-0.{pod['subdomain']}"
    claim = of_kind(VOLUME, "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    names = [
        volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume
    ]
    assert names == [claim["metadata"]["name"]]


def test_a_job_gives_up_where_it_must_and_only_there() -> None:
    spec = of_kind(KUBERNETES, "Job")["spec"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # what a failure policy asks for
    assert pod["terminationGracePeriodSeconds"] >= 2 * STOP_S
    assert spec["maxFailedIndexes"] == 0  # the others wait for a pod that does not come again
    assert spec["podReplacementPolicy"] == "Failed"
    rules = spec["podFailurePolicy"]["rules"]
    assert rules[0] == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    by_code = {code: rule["action"] for rule in rules[1:] for code in rule["onExitCodes"]["values"]}
    assert by_code == {**dict.fromkeys(HOPELESS, "FailJob"), RESUMABLE: "Count"}
    for rule in rules[1:]:
        assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
        assert rule["onExitCodes"]["values"] == sorted(rule["onExitCodes"]["values"])


def test_every_volume_of_a_pod_is_mounted() -> None:
    pod = of_kind(KUBERNETES, "Job")["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert "/dev/shm" in mounts.values()


def test_the_secret_of_a_job_is_mounted_where_its_processes_look_and_for_them_alone() -> None:
    pod = of_kind(KUBERNETES, "Job")["spec"]["template"]["spec"]
    (mount,) = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "secret"]
    (volume,) = [each for each in pod["volumes"] if each["name"] == "secret"]
    assert kubernetes_launch().environ[SECRET_FILE] == f"{mount['mountPath']}/secret"
    assert mount["readOnly"] is True
    assert volume["secret"]["defaultMode"] == 0o400
    text, name = KUBERNETES.read_text(), volume["secret"]["secretName"]
    assert f"kubectl create secret generic {name} --from-literal=secret=" in text
    assert all(each["kind"] != "Secret" for each in documents(KUBERNETES))  # one that is in a file is none


# ---------------------------------------------------------------------- AWS Batch


def unknown_names(value: Any, shape: Any, where: str) -> Iterator[str]:
    """Strings that are none of those a shape of the service lists; its own validator does not look."""
    if shape.type_name == "structure":
        for name, item in value.items():
            yield from unknown_names(item, shape.members[name], f"{where}.{name}")
    elif shape.type_name == "list":
        for item in value:
            yield from unknown_names(item, shape.member, where)
    elif shape.type_name == "string" and shape.enum and value not in shape.enum:
        yield f"{where}={value!r}"


def validated(definition: dict[str, Any]) -> list[str]:
    """What the service says of a definition."""
    session = pytest.importorskip("botocore.session")  # of the s3 extra
    from botocore.validate import ParamValidator

    shape = session.Session().get_service_model("batch").operation_model("RegisterJobDefinition").input_shape
    report = ParamValidator().validate(definition, shape).generate_report()
    return [*filter(None, [report]), *unknown_names(definition, shape, "")]


def test_aws_batch_takes_the_definition() -> None:
    session = pytest.importorskip("botocore.session")  # of the s3 extra
    from botocore.validate import ParamValidator

    service = session.Session().get_service_model("batch")
    shape = service.operation_model("RegisterJobDefinition").input_shape
    definition = batch_definition()
    assert ParamValidator().validate(definition, shape).generate_report() == ""
    assert list(unknown_names(definition, shape, "")) == []
    definition["nodeProperties"]["numNodes"] = "4"
    definition["retryStrategy"]["evaluateOnExit"][0]["action"] = "AGAIN"
    assert "numNodes" in ParamValidator().validate(definition, shape).generate_report()
    assert list(unknown_names(definition, shape, "")) == [".retryStrategy.evaluateOnExit.action='AGAIN'"]


def test_aws_batch_tries_again_where_that_helps() -> None:
    definition = batch_definition()
    assert definition["type"] == "multinode"
    retry = definition["retryStrategy"]
    assert 1 <= retry["attempts"] <= 10
    assert retry["evaluateOnExit"] == [
        {"onExitCode": str(RESUMABLE), "action": "RETRY"},
        {"onStatusReason": "Host EC2*", "action": "RETRY"},
        {"onReason": "*", "action": "EXIT"},  # without it, all that is left would be tried again
    ]
    properties = definition["nodeProperties"]
    (nodes,) = properties["nodeRangeProperties"]
    assert properties["mainNode"] == 0  # rank 0 is there, and the exit code of that node is the job's
    assert nodes["targetNodes"] == f"0:{properties['numNodes'] - 1}"
    container = nodes["container"]
    assert {mount["sourceVolume"] for mount in container["mountPoints"]} == {
        each["name"] for each in container["volumes"]
    }
    assert batch_secrets() == [SECRET]
    assert container["executionRoleArn"]  # who may read it
    assert container["linuxParameters"]["sharedMemorySize"] >= 1024


# ---------------------------------------------------------------------- all


@pytest.mark.parametrize("read", [kubernetes_launch, batch_launch])
def test_a_command_asks_for_what_the_platform_gives(read: Callable[[], Launch]) -> None:
    launch = read()
    assert launch.arguments[0] == "train"
    assert int(launch.option("--num-nodes")) == launch.n_nodes
    assert int(launch.option("--devices")) == launch.n_devices
    assert "--resume" in launch.arguments
    assert launch.environ["OMP_NUM_THREADS"].isdigit()
    for name in ("--store", "--run"):
        assert launch.option(name).startswith(tuple(f"{mount}/" for mount in launch.mounts))


# ---------------------------------------------------------------------- one machine that may go away, and a bucket


def test_a_job_with_a_bucket_needs_no_disk_and_holds_no_secret() -> None:
    spec = of_kind(BUCKET_KUBERNETES, "Job")["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    batch = json.loads(BUCKET_BATCH.read_text())
    assert validated(batch) == []
    assert spec["podFailurePolicy"] == of_kind(KUBERNETES, "Job")["spec"]["podFailurePolicy"]
    assert batch["retryStrategy"] == batch_definition()["retryStrategy"]
    environ = {entry["name"]: entry["value"] for entry in container["env"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume} == set(mounts.values())
    assert environ[WORK_DIR] in mounts
    assert float(environ[PATIENCE_VARIABLE]) + 2 * STOP_S <= pod["terminationGracePeriodSeconds"]
    for command, gpus in (
        (container["args"], container["resources"]["limits"]["nvidia.com/gpu"]),
        (
            batch["containerProperties"]["command"],
            int(batch["containerProperties"]["resourceRequirements"][2]["value"]),
        ),
    ):
        options = dict(pairwise(command))
        assert options["--run"].startswith("s3://")
        assert int(options["--devices"]) == gpus
        assert command[-1] == "--resume"
    for text in (BUCKET_KUBERNETES.read_text(), BUCKET_BATCH.read_text()):
        assert "ACCESS_KEY" not in text
        assert "TOKEN" not in text
    assert batch["containerProperties"]["jobRoleArn"]
    assert pod["serviceAccountName"]
