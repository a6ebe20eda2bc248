"""Files of strangers: what is no plain file is not opened, what is no plain data is refused, and nothing of it takes memory or time."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path

import pytest

from scamac_scale.durable import plain
from scamac_scale.durable.plain import (
    check_tree,
    digest_of_file,
    parse_json,
    parse_json_list,
    parse_yaml,
    read_json,
    read_plain,
    read_sealed,
    read_yaml,
    sealed,
    sealed_yaml,
    set_aside,
)

CONTENT = {"name": "ü", "list": [1, 2.5, None, True], "inner": {"deep": "0" * 64}}


def make_odd(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "link to a pipe":
        os.mkfifo(path.with_name("pipe"))
        path.symlink_to("pipe")
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket must be short
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
        os.chdir(here)


ODD = ("pipe", "link", "dangling link", "link to a pipe", "device", "socket")


@pytest.mark.parametrize("kind", [*ODD, "folder"])
def test_what_is_no_plain_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    make_odd(tmp_path / "odd", kind)
    for read in (read_plain, digest_of_file, read_json, read_sealed, read_yaml):
        with pytest.raises(ValueError, match=r"it is a .*, not a file"):
            read(tmp_path / "odd")


@pytest.mark.parametrize("kind", ODD)
def test_a_tree_with_anything_else_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "run" / "a" / "b").mkdir(parents=True)
    (tmp_path / "run" / "a" / "b" / "file").write_text("x")
    check_tree(tmp_path / "run")
    make_odd(tmp_path / "run" / "a" / "b" / "odd", kind)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "run" / "a" / "b"))):
        check_tree(tmp_path / "run")
    check_tree(tmp_path / "run", lambda name: name != "a")


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)  # a hole
    for read in (read_plain, read_json, read_yaml):
        with pytest.raises(ValueError, match="more than"):
            read(tmp_path / "huge")


@pytest.mark.parametrize("character", ["/dev/zero", "/dev/full"])
def test_a_device_is_no_file(character: str) -> None:
    with pytest.raises(ValueError, match="a device"):
        read_plain(Path(character))


REFUSED = {
    "nothing": b"",
    "a number": b"3",
    "a list": b"[]",
    "a byte that is not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a null byte": b"{\x00}",
    "lists without end": b'{"a": ' + b"[" * 10**5,
    "lists in lists": b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}",
    "names in names": b'{"a": ' * 200 + b"1" + b"}" * 200,
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "a number beyond all": b'{"a": 1e400}',
    "a whole number beyond all": b'{"a": 18446744073709551616}',
    "a whole number of many digits": b'{"a": ' + b"9" * 10**5 + b"}",
    "digits without end": b'{"a": 0.' + b"1" * 10**5 + b"}",
    "a name twice": b'{"a": 1, "a": 2}',
    "half of a character": b'{"a": "\\ud800"}',
    "half of a character in a name": b'{"\\ud800": 1}',
    "very many values": b'{"a": [' + b"1," * (plain.MAX_VALUES + 1) + b"1]}",
}


@pytest.mark.parametrize("name", REFUSED)
def test_json_of_a_stranger_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as raised:
        parse_json(REFUSED[name])
    assert type(raised.value) is ValueError  # one clause, and nothing of the parser's
    assert len(str(raised.value)) < 200


def test_json_of_ours_is_read() -> None:
    assert parse_json(json.dumps(CONTENT)) == CONTENT
    assert parse_json(b'{"a": 18446744073709551615, "b": -Infinity}', is_finite=False)["a"] == 2**64 - 1
    assert parse_json_list(b"[1, {}]") == [1, {}]
    with pytest.raises(ValueError, match="a dict where a list"):
        parse_json_list(b"{}")


@pytest.mark.slow
def test_every_flip_of_a_bit_in_a_sealed_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(sealed(CONTENT))
    assert read_sealed(path) == CONTENT
    content = path.read_bytes()
    for at in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"\w"):
            read_sealed(path)


@pytest.mark.parametrize("seal", ["", "0" * 64, None, 3])
def test_a_seal_that_is_none_is_refused(tmp_path: Path, seal: object) -> None:
    (tmp_path / "file.json").write_text(json.dumps({**CONTENT, plain.SEAL: seal}))
    with pytest.raises(ValueError, match=r"seal|written"):
        read_sealed(tmp_path / "file.json")


LAUGHS = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "a: &a [*a]",
        "a: !!python/object/apply:os.system [ls]",
        "a: !secret x",
        "a: 1\na: 2",
        "a: " + "[" * 5000,
        "- a",
        "",
        "a: 2001-99-99",
        "? [a, b]\n: 1",
        "a: \x07",
        "a: '",
        "a" * plain.MAX_YAML_BYTES + ": 1",
    ],
)
def test_yaml_of_a_stranger_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as raised:
        parse_yaml(text.encode())
    assert len(str(raised.value)) < 600


def test_yaml_is_sealed(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(sealed_yaml({"seed": 3, "inner": {"a": [1.5, None]}}))
    assert read_yaml(path) == {"seed": 3, "inner": {"a": [1.5, None]}}
    path.write_text(path.read_text().replace("3", "4"))
    with pytest.raises(ValueError, match="not what was written"):
        read_yaml(path)
    path.write_text("seed: 4\n")  # of somebody's own
    assert read_yaml(path) == {"seed": 4}
    path.write_bytes(b"seed: \xff")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_yaml(path)


def test_what_is_set_aside_stays_when_another_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for content in ("first", "second"):
        path.write_text(content)
        assert set_aside(path).read_text() == content
        path.unlink(missing_ok=True)
    assert [file.name for file in tmp_path.iterdir()] == ["run.json.damaged"]


def test_nothing_of_the_package_unpickles_what_a_file_holds() -> None:
    """A pickle runs code: tensors are read as weights only, arrays without pickles, YAML by its safe loader."""
    package = Path(plain.__file__).parents[1]
    found = []
    for path in sorted(package.rglob("*.py")):
        text = path.read_text()
        name = path.relative_to(package).as_posix()
        if name.startswith("workers/"):  # from a client of dask, who may run anything there, and not from a file
            text = text.replace("pickle.loads(", "")
        found += [f"{name}: {word}" for word in re.findall(r"\b(?:joblib|dill|cloudpickle|shelve|marshal)\b", text)]
        found += [
            f"{name}: {call}"
            for call in re.findall(r"pickle\.(?:load\w*|Unpickler)|read_pickle|allow_pickle=True", text)
        ]
        found += [f"{name}: {call}" for call in re.findall(r"yaml\.(?:load|unsafe_load|full_load)\(", text)]
        found += [
            f"{name}: {call}" for call in re.findall(r"torch\.load\([^\n]*", text) if "weights_only=True" not in call
        ]
        found += [
            f"{name}: {call}" for call in re.findall(r"np\.load\([^\n]*", text) if "allow_pickle=False" not in call
        ]
        if path.relative_to(package).parts[0] in READ_PLAIN and name not in READERS:
            found += [f"{name}: {call}" for call in re.findall(r"json\.loads?\([^\n]*", text)]
    assert found == []


READ_PLAIN = {"cli", "durable", "fitted.py", "infer", "inspection.py", "store", "train"}
"""Parts that read files which came as a folder, of a model, a run or a store."""
READERS = {"durable/plain.py", "store/record.py"}
"""Their modules that may read JSON on their own: the home of that, and a writer that reads what it has just written."""
