"""The page of results in a real browser, and Snakemake's own report with our captions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirai.analysis.page import write_page
from tests.analysis.made import SCALE, make_results
from tests.workflow.chromium import PROGRAM, Browser
from tests.workflow.project import Project

pytestmark = pytest.mark.workflow

WIDTHS = (360, 768, 1280)  # pixels: a phone, a tablet, a desk
OPEN_ALL = "document.querySelectorAll('details').forEach(one => one.open = true)"
# What can be reached by the Tab key, in the order of the document.
REACHABLE = (
    """[...document.querySelectorAll('a[href], summary, [tabindex="0"]')].filter(one => one.checkVisibility())"""
)
CONTRASTS = """(() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3)
      .map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = one => {
    const colour = getComputedStyle(one).backgroundColor;
    if (colour !== 'rgba(0, 0, 0, 0)') return colour;
    return one.parentElement ? behind(one.parentElement) : 'rgb(255, 255, 255)';
  };
  return [...document.querySelectorAll('body *')].filter(one => one.checkVisibility() && one.innerText?.trim())
    .map(one => [light(getComputedStyle(one).color), light(behind(one)), one.outerHTML.slice(0, 80)])
    .map(([a, b, what]) => [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), what]);
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if PROGRAM is None and not os.environ.get("MIRAI_REQUIRE_CHROMIUM"):
        pytest.skip("chromium is not installed; tests/chromium.sh does that")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def page(clone: Project, fresh_plan: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page of tables wider than a phone, large pictures, costs, and much that is not made."""
    monkeypatch.chdir(clone.root)
    make_results()
    return write_page(SCALE).resolve()


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(width: int, page: Path, browser: Browser) -> None:
    browser.show(page, width)
    browser.value(OPEN_ALL)
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") <= width
    # The same of every element that is not in a box that scrolls, hidden overflow or not.
    outside = browser.value(
        "[...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll, .skip'))"
        ".filter(one => one.getBoundingClientRect().right > innerWidth + .5).map(one => one.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_wide_tables_scroll_in_boxes_of_their_own(page: Path, browser: Browser) -> None:
    browser.show(page, 360)
    boxes = "[...document.querySelectorAll('.scroll:has(table.results)')]"
    widths = browser.value(f"{boxes}.map(one => one.scrollWidth - one.clientWidth)")
    assert len(widths) == 3
    assert min(widths) > 100
    browser.value(f"{boxes}.forEach(one => one.scrollLeft = 1000)")
    assert min(browser.value(f"{boxes}.map(one => one.scrollLeft)")) > 100
    first = browser.value("document.querySelector('.results tbody th').getBoundingClientRect().left")
    assert 0 <= first < 40, "the name of a row stays in view"


def test_pictures_load_from_the_page_itself_and_fit(page: Path, browser: Browser) -> None:
    browser.show(page, 360)
    sizes = browser.value("[...document.images].map(one => [one.complete, one.naturalWidth, one.width])")
    assert len(sizes) == 2
    for complete, natural, shown in sizes:
        assert complete
        assert natural > 1000
        assert shown < 360


def test_the_browser_complains_of_nothing_and_asks_nobody(page: Path, browser: Browser) -> None:
    before = len(browser.events)
    for width in WIDTHS:
        browser.show(page, width)
    events = browser.events[before:]
    complaints = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
    assert [one for one in events if one["method"] in complaints] == []
    asked = [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in asked
    assert all(url == page.as_uri() or url.startswith("data:") for url in asked)


def test_the_browser_would_have_complained(page: Path, browser: Browser) -> None:
    """That the test above can fail: a picture from elsewhere is refused by the page's policy, and told."""
    page.write_text(page.read_text().replace("</main>", '<img src="http://127.0.0.1:9/x.png" alt=""></main>'))
    before = len(browser.events)
    browser.show(page, 1280)
    assert any(
        "Content Security Policy" in str(one) for one in browser.events[before:] if one["method"] == "Log.entryAdded"
    )


def test_the_tab_key_reaches_everything_in_order_and_shows_where_it_is(page: Path, browser: Browser) -> None:
    browser.show(page, 1280)
    browser.value(f"window.all = {REACHABLE}")
    count = browser.value("all.length")
    assert count > 30
    reached = []
    for _ in range(count):
        browser.press("Tab")
        reached.append(browser.value("all.indexOf(document.activeElement)"))
        assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == list(range(count))


def test_the_first_link_skips_to_the_results(page: Path, browser: Browser) -> None:
    browser.show(page, 360)
    hidden = "document.querySelector('.skip').getBoundingClientRect().right < 0"
    assert browser.value(hidden)
    browser.press("Tab")
    assert not browser.value(hidden)
    browser.press("Enter")
    assert browser.value("document.activeElement.id") == "content"


def test_details_open_by_keyboard(page: Path, browser: Browser) -> None:
    browser.show(page, 768)
    assert not browser.value("document.querySelector('pre').checkVisibility()")
    browser.value(
        "document.querySelectorAll('summary').forEach(one => one.innerText.startsWith('Tree') && one.focus())"
    )
    browser.press("Enter")
    assert browser.value("document.activeElement.parentElement.querySelector('pre').checkVisibility()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(scheme: str, page: Path, browser: Browser) -> None:
    browser.show(page, 1280, scheme=scheme)
    browser.value(OPEN_ALL)
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    contrasts = browser.value(CONTRASTS)
    assert len(contrasts) > 200
    assert [what for contrast, what in contrasts if contrast < 4.5] == []


def test_a_printed_page_has_all_columns(page: Path, browser: Browser) -> None:
    browser.show(page, 794, medium="print")  # A4 at 96 dots an inch
    assert not browser.value("document.querySelector('nav').checkVisibility()")
    assert browser.value("document.documentElement.scrollWidth") <= 794


def test_the_page_is_made_again_when_a_table_is_and_starts_no_training(page: Path, clone: Project) -> None:
    target = "results/digits/index.html"
    assert clone.plan(target).keys() <= {"make_page"}
    clone.make(target)
    assert clone.plan(target) == {}
    record = clone.root / "results/digits/.table2.csv.key"
    record.write_text("another plan\n")
    assert clone.plan(target).keys() == {"make_page"}
    clone.make(target)
    assert "edited since" in page.read_text()


def test_snakemakes_report_has_captions_and_categories(page: Path, clone: Project) -> None:
    clone.run("mirai", "figure", "figure2", "--scale", "digits")
    clone.run("snakemake", "results/digits/figure2.png", "results/digits/table2.csv", "--report", "report.html")
    report = (clone.root / "report.html").read_text()
    for text in ("Tables", "Figures", "Foresight positions in the 1D scan", "Which internal layer should align"):
        assert text in report
    assert "what was measured beside what the paper" in report
    assert "foresight for autoregressive image generation" in report
