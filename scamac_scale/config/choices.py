"""What may be chosen, and how anything else is refused."""

from __future__ import annotations

from scamac_scale.errors import ConfigError


def require(holds: bool, message: str) -> None:
    """Refuse settings for which something does not hold."""
    if not holds:
        raise ConfigError(message)
