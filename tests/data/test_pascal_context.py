"""The PASCAL-Context reader: layout, both mappings, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from harness.basics.errors import UserError
from harness.data.base import LabelSpec
from harness.data.sets.pascal_context import PascalContext, label_table


@pytest.fixture
def context(tmp_path: Path) -> PascalContext:
    root = tmp_path / "VOCdevkit" / "Context"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "scribbles"):
        (root / folder).mkdir(parents=True)
    numbers = np.arange(460, dtype=np.uint16).reshape(20, 23)
    Image.new("RGB", (23, 20)).save(root / "JPEGImages" / "2008_000002.jpg")
    scipy.io.savemat(root / "SegmentationClass" / "2008_000002.mat", {"LabelMap": numbers})
    for split in ("train", "val"):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("2008_000002\n")
    return PascalContext(tmp_path)


def label(name: str) -> int:
    return PascalContext.info.classes.index(name)


def test_sixty_classes_in_the_scribbles_order():
    classes = PascalContext.info.classes
    assert len(classes) == len(set(classes)) == 60
    assert (label("bag"), label("curtain"), label("bedclothes"), label("wood")) == (21, 42, 52, 59)
    assert len(set(PascalContext.info.palette)) == 60


def test_official_mapping_gives_every_class_once_and_the_rest_is_background():
    table = label_table("official")
    assert sorted(table[table > 0]) == list(range(1, 60))
    # Numbers grow with the alphabet, as the list of 459 names does.
    found = [PascalContext.info.classes[c] for c in table if c]
    assert found == sorted(found)


def test_released_mapping_loses_four_classes_and_nothing_else():
    official, released = label_table("official"), label_table("blpseg-inplace")
    moved = {
        PascalContext.info.classes[o]: PascalContext.info.classes[r]
        for o, r in zip(official, released, strict=True)
        if o != r
    }
    assert moved == {"bag": "background", "bedclothes": "background", "bed": "bicycle", "bench": "bicycle"}


def test_splits_map_the_same_pictures_differently(context):
    assert list(context.ids("val_blpseg")) == list(context.ids("val")) == ["2008_000002"]
    official = context.read_mask("2008_000002", "val")
    released = context.read_mask("2008_000002", "val_blpseg")
    assert official.dtype == np.uint8
    assert np.array_equal(official.ravel(), label_table("official"))
    assert np.array_equal(released.ravel(), label_table("blpseg-inplace"))
    assert np.array_equal(context.read_mask("2008_000002", "train"), official)
    with pytest.raises(UserError, match="no split"):
        context.read_mask("2008_000002", "test")


def test_scribbles_use_the_annotators_names(context):
    (context.root / "scribbles" / "2008_000002.xml").write_text(
        "<annotation><size><width>23</width><height>20</height></size>"
        "<polygon><tag>plane</tag><point><X>1</X><Y>2</Y></point><point><X>5</X><Y>2</Y></point></polygon>"
        "<polygon><tag>bedclothes</tag><point><X>0</X><Y>9</Y></point><point><X>3</X><Y>9</Y></point></polygon>"
        "</annotation>"
    )
    spec = LabelSpec(source="official", format="xml", folder="scribbles", stroke=1)
    scribble = context.read_official_label("2008_000002", "scribble", spec)
    assert set(np.unique(scribble)) == {label("aeroplane"), label("bedclothes"), 254}
    assert (scribble[2, 1:6] == 1).all()
    assert (scribble[9, :4] == 52).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "missing"),
        (b"no mat file", "not a readable MAT file"),
        ({"Other": np.zeros((2, 2))}, "LabelMap"),
        ({"LabelMap": np.full((2, 2), 460.0)}, "legal are 0..459"),
    ],
)
def test_unusable_masks_are_refused(context, content, words):
    path = context.mask_path("2008_000002", "val")
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        scipy.io.savemat(path, content)
    with pytest.raises(UserError, match=words) as error:
        context.read_mask("2008_000002", "val")
    assert error.value.where == str(path)


def test_image_tags_are_not_official(context):
    with pytest.raises(UserError, match="no official image tags"):
        context.tags(["2008_000002"])
