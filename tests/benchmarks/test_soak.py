"""What the soak takes for growth."""

from __future__ import annotations

import math

import pytest
from soak import Record, faults, grown, p99, quarters, table

ALLOWED = (1.1, 5.0)


@pytest.mark.parametrize(
    ("medians", "verdict"),
    [
        ((50.0, 100.0, 100.0, 100.0), False),  # what fills first is no growth
        ((100.0, 100.0, 200.0, 115.0), False),
        ((300.0, 136.0, 152.0, 238.0), False),  # started again in the second
        ((100.0, 100.0, 100.0, 116.0), True),
        ((100.0, math.nan, 100.0, 100.0), True),  # without readings nothing is shown
        ((100.0, 100.0, 100.0, math.nan), True),
    ],
)
def test_the_last_quarter_is_compared_with_the_first_half(medians, verdict):
    assert grown(medians, ALLOWED) is verdict


def test_quarters_are_medians_of_what_was_read_in_them():
    record = Record(begin=100.0, length_s=40.0)
    readings = [(99.0, 9.0), (100.0, 1.0), (109.0, 3.0), (115.0, 5.0), (125.0, 6.0), (139.0, 7.0), (140.0, 9.0)]
    assert quarters(readings, record) == (2.0, 5.0, 6.0, 8.0)


def test_a_long_tail_is_told_though_the_median_stays():
    slow = {80, 81, 82}
    latencies = [(float(at), 5.0 if at in slow else 0.1) for at in range(100)]
    record = Record(begin=0.0, length_s=100.0, latencies=latencies)
    assert quarters(latencies, record, p99) == (0.1, 0.1, 0.1, 5.0)
    assert faults(record) == ["tasks took longer, p99: 0.10 s in the second quarter, 5.00 s in the last"]
    told = [line for line in table(record) if "p99" in line]
    assert told == ["| first | | a task, submit to result, p99, ms | 100 | 100 | 100 | 5000 | 5000 |"]


def test_a_leak_is_told_by_node_and_measure():
    record = Record(begin=0.0, length_s=100.0, latencies=[(float(at), 0.1) for at in range(100)])
    for at_s in range(100):
        record.note("node0", at_s, {"open files": 20 + at_s, "sockets": 9.0, "operations held": 100.0 * at_s})
    assert faults(record) == ["open files of node0 grew: 57.0 in the second quarter, 107.0 in the last"]
    assert "| node0 | 0 | open files | 32 | 57 | 82 | 107 | 119 |" in list(table(record))
    record.failed.append("node0 did not answer")
    assert faults(record)[0] == "node0 did not answer"
