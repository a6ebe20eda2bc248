from typing import Any

import pytest

from scamac_scale.cli.show import MAX_ROWS, print_json, print_result
from scamac_scale.errors import OutputError


def shown(capsys: pytest.CaptureFixture[str], result: dict[str, Any]) -> list[str]:
    print_result("title", result)
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("n_cells", 1234567, "cells 1,234,567"),
        ("ari", 0.123456, "ARI 0.1235"),
        ("seed", 20240701, "seed 20240701"),
        ("is_finished", True, "finished yes"),
        ("is_denoised", False, "denoised no"),
        ("target_sum", None, "target sum -"),
        ("disk_bytes", 999, "disk 999 bytes"),
        ("disk_bytes", 66_400, "disk 66.4 kB"),
        ("peak_memory_bytes", 1_230_000_000, "peak memory 1.23 GB"),
        ("disk_bytes", 2.5e15, "disk 2,500 TB"),
        ("seconds", 12345.6, "seconds 12,346"),
        ("columns", ["a", "b"], "columns a, b"),
        ("columns", [], "columns -"),
        ("seconds_by_part", {"start": 0.5, "n_steps": 7}, "seconds by part start 0.5, steps 7"),
        ("path", "[red]x[/red]", "path [red]x[/red]"),
    ],
)
def test_a_value_reads_as_a_person_writes_it(
    key: str, value: object, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(capsys, {key: value}) == ["title", line]


def test_a_list_of_dicts_is_a_table_and_a_long_one_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"cluster": str(index), "cells": 10} for index in range(MAX_ROWS + 5)]
    lines = shown(capsys, {"kind": "result", "clusters": rows})
    assert lines[2:5] == ["clusters", "cluster cells", "0 10"]
    assert len([line for line in lines if line.endswith(" 10")]) == MAX_ROWS
    assert lines[-1] == "and 5 more, which --json lists"


def test_lines_to_type_come_last_and_are_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    command = "scamac-scale train --store " + "x" * 200
    lines = shown(capsys, {"next": [command], "scores": [{"ari": 1.0, "cells_per_s": 5}]})
    assert lines[-2:] == ["What to type next", command]
    assert "ARI cells/s" in lines


def test_each_warning_is_a_line_and_a_long_list_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, {"ilisi": 1.5, "warnings": [f"cluster [{index}] is odd" for index in range(MAX_ROWS + 2)]})
    assert lines[1] == "iLISI 1.5"
    assert lines[2:4] == ["warning: cluster [0] is odd", "warning: cluster [1] is odd"]
    assert lines[-1] == "and 2 more warnings, which --json lists"
    assert shown(capsys, {"ari": 1.0, "warnings": []}) == ["title", "ARI 1"]


def test_json_that_cannot_be_written_is_an_error_of_the_output() -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        print_json({}, "/dev/null/scores.json")
