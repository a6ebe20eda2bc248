"""What lies at a place in a bucket, as another program sees it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.support.bucket import ACCESS_KEY, SECRET_KEY, TOKEN

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.bucket import ObjectServer

SECRETS = (ACCESS_KEY, SECRET_KEY, TOKEN, "Signature=", "X-Amz-")
"""What no output of ours may hold."""


def files_below(folder: Path) -> list[Path]:
    """All files of a folder, at any depth."""
    return [path for path in folder.rglob("*") if path.is_file()]


class Objects:
    """The objects below a URL."""

    def __init__(self, server: ObjectServer, url: str) -> None:
        self._client = server.client()
        self._bucket, _, self._prefix = url.removeprefix("s3://").partition("/")

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix and name else self._prefix or name

    def names(self) -> list[str]:
        """Of all, below the URL."""
        found = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix)
        return sorted(each["Key"][len(self._prefix) :].lstrip("/") for each in found.get("Contents", []))

    def read(self, name: str = "") -> bytes:
        found: bytes = self._client.get_object(Bucket=self._bucket, Key=self._key(name))["Body"].read()
        return found

    def write(self, name: str, content: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=content)

    def delete(self, name: str) -> None:
        self._client.delete_object(Bucket=self._bucket, Key=self._key(name))

    def copy_from(self, folder: Path) -> None:
        """Put all files of a folder."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.write(path.relative_to(folder).as_posix(), path.read_bytes())

    def is_folder(self, folder: Path, skip: tuple[str, ...] = ()) -> bool:
        """Whether these are the files of a folder, byte for byte, but for some endings."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        wanted = {name: content for name, content in files.items() if not name.endswith(skip)}
        return wanted == {name: self.read(name) for name in self.names() if not name.endswith(skip)}

    def latest(self) -> dict[str, Any]:
        """Of a run."""
        found: dict[str, Any] = json.loads(self.read("latest.json"))
        return found

    def checkpoints(self) -> list[str]:
        return [name.rpartition("/")[2] for name in self.names() if name.endswith(".pt")]
