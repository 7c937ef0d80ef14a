"""Owns bearer tokens: who may call what. Deny by default: every path but the probes needs a token once there are any.

Knows no routes but the public ones, and not where tokens come from.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import NamedTuple

from app.errors import Unauthorized

# What Kubernetes asks without credentials.
PUBLIC_PATHS = frozenset({"/livez", "/readyz", "/startupz", "/health"})


class Caller(NamedTuple):
    """Who a token belongs to: a name for the log, and a secret for what must not be shared between tokens."""

    name: str
    salt: str


class BearerTokens:
    """The tokens that are let in, by the names of their clients; only their digests are kept. None lets everybody in."""

    def __init__(self, named: Mapping[str, str] | None) -> None:
        self._digests: list[tuple[str, bytes]] | None = None
        self.replace(named)

    def replace(self, named: Mapping[str, str] | None) -> None:
        """Let these tokens in from now on, and no others. Requests that are in already stay in."""
        self._digests = None if named is None else [(name, _digest(token.encode())) for name, token in named.items()]

    def check(self, authorization: bytes | None, api_key: bytes | None = None) -> Caller | None:
        """Return whose token it is, None if none is needed; raise TokenRefused, with a `reason` for the metric.

        `api_key` is what Anthropic's clients send as `x-api-key`; an Authorization header, where there is one, is what counts.

        Every digest is compared, each in constant time, so the time tells nothing about the tokens.
        """
        if self._digests is None:
            return None
        if not authorization and api_key and api_key.strip():
            authorization = b"Bearer " + api_key
        if not authorization:
            raise _unauthorized(
                "missing",
                "You didn't provide an API key. Send it as `Authorization: Bearer YOUR_KEY` or `x-api-key`.",
            )
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not token.strip():
            raise _unauthorized("malformed", "The Authorization header must have the form `Bearer YOUR_KEY`.")
        digest = _digest(token.strip())
        matches = [name for name, known in self._digests if hmac.compare_digest(digest, known)]
        if not matches:
            raise _unauthorized("unknown", "Incorrect API key provided.")
        return Caller(matches[0], digest.hex())


class TokenRefused(Unauthorized):
    """Unauthorized, with the reason as a word."""

    reason = "unknown"


def _unauthorized(reason: str, message: str) -> TokenRefused:
    error = TokenRefused(message)
    error.reason = reason
    return error


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
