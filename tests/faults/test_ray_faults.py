"""A Ray cluster of several local nodes: workers, drivers and nodes die, and no number changes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading

import pytest
from fault_tools import drafts, driver, exit_code, files_of, holders, parent, settled, wait_for
from runs import RECIPE, TINY, assert_same_numbers, wsss

from harness.recipes.resolving import parse_overrides
from harness.records.history import read_rows
from harness.records.locks import is_free
from harness.records.records import Store
from harness.running.jobs.job import Resources
from harness.running.trials.execution import execute
from harness.running.trials.trial import Options, Trial

pytestmark = pytest.mark.faults

#: Long enough to be in the middle of.
LONGER = [*TINY, "--set", "schedule.steps=100", "--device", "cpu"]
SEEDS = 4
#: A node that is gone is missed after one second and a half, and not after fifteen.
PROMPT = {"health_check_initial_delay_ms": 300, "health_check_period_ms": 300}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, small):
    """Records of a run without Ray, by seed."""
    results = tmp_path_factory.mktemp("undisturbed")
    command = ["run", RECIPE, *LONGER, "--local", "--seeds", SEEDS, "--data-root", small]
    assert wsss(*command, "--results", results) == 0
    return {r.seed: r for r in Store(results).records()}


@pytest.fixture(scope="module")
def cluster():
    """A head that takes no trials, and two nodes that take one each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # beside other work its workers would starve
        import ray
        from ray.cluster_utils import Cluster

        if ray.is_initialized():
            ray.shutdown()
        memory = {"object_store_memory": 80 * 2**20}
        found = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, **memory, "_system_config": PROMPT},
        )
        for _ in range(2):
            found.add_node(num_cpus=1, **memory)
        yield found
        found.shutdown()


@pytest.fixture
def command(cluster, small, tmp_path):
    where = ["--data-root", small, "--results", tmp_path, "--address", cluster.address]
    return ["run", RECIPE, *LONGER, *where, "--seeds", 2]


def _no_token() -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"


def training(results):
    """Trials that have a checkpoint to go on from and are not near their end, with their processes."""

    def early(folder):
        return 1 <= len(read_rows(folder / "history.csv")) <= 5  # of ten

    def found():
        running = holders(results).items()
        return {f: p for f, p in running if (f / "checkpoint" / "last.pt").exists() and early(f)}

    return wait_for(found)


def meanwhile(action):
    """Let something happen while the driver runs in this thread."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def assert_all_as(undisturbed, results, seeds):
    records = list(Store(results).records())
    assert [r.seed for r in records] == list(range(seeds))
    for record in records:
        assert record.finished, record.data["reason"]
        assert_same_numbers(record, undisturbed[record.seed])
    assert not drafts(results)
    return records


def test_a_killed_worker_is_replaced_and_goes_on(command, tmp_path, undisturbed, capfd):
    def kill():
        os.kill(next(iter(training(tmp_path).values())), signal.SIGKILL)

    meanwhile(kill)
    assert wsss(*command, "--checkpoint-seconds", 0) == 0
    records = assert_all_as(undisturbed, tmp_path, 2)
    assert any(r.data["resumed"] > 0 for r in records)
    assert "again    agmm/mini-scribble seed" in capfd.readouterr().err


def test_a_trial_whose_worker_dies_too_often_is_recorded_as_failed(cluster, small, tmp_path):
    def kill():
        os.kill(next(iter(training(tmp_path).values())), signal.SIGKILL)

    options = Options(results=tmp_path, data_roots=(str(small),), device="cpu", checkpoint_seconds=0)
    overrides = parse_overrides([a for a in LONGER if "=" in a])
    trials = [Trial(RECIPE, seed, overrides) for seed in range(2)]
    meanwhile(kill)
    outcomes = execute(trials, options, Resources(address=cluster.address, retries=0))
    assert sorted(o.status for o in outcomes) == ["failed", "finished"]
    (failed,) = [r for r in Store(tmp_path).records() if not r.finished]
    assert "tried once: " in failed.data["reason"]
    assert "died" in failed.data["reason"]
    assert "Failure # 1" in (failed.path / "error.txt").read_text()


def test_a_killed_driver_is_started_again_and_goes_on(command, tmp_path, undisturbed):
    command += ["--checkpoint-seconds", 0]
    process = driver(*command, prepare=_no_token)
    folders = training(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    assert exit_code(process) == -signal.SIGKILL
    assert not list(Store(tmp_path).records())
    assert wsss(*command) == 0
    records = assert_all_as(undisturbed, tmp_path, 2)
    assert any(r.data["resumed"] > 0 for r in records if r.path in folders)
    assert all(is_free(record.path) for record in records)


def test_sigterm_lets_workers_write_checkpoints(command, tmp_path, undisturbed):
    """No checkpoint falls due in so short a run, so what is there was written at the end."""
    process = driver(*command, prepare=_no_token)
    (history, *_) = wait_for(lambda: list(tmp_path.glob("*/*/*/*/history.csv")))
    process.terminate()
    assert exit_code(process) == 143
    assert (history.parent / "checkpoint" / "last.pt").exists()
    assert not list(Store(tmp_path).records())
    assert wsss(*command) == 0
    records = assert_all_as(undisturbed, tmp_path, 2)
    assert next(r for r in records if r.path == history.parent).data["resumed"] > 0


def test_a_search_with_two_processes_per_trial_finds_what_one_process_finds(cluster, small, tmp_path):
    """Each trial holds both nodes; sums over groups differ in their last bits alone."""
    found = {}
    both = ["--address", cluster.address, "--processes-per-trial", 2]
    for processes, place in ((1, ["--local"]), (2, both)):
        out = tmp_path / str(processes)
        search = ["search", RECIPE, *TINY, "--set", "batch.groups=2", "--set", "batch.per_group=2", *place]
        search += ["--trials", 2, "--sampler", "random", "--data-root", small, "--out", out]
        search += ["--device", "cpu", "--results", tmp_path / "results"]
        assert wsss(*search) == 0
        found[processes] = json.loads((out / "search.json").read_text())["trials"]
    for one, two in zip(found[1], found[2], strict=True):
        assert (one["values"], one["state"]) == (two["values"], two["state"])
        assert two["miou"] == pytest.approx(one["miou"], abs=0.5)


def test_a_grid_goes_on_after_its_driver_and_a_node_died(cluster, small, tmp_path):
    """The same records and the same table as in this process."""
    arguments = ["grid", RECIPE, "--set", "schedule.steps=100", "--set", "batch.per_group=4"]
    arguments += ["--set", "crop=32,48", "--seed", 0, "--device", "cpu", "--checkpoint-seconds", 0]
    one, two = (
        [*arguments, "--data-root", small, "--results", tmp_path / n, "--out", tmp_path / n]
        for n in ("one", "two")
    )
    assert wsss(*one, "--local") == 0
    two += ["--address", cluster.address]
    process = driver(*two, prepare=_no_token)
    training(tmp_path / "two")
    os.kill(process.pid, signal.SIGKILL)
    exit_code(process)
    meanwhile(lambda: training(tmp_path / "two") and _lose_a_node_of(cluster))
    assert wsss(*two) == 0
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    assert any(
        record.data["resumed"] > 0 for record in assert_equal_stores(tmp_path / "one", tmp_path / "two")
    )
    for ending in (".csv", ".md"):
        alone, shared = (
            (tmp_path / n / f"grid-agmm-mini-scribble{ending}").read_text() for n in ("one", "two")
        )
        assert alone == shared


def test_an_equal_budget_goes_on_after_its_driver_and_a_node_died(cluster, small, tmp_path):
    """Trials of both searches, and the trainings behind them, have the values of this process."""
    recipes = ("pce/mini-scribble", "pce/mini-point")
    arguments = ["tune", *recipes, "--set", "schedule.steps=60", "--set", "batch.per_group=4"]
    arguments += ["--set", "crop=32", "--set", "weights=none", "--scheduler", "none", "--device", "cpu"]
    arguments += ["--trials", 2, "--then-seeds", 1, "--checkpoint-seconds", 0, "--data-root", small]
    one, two = (
        [*arguments, "--results", tmp_path / n / "results", "--out", tmp_path / n] for n in ("one", "two")
    )
    assert wsss(*one, "--local") == 0
    two += ["--address", cluster.address]

    def begun(recipe):
        return lambda: list((tmp_path / "two" / "search" / recipe).glob("*/trials/*/checkpoint/last.pt"))

    process = driver(*two, prepare=_no_token)
    wait_for(begun(recipes[0]))
    os.kill(process.pid, signal.SIGKILL)
    exit_code(process)
    meanwhile(lambda: wait_for(begun(recipes[1])) and _lose_a_node_of(cluster))
    assert wsss(*two) == 0
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    alone, shared = (
        {f.parts[-4:-2]: _trials(f) for f in (tmp_path / n / "search").rglob("search.json")}
        for n in ("one", "two")
    )
    assert len(alone) == 2
    assert alone == shared
    assert_equal_stores(tmp_path / "one" / "results", tmp_path / "two" / "results")


def assert_equal_stores(one, two):
    """The records of the second, which are those of the first."""
    left, right = (list(Store(place).records()) for place in (one, two))
    assert len(left) == len(right) >= 2
    for a, b in zip(left, right, strict=True):
        assert_same_numbers(a, b)
    return right


def _lose_a_node_of(cluster):
    """It trains just now."""
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)


def _trials(file):
    return [(t["values"], t["state"], t["miou"]) for t in json.loads(file.read_text())["trials"]]


def test_records_are_scored_while_a_node_dies(cluster, small, tmp_path, capfd):
    """Another protocol for thirty records: none twice, and none lost with the node. Then eight of their
    networks export label maps while another node dies."""
    train = ["run", RECIPE, *TINY, "--set", "schedule.steps=2", "--data-root", small, "--device", "cpu"]
    where = ["--results", tmp_path / "results"]
    assert wsss(*train, "--local", "--seed", 0, *where) == 0
    (first,) = Store(tmp_path / "results").records()
    for seed in range(1, 30):  # what is scored is the network, which may be the same
        copy = first.path.with_name(f"seed-{seed}")
        shutil.copytree(first.path, copy)
        record = json.loads((copy / "record.json").read_text()) | {"seed": seed}
        (copy / "record.json").write_text(json.dumps(record))

    def scored():
        return list((tmp_path / "results").rglob("val-agmm-voc-*/evaluation.json"))

    node = list(cluster.worker_nodes)[-1]

    def kill():
        wait_for(lambda: len(scored()) >= 5)
        cluster.remove_node(node, allow_graceful=False)

    more = [
        "evaluate",
        RECIPE,
        *TINY,
        "--set",
        "schedule.steps=2",
        "--protocol",
        "agmm-voc",
        "--data-root",
        small,
    ]
    more += [*where, "--device", "cpu", "--address", cluster.address]
    meanwhile(kill)
    assert wsss(*more) == 0
    assert len(scored()) == 30
    times = {file: file.stat().st_mtime_ns for file in scored()}
    assert wsss(*more) == 0
    assert {file: file.stat().st_mtime_ns for file in scored()} == times
    assert capfd.readouterr().out.count("agmm-voc") == 60
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)

    def exported():
        return [f for f in labels.glob("*/export.json") if "pictures" in json.loads(f.read_text())]

    labels, node = tmp_path / "labels", next(iter(cluster.worker_nodes))

    def kill_another():
        wait_for(lambda: len(exported()) >= 2)
        cluster.remove_node(node, allow_graceful=False)

    export = ["export", RECIPE, *TINY, "--set", "schedule.steps=2", "--split", "val", "--data-root", small]
    export += [*where, "--device", "cpu", "--address", cluster.address, "--out", labels]
    meanwhile(kill_another)
    assert wsss(*export, *(part for seed in range(8) for part in ("--seed", seed))) == 0
    assert len(exported()) == 8
    maps = [{f.name: f.read_bytes() for f in folder.glob("*.png")} for folder in labels.iterdir()]
    assert maps[0]
    assert all(m == maps[0] for m in maps)  # copies of one network
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)


def test_a_killed_node_loses_no_finished_record_and_changes_no_number(
    command, cluster, tmp_path, undisturbed
):
    """The last test: a node is gone after it."""
    nodes = {n.all_processes["raylet"][0].process.pid: n for n in cluster.worker_nodes}
    kept = {}

    def kill():
        kept.update(files_of(wait_for(lambda: settled(tmp_path))))
        folder, process = next(iter(training(tmp_path).items()))
        cluster.remove_node(nodes[parent(process)], allow_graceful=False)
        kept["killed"] = folder

    meanwhile(kill)
    assert wsss(*command, "--seeds", SEEDS, "--checkpoint-seconds", 0) == 0
    killed = kept.pop("killed")
    assert kept
    assert {f: f.stat().st_mtime_ns for f in kept} == kept
    records = assert_all_as(undisturbed, tmp_path, SEEDS)
    assert next(r for r in records if r.path == killed).data["resumed"] > 0
