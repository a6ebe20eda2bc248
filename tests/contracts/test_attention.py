from __future__ import annotations

from scamac_scale.ops.attention import SPATIAL_FORMS
from tests.contracts.attention import AttentionContract


class TestBatch(AttentionContract):
    name = "batch"


class TestLandmark(AttentionContract):
    name = "landmark"


class TestAtlas(AttentionContract):
    name = "atlas"


def test_every_form_has_its_contract_test() -> None:
    assert {case.name for case in AttentionContract.__subclasses__()} == set(SPATIAL_FORMS)
