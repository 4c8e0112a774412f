"""Claims: the packaged ones name what exists; verdicts follow the interval; nothing stale is mixed in."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import Factory

from harness.basics.errors import UserError
from harness.basics.schema import dump
from harness.cli.main import invoke
from harness.cli.report import claims_verb as command
from harness.recipes.resolving import all_recipes, recipe_names, resolve
from harness.recipes.resolving import suites as recipe_suites
from leaderboards.judge import claims as module
from leaderboards.judge.claims import (
    as_frame,
    decide,
    judge,
    verdict_counts,
)
from leaderboards.judge.statements import claim_suites, known_claims, read_claims, validate_claims
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.published import published
from leaderboards.write.claims_text import claims_markdown
from leaderboards.write.listings import claims_listing

GOOD = """
[lead]
paper = "agmm-cvpr2023"
statement = "One lies above the other."
[[lead.comparisons]]
suites = ["mini"]
better = "agmm/mini-point"
worse = "pce/mini-point"
"""


def known(tmp_path: Path, text: str = GOOD, name: str = "agmm.toml") -> dict[str, Any]:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return read_claims([file])


def both(factory: Factory) -> dict[str, Any]:
    resolved = [factory.resolved(name) for name in ("agmm/mini-point", "pce/mini-point")]
    return {r.name: r for r in resolved}


def fill(factory: Factory, a: float, b: float, seeds: int = 3, **values: Any) -> dict[str, Any]:
    recipes = both(factory)
    for resolved, quality in zip(recipes.values(), (a, b), strict=True):
        for seed in range(seeds):
            factory.record(resolved, seed, quality=quality, images=60, **values)
    return recipes


def verdict(factory: Factory, recipes: Any, tmp_path: Path, text: str = GOOD) -> Any:
    (judged,) = judge(
        gather_records(factory.store), recipes, known=known(tmp_path, text), resamples=200, permutations=199
    )
    return judged


def test_packaged_claims_name_recipes_and_sources_that_exist() -> None:
    recipes = {name: r for name, r in all_recipes().items() if name.partition("/")[0] in module.METHODS}
    assert validate_claims(recipes) == []


def test_packaged_claims_are_documented() -> None:
    assert {"agmm", "blpseg", "dfr", "fsr", "dskd_gc", "toco"} <= {c.method for c in known_claims().values()}
    for claim in known_claims().values():
        assert claim.statement.endswith(".")
        assert claim.place
        assert not claim.paper or claim.paper in published().sources
        assert all(pair.suites for pair in claim.comparisons)
    assert {"mini", "mini-claims"} <= set(claim_suites())
    assert "mini" in recipe_suites()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('better = "agmm/mini-point"', 'better = "agmm/mini-pont"'), "unknown recipe"),
        (('suites = ["mini"]', 'suites = ["nowhere"]'), "no recipe is in the suite"),
        (("worse =", 'evaluation = "val-other"\nworse ='), "has no evaluation"),
        (("agmm-cvpr2023", "agmm-cvpr2024"), "did you mean"),
    ],
)
def test_the_validator_finds(factory: Factory, tmp_path: Path, change: tuple[str, str], message: str) -> None:
    resolved = [factory.resolved(n, suites=("mini",)) for n in ("agmm/mini-point", "pce/mini-point")]
    recipes = {r.name: r for r in resolved}
    assert validate_claims(recipes, known(tmp_path)) == []
    findings = validate_claims(recipes, known(tmp_path, GOOD.replace(*change)))
    assert any(message in finding for finding in findings), findings


def test_claims_of_methods_that_are_not_installed_are_not_checked(tmp_path: Path) -> None:
    assert validate_claims({}, known(tmp_path, name="unwritten.toml")) == []
    assert validate_claims({}, known(tmp_path)) != []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("worse =", "bettr = 1\nworse =", "unknown key"),
        ("better =", "# better =", "Field required"),
        ("statement =", "margin = 1\nstatement =", "unknown key"),
        ("worse =", "margin = -1.0\nworse =", "greater than or equal to 0"),
        ("worse =", 'direction = "below"\nworse =', "direction"),
        ("[lead]", "[lead", "not valid TOML"),
        ("[lead]", "stray = 1\n[lead]", "is no table"),
    ],
)
def test_mistakes_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        known(tmp_path, GOOD.replace(old, new, 1))


def test_a_claim_stands_once(tmp_path: Path) -> None:
    known(tmp_path)
    with pytest.raises(UserError, match="stands twice"):
        read_claims([tmp_path / "agmm.toml", tmp_path / "agmm.toml"])


@pytest.mark.parametrize(
    ("low", "high", "bound", "expected"),
    [
        (0.1, 2, 0, "holds"),
        (0.0, 2, 0, "undecided"),
        (-1, 1, 0, "undecided"),
        (-2, 0, 0, "does not hold"),
        (0.1, 2, 1, "undecided"),
        (1.1, 2, 1, "holds"),
        (-0.5, 2, -1, "holds"),
    ],
)
def test_verdict_at_the_boundaries(low: float, high: float, bound: float, expected: str) -> None:
    assert decide(low, high, bound) == expected


def test_a_clear_lead_holds_and_its_reverse_does_not(factory: Factory, tmp_path: Path) -> None:
    recipes = fill(factory, 0.8, 0.5)
    found = verdict(factory, recipes, tmp_path)
    assert found.verdict == "holds"
    assert found.low > 0
    assert found.low < found.difference < found.high
    assert found.p_images <= 0.01
    assert math.isnan(found.p_seeds)  # three seeds
    assert (found.n, found.images) == ((3, 3), 60)
    turned = GOOD.replace("better", "x").replace("worse", "better").replace("x", "worse")
    assert verdict(factory, recipes, tmp_path, turned).verdict == "does not hold"


def test_the_margin_counts(factory: Factory, tmp_path: Path) -> None:
    recipes = fill(factory, 0.8, 0.5)
    lead = verdict(factory, recipes, tmp_path)
    far = GOOD.replace("worse =", f"margin = {lead.high + 1:.1f}\nworse =")
    near = GOOD.replace("worse =", f"margin = {lead.difference:.3f}\nworse =")
    assert verdict(factory, recipes, tmp_path, far).verdict == "does not hold"
    assert verdict(factory, recipes, tmp_path, near).verdict == "undecided"
    # as a bound on how far it may fall behind
    lower = GOOD.replace("better", "x").replace("worse", "better").replace("x", "worse")
    lower = lower.replace("better =", f'direction = "not below"\nmargin = {lead.high + 1:.1f}\nbetter =')
    assert verdict(factory, recipes, tmp_path, lower).verdict == "holds"


def test_equal_methods_are_undecided(factory: Factory, tmp_path: Path) -> None:
    found = verdict(factory, fill(factory, 0.6, 0.6), tmp_path)
    assert found.verdict == "undecided"
    assert found.p_images > 0.9


def test_one_seed_never_decides_and_says_so(factory: Factory, tmp_path: Path) -> None:
    found = verdict(factory, fill(factory, 0.9, 0.3, seeds=1), tmp_path)
    assert found.verdict == "undecided"
    assert found.low > 0
    assert math.isnan(found.seed_error)
    assert any("one seed" in note for note in found.notes)


def test_six_seeds_have_a_p_value_over_seeds(factory: Factory, tmp_path: Path) -> None:
    found = verdict(factory, fill(factory, 0.8, 0.5, seeds=6), tmp_path)
    assert found.p_seeds == pytest.approx(2 / 64)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"agmm/mini-point"', '"agmm/mini-pont"', "no recipe agmm/mini-pont; did you mean 'agmm/mini-point'"),
        ('"pce/mini-point"', '"pcee/mini-point"', "nor the method pcee; did you mean 'pce/mini-point'"),
        ('"pce/mini-point"', '"pce/mini-pont (crop=48)"', "no recipe pce/mini-pont; did you mean"),
        (
            "worse =",
            'evaluation = "val-singel"\nworse =',
            "no evaluation val-singel; did you mean 'val-single'",
        ),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(
    factory: Factory, tmp_path: Path, old: str, new: str, told: str
) -> None:
    found = verdict(factory, fill(factory, 0.9, 0.5), tmp_path, GOOD.replace(old, new))
    assert (found.verdict, found.command) == ("not run", "")
    for many in (1, 20):  # few are listed with their commands, many by name
        others = [replace(found, command="wsss run others")] * (many - 1)
        assert told in " ".join(claims_listing([found, *others]).split())


def test_what_was_not_run_is_named_with_its_command(factory: Factory, tmp_path: Path) -> None:
    recipes = both(factory)
    factory.record(recipes["agmm/mini-point"])
    found = verdict(factory, recipes, tmp_path)
    assert (found.verdict, found.missing) == ("not run", ("pce/mini-point",))
    assert found.command == "wsss run pce/mini-point"
    text = claims_markdown([found])
    assert "`wsss run pce/mini-point`" in text
    assert "0 hold, 0 do not hold, 0 undecided, 1 not run" in text


def test_a_recipe_that_is_not_installed_has_no_command(factory: Factory, tmp_path: Path) -> None:
    recipes = both(factory)
    text = GOOD.replace("pce/mini-point", "unwritten/mini-point")
    found = verdict(factory, recipes, tmp_path, text)
    assert found.missing == ("agmm/mini-point", "unwritten/mini-point")
    assert found.command == ""
    assert "no recipe unwritten/mini-point, nor the method unwritten" in "; ".join(found.notes)


def test_stale_and_overridden_records_do_not_count(factory: Factory, tmp_path: Path) -> None:
    recipes = both(factory)
    for seed in range(3):
        factory.record(recipes["agmm/mini-point"], seed, quality=0.8)
        factory.record(recipes["pce/mini-point"], seed, quality=0.5, protocol={"flip": True})
        factory.record(recipes["pce/mini-point"], seed, quality=0.5, overrides={"config.x": 1})
    found = verdict(factory, recipes, tmp_path)
    assert (found.verdict, found.missing) == ("not run", ("pce/mini-point",))
    assert "only stale records (the protocol has changed since: flip)" in found.notes[0]


def test_other_data_are_not_compared(factory: Factory, tmp_path: Path) -> None:
    recipes = both(factory)
    for seed in range(3):
        factory.record(recipes["agmm/mini-point"], seed, quality=0.8)
        factory.record(recipes["pce/mini-point"], seed, quality=0.5, fingerprint="data-2")
    found = verdict(factory, recipes, tmp_path)
    assert (found.verdict, found.notes) == ("undecided", ("scored on different data",))
    assert math.isnan(found.difference)


def test_suites_choose_and_unknown_ones_are_named(factory: Factory, tmp_path: Path) -> None:
    frame = gather_records(factory.store)
    text = GOOD + GOOD.replace("[lead", "[voc").replace("[[lead", "[[voc").replace('mini"]', 'paper"]')
    two = known(tmp_path, text)
    assert [j.claim.id for j in judge(frame, {}, known=two)] == ["lead", "voc"]
    assert [j.claim.id for j in judge(frame, {}, suites_wanted=["paper"], known=two)] == ["voc"]
    with pytest.raises(UserError, match="did you mean 'paper'"):
        judge(frame, {}, suites_wanted=["papr"], known=two)


def test_text_and_plain_values_agree(factory: Factory, tmp_path: Path) -> None:
    found = verdict(factory, fill(factory, 0.8, 0.5), tmp_path)
    text, frame = claims_markdown([found]), as_frame([found])
    assert f"+{found.difference:.2f}" in text
    assert f"+{found.low:.2f} to +{found.high:.2f}" in text
    assert "One lies above the other." in text
    assert frame.loc[0, "verdict"] == "holds"
    assert frame.loc[0, "difference"] == found.difference
    assert verdict_counts([found]) == "1 holds, 0 do not hold, 0 undecided, 0 not run"


def test_command(factory: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "reports"
    arguments = ["--results", str(factory.store.root), "--out", str(out), "--suite", "mini"]
    assert invoke(command, arguments) == 0
    printed = capsys.readouterr().out
    assert "agmm-scribble" in printed
    assert "wsss run agmm/mini-scribble pce/mini-scribble" in printed
    assert (out / "claims.md").read_text(encoding="utf-8").startswith("# Claims")
    assert "agmm/mini-point" in (out / "claims.csv").read_text(encoding="utf-8")
    assert invoke(command, [*arguments, "--suite", "minni"]) == 2
    assert "did you mean 'mini'" in capsys.readouterr().err


def test_every_ablation_with_recipes_is_a_claim() -> None:
    """Full-size tables of the papers' parts and settings; what is left out is ours, or another reading."""
    ours = ("-test", "-pre_3a7cbf7", "-quiet-maps", "-aligned", "-fidelity")
    named = {
        n
        for claim in known_claims().values()
        for pair in claim.comparisons
        for n in (pair.better, pair.worse)
    }
    for method, whole in (
        ("fsr", "fsr/voc-image-vitb"),
        ("toco", "toco/voc-image-vitb"),
        ("blpseg", "blpseg/voc-scribble-r101"),
        ("dskd_gc", "dskd_gc/voc-image-vitb"),
    ):
        ablations = [n for n in recipe_names() if n.startswith(f"{whole}-") and not n.endswith(ours)]
        if method == "dskd_gc":  # readings of what the paper leaves open stand in a suite of their own
            tables = ("-baseline", "-dskd", "-theta-", "-lambda-")
            ablations = [n for n in ablations if any(part in n for part in tables)]
        assert len(ablations) >= 3
        assert set(ablations) <= named
    tested = [e for e in resolve("dfr/voc-scribble-swinb-test").recipe.evaluation if e.split == "test"]
    assert [(e.tolerance, "gyguo-list/dfr-voc-test" in e.cells) for e in tested] == [(1.0, True)]


@pytest.mark.parametrize("name", ["rloss", "gated_crf", "tree_energy"])
def test_every_regularised_loss_is_set_against_its_own_training_without_it(name: str) -> None:
    """At full size as on the miniature: network, data and schedule are the same, the loss is not."""
    pairs = [
        p for claim in known_claims().values() for p in claim.comparisons if p.better.startswith(f"{name}/")
    ]
    assert {"/mini-" in pair.better for pair in pairs} == {True, False}
    same = ("dataset", "supervision", "backbone", "weights", "crop", "labels", "batch", "optimiser")
    for pair in pairs:
        better, worse = (resolve(n) for n in (pair.better, pair.worse))
        assert worse.recipe.method == "pce"
        own = dump(worse.config)
        assert {k: v for k, v in dump(better.config).items() if k in own}.items() <= own.items()
        for part in (*same, "schedule", "augment", "train_split"):
            assert getattr(better.recipe, part) == getattr(worse.recipe, part), f"{pair.better}: {part}"
