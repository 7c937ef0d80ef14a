"""Owns how an item of type "compaction" carries a summary. Knows no other items.

OpenAI encrypts the content of such an item; here it is the text in base64 with a digest before it. There is nothing to hide
from a client that has the whole conversation, but what no tfoai wrote, or was changed on its way, is noticed.
"""

import base64
import hashlib

from app.errors import InvalidRequest

_MAGIC = b"tfoai1"
_DIGEST_SIZE = 16


def write_summary(summary: str) -> str:
    """Return the `encrypted_content` for a summary."""
    data = summary.encode()
    return base64.urlsafe_b64encode(_MAGIC + _digest(data) + data).decode()


def read_summary(content: str, param: str) -> str:
    """Return the summary of an `encrypted_content`; raise InvalidRequest for one that no tfoai wrote."""
    try:
        data = base64.urlsafe_b64decode(content.encode())
        digest, text = data[len(_MAGIC) :][:_DIGEST_SIZE], data[len(_MAGIC) + _DIGEST_SIZE :]
        if data.startswith(_MAGIC) and digest == _digest(text):
            return text.decode()
    except ValueError:  # of base64 and of UTF-8 too
        pass
    raise InvalidRequest(
        "`encrypted_content` of a compaction must be what /v1/responses/compact of this server has returned.", param=param
    )


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_DIGEST_SIZE]
