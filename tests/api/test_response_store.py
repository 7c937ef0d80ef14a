"""Owns the tests of the store of responses: its bounds, whatever is done with it, and who sees what."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from app.api.response_store import ResponseStore, Stored

MAX, MAX_BYTES, TTL = 4, 8000, 60.0


class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def stored(name: str, size: int = 10, previous: str | None = None, items: tuple[str, ...] = ()) -> Stored:
    return Stored(name, b"x" * size, b"", items, previous)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> ResponseStore:
    return ResponseStore(MAX, MAX_BYTES, TTL, clock)


class TestBounds:
    def test_the_longest_unused_goes_first(self, store: ResponseStore) -> None:
        for name in "abcd":
            assert store.put("", stored(name))
        assert store.get("", "a")
        assert store.put("", stored("e"))
        assert [name for name in "abcde" if store.get("", name)] == list("acde")

    def test_bytes(self, store: ResponseStore) -> None:
        assert store.put("", stored("a", 2900))
        assert store.put("", stored("b", 2900))
        assert store.num_bytes <= MAX_BYTES
        assert store.put("", stored("c", 2900))
        assert store.get("", "a") is None
        assert store.get("", "b") and store.get("", "c")

    def test_one_that_is_too_large_is_not_kept_and_costs_nobody_else(self, store: ResponseStore) -> None:
        assert store.put("", stored("a"))
        assert not store.put("", stored("b", MAX_BYTES))
        assert store.get("", "a") and store.get("", "b") is None

    def test_many_small_items_count(self, store: ResponseStore) -> None:
        assert not store.put("", stored("a", items=tuple(map(str, range(100)))))

    def test_time_since_the_last_use(self, store: ResponseStore, clock: Clock) -> None:
        store.put("", stored("a"))
        store.put("", stored("b"))
        clock.now += TTL
        assert store.get("", "a")
        clock.now += 1
        assert store.get("", "b") is None
        assert store.get("", "a")
        assert len(store) == 1

    def test_none_at_all(self) -> None:
        store = ResponseStore(0, MAX_BYTES, TTL)
        assert not store.put("", stored("a"))
        assert len(store) == 0


class TestChains:
    def test_oldest_first(self, store: ResponseStore) -> None:
        store.put("", stored("a"))
        store.put("", stored("b", previous="a"))
        store.put("", stored("c", previous="b"))
        chain = store.chain("", "c")
        assert chain is not None and [one.id for one in chain] == ["a", "b", "c"]

    def test_going_on_keeps_the_beginning(self, store: ResponseStore, clock: Clock) -> None:
        store.put("", stored("a"))
        for name, previous in ("ba", "cb", "dc"):
            clock.now += TTL - 1
            assert store.chain("", previous)
            store.put("", stored(name, previous=previous))
        assert store.chain("", "d")

    def test_a_missing_link(self, store: ResponseStore) -> None:
        store.put("", stored("a"))
        store.put("", stored("b", previous="a"))
        assert store.delete("", "a")
        assert store.chain("", "b") is None
        assert store.get("", "b")
        assert not store.delete("", "a")


class TestSalt:
    def test_others_see_nothing(self, store: ResponseStore) -> None:
        store.put("one", stored("a", items=("i",)))
        assert store.get("two", "a") is None
        assert store.chain("two", "a") is None
        assert store.with_item("two", "i") is None
        assert not store.delete("two", "a")
        assert store.get("one", "a") and store.with_item("one", "i")

    def test_an_item_that_two_have(self, store: ResponseStore) -> None:
        store.put("", stored("a", items=("i",)))
        store.put("", stored("b", items=("i",)))
        store.delete("", "a")
        found = store.with_item("", "i")
        assert found is not None and found.id == "b"
        store.delete("", "b")
        assert store.with_item("", "i") is None


SALTS = st.sampled_from(["one", "two"])
NAMES = st.sampled_from("abcdefgh")


class StoreMachine(RuleBasedStateMachine):
    """Against a plain dictionary of what was put last: the store may forget, but never invents, mixes up or outgrows."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = ResponseStore(MAX, MAX_BYTES, TTL, self.clock)
        self.put_last: dict[tuple[str, str], Stored] = {}

    @rule(salt=SALTS, name=NAMES, size=st.integers(0, 9000), previous=st.none() | NAMES)
    def put(self, salt: str, name: str, size: int, previous: str | None) -> None:
        # Ids are made by the server: a response never follows itself, or one that came later.
        previous = previous if previous is not None and previous < name else None
        one = stored(name, size, previous, (f"item-{name}", "shared"))
        if self.store.put(salt, one):
            self.put_last[salt, name] = one
            assert self.store.get(salt, name) is one

    @rule(salt=SALTS, name=NAMES)
    def get(self, salt: str, name: str) -> None:
        found = self.store.get(salt, name)
        assert found is None or found is self.put_last[salt, name]

    @rule(salt=SALTS, name=NAMES)
    def chain(self, salt: str, name: str) -> None:
        chain = self.store.chain(salt, name)
        if chain is not None:
            assert [one.previous_id for one in chain] == [None, *(one.id for one in chain[:-1])]
            assert chain[-1].id == name

    @rule(salt=SALTS, name=NAMES)
    def with_item(self, salt: str, name: str) -> None:
        found = self.store.with_item(salt, f"item-{name}")
        assert found is None or found is self.put_last[salt, name]

    @rule(salt=SALTS, name=NAMES)
    def delete(self, salt: str, name: str) -> None:
        self.store.delete(salt, name)
        self.put_last.pop((salt, name), None)
        assert self.store.get(salt, name) is None

    @rule(seconds=st.floats(0, 2 * TTL))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def bounds_hold(self) -> None:
        assert len(self.store) <= MAX
        assert self.store.num_bytes <= MAX_BYTES
        assert (self.store.num_bytes == 0) == (len(self.store) == 0)
        assert len(self.store._items) <= 2 * len(self.store)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
