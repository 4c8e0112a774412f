"""VOC's ``SegmentationClassAug`` from the Semantic Boundaries Dataset (SBD), with a check for leaks.

SBD (Hariharan et al., ICCV 2011) annotates 11,355 pictures of VOC 2011, among them pictures of VOC
2012's ``val``. The list ``train_aug`` holds VOC's ``train`` and what SBD adds to it, without ``val``.
Pictures of VOC's ``train`` keep VOC's own mask, with its void borders; SBD's masks have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.basics.errors import UserError
from harness.basics.files import check_writable
from harness.data.images import save_index
from harness.data.labels.annotations import illegal_values
from harness.data.lists import read_list
from harness.data.parallel import ordered_map

if TYPE_CHECKING:
    from harness.data.sets.voc2012 import VOC2012


def prepare_masks(voc: VOC2012, source: Path | None, workers: int, report: Callable[[str], None]) -> None:
    """Write a mask for every picture of ``train_aug`` that has none.

    Args:
        voc: the data set.
        source: SBD's ``dataset`` folder (``cls/*.mat``, ``train.txt``, ``val.txt``), or one of its
            parents; by default looked for beside ``VOCdevkit`` and in it.
        workers: processes.
        report: told what happened, one line at a time.

    Raises:
        UserError: a picture of ``val`` is in the training list, or a file is missing or malformed.
    """
    ids = voc.ids("train_aug")
    check_leak(ids, voc.ids("val"), voc.list_path("train_aug"))
    folder = voc.root / "SegmentationClassAug"
    todo = [i for i in ids if not (folder / f"{i}.png").exists()]
    if not todo:
        report(f"all {len(ids)} masks of train_aug are in {folder}")
        return
    check_writable(folder)
    own = [i for i in todo if (voc.root / "SegmentationClass" / f"{i}.png").exists()]
    rest = sorted(set(todo) - set(own))
    sbd = _find(voc, source) if rest else None
    if sbd is not None:
        _report_overlap(sbd, voc, report)
    work = partial(_write, voc, sbd, folder)
    what = "masks of train_aug"
    for _ in ordered_map(work, [*own, *rest], workers=workers, kind="processes", what=what):
        pass
    report(
        f"{len(own)} masks of VOC and {len(rest)} of SBD written, {len(ids) - len(todo)} were there: {folder}"
    )


def check_leak(train: Iterable[str], val: Iterable[str], where: Path) -> None:
    """Raises UserError when pictures of ``val`` are in a training list."""
    leak = sorted(set(train) & set(val))
    if leak:
        raise UserError(
            f"{len(leak)} pictures of val are in the training list, such as {leak[0]}: what is scored was "
            "trained on",
            where=where,
            remedy="delete this list to use the official one of 10,582 pictures",
        )


def _report_overlap(sbd: Path, voc: VOC2012, report: Callable[[str], None]) -> None:
    """Say how many of SBD's own training pictures VOC scores on, since using that list is the usual leak."""
    file = sbd / "train.txt"
    if file.exists():
        theirs = read_list(file)
        leak = set(theirs) & set(voc.ids("val"))
        report(
            f"SBD's own train.txt: {len(leak)} of its {len(theirs)} pictures are in VOC's val and left out"
        )


def _find(voc: VOC2012, source: Path | None) -> Path:
    starts = [voc.root, voc.root.parent, voc.root.parent.parent] if source is None else [source]
    below = ("", "dataset", "benchmark_RELEASE/dataset", "SBD", "SBD/dataset", "sbd", "sbd/dataset")
    tried = [start / name for start in starts for name in below]
    found = next((p for p in tried if (p / "cls").is_dir()), None)
    if found is None:
        raise UserError(
            "the masks of SBD are not there: no folder cls of .mat files",
            where=starts[-1] if source is None else source,
            remedy="unpack benchmark.tgz and name it with --from DIR, or put a ready-made "
            f"SegmentationClassAug into {voc.root}",
        )
    return found


def _write(voc: VOC2012, sbd: Path | None, folder: Path, image_id: str) -> None:
    own = voc.root / "SegmentationClass" / f"{image_id}.png"
    if own.exists():
        mask = voc.read_mask(image_id, "train")
    else:
        assert sbd is not None
        mask = read_mask(sbd / "cls" / f"{image_id}.mat", voc.info.num_classes)
    save_index(folder / f"{image_id}.png", mask, voc.info.palette)


def read_mask(path: Path, num_classes: int = 21) -> np.ndarray:
    """``(H, W)`` uint8 ``0..K-1`` from the ``GTcls.Segmentation`` of one of SBD's ``cls`` files.

    Raises:
        UserError: the file is missing, or no such file.
    """
    import scipy.io

    try:
        content = scipy.io.loadmat(str(path), squeeze_me=True, struct_as_record=False)
        mask = np.asarray(content["GTcls"].Segmentation)
    except FileNotFoundError:
        raise UserError(
            "a mask of SBD is missing", where=path, remedy="unpack benchmark.tgz again, or check --from"
        ) from None
    except Exception as error:  # scipy raises whatever the damaged bytes lead it to
        raise UserError(
            f"not one of SBD's cls files: {error}", where=path, remedy="unpack benchmark.tgz again"
        ) from None
    if mask.ndim != 2 or mask.dtype != np.uint8 or illegal_values(mask, num_classes):
        raise UserError(
            f"SBD's mask is {mask.ndim}-dimensional {mask.dtype} or holds more than 0..{num_classes - 1}",
            where=path,
            remedy="use the folder cls, not inst",
        )
    return mask
