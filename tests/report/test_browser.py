"""Pages in a real browser: no complaint on its console, and nothing wider than the window."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from report.folders import write_evaluation, write_run

from chatbench.report.evaluation import read_evaluation
from chatbench.report.evaluation_page import render_evaluation
from chatbench.report.making import _Found, _render
from chatbench.report.reading import read_run
from chatbench.report.run_page import render_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
               None)  # fmt: skip
# The page has no script; the one around it measures. A window itself cannot be as narrow as a
# telephone, a frame can.
AROUND = """<!DOCTYPE html><title>x</title>
<iframe width="{size}" height="900" style="border:0" srcdoc="{page}" onload="document.title =
'wide ' + this.contentDocument.documentElement.scrollWidth"></iframe>"""


def run_page(place: Path) -> str:
    return render_run(read_run(write_run(place / "runs" / "小店", reward=1.5)))


def overlay_page(place: Path) -> str:
    runs = [read_run(write_run(place / f"run-{n}", loss=3.0 + n)) for n in range(5)]
    return _render(_Found(runs, [], []), place / "report.html")


def evaluation_page(place: Path) -> str:
    return render_evaluation(read_evaluation(write_evaluation(place / "evaluation")))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("size", [1280, 400])
@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
@pytest.mark.parametrize("make", [run_page, overlay_page, evaluation_page])
def test_a_browser_has_nothing_to_complain_of(
    tmp_path: Path, make: Callable[[Path], str], size: int, scheme: int
) -> None:
    page = tmp_path / "page.html"
    inside = html.escape(make(tmp_path))
    page.write_text(AROUND.format(size=size, page=inside), "utf-8")
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--blink-settings=preferredColorScheme={scheme}", f"--user-data-dir={tmp_path / 'home'}",
         "--window-size=1400,1000", "--virtual-time-budget=1000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0
    assert "CONSOLE" not in done.stderr
    (wide,) = re.findall(r"<title>wide (\d+)</title>", done.stdout)
    assert int(wide) <= size
