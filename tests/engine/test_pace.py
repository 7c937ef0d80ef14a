"""The pace of prompts beside running streams: it follows what steps cost, on any machine."""

from hypothesis import given
from hypothesis import strategies as st

from app.engine.pace import LEAST, STRETCH, UNNOTICED_SECONDS, PrefillPace


def test_everything_is_allowed_until_the_costs_are_known() -> None:
    pace = PrefillPace(2048)
    pace.observe(0.5, 0, 1000)
    assert pace.budget == 2048
    pace.observe(0.02, 8, 0)
    assert pace.budget == 96


@given(step=st.floats(1e-4, 1), token=st.floats(1e-6, 1e-1))
def test_a_step_with_prompts_takes_no_longer_than_it_may(step: float, token: float) -> None:
    pace = PrefillPace(2048)
    for _ in range(30):
        pace.observe(step, 4, 0)
        pace.observe(step + token * pace.budget, 4, pace.budget)
    assert LEAST <= pace.budget <= 2048 and pace.budget % LEAST == 0
    allowed = max(STRETCH * step, UNNOTICED_SECONDS)
    assert pace.budget == LEAST or pace.budget * token <= allowed * 1.3
    assert pace.budget == 2048 or (pace.budget + LEAST) * token >= allowed * 0.7


def test_it_follows_a_cost_that_grows_with_the_context() -> None:
    pace = PrefillPace(2048)
    pace.observe(0.02, 4, 0)
    budgets = []
    for length in range(100):
        pace.observe(0.02 + pace.budget * (1e-4 + 2e-5 * length), 4, pace.budget)
        budgets.append(pace.budget)
    assert budgets[10] > budgets[-1] * 2


def test_one_stall_is_soon_forgotten() -> None:
    pace = PrefillPace(2048)
    for _ in range(10):
        pace.observe(0.02, 4, 0)
        pace.observe(0.04, 4, 100)
    before = pace.budget
    pace.observe(60.0, 4, 100)
    for _ in range(10):
        pace.observe(0.04, 4, 100)
    assert pace.budget >= before * 0.7


def test_a_step_that_was_too_quick_to_be_true_is_soon_corrected() -> None:
    pace = PrefillPace(2048)
    pace.observe(0.02, 4, 0)
    pace.observe(0.01, 4, 100)
    assert pace.budget == 2048
    for _ in range(12):
        pace.observe(0.02 + 2e-4 * pace.budget, 4, pace.budget)
    assert pace.budget <= 320


def test_a_step_without_anything_teaches_nothing() -> None:
    pace = PrefillPace(2048)
    pace.observe(0.02, 4, 0)
    pace.observe(0.04, 4, 100)
    before = pace.budget
    for _ in range(50):
        pace.observe(1e-6, 0, 0)
    assert pace.budget == before
