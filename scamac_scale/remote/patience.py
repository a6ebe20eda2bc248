"""How long object storage is waited for: what is tried again, how often, and what is said in the end.

What a server says of a failure may repeat a token or a signature, so that none of it is shown but its code and status.
"""

from __future__ import annotations

import logging
import os
import re
import time
from typing import TYPE_CHECKING, TypeVar

from scamac_scale.errors import ConfigError, ScamacError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scamac_scale.remote.place import BucketPlace

_log = logging.getLogger(__name__)
Result = TypeVar("Result")

TIMEOUT_VARIABLE, PATIENCE_VARIABLE = "SCAMAC_OBJECT_TIMEOUT_S", "SCAMAC_OBJECT_PATIENCE_S"
TIMEOUT_S = 30.0
"""Seconds without an answer, or for a piece of 8 MiB, after which a request is tried again."""
PATIENCE_S = 180.0
"""Seconds after which what has failed again and again is given up."""
TRIES = 12
FIRST_WAIT_S, MOST_WAIT_S = 0.1, 10.0

_STATUS = re.compile(r"(?:status code: |status: )(\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
_PASSING_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_PASSING_CODES = frozenset({"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "OperationAborted"})
_STATUSES = {401: "credentials are wanted", 403: "these credentials may not do that", 404: "it is not there"}
_ODD_KEY = re.compile(r'invalid path: (?:Error parsing )?Path "(.*?)"(?:: | contained )', re.DOTALL)
_ROLE = re.compile(r"performing [A-Z]+ http://(?:169\.254\.|metadata\.)")
_CONNECTIONS = {
    "kind: Timeout": "no answer came in time",
    "TimedOut": "no answer came in time",
    "dns error": "the name of the server cannot be found",
    "ConnectionRefused": "the server takes no connections",
    "ConnectionReset": "the connection was cut",
    "ertificate": "the certificate of the server is not trusted",
}
"""What stands in the details of an error of a connection, and what it means."""
_REASONS = {
    "NoSuchBucket": "there is no such bucket",
    "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key does not fit the access key",
    "ExpiredToken": "the credentials have expired",
    "InvalidToken": "the session token is not valid",
    "AccessDenied": "these credentials may not do that",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_REGION",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "PreconditionFailed": "it was replaced while it was read",
    "SlowDown": "the server asks for fewer requests",
}


def seconds(variable: str, default: float) -> float:
    """Read a number of seconds of the environment.

    Raises
    ------
    ConfigError
        If it is no number above 0.
    """
    text = os.environ.get(variable, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 < value < 1e6:
        raise ConfigError(f"{variable}={text[:40]!r} is no number of seconds; set it to one, such as {default:g}.")
    return value


def is_passing(error: BaseException) -> bool:
    """Whether what has failed may well be done when it is tried again."""
    if isinstance(error, FileNotFoundError | ScamacError | ValueError):
        return False
    text, kind = str(error), type(error).__name__
    if kind in ("AlreadyExistsError", "NotSupportedError", "UnauthenticatedError", "InvalidPathError", "JoinError"):
        return False
    status, code = _STATUS.search(text), _CODE.search(text)
    if code and code.group(1) in _PASSING_CODES:
        return True
    if status:
        return int(status.group(1)) in _PASSING_STATUS
    return kind not in ("PermissionDeniedError", "PreconditionError", "NotModifiedError") and not _is_wanting(text)


def _is_wanting(text: str) -> bool:
    """Whether no request for the object was made, for lack of credentials: the machine was asked for those of its role."""
    return bool(_ROLE.search(text))


def told(error: BaseException) -> str:
    """Say why a request failed, in a clause without anything that may be secret."""
    text, kind = str(error), type(error).__name__
    status, code = _STATUS.search(text), _CODE.search(text)
    if code:
        name = code.group(1)
        return f"{_REASONS[name]} ({name})" if name in _REASONS else name
    if kind == "PreconditionError":
        return _REASONS["PreconditionFailed"]
    if kind == "InvalidPathError":
        named = _ODD_KEY.search(text)
        which = f": {named.group(1)[:200]!r}" if named else ""
        return f"a key below it has an empty part, . or .. in it, or signs that cannot be printed{which}; rename that object, or remove it"
    if _is_wanting(text):
        return "no credentials were found; set those of the environment"
    if status:
        number = int(status.group(1))
        return (
            f"{_STATUSES[number]} (status {number})"
            if number in _STATUSES
            else f"the server answered with status {number}"
        )
    inner = text.partition("inner: ")[2]  # of its details, those that name no key
    return next((what for sign, what in _CONNECTIONS.items() if sign in inner), "the connection failed")


def attempt(what: Callable[[], Result], place: BucketPlace, doing: str, blames: type[ScamacError]) -> Result:
    """Do something with object storage, again where it fails in passing.

    Parameters
    ----------
    what
        Done at least once, and safe to do again.
    place
        The object, for messages.
    doing
        Such as ``read`` or ``written``.
    blames
        Error of the end.

    Returns
    -------
    object
        What `what` returns.

    Raises
    ------
    FileNotFoundError
        If the object, or the bucket, is not there; for callers who know what that means.
    ScamacError
        `blames`, naming the object and not what the server said.
    """
    end = time.monotonic() + seconds(PATIENCE_VARIABLE, PATIENCE_S)
    wait = FIRST_WAIT_S
    for number in range(1, TRIES + 1):
        try:
            return what()
        except (ScamacError, MemoryError):
            raise
        except Exception as error:
            if "NoSuchBucket" in str(error):
                raise blames(f"{place} cannot be {doing}: there is no bucket {place.bucket}; check its name.") from None
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"{place} is not there") from None
            if type(error).__name__ == "AlreadyExistsError":
                raise
            reason = told(error)
            if not is_passing(error):
                raise blames(f"{place} cannot be {doing}: {reason}.") from None
            if number == TRIES or time.monotonic() + wait > end:
                often = f", {number} times" if number > 1 else ""
                raise blames(
                    f"{place} cannot be {doing}: {reason}{often}; see whether the storage can be reached, and "
                    "run again."
                ) from None
            _log.info("%s is not %s yet: %s; trying again", place, doing, reason)
        jitter = 0.5 + (time.monotonic_ns() % 1024) / 1024  # so that ranks do not all come back at once
        time.sleep(wait * jitter)
        wait = min(2 * wait, MOST_WAIT_S)
    raise AssertionError("unreachable: the last try returns or raises")
