"""The page of a map in a browser: what is under the pointer, what is found, what moves.

Runs where a Chromium is installed.
"""

import pytest
import torch
from PIL import Image

from opsin.base.records import Record
from opsin.results.findings import Shot
from opsin.results.map import Map, Spot

NAMES = ("red ant", "green bee", "blue cat")
HOSTILE = "</script><script>document.title='broken'</script>.png"


def spot(index):
    colour = ("red", "green", "blue")[index % 3]
    shot = Shot.of("", "", Image.new("RGB", (40, 30), colour))
    path = f"{NAMES[index % 3]}/{index:02}.png" if index else HOSTILE
    return Spot(path, NAMES[index % 3], NAMES[(index // 3) % 2], 0.25, shot.data)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page with twelve images in a row and a half."""
    places = torch.tensor([[float(i % 8), float(i // 8)] for i in range(12)])
    record = Record("map", "", {}, {"name": "net", "sha256": "0" * 64}, {}, ())
    made = Map("Twelve", "", places, tuple(map(spot, range(12))), record=record)
    return (made.save(tmp_path_factory.mktemp("page") / "map") / "index.html").as_uri()


@pytest.fixture
def page(visit, address):
    """The page, which must raise no error."""
    opened = visit(address)
    opened.wait_for_selector("#legend button")
    return opened


def middle(page, index):
    """Where the middle of an image lies in the window."""
    return page.evaluate(
        """(index) => {
            const { left, top } = canvas.getBoundingClientRect(), { x, y, wide, high } = box(points[index]);
            return [left + x + wide / 2, top + y + high / 2];
        }""",
        index,
    )


def facts(page):
    return page.locator("#facts dd").all_text_contents()


@pytest.mark.parametrize("index", [0, 5, 11])
def test_what_is_pointed_at_is_told(page, index):
    page.mouse.move(*middle(page, index))
    one = spot(index)
    assert facts(page) == [one.path, one.label, f"{one.seen}, 25%"]
    page.mouse.move(5, 5)
    assert facts(page)[0] == one.path  # what was shown last stays


def test_every_image_is_drawn_in_its_colour(page):
    page.wait_for_timeout(100)  # the next frame
    for index in range(12):
        left, top = middle(page, index)
        seen = page.evaluate(
            """([x, y]) => {
                const { left, top, width } = canvas.getBoundingClientRect(), ratio = canvas.width / width;
                return [...pen.getImageData((x - left) * ratio, (y - top) * ratio, 1, 1).data];
            }""",
            [left, top],
        )
        wanted = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}
        expected = wanted[("red", "green", "blue")[index % 3]]
        assert all(abs(a - b) < 12 for a, b in zip(seen, expected, strict=False)), (index, seen)


def test_a_search_counts_and_puts_what_is_found_on_top(page):
    page.fill("#search", "  BEE ")
    assert page.text_content("#count") == "8 of 12 found"  # four as label, six as class
    assert page.evaluate("order.slice(-8).every((p) => p.found)")
    page.fill("#search", "nothing such")
    assert page.text_content("#count") == "0 of 12 found"
    page.fill("#search", "")
    assert page.text_content("#count") == ""


def test_the_legend_names_what_occurs_and_picks_it(page):
    rows = page.locator("#legend button")
    assert rows.all_text_contents() == [f"{name}4" for name in sorted(NAMES)]
    rows.nth(2).click()
    assert rows.nth(2).get_attribute("aria-pressed") == "true"
    assert page.text_content("#count") == "4 of 12 found"
    rows.nth(2).click()
    assert page.text_content("#count") == ""
    rows.nth(0).click()
    page.fill("#search", "bee")
    assert page.text_content("#count") == "8 of 12 found"
    page.click("#by button[value=seen]")
    assert rows.all_text_contents() == [f"{name}6" for name in sorted(NAMES[:2])]


@pytest.mark.parametrize(
    ("act", "factor"),
    [
        (lambda page: page.click("button[aria-label='Zoom in']"), 1.4),
        (lambda page: page.click("button[aria-label='Zoom out']"), 1 / 1.4),
        (lambda page: page.keyboard.press("+"), 1.4),
        (lambda page: page.mouse.wheel(0, -100), 1.2214),
    ],
)
def test_zooming_keeps_the_place_it_is_about(page, act, factor):
    canvas = page.locator("#map").bounding_box()
    page.mouse.move(canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2)
    before = page.evaluate("[(view.wide / 2 - view.x) / view.zoom, (view.high / 2 - view.y) / view.zoom]")
    act(page)
    page.wait_for_function("view.zoom !== 1")
    assert page.evaluate("view.zoom") == pytest.approx(factor, rel=1e-3)
    after = page.evaluate("[(view.wide / 2 - view.x) / view.zoom, (view.high / 2 - view.y) / view.zoom]")
    assert after == pytest.approx(before, abs=1)
    page.keyboard.press("0")
    assert page.evaluate("view.zoom") == 1


def test_dragging_moves_the_map_and_shows_nothing(page):
    canvas = page.locator("#map").bounding_box()
    x, y = canvas["x"] + 40, canvas["y"] + canvas["height"] - 40
    before = page.evaluate("[view.x, view.y]")
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 70, y - 30, steps=4)
    page.mouse.up()
    assert page.evaluate("[view.x, view.y]") == pytest.approx([before[0] + 70, before[1] - 30])
    page.mouse.move(*middle(page, 3))
    assert facts(page)[0] == spot(3).path


def test_on_a_phone_a_tap_tells_and_nothing_is_cut_off(browser, address):
    context = browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True)
    opened = context.new_page()
    opened.goto(address)
    opened.wait_for_selector("#legend button")
    opened.touchscreen.tap(*middle(opened, 4))
    assert facts(opened)[0] == spot(4).path
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()
