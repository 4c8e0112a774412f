"""Method adapters: one readable file per paper, all under the interface of :mod:`harness.engine.method`."""
