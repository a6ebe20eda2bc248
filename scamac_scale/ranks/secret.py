"""What tells the ranks of a job from strangers who reach their ports: a secret that all ranks know, and nobody else.

It stands in the environment or in a file; our launcher makes one for the processes of one machine. Ranks that others start on one
machine need none: rank 0 makes it, and leaves it in a note that only this user can read. Nothing here needs torch.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scamac_scale.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

SECRET, SECRET_FILE = "SCAMAC_JOB_SECRET", "SCAMAC_JOB_SECRET_FILE"
"""Variables: the secret itself, or the file that holds it."""
MIN_BYTES, MAX_BYTES = 16, 4096
"""Of a secret. Whoever listens to the network may try short ones at leisure."""
_PORTS = range(1, 65536)


def new_secret() -> str:
    """Make a secret: 256 random bits, as text."""
    return secrets.token_hex(32)


def given_secret(environ: Mapping[str, str] | None = None) -> bytes | None:
    """Read the secret of the job.

    Parameters
    ----------
    environ
        Variables of the environment; None takes those of this process.

    Returns
    -------
    bytes or None
        None where neither ``SCAMAC_JOB_SECRET`` nor ``SCAMAC_JOB_SECRET_FILE`` is set.

    Raises
    ------
    ConfigError
        If both are set, the secret is too short or too long, or others can read the file.
    """
    found = os.environ if environ is None else environ
    file = found.get(SECRET_FILE)
    if SECRET in found and file:
        raise ConfigError(f"both {SECRET} and {SECRET_FILE} are set; unset one of them.")
    if SECRET in found:
        return _checked(os.fsencode(found[SECRET]), SECRET)
    return _checked(_read_private(Path(file).expanduser()), SECRET_FILE) if file else None


def _checked(content: bytes, where: str) -> bytes:
    secret = content.strip()
    if not MIN_BYTES <= len(secret) <= MAX_BYTES:
        raise ConfigError(
            f"{where} holds a secret of {len(secret)} bytes; it must have {MIN_BYTES} to {MAX_BYTES}: make one with "
            "`openssl rand -hex 32`."
        )
    return secret


def _read_private(path: Path) -> bytes:
    """Read a file that nobody else can read; the group of one that root owns may, as Kubernetes mounts secrets."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is not waited for
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{SECRET_FILE}={str(path)!r} cannot be read: {reason}; name the file that holds the secret of the job."
        ) from error
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise ConfigError(f"{SECRET_FILE}={str(path)!r} is no regular file; name one that holds the secret.")
        others = 0o037 if about.st_uid == 0 else 0o077
        if about.st_uid not in (0, os.getuid()) or about.st_mode & others:
            raise ConfigError(
                f"{SECRET_FILE}={str(path)!r} can be read or changed by others (mode {stat.S_IMODE(about.st_mode):04o}, owner "
                f"{about.st_uid}); it must be yours alone: chmod 600, and a new secret if somebody may have seen this one."
            )
        return os.read(handle, MAX_BYTES + 64)
    finally:
        os.close(handle)


# ---------------------------------------------------------------------- ranks of one machine that others started


class Note(NamedTuple):
    """Where the ranks of one machine meet, and by what secret."""

    port: int
    secret: bytes


def _note_path(job_port: int) -> Path:
    """Name the note of the job whose ``MASTER_PORT`` this is, in a folder of this user alone."""
    folder = Path(tempfile.gettempdir()) / f"scamac-scale-ranks-{os.getuid()}"
    remedy = f"set {SECRET} to a random text that all ranks get, or TMPDIR to a folder of yours."
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        about = folder.lstat()
    except OSError as error:
        raise ConfigError(
            f"the ranks of one machine cannot tell one another a secret in {folder}: {error.strerror}; {remedy}"
        ) from error
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise ConfigError(f"{folder} is not a folder of this user alone (mode 0700); remove it, or {remedy}")
    return folder / f"{job_port}.json"


def write_note(job_port: int, note: Note) -> None:
    """Leave a note for the ranks on this machine that have the same ``MASTER_PORT``."""
    path = _note_path(job_port)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    text = json.dumps({"port": note.port, "secret": note.secret.decode()}).encode()
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(text)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise ConfigError(f"{path} cannot be written: {error.strerror}; set {SECRET} for all ranks.") from error


def read_note(job_port: int) -> Note | None:
    """Read the note of rank 0; None where there is none yet."""
    try:
        handle = os.open(_note_path(job_port), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.getuid():
            return None
        found = json.loads(os.read(handle, 2 * MAX_BYTES))
        port, secret = found["port"], found["secret"].encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    finally:
        os.close(handle)
    return Note(port, secret) if type(port) is int and port in _PORTS and len(secret) >= MIN_BYTES else None


def remove_note(job_port: int) -> None:
    """Remove the note, once all ranks have come."""
    with suppress(OSError, ConfigError):
        _note_path(job_port).unlink()
