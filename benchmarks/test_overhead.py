"""The harness beside the work: at most 3 % over a bare loop in a minute, and 1 s for each more trial.

What is measured, and the figures of a thousand trials: ``overhead.py``, which prints them all.
"""

from __future__ import annotations

from typing import Any

import overhead

#: Largest share of a bare loop's time that Ray, records, logging and checkpoints may add.
SHARE = 0.03
#: Seconds for one more trial of no work.
SECONDS = 1.0
#: MiB by which the driver may grow over the trials of the short form: noise of the allocator.
GROWTH = 20.0


def test_a_trial_of_a_minute_takes_at_most_3_percent_more_than_a_bare_loop(benchmark: Any):
    found = benchmark.pedantic(overhead.minute, kwargs={"trials": 3}, rounds=1)
    benchmark.extra_info |= found
    assert found["overhead"] <= SHARE, found


def test_one_more_trial_takes_at_most_a_second(benchmark: Any):
    found = benchmark.pedantic(overhead.slope, kwargs={"few": 3, "many": 43, "rounds": 2}, rounds=1)
    benchmark.extra_info |= found
    assert found["seconds_per_trial"] <= SECONDS, found


def test_forty_trials_of_no_work_are_recorded_and_gathered_in_flat_memory(benchmark: Any):
    found = benchmark.pedantic(overhead.thousand, kwargs={"trials": 40}, rounds=1)
    benchmark.extra_info |= found
    assert found["records"] == 40
    assert found["leaderboard_files"] > 0
    assert found["driver_mib_at_the_end"] - found["driver_mib_at_a_quarter"] < GROWTH
