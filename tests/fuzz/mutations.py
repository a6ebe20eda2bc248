"""What happens to a file or folder: one change, drawn from a seed.

A change works on a copy and says in a sentence what it did. Those that lose something (a chunk, the end of a file) are marked,
for then even what anndata reads is not what was written.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import yaml

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

ODD_NUMBERS = (-1, 0, 1, 2**31, 2**63 - 1, 2**64, 2**70, -(2**63), 0.5, -0.5, 1e300, float("nan"), float("inf"))
ODD_TEXTS = (
    "",
    "nan",
    "../../../etc/passwd",
    "\x1b[31m\x07",
    "a\nerror: b",
    "\ud7ff",
    "x" * 100_000,
    "csr_matrix",
    "array",
    "99.0",
)
ODD_TYPES = (np.int8, np.uint64, np.float16, np.complex64, "S3", np.bool_, ">f8", "i8")


@dataclass(frozen=True)
class Change:
    """What was done.

    Attributes
    ----------
    what
        In words.
    is_loss
        Whether values that were written are gone, so that only the undamaged result is right.
    """

    what: str
    is_loss: bool = False


def odd_leaf(rng: random.Random) -> Any:
    """Draw something that JSON or YAML can hold and that hardly belongs anywhere."""
    deep: Any = []
    for _ in range(3000):
        deep = [deep]
    return rng.choice(
        [*ODD_NUMBERS, *ODD_TEXTS, None, True, False, [], {}, [[]], {"a": {"b": 1}}, deep, list(range(2000))]
    )


# Bytes of one file


def flip_bit(path: Path, rng: random.Random) -> Change:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content))
    content[at] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return Change(f"one bit of byte {at} of {path.name} is flipped")


def spoil(path: Path, rng: random.Random) -> Change:
    """Overwrite a stretch with zeros or noise."""
    content = bytearray(path.read_bytes())
    at, length = rng.randrange(len(content)), rng.choice([1, 4, 16, 256])
    new = bytes(length) if rng.random() < 0.5 else rng.randbytes(length)
    content[at : at + length] = new[: len(content) - at]
    path.write_bytes(content)
    return Change(f"{length} bytes of {path.name} from {at} on are overwritten")


def cut(path: Path, rng: random.Random) -> Change:
    """Cut a file short."""
    size = path.stat().st_size
    kept = rng.choice([0, 1, size // 2, max(0, size - 1), rng.randrange(size)])
    os.truncate(path, kept)
    return Change(f"{path.name} ends after {kept} of {size} bytes", is_loss=True)


def lengthen(path: Path, rng: random.Random) -> Change:
    """Append bytes."""
    with path.open("ab") as file:
        file.write(rng.randbytes(rng.choice([1, 100, 5000])))
    return Change(f"bytes are appended to {path.name}")


def lose(path: Path, rng: random.Random) -> Change:
    """Take a file away."""
    path.unlink()
    return Change(f"{path.name} is gone", is_loss=True)


def replace_by_other_kind(path: Path, rng: random.Random) -> Change:
    """Put a folder, a pipe, a link to nowhere or a link to another file where a file should be."""
    outside = path.parents[len(path.parents) - 2] / "etc" / "hostname"
    kinds: dict[str, Callable[[], object]] = {
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a link to itself": lambda: path.symlink_to(path),
        "a link out": lambda: path.symlink_to(outside),
        "an endless device": lambda: path.symlink_to("/dev/zero"),
    }
    kind = rng.choice(list(kinds))
    path.unlink()
    kinds[kind]()
    return Change(f"{path.name} is {kind}", is_loss=True)


BYTES = (flip_bit, flip_bit, flip_bit, spoil, spoil, cut, lengthen)
FILES = (*BYTES, lose, replace_by_other_kind)


def change_a_file(folder: Path, rng: random.Random) -> Change:
    """Damage one file of a folder."""
    path = rng.choice([file for file in files_of(folder) if file.stat().st_size])
    change = rng.choice(FILES)(path, rng)
    return Change(f"{path.parent.relative_to(folder)}: {change.what}", change.is_loss)


def exchange_files(folder: Path, rng: random.Random) -> Change:
    """Let one file have the content of another."""
    source, target = rng.sample([file for file in files_of(folder) if file.stat().st_size], 2)
    target.write_bytes(source.read_bytes())
    return Change(f"{target.relative_to(folder)} has the content of {source.relative_to(folder)}")


def files_of(folder: Path) -> list[Path]:
    """Files below a folder, in a fixed order."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


# JSON, YAML, and tables


def change_plain(folder: Path, rng: random.Random) -> Change:
    """Change one value of one JSON or YAML file, or its shape as a whole."""
    path = rng.choice([file for file in files_of(folder) if file.suffix in (".json", ".yaml")])
    is_json = path.suffix == ".json"
    content = json.loads(path.read_text()) if is_json else yaml.safe_load(path.read_text())
    places = list(_places(content))
    if not places or rng.random() < 0.05:
        content, where = odd_leaf(rng), "the whole"
    else:
        holder, key = rng.choice(places)
        where = repr(key)
        how = rng.random()
        if how < 0.2 and isinstance(holder, dict):
            del holder[key]
            where += " is gone"
        elif how < 0.3 and isinstance(holder, dict):
            holder[rng.choice(["json", "config", "devices", "store", "run", "nobody_knows", "__class__"])] = odd_leaf(
                rng
            )
            where += " has a new neighbour"
        elif how < 0.4 and isinstance(holder[key], int | float):
            holder[key] = holder[key] * rng.choice([-1, 0, 2, 10**6, 1e-9]) + rng.choice([0, 1])
        else:
            holder[key] = odd_leaf(rng)
    try:
        path.write_text(json.dumps(content) if is_json else yaml.safe_dump(content), errors="surrogatepass")
    except RecursionError:  # deeper than the writer can go: written by hand
        path.write_text("[" * 100_000)
        where = "the whole is a hundred thousand lists"
    return Change(f"{path.relative_to(folder)}: {where}")


def _places(content: Any, limit: int = 400) -> list[tuple[Any, Any]]:
    """(holder, key) of values in nested plain data."""
    found: list[tuple[Any, Any]] = []
    waiting = [content]
    while waiting and len(found) < limit:
        holder = waiting.pop(0)
        keys = holder if isinstance(holder, dict) else range(min(len(holder), 5)) if isinstance(holder, list) else ()
        for key in keys:
            found.append((holder, key))
            waiting.append(holder[key])
    return found


def change_table(folder: Path, rng: random.Random) -> Change:
    """Change one field of one CSV file."""
    path = rng.choice([file for file in files_of(folder) if file.suffix == ".csv"])
    lines = path.read_bytes().split(b"\n")
    at = rng.randrange(len(lines))
    fields = lines[at].split(b",")
    fields[rng.randrange(len(fields))] = rng.choice(
        [b"word", b"nan", b"\xff\xfe", b"\x00", b'"', b"1e999", b"=cmd", b"9" * 5000]
    )
    lines[at] = b",".join(fields) if rng.random() < 0.9 else b""
    path.write_bytes(b"\n".join(lines))
    return Change(f"{path.relative_to(folder)}: line {at} is changed")


def change_text(folder: Path, rng: random.Random) -> Change:
    """Change one word of one file of text, packed or not, or one of its lines."""
    path = rng.choice(files_of(folder))
    is_packed = path.suffix == ".gz"
    lines = (gzip.decompress(path.read_bytes()) if is_packed else path.read_bytes()).split(b"\n")
    at = rng.choice([0, 1, 2, rng.randrange(len(lines)), rng.randrange(len(lines)), len(lines) - 2])
    how = rng.choice(["word", "word", "word", "twice", "gone", "blank", "comment", "end"])
    if how == "word":
        words = re.split(rb"([ \t])", lines[at])
        odd = [
            b"0",
            b"-1",
            b"1.5",
            b"1e3",
            b"1_0",
            b"0x10",
            b"1d2",
            b"+3",
            b"\xd9\xa3",
            b"nan",
            b"inf",
            b"99999999999999999999",
            b"2147483648",
            b"",
            b"x",
            b"\xff",
            b"\x00",
            b'"',
            b"9" * 70_000,
        ]
        words[rng.randrange(len(words))] = rng.choice(odd)
        lines[at] = b"".join(words)
    elif how == "twice":
        lines.insert(at, lines[at])
    elif how == "gone":
        del lines[at]
    elif how == "end":
        lines[at] += b"\r"
    else:
        lines.insert(at, b"" if how == "blank" else b"% said")
    content = b"\n".join(lines)
    path.write_bytes(gzip.compress(content, mtime=0) if is_packed else content)
    return Change(f"{path.name}: line {at}: {how}")


def change_header(folder: Path, rng: random.Random) -> Change:
    """Change what a safetensors file says of its tensors."""
    path = rng.choice([file for file in files_of(folder) if file.suffix == ".safetensors"])
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = rng.choice(sorted(header))
    part = rng.choice(["dtype", "shape", "data_offsets", "name", "length"])
    if part == "length":
        new = rng.choice([0, 2**63, 2**64 - 1, length + 8, 100_000_001])
        path.write_bytes(new.to_bytes(8, "little") + content[8:])
        return Change(f"{path.name}: the header is said to have {new} bytes")
    if part == "name":
        header[rng.choice(["other", "", "centers"])] = header.pop(name)
    elif part == "dtype":
        header[name]["dtype"] = rng.choice(["F64", "F16", "I64", "BOOL", "F8_E4M3", "X"])
    else:
        values = list(header[name][part]) or [0]
        values[rng.randrange(len(values))] = rng.choice([0, 1, -1, 2**40, 2**63])
        header[name][part] = values
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + length :])
    return Change(f"{path.name}: {part} of {name!r} is changed")


# HDF5


def change_hdf5(path: Path, rng: random.Random) -> Change:
    """Change one thing in the tree of an HDF5 file."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(sorted(names))
        item = file[name]
        changes = [_change_attribute, _remove_item, _replace_item]
        if isinstance(item, h5py.Dataset) and item.shape:
            changes += [_change_values, _change_values, _change_values, _change_type, _change_shape]
        what = rng.choice(changes)(file, name, rng)
    return Change(f"{name}: {what}")


def _change_attribute(file: h5py.File, name: str, rng: random.Random) -> str:
    attributes = file[name].attrs
    if not len(attributes):
        attributes["encoding-type"] = "nobody"
        return "it has an encoding that nobody knows"
    key = rng.choice(sorted(attributes))
    if rng.random() < 0.3:
        del attributes[key]
        return f"attribute {key} is gone"
    new = rng.choice(
        [-1, 2**63, "csc_matrix", "dataframe", "99.0", "", b"\xff", [1, 2, 3], [2**62, 2**62], np.float64("nan"), 1.5]
    )
    attributes[key] = new
    return f"attribute {key} is {new!r}"


def _remove_item(file: h5py.File, name: str, rng: random.Random) -> str:
    del file[name]
    return "it is gone"


def _replace_item(file: h5py.File, name: str, rng: random.Random) -> str:
    del file[name]
    kind = rng.choice(["group", "link out", "circle", "scalar", "named type", "object references", "nothing"])
    if kind == "group":
        file.create_group(name)
    elif kind == "link out":
        file[name] = h5py.ExternalLink("/etc/hostname", "/x")
    elif kind == "circle":
        file[name] = h5py.SoftLink(f"/{name}")
    elif kind == "scalar":
        file[name] = rng.choice([1.5, "text", 2**63])
    elif kind == "named type":
        file[name] = np.dtype([("a", "f4"), ("b", "i8")])
    elif kind == "object references":
        file.create_dataset(name, data=[file.ref] * 3, dtype=h5py.ref_dtype)
    else:
        file[name] = h5py.Empty("f4")
    return f"it is now a {kind}"


def _rewrite(file: h5py.File, name: str, values: Any) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    file[name] = values
    for key, value in attributes.items():
        file[name].attrs[key] = value


def _change_values(file: h5py.File, name: str, rng: random.Random) -> str:
    values = file[name][()]
    at = rng.randrange(values.size) if values.size else 0
    if not values.size:
        return _remove_item(file, name, rng)
    if values.dtype.kind == "O":
        new: Any = rng.choice(ODD_TEXTS)
        values.flat[at] = new
    elif rng.random() < 0.2:
        return _shuffle(file, name, rng)
    else:
        new = rng.choice(ODD_NUMBERS)
        with np.errstate(all="ignore"):
            values.flat[at] = (
                np.array(new).astype(values.dtype) if abs(new) < 2**63 or values.dtype.kind == "f" else 255
            )
    _rewrite(file, name, values)
    return f"value {at} is {new!r:.40}"


def _shuffle(file: h5py.File, name: str, rng: random.Random) -> str:
    values = file[name][()]
    _rewrite(file, name, np.ascontiguousarray(values[::-1]))
    return "its values are in reverse"


def _change_type(file: h5py.File, name: str, rng: random.Random) -> str:
    values = file[name][()]
    kind = rng.choice(ODD_TYPES)
    if values.dtype.kind in "OSV":
        values = np.arange(values.size).reshape(values.shape)
    with np.errstate(all="ignore"):
        _rewrite(file, name, values.astype(kind))
    return f"its values are of type {np.dtype(kind)}"


def _change_shape(file: h5py.File, name: str, rng: random.Random) -> str:
    values = file[name][()]
    kind = rng.choice(["shorter", "longer", "two-dimensional", "empty", "promised"])
    if kind == "promised":
        attributes = dict(file[name].attrs)
        del file[name]
        shape = tuple(rng.choice([2**40, size, 2**20]) for size in values.shape)
        file.create_dataset(name, shape=shape, dtype="f4", chunks=tuple(min(size, 64) for size in shape))
        for key, value in attributes.items():
            file[name].attrs[key] = value
        return f"it promises {shape}"
    new = {
        "shorter": values[:-1],
        "longer": np.concatenate([values, values[:1]]),
        "two-dimensional": values[None],
        "empty": values[:0],
    }[kind]
    _rewrite(file, name, new)
    return f"it is {kind}"


# zarr


def change_zarr(folder: Path, rng: random.Random) -> Change:
    """Change what a zarr folder says of an array, or its chunks."""
    if rng.random() < 0.5:
        return _change_chunk(folder, rng)
    path = rng.choice(
        [file for file in files_of(folder) if file.name in ("zarr.json", ".zarray", ".zattrs", ".zmetadata")]
    )
    content = json.loads(path.read_text())
    known = [
        key
        for key in ("shape", "data_type", "dtype", "fill_value", "chunk_grid", "chunks", "codecs", "attributes")
        if key in content
    ]
    key = rng.choice(known or sorted(content) or ["shape"])
    if key in ("shape", "chunks") and isinstance(content[key], list) and content[key] and rng.random() < 0.7:
        at = rng.randrange(len(content[key]))
        content[key][at] = rng.choice([0, 1, -1, 2**40, 2**63, 2**70, content[key][at] + 1, content[key][at] * 2])
    else:
        content[key] = odd_leaf(rng)
    try:
        path.write_text(json.dumps(content), errors="surrogatepass")
    except RecursionError:
        path.write_text("[" * 100_000)
    return Change(
        f"{path.relative_to(folder)}: {key} is changed", is_loss=key in ("shape", "chunks", "chunk_grid", "fill_value")
    )


def _change_chunk(folder: Path, rng: random.Random) -> Change:
    chunks = [file for file in files_of(folder) if file.name[0].isdigit()]
    path = rng.choice(chunks)
    change = rng.choice([lose, lose, cut, flip_bit, replace_by_other_kind])(path, rng)
    return Change(f"{path.parent.relative_to(folder)}: {change.what}", change.is_loss)
