"""``wsss verify-store``."""

from __future__ import annotations

from pathlib import Path

import click

from harness.basics.listing import heading, prose, remark
from harness.cli.options import DATA_ROOT, RESULTS, aside, opened_dataset, together
from harness.cli.usage import Verb


@click.command(
    "verify-store",
    cls=Verb,
    epilog="""\b
Examples:
  wsss verify-store
  wsss verify-store --data-root ~/data               compares with the data sets too
  wsss verify-store --results s3://bucket/wsss       brings everything, checkpoints included

Exit codes: 0 all is sound, 1 something is not, 2 refused.""",
)
@together(RESULTS, DATA_ROOT)
def verify_store_verb(results: Path | str, data_roots: tuple[str, ...]) -> int:
    """Read everything in a record store, and name what is not what was recorded, one line each.

    Checkpoints are compared with their SHA-256, figures with their counts, pseudo labels with the hashes
    written with them; records that stand elsewhere than they say are named. Where a data set is there (the
    miniature scenes are, others under --data-root), its labelled pixels are counted and compared. Prepared
    labels in the cache are no part of a store: whoever trains on them compares each with their index, and
    makes damaged ones again.
    """
    from harness.basics.errors import UserError
    from harness.evaluation.verification import verify_store
    from harness.records.records import Store

    store = Store(results)
    if store.mirror is None and not store.root.is_dir():
        raise UserError("there is no results folder", where=store.place, remedy="name it with --results")
    done = verify_store(store, lambda name: opened_dataset(name, data_roots))
    for split, why in done.unseen.items():
        aside(f"not compared with the data set: {split}: {' '.join(why.split())}")
    if done.breaches:
        click.echo(heading("breaches"))
    for error in done.breaches.values():
        click.echo(remark(error.brief))
    click.echo(
        prose(
            f"{done.records} records, {done.evaluations} evaluations and {done.checkpoints} checkpoints "
            f"are sound, {len(done.breaches)} breaches"
        )
    )
    return 1 if done.breaches else 0
