from __future__ import annotations

from scamac_scale.losses.similarity import SIMILARITY_LOSSES
from tests.contracts.similarity_loss import SimilarityLossContract


class TestDirect(SimilarityLossContract):
    name = "direct"


class TestGram(SimilarityLossContract):
    name = "gram"


class TestAuto(SimilarityLossContract):
    name = "auto"


def test_every_loss_has_its_contract_test() -> None:
    assert {case.name for case in SimilarityLossContract.__subclasses__()} == set(SIMILARITY_LOSSES)
