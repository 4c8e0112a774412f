"""Sessions: ``nox -s reproduce`` does the main job, ``nox -s tests`` runs the tests.

Arguments after ``--`` reach the command of the session.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests"]

PROJECT = nox.project.load_toml("pyproject.toml")
#: Tested pins; another file, or nothing, for other versions.
CONSTRAINTS = os.environ.get("WSSS_CONSTRAINTS", "constraints/tested.txt")

# uv does not read pip's settings: hand on where the user has told pip to look for packages.
for ours, theirs in (("UV_FIND_LINKS", "PIP_FIND_LINKS"), ("UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL")):
    if theirs in os.environ:
        os.environ.setdefault(ours, os.environ[theirs])


def install(session: nox.Session, *groups: str, compiled: bool = True) -> None:
    """The project with tested versions, and dependency groups of ``pyproject.toml``.

    Modules are compiled at installation where many processes import them, in no order: each might compile
    torch's again. A run imports a fifth of them, first in one process, which keeps what it has compiled for
    the others, whatever the user's shell says of that.
    """
    wanted = [r for group in groups for r in nox.project.dependency_groups(PROJECT, group)]
    pins = ("-c", CONSTRAINTS) if CONSTRAINTS else ()
    session.install("-e", ".", *wanted, *pins, env={"UV_COMPILE_BYTECODE": str(int(compiled))})
    if not compiled:
        session.env["PYTHONDONTWRITEBYTECODE"] = ""


@nox.session
def reproduce(session: nox.Session) -> None:
    """Train, evaluate and set beside the published numbers: the mini suite, or what follows ``--``.

    ``--quick`` stands for fewer miniature recipes with one seed, into folders of their own.
    """
    install(session, compiled=False)
    arguments = session.posargs or ["mini"]
    if "--quick" in arguments:
        others = [a for a in arguments if a != "--quick"]
        arguments = ["mini-quick", "--seeds", "1", "--results", "results-quick", *others]
    session.run("wsss", "run", *arguments)
    results = _value(arguments, "--results", "results")
    reports, more = "reports", []
    if "--quick" in session.posargs:
        reports, more = "reports-quick", ["--label", "quick run: one seed, part of the suite"]
    if arguments[0] in ("mini", "mini-quick"):  # what was asked for, and no other recipe
        more += ["--suite", arguments[0]]
    session.run("wsss", "report", "--results", results, "--out", reports, *more)


@nox.session
def search(session: nox.Session) -> None:
    """Hyper-parameter search; arguments go to ``wsss search``."""
    install(session, compiled=False)
    session.run("wsss", "search", *(session.posargs or ["agmm/mini-scribble", "--trials", "8"]))


@nox.session
def leaderboard(session: nox.Session) -> None:
    """Tables, claims, plots and the page of the records there are; arguments go to ``wsss report``."""
    install(session, compiled=False)
    session.run("wsss", "report", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests but those of ``faults``; arguments go to pytest."""
    install(session, "test")
    _pytest(session, Path(session.bin), "not faults", os.cpu_count() or 1)


@nox.session(venv_backend="none")
def faults(session: nox.Session) -> None:
    """Tests that start clusters, kill processes or install the wheel; arguments go to pytest.

    In the environment of ``tests``, which is made where it is missing; with ``nox -R`` nothing is installed
    into one that is there.
    """
    kept = [option for option in sys.argv if option in ("-R", "--no-install")]
    session.run(sys.executable, "-m", "nox", *kept, "-s", "tests", "--install-only", external=True)
    environment = Path(session.cache_dir).parent / "tests"
    _pytest(
        session, environment / ("Scripts" if os.name == "nt" else "bin"), "faults", 2 * (os.cpu_count() or 1)
    )


def _pytest(session: nox.Session, programs: Path, which: str, workers: int) -> None:
    """Run the tests that a marker expression names, in so many processes, four at most. Those of ``faults``
    wait for others most of the time, so that a core has room for two."""
    session.env.setdefault("OMP_NUM_THREADS", "1")  # two test processes on two cores, not four threads
    split = ("-n", str(min(workers, 4)), "--dist", "worksteal", "--cpu", "10", "-m", which)
    session.run(str(programs / "python"), "-m", "pytest", *split, *session.posargs, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"), "-c", "constraints/tested.txt")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Static types."""
    install(session, "types", compiled=False)
    session.run("mypy", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation with its API reference, into ``build/docs``; a warning is an error."""
    install(session, "docs", compiled=False)
    session.run(
        "sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", "build/docs", *session.posargs
    )
    session.log("open build/docs/index.html")


@nox.session
def bench(session: nox.Session) -> None:
    """Speed and memory as ratios against a named baseline of the same run; arguments go to pytest."""
    install(session, "test")
    session.env.setdefault("OMP_NUM_THREADS", "1")
    session.run("pytest", "benchmarks", "--benchmark-only", *session.posargs)


def _value(arguments: list[str], option: str, default: str) -> str:
    """The value of an option among command-line arguments."""
    for index, argument in enumerate(arguments):
        if argument == option and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return default


if __name__ == "__main__":
    sys.exit(f"run this with nox: nox -s reproduce (in {Path(__file__).parent})")
