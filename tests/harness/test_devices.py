"""Which device a process gets, and what is said where it gets none, for machines that are not at hand."""

from __future__ import annotations

import click
import pytest
import torch
from runs import wsss

from harness.basics import devices, provenance
from harness.basics.devices import (
    Machine,
    covered,
    device_named,
    idle,
    of_workers,
    unused,
    why_unusable,
    without_kernels,
)
from harness.basics.errors import UserError
from harness.cli import doctor
from harness.cli.options import execution
from harness.engine import distributed

CPU = Machine()
H200 = Machine("13.0", 8, 8, "580.65.06", (13, 0), None, [(9, 0)] * 8, ["sm_80", "sm_90", "compute_120"])
OLD = Machine("13.0", 0, 4, "535.104.05", (12, 2))
HIDDEN = Machine("13.0", 0, 4, "580.65.06", (13, 0), visible="-1")
DRIVERLESS = Machine("13.0")
WRONG_BUILD = Machine(None, 0, 2, "580.65.06", (13, 0))


@pytest.mark.parametrize(
    ("name", "machine", "device"),
    [
        ("auto", CPU, "cpu"),
        ("auto", H200, "cuda:0"),
        ("auto", OLD, "cpu"),
        ("cuda", H200, "cuda:0"),
        ("cuda:7", H200, "cuda:7"),
        ("cpu", H200, "cpu"),
        ("cpu:0", CPU, "cpu"),
    ],
)
def test_a_device_has_a_number_wherever_it_is_a_gpu(name, machine, device):
    """torch.cuda.set_device refuses one without."""
    assert device_named(name, machine) == torch.device(device)


@pytest.mark.parametrize(
    "name",
    [
        *("gpu", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cuda:99999999999999999999", "cpu:3", "mps", "xpu"),
        *("meta", "hpu:0", "cuda:0,1", "0", "nan", "", " cuda", "cuda\n", "\x00", "c" * 1000, "cuda:\u0661"),
    ],
)
def test_what_is_no_device_is_refused(name):
    with pytest.raises(UserError) as refused:
        device_named(name, H200)
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (CPU, ["built without CUDA"]),
        (WRONG_BUILD, ["built without CUDA", "2 GPU(s)"]),
        (OLD, ["CUDA 13.0", "535.104.05", "CUDA 12.2", "too old"]),
        (HIDDEN, ["CUDA_VISIBLE_DEVICES='-1'"]),
        (DRIVERLESS, ["no NVIDIA driver"]),
        (Machine("12.8", 0, 1, "535.104.05", (12, 2)), ["sees no GPU", "535.104.05"]),  # 12.x runs on any 12
    ],
)
def test_a_gpu_that_torch_cannot_use_is_refused_with_the_reason(machine, words):
    with pytest.raises(UserError) as refused:
        device_named("cuda", machine)
    assert all(word in str(refused.value) for word in [*words, "--device"]), refused.value
    assert why_unusable(machine) in str(refused.value)


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="8 GPU") as refused:
        device_named("cuda:8", H200)
    assert "cuda:7" in str(refused.value)


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False),  # V100 with CUDA 13
        ((7, 5), ["sm_75"], True),
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_90", "compute_90"], True),
        ((10, 0), ["sm_90"], False),
        ((12, 0), ["sm_100", "sm_120"], True),
        ((12, 1), ["sm_120f"], True),
        ((9, 0), ["sm_90", "gfx942", ""], True),
    ],
)
def test_kernels_run_on_their_own_major_version(capability, architectures, runs):
    assert covered(capability, architectures) == runs
    text = without_kernels(Machine("13.0", 1, 1, capabilities=[capability], architectures=architectures))
    assert bool(text) != runs
    if not runs:
        assert f"{capability[0]}.{capability[1]}" in text


@pytest.mark.parametrize(
    ("name", "gpus", "worker"),
    [
        ("auto", 0, "cpu"),
        ("auto", 0.5, "cuda"),
        ("auto", 1, "cuda"),
        ("cpu", 0, "cpu"),
        ("cuda:0", 1, "cuda:0"),
    ],
)
def test_workers_compute_on_what_was_booked(name, gpus, worker):
    assert of_workers(name, gpus) == worker


def test_contradictions_are_refused():
    with pytest.raises(UserError, match="cuda:1") as refused:
        of_workers("cuda:1", 1)
    assert "CUDA_VISIBLE_DEVICES=1" in str(refused.value)
    with pytest.raises(UserError, match="no GPU is booked"):
        of_workers("cuda", 0)


def test_idle_and_unused_gpus_are_mentioned():
    assert "8 GPU(s) stand idle" in idle(0, 8)
    assert not idle(0.5, 8)
    assert not idle(0, 0)
    assert "4 GPU(s) are not used" in unused("auto", OLD)
    assert "13.0" in unused("auto", OLD)
    assert not unused("cpu", OLD)
    assert not unused("auto", HIDDEN)  # as the user asked
    assert not unused("auto", H200)


# --- the command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "options", "words"),
    [
        (H200, ["--device", "cuda:1"], "CUDA_VISIBLE_DEVICES=1"),
        (H200, ["--device", "cuda", "--gpus-per-trial", "0"], "no GPU is booked"),
        (OLD, ["--device", "cuda"], "too old"),
        (H200, ["--device", "mps", "--local"], "unknown device"),
    ],
)
def test_the_driver_refuses_before_anything_runs(machine, options, words, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(devices, "machine", lambda **how: machine)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: pytest.fail("it ran"))
    assert wsss("run", "pce/mini-scribble", *options, "--results", tmp_path) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_booked_gpu_that_torch_cannot_use_ends_the_run_and_not_each_trial(monkeypatch, tmp_path, capsys):
    """Ray finds GPUs by the driver's own tools, whatever torch can do with them."""
    import ray

    from harness.running.jobs.job import Resources
    from harness.running.jobs.session import start_ray

    monkeypatch.setattr(devices, "machine", lambda **how: OLD)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 4.0})
    with pytest.raises(UserError, match="too old"):
        start_ray(Resources(gpus_per_process=1))
    start_ray(Resources(gpus_per_process=1, address="other:6379"))  # the driver's machine does not matter
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: None)
    start_ray(Resources())
    assert "4 GPU(s) stand idle" in capsys.readouterr().err


def test_doctor_compares_driver_torch_and_gpu(monkeypatch):
    monkeypatch.setattr(devices, "machine", lambda **how: OLD)
    (_, cards, said), built = doctor.gpu_rows()
    assert cards == "unusable"
    assert all(word in said for word in ("535.104.05", "supports CUDA 12.2", "CUDA 13.0", "too old"))
    assert "CUDA 13.0" in built[1]
    v100 = Machine("13.0", 1, 1, "580.65.06", (13, 0), None, [(7, 0)], ["sm_75", "sm_90"])
    monkeypatch.setattr(devices, "machine", lambda **how: v100)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla V100")
    (_, cards, said), built = doctor.gpu_rows()
    assert cards == "Tesla V100"
    assert "no kernels for compute capability 7.0" in said
    assert built[2] == "sm_75 sm_90"
    monkeypatch.setattr(devices, "driver_here", lambda: ("535.104.05", (12, 2), 4))
    assert doctor.driver_rows() == [("NVIDIA driver", "535.104.05", "supports CUDA up to 12.2")]


# --- paths that a GPU takes ---------------------------------------------------------------------------


def test_cuda_is_started_before_its_statistics_are_reset(monkeypatch):
    """A device with a number does not start it by itself."""
    done = []
    monkeypatch.setattr(torch.cuda, "init", lambda: done.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: done.append(device))
    provenance.reset_peak_memory(torch.device("cuda", 0))
    assert done == ["init", torch.device("cuda", 0)]


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_processes_of_a_trial_set_a_device_by_its_number(monkeypatch, device):
    given = []
    monkeypatch.setattr(torch.cuda, "set_device", given.append)
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **options: given.append(backend)
    )
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with distributed.session("host:1", 0, 1, torch.device(device)):
        pass
    assert given == [torch.device(device).index or 0, "cpu:gloo,cuda:nccl"]


@pytest.mark.parametrize(
    ("gpus", "machine", "cores", "room", "loaders"),
    [
        (0, CPU, 64, 1e12, 0),
        (1, OLD, 64, 1e12, 0),
        (0, H200, 64, 1e12, 0),  # trials on the CPU beside GPUs
        (1, H200, 64, 1e12, 7),
        (0.25, H200, 64, 1e12, 1),
        (1, H200, 192, float("inf"), 8),
        (1, H200, 8, 1e12, 0),
        (1, H200, 4, 1e12, 0),
        (1, H200, 64, 64 * 2**20, 0),  # a container's usual share of /dev/shm
        (1, H200, 64, 3.5 * 2**30, 3),
    ],
)
def test_loader_processes_follow_from_cores_and_gpus(gpus, machine, cores, room, loaders):
    assert devices.loader_processes(gpus, machine, cores, room) == loaders


@pytest.mark.parametrize(
    ("given", "loaders"),
    [
        ((), 7),
        (("--workers", "2"), 2),
        (("--workers", "0"), 0),
        (("--device", "cpu"), 0),
        (("--gpus-per-trial", "0.5"), 3),
        (("--cpus-per-trial", "4"), 3),
        (("--local",), 7),
        (("--address", "elsewhere:1"), 0),
    ],
)
def test_trials_get_as_many_loader_processes_as_their_gpus_can_have(given, loaders, monkeypatch):
    seen = []

    @click.command()
    @execution
    def verb(options, resources):
        seen.append(options.workers)
        assert resources is None or "4" in given or resources.cpus_per_process == options.workers + 1

    monkeypatch.setattr(devices, "machine", lambda **_: H200)
    monkeypatch.setattr(devices, "cores_here", lambda: 64)
    monkeypatch.setattr(devices, "shared_room", lambda: 1e12)
    assert verb.main(list(given), standalone_mode=False) is None
    assert seen == [loaders]
