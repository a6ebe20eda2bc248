"""An atlas that is never held in memory: simulate it in blocks, ingest it, fit from disk, stream the labels to disk.

python examples/stream_atlas.py work/ --cells 50000
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from scamac_scale import ScAMAC, ScamacConfig, evaluate, ingest, simulate


def main(arguments: list[str] | None = None) -> float:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--types", type=int, default=8)
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)

    atlas = simulate(options.folder / "atlas.zarr", options.cells, n_types=options.types)
    store = ingest(atlas, options.folder / "atlas.store.zarr")
    config = ScamacConfig()
    streamed = replace(config, loader=replace(config.loader, cache="none"))  # always from disk
    model = ScAMAC(options.types, config=streamed).fit(store, run=options.folder / "run")
    out = model.predict(store, out=options.folder / "labels.zarr")

    ari = float(evaluate(out, "cell_type")["ari"])
    print(f"{options.cells:,} cells, ARI {ari:.3f}: {out}")
    return ari


if __name__ == "__main__":
    main()
