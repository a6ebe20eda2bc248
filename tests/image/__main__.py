"""Build the image, and run it as a platform does: not as root, on a root that it cannot write. ``make image-test`` calls it.

Three runs: the demo; a fit that is killed by SIGKILL and resumed in a mounted folder, with the labels of one that nobody disturbed; a
prediction whose model, input and result lie in a bucket, of a server outside of the container. Podman needs no daemon, buildah neither.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.record import environment
from tests.image.engine import IMAGE, ROOT, USER, Done, Engine, debian, found
from tests.support.bucket import serving, upload
from tests.support.machine import model_sha256

if TYPE_CHECKING:
    from collections.abc import Callable

PIP_SETTINGS = ("cert", "extra-index-url", "find-links", "index-url", "proxy", "trusted-host")
"""What the build is told of this machine's pip; it stays in no layer."""
CLUSTERS = ["--n-clusters", "5"]
LONGER = ["--train.rounds", "3", "--train.checkpoint_every_steps", "40"]
TIMEOUT_S = 600
ROUNDS = 2


class Container:
    """Commands of the image with one mounted folder."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self.environ = {"OMP_NUM_THREADS": "1"}

    def run(self, *command: str, entrypoint: str = "scamac-scale", **environ: str) -> Done:
        return self.engine.start([*command], self.folder, {**self.environ, **environ}, entrypoint).wait()

    def must(self, *command: str, **environ: str) -> str:
        done = self.run(*command, **environ)
        assert done.code == 0, f"{' '.join(command)}: exit code {done.code}\n{done.text}"
        return done.text

    def labels(self, result: str) -> list[str]:
        import anndata

        return [*map(str, anndata.read_zarr(self.folder / result).obs["scamac_cluster"])]


def pip_settings(folder: Path, *, mounts_paths: bool) -> tuple[list[str], list[str]]:
    """Options of a build that give it this machine's pip settings as a secret, and the settings themselves."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        if key in PIP_SETTINGS and "file:" not in value:
            settings[key] = value.strip("'")
    file = folder / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    paths = sorted({word for value in settings.values() for word in value.split() if Path(word).is_absolute()})
    mounts = [] if not mounts_paths else [f"--volume={path}:{path}:ro" for path in paths]
    return [f"--secret=id=pip.conf,src={file}", *mounts], [*settings.values()]


def checked_image(container: Container, secrets: list[str]) -> str:
    """The image holds no tools, and nothing of the machine that built it; its root cannot be written."""
    for path in ("/x", "/opt/venv/x", "/home/x"):
        assert container.run(path, entrypoint="touch").code != 0, f"{path} can be written"
    assert container.run("-u", entrypoint="id").text.strip() == str(USER)
    for tool in ("pip", "gcc", "hatchling"):
        assert container.run("-c", f"command -v {tool}", entrypoint="sh").code != 0, f"{tool} is in the image"
    description = container.engine.description()
    assert not [each for each in secrets if each in description]
    assert "org.opencontainers.image.licenses" in description
    return f"user {USER}, a root {container.engine.root}, no pip, no compiler"


def demo(container: Container) -> str:
    """The demo, from raw values to a labelled result."""
    text = container.must("demo", "--out", "/data/demo")
    assert "scores" in text, text
    return f"{len(container.labels('demo/pbmc.result.zarr'))} cells clustered"


def killed_and_resumed(container: Container) -> str:
    """A fit that is killed and resumed has the weights and labels of one that nobody disturbed."""
    container.must("simulate", "--cells", "1000", "--genes", "300", "--out", "/data/atlas.zarr")
    container.must("ingest", "/data/atlas.zarr", "--out", "/data/atlas.store.zarr")
    train = ["train", "--store", "/data/atlas.store.zarr", *CLUSTERS, *LONGER]
    container.must(*train, "--run", "/data/undisturbed")
    killed = container.folder / "killed"
    fit = container.engine.start([*train, "--run", "/data/killed"], container.folder, container.environ)
    last_s = time.monotonic() + TIMEOUT_S
    while len([*killed.glob("checkpoints/*.pt")]) < 2 and not fit.has_ended:
        assert time.monotonic() < last_s, "no checkpoint"
        time.sleep(0.05)
    fit.kill()
    done = fit.wait()
    assert done.code in (137, -9), f"exit code {done.code}\n{done.text}"
    assert not (killed / "model").exists(), "it was too late to kill it"
    text = container.must(*train, "--run", "/data/killed", "--resume")
    assert model_sha256(killed) == model_sha256(container.folder / "undisturbed")
    for run in ("undisturbed", "killed"):
        paths = ["--run", f"/data/{run}", "--input", "/data/atlas.store.zarr", "--out", f"/data/{run}.zarr"]
        container.must("predict", *paths)
    labels = container.labels("killed.zarr")
    assert labels == container.labels("undisturbed.zarr")
    (line,) = [each for each in text.splitlines() if "resum" in each or "goes on" in each][:1]
    return f"{line.strip()}; {len(labels)} labels and all weights as those of a run that nobody disturbed"


def from_a_bucket(container: Container) -> str:
    """A prediction whose model, input and result lie in a bucket."""
    with serving() as server:
        os.environ.update(server.environment)  # what puts the files reads them there
        bucket = server.new_bucket()
        upload(container.folder / "undisturbed", f"{bucket}/run")
        upload(container.folder / "atlas.zarr", f"{bucket}/atlas.zarr")
        paths = ["--run", f"{bucket}/run", "--input", f"{bucket}/atlas.zarr", "--out", f"{bucket}/result.zarr"]
        container.must("predict", *paths, **server.environment)
        name, client = bucket.removeprefix("s3://"), server.client()
        for each in client.list_objects_v2(Bucket=name, Prefix="result.zarr/")["Contents"]:
            file = container.folder / "fetched" / each["Key"]
            file.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(name, each["Key"], str(file))
    labels = container.labels("fetched/result.zarr")
    assert labels == container.labels("undisturbed.zarr")
    return f"{len(labels)} labels in the bucket, the same as from the disk"


CHECKS: dict[str, Callable[[Container], str]] = {
    "demo": demo,
    "train, killed and resumed": killed_and_resumed,
    "predict from a bucket": from_a_bucket,
}


def first_start(container: Container) -> dict[str, list[float]]:
    """CPU seconds of the first demo in a container, with the kernels of the image and without them, in turn."""
    found: dict[str, list[float]] = {"with kernels": [], "without kernels": []}
    for _ in range(ROUNDS):
        for name, more in (("with kernels", {}), ("without kernels", {"SCAMAC_KERNELS_DIR": ""})):
            shell = "scamac-scale demo --quiet --out /data/start >/dev/null && times"
            done = container.run("-c", shell, entrypoint="sh", **more)
            assert done.code == 0, done.text
            parts = re.findall(r"(\d+)m([\d.]+)s", done.text.splitlines()[-1])  # of the children: user and system
            found[name].append(round(sum(60 * int(minutes) + float(seconds) for minutes, seconds in parts), 1))
    return found


def main() -> int:
    """Build, run, say what passed; the exit code says whether all did."""
    parser = argparse.ArgumentParser(prog="python -m tests.image", description=__doc__)
    parser.add_argument(
        "--engine", type=shlex.split, help="such as 'podman --storage-driver vfs'; the first that is here"
    )
    parser.add_argument("--build-options", type=shlex.split, default=[], help="such as '--isolation chroot'")
    parser.add_argument("--run-options", type=shlex.split, default=[], help="such as '--ulimit nofile=1024:4096'")
    parser.add_argument("--python-image", help="base; the one of the Dockerfile, or 'debootstrap' to make one")
    parser.add_argument("--no-build", action="store_true", help="the image is there")
    parser.add_argument("--json", type=Path, help="file for what was measured")
    options = parser.parse_args()
    engine = Engine(options.engine or found(), options.build_options, options.run_options)
    with tempfile.TemporaryDirectory(prefix="scamac-image-") as work:
        settings, secrets = pip_settings(Path(work), mounts_paths="docker" not in engine.program[0])
        measured: dict[str, Any] = {"environment": environment(), "engine": Path(engine.program[0]).name}
        if not options.no_build:
            base = debian(engine) if options.python_image == "debootstrap" else options.python_image
            arguments = [f"--build-arg=PYTHON_IMAGE={base}"] if base else []
            start_s = time.monotonic()
            built = engine.build(ROOT, "-t", IMAGE, *settings, *arguments)
            print(
                f"build: {'done' if built.code == 0 else built.text} in {time.monotonic() - start_s:.0f} s", flush=True
            )
            if built.code:
                return 1
        folder = Path(work, "data")
        folder.mkdir()
        os.chown(folder, USER, USER)
        container = Container(engine, folder)
        measured["size_bytes"] = engine.size_bytes()
        print(f"image: {measured['size_bytes'] / 1e9:.2f} GB, {checked_image(container, secrets)}", flush=True)
        for name, check in CHECKS.items():
            start_s = time.monotonic()
            print(f"{name}: passed, {check(container)}", end=" ", flush=True)
            measured[name] = {"seconds": round(time.monotonic() - start_s, 1)}
            print(f"({measured[name]['seconds']} s)", flush=True)
        if options.json:
            measured["cpu_seconds_of_the_first_demo"] = first_start(container)
            options.json.write_text(json.dumps(measured, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
