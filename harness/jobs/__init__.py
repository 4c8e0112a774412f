"""Jobs and who runs them: in this process, one after another, or on Ray. Only :mod:`harness.jobs.on_ray` and
:mod:`harness.jobs.ranks` import Ray, and everything runs without it."""
