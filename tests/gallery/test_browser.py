"""The gallery as a person meets it, in a real Chromium. Skipped where none is installed."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffseg.types import Segment
from pipeline.gallery.html_page import GalleryItem, GalleryMap, GalleryPage, write_gallery
from pipeline.gallery.statistics import Distributions
from tests.support.gallery_items import HOSTILE, item, quadrants, write

PHOTOS = Path(__file__).parents[2] / "jobs" / "photos"


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with chromedriver is installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1200,900"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as started:
        yield started


class Page:
    """The gallery as a person meets it."""

    def __init__(self, browser, path: Path) -> None:
        self.browser = browser
        browser.get("about:blank")
        browser.get(path.as_uri())
        self.until("document.documentElement.dataset.drawn")

    def until(self, condition: str) -> None:
        for _ in range(600):
            if self.js(f"return Boolean({condition})"):
                return
            time.sleep(0.05)
        raise AssertionError(f"never came true: {condition}; {self.browser.get_log('browser')}")

    def js(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def shown(self) -> list[str]:
        return [card.get_attribute("title") for card in self.all(".card")]

    def set(self, selector: str, value) -> None:
        """Give a control a value as a person would, and let the page settle."""
        self.js(
            "const one = document.querySelector(arguments[0]); one.value = arguments[1];"
            "one.dispatchEvent(new Event('input', { bubbles: true }))",
            selector,
            str(value),
        )
        time.sleep(0.3)

    def press(self, key: str) -> None:
        self.actions().send_keys(key).perform()

    def actions(self):
        from selenium.webdriver import ActionChains

        return ActionChains(self.browser, duration=50)

    def turn_to(self, page: str) -> None:
        self.find(f"#pages [data-page={page}]").click()

    def open_card(self, place: int) -> None:
        card = self.all(".card")[place]
        number = card.get_attribute("data-number")
        card.click()
        self.until(f"document.getElementById('sample').dataset.shows === '{number}'")


ITEMS = (
    item("middle", quality=0.5, segments=3),
    item("worst", quality=0.1, segments=4, random=True),
    item("best", quality=0.9, segments=2),
    item(HOSTILE, quality=0.4, segments=5, random=True),
    item("wide", maps=(GalleryMap(quadrants().label_map + 296, (Segment(299, 1200, (0, 0, 1, 1), 0.7),), 0.45),)),
    item("broken", status="undecodable", error="cut short", image=None, size=None, maps=()),
    item("single", quality=None, segments=1),
)


@pytest.fixture
def page(browser, tmp_path):
    counts = Distributions()
    for one in ITEMS:
        segments = [{"area": segment.area} for segment in one.maps[0].segments] if one.maps else None
        quality = one.maps[0].quality if one.maps else None
        counts.add({"status": one.status, "quality": quality, "segments": segments})
    path = tmp_path / "gallery.html"
    page = write(*ITEMS, statuses=counts.by_status(), histograms=counts.histograms())
    path.write_text(page, encoding="utf-8")
    opened = Page(browser, path)
    yield opened
    errors = [line for line in opened.browser.get_log("browser") if line["level"] == "SEVERE"]
    assert errors == []  # nothing was thrown, nothing refused by the policy


def test_a_slider_shows_one_cut_of_every_sample_at_a_time(browser, tmp_path):
    def cuts(*counts: int) -> tuple[GalleryMap, ...]:
        given = (item(segments=count, quality=count / 10).maps[0] for count in counts)
        return tuple(replace(each, caption=f"cut {at}") for at, each in enumerate(given))

    path = tmp_path / "levels.html"
    items = (item("a", maps=cuts(4, 3, 1)), item("b", maps=cuts(3, 3, 2)), item("c", status="no_image", maps=()))
    path.write_text(write(*items, level=1), encoding="utf-8")
    page = Page(browser, path)

    def told() -> list[str]:
        return [page.find("#level-name").text, *(each.text for each in page.all(".card footer span"))]

    assert told() == ["cut 1", "3 seg · 0.30", "3 seg · 0.30", "no_image"]
    page.set("#level", 2)
    assert told() == ["cut 2", "1 seg · 0.10", "2 seg · 0.20", "no_image"]
    page.set("#segments-min", 2)
    assert page.shown() == ["b"]
    page.open_card(0)
    assert len(page.all("#segments tr[data-id]")) == 2
    page.press("[")
    page.until("document.querySelectorAll('#segments tr[data-id]').length === 3")
    assert page.find("#sample-key").text == "b"
    assert page.shown() == ["a", "b"]
    page.find("#close").click()
    page.find("#reset-filters").click()
    page.until("document.querySelectorAll('.card').length === 3")  # the reset brings the first level back, too
    page.set("#level", 0)
    page.until("document.getElementById('level-name').textContent === 'cut 0'")
    assert told()[:3] == ["cut 0", "4 seg · 0.40", "3 seg · 0.30"]
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []


def test_no_slider_where_all_maps_are_side_by_side(page):
    assert not page.find("#levels").is_displayed()


def test_a_hostile_key_stays_text(page):
    assert HOSTILE in page.shown()
    assert page.js("return document.title") == "A run"
    assert page.all("img") == []


def test_the_policy_refuses_a_script_that_got_in(page):
    page.js("const one = document.createElement('script'); one.text = 'document.title = 3'; document.body.append(one)")

    assert page.js("return document.title") == "A run"
    assert "Content Security Policy" in page.browser.get_log("browser")[0]["message"]


def test_sorting_and_the_pages_worst_best_and_random(page):
    page.set("#sort", "segments-up")
    assert page.shown()[:3] == ["wide", "single", "best"]
    assert page.shown()[-1] == "broken"

    page.turn_to("worst")
    assert page.shown() == ["worst", HOSTILE, "wide", "middle", "best", "single"]
    page.turn_to("best")
    assert page.shown() == ["best", "middle", "wide", HOSTILE, "worst", "single"]
    page.turn_to("random")
    assert sorted(page.shown()) == sorted(["worst", HOSTILE])


def test_one_segment_has_a_badge_in_place_of_a_quality(page):
    badges = page.js("return [...document.querySelectorAll('.single')].map((b) => b.closest('.card').title)")
    assert badges == ["wide", "single"]
    page.open_card(page.shown().index("single"))
    assert "none, one segment" in page.find("#sample-facts").text


def test_filtering_by_quality_segments_status_and_key(page):
    page.set("#quality-min", 0.45)
    assert page.shown() == ["middle", "best", "wide"]
    page.set("#segments-min", 3)
    assert page.shown() == ["middle"]
    page.find("#reset-filters").click()
    page.until("document.querySelectorAll('.card').length === 7")
    page.set("#status", "undecodable")
    assert page.shown() == ["broken"]
    page.set("#search", "nothing like it")
    assert page.find("#empty").is_displayed()
    page.find("#empty-reset").click()
    page.until("document.querySelectorAll('.card').length === 7")


def test_a_category_is_chosen_and_its_examples_come_first(browser, tmp_path):
    def having(key: str, *categories: str, exemplar: tuple[str, ...] = ()) -> GalleryItem:
        one = quadrants()
        named = [replace(each, category=name) for each, name in zip(one.segments, categories, strict=False)]
        return item(key, maps=(replace(one, segments=(*named, *one.segments[len(named) :])),), exemplar=exemplar)

    path = tmp_path / "categories.html"
    items = (having("a", "sky", "tree"), having("b", "sky"), having("c", "tree", exemplar=("tree",)), item("d"))
    path.write_text(write(*items), encoding="utf-8")
    page = Page(browser, path)
    assert [one.text for one in page.all("#category option")] == ["any", "sky", "tree"]
    page.set("#category", "sky")
    assert page.shown() == ["a", "b"]
    page.set("#category", "tree")
    assert page.shown() == ["c", "a"]
    page.set("#sort", "key")
    assert page.shown() == ["a", "c"]


def test_no_category_is_asked_for_where_there_is_none(page):
    assert not page.find("#categories").is_displayed()


def test_the_slider_moves_between_photo_and_labels(page):
    page.open_card(0)
    pixel = "const c = document.querySelector('figure .labels'); return getComputedStyle(c).clipPath"
    assert "50%" in page.js(pixel)

    page.set("#split", 20)
    assert "20%" in page.js(pixel)

    box = page.find("figure").size
    page.actions().click_and_hold(page.find(".handle")).move_by_offset(box["width"] // 2, 0).release().perform()
    assert float(page.js("return document.getElementById('split').value")) == pytest.approx(70, abs=2)

    page.press(",")
    assert float(page.js("return document.getElementById('split').value")) == pytest.approx(65, abs=2)


@pytest.mark.parametrize(("place", "ids"), [(1, [0, 1, 2, 3]), (4, [None, None, None, 299])], ids=["8 bit", "16 bit"])
def test_every_segment_has_its_id_under_the_pointer(page, place, ids):
    page.open_card(place)
    figure = page.find("figure")
    step = [figure.size["width"] // 4, figure.size["height"] // 4]

    for id, (x, y) in zip(ids, [(-1, -1), (1, -1), (-1, 1), (1, 1)], strict=True):
        page.actions().move_to_element_with_offset(figure, x * step[0], y * step[1]).perform()

        tip = page.find("#tip")
        assert tip.text.startswith(f"segment {id} ·") if id is not None else not tip.is_displayed()
        lit = [row.get_attribute("data-id") for row in page.all("tr.lit")]
        assert lit == ([str(id)] if id is not None else [])


def test_labels_are_painted_in_their_colors(page):
    page.open_card(1)
    page.js("document.getElementById('tint').value = 1; document.getElementById('outline').checked = false")
    page.set("#tint", 1)
    colors = page.js(
        "const c = document.querySelector('figure .labels'), x = c.getContext('2d');"
        "return [[1, 1], [3, 1], [1, 3], [3, 3]].map(([a, b]) => "
        "[...x.getImageData(c.width * a / 4, c.height * b / 4, 1, 1).data.slice(0, 3)])"
    )

    assert colors == page.js("return JSON.parse(document.getElementById('index').textContent).palette.slice(0, 4)")


def test_the_keyboard_walks_samples_and_closes_them(page):
    page.turn_to("worst")
    page.open_card(0)
    for key, expected in (("\ue014", HOSTILE), ("\ue014", "wide"), ("\ue012", HOSTILE)):  # right, right, left
        page.press(key)
        page.until(f"document.getElementById('sample-key').textContent === {json.dumps(expected)}")
    page.press("\ue00c")  # Escape
    page.until("!document.getElementById('sample').open")
    page.until(f"document.activeElement.title === {json.dumps(HOSTILE)}")  # a moment after it has closed

    page.press("6")
    assert page.find("#statistics").is_displayed()


def test_a_bar_of_a_histogram_narrows_the_grid_down(page):
    page.turn_to("statistics")
    assert len(page.all("#statistics svg")) == 3
    page.js("document.querySelectorAll('#statistics svg g.bin')[18].dispatchEvent(new Event('click'))")  # 0.9 to 0.95

    page.until("document.querySelectorAll('.card').length === 1")
    assert page.shown() == ["best"]

    page.turn_to("statistics")
    bins = "document.querySelectorAll('#statistics section:nth-of-type(3) g.bin')"
    page.js(f"{bins}[1].dispatchEvent(new Event('click'))")  # one segment: two would be the next bin's
    page.until("document.querySelectorAll('.card').length === 2")
    assert page.shown() == ["wide", "single"]


def test_failures_are_listed_with_their_reasons(page):
    page.turn_to("failures")

    assert "cut short" in page.find("#failures table").text
    assert page.find(".reasons").text.split() == ["undecodable1"]


def test_light_and_dark_are_one_key_away(page):
    ground = "return getComputedStyle(document.body).backgroundColor"
    before = page.js(ground)

    page.press("l")

    assert page.js(ground) != before


def test_variants_of_one_photo_stand_side_by_side(browser, tmp_path):
    maps = tuple(
        GalleryMap(quadrants().label_map, quadrants().segments, 0.5, f"threshold {t}") for t in (0.7, 0.9, 1.1)
    )
    path = tmp_path / "pilot.html"
    path.write_text(write(item(maps=maps)), encoding="utf-8")
    page = Page(browser, path)

    assert len(page.all(".card .frame")) == 3
    page.open_card(0)

    assert [one.text for one in page.all("figcaption")] == ["threshold 0.7", "threshold 0.9", "threshold 1.1"]
    places = [figure.rect for figure in page.all("figure")]
    assert len({(round(place["x"]), round(place["y"])) for place in places}) == 3


@pytest.mark.slow
def paint(page: Page, figure: int, *points: tuple[float, float]) -> Any:
    """Colours of labels in a figure at shares of its width and height, without outlines and photo."""
    page.js("document.getElementById('outline').checked = false")
    page.set("#tint", 1)
    return page.js(
        "const c = document.querySelectorAll('figure .labels')[arguments[0]], x = c.getContext('2d');"
        "return arguments[1].map(([a, b]) => [...x.getImageData(c.width * a, c.height * b, 1, 1).data.slice(0, 3)])",
        figure,
        points,
    )


def test_a_region_keeps_its_color_from_map_to_map(browser, tmp_path):
    one = quadrants()
    merged = GalleryMap(np.array([[0, 0], [2, 1]]).repeat(30, 0).repeat(40, 1), one.segments[:3], 0.5, "coarse")
    turned = replace(one, label_map=3 - one.label_map, caption="other ids")
    path = tmp_path / "colors.html"
    path.write_text(write(item(maps=(replace(one, caption="fine"), turned, merged))), encoding="utf-8")
    page = Page(browser, path)
    page.open_card(0)
    quarters = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))
    fine, other, coarse = (paint(page, figure, *quarters) for figure in range(3))
    assert len({tuple(color) for color in fine}) == 4
    assert other == fine
    assert coarse[2:] == fine[2:]
    assert coarse[0] == coarse[1]
    assert coarse[0] in fine[:2]
    swatches = page.js("return [...document.querySelectorAll('#segments .swatch')].map((s) => s.style.backgroundColor)")
    assert len(set(swatches)) == 4


def test_the_address_shows_the_same_page_filters_and_sample(page):
    page.turn_to("worst")
    page.set("#quality-min", 0.45)
    page.set("#search", "i")
    shown = page.shown()
    assert shown == ["wide", "middle"]
    page.open_card(1)
    page.until("location.hash.startsWith('#/sample/')")
    address = page.js("return location.href")

    page.browser.get("about:blank")
    page.browser.get(address)
    page.until("document.getElementById('sample').dataset.shows")
    assert page.find("#sample-key").text == "middle"
    page.press("\ue00c")
    page.until("!document.getElementById('sample').open")
    assert page.shown() == shown
    assert "page=" not in page.js("return location.hash")
    assert page.js("return location.hash").startswith("#/worst?")

    page.js("location.hash = '#/all?search=bro'")  # in an open page, too
    page.until("document.querySelectorAll('.card').length === 1")
    assert page.shown() == ["broken"]
    page.js("location.hash = '#/sample/0?sort=nonsense&status=%00&level=x'")
    page.until("document.getElementById('sample').dataset.shows === '0'")
    page.js("location.hash = '#/nowhere'")
    page.until("document.querySelectorAll('.card').length === 7")


def test_a_picture_is_not_cropped_on_its_card(browser, tmp_path):
    tall = np.zeros((120, 40), np.int32)
    tall[:10], tall[-10:] = 1, 2
    segments = tuple(Segment(i, int((tall == i).sum()), (0, 0, 1, 1), 0.5) for i in range(3))
    path = tmp_path / "tall.html"
    photo = np.full((120, 40, 3), 120, np.uint8)
    path.write_text(write(item(image=photo, size=(40, 120), maps=(GalleryMap(tall, segments, 0.5),))), encoding="utf-8")
    page = Page(browser, path)
    top, bottom, side = page.js(
        "const c = document.querySelector('.card canvas'), x = c.getContext('2d');"
        "const opaque = ([a, b]) => x.getImageData(c.width * a, c.height * b, 1, 1).data[3];"
        "return [[.5, .02], [.5, .98], [.02, .5]].map(opaque)"
    )
    assert (top, bottom, side) == (255, 255, 0)


def test_zoom_shows_a_part_and_names_what_is_there(page):
    page.open_card(1)
    figure = page.find("figure")
    for _ in range(5):
        page.press("z")
    page.until("document.getElementById('zoom').textContent === '759 %'")
    away = figure.size["width"] // 2 - 4
    start = page.actions().move_to_element_with_offset(figure, -away, 20)  # not at the handle between photo and labels
    start.click_and_hold().move_by_offset(2 * away, away // 2).release().perform()  # towards the upper left
    page.actions().move_to_element_with_offset(figure, away, 0).perform()
    assert page.find("#tip").text.startswith("segment 0 ·")  # of the right half unless it had moved
    assert page.all("tr.lit")
    [[*left]] = paint(page, 0, (0.95, 0.5))
    assert left == page.js("return JSON.parse(document.getElementById('index').textContent).palette[0]")
    page.press("0")
    page.until("document.getElementById('zoom').textContent === '100 %'")
    page.press("\ue014")
    page.until("document.getElementById('sample-key').textContent === 'best'")


def test_the_keys_of_what_is_filtered_are_copied(page):
    page.set("#quality-min", 0.45)
    page.js(
        "const value = { writeText: async (text) => { window.copied = text } };"
        "Object.defineProperty(navigator, 'clipboard', { value })"
    )
    page.find("#copy-keys").click()
    page.until("document.getElementById('copy-keys').textContent === 'Copied 3'")
    assert page.js("return window.copied").split("\n") == ["middle", "best", "wide"]


def test_what_the_figure_is_stands_beside_it(page, browser, tmp_path):
    assert "no accuracy" in page.find(".range [data-measure]").get_attribute("title")
    path = tmp_path / "truth.html"
    path.write_text(write(item(), measure=("covering", "covering against the truth")), encoding="utf-8")
    other = Page(browser, path)
    assert other.find(".range [data-measure]").text == "Covering"
    assert [one.text for one in other.all("#pages button")] == ["All1"]
    assert "lowest" not in other.find("#sort").text
    assert "worst covering first" in other.find("#sort").text


def test_two_thousand_samples_open_soon(browser, tmp_path, capsys):
    photos = [np.asarray(Image.open(path)) for path in sorted(PHOTOS.glob("*.jpg"))]

    def items() -> Iterator[GalleryItem]:
        for number in range(2000):
            image = photos[number % len(photos)]
            yield item(f"{number:05d}", image=image, maps=(quadrants(*image.shape[:2]),), quality=number / 2000)

    path = tmp_path / "large.html"
    with path.open("wb") as out:
        write_gallery(out, items(), GalleryPage(title="Large"))

    began = time.monotonic()
    page = Page(browser, path)
    seconds = time.monotonic() - began

    drawn = page.js("return document.documentElement.dataset.drawn")
    size = path.stat().st_size / 1e6
    with capsys.disabled():
        sys.stdout.write(f"\n2,000 samples, {size:.0f} MB: first picture after {drawn} ms, {seconds:.1f} s in all\n")
    page.js("scrollTo(0, 1e9)")
    page.until("document.querySelectorAll('.card').length > 60")
    assert len(page.all(".card.drawn")) < 200  # what left the screen was dropped
    assert seconds < 60
