"""What is said of labels that are legal and make no sense."""

from __future__ import annotations

import numpy as np
import pytest

from harness.basics.errors import UserError
from harness.data import sense
from harness.data.base import DatasetInfo


def info(classes=("background", "cat", "dog", "cow"), background: int | None = 0) -> DatasetInfo:
    return DatasetInfo("pets", "Pets", classes, ((0, 0, 0),) * len(classes), {"train": 3}, background, "pets")


SIZES = np.array([1000, 1000, 1000])


@pytest.mark.parametrize(
    ("kind", "counts", "said"),
    [
        ("scribble", [[10, 5, 5, 5], [10, 0, 0, 9], [10, 0, 0, 0]], ""),
        ("scribble", [[0, 5, 5, 5], [0, 0, 0, 9], [0, 2, 0, 0]], "'background' is never labelled in train"),
        (
            "point",
            [[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]],
            "2 classes are never labelled in train: 'dog', 'cow'",
        ),
        ("scribble", [[0, 3, 0, 0], [0, 3, 0, 0], [0, 0, 0, 0]], "are of one class, 'cat'"),
        ("pseudo", [[1000, 0, 0, 0]] * 3, "are of one class, 'background'"),
        ("scribble", [[900, 50, 25, 25]] * 3, "100 % of the pixels of train are labelled"),
        ("full", [[900, 50, 25, 25]] * 3, ""),
    ],
)
def test_labels(kind, counts, said):
    found = sense.of_labels(info(), "train", kind, np.array(counts), SIZES)
    assert any(said in text for text in found) if said else found == ()


@pytest.mark.parametrize("kind", ["scribble", "point", "block", "box", "full", "pseudo"])
def test_nothing_labelled_is_refused(kind):
    with pytest.raises(UserError, match="not one pixel of the 3 pictures of train"):
        sense.of_labels(info(), "train", kind, np.zeros((3, 4), np.int64), SIZES)


def test_background_comes_first_wherever_it_stands():
    counts = np.array([[5, 0, 0, 0], [0, 5, 0, 0], [5, 0, 0, 0]])
    (text,) = sense.of_labels(info(("cat", "cow", "dog", "rest"), 3), "train", "scribble", counts, SIZES)
    assert text == "2 classes are never labelled in train: 'rest', 'dog'"


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ([[0, 1, 0, 1], [0, 0, 1, 0], [0, 1, 1, 0]], ""),
        ([[0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]], "1 of the 3 pictures of train have no image tag"),
        ([[0, 1, 0, 1], [0, 1, 0, 0], [0, 1, 0, 0]], "'dog' is never tagged in train"),
        ([[0, 1, 0, 0]] * 3, "all image tags of train are of one class, 'cat'"),
    ],
)
def test_image_tags(tags, said):
    found = sense.of_tags(info(), "train", np.array(tags) > 0)
    assert any(said in text for text in found) if said else found == ()


def test_no_tag_at_all_is_refused():
    with pytest.raises(UserError, match="none of the 3 pictures"):
        sense.of_tags(info(), "train", np.zeros((3, 4), bool))


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        ({0: 90, 1: 10}, ""),
        ({}, ""),  # no masks
        ({0: 90, 255: 10}, "show 'background' alone, and 10 % void"),
        ({1: 90}, "show one class alone, 'cat'"),
        ({255: 5}, "void everywhere"),
    ],
)
def test_masks(pixels, said):
    counts = np.zeros(256, np.int64)
    for label, number in pixels.items():
        counts[label] = number
    found = sense.of_masks(info(), "val", counts)
    assert any(said in text for text in found) if said else found == ()


def test_classes_that_are_scored_and_never_trained_on():
    occurs = np.zeros(256, np.int64)
    occurs[[0, 2, 3, 255]] = 1
    assert sense.unseen(info(), "val", occurs, [0, 2, 3]) == ()
    (text,) = sense.unseen(info(), "val", occurs, [0, 1, 2])
    assert text == "'cow' is never in the training labels, and is scored on val"
