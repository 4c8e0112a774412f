"""``wsss verify-store``."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.options import RESULTS, together
from harness.commands.usage import Verb


@click.command(
    cls=Verb,
    epilog="""\b
Examples:
  wsss verify-store
  wsss verify-store --results s3://bucket/wsss       brings everything, checkpoints included

Exit codes: 0 all is sound, 1 something is not, 2 refused.""",
)
@together(RESULTS)
def verify_store(results: Path | str) -> int:
    """Read everything in a record store, and name what is not what was recorded, one line each.

    Checkpoints are compared with their SHA-256, figures with their counts, pseudo labels with the hashes
    written with them; records that stand elsewhere than they say are named. Prepared labels in the cache
    are no part of a store: whoever trains on them compares each with their index, and makes damaged ones
    again.
    """
    from harness.errors import UserError
    from harness.store.records import Store
    from harness.store.verification import verify

    store = Store(results)
    if store.mirror is None and not store.root.is_dir():
        raise UserError("there is no results folder", where=store.place, remedy="name it with --results")
    done = verify(store)
    for error in done.breaches.values():
        click.echo(error.brief)
    click.echo(
        f"{done.records} records, {done.evaluations} evaluations and {done.checkpoints} checkpoints "
        f"are sound, {len(done.breaches)} breaches"
    )
    return 1 if done.breaches else 0
