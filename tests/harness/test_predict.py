"""Pictures in, label maps out: from a record, a checkpoint or a recipe; nothing is written over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.basics.errors import UserError
from harness.basics.registry import DATASETS
from harness.cli.main import cli, invoke
from harness.data.images import write_index
from harness.data.sets import mini_scenes
from harness.data.sets.own import register
from harness.engine.networks import load_network
from harness.evaluation import evaluator, tiling
from harness.recipes import protocols
from harness.recipes.resolving import resolve
from harness.records.records import Record
from harness.running.inference import deployment, prediction
from harness.running.inference.segmenter import Segmenter
from harness.running.trials.execution import execute, plan
from harness.running.trials.trial import Options

RECIPE = "full/mini-full"
SET = {"dataset": "shapes", "schedule.steps": 2, "batch.per_group": 2, "crop": 32, "backbone": "mini_cnn"}
CLASSES = ["none", "a", "b", "c", "d", "e", "f"]
COLOURS = [[0, 0, 0], *([10 * k, 255 - k, k] for k in range(1, 7))]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    before = dict(DATASETS._registered)
    yield
    DATASETS._registered.clear()
    DATASETS._registered.update(before)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own data set, whose pictures are turned by their EXIF orientation."""
    root = tmp_path_factory.mktemp("shapes")
    for index in range(4):
        picture, mask = mini_scenes.scene(0, "train", index)
        (root / "images").mkdir(exist_ok=True)
        Image.fromarray(picture).save(root / "images" / f"{index}.png")
        write_index(root / "masks" / f"{index}.png", mask)
    (root / "train.txt").write_text("0\n1\n2\n")
    (root / "val.txt").write_text("3\n")
    text = f'classes = {json.dumps(CLASSES)}\nbackground = "none"\npalette = {COLOURS}\nexif = "apply"\n'
    (root / "dataset.toml").write_text(text)
    return root


@pytest.fixture(scope="module")
def record(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A finished record of two steps on that data set, which nobody knows afterwards."""
    before = dict(DATASETS._registered)
    register([f"shapes={shapes}"])
    options = Options(tmp_path_factory.mktemp("results"), (f"shapes={shapes}",), device="cpu")
    (outcome,) = execute(plan([RECIPE], [0], SET), options, None)
    assert outcome.status == "finished", outcome.reason
    DATASETS._registered.clear()
    DATASETS._registered.update(before)
    return next(options.store.records())


def photograph(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
    Image.fromarray(values).save(path, **options)
    return path


def wsss(*arguments: object) -> int:
    return invoke(cli, [str(a) for a in arguments])


def predicted(record: Record, pictures: Path | list[Path], out: Path, *more: object) -> int:
    pictures = pictures if isinstance(pictures, list) else [pictures]
    return wsss("predict", record.path, *pictures, "--out", out, "--device", "cpu", *more)


# --- nothing to repeat -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["record", "record.json", "last.pt", "a copy of last.pt"])
def test_a_record_and_a_checkpoint_say_what_they_are(record: Record, tmp_path: Path, kind: str) -> None:
    pictures = photograph(tmp_path / "in" / "a.jpg").parent
    checkpoint = record.path / "checkpoint" / "last.pt"
    source = {
        "record": record.path,
        "record.json": record.path / "record.json",
        "last.pt": checkpoint,
        "a copy of last.pt": tmp_path / "model.pt",
    }[kind]
    shutil.copy(checkpoint, tmp_path / "model.pt")
    out = tmp_path / "out"
    assert wsss("predict", source, pictures, "--out", out, "--device", "cpu") == 0
    label = Image.open(out / "a.png")
    assert label.getpalette()[:21] == [v for colour in COLOURS for v in colour]
    facts = json.loads((out / "predict.json").read_text())
    assert (facts["classes"], facts["recipe"], facts["encoding"]) == (CLASSES, RECIPE, "classes")
    assert "shapes" not in DATASETS


def test_a_recipe_with_its_data_set_finds_its_record(record: Record, shapes: Path, tmp_path: Path) -> None:
    pictures = photograph(tmp_path / "in" / "a.jpg").parent
    sets = [part for k, v in SET.items() for part in ("--set", f"{k}={v}")]
    results = record.path.parents[3]
    command = ["predict", RECIPE, pictures, "--out", tmp_path / "out", "--results", results, *sets]
    assert wsss(*command, "--data-root", f"shapes={shapes}") == 0
    assert predicted(record, pictures, tmp_path / "other") == 0
    assert (tmp_path / "out" / "a.png").read_bytes() == (tmp_path / "other" / "a.png").read_bytes()


def test_pictures_are_turned_as_in_training(record: Record, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    photograph(tmp_path / "in" / "a.jpg", exif=exif)
    assert predicted(record, tmp_path / "in", tmp_path / "out") == 0
    assert Image.open(tmp_path / "out" / "a.png").size == (30, 40)


def test_a_checkpoint_without_origin_asks_for_its_recipe(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = photograph(tmp_path / "in" / "a.jpg").parent
    torch.save({"weights": torch.zeros(1)}, tmp_path / "theirs.pth")
    assert wsss("predict", tmp_path / "theirs.pth", pictures, "--out", tmp_path / "out") == 2
    assert "--checkpoint" in capsys.readouterr().err
    assert wsss("predict", record.path, pictures, "--seed", 1) == 2
    assert "--seed is not used with a record" in capsys.readouterr().err
    assert wsss("predict", tmp_path / "in", pictures) == 2
    assert "record.json" in capsys.readouterr().err


def test_a_damaged_checkpoint_names_the_command_that_trains_it_again(
    record: Record, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(record.path, tmp_path / "copy")
    other = torch.load(record.path / "checkpoint" / "last.pt", weights_only=True) | {"step": 3}
    torch.save(other, tmp_path / "copy" / "checkpoint" / "last.pt")
    register([f"shapes={shapes}"])
    pictures = photograph(tmp_path / "in" / "a.jpg").parent
    assert wsss("predict", tmp_path / "copy", pictures, "--out", tmp_path / "out", "--device", "cpu") == 2
    said = capsys.readouterr().err
    assert "--set dataset=shapes" in said
    assert f"--data-root shapes={shapes}" in said


# --- nothing is written over -------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    "trouble",
    ["same folder", "picture by name", "picture by link", "two endings", "two folders", "overlay", "theirs"],
)
def test_what_would_be_written_over_is_refused_before_the_first_picture(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str], trouble: str
) -> None:
    inside, out = tmp_path / "in", tmp_path / "out"
    pictures = [inside]
    photograph(inside / "0.png")
    photograph(inside / "a.png", 1)
    if trouble == "same folder":
        out = tmp_path / "in" / ".." / "in"
    elif trouble == "picture by name":
        pictures, out = [inside / "0.png", inside / "a.png"], inside
    elif trouble == "picture by link":
        out.mkdir()
        (out / "a.png").hardlink_to(inside / "a.png")
    elif trouble == "two endings":
        photograph(inside / "a.jpg")
    elif trouble == "two folders":
        photograph(tmp_path / "more" / "a.png")
        pictures.append(tmp_path / "more")
    elif trouble == "overlay":
        photograph(inside / "a_overlay.png")
    else:
        photograph(out / "a.png", 5)
    before = contents(tmp_path)
    assert predicted(record, pictures, out) == 2
    assert "remedy:" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_other_pictures_and_other_networks_go_elsewhere(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph(tmp_path / "one" / "a.png", 1)
    photograph(tmp_path / "two" / "a.png", 2)
    out = tmp_path / "out"
    assert predicted(record, tmp_path / "one", out) == 0
    before = contents(out)
    assert predicted(record, tmp_path / "two", out) == 2
    assert "one/a.png" in capsys.readouterr().err
    assert predicted(record, tmp_path / "one", out, "--protocol", "agmm-voc") == 2
    assert "another protocol" in capsys.readouterr().err
    assert contents(out) == before


# --- whole folders -----------------------------------------------------------------------------------


def test_folders_are_mirrored_and_what_is_broken_is_named_at_the_end(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside, out = tmp_path / "in", tmp_path / "in" / "labels"
    photograph(inside / "day 1" / "x.TIF")
    photograph(inside / "day 2" / "x.tiff", 1)
    photograph(inside / "b.JPG", 2)
    (inside / "day 1" / "._x.jpg").write_bytes(b"\0\5\x16\7")
    (inside / ".thumbnails").mkdir()
    photograph(inside / ".thumbnails" / "t.png")
    (inside / "a.jpg").write_bytes((inside / "b.JPG").read_bytes()[:300])
    for _ in range(2):  # results within the folder of pictures are no pictures the second time
        assert predicted(record, inside, out) == 1
        said = capsys.readouterr()
        assert "left out" in said.err
        assert "a.jpg" in said.err
        assert "._x.jpg" not in said.err
        names = {str(p.relative_to(out)) for p in out.rglob("*.png")}
        assert names == {f"{n}{end}.png" for n in ("b", "day 1/x", "day 2/x") for end in ("", "_overlay")}
    assert said.out == "", "the second time nothing is left to do"


def test_it_goes_on_where_it_stopped(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(4):
        photograph(tmp_path / "in" / f"{index}.png", index)
    out, seen = tmp_path / "out", []
    segment = tiling.segment

    def stops(*arguments: object, name: str, **options: object) -> np.ndarray:
        seen.append(Path(name).stem)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return segment(*arguments, name=name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tiling, "segment", stops)
    with pytest.raises(KeyboardInterrupt):
        list(prediction.predict(record.path, [tmp_path / "in"], out, device="cpu"))
    (out / prediction.DONE).open("a").write('{"name": "3", "pict')  # cut off
    photograph(tmp_path / "in" / "0.png", 9)  # changed since
    list(prediction.predict(record.path, [tmp_path / "in"], out, device="cpu"))
    assert seen == ["0", "1", "2", "0", "2", "3"]
    assert len(list(out.glob("*_overlay.png"))) == 4


# --- probabilities and tiles -------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [0, 256])
def test_probabilities_are_those_of_the_label_map(record: Record, tmp_path: Path, tile: int) -> None:
    photograph(tmp_path / "in" / "a.png", size=(600, 300))
    assert predicted(record, tmp_path / "in", tmp_path / "out", "--scores", "--tile", tile) == 0
    scores = np.load(tmp_path / "out" / "a.npz")["scores"]
    assert (scores.shape, scores.dtype) == ((7, 300, 600), np.float16)
    np.testing.assert_allclose(scores.astype(float).sum(0), 1, atol=0.01)
    label = np.array(Image.open(tmp_path / "out" / "a.png"))
    best = np.take_along_axis(scores, label[None].astype(int), 0)[0]
    assert (best >= scores.max(0) - 1e-3).all()


@pytest.mark.parametrize(
    ("height", "width", "side"), [(100, 90, 64), (64, 200, 64), (65, 64, 64), (9, 7, 64)]
)
def test_every_pixel_is_decided_once_and_seen_with_a_margin(height: int, width: int, side: int) -> None:
    decided = np.zeros((height, width), int)
    for part in tiling.parts(height, width, side):
        decided[part.decides] += 1
        for own, seen, length in zip(part.decides, part.seen, (height, width), strict=True):
            assert seen.stop - seen.start == min(side, length)
            assert seen.start == 0 or own.start - seen.start >= side // 8
            assert seen.stop == length or seen.stop - own.stop >= side // 8
    assert (decided == 1).all()


def test_pictures_that_fit_are_predicted_whole() -> None:
    single = protocols.Protocol()
    assert tiling.tile_side(375, 500, 21, single) is None
    assert tiling.tile_side(1024, 2048, 19, single) is None
    assert tiling.tile_side(3000, 4000, 21, single) == 1024
    many = tiling.tile_side(3000, 4000, 150, single)
    assert many is not None
    assert 512 <= many < 700
    assert tiling.tile_side(3000, 4000, 150, protocols.Protocol(scales=(0.5, 2.0))) < many  # type: ignore[operator]
    assert tiling.tile_side(3000, 4000, 150, protocols.Protocol(window=(769, 769))) == 769


def test_tiles_agree_with_the_whole_where_a_network_sees_nothing_beyond(
    record: Record, tmp_path: Path
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3)).astype(np.uint8)

    class PerPixel:
        """A network that looks at one pixel."""

        build = type("B", (), {"num_classes": 3, "dataset": type("I", (), {"background": 0})})

        def grid_logits(self, images: torch.Tensor, network: str) -> torch.Tensor:
            return images

    for p in (protocols.Protocol(flip=True), protocols.Protocol(squash=(90, 130))):
        options = {"device": torch.device("cpu")}
        keep = [np.zeros((3, 90, 130), np.float16) for _ in range(2)]
        whole = tiling.segment(PerPixel(), image, p, keep=keep[0], **options)  # type: ignore[arg-type]
        side = 64 if p.squash is None else 4096
        tiled = tiling.segment(PerPixel(), image, p, side=side, keep=keep[1], **options)  # type: ignore[arg-type]
        np.testing.assert_array_equal(whole, tiled)
        np.testing.assert_array_equal(*keep)


def test_predictions_are_those_of_an_evaluation(record: Record, shapes: Path, tmp_path: Path) -> None:
    register([f"shapes={shapes}"])
    assert predicted(record, shapes / "images" / "3.png", tmp_path / "out") == 0
    resolved = resolve(RECIPE, SET)
    method = load_network(
        resolved, torch.device("cpu"), record.path / "checkpoint" / "last.pt", None, say=lambda note: None
    )
    p = protocols.protocol(resolved.recipe.usual_evaluation.protocol)
    dataset = DATASETS.get("shapes")(shapes)
    ((_, label, _),) = evaluator.predictions(method, dataset, "val", p)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "out" / "3.png")), label)


def test_a_picture_in_memory_is_segmented_as_its_file_is(record: Record, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # the camera was held upright
    file = photograph(tmp_path / "a.png", exif=exif)
    assert predicted(record, file, tmp_path / "out") == 0
    expected = np.array(Image.open(tmp_path / "out" / "a.png"))
    segmenter = Segmenter(record.path, device="cpu")
    with Image.open(file) as image:
        turned = np.array(image.transpose(Image.Transpose.ROTATE_270))
        for given in (file, str(file), image, turned):
            np.testing.assert_array_equal(segmenter(given), expected)
    assert segmenter.coloured(expected).getpalette()[:6] == [*COLOURS[0], *COLOURS[1]]
    assert segmenter.classes == tuple(CLASSES)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((4, 5), np.uint8), "uint8 (4, 5) is no picture"),
        (np.zeros((4, 5, 3)), "float64 (4, 5, 3) is no picture"),
        (np.zeros((0, 5, 3), np.uint8), "uint8 (0, 5, 3) is no picture"),
        (Image.new("I;16", (4, 5)), "I;16"),
        (None, "NoneType is no picture"),
        (b"bytes", "bytes is no picture"),
    ],
)
def test_what_is_no_picture_is_named(record: Record, given: object, said: str) -> None:
    with pytest.raises(UserError) as error:
        Segmenter(record.path, device="cpu")(given)  # type: ignore[arg-type]
    assert said in error.value.problem


def test_python_names_the_broken_at_the_end(record: Record, tmp_path: Path) -> None:
    photograph(tmp_path / "in" / "b.png")
    (tmp_path / "in" / "a.png").write_bytes(b"nothing")
    done = []
    with pytest.raises(UserError, match=r"1 pictures could not be decoded: .*a\.png"):
        for path in prediction.predict(record.path, [tmp_path / "in"], tmp_path / "out", device="cpu"):
            done.append(path.name)  # what came before the error counts
    assert done == ["b.png"]


# --- for deployment ----------------------------------------------------------------------------------


def test_the_network_is_written_with_all_that_it_needs(record: Record, tmp_path: Path) -> None:
    assert wsss("export", record.path, "--model", "--out", tmp_path / "out") == 0
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (facts["classes"], facts["palette"], facts["background"]) == (CLASSES, COLOURS, 0)
    assert facts["input"]["size"] == "any"
    assert facts["differences"]["model.pt2"] < 1e-4
    model = torch.export.load(tmp_path / "out" / "model.pt2").module()
    photograph(tmp_path / "in" / "a.png", size=(96, 64))
    assert predicted(record, tmp_path / "in", tmp_path / "labels") == 0
    raw = torch.from_numpy(np.array(Image.open(tmp_path / "in" / "a.png"))).permute(2, 0, 1)[None] / 255
    mean, deviation = (torch.tensor(facts["input"][k]).view(3, 1, 1) for k in ("mean", "deviation"))
    own = model((raw - mean) / deviation).argmax(1)[0].numpy()
    label = np.array(Image.open(tmp_path / "labels" / "a.png"))
    assert (own == label).mean() > 0.99  # the protocol may merge what the network alone does not


def test_what_computes_something_else_is_not_left_behind(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deployment, "_TOLERANCE", -1.0)
    assert wsss("export", record.path, "--model", "--out", tmp_path / "out") == 2
    assert "differs from the original" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
