"""Owns responses that are kept for later: bounded in number, bytes and time, and each seen only by the token that made it.

In memory: another replica, or this one after a restart, knows none of them. Knows no shape of responses, and no HTTP.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

# What an entry takes besides its texts, roughly: keys, objects, entries of dictionaries.
_OVERHEAD = 1024
_OVERHEAD_PER_ITEM = 256


@dataclass(frozen=True, slots=True)
class Stored:
    """A response as JSON, its input items as JSON, and the ids of all items in both. Its predecessor has its own entry."""

    id: str
    response: bytes
    input: bytes
    item_ids: tuple[str, ...] = ()
    previous_id: str | None = None


Keep = Callable[[Stored], bool]


class Responses(Protocol):
    """What a new response may go on from."""

    @property
    def max_responses(self) -> int: ...
    def chain(self, salt: str, id: str) -> list[Stored] | None: ...
    def with_item(self, salt: str, item_id: str) -> Stored | None: ...
    def keeper(self, salt: str, before: Sequence[Stored], *, wanted: bool) -> Keep | None:
        """Return what keeps a response behind those before it, and says whether it is stored; None if nothing is to be kept.

        `wanted` if the request wants it stored.
        """
        ...


@dataclass(slots=True)
class _Entry:
    stored: Stored
    num_bytes: int
    used: float


class ResponseStore:
    """Keeps at most `max_responses` of together `max_bytes`, each for `ttl` seconds after its last use; the oldest goes first.

    A salt stands for a bearer token; ids are looked up together with it. To use a response is to use those before it too, so
    that a conversation that goes on is not cut. `clock` gives seconds.
    """

    def __init__(self, max_responses: int, max_bytes: int, ttl: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_responses = max_responses
        self._max_bytes = max_bytes
        self._ttl = ttl
        self._clock = clock
        # In the order of their last use, the longest unused first.
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._items: dict[tuple[str, str], tuple[str, str]] = {}
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, salt: str, stored: Stored) -> bool:
        """Keep a response; return False if it alone is more than may be kept."""
        num_bytes = len(stored.response) + len(stored.input) + _OVERHEAD + _OVERHEAD_PER_ITEM * len(stored.item_ids)
        if self.max_responses < 1 or num_bytes > self._max_bytes:
            return False
        self._drop_expired()
        key = (salt, stored.id)
        self._drop(key)
        while len(self._entries) >= self.max_responses or self.num_bytes + num_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
        self._entries[key] = _Entry(stored, num_bytes, self._clock())
        self.num_bytes += num_bytes
        for item_id in stored.item_ids:
            self._items[salt, item_id] = key
        return True

    def keeper(self, salt: str, before: Sequence[Stored], *, wanted: bool) -> Keep | None:
        return (lambda stored: self.put(salt, stored)) if wanted and self.max_responses else None

    def get(self, salt: str, id: str) -> Stored | None:
        """Return a response; this counts as a use of it."""
        chain = self.chain(salt, id)
        if chain is not None:
            return chain[-1]
        self._drop_expired()
        entry = self._entries.get((salt, id))
        if entry is None:
            return None
        self._use((salt, id))
        return entry.stored

    def chain(self, salt: str, id: str) -> list[Stored] | None:
        """Return a response and all before it, oldest first; None if one of them is not there any more."""
        self._drop_expired()
        chain: list[Stored] = []
        next_id: str | None = id
        while next_id is not None:
            entry = self._entries.get((salt, next_id))
            if entry is None:
                return None
            chain.append(entry.stored)
            next_id = entry.stored.previous_id
        chain.reverse()
        for stored in chain:
            self._use((salt, stored.id))
        return chain

    def with_item(self, salt: str, item_id: str) -> Stored | None:
        """Return the latest response that has an item."""
        self._drop_expired()
        key = self._items.get((salt, item_id))
        return None if key is None else self._entries[key].stored

    def delete(self, salt: str, id: str) -> bool:
        """Forget a response, and return whether it was there. Responses that follow it can not be continued any more."""
        self._drop_expired()
        return self._drop((salt, id))

    def _use(self, key: tuple[str, str]) -> None:
        self._entries[key].used = self._clock()
        self._entries.move_to_end(key)

    def _drop_expired(self) -> None:
        oldest = self._clock() - self._ttl
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            if entry.used >= oldest:
                return
            self._drop(key)

    def _drop(self, key: tuple[str, str]) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self.num_bytes -= entry.num_bytes
        salt, _ = key
        for item_id in entry.stored.item_ids:
            # A later response may have the same item: the client may send one back.
            if self._items.get((salt, item_id)) == key:
                del self._items[salt, item_id]
        return True


class ConnectionResponses:
    """What a connection may go on from: all that is stored, and its own latest response, which need not be.

    That one is kept together with those before it, as long as they have at most `max_bytes`; nobody else can name it.
    """

    def __init__(self, stored: ResponseStore, max_bytes: int) -> None:
        self._stored = stored
        self._max_bytes = max_bytes
        self._latest: list[Stored] = []

    @property
    def max_responses(self) -> int:
        return self._stored.max_responses

    def chain(self, salt: str, id: str) -> list[Stored] | None:
        if self._latest and self._latest[-1].id == id:
            return list(self._latest)
        return self._stored.chain(salt, id)

    def with_item(self, salt: str, item_id: str) -> Stored | None:
        own = next((one for one in reversed(self._latest) if item_id in one.item_ids), None)
        return own or self._stored.with_item(salt, item_id)

    def keeper(self, salt: str, before: Sequence[Stored], *, wanted: bool) -> Keep | None:
        put = self._stored.keeper(salt, before, wanted=wanted)

        def keep(stored: Stored) -> bool:
            chain = [*before, stored]
            num_bytes = sum(len(one.response) + len(one.input) for one in chain)
            self._latest = chain if num_bytes <= self._max_bytes else []
            return put is not None and put(stored)

        return keep

    def forget(self, id: str) -> None:
        """Let nothing go on from a response that is not stored: a turn that did has failed."""
        if self._latest and self._latest[-1].id == id:
            self._latest = []
