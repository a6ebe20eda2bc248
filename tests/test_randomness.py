import subprocess
import sys

import numpy as np
import torch

from scamac_scale.randomness import integer_seed, numpy_generator, torch_generator


def test_streams_depend_on_seed_purpose_and_keys() -> None:
    streams = [(0, "noise", 1, 2), (1, "noise", 1, 2), (0, "bank", 1, 2), (0, "noise", 2, 1), (0, "noise", 1)]
    draws = {tuple(numpy_generator(*stream).integers(0, 2**31, 4)) for stream in streams}
    assert len(draws) == len(streams)
    assert len({integer_seed(*stream) for stream in streams}) == len(streams)
    assert all(0 <= integer_seed(*stream) < 2**31 for stream in streams)


def test_the_same_keys_give_the_same_stream() -> None:
    np.testing.assert_array_equal(numpy_generator(3, "bank", 5).random(4), numpy_generator(3, "bank", 5).random(4))
    draws = [torch.rand(4, generator=torch_generator(3, "noise", 5, 1)) for _ in range(2)]
    assert torch.equal(*draws)


def test_streams_are_the_same_in_another_process() -> None:
    code = "from scamac_scale.randomness import integer_seed; print(integer_seed(3, 'bank', 5))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == integer_seed(3, "bank", 5)
