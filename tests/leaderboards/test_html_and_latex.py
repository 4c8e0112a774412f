"""The page and the LaTeX tables: whole, self-contained, true to the rows."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from synthetic import CLASSES, Factory

from harness.cli.main import invoke
from harness.cli.report import report_verb
from harness.recipes.specs import EvaluationSpec
from leaderboards.judge.claims import Judged
from leaderboards.judge.statements import known_claims
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.published import published
from leaderboards.rows.row import Row
from leaderboards.rows.statistics import two_level_difference
from leaderboards.rows.tables import leaderboard
from leaderboards.write.columns import MIOU, places, sections
from leaderboards.write.html_report import MINOR, html_report
from leaderboards.write.inline_plots import drawn
from leaderboards.write.latex import latex, latex_escape
from leaderboards.write.markup import breakable
from leaderboards.write.report import write_report

VOID = {"meta", "link", "input", "img", "br", "wbr"}


class Page(HTMLParser):
    """Elements with attributes and text; fails on tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def fill(factory: Factory) -> list[Row]:
    factory.unlabelled = (2,)
    cited = EvaluationSpec(cells=("agmm-sass-repo/voc-point-val",), tolerance=1.0)
    for seed in range(3):
        factory.record(factory.resolved(evaluation=(cited,)), seed, quality=0.7, title="AGMM <&>")
        factory.record(factory.resolved("pce/mini-point"), seed, quality=0.5, title="Partial", absent=(2,))
    factory.record(factory.resolved("tel/mini-point"), quality=0.3)
    cam = (EvaluationSpec(split="train", output="cam"),)
    factory.record(factory.resolved("cam/mini-image", supervision="image", evaluation=cam))
    hole = factory.resolved("tel/mini-block", supervision="block", suites=("mini",))
    point = factory.resolved(evaluation=(cited,), suites=("mini",))
    return leaderboard(gather_records(factory.store), {hole.name: hole, point.name: point}, resamples=20)


@pytest.fixture
def rows(factory: Factory) -> list[Row]:
    return fill(factory)


def page(rows: list[Row], **values: object) -> str:
    claim = known_claims()["agmm-point"]
    judged = [Judged(claim, claim.comparisons[0], "holds", 2.0, 1.0, 3.0, n=(3, 3))]
    return html_report(rows, judged, published(), provenance="Computed from 8 records.", **values)  # type: ignore[arg-type]


def test_the_page_is_whole_and_needs_nothing_else(rows: list[Row]) -> None:
    text = page(rows, plots={"overview-mini": b"<svg/>"})
    parsed = Page(text)
    assert parsed.all("html")[0]["lang"] == "en"
    addresses = [a.get(k) for _, a in parsed.elements for k in ("src", "href") if a.get(k)]
    assert addresses
    assert all(str(address).startswith(("#", "data:")) for address in addresses)
    assert not any(word in text for word in ("url(", "@import", "fetch(", "XMLHttp"))
    anchors = {a["id"] for _, a in parsed.elements if a.get("id")}
    assert {str(a["href"])[1:] for a in parsed.all("a")} <= anchors
    identifiers = [a["id"] for _, a in parsed.elements if a.get("id")]
    assert len(identifiers) == len(set(identifiers))


def test_pictures_below_the_first_screen_wait_until_the_page_is_there(rows: list[Row]) -> None:
    drawing = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 300 200.4"><path d="M0 0"/></svg>'
    parsed = Page(page(rows, plots={"overview-mini-val-single": drawing, "cost-mini": drawing}))
    first, later = sorted(parsed.all("img"), key=lambda image: "data-src" in image)
    assert str(first["src"]) == str(later["data-src"])
    assert len(str(later["src"])) < 100
    for image in (first, later):  # nothing moves when it comes
        assert (image["width"], image["height"]) == ("300", "200")
        assert image["style"] == "aspect-ratio:300/200"
        assert image["data-plot"]


def test_the_page_can_be_read_without_sight(rows: list[Row]) -> None:
    parsed = Page(page(rows, plots={"overview-mini": b"<svg/>"}))
    assert all(image["alt"] for image in parsed.all("img"))
    assert len(parsed.all("caption")) == len(parsed.all("table"))
    assert all(head.get("scope") in ("col", "row") for head in parsed.all("th"))
    assert {e[0] for e in parsed.elements} >= {"main", "nav", "header", "dialog"}
    heads = [h for h in parsed.all("th") if h["scope"] == "col" and "aria-sort" in h]
    assert heads
    assert all(h["aria-sort"] == "none" for h in heads)
    assert all(
        d["aria-label"] and d["tabindex"] == "0" for d in parsed.all("div") if d.get("role") == "region"
    )


def test_every_figure_opens_its_provenance(rows: list[Row]) -> None:
    text = page(rows)
    parsed = Page(text)
    facts = json.loads(text.partition('id="facts">')[2].partition("</script>")[0].replace("<\\/", "</"))
    assert len(facts["rows"]) == len(rows)
    used = {int(str(b["data-row"])) for b in parsed.all("button") if b.get("data-row")}
    assert used == set(range(len(rows)))
    index = next(i for i, row in enumerate(rows) if row.source)
    own = facts["rows"][index]
    parts = {t: dict(map(tuple, facts["shared"][e] if isinstance(e, int) else e)) for t, e in own["parts"]}
    row = rows[index]
    assert parts["Training"]["Training digest"] == row.digest
    assert parts["Result"]["Seeds"] == ", ".join(
        f"seed {s}: {run.miou:.2f}" for s, run in zip(row.seeds, row.runs, strict=True)
    )
    assert parts["Data"]["evaluation data (fingerprint)"] == "data-1"
    assert parts["Published: agmm-sass-repo/voc-point-val"]["Value"] == "67.8 % miou"
    assert "config.gamma" not in text


def test_numbers_sort_by_value(rows: list[Row]) -> None:
    parsed = Page(page(rows))
    values = [float(str(c["data-v"])) for c in parsed.all("td") if c.get("data-v")]
    for row in rows:
        if row.n:
            assert any(value == pytest.approx(row.mean, rel=1e-5) for value in values)


def test_markup_in_names_stays_text(rows: list[Row]) -> None:
    text = page(rows)
    assert "AGMM &lt;&amp;&gt;" in text
    assert "AGMM <&>" not in text.partition('id="facts"')[0]


def test_by_class_marks_the_best_and_names_the_absent(rows: list[Row]) -> None:
    text = page(rows)
    table = text.partition("point supervision, val-single: IoU by class</h3>")[2].partition("</table>")[0]
    for name in CLASSES:
        assert f">{name}</button>" in table
    assert table.count("absent") == 1
    assert table.count(' class="r first"') == 2 + len(CLASSES)  # two miss one alike


# --- LaTeX -----------------------------------------------------------------------------------------------


def test_places_are_within_an_evaluation_and_skip_what_is_stale(factory: Factory) -> None:
    for name, quality in (("agmm/mini-a", 0.7), ("pce/mini-a", 0.5), ("tel/mini-a", 0.3)):
        factory.record(factory.resolved(name), quality=quality)
    factory.record(factory.resolved("dfr/mini-a"), quality=0.9, protocol={"flip": True})
    parts = {s.kind: s for s in sections(leaderboard(gather_records(factory.store), resamples=5))}
    miou = parts["scores"].columns.index(MIOU)
    assert places(parts["scores"]) == {(0, miou): 1, (1, miou): 2, (2, miou): 3}
    assert [row.recipe for row in parts["stale"].rows] == ["dfr/mini-a"]
    assert places(parts["stale"]) == {}


def test_latex_has_booktabs_bold_and_underline(rows: list[Row]) -> None:
    text = latex(rows)
    best, second = sorted((r for r in rows if r.supervision == "point"), key=lambda r: -r.mean)[:2]
    assert f"\\textbf{{{best.mean:.2f} $\\pm$ {best.std:.2f}}}" in text
    assert f"\\underline{{{second.mean:.2f} $\\pm$ {second.std:.2f}}}" in text
    assert text.count("\\begin{table}") == text.count("\\end{table}") == text.count("\\toprule") == 3
    assert r"AGMM \textless{}\&\textgreater{}" in text
    assert "tel/mini-block" not in text
    for block in re.findall(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}\n(.*?)\\end\{tabular\}", text, re.S):
        columns, body = block
        for line in (line for line in body.splitlines() if line.endswith(r"\\")):
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1


def test_latex_names_holes_below_and_leaves_empty_columns_out(factory: Factory) -> None:
    two = factory.resolved(
        evaluation=(EvaluationSpec(), EvaluationSpec(protocol="agmm-voc")), suites=("mini",)
    )
    factory.record(factory.resolved())
    never = factory.resolved("tel/mini-point", suites=("mini",))
    text = latex(leaderboard(gather_records(factory.store), {two.name: two, never.name: never}, resamples=5))
    body = text.partition("\\midrule")[2].partition("\\bottomrule")[0]
    assert "agmm/mini-point" in body
    assert "tel/mini-point" not in body
    assert "Not run: agmm/mini-point (val-agmm-voc), tel/mini-point." in text
    heads = text.partition("\\toprule\n")[2].partition("\\\\")[0]
    assert "mIoU" in heads
    assert not any(name in heads for name in ("Published", "Difference", "Full", "Verdict"))


def test_the_page_names_columns_without_a_figure_and_links_its_tables(rows: list[Row]) -> None:
    text = page(rows)
    parts = sections(rows)
    image = next(part for part in parts if part.title.endswith("image supervision: pseudo labels"))
    table = text.partition(f'<h3 id="{image.id}">')[2].partition("</table>")[0]
    assert "none has a figure for: Published, Difference" in table
    assert ">Published</button>" not in table
    for part in parts:
        if part.kind in ("scores", "pseudo labels"):
            assert f'<a href="#{part.id}">' in text


def test_a_phone_hides_the_same_columns_in_head_and_rows(rows: list[Row]) -> None:
    text = page(rows)
    point = next(part for part in sections(rows) if part.title.endswith("point supervision"))
    table = text.partition(f'<h3 id="{point.id}">')[2].partition("</table>")[0]
    head, *body = re.findall(r"<tr.*?</tr>", table)
    hidden = [
        [i for i, cell in enumerate(re.findall(r"<t[hd][^>]*>", line)) if "minor" in cell]
        for line in (head, *body)
    ]
    names = re.findall(r">([^<>]+)</button></th>", head)
    assert [names[i] for i in hidden[0]] == [name for name in names if name in MINOR]
    assert all(places == hidden[0] for places in hidden)
    assert ".minor { display: none; }" in text.partition("@media (max-width")[2]


def test_claims_that_were_run_come_first(rows: list[Row]) -> None:
    claim = known_claims()["agmm-point"]
    judged = [
        Judged(claim, claim.comparisons[0]),
        Judged(claim, claim.comparisons[0], "holds", 2.0, 1.0, 3.0),
    ]
    text = html_report(rows, judged, published(), provenance="").partition('id="claims"')[2]
    assert text.index('data-verdict="holds"') < text.index("<details><summary>1 not run</summary>")


def test_the_page_opens_with_what_was_run_who_leads_and_what_holds(rows: list[Row]) -> None:
    claim = known_claims()["agmm-point"]
    judged = [
        Judged(claim, claim.comparisons[0], "holds", 2.0, 1.0, 3.0),
        Judged(claim, claim.comparisons[0]),
    ]
    text = html_report(
        rows, judged, published(), provenance="", plots={"overview-mini-val-single": b"<svg/>"}
    )
    first = text.partition('<section id="overview">')[2].partition("</section>")[0]
    for fact in (
        "Miniature scenes, val (30 pictures)",
        "3 recipes of 3 methods",
        "0, 1, 2",
        "CPU 1, 1 thread",
    ):
        assert fact in first
    table = first.partition("point supervision</h3>")[2].partition("</table>")[0]
    assert table.index("AGMM") < table.index("Partial")  # best first
    assert table.count('<svg class="interval"') == 3
    assert "baseline" in table
    assert 'data-plot="overview-mini-val-single"' in first
    assert text.count('data-plot="overview-mini-val-single"') == 1  # not once more below
    assert "1 holds, 0 do not hold, 0 undecided, 1 not run" in first
    assert first.count('class="badge v-holds"') == 1
    assert "badge v-not-run" not in first
    assert text.index('id="overview"') < text.index('id="tables"') < text.index('id="claims"')


def test_what_nobody_has_printed_is_said_once_beside_what_is_compared_with_print(rows: list[Row]) -> None:
    names = sorted({row.recipe for row in rows if row.supervision == "point" and row.n})
    known = {"published": 60.0, "difference": -1.25, "verdict": "not comparable"}
    shown = [replace(row, **known) if row.recipe == names[0] else row for row in rows]
    first = html_report(shown, [], published(), provenance="").partition('<section id="overview">')[2]
    first = first.partition("</section>")[0]
    assert len(re.findall(r'<td class="r print">−1.25 <span class="badge [^>]*>not comparable<', first)) == 1
    assert first.count('<td class="r print">–</td>') == len(names) - 1
    assert first.count("no published value") == 1


def test_every_table_that_is_filtered_has_a_part_that_can_be_hidden(rows: list[Row]) -> None:
    text = html_report(rows, [], published(), provenance="")
    for part in re.split('<div class="part">', text.partition('<section id="tables">')[2])[1:]:
        assert part.startswith("<h3")
        assert part.count("<table>") == 1
    assert text.count('<div class="part">') == len(re.findall(r"<table><caption>", text))


def test_the_page_compares_any_two_rows_as_the_verb_does(rows: list[Row]) -> None:
    text = page(rows)
    (group,) = json.loads(text.partition('id="pairs">')[2].partition("</script>")[0])
    agmm, partial = (
        next(i for i, name in enumerate(group["rows"]) if recipe in name)
        for recipe in ("agmm/mini-point", "pce/mini-point")
    )
    pair = group["pairs"][f"{agmm}-{partial}"]
    by_name = {row.recipe: row for row in rows if row.n}
    ours, theirs = by_name["agmm/mini-point"], by_name["pce/mini-point"]
    runs = [[run.per_image for run in row.runs] for row in (ours, theirs)]
    exact = two_level_difference(*runs, classes=ours.runs[0].data["protocol"]["classes"]).difference
    estimate, low, high = pair["figures"]
    assert estimate == pytest.approx(exact.estimate, abs=0.01)
    assert low == pytest.approx(exact.low, abs=0.8)
    assert high == pytest.approx(exact.high, abs=0.8)
    assert not pair["single"]
    assert all(x > y for _, x, y in pair["first"])
    gaps = [x - y for _, x, y in pair["first"]]
    assert gaps == sorted(gaps, reverse=True)
    assert group["iou"][partial][2] is None  # absent: no figure


def test_latex_escapes_everything() -> None:
    assert latex_escape(r"a_b 50 % {x} \\ ~^#$& – −1 ±") == (
        r"a\_b 50 \% \{x\} \textbackslash{}\textbackslash{} "
        r"\textasciitilde{}\textasciicircum{}\#\$\& -- $-$1 $\pm$"
    )


def test_names_break_on_a_phone_where_they_are_long_and_nowhere_else() -> None:
    assert breakable("DFR (reconstructed)") == "DFR (reconstructed)"
    assert breakable("agmm/mini-scribble <b>") == "agmm/mini-scribble &lt;b&gt;"
    long = breakable(f"agmm/{'x' * 30} & co")
    assert long == f"agmm/{'x' * 12}<wbr>{'x' * 12}<wbr>{'x' * 6} &amp; co"
    assert breakable("分割" * 10).replace("<wbr>", "") == "分割" * 10


def test_pictures_of_the_page_have_their_size_before_they_are_loaded() -> None:
    """Else what is below moves while somebody reads it."""
    svg = b'<svg width="504pt" height="187.2pt" viewBox="0 0 504 187.2" xmlns="http://www.w3.org/2000/svg"/>'
    assert 'width="504" height="187"' in drawn("overview-a", svg)
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (1400).to_bytes(4, "big") + (933).to_bytes(4, "big")
    assert 'width="1400" height="933"' in drawn("qualitative-a", png)


# --- all files -------------------------------------------------------------------------------------------


def test_the_report_writes_everything(factory: Factory, tmp_path: Path) -> None:
    rows = fill(factory)
    recipes = {"tel/mini-block": factory.resolved("tel/mini-block", supervision="block")}
    files = write_report(factory.store, tmp_path, recipes=recipes)
    names = {str(f.relative_to(tmp_path)) for f in files}
    tables = ("leaderboard.md", "published.md", "leaderboard.csv", "per_class.csv", "leaderboard.tex")
    assert {*tables, "leaderboard.json", "claims.md", "claims.csv", "report.html"} <= names
    assert "plots/overview-mini-val-single.png" in names
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("data:image/svg+xml;base64") == sum(n.endswith(".svg") for n in names)
    data = json.loads((tmp_path / "leaderboard.json").read_text(encoding="utf-8"))
    assert [line["recipe"] for line in data["rows"]] == [row.recipe for row in rows]
    for line, row in zip(data["rows"], rows, strict=True):
        assert (line["mean"] is None) == np.isnan(row.mean)
        assert (line["iou"] is None) == (row.n == 0)
    partial = next(line for line in data["rows"] if line["recipe"] == "pce/mini-point")
    assert partial["iou"]["ring"] is None
    assert partial["iou"]["disc"] == pytest.approx(np.mean([r.iou[1] for r in rows[1].runs]), abs=1e-5)


def test_a_label_stands_in_every_output(factory: Factory, tmp_path: Path) -> None:
    factory.record(title="AGMM")
    files = write_report(factory.store, tmp_path, recipes={}, plots=False, label="quick run <1>")
    texts = {f.name: f.read_text(encoding="utf-8") for f in files}
    assert texts["leaderboard.md"].startswith("# Leaderboard (quick run <1>)\n")
    assert "point supervision (quick run <1>)" in texts["leaderboard.md"]
    assert texts["claims.md"].startswith("# Claims (quick run <1>)\n")
    assert r"point supervision (quick run \textless{}1\textgreater{}). Mean" in texts["leaderboard.tex"]
    assert json.loads(texts["leaderboard.json"])["label"] == "quick run <1>"
    page_text = texts["report.html"]
    assert "<h1>wsss-bench leaderboard (quick run &lt;1&gt;)</h1>" in page_text
    assert "point supervision (quick run &lt;1&gt;)</h3>" in page_text


def test_one_seed_is_said_of_the_whole(factory: Factory, tmp_path: Path) -> None:
    sentence = "Every row rests on one seed"
    factory.record(title="AGMM")
    write_report(factory.store, tmp_path / "one", recipes={}, plots=False)
    factory.record(seed=1, title="AGMM")
    write_report(factory.store, tmp_path / "two", recipes={}, plots=False)
    for name in ("leaderboard.md", "leaderboard.json", "report.html"):
        assert sentence in (tmp_path / "one" / name).read_text(encoding="utf-8")
        assert sentence not in (tmp_path / "two" / name).read_text(encoding="utf-8")


def test_cells_by_class_and_claims_open_their_provenance(rows: list[Row]) -> None:
    index = next(i for i, row in enumerate(rows) if row.recipe == "agmm/mini-point")
    text = page(rows)
    table = text.partition("point supervision, val-single: IoU by class</h3>")[2].partition("</table>")[0]
    assert re.search(rf'<tr [^>]*data-row="{index}"', table)
    opener = rf'<button type="button" data-row="{index}" aria-haspopup="dialog">agmm/mini-point</button>'
    assert opener in table
    assert opener in text.partition('id="claims"')[2].partition("</table>")[0]


def test_equal_records_give_equal_pages(factory: Factory, tmp_path: Path) -> None:
    fill(factory)
    for place in ("a", "b"):
        write_report(factory.store, tmp_path / place, recipes={}, plots=False)
    assert (tmp_path / "a/report.html").read_bytes() == (tmp_path / "b/report.html").read_bytes()


def test_command(factory: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    factory.record(factory.resolved("agmm/unshipped"))
    out = tmp_path / "out"
    assert invoke(report_verb, ["--results", str(factory.store.root), "--out", str(out), "--no-plots"]) == 0
    *others, page = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrote")]
    assert page == f"wrote {out / 'report.html'}"
    assert len(others) <= 8
    assert str(out) in others[0]
    assert not (out / "plots").exists()
