"""Ray for the length of a run. Ray is imported when it is started."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import wsss_bench
from harness.basics import devices, interruption
from harness.basics.errors import UserError
from harness.basics.terminal import say
from harness.running.jobs.job import Resources


@contextmanager
def ray_session(resources: Resources, processes: int = 1) -> Iterator[None]:
    """A local Ray, or a cluster joined, for the length of the block; nothing new where Ray runs already.

    Arguments and errors as :func:`start_ray`.
    """
    mine = start_ray(resources, processes)
    try:
        with interruption.handled():
            interruption.install()  # Ray has taken SIGTERM
            yield
    finally:
        if mine:
            import ray

            ray.shutdown()


def start_ray(resources: Resources, processes: int = 1) -> bool:
    """Start a local Ray, or join a cluster; True if it was started here.

    Args:
        resources: what trials may use.
        processes: of the largest trial.

    Raises:
        UserError: Ray is not usable here, or has too little for one trial.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1e9")  # nobody reads them; they grow with the trials
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    if resources.address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"Ray cannot be imported: {error}", remedy="install ray[tune], or use --local"
        ) from error
    mine = not ray.is_initialized()
    if mine:
        local: dict[str, Any] = (
            {} if resources.address else {"object_store_memory": 128 * 2**20, "include_dashboard": False}
        )
        # "local": without an address Ray would join a cluster of this machine that somebody else started.
        start = partial(
            ray.init,
            address=resources.address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=wsss_bench.worker_environment(),
        )
        try:
            try:
                start(**local)
            except Exception as error:
                if "timed out during startup" not in str(error):
                    raise
                start(**local)  # a busy machine; Ray waits half a minute and no longer
        except Exception as error:  # Ray raises bare exceptions too
            raise UserError(
                f"Ray did not start: {(str(error).splitlines() or [type(error).__name__])[0]}",
                where=resources.address or "a local Ray",
                remedy="check --address, or use --local",
            ) from error
    there = ray.cluster_resources()
    for kind, each in (("CPU", resources.cpus_per_process), ("GPU", resources.gpus_per_process)):
        wanted = each * processes
        if wanted > there.get(kind, 0):
            if mine:
                ray.shutdown()
            raise UserError(
                f"one trial asks for {wanted:g} {kind}, the cluster has {there.get(kind, 0):g}",
                where=f"--{kind.lower()}s-per-trial",
                remedy="ask for less",
            )
    try:
        if resources.gpus_per_process and resources.address is None:
            devices.device_named("cuda", devices.machine())  # trials would be refused one by one
    except UserError:
        if mine:
            ray.shutdown()
        raise
    if mine and (text := devices.idle(resources.gpus_per_process, there.get("GPU", 0))):
        say(f"note: {text}")
    return mine
