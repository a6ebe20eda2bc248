"""Settings of a file that anybody may have written: every key known, every value of the type of its field."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import pytest

from scamac_scale.config import ScamacConfig, TrainConfig
from scamac_scale.config.strict import from_plain
from scamac_scale.errors import ConfigError


def plain() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(asdict(ScamacConfig())))
    return found


def test_settings_come_back_as_they_were() -> None:
    assert from_plain(ScamacConfig, plain()) == ScamacConfig()
    other = replace(ScamacConfig(), n_clusters=7, train=TrainConfig(checkpoint_every_s=float("inf")))
    assert from_plain(ScamacConfig, asdict(other)) == other


def test_what_is_missing_is_refused_unless_it_may_be() -> None:
    with pytest.raises(ConfigError, match="the settings: there is no 'n_clusters'"):
        from_plain(ScamacConfig, {"seed": 3})
    assert from_plain(ScamacConfig, {"seed": 3, "model": {"latent_width": 5}}, is_partial=True).model.latent_width == 5


@pytest.mark.parametrize(
    "value", [None, 3, 2.5, True, "text", [], [[]], {}, {"x": 1}, float("nan"), 10**30, [None], [{}]]
)
@pytest.mark.slow
def test_every_setting_refuses_what_is_not_of_its_type(value: Any) -> None:
    """A config of this very value is made, or there is a ConfigError: nothing else, whatever stands where."""

    def paths(part: dict[str, Any], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        return [
            path
            for key, inner in part.items()
            for path in ([(*before, key)] + (paths(inner, (*before, key)) if isinstance(inner, dict) else []))
        ]

    for path in paths(plain()):
        values = plain()
        part = values
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        config = None
        with suppress(ConfigError):
            config = from_plain(ScamacConfig, values)
        assert config is None or json.loads(json.dumps(asdict(config))) == values, path
