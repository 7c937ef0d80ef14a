"""The tests of Retry-After's arithmetic, with a clock of their own."""

import pytest

from app.drain_rate import LONGEST, MAX_EVENTS, SHORTEST, WINDOW, DrainRate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rate(clock: Clock) -> DrainRate:
    rate = DrainRate(clock)
    rate.begin()
    return rate


def ends(rate: DrainRate, clock: Clock, number: int, every: float, tokens: int = 0) -> None:
    for _ in range(number):
        clock.now += every
        rate.note(tokens)


def test_it_is_what_has_been_measured(rate: DrainRate, clock: Clock) -> None:
    ends(rate, clock, 10, every=2.0)
    assert rate.seconds_until(1) == pytest.approx(2)
    assert rate.seconds_until(7) == pytest.approx(14)


def test_tokens_may_take_longer_than_sequences(rate: DrainRate, clock: Clock) -> None:
    ends(rate, clock, 10, every=1.0, tokens=100)
    assert rate.seconds_until(1, 900) == pytest.approx(9)
    assert rate.seconds_until(12, 900) == pytest.approx(12)


def test_it_stays_within_what_clients_honour(rate: DrainRate, clock: Clock) -> None:
    ends(rate, clock, 100, every=0.001)
    assert rate.seconds_until(1) == SHORTEST
    ends(rate, clock, 1, every=50)
    assert rate.seconds_until(10_000) == LONGEST
    assert rate.seconds_until(1, 10**12) == LONGEST


def test_while_nothing_has_ended_it_grows(rate: DrainRate, clock: Clock) -> None:
    assert rate.seconds_until(1) == SHORTEST
    clock.now += 20
    assert rate.seconds_until(1) == pytest.approx(20)
    clock.now += 1000
    assert rate.seconds_until(1) == LONGEST


def test_it_forgets(rate: DrainRate, clock: Clock) -> None:
    ends(rate, clock, 500, every=0.01)
    clock.now += WINDOW - 20
    ends(rate, clock, 5, every=2.0)
    # The 500 are still in the window, then only the five are.
    assert rate.seconds_until(50) == pytest.approx(50 * 55 / 505)
    clock.now += 25
    assert rate.seconds_until(1) == pytest.approx(WINDOW / 5)


def test_idle_time_does_not_count(rate: DrainRate, clock: Clock) -> None:
    clock.now += 3600
    rate.begin()
    ends(rate, clock, 4, every=3.0)
    assert rate.seconds_until(2) == pytest.approx(6)


def test_more_than_it_remembers(rate: DrainRate, clock: Clock) -> None:
    ends(rate, clock, 3 * MAX_EVENTS, every=0.01)
    assert rate.seconds_until(1000) == pytest.approx(10, rel=0.01)
