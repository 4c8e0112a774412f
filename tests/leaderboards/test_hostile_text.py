"""A stranger's record in every output of the leaderboards."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from leaderboards.plots.drawing import save_figure
from leaderboards.write.report import write_report
from tests.leaderboards.synthetic import Factory


def test_records_of_strangers_cannot_move_the_table(factory: Factory, tmp_path: Path):
    """A hostile title in a record: every output shows it as text."""
    title = "=cmd|x\x1b[2J\u202e$x^{$ <!--<script>\r</script> [a](http://b) \\input{x}"
    factory.record(title=title)
    record = next(iter(factory.store.records()))
    assert "\x1b" not in record.data["title"]
    files = {f.name: f for f in write_report(factory.store, tmp_path / "out", recipes={})}
    for name in ("leaderboard.md", "leaderboard.csv", "leaderboard.tex", "leaderboard.json", "report.html"):
        content = files[name].read_text()
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", content), name
    page = files["report.html"].read_text()
    assert page.count("</script>") == page.count("<script")
    block = re.search(r'id="facts">(.*?)</script>', page, re.S)
    assert block is not None
    json.loads(block.group(1))
    with files["leaderboard.csv"].open() as stream:
        for row in csv.DictReader(stream):
            assert not any((v or "").startswith(("=", "@", "+")) for v in row.values())
    assert "](http" not in files["leaderboard.md"].read_text()


@pytest.mark.parametrize("text", ["$x^{$", "a $\\frac{1}$ b", "5 $ to 6 $"])
def test_dollar_signs_of_names_are_drawn_as_such(text: str, tmp_path: Path):
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 1000], [1, 2], label=text)
    axes.set(xscale="log", title=text, ylabel=text)
    axes.legend()
    (file,) = save_figure(figure, tmp_path / "plot", ("svg",), text)
    assert file.stat().st_size > 1000
