from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scamac_scale.errors import ConfigError, NumericalError
from scamac_scale.losses.total import balanced_weight, gradient_norm, weighted_total
from tests.support.mathematics import LAWS, normal


def test_gradient_norm_is_that_of_the_gradient_and_keeps_the_graph() -> None:
    w = normal(1, 4).requires_grad_()
    z = 2 * w
    loss = (3 * z).sum()
    assert gradient_norm(loss, z) == pytest.approx(3 * math.sqrt(4))
    assert w.grad is None
    loss.backward()
    assert w.grad is not None


def test_gradient_norm_is_zero_where_a_term_does_not_depend() -> None:
    z, other = normal(1, 4).requires_grad_(), normal(2, 4).requires_grad_()
    assert gradient_norm(other.sum(), z) == 0.0
    assert gradient_norm(torch.zeros(()), z) == 0.0


@LAWS
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(0.1, 100))
def test_weighted_norm_is_the_wanted_multiple_of_the_reference(reference: float, norm: float, ratio: float) -> None:
    assert balanced_weight(reference, norm, ratio) * norm == pytest.approx(ratio * reference)


@pytest.mark.parametrize("norm", [0.0, 5e-324])
def test_a_term_without_gradient_gets_no_weight(norm: float) -> None:
    assert balanced_weight(1.0, norm, 10.0) == 0.0


@pytest.mark.parametrize("norms", [(math.nan, 1.0), (1.0, math.inf)])
def test_norms_that_are_not_finite_are_refused(norms: tuple[float, float]) -> None:
    with pytest.raises(NumericalError, match="finite"):
        balanced_weight(*norms, 10.0)


def test_total_adds_the_weighted_terms() -> None:
    terms = {"a": torch.tensor(2.0, requires_grad=True), "b": torch.tensor(3.0)}
    total = weighted_total(terms, {"a": 1.0, "b": 0.5, "unused": 7.0})
    assert float(total.detach()) == 3.5
    total.backward()
    assert terms["a"].grad == 1.0


def test_missing_weights_and_no_terms_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="no weight for the terms b"):
        weighted_total({"b": torch.zeros(())}, {"a": 1.0})
    with pytest.raises(ConfigError, match="no terms"):
        weighted_total({}, {})
