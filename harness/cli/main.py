"""The command ``wsss``. Verbs are entry points (``wsss.commands``), so other packages bring their own."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

import harness
from harness.basics import interruption
from harness.basics.errors import UnknownRecipeError, UserError, causes, nearest
from harness.basics.files import refusal
from harness.basics.interruption import Terminated
from harness.basics.registry import COMMANDS
from harness.basics.terminal import flush_streams, of_system, of_unforeseen, prepare_streams, say
from harness.basics.text import one_line

#: Own verbs: (module, attribute, one-line help). The module is imported when the verb is used.
_OWN: dict[str, tuple[str, str, str]] = {
    "list": ("harness.cli.explore", "list_verb", "Methods, data sets, recipes, suites, protocols, metrics."),
    "show": (
        "harness.cli.explore",
        "show_verb",
        "Every effective value of a recipe, and where it comes from.",
    ),
    "doctor": ("harness.cli.doctor", "doctor_verb", "What this machine can run, and what is missing."),
    "open": ("harness.cli.explore", "open_verb", "Open the report in a browser."),
    "completion": ("harness.cli.explore", "completion_verb", "Have a shell complete verbs and recipes."),
    "data": ("harness.cli.data", "data_verb", "Prepare, check, label and show data sets."),
    "run": ("harness.cli.run", "run_verb", "Train, evaluate and record recipes or suites."),
    "grid": ("harness.cli.grid", "grid_verb", "Run a grid of ablations, and print its tables."),
    "search": ("harness.cli.search", "search_verb", "Search hyper-parameters of a recipe."),
    "tune": ("harness.cli.tune", "tune_verb", "Give every recipe the same search, and compare them again."),
    "predict": ("harness.cli.score", "predict_verb", "Segment pictures with a trained network."),
    "curve": (
        "harness.cli.curve",
        "curve_verb",
        "Pseudo labels over the threshold of activation maps.",
    ),
    "new": ("harness.cli.new", "new_verb", "Write a package with a method of your own."),
    "check": ("harness.cli.check", "check_verb", "Whether a package keeps what methods and data promise."),
    "pack": ("harness.cli.share", "pack_verb", "Write finished records into one file, to share them."),
    "check-bundle": (
        "harness.cli.share",
        "check_bundle_verb",
        "Compare everything that a bundle says with what is in it.",
    ),
    "merge": ("harness.cli.share", "merge_verb", "Bring many people's bundles into one store."),
    "freeze": ("harness.cli.share", "freeze_verb", "Keep a leaderboard, to compare a later one with."),
    "verify-store": (
        "harness.cli.verify",
        "verify_store_verb",
        "Read a whole record store, and name what is not what was recorded.",
    ),
    "evaluate": (
        "harness.cli.score",
        "evaluate_verb",
        "Score records, checkpoints or folders of predictions.",
    ),
}


def own_verbs() -> list[str]:
    """Verbs that no package may bring."""
    return [*_OWN]


class _Verbs(click.Group):
    """A group that imports a verb when it is used, so that ``--help`` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_OWN, *(n for n in COMMANDS.names() if n not in _OWN)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _OWN and (other := COMMANDS.entry(cmd_name)) is not None:
            raise COMMANDS.conflict(
                cmd_name, ["wsss itself", f"{other.dist and other.dist.name} ({other.value})"]
            )
        if cmd_name in _OWN:
            module, attribute, _ = _OWN[cmd_name]
            return getattr(importlib.import_module(module), attribute)
        return COMMANDS.get(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.list_commands(ctx):
            raise UserError(f"unknown verb {args[0]!r}", remedy=nearest(args[0], self.list_commands(ctx)))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UnknownRecipeError as error:
            raise _with_its_package(error, ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [
            (name, _OWN[name][2] if name in _OWN else _short_help(name)) for name in self.list_commands(ctx)
        ]
        with formatter.section("Verbs"):
            formatter.write_dl(rows)


def _with_its_package(error: UnknownRecipeError, ctx: click.Context) -> UserError:
    """An unknown recipe, with the package that made the store's records of it where there are any."""
    from harness.cli.options import RESULTS_META
    from harness.records.origin import brought_by
    from harness.records.records import Store

    said = ""
    with suppress(Exception):  # the mistake itself is what matters
        said = brought_by(Store(ctx.meta[RESULTS_META]), error.name) if error.name else ""
    return UserError(error.problem, where=error.where, remedy=said) if said else error


def _short_help(name: str) -> str:
    try:
        return COMMANDS.get(name).get_short_help_str(70)
    except UserError as error:  # another package's broken verb must not take the help away
        return f"(unusable: {error.problem})"


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(harness.__version__, prog_name="wsss")
def cli() -> None:
    """Reproduce weakly supervised semantic segmentation, and compare it with what was published.

    \b
    Start here:
      wsss run mini             the miniature suite: offline, CPU, minutes
      wsss leaderboard          its table
      wsss list recipes         everything that can be run
      wsss show agmm/voc-point-r101
    """


def main(arguments: list[str] | None = None) -> None:
    """Entry point: 0 done, 1 some trials failed, 2 a mistake the user can mend, 130 interrupted, 143
    terminated (SIGTERM), 129 by a terminal that was closed (SIGHUP)."""
    prepare_streams()
    code = flush_streams(invoke(cli, arguments))
    if code >= 128:
        interruption.ignore()
    sys.exit(code)


def invoke(command: click.Command, arguments: list[str] | None = None) -> int:
    """Run a command; print what a user can mend on one screen, and return the exit code."""
    if any("\0" in text for text in arguments or ()):
        say("error: an argument holds a NUL byte, which no name or path can")
        return 2
    return guarded(lambda: command.main(arguments, prog_name="wsss", standalone_mode=False))


def guarded(work: Callable[[], Any]) -> int:
    """Exit code of a piece of work, errors printed without a traceback where a user can mend them."""
    with interruption.handled():  # what is said of a signal is not cut short by the next one
        return _coded(work)


def _coded(work: Callable[[], Any]) -> int:
    try:
        result = work()
    except UserError as error:
        say(f"error: {error}")
        return 2
    except click.ClickException as error:
        _show(error)
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        ended = next((e for e in causes(error) if isinstance(e, Terminated)), None)
        text = "interrupted" if ended is None else "terminated"
        say(f"{text}: the same command goes on where this one stopped")
        return 130 if ended is None else 128 + ended.number
    except SystemExit as error:
        return _ended(error)
    except BaseException as error:  # the last resort: what is foreseen is a UserError where it happens
        clear = refusal(error)
        if clear is None and isinstance(error, OSError):
            clear = of_system(error)
        if clear is not None:
            say(f"error: {clear}")
            return 2
        if os.environ.get("WSSS_DEBUG"):
            raise
        say(f"error: {of_unforeseen(error)}")
        return 1
    return result if isinstance(result, int) else 0


def _ended(error: SystemExit) -> int:
    """Exit code where code of other people ends the process: a verb of theirs may, and what is called in the
    middle of our work may not, however content its code."""
    here = Path(__file__).parents[1]
    ours = ("main.py", "usage.py", "interruption.py")
    frames = traceback.extract_tb(error.__traceback__)
    inside = [
        f for f in frames if Path(f.filename).is_relative_to(here) and Path(f.filename).name not in ours
    ]
    if inside:
        last = frames[-1]
        say(f"error: other code ended the process\n  where:  {last.filename}, line {last.lineno}")
        return 1
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    say(str(error.code))
    return 1


def _show(error: click.ClickException) -> None:
    """A mistake on the command line: usage, and what is wrong."""
    with suppress(OSError, ValueError):
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help'.", err=True)
    say(f"error: {one_line(error.format_message(), 1200)}")


if __name__ == "__main__":
    main()
