"""The import cure: with a CPU wheel of torch, torchvision must import, and a sound one is left alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

BROKEN = """
import sys, types, importlib.abc, importlib.machinery
class Broken(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    tried = 0
    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "torchvision" else None
    def create_module(self, spec): return None
    def exec_module(self, module):
        import torch
        Broken.tried += 1
        if not hasattr(torch.ops.torchvision, "nms"):
            raise RuntimeError({message!r})
sys.meta_path.insert(0, Broken())
"""


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_tables_import_neither_timm_nor_torchvision():
    """They take seconds, and only networks need them."""
    found = "print([m for m in ('timm', 'torchvision') if m in sys.modules])"
    code = "import sys, methods.toco, methods.agmm, leaderboards.write.report; "
    code += "from harness.recipes.resolving import usable; "
    done = python(f"{code}assert not usable()[1]; {found}")
    assert done.stdout.strip() == "[]", done.stderr


def test_timm_imports_here():
    done = python("import harness.basics.compat, timm, torchvision.transforms.functional")
    assert done.returncode == 0, done.stderr


def test_the_missing_operator_is_declared_and_the_import_tried_again():
    code = BROKEN.format(message="operator torchvision::nms does not exist")
    done = python(code + "import harness.basics.compat; print(harness.basics.compat.cured(), Broken.tried)")
    assert done.stdout.split() == ["True", "2"], done.stderr


def test_a_sound_torchvision_is_left_alone():
    sound = BROKEN.format(message="").replace("raise RuntimeError('')", "pass")
    done = python(sound + "import harness.basics.compat; print(harness.basics.compat.cured(), Broken.tried)")
    assert done.stdout.split() == ["False", "1"], done.stderr


@pytest.mark.parametrize("message", ["something else is wrong"])
def test_another_fault_is_not_hidden(message):
    done = python(BROKEN.format(message=message) + "import harness.basics.compat, torchvision")
    assert done.returncode != 0
    assert message in done.stderr
