"""Text from outside: cleaned where it is read, harmless where it is shown."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.basics.errors import UserError
from harness.basics.files import read_toml
from harness.basics.reading import read_json
from harness.basics.text import clean, csv_cell, one_line
from harness.recipes.resolving import parse_overrides
from leaderboards.rows.text import escaped
from leaderboards.write.html_report import script_data

#: What was written, and what it says.
HOSTILE = {
    "\x1b[31mred\x1b[0m": "red",
    "\x1b]0;title\x07text": "text",
    "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\": "link",
    "\x9b2Jgone": "gone",
    "a\rb": "a\nb",
    "a\u202egpj.exe": "agpj.exe",
    "zero\u200bwidth\ufeff\u2060": "zerowidth",
    "nul\x00bell\x07": "nulbell",
    "half \ud800": "half \ufffd",
    "line\u2028end": "line\nend",
    "\u2067isolate\u2069": "isolate",
    "tag\U000e0041": "tag",
}


@pytest.mark.parametrize(("text", "said"), HOSTILE.items())
def test_text_says_what_it_shows(text, said):
    assert clean(text) == said
    assert one_line(text) == " ".join(said.split())


@pytest.mark.parametrize("text", ["Jiǎ & Søn – 57.3 ± 0.2 μm", "日本語", "عربي", "a\n\tb", "ß|`<$>"])
def test_ordinary_text_stays(text):
    assert clean(text) == text


@given(st.text())
def test_cleaning_once_is_enough(text):
    once = clean(text)
    assert clean(once) == once
    once.encode()  # no half surrogate pairs
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e]", once)
    assert "\n" not in one_line(text)


def test_files_are_clean_when_read(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('\ufefftitle = "x\\u001b[2J\\u202Ey"\n[t]\nnames = ["a\\u0000b"]\n', encoding="utf-8")
    assert read_toml(file) == {"title": "xy", "t": {"names": ["ab"]}}
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"k\r": ["\x1b[1mbold", 3], "long": "z" * 100_000}))
    assert read_json(file)["k\n"] == ["bold", 3]
    assert len(read_json(file)["long"]) < 30_000


def test_overrides_and_messages_are_clean():
    assert parse_overrides(['labels.folder="a\\u0000b"', "weights=\u202ex"]) == {
        "labels.folder": "ab",
        "weights": "x",
    }
    assert parse_overrides(["weights=1\nx = 2"]) == {"weights": "1\nx = 2"}
    error = UserError("no \x1b[31m", where="/tmp/\ud800\x07", remedy="a" * 50_000)
    assert "\x1b" not in str(error)
    assert "\x07" not in str(error)
    assert len(str(error)) < 3000


@pytest.mark.parametrize("cell", ["=1+1", "+cmd", "-x", "@SUM(A1)", "\t=1", "\r=1", "=-1"])
def test_a_spreadsheet_computes_no_text(cell, tmp_path):
    assert csv_cell(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["-1.5", "+3", "-1e-9", 4, -2.5, "", None, "agmm/mini", "–"])
def test_numbers_stay_numbers(cell):
    assert csv_cell(cell) == cell


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "a\u2028b", "]]>", "&lt;/script>", "<ScRiPt"])
def test_nothing_in_the_data_block_ends_it(text):
    block = script_data({text: [text]})
    assert not set("<>&\u2028\u2029") & set(block)
    assert json.loads(block) == {text: [text]}


def test_a_markdown_cell_holds_text_alone():
    assert escaped("a|b\nc") == "a\\|b c"
    assert escaped("![x](http://e)") == "![x]\\(http://e)"
    assert escaped("[x][y]") == "[x]\\[y]"
    assert escaped("<img src=x>") == "&lt;img src=x>"
    assert escaped("<!-- x") == "&lt;!-- x"
    assert escaped("p < 0.01, [57.1, 58.2]") == "p < 0.01, [57.1, 58.2]"
