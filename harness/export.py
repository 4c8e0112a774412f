"""Predictions, pseudo labels and activation maps of a split, in the forms that other code reads.

``png``     ``<id>.png``, palette label maps as VOC's; 255 where there is no decision
``npy``     ``<id>.npy``, a pickled dictionary of activation maps as SEAM writes and scores them: key the
            foreground class counted from 0 (background left out), value ``(H, W)`` float32 in [0, 1]; classes
            of the image tags alone. ``np.load(file, allow_pickle=True).item()`` reads it
``server``  ``results/VOC2012/Segmentation/comp6_test_cls/<id>.png`` in a ``.tar.gz``, what the VOC evaluation
            server takes; competition 6, segmentation trained with more than VOC's own pictures (ImageNet)
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from harness import evaluation, finite
from harness.data.base import Dataset, DatasetInfo
from harness.data.images import palette_image, save_index
from harness.errors import UserError
from harness.files import whole_file, write_with

if TYPE_CHECKING:
    from methods.base import Method

Format = Literal["png", "npy", "server"]

#: Folder of the label maps within the archive of the VOC evaluation server.
SERVER_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
ARCHIVE = "comp6_test_cls.tar.gz"


@torch.inference_mode()
def activation_maps(
    method: Method, dataset: Dataset, split: str, *, device: torch.device | str = "cpu", workers: int = 0
) -> Iterator[tuple[str, dict[int, np.ndarray]]]:
    """Activation maps of every picture of a split, in list order.

    Args:
        method: a trained method.
        dataset: whose pictures and image tags.
        split: which pictures.
        device: where the method is.
        workers: loader processes.

    Yields:
        Image id, and by foreground class, counted from 0 without the background, ``(H, W)`` float32.

    Raises:
        UserError: the method makes no activation maps.
    """
    ids = list(dataset.ids(split))
    tags = torch.from_numpy(dataset.tags(ids)).float()
    foreground = [k for k in range(dataset.info.num_classes) if k != dataset.info.background]
    method.eval()
    for index, (name, image, _) in enumerate(evaluation.pictures(dataset, split, ids, workers)):
        raw = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(device)
        with finite.of_picture(name):
            maps = method.class_maps(evaluation.normalise(raw)[None], tags[index : index + 1].to(device))
            if maps is not None:
                finite.require_finite(maps, "the activation maps")
        if maps is None:
            raise UserError(
                f"{type(method).title} makes no activation maps",
                where="--format npy",
                remedy="export label maps with --format png",
            )
        present = [(place, k) for place, k in enumerate(foreground) if tags[index, k] > 0]
        yield name, {place: maps[0, k].float().cpu().numpy() for place, k in present}


def write_maps(maps: Iterable[tuple[str, Mapping[int, np.ndarray]]], out: Path) -> Iterator[Path]:
    """Write ``<out>/<id>.npy`` of every picture; yields each file when it is whole."""
    for name, by_class in maps:
        path = out / f"{name}.npy"
        write_with(path, partial(np.save, arr=np.array(dict(by_class), dtype=object), allow_pickle=True))
        yield path


def write_labels(labels: Iterable[tuple[str, np.ndarray]], out: Path, info: DatasetInfo) -> Iterator[Path]:
    """Write ``<out>/<id>.png`` of every picture; yields each file when it is whole."""
    for name, label in labels:
        path = out / f"{name}.png"
        save_index(path, label, info.palette)
        yield path


def write_archive(labels: Iterable[tuple[str, np.ndarray]], out: Path, info: DatasetInfo) -> Iterator[Path]:
    """Write ``<out>/comp6_test_cls.tar.gz``; yields the path of every member, the file is whole at the end.

    Equal labels give equal bytes but for the compressor's own time stamp.

    Raises:
        UserError: a label without decision, which the server would refuse.
    """
    with (
        whole_file(out / ARCHIVE, "wb") as stream,
        tarfile.open(fileobj=stream, mode="w:gz") as archive,
    ):
        for name, label in labels:
            if (label >= info.num_classes).any():
                raise UserError(
                    f"the label map of {name} has pixels without decision",
                    where="--output",
                    remedy="submit the segmentation",
                )
            packed = io.BytesIO()
            palette_image(label, info.palette).save(packed, format="PNG")
            member = tarfile.TarInfo(f"{SERVER_FOLDER}/{name}.png")
            member.size = packed.tell()
            packed.seek(0)
            archive.addfile(member, packed)
            yield Path(member.name)
