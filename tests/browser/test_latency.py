"""benchmarks/page_latency.py still measures: what it measures is for no test to judge."""

from urllib.parse import urlparse

import pytest

from benchmarks import page_latency


def test_processes_that_end_take_nothing_away():
    assert page_latency.spent({1: 2.0, 2: 5.0}, {1: 2.5, 3: 7.0}) == 0.5


def test_times_of_strokes(everything, visit):
    rounds = page_latency.measured(visit(everything, 'Guide'), page_latency.server_of(urlparse(everything).port), 2)
    assert len(rounds) == 2
    for first, fourth, finished, *cpu in rounds:
        assert 0 < first <= fourth <= finished and min(cpu) >= 0


def test_a_page_that_is_not_served():
    with pytest.raises(ValueError, match='--port=1: no process listens there'):
        page_latency.server_of(1, patience=0)
