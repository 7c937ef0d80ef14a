"""Counting by upper bound, beside the library's own histogram."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from app.tally import Tally

BOUNDS = (0.001, 0.01, 0.1, 1.0)


@given(st.lists(st.tuples(st.sampled_from((0.0, 0.0005, *BOUNDS, 0.5, 2.0)), st.integers(1, 5))))
def test_counts_as_prometheus_does(values: list[tuple[float, int]]) -> None:
    tally = Tally(BOUNDS)
    registry = CollectorRegistry()
    histogram = Histogram("h", "h", buckets=BOUNDS, registry=registry)
    for value, times in values:
        tally.observe(value, times)
        for _ in range(times):
            histogram.observe(value)
    expected = [registry.get_sample_value("h_bucket", {"le": le}) for le in (*map(str, BOUNDS), "+Inf")]
    assert tally.cumulative() == expected
    assert abs(tally.sum - (registry.get_sample_value("h_sum") or 0)) < 1e-9
