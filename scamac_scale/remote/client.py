"""Makes the client of a bucket from the environment; nothing of a credential passes through here."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from scamac_scale.errors import ConfigError, MissingExtraError
from scamac_scale.remote.patience import TIMEOUT_S, TIMEOUT_VARIABLE, seconds

if TYPE_CHECKING:
    from scamac_scale.remote.place import BucketPlace

Client = Any
"""A store of obstore."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_ALLOW = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}
_MISSING = {"MissingAccessKeyId": "AWS_ACCESS_KEY_ID", "MissingSecretAccessKey": "AWS_SECRET_ACCESS_KEY"}
_YES = frozenset({"1", "true", "yes", "on"})


def connect(place: BucketPlace) -> Client:
    """Make the client of the bucket of a place; no request is made yet.

    Parameters
    ----------
    place
        Credentials, region and endpoint are those of the environment: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
        ``AWS_SESSION_TOKEN``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``, or the role of the machine.

    Returns
    -------
    object
        A store of obstore, for the whole bucket.

    Raises
    ------
    MissingExtraError
        If obstore is not installed.
    ConfigError
        If the endpoint is not encrypted, and neither on this machine nor allowed; or a setting of the environment is not usable.
    """
    try:
        from obstore import store as stores
    except ImportError as error:
        raise MissingExtraError(
            f'{place} is in object storage, which needs obstore; install it with pip install "scamac-scale[s3]".'
        ) from error
    timeout = seconds(TIMEOUT_VARIABLE, TIMEOUT_S)
    options = {
        "allow_http": _is_plain_http_allowed(place.scheme),
        "timeout": timedelta(seconds=timeout),
        "connect_timeout": timedelta(seconds=min(timeout, 10.0)),
        "user_agent": "scamac-scale",
    }
    # what is tried again here is one request, such as a part of a large object; `patience` does the rest
    retry = {
        "max_retries": 3,
        "retry_timeout": timedelta(seconds=2 * timeout),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
    }
    kinds: dict[str, Any] = {"s3": stores.S3Store, "gs": stores.GCSStore, "az": stores.AzureStore}
    more = {"region": "us-east-1"} if place.scheme == "s3" and not _has_region() else {}
    try:
        return kinds[place.scheme](place.bucket, client_options=options, retry_config=retry, **more)
    except Exception as error:  # noqa: BLE001 - of several kinds; what it says may hold a value of the environment
        missing = next((name for sign, name in _MISSING.items() if sign in str(error)), None)
        if missing:
            raise ConfigError(f"{place}: {missing} is not set, though other credentials are; set it.") from None
        raise ConfigError(
            f"{place}: the settings of {place.scheme}:// in the environment cannot be used ({type(error).__name__}); see "
            "docs/objects.md for what they are."
        ) from None


def _has_region() -> bool:
    return bool(os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"))


def _is_plain_http_allowed(scheme: str) -> bool:
    """Whether requests may go unencrypted; refuses an endpoint that would have them so without leave."""
    is_allowed = os.environ.get(_ALLOW[scheme], "").lower() in _YES
    for name in _ENDPOINTS[scheme]:
        address = os.environ.get(name, "")
        if not address:
            continue
        try:
            parts = urlsplit(address)
            host, has_secret = parts.hostname or "", parts.username is not None or parts.password is not None
        except ValueError:
            host, has_secret, parts = "", False, urlsplit("")
        if has_secret or not host or parts.scheme not in ("http", "https"):
            raise ConfigError(f"{name} must be an address such as https://HOST:PORT, without credentials in it.")
        if parts.scheme == "https" or is_allowed:
            continue
        if host not in _LOOPBACK:
            raise ConfigError(
                f"{name} is http://{host}, which would send everything unencrypted; use https, or set {_ALLOW[scheme]}=true "
                "in a network that you trust."
            )
        is_allowed = True
    return is_allowed
