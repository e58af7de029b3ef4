"""The page in a real browser: it sorts, filters, follows theme and paper, fits a phone, and does not call home.

Opening it is what takes time (plotly.js is parsed), so tests that leave no trace share one tab in which it is open.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quantkit.reporting.page import render_page
from quantkit.reporting.report import Report
from tests.reporting.chromium import Page, browser, find_chromium
from tests.reporting.conftest import subject, task_result
from tests.reporting.test_page import HOSTILE

pytestmark = pytest.mark.skipif(
    find_chromium() is None,
    reason="no Chromium here, so the report's page is not tested in a browser (Debian: apt install chromium)",
)

SHOWN = "[...document.querySelectorAll('#table tbody tr')].filter(line => !line.hidden)"
NAMES = f"{SHOWN}.map(line => line.cells[1].innerText.replace(/^\\d+\\s+/, ''))"
WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture(autouse=True)
def nothing_is_logged_or_fetched(tab: Page) -> Iterator[None]:
    tab.logged.clear()
    tab.requests.clear()
    yield
    assert tab.logged == []
    assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []


@pytest.fixture(scope="module")
def opened(tab: Page, written: Path) -> Page:
    """The tab with the page open at a desktop's width."""
    tab.open(written)
    return tab


@pytest.fixture
def fresh(opened: Page, written: Path) -> Page:
    """The open page without filters and in its first order."""
    if not opened.run("location.href").endswith(written.name):
        opened.open(written)
    opened.emulate(width=1280)
    for field in ("task", "method", "peft", "marks", "text"):
        choose(opened, field, "")
    opened.run("for (const item of document.querySelectorAll('details')) item.open = false")
    while sort(opened, "place") != "ascending":
        pass
    return opened


def names(tab: Page) -> list[str]:
    found: list[str] = tab.run(NAMES)
    return found


def choose(tab: Page, field: str, value: str) -> None:
    tab.run(
        f"(field => {{ field.value = {json.dumps(value)}; field.dispatchEvent(new Event('input', {{bubbles: true}})); }})"
        f"(document.querySelector('#filters [name={field}]'))"
    )


def sort(tab: Page, key: str) -> Any:
    tab.click(f"th[data-key={key}] button")
    return tab.run(f"document.querySelector('th[data-key={key}]').getAttribute('aria-sort')")


def test_scores_sort_within_their_task_and_what_is_at_its_floor_stays_last(fresh: Page) -> None:
    best_first = ["best", "middle", "middle-too", "silent", "at-its-floor", "best", "middle", "at-its-floor"]
    assert names(fresh) == best_first
    assert sort(fresh, "score") == "descending"
    assert names(fresh) == best_first
    assert sort(fresh, "score") == "ascending"
    assert names(fresh)[:5] == ["middle-too", "middle", "best", "at-its-floor", "silent"]
    assert fresh.run("[...document.querySelectorAll('th[aria-sort]')].filter(th => th.ariaSort !== 'none').length") == 1


def test_other_columns_sort_by_number_and_by_the_keyboard(fresh: Page) -> None:
    fresh.run("document.querySelector('th[data-key=size] button').focus()")
    fresh.press("Enter")
    assert names(fresh)[:2] == ["best", "best"]
    fresh.press("Enter")
    assert names(fresh)[:2] == ["silent", "at-its-floor"]
    assert sort(fresh, "speed") == "descending"
    assert names(fresh)[0] == "middle-too"
    assert len(names(fresh)) == 8


def test_filters_combine_and_say_how_much_is_shown(fresh: Page) -> None:
    choose(fresh, "task", "codes")
    choose(fresh, "marks", "-")
    assert names(fresh) == ["best", "middle", "middle-too"]
    choose(fresh, "text", "qlora MIDDLE")
    assert names(fresh) == ["middle-too"]
    assert fresh.run("document.querySelector('#count').textContent") == "1 of 8 lines"
    choose(fresh, "text", "")
    choose(fresh, "marks", "EMPTY")
    assert names(fresh) == ["silent"]
    choose(fresh, "peft", "LoRa16")
    assert names(fresh) == []


def test_every_plot_is_drawn_with_its_error_bars(fresh: Page) -> None:
    drawn = fresh.run(
        "[...document.querySelectorAll('.plot')].map(plot => plot.querySelectorAll('.scatterlayer .trace').length)"
    )
    assert len(drawn) == 6
    assert all(drawn)
    assert fresh.run("document.querySelectorAll('.errorbar').length") >= 5


def test_the_theme_is_the_systems_until_the_reader_chooses_and_plots_follow(tab: Page, written: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    tab.open(written)
    tab.run("localStorage.removeItem('quantkit-theme')")
    tab.open(written)
    light = tab.run(paper), tab.run(ink)
    tab.emulate(width=1280, dark=True)
    tab.wait_for(f"{paper} != '{light[0]}' && {ink} != '{light[1]}'")
    dark = tab.run(paper), tab.run(ink)
    for theme, (back, front) in (("light", light), ("dark", dark), ("system", dark)):
        tab.click("#theme")
        tab.wait_for(f"{paper} == '{back}' && {ink} == '{front}'")
        assert tab.run("document.querySelector('#theme').textContent") == f"Theme: {theme}"


def test_no_page_is_wider_than_its_screen(tab: Page, written: Path, tmp_path: Path) -> None:
    tab.open(written, width=360)
    tab.run("document.querySelector('#expand').click()")
    for width in (360, 390, 768, 1280):
        tab.emulate(width=width)
        tab.run("new Promise(done => setTimeout(done, 200))")
        assert tab.run(WIDE) <= 0, width
        if width in (390, 1280):
            assert tab.screenshot(tmp_path / f"{width}.png").stat().st_size > 20_000


def test_a_link_to_an_artifact_opens_its_section(fresh: Page) -> None:
    fresh.click("#table a[href='#artifact-3']")
    fresh.wait_for("document.querySelector('#artifact-3').open")
    assert not fresh.run("document.querySelector('#artifact-2').open")


def test_on_paper_everything_is_open_and_afterwards_as_before(tab: Page, written: Path, tmp_path: Path) -> None:
    tab.open(written, dark=True)
    tab.run(
        "addEventListener('beforeprint', () => { window.opened = document.querySelectorAll('details[open]').length;"
        " window.ink = getComputedStyle(document.querySelector('.plot .xtick text')).fill; })"
    )
    printed = tab.pdf(tmp_path / "report.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert (tab.run("window.opened"), tab.run("window.ink")) == (6, "rgb(0, 0, 0)")
    assert tab.run("document.querySelectorAll('details[open]').length") == 0


def test_hostile_text_does_nothing_in_a_browser(tab: Page, tmp_path: Path) -> None:
    made = subject(1, HOSTILE, task_result(50, text=HOSTILE), method=HOSTILE, lineage=[HOSTILE])
    path = tmp_path / "hostile.html"
    path.write_text(render_page(Report.of([made], title=HOSTILE)), encoding="utf-8")
    tab.open(path)
    assert tab.run("document.querySelectorAll('img, script').length") == 3
    assert tab.run("document.title").startswith(HOSTILE)
    assert tab.run("document.querySelectorAll('.plot .trace').length") >= 1


def test_an_empty_report_is_a_page_too(tab: Page, tmp_path: Path) -> None:
    path = tmp_path / "empty.html"
    path.write_text(render_page(Report.of([], title="t")), encoding="utf-8")
    tab.open(path)
    assert "No results yet." in tab.run("document.body.innerText")
