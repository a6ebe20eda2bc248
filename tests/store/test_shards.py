"""A shard writer goes on from any state to the same files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scamac_scale.durable.plain import digest_of_file
from scamac_scale.store.layout import Sizes
from scamac_scale.store.shards import ShardWriter
from tests.support.failing import contents

if TYPE_CHECKING:
    from pathlib import Path

SIZES = Sizes(chunk_values=8, shard_values=32)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 200),
    stop=st.integers(0, 200),
    n_vain=st.integers(0, 80),
    shuffle=st.sampled_from([None, "shuffle"]),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
)
def test_a_writer_goes_on_from_any_state(
    tmp_path_factory: pytest.TempPathFactory, n: int, stop: int, n_vain: int, shuffle: str | None, dtype: type
) -> None:
    folder, stop = tmp_path_factory.mktemp("shards"), min(stop, n)
    values = np.random.default_rng(n).integers(0, 200, n).astype(dtype)
    whole = ShardWriter(folder / "whole", np.dtype(dtype), SIZES, shuffle)
    whole.append(values)
    whole.finish()
    first = ShardWriter(folder / "parts", np.dtype(dtype), SIZES, shuffle)
    first.append(values[:stop])
    state = {key: value.copy() for key, value in first.state().items()}
    first.append(np.full(n_vain, 7, dtype))  # written, but not known of
    first.close()
    second = ShardWriter(folder / "parts", np.dtype(dtype), SIZES, shuffle)
    assert second.restore(state)
    assert second.n_values == stop
    second.append(values[stop:])
    second.finish()
    assert contents(folder / "parts") == contents(folder / "whole")
    shards = [folder / "whole" / "c" / str(number) for number in range(len(whole.digests))]
    assert second.digests == whole.digests == [digest_of_file(shard) for shard in shards]


@pytest.mark.parametrize("number", [0, 1])
def test_a_shard_that_is_gone_or_too_short_is_seen(tmp_path: Path, number: int) -> None:
    writer = ShardWriter(tmp_path / "x", np.dtype(np.uint8), SIZES, None)
    writer.append(np.arange(50, dtype=np.uint8))
    state = writer.state()
    writer.close()
    (tmp_path / "x" / "c" / str(number)).write_bytes(b"1") if number else (tmp_path / "x" / "c" / "0").unlink()
    assert not ShardWriter(tmp_path / "x", np.dtype(np.uint8), SIZES, None).restore(state)
