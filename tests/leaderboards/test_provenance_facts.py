"""What the page says of a row's training."""

from __future__ import annotations

from synthetic import Factory

from leaderboards.rows.gathering import gather_records
from leaderboards.rows.published import published
from leaderboards.rows.tables import leaderboard
from leaderboards.write.provenance_facts import facts_of

SKIPPED = "Steps skipped in float16"


def trainings(factory: Factory) -> dict[str, dict[str, str]]:
    """Facts of the training of each row, by its recipe."""
    rows = leaderboard(gather_records(factory.store), resamples=5)
    return {row.recipe: dict(dict(facts_of(row, published()))["Training"]) for row in rows}


def test_steps_that_float16_skipped_stand_on_the_page(factory: Factory) -> None:
    half = factory.resolved("pce/mini-point", amp="fp16")
    for seed, skipped in enumerate((3, 0)):
        record = factory.record(half, seed, steps=20)
        lines = ["step,lr,loss,amp.scale,amp.skipped", "10,0.1,1.0,65536.0,1.0"]
        lines.append(f"20,0.1,0.5,{65536.0 / 2**skipped},{skipped}.0")
        (record.path / "history.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    factory.record(factory.resolved("agmm/mini-point"))
    found = trainings(factory)
    expected = "seed 0: 3, scale 8,192 at the end; seed 1: 0, scale 65,536 at the end"
    assert found["pce/mini-point"][SKIPPED] == expected
    assert SKIPPED not in found["agmm/mini-point"]


def test_curves_of_before_the_count_say_nothing(factory: Factory) -> None:
    record = factory.record(factory.resolved("pce/mini-point", amp="fp16"), steps=10)
    (record.path / "history.csv").write_text("step,lr,loss\n10,0.1,1.0\n", encoding="utf-8")
    assert SKIPPED not in trainings(factory)["pce/mini-point"]
