"""The engine: data, training, evaluation, execution and records. It knows no paper and no table."""

import wsss_bench  # from here on, `methods` and `leaderboards` are those beside this package

__version__ = "0.1.0"

wsss_bench.prefer_ours()
