"""Cure for ``import torchvision`` next to a CPU build of torch.

timm imports torchvision. Its wheel on PyPI is built against CUDA; beside a CPU wheel of torch its
compiled library does not load, the operator ``torchvision::nms`` is never declared, and the import
fails with *operator torchvision::nms does not exist* although nothing here uses that operator.
Declaring the two operators and importing once more cures it. A sound torchvision is left alone.

Import this module before timm or torchvision: ``import harness.basics.compat``. It imports neither of them,
which takes seconds that the verbs of tables need not spend: the cure acts when torchvision is imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Cure(MetaPathFinder, Loader):
    """Imports torchvision as it would be without it, and again with its operators declared if they lack."""

    def __init__(self) -> None:
        #: Keeps the declaration alive: operators vanish when their library object is collected.
        self.library: Any = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        try:
            self.loader.exec_module(module)
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
        else:
            return
        for name in [m for m in sys.modules if m.startswith("torchvision.")]:
            del sys.modules[name]  # half-initialised by the failed import
        import torch

        self.library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        self.loader.exec_module(module)


_CURE = _Cure()
sys.meta_path.insert(0, _CURE)


def cured() -> bool:
    """Import torchvision; True if its operators had to be declared.

    Raises:
        ImportError: torchvision is missing, or broken for another reason.
    """
    importlib.import_module("torchvision")
    return _CURE.library is not None
