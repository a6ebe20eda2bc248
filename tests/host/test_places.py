from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import pytest

from scamac_scale.host import compiled as home
from scamac_scale.host.compiled import compiled, kept_for_libraries
from scamac_scale.host.places import SHIPPED, code_folder, private_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

USER = os.geteuid()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    code_folder.cache_clear()
    monkeypatch.setattr(home, "_SAID", set())
    yield
    code_folder.cache_clear()


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder can be made for this user."""
    monkeypatch.setattr("scamac_scale.host.places._bases", lambda: iter(()))


def doubled(x: Any) -> Any:
    return x * 2


def test_a_folder_is_made_for_this_user_alone(tmp_path: Path) -> None:
    found = private_folder(tmp_path / "a" / "b")
    assert found == tmp_path / "a" / "b" / f"scamac-scale-{USER}"
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    assert private_folder(tmp_path / "a" / "b") == found
    assert private_folder(found) == found  # as a process sees it that was given this one


def test_a_folder_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    found = private_folder(tmp_path)
    assert found is not None
    for mode in (0o777, 0o770, 0o720):
        found.chmod(mode)
        assert private_folder(tmp_path) is None
    found.chmod(0o755)  # others could read it only
    assert private_folder(tmp_path) == found
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


def test_a_folder_in_one_that_others_can_write_is_not_used_unless_that_is_sticky(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    (open_to_all / "own").mkdir(parents=True)
    open_to_all.chmod(0o777)
    assert private_folder(open_to_all / "own") is None
    open_to_all.chmod(0o1777)
    assert private_folder(open_to_all / "own") is not None


def test_a_link_in_the_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / f"scamac-scale-{USER}").symlink_to(tmp_path / "elsewhere")
    assert private_folder(tmp_path) is None
    (tmp_path / "base").symlink_to(tmp_path / "elsewhere")
    assert private_folder(tmp_path / "base") == tmp_path / "elsewhere" / f"scamac-scale-{USER}"


@pytest.mark.skipif(USER != 0, reason="only root can give folders away")
@pytest.mark.parametrize("place", ["folder", "above"])
def test_a_folder_of_somebody_else_is_not_used(place: str, tmp_path: Path) -> None:
    base = tmp_path / "above"
    found = private_folder(base)
    assert found is not None
    os.chown(found if place == "folder" else base, 12345, 12345)
    assert private_folder(base) is None


@pytest.mark.parametrize("base", ["/proc/nothing", "/dev/null/x", "a\0b"])
def test_a_place_that_cannot_be_made_is_none(base: str) -> None:
    assert private_folder(Path(base)) is None


def test_an_unsafe_place_that_was_named_is_left_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "named").mkdir()
    (tmp_path / "named").chmod(0o777)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = code_folder()
    assert found is not None
    assert found.is_relative_to(tmp_path / "cache")
    assert "NUMBA_CACHE_DIR" in caplog.text
    assert list((tmp_path / "named").glob("*/*")) == []


def test_code_is_kept_where_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    kernel = compiled(doubled)
    assert kernel(np.int64(2)) == 4
    assert len(list(tmp_path.rglob("*.nbc"))) == 1
    for file in tmp_path.rglob("*.nb?"):
        file.write_bytes(b"damaged")
    assert compiled(doubled)(np.int64(2)) == 4


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "denied")])
def test_code_that_cannot_be_kept_is_used(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    caplog.set_level(logging.INFO, "scamac_scale")
    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", fail)
    for _ in range(2):
        assert compiled(doubled)(np.int64(2)) == 4
    assert caplog.text.count("NUMBA_CACHE_DIR") == 1


@pytest.mark.usefixtures("nowhere")
def test_without_a_place_kernels_are_compiled_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "scamac_scale")
    for _ in range(3):
        assert compiled(doubled)(np.int64(2)) == 4
    assert caplog.text.count("set NUMBA_CACHE_DIR") == 1


def test_numba_without_locators_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import numba.core.caching as caching

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    caplog.set_level(logging.INFO, "scamac_scale")
    for _ in range(2):
        assert compiled(doubled)(np.int64(2)) == 4
    assert caplog.text.count("NUMBA_CACHE_DIR") == 1


def test_every_kernel_of_the_package_goes_this_way() -> None:
    import ast

    import scamac_scale

    package = Path(scamac_scale.__file__).parent
    direct = [
        f"{path.relative_to(package)}: {node.name}"
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
        if "jit" in ast.unparse(decorator) and "cache" in ast.unparse(decorator)
    ]
    assert direct == []


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Compiled code as an image brings it: another folder of the same version."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "image"))
    compiled(doubled)(np.ones(3))
    made = code_folder()
    assert made is not None
    code_folder.cache_clear()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv(SHIPPED, str(made.parent))
    return made


def test_code_that_an_image_brings_is_used_and_not_compiled_again(shipped: Path) -> None:
    for path in (shipped, *shipped.rglob("*")):
        path.chmod(0o500 if path.is_dir() else 0o400)
    kernel = compiled(doubled)
    assert kernel(np.ones(3)).tolist() == [2, 2, 2]
    assert sum(kernel.stats.cache_hits.values()) == 1
    assert code_folder() != shipped
    for path in (shipped, *shipped.rglob("*")):
        path.chmod(0o700)


@pytest.mark.parametrize("what", ["a file", "the folder", "a link"])
def test_code_of_an_image_that_others_can_have_written_is_not_used(shipped: Path, tmp_path: Path, what: str) -> None:
    file = next(path for path in shipped.rglob("*") if path.is_file())
    if what == "a link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        (file if what == "a file" else shipped).chmod(0o777)
    kernel = compiled(doubled)
    assert kernel(np.ones(3)).tolist() == [2, 2, 2]
    assert not kernel.stats.cache_hits


def test_kernels_of_a_library_are_kept_where_ours_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    before = numba.config.CACHE_DIR
    with kept_for_libraries():
        kernel: Any = numba.njit(cache=True)(doubled)
    assert Path(kernel._cache.cache_path).is_relative_to(tmp_path)
    assert before == numba.config.CACHE_DIR
