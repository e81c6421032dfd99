"""The page in a real browser: it is quiet, fetches nothing, and its tables and charts answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from pipeline.report import render
from pipeline.report.page import render as page
from tests.pipeline.report import factory

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
WAIT_S = 120  # a busy machine may be slow; nothing waits longer than it has to
TECHNIQUES = ("full", "sliding_window", "attention_sink", "snapkv")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Chromium and its chromedriver on the PATH")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page alone in a folder of its own."""
    root = tmp_path_factory.mktemp("project")
    ratios = zip(TECHNIQUES, (1.0, 0.5, 0.7, 1.3), strict=True)
    factory.store([factory.timed(name, n, ratio) for name, ratio in ratios for n in (512, 2048)], root / "results")
    factory.store([factory.judged(name, 512, 0.1) for name in TECHNIQUES], root / "results")
    skipped = factory.make(factory.cell("kivi"), status="skipped", reason="does not fit", remedy="more memory")
    factory.store([skipped], root / "results")
    alone = root / "alone" / page.PAGE
    alone.parent.mkdir()
    alone.write_bytes(render.render(root / "results", root / "reports")[page.PAGE])
    return alone.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.binary_location = BROWSER or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(DRIVER))
    opened.set_page_load_timeout(WAIT_S)
    opened.set_script_timeout(WAIT_S)
    yield opened
    opened.quit()


@pytest.fixture
def opened(browser: webdriver.Chrome, address: str) -> webdriver.Chrome:
    """As wide as a laptop."""
    look(browser, 1366, 900, "light")
    browser.get_log("performance")
    browser.get(address)
    return browser


def look(browser: webdriver.Chrome, width: int, height: int, scheme: str) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def chart(browser: webdriver.Chrome, name: str) -> WebElement:
    """Scrolled to, and drawn."""
    plot = browser.find_element(By.CSS_SELECTOR, f'.plot[data-chart*="/{name}-"]')
    browser.execute_script("arguments[0].scrollIntoView()", plot)
    WebDriverWait(browser, WAIT_S).until(lambda _: plot.get_attribute("data-drawn") is not None)
    return plot


def first_table(browser: webdriver.Chrome) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, ".table")


def column(table: WebElement, number: int) -> list[str]:
    """Texts from top to bottom, read at once: a table that is drawn anew replaces its rows."""
    texts = "return [...arguments[0].querySelectorAll(arguments[1])].map((cell) => cell.textContent.trim())"
    return table.parent.execute_script(texts, table, f"tbody td:nth-child({number + 1})")


def heading(table: WebElement, text: str) -> tuple[int, WebElement]:
    cells = table.find_elements(By.CSS_SELECTOR, "thead th")
    return next((number, cell) for number, cell in enumerate(cells) if cell.text.startswith(text))


def test_it_draws_everything_without_a_complaint_or_a_request(opened: webdriver.Chrome, address: str) -> None:
    opened.execute_script("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    plots = opened.find_elements(By.CSS_SELECTOR, ".plot")
    assert len(plots) > 10
    for plot in plots:
        opened.execute_script("arguments[0].scrollIntoView()", plot)
        WebDriverWait(opened, WAIT_S).until(lambda _, found=plot: found.find_elements(By.CSS_SELECTOR, "svg .trace"))
    assert [entry for entry in opened.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}] == []
    said = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in said if event["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {address}


def test_a_heading_sorts_quantities_by_what_they_say(opened: webdriver.Chrome) -> None:
    table = first_table(opened)
    number, cell = heading(table, "Decode step")
    before = column(table, number)
    cell.click()
    rising = column(table, number)
    assert rising != before and sorted(rising) == sorted(before)
    values = [float(text.partition("×")[0]) for text in rising if "×" in text]
    assert values == sorted(values)
    cell.click()
    falling = [float(text.partition("×")[0]) for text in column(table, number) if "×" in text]
    assert falling == values[::-1]
    assert heading(table, "Decode step")[1].get_attribute("aria-sort") == "descending"


def test_what_was_not_measured_comes_last_either_way(opened: webdriver.Chrome) -> None:
    table = next(
        one for one in opened.find_elements(By.CSS_SELECTOR, ".table") if "kivi" in one.get_attribute("textContent")
    )
    opened.execute_script("for (let one = arguments[0]; one; one = one.parentElement) one.open = true", table)
    number, cell = heading(table, "KV held")
    for _ in range(2):
        opened.execute_script("arguments[0].click()", cell)
        found = column(table, number)
        assert "–" in found and "–" not in found[: -found.count("–")]


def test_a_heading_sorts_by_the_keyboard_alone(opened: webdriver.Chrome) -> None:
    table = first_table(opened)
    number, cell = heading(table, "Technique")
    before = column(table, number)
    reached = cell.find_elements(By.CSS_SELECTOR, "[tabindex='0']") or [cell]
    reached[0].send_keys(Keys.ENTER)
    assert column(table, number) == sorted(before)


def test_a_filter_keeps_the_rows_with_its_words(opened: webdriver.Chrome) -> None:
    table = first_table(opened)
    box = table.find_element(By.CSS_SELECTOR, "input")
    box.send_keys("snap")
    assert column(table, 0) == ["snapkv"]
    box.send_keys(Keys.CONTROL, "a", Keys.DELETE)
    assert len(column(table, 0)) >= len(TECHNIQUES)


def test_one_box_filters_tables_and_charts(opened: webdriver.Chrome) -> None:
    plot = chart(opened, "step_latency")
    opened.find_element(By.ID, "technique").send_keys("snapkv")
    WebDriverWait(opened, WAIT_S).until(lambda _: column(first_table(opened), 0) == ["snapkv"])
    shown = "return arguments[0].data.filter((trace) => trace.visible === true).map((trace) => trace.name)"
    WebDriverWait(opened, WAIT_S).until(lambda _: opened.execute_script(shown, plot) == ["snapkv"])


def test_pointing_shows_a_value_with_its_interval(opened: webdriver.Chrome) -> None:
    plot = chart(opened, "decode_ratio")
    point = "Plotly.Fx.hover(arguments[0], [{curveNumber: 2, pointNumber: 0}])"
    opened.execute_script(point, plot)
    text = WebDriverWait(opened, WAIT_S).until(lambda _: plot.find_element(By.CSS_SELECTOR, ".hoverlayer").text)
    assert "×" in text and "[" in text and "tokens" in text


def test_a_name_switches_its_curve_and_dragging_enlarges(opened: webdriver.Chrome) -> None:
    plot = chart(opened, "step_latency")

    def drawn() -> int:
        return len(plot.find_elements(By.CSS_SELECTOR, ".scatterlayer .trace"))

    before = drawn()
    webdriver.ActionChains(opened).click(plot.find_elements(By.CSS_SELECTOR, ".legendtoggle")[0]).perform()
    WebDriverWait(opened, WAIT_S).until(lambda _: drawn() == before - 1)
    area = plot.find_element(By.CSS_SELECTOR, ".nsewdrag")
    span = "return arguments[0].layout.xaxis.range[1] - arguments[0].layout.xaxis.range[0]"
    wide: Any = opened.execute_script(span, plot)
    webdriver.ActionChains(opened).move_to_element(area).click_and_hold().move_by_offset(90, 60).release().perform()
    WebDriverWait(opened, WAIT_S).until(lambda _: opened.execute_script(span, plot) < wide / 2)


def test_another_view_of_a_chart_can_be_chosen(opened: webdriver.Chrome) -> None:
    plot = chart(opened, "decode_ratio")
    title = "return arguments[0].layout.xaxis.title.text"
    first: Any = opened.execute_script(title, plot)
    chooser = plot.find_element(By.XPATH, "preceding-sibling::label//select")
    chooser.send_keys(Keys.END)
    WebDriverWait(opened, WAIT_S).until(lambda _: opened.execute_script(title, plot) != first)


@pytest.mark.parametrize("width", [360, 768, 1366])
def test_the_page_is_never_wider_than_the_screen(opened: webdriver.Chrome, width: int) -> None:
    look(opened, width, 800, "light")
    chart(opened, "decode_ratio")
    chart(opened, "recall")
    opened.execute_script("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_reference_is_seen_on_a_dark_ground(opened: webdriver.Chrome) -> None:
    look(opened, 1366, 900, "dark")
    plot = chart(opened, "step_latency")
    colors: Any = opened.execute_script("return arguments[0].data.map((trace) => trace.line.color)", plot)
    ground: Any = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert "#000000" not in colors
    assert sum(map(int, ground.removeprefix("rgb(").rstrip(")").split(","))) < 150
