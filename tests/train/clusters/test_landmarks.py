"""Clusters of all cells in all members: taken up where another process stopped, if that had the same members."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from scamac_scale import IngestConfig, ingest
from scamac_scale.sources import open_source
from scamac_scale.train.clusters.landmarks import label_landmarks
from scamac_scale.train.clusters.selection import choose_landmarks
from scamac_scale.train.clusters.targets import ConsensusTarget
from scamac_scale.train.fit import build_network
from scamac_scale.train.run.watch import Watch
from scamac_scale.train.start import fit_input_scale, start_from_pca
from tests.support.settings import QUICK

if TYPE_CHECKING:
    from pathlib import Path

BYTES_SPOILT = 32
CONFIG = replace(
    QUICK,
    start=replace(QUICK.start, landmark_cells=80, components=(5,)),
    train=replace(QUICK.train, checkpoint_every_s=1e-9),
)


@pytest.mark.parametrize("before", ["same", "other members", "spoilt codes", "odd codes", "lost codes", "longer"])
@pytest.mark.slow
def test_a_sweep_in_flight_is_taken_up_where_members_and_codes_are_as_they_were(
    tiny_atlas: Path, tmp_path: Path, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scamac_scale.sweep.TICK_BATCHES", 2)
    monkeypatch.setattr("scamac_scale.train.clusters.landmarks.SWEEP_CELLS", 32)
    store, path = ingest(tiny_atlas, tmp_path / "store.zarr", IngestConfig(n_genes=100)), tmp_path / "codes"
    saved: list[dict[str, Any] | None] = []
    assigned: list[str] = []
    monkeypatch.setattr("scamac_scale.train.clusters.landmarks.reach", assigned.append)
    watch = Watch(CONFIG.train, write=saved.append)
    with open_source(store, loader=CONFIG.loader) as source:
        network = build_network(source, CONFIG)
        fit_input_scale(network, source, CONFIG.input)
        start_from_pca(network, source, 1000, CONFIG.seed)

        def label() -> str:
            landmarks = choose_landmarks(source, network, CONFIG.start, CONFIG.n_clusters, CONFIG.seed)
            target = label_landmarks(landmarks, network, source, CONFIG, path=path, watch=watch)
            assert isinstance(target, ConsensusTarget)
            target.close()
            return target.table.known_digest

        whole = label()
        flight = saved[1]
        assert flight is not None
        assert flight["label"] == "members"
        codes = path.read_bytes()
        spoilt = bytes(int(code == 0) for code in codes[:BYTES_SPOILT]) + codes[BYTES_SPOILT:]
        path.write_bytes(
            {
                "spoilt codes": spoilt,
                "odd codes": b"\xff" + codes[1:],
                "lost codes": codes[:9],
                "longer": codes + b"x",
            }.get(before, codes)
        )
        if before == "other members":
            flight["parts"][0]["members"] = "others"
        watch.in_flight = flight
        n_all = len(assigned)
        assert label() == whole
        is_taken_up = len(assigned) - n_all < n_all  # what is done is not done again
        assert is_taken_up is (before in ("same", "longer"))
