"""Manifests: which inputs they name, what their columns become, and what is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from scamac_scale.config import IngestConfig
from scamac_scale.errors import InputError
from scamac_scale.ingestion.many.inputs import list_inputs
from scamac_scale.ingestion.many.manifest import read_manifest
from scamac_scale.ingestion.many.opening import open_inputs
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.store.reader import StoreReader
from tests.support.atlas import build_tiny_atlas
from tests.support.many import cut

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONFIG = IngestConfig(n_genes=60)
CSV = 'path,donor,age,weight,is_control,plate\npart00.h5ad,D1,30,1.5,True,007\n"part01.h5ad",D2,41,2,False,008\npart02.h5ad,D1,30,,True,\n'
YAML = """
- {path: part00.h5ad, donor: D1, age: 30, weight: 1.5, is_control: true, plate: "007"}
- {path: part01.h5ad, donor: D2, age: 41, weight: 2, is_control: false, plate: "008"}
- path: part02.h5ad
  donor: D1
  age: 30
  is_control: true
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cut(build_tiny_atlas(), tmp_path, 3)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", CSV),
        ("m.CSV", "\ufeff" + CSV.replace("\n", "\r\n")),
        ("m.tsv", CSV.replace(",", "\t")),
        ("m.yaml", YAML),
        ("m.yml", YAML),
    ],
)
def test_columns_become_obs_of_all_cells_of_a_file(folder: Path, name: str, text: str) -> None:
    (folder / name).write_bytes(text.encode())
    with open_inputs(str(folder / name), CONFIG) as raw:
        obs = raw.obs
        assert raw.n_cells == 300
    of_file = obs.groupby("scamac_file", observed=True)
    assert obs["scamac_file"].cat.categories.tolist() == ["part00.h5ad", "part01.h5ad", "part02.h5ad"]
    assert of_file["donor"].first().tolist() == ["D1", "D2", "D1"]
    assert of_file["donor"].nunique().tolist() == [1, 1, 1]
    assert (obs["age"].dtype.kind, of_file["age"].first().tolist()) == ("i", [30, 41, 30])
    assert obs["weight"].isna().sum() == 100
    assert obs["is_control"].dtype == bool
    assert obs["plate"].cat.categories.tolist() == ["007", "008"]
    assert obs["plate"].isna().sum() == 100


@pytest.mark.parametrize("suffix", ["csv", "yaml"])
@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["12345678901234567890", "12345678901234567891"], None),
        (["1234567890123456789", "1234567890123456788"], int),
        (["9223372036854775808", "1"], None),
        (["9007199254740993", "0.5"], None),
        (["3.1", "3.10"], None),
        (["3.10", "3.2"], None),
        (["0.1234567890123456789", "0.5"], None),
        (["007", "8"], None),
        (["1e3", "5"], None),
        (["1_000", "5"], None),
        (["12:30", "12:31"], None),
        (["0x1f", "0o7"], None),
        (["-0", "3"], None),
        (["+3", "3"], None),
        (["inf", "1"], None),
        (["yes", "no"], None),
        (["2020-01-01", "2020-01-02"], None),
        (["1.5", "2"], float),
        (["-1.25", "1e-05"], float),
        (["30", "-41"], int),
        (["true", "FALSE"], lambda text: text == "true"),
    ],
)
def test_values_stay_as_they_are_written(
    tmp_path: Path, suffix: str, written: list[str], expected: Callable[[str], object] | None
) -> None:
    rows = [f"- {{path: part0{number}.h5ad, x: {text}}}" for number, text in enumerate(written)]
    text = "path,x\n" + "".join(f"part0{number}.h5ad,{text}\n" for number, text in enumerate(written))
    (tmp_path / f"m.{suffix}").write_text("\n".join(rows) if suffix == "yaml" else text)
    found = [row.columns["x"] for row in read_manifest(tmp_path / f"m.{suffix}")]
    assert found == (written if expected is None else [expected(text) for text in written])
    assert len(set(map(type, found))) == 1


@pytest.mark.parametrize("missing", ["", "NA", "NaN", "nan", "null", "None"])
def test_missing_values_have_many_names(folder: Path, missing: str) -> None:
    table = f"path,age,donor,matrix\npart00.h5ad,31,D1,{missing}\npart01.h5ad,{missing},{missing},X\n"
    (folder / "m.csv").write_text(table)
    (folder / "m.yaml").write_text(f"- {{path: a, age: {missing}}}\n- {{path: b, age: 31}}")
    with open_inputs(folder / "m.csv", replace(CONFIG, where="age.isna() or age == 31")) as raw:
        assert raw.obs["age"].isna().sum() == raw.obs["donor"].isna().sum() == 100
        assert raw.obs["age"].dropna().unique().tolist() == [31]
        assert raw.obs["donor"].cat.categories.tolist() == ["D1"]
    assert [row.columns["age"] for row in read_manifest(folder / "m.yaml")] == [None, 31]


def test_the_batch_key_and_a_query_may_name_a_column_of_it(folder: Path) -> None:
    (folder / "m.csv").write_text(CSV)
    config = replace(CONFIG, batch_key="donor", where="age > 35 or donor == 'D1' and weight == 1.5", columns="age")
    store = StoreReader(ingest(folder / "m.csv", folder / "a.zarr", config))
    assert store.n_cells == 200
    assert list(store.obs) == ["donor", "age", "scamac_file", "scamac_file_row"]


def test_a_manifest_of_one_file_gives_its_columns_and_no_others(folder: Path) -> None:
    (folder / "m.csv").write_text("path,donor\npart00.h5ad,D1\n")
    with open_inputs(folder / "m.csv", CONFIG) as raw:
        assert list(raw.obs) == ["cell_type", "depth", "donor"]


def test_a_row_may_say_where_its_values_lie(folder: Path) -> None:
    adata = build_tiny_atlas()[:100].copy()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X * 0.37
    adata.write_h5ad(folder / "part00.h5ad")
    (folder / "m.csv").write_text("path,matrix\npart00.h5ad,counts\npart01.h5ad,\n")
    ingest(folder / "m.csv", folder / "a.zarr", CONFIG)
    assert StoreReader(folder / "a.zarr").gene_space.kind == "counts"


def test_paths_are_relative_to_the_manifest_and_may_be_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "m.csv").write_text(f"path\n../part00.h5ad\n{folder}/part01.h5ad\n")
    monkeypatch.chdir("/")
    assert len(list_inputs(folder / "sub" / "m.csv")) == 2
    open_inputs(folder / "sub" / "m.csv", CONFIG).close()


def test_names_that_are_alike_become_whole_paths(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        os.rename(folder / f"part0{'ab'.index(name)}.h5ad", folder / name / "x.h5ad")
        (folder / name / "m.csv").write_text("path\nx.h5ad\n")
    found = list_inputs([folder / "a" / "m.csv", folder / "b" / "m.csv", folder / "part02.h5ad"])
    assert [one.name for one in found] == [f"{folder}/a/x.h5ad", f"{folder}/b/x.h5ad", f"{folder}/part02.h5ad"]


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("m.csv", b"", "it is empty"),
        ("m.csv", b"path\n", "names no input"),
        ("m.csv", b"file,donor\na.h5ad,D1\n", "no column 'path'"),
        ("m.csv", b"path;donor\na.h5ad;D1\n", "separated by ';'"),
        ("m.csv", b"path,donor\na.h5ad\n", "row 1 has 1 values"),
        ("m.csv", b"path,donor,donor\na,b,c\n", "names of their own"),
        ("m.csv", b"path,\na,b\n", "names of their own"),
        ("m.csv", b"path,donor\n,D1\n", "row 1 has no path"),
        ("m.csv", b'path\n"a.h5ad\n', "no table"),
        ("m.csv", b"path\na\xff.h5ad\n", "not UTF-8"),
        ("m.csv", b"path\na\0.h5ad\n", "zero bytes"),
        ("m.csv", b"\x1f\x8b\x08\x00" * 9, "not UTF-8"),
        ("m.yaml", b"path: a.h5ad\n", "does not hold a list"),
        ("m.yaml", b"- [a, b]\n", "neither a path"),
        ("m.yaml", b"- {path: a, donor: {x: 1}}\n", "no single value"),
        ("m.yaml", b"- {donor: D1}\n", "no path"),
        ("m.yaml", b"- {path: 3}\n", "names 3, which is not there"),
        ("m.yaml", b"- &x {path: a}\n- *x\n", "anchor"),
        ("m.yaml", b"- !!python/object/apply:os.system [ls]\n", "a tag"),
        ("m.yaml", b"- {path: a\n", "not YAML"),
        ("m.yaml", b"[" * 99, "nested too deeply|not YAML"),
        ("m.yaml", b"", "does not hold a list"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, name: str, content: bytes, word: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=word) as refused:
        open_inputs(tmp_path / name, CONFIG)
    assert str(tmp_path / name) in str(refused.value)


def test_what_a_manifest_names_must_be_there_and_ours_stay_ours(folder: Path) -> None:
    (folder / "m.csv").write_text("path,donor\npart00.h5ad,D1\nnowhere.h5ad,D2\n")
    with pytest.raises(InputError, match=r"m\.csv: row 2 names nowhere\.h5ad, which is not there"):
        open_inputs(folder / "m.csv", CONFIG)
    (folder / "m.csv").write_text("path,scamac_row\npart00.h5ad,1\npart01.h5ad,2\n")
    with pytest.raises(InputError, match="scamac_row"):
        open_inputs(folder / "m.csv", CONFIG)
    with pytest.raises(InputError, match="there is no manifest"):
        open_inputs(folder / "no.csv", CONFIG)
    (folder / "f.csv").mkdir()
    with pytest.raises(InputError, match="a folder"):
        open_inputs(folder / "f.csv", CONFIG)
    os.mkfifo(folder / "p.csv")
    with pytest.raises(InputError, match="named pipe"):
        open_inputs(folder / "p.csv", CONFIG)
