"""How long the page of a report takes to open in Chromium: to be parsed and laid out, its script included.

``python benchmarks/page_in_a_browser.py reports/report.html`` prints the median of five openings, each in a
process of its own; ``--within 1.0`` makes more than so many seconds an exit code of 1. A page of a thousand
rows is that of ``benchmarks/report_at_scale.py store/ --records 3000 --out big/``.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
#: Reading a height makes the browser lay out what is in sight.
_PROBE = """<script>addEventListener("load", () => { document.body.offsetHeight;
document.documentElement.setAttribute("data-opened", performance.now()); });</script>"""


def opened(browser: str, page: Path) -> float:
    """Seconds until a page has opened, by the browser's own clock."""
    with tempfile.TemporaryDirectory() as place:
        probed = Path(place) / "page.html"
        text = page.read_text(encoding="utf-8")
        probed.write_text(text.replace("</body>", f"{_PROBE}</body>"), encoding="utf-8")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={place}/profile"]
        size = ["--window-size=1400,900", "--dump-dom", probed.as_uri()]
        shown = subprocess.run([*command, *size], capture_output=True, text=True, check=True, timeout=300)
    found = re.search(r'data-opened="([\d.]+)"', shown.stdout)
    if found is None:
        sys.exit(f"{browser} did not finish loading {page}: {shown.stderr[-300:]}")
    return float(found[1]) / 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--within", type=float, help="seconds that the median may take")
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        sys.exit(f"none of these browsers is installed: {', '.join(_BROWSERS)}")
    times = sorted(opened(browser, options.page) for _ in range(options.runs))
    median = statistics.median(times)
    size = options.page.stat().st_size / 2**20
    print(f"{options.page}: {size:.1f} MiB, opened in {median:.2f} s ({times[0]:.2f} to {times[-1]:.2f})")
    sys.exit(options.within is not None and median > options.within)


if __name__ == "__main__":
    main()
