"""Files that somebody else may have written: opened only where they are plain files, and read as bounded plain data.

The one home for reading the JSON and YAML of a store, a model, a run, a journal. What comes from here is dicts, lists, text,
numbers, booleans and None, of a size and depth that no later step has to fear. Whatever is wrong is a ValueError with one clause
that says what; what the system says stays an OSError. Callers add the path and what to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from scamac_scale.durable.foreign import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MAX_BYTES = 2**26
"""Size of a JSON file that is read; those of the largest atlases are a tenth of it."""
MAX_VALUES = 2**21
"""Values in a JSON file: a value may take a hundred bytes of memory for two in the file."""
MAX_YAML_BYTES = 2**18
_YAML_SEAL = "# SHA-256 of all below: "
MAX_DEPTH = 32
"""Of dicts and lists in one another."""
MAX_WHOLE = 2**64
"""Whole numbers are smaller, whatever their sign."""
MAX_DIGITS = 400
SEAL = "sha256"
"""Key of a sealed JSON file: SHA-256 of its whole text, with zeros in place of this digest."""
DAMAGED = ".damaged"
"""Ends the name of a file that was set aside."""
_UNSEALED = "0" * 64
_BLOCK_BYTES = 2**20
_OWN_KINDS = {stat.S_IFLNK: "a link, which is not followed", stat.S_IFDIR: "a folder"}


def _sha256(content: bytes | str) -> str:
    return hashlib.sha256(
        content.encode() if isinstance(content, str) else content
    ).hexdigest()  # without NumPy: help comes at once


# ---------------------------------------------------------------------- files


def open_plain(path: Path) -> int:
    """Open a file for reading, if it is one: no link, pipe, socket or device is opened, whatever has its name.

    Returns
    -------
    int
        The handle; to be closed.

    Raises
    ------
    ValueError
        If it is something else.
    OSError
        If it is missing, or cannot be opened.
    """
    _check_mode(path.lstat().st_mode)  # first: to open a device may do something, and a pipe waits
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        _check_mode(os.fstat(handle).st_mode)
    except BaseException:
        os.close(handle)
        raise
    return handle


def size_of_plain(path: Path) -> int:
    """Bytes of a plain file; raises as `open_plain`."""
    about = path.lstat()
    _check_mode(about.st_mode)
    return about.st_size


def _check_mode(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ValueError(f"it is {kind_of(mode)}, not a file")


def kind_of(mode: int) -> str:
    """Say what a mode of `lstat` stands for, in words."""
    return (KINDS | _OWN_KINDS).get(stat.S_IFMT(mode), "no plain file")


def read_plain(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Read a plain file of at most `limit` bytes; raises as `open_plain`, and ValueError where it is larger."""
    with os.fdopen(open_plain(path), "rb") as file:
        content = file.read(limit + 1) if os.fstat(file.fileno()).st_size <= limit else b"." * (limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return content


def digest_of_file(path: Path) -> str:
    """SHA-256 of a plain file of any size, read a MiB at a time; raises as `open_plain`."""
    return sha256_of_file(path).hexdigest()


def sha256_of_file(path: Path) -> hashlib._Hash:
    """SHA-256 of a plain file, to go on with; as `digest_of_file`."""
    handle = open_plain(path)
    try:
        return sha256_of_handle(handle)
    finally:
        os.close(handle)


def sha256_of_handle(handle: int) -> hashlib._Hash:
    """SHA-256 of an open file from its start, a MiB at a time, whatever its place; raises OSError."""
    found, at = hashlib.sha256(), 0
    while block := os.pread(handle, _BLOCK_BYTES, at):
        found.update(block)
        at += len(block)
    return found


def check_tree(folder: Path, is_own: Callable[[str], bool] = lambda name: True) -> None:
    """Refuse a folder of somebody that holds anything but files and folders: nothing of it is opened.

    Parameters
    ----------
    folder
        Itself may be a link: whoever named it sees where it leads.
    is_own
        Tells by their names which entries of `folder` are looked at, with all below them.

    Raises
    ------
    ValueError
        Naming the first link, pipe, socket or device.
    OSError
        If a folder cannot be read.
    """
    for entry in _entries(folder, is_own):
        if not entry.is_file(follow_symlinks=False) and not entry.is_dir(follow_symlinks=False):
            mode = entry.stat(follow_symlinks=False).st_mode
            raise ValueError(f"{entry.path} is {kind_of(mode)}, and only files and folders belong there")


def _entries(folder: Path, is_own: Callable[[str], bool]) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder, following no link, without recursion."""
    with os.scandir(folder) as found:
        left = [entry for entry in found if is_own(entry.name)]
    while left:
        entry = left.pop()
        with suppress(FileNotFoundError):  # another job may be removing it
            yield entry
            if entry.is_dir(follow_symlinks=False):
                with os.scandir(entry.path) as found:
                    left += found


def bytes_below(folder: Path) -> int:
    """Bytes of all files in a folder, following no link."""
    sizes = (entry.stat(follow_symlinks=False) for entry in _entries(folder, lambda name: True))
    return sum(about.st_size for about in sizes if stat.S_ISREG(about.st_mode))


def set_aside(path: Path) -> Path:
    """Give a damaged file a second name, under which it stays when a sound one takes its place; tells that name."""
    aside = path.with_name(f"{path.name}{DAMAGED}")
    aside.unlink(missing_ok=True)
    try:
        os.link(path, aside, follow_symlinks=False)
    except OSError:  # not every file system has second names
        path.replace(aside)
    return aside


# ---------------------------------------------------------------------- JSON


def parse_json(content: bytes | str, *, is_finite: bool = True) -> dict[str, Any]:
    """Read the named values of a JSON text that anybody may have written.

    Parameters
    ----------
    content
        UTF-8.
    is_finite
        Refuse NaN and infinity, also as a number too large for a float.

    Returns
    -------
    dict
        At most `MAX_VALUES` values, `MAX_DEPTH` deep; keys without repeats, whole numbers below `MAX_WHOLE`, text that UTF-8 can hold.

    Raises
    ------
    ValueError
        Saying what is wrong, in one clause.
    """
    found = _parse(content, is_finite)
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__} where named values belong")
    return found


def parse_json_list(content: bytes | str) -> list[Any]:
    """Read a JSON text that must hold a list, as `parse_json` reads named values."""
    found = _parse(content, True)
    if not isinstance(found, list):
        raise ValueError(f"it holds a {type(found).__name__} where a list belongs")
    return found


def _parse(content: bytes | str, is_finite: bool) -> Any:  # Any: what JSON holds
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    if len(raw) > MAX_BYTES or sum(map(raw.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise ValueError("it holds more values than any file of ours")
    try:
        found = json.loads(
            raw.decode(),
            object_pairs_hook=_named,
            parse_int=_whole,
            parse_float=lambda text: _number(text, is_finite),
            parse_constant=lambda text: _number(text, is_finite),
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_values(found)
    return found


def _named(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1) if len(names) < MAX_DIGITS else names[0]
        raise ValueError(f"{twice[:MAX_DEPTH]!r} or another name stands there twice")
    return found


def _whole(text: str) -> int:
    number = int(text) if len(text) < MAX_DIGITS else MAX_WHOLE
    if abs(number) >= MAX_WHOLE:
        raise ValueError(f"the whole number {text[:MAX_DEPTH]}... is too large")
    return number


def _number(text: str, is_finite: bool) -> float:
    number = float(text if len(text) < MAX_DIGITS else "nan")
    if is_finite and not abs(number) < float("inf"):
        raise ValueError(f"the number {text[:MAX_DEPTH]} is not finite")
    return number


def _check_values(found: Any) -> None:  # Any: walks any nesting
    """Refuse what is too deep, and text that cannot be written."""
    left = [(found, 1)]
    while left:
        value, depth = left.pop()
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        if isinstance(value, dict):
            left += ((item, depth + 1) for pair in value.items() for item in pair)
        elif isinstance(value, list):
            left += ((item, depth + 1) for item in value)
        elif isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError("it holds text that is no Unicode") from None


def read_json(path: Path, *, is_finite: bool = True) -> dict[str, Any]:
    """Read the named values of a file; raises as `open_plain` and `parse_json`."""
    return parse_json(read_plain(path), is_finite=is_finite)


def sealed(content: dict[str, Any], indent: int = 1) -> str:
    """Write named values as JSON, with a `SEAL` that tells whether any bit of the text has changed."""
    text = json.dumps({**content, SEAL: _UNSEALED}, indent=indent) + "\n"
    before, _, after = text.rpartition(_UNSEALED)
    return before + _sha256(text) + after


def check_seal(text: str, content: dict[str, Any]) -> dict[str, Any]:
    """Check what `sealed` wrote.

    Parameters
    ----------
    text
        Of the file.
    content
        The same, from `parse_json`.

    Returns
    -------
    dict
        `content` without its seal.

    Raises
    ------
    ValueError
        If there is no seal, or the text is another.
    """
    seal = content.get(SEAL)
    if not isinstance(seal, str) or len(seal) != len(_UNSEALED):
        raise ValueError("it has no seal")
    before, _, after = text.rpartition(seal)
    if _sha256(before + _UNSEALED + after) != seal:
        raise ValueError("it is not what was written (wrong SHA-256)")
    return {name: value for name, value in content.items() if name != SEAL}


def read_sealed(path: Path, *, is_finite: bool = True) -> dict[str, Any]:
    """Read and check a file that `sealed` wrote; raises as `read_plain`, `parse_json` and `check_seal`."""
    raw = read_plain(path)
    content = parse_json(raw, is_finite=is_finite)
    return check_seal(raw.decode(), content)


# ---------------------------------------------------------------------- YAML


def parse_yaml(content: bytes) -> dict[str, Any]:
    """Read the named values of a YAML text that anybody may have written.

    Raises
    ------
    ValueError
        Saying what is wrong, in one clause: also anchors, aliases and tags, of which no settings are made.
    """
    found = _parse_yaml(content)
    if not isinstance(found, dict):
        raise ValueError("it does not hold keys and values")
    return found


def parse_yaml_entries(content: bytes) -> list[Any]:
    """Read the list that a YAML text holds, single values as they are written, as text; raises as `parse_yaml`."""
    found = _parse_yaml(content, is_typed=False)
    if not isinstance(found, list):
        raise ValueError("it does not hold a list")
    return found


def _parse_yaml(content: bytes, *, is_typed: bool = True) -> Any:  # Any: what YAML holds
    import yaml

    if len(content) > MAX_YAML_BYTES:
        raise ValueError(f"it has more than {MAX_YAML_BYTES:,} bytes")
    try:
        text = content.decode()
        _check_events(yaml.parse(text, Loader=yaml.SafeLoader))
        _check_names(yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text) if is_typed else yaml.BaseLoader(text).get_single_data()
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except (yaml.YAMLError, RecursionError, OverflowError, TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"it is not YAML: {' '.join(str(error).split())[:MAX_DIGITS]}") from error


def sealed_yaml(content: dict[str, Any]) -> str:
    """Write named values as YAML, below a line that seals them."""
    import yaml

    text: str = yaml.safe_dump(content, sort_keys=False)
    return f"{_YAML_SEAL}{_sha256(text)}\n{text}"


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the named values of a YAML file, and compare them with its seal, if it has one.

    Raises
    ------
    ValueError, OSError
        As `read_plain` and `parse_yaml`, and if the file is not what was written.
    """
    raw = read_plain(path, MAX_YAML_BYTES)
    content = parse_yaml(raw)
    check_yaml_seal(raw)
    return content


def check_yaml_seal(raw: bytes) -> None:
    """Compare a YAML text with its seal, if it has one; ValueError where it is another."""
    first, _, rest = raw.partition(b"\n")
    if first.startswith(_YAML_SEAL.encode()) and first != f"{_YAML_SEAL}{_sha256(rest)}".encode():
        raise ValueError("it is not what was written (wrong SHA-256 in its first line)")


def _check_events(events: Any) -> None:  # Any: yaml is not typed
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise ValueError(f"line {event.start_mark.line + 1} has an anchor, an alias or a tag")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")


def _check_names(node: Any) -> None:  # Any: yaml is not typed
    import yaml

    left = [node]
    while left:
        node = left.pop()
        if isinstance(node, yaml.MappingNode):
            names = [str(name.value) for name, _ in node.value]
            if len(set(names)) != len(names):
                raise ValueError(f"a name below line {node.start_mark.line + 1} stands there twice")
            left += (value for _, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            left += node.value
