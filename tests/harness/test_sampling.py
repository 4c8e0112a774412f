"""Further pictures, an order and pictures for the log: the same whatever the workers, processes and stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from runs import wsss as run

import wsss
from harness.basics.errors import UserError
from harness.basics.registry import METHODS, refresh
from harness.basics.schema import load
from harness.data.base import IGNORE, UNLABELLED, DatasetInfo
from harness.engine.batch import Batch
from harness.engine.build import Build, FurtherSpec, ViewSpec
from harness.engine.loader import StepSampler, TrainingSet
from harness.engine.method import Method
from harness.engine.sampling import Pool, Stream, check_further, ordered
from harness.engine.shown import TIMES_SHOWN, as_picture, is_due
from harness.engine.training import Trainer
from harness.recipes.declared import NoConfig
from harness.recipes.specs import AugmentSpec, Recipe

NUMBER = 20
PALETTE = ((0, 0, 0), (255, 0, 0))
INFO = DatasetInfo("birds", "Birds", ("ground", "bird"), PALETTE, {"train": NUMBER, "extra": 5}, 0, "birds")


class Pictures:
    """A data set in memory with a second split."""

    def ids(self, split: str) -> list[str]:
        assert split == "extra"
        return [str(100 + i) for i in range(5)]

    def read_image(self, image_id: str) -> np.ndarray:
        return np.random.default_rng(int(image_id)).integers(0, 256, (24, 28, 3)).astype(np.uint8)


class Labels:
    """Every pixel is of class 1."""

    tags = np.eye(4, dtype=np.uint8)[np.arange(NUMBER) % 4]

    def read(self, image_id: str) -> np.ndarray:
        return np.ones((24, 28), np.uint8)


class Fed(Method):
    """Learns from a second split, draws pictures of tag 0 twice, and shows what it sees."""

    name = "fed"
    predict = None
    specs: ClassVar = {
        "extra": FurtherSpec("extra", 2),
        "same": FurtherSpec(augment=AugmentSpec(scale=(0.5, 0.5))),
    }

    def __init__(self) -> None:
        super().__init__(NoConfig(), Build(INFO, "scribble", (16, 16), "none"))
        self.net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Dropout(0.2))
        self.seen: list[Batch] = []

    def further(self) -> dict[str, FurtherSpec]:
        return dict(self.specs)

    def views(self) -> dict[str, ViewSpec]:
        return {"strong": ViewSpec(colour=0.5)}

    def order(self, pool: Pool, epoch: int, rng: np.random.Generator) -> np.ndarray:
        weights = 1.0 + pool.tags[:, 0]
        return rng.choice(len(pool), len(pool), p=weights / weights.sum())

    def loss(self, batch: Batch, progress: Any) -> dict[str, torch.Tensor]:
        self.seen.append(batch)
        own = self.net(batch.images).mean((2, 3))
        other = self.net(batch.further["extra"].views["strong"].images).mean((2, 3))
        third = self.net(batch.further["same"].images).mean((2, 3))
        self.show("input", lambda: batch.raw[0] + 0 * torch.rand(1).long().to(torch.uint8))
        self.show("labels", batch.further["extra"].labels[0])
        return {
            "own": (own - batch.tags).square().mean(),
            "other": (other.mean(0) - third.mean(0)).abs().sum(),
        }


def recipe(**values: Any) -> Recipe:
    base = {"method": "fed", "dataset": "birds", "supervision": "scribble", "backbone": "b", "crop": 16}
    base |= {"batch": {"groups": 2, "per_group": 3}, "schedule": {"steps": 40}}
    return load(Recipe, base | values, "test")


def trainer(folder: Path, kind: type[Fed] = Fed, made: Recipe | None = None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    method, made = kind(), made or recipe()
    ids = [str(i) for i in range(NUMBER)]
    data = TrainingSet(Pictures(), ids, Labels(), made, 5, method.views(), method.further())  # type: ignore[arg-type]
    return Trainer(method, made, data, seed=5, folder=folder, **options)


def weights(of: Trainer) -> torch.Tensor:
    return torch.cat([v.flatten() for v in of.method.state_dict().values()])


def pictures(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "pictures").iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    folder = tmp_path_factory.mktemp("whole")
    found = trainer(folder)
    list(found.run())
    return found, folder


def test_a_batch_carries_what_was_asked_for_and_no_label_of_it(whole: tuple[Trainer, Path]) -> None:
    method = whole[0].method
    assert isinstance(method, Fed)
    seen = {i for batch in method.seen for i in batch.further["extra"].ids}
    assert seen == {str(100 + i) for i in range(5)}
    for batch in method.seen[:3]:
        extra, same = batch.further["extra"], batch.further["same"]
        assert (len(batch), len(extra), len(same)) == (3, 2, 3)
        assert set(same.ids) <= {str(i) for i in range(NUMBER)}
        for more in (extra, same):
            assert set(more.labels.unique().tolist()) <= {UNLABELLED, IGNORE}
            assert not more.tags.any()
            assert more.views["strong"].images.shape == more.images.shape
        assert 1 in batch.labels
    with pytest.raises(UserError, match="no further pictures 'other'"):
        method.seen[0].further["other"]


def test_two_workers_give_the_same_bits(whole: tuple[Trainer, Path], tmp_path: Path) -> None:
    found = trainer(tmp_path, workers=2)
    list(found.run())
    assert torch.equal(weights(found), weights(whole[0]))
    assert pictures(tmp_path) == pictures(whole[1])


@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_that_is_stopped_within_an_epoch_goes_on_as_if_it_had_not(
    whole: tuple[Trainer, Path], tmp_path: Path, stop: int
) -> None:
    first = trainer(tmp_path, checkpoint_seconds=0)
    work = first.run()
    for _ in range(stop):
        next(work)
    first.save()
    work.close()  # type: ignore[attr-defined]
    assert first.step % first.steps_per_epoch
    second = trainer(tmp_path)
    list(second.run())
    assert second.resumed_at == stop * 10
    assert torch.equal(weights(second), weights(whole[0]))
    assert pictures(tmp_path) == pictures(whole[1])


def test_processes_share_the_plan_of_one(whole: tuple[Trainer, Path]) -> None:
    """Samples of each group are those that one process gives it, whoever carries it and from where."""
    data, method = whole[0].data, whole[0].method
    together = list(data.plan(method, 40, 7, range(2)))
    parts = [list(data.plan(method, 40, 7, range(g, g + 1))) for g in range(2)]
    for step, *own in zip(together, *parts, strict=True):
        assert sorted(map(str, step)) == sorted(map(str, [*own[0], *own[1]]))
    assert together == list(data.plan(method, 40, 0, range(2)))[7:]


def test_without_an_order_of_its_own_a_method_has_the_permutations_that_it_had(tmp_path: Path) -> None:
    class Plain(Fed):
        order = Method.order
        specs: ClassVar = {}

    found = trainer(tmp_path, Plain)
    assert list(found.data.plan(found.method, 9, 2, range(2))) == list(StepSampler(NUMBER, 6, 9, 5, 2))
    for epoch in range(2):
        rng = np.random.Generator(np.random.PCG64([5, epoch]))
        again = Plain().order(Pool(("a", "b", "c"), np.zeros((3, 4))), epoch, rng)
        assert sorted(again) == [0, 1, 2]


def test_accumulation_cuts_further_pictures_with_the_others(tmp_path: Path) -> None:
    found = trainer(tmp_path, made=recipe(accumulate=2))
    next(found.run())
    assert isinstance(found.method, Fed)
    pieces = [(len(b), len(b.further["extra"]), len(b.further["same"])) for b in found.method.seen[:4]]
    assert pieces == [(2, 1, 2), (1, 1, 1), (2, 1, 2), (1, 1, 1)]


@pytest.mark.parametrize("length", [1, 5, 7])
def test_a_stream_goes_through_its_split_again_and_again(length: int) -> None:
    stream = Stream("extra", length, 3, seed=1, slots=range(3))
    drawn = [index for step in range(length * 6) for _, _, index, _ in stream.at(step)]
    for first in range(0, len(drawn), length):
        assert sorted(drawn[first : first + length]) == list(range(length))
    late = Stream("extra", length, 3, seed=1, slots=range(1, 3))
    assert [index for _, _, index, _ in late.at(5)] == drawn[16:18]
    if length > 1:
        other = Stream("other", length, 3, seed=1, slots=range(3))
        assert [i for step in range(length * 4) for _, _, i, _ in other.at(step)] != drawn


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda n: range(n - 1), "order gives range of int64 (3,) for 4 pictures"),
        (lambda n: [*range(n - 1), n], "order gives index 4 of 4 pictures"),
        (lambda n: np.linspace(0, 1, n), "order gives ndarray of float64"),
        (lambda n: None, "order gives NoneType"),
        (lambda n: np.zeros((n, 2), int), "(4, 2) for 4 pictures"),
    ],
)
def test_an_order_that_is_none_is_refused(given: Callable[[int], Any], said: str) -> None:
    class Odd(Fed):
        def order(self, pool: Pool, epoch: int, rng: np.random.Generator) -> Sequence[int]:
            return given(len(pool))

    with pytest.raises(UserError) as error:
        ordered(Odd(), Pool(tuple("abcd"), np.zeros((4, 2))), 0, np.random.default_rng(0))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"extra": 3}, "further gives no FurtherSpec"),
        ([FurtherSpec()], "further gives no FurtherSpec"),
        ({"more": FurtherSpec("trian")}, "'more' are of split 'trian', which birds does not have"),
        ({"": FurtherSpec("extra")}, "further pictures cannot be called ''"),
        ({"a/b": FurtherSpec("extra")}, "cannot be called 'a/b'"),
        ({"more": FurtherSpec(None)}, "have split None and per_group 0"),  # type: ignore[arg-type]
        ({"more": FurtherSpec("extra", -1)}, "have split 'extra' and per_group -1"),
        ({"more": FurtherSpec("extra", 1)}, "1 further pictures 'more' cannot be cut into 2 pieces"),
    ],
)
def test_further_pictures_that_cannot_be_are_refused(given: Any, said: str) -> None:
    class Odd(Fed):
        def further(self) -> Any:
            return given

    with pytest.raises(UserError) as error:
        check_further(Odd(), recipe(accumulate=2))
    assert said in str(error.value)


# --- pictures for the log ----------------------------------------------------------------------------


def test_pictures_are_kept_at_rows_spread_over_the_run_and_change_no_number(
    whole: tuple[Trainer, Path], tmp_path: Path
) -> None:
    assert list(pictures(whole[1])) == [
        f"{name}-{step:07d}.png" for name in ("input", "labels") for step in (10, 20, 30, 40)
    ]

    class Silent(Fed):
        def show(self, name: str, picture: Any) -> None:
            pass

    found = trainer(tmp_path, Silent)
    list(found.run())
    assert torch.equal(weights(found), weights(whole[0]))
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(
    ("total", "every"), [(40, 10), (60, 10), (1_000, 10), (17_605, 10), (7, 10), (300, 1)]
)
def test_a_run_shows_pictures_at_most_so_many_times_the_last_step_included(total: int, every: int) -> None:
    due = [step for step in range(1, total + 1) if is_due(step, total, every)]
    rows = -(-total // every)
    assert len(due) == min(TIMES_SHOWN, rows)
    assert due[-1] == total
    gaps = np.diff([0, *due])
    assert gaps.max() <= 2 * max(gaps[:-1].min(initial=total), every)


def test_kinds_of_pictures() -> None:
    method = Fed()
    grey = as_picture("a", torch.tensor([[0.0, 0.5], [2.0, float("nan")]]), method)
    assert grey is not None
    assert grey[..., 0].tolist() == [[0, 128], [255, 0]]
    labels = as_picture("a", lambda: torch.tensor([[0, 1, 255]]), method)
    assert labels is not None
    assert labels.tolist() == [[[0, 0, 0], [255, 0, 0], [255, 255, 255]]]
    colours = as_picture("a", torch.arange(6, dtype=torch.uint8).view(3, 1, 2), method)
    assert colours is not None
    assert colours.tolist() == [[[0, 2, 4], [1, 3, 5]]]
    mask = as_picture("a", torch.tensor([[[True, False]]]), method)
    assert mask is not None
    assert mask[..., 0].tolist() == [[255, 0]]
    assert as_picture("a", torch.empty(3, 4, 4, device="meta"), method) is None
    for wrong in (torch.zeros(2, 4, 4), torch.zeros(3, 4, 4, dtype=torch.int64), torch.zeros(0, 4), "text"):
        with pytest.raises(UserError, match="the picture 'a' is"):
            as_picture("a", wrong, method)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cannot be called 'a/b'"):
        as_picture("a/b", torch.zeros(3, 4, 4), method)


def test_a_step_keeps_the_first_of_each_name_few_and_small(tmp_path: Path) -> None:
    class Many(Fed):
        def after_step(self, progress: Any) -> None:
            for number in range(20):
                self.show(f"p{number}", torch.full((900, 400), 0.5))
            self.show("input", torch.zeros(5, 5))

    found = trainer(tmp_path, Many)
    next(found.run())
    names = list(pictures(tmp_path))
    assert len(names) == 8
    with Image.open(tmp_path / "pictures/p0-0000010.png") as picture:
        assert max(picture.size) == 384
    with Image.open(tmp_path / "pictures/input-0000010.png") as picture:
        assert picture.size == (16, 16)  # that of the loss


# --- whole runs --------------------------------------------------------------------------------------

RECIPE = """
method = "fed-too"
extends = "_shared/mini-deeplab"
supervision = "scribble"
crop = 32
batch = { per_group = 2 }
schedule = { steps = 2 }
"""


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type]:
    """A method that learns from a split, by its configuration."""

    @wsss.schema
    class Values(wsss.DeepLabConfig):
        """Values."""

        split: str = ""
        """Whose pictures."""

    class FedToo(wsss.DeepLabMethod):
        name, title, supervision, Config = "fed-too", "Fed too", frozenset({"scribble"}), Values

        def further(self) -> dict[str, FurtherSpec]:
            return {"more": FurtherSpec(self.config.split)}

        def loss(self, batch: Batch, progress: Any) -> dict[str, torch.Tensor]:
            logits = self.network(batch.images).logits.float()
            more = self.network(batch.further["more"].images).logits.float()
            self.show("guess", logits[0].argmax(0))
            return {"seg": wsss.partial_cross_entropy(logits, batch.labels), "more": more.square().mean()}

    (tmp_path / "fed.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    yield wsss.register_method(FedToo)
    METHODS.forget("fed-too")
    refresh()


def test_records_and_digests_know_the_further_split_and_no_scored_picture_is_trained_on(
    fed: type, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run", "fed.toml", "--seed", "0", "--local", "--device", "cpu") == 0
    scored = ["run", "fed.toml", "--seed", "0", "--local", "--device", "cpu", "--set", "config.split=val"]
    capsys.readouterr()
    assert run(*scored) == 2
    assert "the pictures of val are trained on, without labels" in capsys.readouterr().err
    assert run(*scored, "--set", "overlap=allow") == 0
    usual, other = sorted(wsss.Store("results").records(), key=lambda r: len(r.data["overrides"]))
    assert "100 pictures of val, without labels, are trained on too" in other.data["notes"]
    assert "notes" not in usual.data
    assert [file.name for file in (usual.path / "pictures").iterdir()] == ["guess-0000002.png"]
