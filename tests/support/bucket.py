"""A server of object storage on this machine: moto's, reached over a real socket, with credentials that open nothing else."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from scamac_scale.remote.bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ACCESS_KEY, SECRET_KEY, TOKEN = "AKIATESTTESTTESTTEST", "never-to-be-seen-secret", "never-to-be-seen-token"


_NUMBERS = count(1)
"""Of buckets: all servers of a process have the same ones, for moto keeps them in the module."""


class ObjectServer:
    """Serves buckets on a free port of the loopback; a context manager."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)

    def __enter__(self) -> ObjectServer:
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.address = f"http://{host}:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it."""
        return environment(self.address)

    def client(self) -> Any:  # Any: boto3 makes its classes when it runs
        """Another program's client, which is not ours."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.address,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
        )

    def new_bucket(self) -> str:
        """Make an empty bucket; gives its URL."""
        name = f"bucket-{next(_NUMBERS)}"
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"


def environment(address: str) -> dict[str, str]:
    """What a process needs to reach a server at an address."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_SESSION_TOKEN": TOKEN,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address,
        "SCAMAC_OBJECT_TIMEOUT_S": "5",
        "SCAMAC_OBJECT_PATIENCE_S": "20",
    }


@contextmanager
def serving() -> Iterator[ObjectServer]:
    """Serve for as long as the block runs."""
    with ObjectServer() as server:
        yield server


def upload(path: Path, url: str) -> str:
    """Put a file, or all files of a folder, to a URL; gives the URL."""
    place = Bucket(url)
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file():
            place.put("" if file == path else file.relative_to(path).as_posix(), file)
    return url
