"""``wsss doctor`` says what is broken or missing, and what that takes with it, whatever it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import doctor

#: Packages as they come on machines where something is wrong.
BROKEN = {
    "torch": 'raise OSError("libcudart.so.13: cannot open shared object file")',
    "torchvision": "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
    "timm": 'print("noise"); raise SystemExit(3)',
    "ray": "import os; os._exit(7)",
    "numpy": 'raise ImportError("built for another Python")',
    "scipy": "1 +",
    "pandas": 'raise ModuleNotFoundError("No module named \'pandas\'", name="pandas")',
    "matplotlib": 'raise RuntimeError("two\\nlines")',
}


def test_packages_that_cannot_be_imported_are_rows(tmp_path: Path) -> None:
    for name, text in BROKEN.items():
        (tmp_path / f"{name}.py").write_text(text)
    # What this machine lacks: in place of uninstalling it.
    lacking = "import importlib.metadata as m, sys; has = m.version\n"
    lacking += "def version(name):\n    if name == 'optuna': raise m.PackageNotFoundError(name)\n"
    lacking += "    return has(name)\nm.version = version\n"
    (tmp_path / "sitecustomize.py").write_text(lacking)
    done = subprocess.run(
        [sys.executable, "-m", "wsss_bench", "doctor", "--json"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: (row["state"], row["remark"]) for row in json.loads(done.stdout)}
    for name, said in (
        ("torch", "libcudart.so.13"),
        ("torchvision", "SIGILL"),
        ("timm", "SystemExit: 3"),
        ("ray", "exit code 7"),
        ("numpy", "built for another Python"),
        ("scipy", "SyntaxError"),
        ("pandas", "No module named 'pandas'"),
        ("matplotlib", "two"),
    ):
        assert rows[name][0] == "broken"
        assert said in rows[name][1]
        assert "install it again" in rows[name][1]
    assert rows["optuna"] == ("missing", "pip install optuna")
    assert rows["click"][0][0].isdigit(), "what is sound has its version"
    assert rows["GPU"][0] == "unknown"
    assert "libcudart" in rows["GPU"][1]
    assert rows["method agmm"][0] == "broken"
    assert {"machine", "NVIDIA driver", "cache"} <= {*rows}


def test_every_dependency_is_looked_at() -> None:
    names = doctor.requirements()
    assert {"torch", "torchvision", "timm", "scipy", "pandas", "ray", "pillow"} <= {*names}
    assert "pycocotools" not in names, "extras are nobody's need"


def test_what_never_answers_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PATIENCE", 0)
    assert doctor.examined([("machine",)]) == [
        ("machine", "broken", "gives no answer in 0 s; see the packages of this list")
    ]
