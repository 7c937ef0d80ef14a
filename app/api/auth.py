"""Owns bearer tokens: who may call what. Deny by default: every path but the probes needs a token once there are any.

Knows no routes but the public ones.
"""

import hashlib
import hmac
from collections.abc import Iterable

from app.errors import Unauthorized

# What Kubernetes asks without credentials.
PUBLIC_PATHS = frozenset({"/livez", "/readyz", "/startupz", "/health"})


class BearerTokens:
    """The tokens that are let in; only their digests are kept."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests = [_digest(token.encode()) for token in tokens]

    def check(self, authorization: bytes | None) -> str:
        """Return the digest of the token; raise TokenRefused unless it is one of ours, with a `reason` for the metric.

        Every digest is compared, each in constant time, so the time tells nothing about the tokens.
        """
        if not authorization:
            raise _unauthorized("missing", "You didn't provide an API key. Send it as `Authorization: Bearer YOUR_KEY`.")
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not token.strip():
            raise _unauthorized("malformed", "The Authorization header must have the form `Bearer YOUR_KEY`.")
        digest = _digest(token.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise _unauthorized("unknown", "Incorrect API key provided.")
        return digest.hex()


class TokenRefused(Unauthorized):
    """Unauthorized, with the reason as a word."""

    reason = "unknown"


def _unauthorized(reason: str, message: str) -> TokenRefused:
    error = TokenRefused(message)
    error.reason = reason
    return error


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
