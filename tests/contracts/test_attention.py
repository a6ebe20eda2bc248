from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scamac_scale.errors import ShapeError
from scamac_scale.ops.attention import SPATIAL_FORMS
from tests.contracts.attention import AttentionContract
from tests.support.attention import attention_by_blocks
from tests.support.mathematics import normal

if TYPE_CHECKING:
    import torch


class TestBatch(AttentionContract):
    name = "batch"


class TestLandmark(AttentionContract):
    name = "landmark"


class TestSumOfParts(AttentionContract):
    name = "parts"

    def attend(self, *tensors: torch.Tensor) -> torch.Tensor:
        return attention_by_blocks(*tensors)


@pytest.mark.parametrize("form", SPATIAL_FORMS)
def test_wrong_shapes_of_the_cells_themselves_are_named(form: str) -> None:
    q, k, v, own_k, own_v = (normal(index, 3, n, 4) for index, n in enumerate((7, 5, 5, 7, 7)))
    with pytest.raises(ShapeError, match="both or neither"):
        SPATIAL_FORMS[form](q, k, v, own_k)
    with pytest.raises(ShapeError, match="shape of q"):
        SPATIAL_FORMS[form](q, k, v, own_k[:, :2], own_v[:, :2])


def test_every_form_has_its_contract_test() -> None:
    assert {case.name for case in AttentionContract.__subclasses__()} == {*SPATIAL_FORMS, "parts"}
