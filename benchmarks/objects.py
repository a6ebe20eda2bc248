"""What does object storage cost, beside a disk? An epoch from a store, an input read by ranges, and the library that reads.

A server of object storage (moto's, which is Python, and reads a whole object for each part of it) runs on loopback as a process of
its own, so that its work is not counted as ours in CPU seconds; it is in the others. So inputs are small. Rounds are interleaved; each
ratio is of one round.

    python benchmarks/objects.py
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from record import environment, measure
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from scamac_scale.store.reader import StoreReader

OUT = Path(__file__).resolve().parent / "results" / "objects.json"
BUCKET = "objects-benchmark"


@contextmanager
def serving() -> Iterator[None]:
    """Serve on a free port, with its address and credentials that open nothing else in the environment."""
    import boto3
    from botocore.exceptions import BotoCoreError

    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    os.environ |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_REGION": "us-east-1"}
    os.environ["AWS_ENDPOINT_URL"] = address
    try:
        for _ in range(300):
            try:
                boto3.client("s3", endpoint_url=address, region_name="us-east-1").create_bucket(Bucket=BUCKET)
                break
            except BotoCoreError:  # nobody listens yet
                time.sleep(0.1)
        else:
            raise SystemExit("the server of objects did not start within 30 s")
        yield
    finally:
        server.terminate()
        server.wait()


def upload(path: Path, url: str) -> str:
    """Put a file or a folder to a URL."""
    from scamac_scale.remote.bucket import Bucket

    bucket = Bucket(url)
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            bucket.put("" if file == path else file.relative_to(path).as_posix(), file)
    return url


def epoch(reader: StoreReader, seed: int) -> None:
    """Read all cells once, in the order of a shuffled epoch, as dense minibatches."""
    from scamac_scale.loader.feed import Feed
    from scamac_scale.loader.plan import EpochPlan

    with Feed(reader) as feed:
        for _ in feed.run(EpochPlan(reader.n_cells, 4096, seed=seed)):
            pass


def read_input(data: str | Path) -> None:
    """Read all cells of an input in order, as one pass of an ingest does."""
    from scamac_scale.ingestion.open import open_raw
    from scamac_scale.ingestion.raw import read_blocks

    with open_raw(data) as raw:
        for _ in read_blocks(raw, 4096, "reading"):
            pass


def copy_and_read(url: str, folder: Path) -> None:
    """Fetch an input, and read the copy."""
    from scamac_scale.remote.bucket import Bucket

    copy = folder / "copy.h5ad"
    Bucket(url).fetch("", copy)
    read_input(copy)
    copy.unlink()


def by_obstore(key: str, size: int, piece: int) -> None:
    """Read an object in pieces, one after the other."""
    from scamac_scale.remote.bucket import Bucket

    bucket = Bucket(f"s3://{BUCKET}/{key}")
    for start in range(0, size, piece):
        bucket.read_range("", start, min(piece, size - start))


def by_boto3(key: str, size: int, piece: int) -> None:
    """Do the same by the library of AWS, on which s3fs is built."""
    import boto3

    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")
    for start in range(0, size, piece):
        end = min(start + piece, size) - 1
        client.get_object(Bucket=BUCKET, Key=key, Range=f"bytes={start}-{end}")["Body"].read()


def rounds(cases: dict[str, Callable[[int], None]], n_rounds: int, base: str) -> dict[str, dict[str, float]]:
    """Run cases in turn; medians of seconds and of ratios to `base` within a round. The first round warms up."""
    found: dict[str, list[Any]] = {name: [] for name in cases}
    for number in range(n_rounds + 1):
        for name, case in cases.items():
            with measure() as cost:
                case(number)
            if number:
                found[name].append(cost)
    told = {}
    for name, costs in found.items():
        told[name] = {
            "seconds": statistics.median(cost.seconds for cost in costs),
            "cpu_seconds": statistics.median(cost.cpu_seconds for cost in costs),
            "ratio": statistics.median(a.seconds / b.seconds for a, b in zip(costs, found[base], strict=True)),
            "cpu_ratio": statistics.median(
                a.cpu_seconds / b.cpu_seconds for a, b in zip(costs, found[base], strict=True)
            ),
            "peak_bytes": max(cost.peak_bytes for cost in costs),
        }
    return told


def compare(folder: Path, n_cells: int, n_genes: int, n_rounds: int) -> dict[str, Any]:
    """Measure everything."""
    from scamac_scale import simulate
    from scamac_scale.config import IngestConfig
    from scamac_scale.ingestion.pipeline import ingest
    from scamac_scale.store.reader import StoreReader

    os.environ["SCAMAC_CACHE_DIR"] = str(folder / "cache")
    atlas = simulate(folder / "atlas.zarr", n_cells, n_genes=n_genes, counts_per_gene=0.3)
    store = folder / "atlas.store.zarr"
    ingest(atlas, store, IngestConfig())
    h5ad = folder / "atlas.h5ad"
    as_h5ad(simulate(folder / "part.zarr", n_cells // 10, n_genes=n_genes, counts_per_gene=0.3), h5ad)
    base = f"s3://{BUCKET}"
    there, source = upload(store, f"{base}/atlas.store.zarr"), upload(h5ad, f"{base}/atlas.h5ad")

    def cold(number: int) -> None:
        os.environ["SCAMAC_CACHE_DIR"] = str(folder / f"cold-{number}")
        with StoreReader(there) as reader:
            epoch(reader, number)
        shutil.rmtree(os.environ["SCAMAC_CACHE_DIR"])

    size = h5ad.stat().st_size
    sizes = {
        "n_cells": n_cells,
        "n_genes": n_genes,
        "store_bytes": sum(path.stat().st_size for path in store.rglob("*") if path.is_file()),
        "h5ad_cells": n_cells // 10,
        "h5ad_bytes": size,
    }
    with StoreReader(store) as on_disk, StoreReader(there) as cached:
        epochs = rounds(
            {
                "disk": lambda number: epoch(on_disk, number),
                "bucket, cached": lambda number: epoch(cached, number),
                "bucket, opened and not cached": cold,
            },
            n_rounds,
            "disk",
        )
    return {
        **sizes,
        "epoch": epochs,
        "pass over an h5ad": rounds(
            {
                "disk": lambda _: read_input(h5ad),
                "bucket, by ranges": lambda _: read_input(source),
                "bucket, copied first": lambda _: copy_and_read(source, folder),
            },
            n_rounds,
            "disk",
        ),
        "reads of 1 MiB": rounds(
            {
                "obstore": lambda _: by_obstore("atlas.h5ad", size, 2**20),
                "boto3": lambda _: by_boto3("atlas.h5ad", size, 2**20),
            },
            n_rounds,
            "obstore",
        ),
    }


def as_h5ad(atlas: Path, path: Path) -> None:
    """Write an atlas as a compressed h5ad."""
    import anndata as ad

    ad.read_zarr(atlas).write_h5ad(path, compression="gzip")


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cells", type=int, default=300_000)
    parser.add_argument("--genes", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, serving():
        found = compare(Path(folder), options.cells, options.genes, options.rounds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"environment": environment(), **found}, indent=1) + "\n")
    for part in ("epoch", "pass over an h5ad", "reads of 1 MiB"):
        table = Table(title=f"{part}, {options.cells if part == 'epoch' else options.cells // 10:,} cells")
        for column in ("from", "seconds", "ratio", "CPU seconds", "CPU ratio", "peak MB"):
            table.add_column(column, justify="left" if column == "from" else "right")
        for name, case in found[part].items():
            told = [case["seconds"], case["ratio"], case["cpu_seconds"], case["cpu_ratio"], case["peak_bytes"] / 1e6]
            table.add_row(name, *(f"{value:.2f}" for value in told))
        Console().print(table)


if __name__ == "__main__":
    main()
