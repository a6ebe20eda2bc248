"""A result in a bucket: the bytes of a local one, found when all of it is there, and never a mixture of two."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest

from scamac_scale import ScAMAC, evaluate, inspect, sources
from scamac_scale.cli.main import main
from scamac_scale.durable.plain import sealed
from scamac_scale.errors import ConfigError, InputError, OutputError, ResumeError, StoppedError
from scamac_scale.fitted import save_model
from scamac_scale.infer.output import bucket as output
from tests.support.chaos import MIXED, Chaos, chaos
from tests.support.fitted import fitted_model
from tests.support.objects import SECRETS, Objects, files_below

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.bucket import ObjectServer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        (folder / str(seed)).mkdir()
        save_model(fitted_model(seed), folder / str(seed) / "model")
    return [folder / "0" / "model", folder / "1" / "model"]


@pytest.fixture(scope="module")
def local(tiny_atlas: Path, models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first model predicts, on a disk."""
    found = ScAMAC.load(models[0]).predict(tiny_atlas, tmp_path_factory.mktemp("local") / "local.zarr")
    assert not isinstance(found, str)
    return found


def test_a_result_of_cells_that_differ_where_nobody_looks_is_not_resumed(
    tiny_adata: ad.AnnData, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value in the middle, between the cells that are compared."""
    monkeypatch.setattr(sources, "SAMPLE_CELLS", 1)
    model, out = ScAMAC.load(models[0]), tmp_path / "result.zarr"

    def written(name: str, atlas: ad.AnnData) -> Path:
        path = tmp_path / name
        atlas.write_h5ad(path)
        return path

    changed = tiny_adata.copy()
    row = changed.X[33]
    first, second = np.flatnonzero(row.toarray()[0])[:2] if hasattr(row, "toarray") else np.flatnonzero(row)[:2]
    changed.X[33, first], changed.X[33, second] = changed.X[33, second] + 1, changed.X[33, first] + 1
    one, other = written("one.h5ad", tiny_adata), written("other.h5ad", changed)
    model.predict(one, out)
    assert model.predict(one, out, resume=True) == out
    with pytest.raises(ResumeError, match="another content"):
        model.predict(other, out, resume=True)


@pytest.fixture
def server(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Chaos]:
    """A quiet proxy before the server, to be aimed with."""
    monkeypatch.setenv("SCAMAC_WORK_DIR", str(tmp_path / "work"))
    with chaos(object_server.address, shares={}, stall_s=0.1) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
        yield found


@pytest.fixture
def out(bucket: str) -> str:
    return f"{bucket}/results/atlas.zarr"


@pytest.fixture
def objects(object_server: ObjectServer, out: str) -> Objects:
    return Objects(object_server, out)


def test_a_zarr_in_a_bucket_has_the_bytes_of_a_local_one_and_its_root_comes_last(
    server: Chaos, tiny_atlas: Path, models: list[Path], local: Path, out: str, objects: Objects, tmp_path: Path
) -> None:
    server.shares = MIXED
    assert ScAMAC.load(models[0]).predict(tiny_atlas, out) == out
    server.calm()
    assert objects.is_folder(local)
    puts = [path.rpartition("atlas.zarr/")[2] for path in server.paths("PUT") if "atlas.zarr/" in path]
    assert set(puts[puts.index("zarr.json") :]) == {"zarr.json"}
    assert server.n_faults() > 10
    assert not files_below(tmp_path / "work")
    assert Objects.names(objects) == sorted(objects.names())
    there, here = inspect(out, verify=True), inspect(local, verify=True)
    assert {**there, "path": "", "disk_bytes": 0} == {**here, "path": "", "disk_bytes": 0}
    assert evaluate(out, "cell_type") == evaluate(local, "cell_type")
    with pytest.raises(OutputError, match=f"{out} is already there; remove it or choose another name"):
        ScAMAC.load(models[0]).predict(tiny_atlas, out)
    n_puts = len(server.paths("PUT"))
    assert ScAMAC.load(models[0]).predict(tiny_atlas, out, resume=True) == out
    assert len(server.paths("PUT")) == n_puts
    with pytest.raises(ResumeError, match=f"{out} was begun otherwise: .*model"):
        ScAMAC.load(models[1]).predict(tiny_atlas, out, resume=True)


def test_a_prediction_that_is_refused_leaves_no_folder(
    server: Chaos, tiny_atlas: Path, models: list[Path], bucket: str, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match="no bucket"):
        ScAMAC.load(models[0]).predict(tiny_atlas, f"{bucket}-that-is-not-there/atlas.zarr")
    assert not list((tmp_path / "work").glob("results/*"))


@pytest.mark.slow
def test_an_h5ad_in_a_bucket_is_one_object(
    server: Chaos, tiny_atlas: Path, models: list[Path], local: Path, bucket: str, object_server: Any, tmp_path: Path
) -> None:
    out = f"{bucket}/atlas.h5ad"
    server.aim("lose", "PUT", "atlas.h5ad", times=3)
    assert ScAMAC.load(models[0]).predict(tiny_atlas, out) == out
    (tmp_path / "fetched.h5ad").write_bytes(Objects(object_server, out).read())
    found, expected = ad.read_h5ad(tmp_path / "fetched.h5ad"), ad.read_zarr(local)
    np.testing.assert_array_equal(found.obsm["X_scAMAC"], expected.obsm["X_scAMAC"])
    assert Objects(object_server, bucket).names() == ["atlas.h5ad"]
    assert ScAMAC.load(models[0]).predict(tiny_atlas, out, resume=True) == out
    with pytest.raises(OutputError, match="is already there"):
        ScAMAC.load(models[0]).predict(tiny_atlas, out)
    assert inspect(out)["kind"] == "result of predict"


@pytest.mark.parametrize("is_elsewhere", [False, True])
@pytest.mark.slow
def test_what_was_killed_while_it_was_put_goes_on(
    server: Chaos,
    tiny_atlas: Path,
    models: list[Path],
    local: Path,
    out: str,
    objects: Objects,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_elsewhere: bool,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(output, "reach", lambda point: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ScAMAC.load(models[0]).predict(tiny_atlas, out)
    assert "zarr.json" not in objects.names()
    assert len(objects.names()) > 10
    with pytest.raises(InputError):
        inspect(out)
    with pytest.raises(OutputError, match=f"{out} is being written by another prediction .*, with another model"):
        ScAMAC.load(models[1]).predict(tiny_atlas, out)
    if is_elsewhere:
        monkeypatch.setenv("SCAMAC_WORK_DIR", str(tmp_path / "other"))
    else:
        monkeypatch.setattr("scamac_scale.infer.predict.sweep", None)  # nothing is predicted again
    n_puts = len(server.paths("PUT"))
    assert ScAMAC.load(models[0]).predict(tiny_atlas, out, resume=True) == out
    assert objects.is_folder(local)
    assert len(server.paths("PUT")) - n_puts == 2, "the note and the root: the rest is there already"
    assert not files_below(tmp_path / ("other" if is_elsewhere else "work"))


def test_a_result_that_appears_meanwhile_is_not_replaced(
    server: Chaos,
    tiny_atlas: Path,
    models: list[Path],
    out: str,
    objects: Objects,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def appear(point: str) -> None:
        objects.write("zarr.json", b"{}")

    monkeypatch.setattr(output, "reach", appear)
    server.aim("lose", "PUT", "atlas.zarr/zarr.json")
    with pytest.raises(
        OutputError, match=r"is already there.*The result is complete in .*atlas\.zarr; --resume puts it"
    ):
        ScAMAC.load(models[0]).predict(tiny_atlas, out)
    assert objects.read("zarr.json") == b"{}"
    assert (next((tmp_path / "work").rglob("atlas.zarr")) / "zarr.json").is_file()


@pytest.mark.slow
def test_a_signal_while_it_is_put_keeps_the_local_one(
    server: Chaos, tiny_atlas: Path, models: list[Path], local: Path, out: str, objects: Objects, monkeypatch: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("scamac_scale.ranks.signals.Signals.received", "SIGTERM")
        run = ["--run", str(models[0].parent), "--input", str(tiny_atlas), "--out", out]
        patch.setattr("scamac_scale.infer.output.disk.SaveOrStop.look", lambda *_, **__: None)
        assert main(["predict", *run]) == StoppedError.exit_code
    assert "zarr.json" not in objects.names()
    assert main(["predict", *run, "--resume", "--quiet"]) == 0
    assert objects.is_folder(local)


def test_objects_that_are_there_already_are_let_be(
    server: Chaos, tiny_atlas: Path, models: list[Path], out: str, objects: Objects, object_server: Any, bucket: str
) -> None:
    objects.write("mine.txt", b"x")
    with pytest.raises(OutputError, match=r"there are objects below .* already"):
        ScAMAC.load(models[0]).predict(tiny_atlas, out)
    assert Objects(object_server, bucket).names() == ["results/atlas.zarr/mine.txt"]
    objects.delete("mine.txt")
    objects.write("zarr.json", b"{}")
    with pytest.raises(OutputError, match="is already there"):
        ScAMAC.load(models[0]).predict(tiny_atlas, out, resume=True)


@pytest.mark.parametrize("note", [b"", b"{", sealed({"identity": "other"}).encode()], ids=["empty", "cut", "other"])
def test_a_note_of_somebody_else_is_respected(
    server: Chaos, tiny_atlas: Path, models: list[Path], bucket: str, out: str, object_server: Any, note: bytes
) -> None:
    Objects(object_server, bucket).write("results/.atlas.zarr.writing.json", note)
    with pytest.raises(OutputError, match=r"or remove s3://.*/results/\.atlas\.zarr\.writing\.json and what is below"):
        ScAMAC.load(models[0]).predict(tiny_atlas, out)


@pytest.mark.slow
def test_what_cannot_be_put_names_the_object_and_the_local_result_and_no_secret(
    server: Chaos,
    tiny_atlas: Path,
    models: list[Path],
    local: Path,
    out: str,
    objects: Objects,
    monkeypatch: Any,
    capfd: Any,
) -> None:
    monkeypatch.setenv("SCAMAC_OBJECT_PATIENCE_S", "0.3")
    server.aim("slow_down", "PUT", "obs/zarr.json", times=10**6)
    run = ["--run", str(models[0].parent), "--input", str(tiny_atlas), "--out", out]
    assert main(["predict", *run, "--debug"]) == 4
    text = "".join(capfd.readouterr())
    assert "obs/zarr.json cannot be written: the server asks for fewer requests (SlowDown)" in text
    assert "The result is complete in" in text
    assert not any(secret in text for secret in SECRETS)
    server.calm()
    assert main(["predict", *run, "--resume", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["kind"] == "result of predict"
    assert objects.is_folder(local)


@pytest.mark.parametrize(
    "out", ["s3://bucket/x.csv", "s3://bucket/x.zarr?a=b", "s3://key:secret@bucket/x.zarr", "http://x/y.zarr"]
)
def test_urls_that_cannot_be_written_are_refused_before_any_work(models: list[Path], out: str) -> None:
    with pytest.raises((ConfigError, InputError)) as caught:
        ScAMAC.load(models[0]).predict("nowhere.h5ad", out)
    assert "secret" not in str(caught.value)


def test_a_model_in_a_bucket_is_fetched_once_and_checked(
    server: Chaos, models: list[Path], bucket: str, object_server: Any, tmp_path: Path
) -> None:
    url = f"{bucket}/run/model"
    with pytest.raises(InputError, match=f"there is no model at {url}"):
        ScAMAC.load(url)
    objects = Objects(object_server, url)
    objects.copy_from(models[0])
    server.shares = MIXED
    expected = ScAMAC.load(models[0]).fitted.clusters.centers
    for _ in range(2):
        assert (ScAMAC.load(url).fitted.clusters.centers == expected).all()
    server.calm()
    n_reads = len([path for path in server.paths("GET") if path.endswith("model.safetensors")])
    ScAMAC.load(url)
    assert len([path for path in server.paths("GET") if path.endswith("model.safetensors")]) == n_reads
    objects.copy_from(models[1])
    assert not (ScAMAC.load(url).fitted.clusters.centers == expected).all()
    damaged = bytearray(objects.read("model.safetensors"))
    damaged[-1] ^= 1
    objects.write("model.safetensors", bytes(damaged))
    with pytest.raises(InputError, match=f"{url}/model.safetensors is damaged: .*wrong SHA-256"):
        ScAMAC.load(url)
    assert inspect_error(url).startswith(f"{url}/model.safetensors is damaged")


def inspect_error(url: str) -> str:
    with pytest.raises(InputError) as caught:
        inspect(url)
    return str(caught.value)
