"""The page in a real browser: nothing is missing or overflows, and it is readable in dark mode and on paper."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from rayexp.api import Chart
from rayexp.reports import explore
from rayexp.reports import page as report
from rayexp.sweep.plan import Plan
from tests.fixtures import chromium
from tests.fixtures.simulated_study import HOSTILE, HOSTILE_RECORD, published, study_stages

#: The tests open a browser, which `make check` does not install.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a page with every section, of a study with a hostile and long name. Return its path."""
    folder = tmp_path_factory.mktemp("page")
    stages = study_stages(ood_ratios=(0.0, 0.01, 0.05), kl_betas=(0.1,), seeds=(0, 1))
    # The widest numbers: 36 stages of 5 days on 64 GPUs.
    run_config = {"train_workers": 64, "train_cpus": 8.0, "train_gpus": 1.0}
    store = published(folder, stages, {**HOSTILE_RECORD, "duration_s": 4.5e5, "run_config": run_config})
    return report.write(Plan.of(HOSTILE + "a" * 80, stages, store.finished_ids()), store, folder / "out").page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if (executable := chromium.path()) is None:
        pytest.fail("no Chromium was found, which this test opens the page in; `make test` installs it")
    with sync_playwright() as playwright:
        # Containers run tests as root, under which Chromium has no sandbox. It reads this project's own page.
        launched = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(params=[(375, "light"), (375, "dark"), (1440, "light"), (1440, "dark")], ids=lambda p: f"{p[0]}-{p[1]}")
def opened(request: pytest.FixtureRequest, browser: Browser, written: Path) -> Iterator[tuple[Page, list[str]]]:
    """Yield the page at one width in one colour scheme, and a list of the browser's complaints and requests."""
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    heard: list[str] = []
    page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url) if not request.url.startswith("data:") else None)
    page.goto(written.as_uri())
    heard.remove(written.as_uri())
    yield page, heard
    page.close()


def test_the_page_is_whole_at_every_width_and_in_both_schemes(opened: tuple[Page, list[str]], written: Path) -> None:
    page, heard = opened
    assert heard == []
    images = page.eval_on_selector_all("img", "all => all.map(i => [i.complete, i.naturalWidth, i.alt.length > 40])")
    assert len(images) == 9
    assert all(complete and width > 0 and described for complete, width, described in images)
    page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    outside = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    long = "all => all.forEach(one => one.add(new Option('a long condition, '.repeat(9))))"
    page.eval_on_selector_all("select", long)
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), "a choice is wider than the window"
    links = page.eval_on_selector_all("a", "all => all.map(a => a.getAttribute('href'))")
    assert len(links) == 5 + 15 + 1 + 2 * 9  # claims, contents, a mention of the statistics, files of the figures
    for link in links:
        inside = link.startswith("#")
        assert page.locator(link).count() == 1 if inside else (written.parent / link).stat().st_size


def test_figures_can_be_explored_and_seen_as_drawn(opened: tuple[Page, list[str]]) -> None:
    page, heard = opened
    figures = page.locator("figure:has(.chart)")
    assert figures.count() == 6
    for figure in figures.all():
        button, image, chart = figure.locator("button"), figure.locator("img"), figure.locator(".chart")
        if image.is_visible():  # all but the first
            button.click()
        chart.locator("svg.marks").wait_for()
        assert not image.is_visible()
        assert chart.locator("svg .mark-symbol path").count() > 3
        assert chart.evaluate("chart => chart.getBoundingClientRect().right <= innerWidth")
        button.click()
        assert image.is_visible()
        assert not chart.is_visible()
    assert heard == []


def test_a_point_tells_its_values_and_a_menu_picks_what_is_shown(browser: Browser, written: Path) -> None:
    page = browser.new_page(viewport={"width": 900, "height": 900})
    page.goto(written.as_uri())
    chart = page.locator("#figure-1 .chart")
    points = chart.locator("svg .mark-symbol[role='graphics-symbol'] path, svg g.mark-symbol.role-mark path")
    points.first.wait_for()
    places = [point.bounding_box() for point in points.all()]
    points.first.hover()
    told = page.locator("#vg-tooltip-element.visible")
    told.wait_for()
    assert "OOD samples in pretraining (%)" in told.inner_text()
    chart.locator("select").first.select_option("gain: mean after - before")
    page.wait_for_timeout(300)
    assert [point.bounding_box() for point in points.all()] != places
    page.close()


def test_a_chart_of_a_page_can_stand_alone_in_a_frame(browser: Browser, written: Path) -> None:
    chart = explore.charts(written.read_text())["figure-1"]
    page = browser.new_page()
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("request", lambda request: heard.append(request.url))
    page.set_content(Chart(explore.alone(chart, "figure-1"))._repr_html_())
    frame = page.frame_locator("iframe")
    frame.locator("svg.marks").wait_for()
    assert frame.locator("svg .mark-symbol path").count() > 3
    assert [each for each in heard if not each.startswith(("about:", "data:"))] == []
    page.close()


def test_worked_examples_can_be_asked_for(browser: Browser, written: Path) -> None:
    page = browser.new_page()
    page.goto(written.as_uri())
    examples, asked = page.locator(".example"), page.locator("#asked")
    assert examples.count() == 9
    asked.locator("select[name=ratio]").select_option("5")
    assert [example.is_visible() for example in examples.all()] == [False] * 6 + [True] * 3
    assert page.locator(".examples:visible").count() == 1
    assert asked.locator("output").inner_text() == "3 of 9"
    asked.locator("select[name=ratio]").select_option("all")
    assert all(example.is_visible() for example in examples.all())
    page.close()


def test_without_scripts_everything_is_there(browser: Browser, written: Path) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(written.as_uri())
    assert all(image.is_visible() for image in page.locator("img").all())
    assert not any(one.is_visible() for one in page.locator("button, form, .chart, .chart-help").all())
    assert all(example.is_visible() for example in page.locator(".example").all())
    page.context.close()


CONTRAST = """() => {
  const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = css => { const [r, g, b] = css.match(/[\\d.]+/g).map(Number).map(channel);
                         return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
                        if (!c.endsWith(', 0)')) return c; } };
  const text = [...document.querySelectorAll('body *')].filter(e => [...e.childNodes].some(
    n => n.nodeType == 3 && n.textContent.trim()));
  return Math.min(...text.map(e => {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => x - y);
    return (b + 0.05) / (a + 0.05);
  }));
}"""


def test_all_text_can_be_read_on_its_ground(opened: tuple[Page, list[str]]) -> None:
    """Require WCAG AA: a contrast of 4.5 to 1 or more."""
    page, _ = opened
    assert page.evaluate(CONTRAST) >= 4.5


#: Darkest, brightest and median pixel of a PNG, as sums of red, green and blue; decoded by the browser.
PIXELS = """async bytes => {
  const map = await createImageBitmap(new Blob([new Uint8Array(bytes)]));
  const pen = new OffscreenCanvas(map.width, map.height).getContext('2d');
  pen.drawImage(map, 0, 0);
  const all = pen.getImageData(0, 0, map.width, map.height).data;
  const sums = Array.from({length: all.length / 4}, (_, i) => all[4 * i] + all[4 * i + 1] + all[4 * i + 2]);
  sums.sort((x, y) => x - y);
  return [sums[0], sums[sums.length - 1], sums[sums.length >> 1]];
}"""


@pytest.mark.parametrize(
    ("scheme", "media", "dark"), [("light", "screen", False), ("dark", "screen", True), ("dark", "print", False)]
)
def test_figures_are_ink_on_the_ground_of_the_page(browser: Browser, written: Path, scheme, media, dark) -> None:
    """Expect black on white, white on black in dark mode, and always black on white on paper."""
    page = browser.new_page(viewport={"width": 375, "height": 900}, color_scheme=scheme)
    page.emulate_media(media=media)
    page.goto(written.as_uri())
    darkest, brightest, ground = page.evaluate(PIXELS, list(page.locator("#figure-7 img").screenshot()))
    page.close()
    assert ground < 100 if dark else ground > 700
    assert darkest < 100
    assert brightest > 700


def test_it_prints(browser: Browser, written: Path) -> None:
    page = browser.new_page()
    page.goto(written.as_uri())
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print")
    visible = "all => all.map(e => e.checkVisibility({contentVisibilityAuto: true}))"
    for _ in range(50):  # a browser applies the other medium with a delay
        shown = page.eval_on_selector_all("details.settings td", visible)
        if all(shown):
            break
        page.wait_for_timeout(100)
    assert shown
    assert all(shown)
    page.close()
