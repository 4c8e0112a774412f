"""Cure for ``import torchvision`` next to a CPU build of torch.

timm imports torchvision. Its wheel on PyPI is built against CUDA; beside a CPU wheel of torch its
compiled library does not load, the operator ``torchvision::nms`` is never declared, and the import
fails with *operator torchvision::nms does not exist* although nothing here uses that operator.
Declaring the two operators before the import cures it. A sound torchvision is left alone.

Import this module before timm or torchvision: ``import harness.compat``.
"""

from __future__ import annotations

import importlib
import sys

import torch

#: Keeps the declaration alive: operators vanish when their library object is collected.
_LIBRARY: torch.library.Library | None = None


def cure_torchvision() -> bool:
    """Make ``import torchvision`` work; True if the operators had to be declared.

    Raises:
        ImportError: torchvision is missing, or broken for another reason.
    """
    global _LIBRARY
    if "torchvision" in sys.modules:
        return _LIBRARY is not None
    try:
        importlib.import_module("torchvision")
        return False
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half-initialised by the failed import
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARY = library
    importlib.import_module("torchvision")
    return True


CURED = cure_torchvision()
