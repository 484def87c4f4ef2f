"""The page of units in a browser: a click enlarges, keys go on, and without scripts it is read all the same.

Runs where a Chromium is installed.
"""

import io

import numpy as np
import pytest
from PIL import Image

import nets
from opsin.collection.ask.units import units
from opsin.collection.scan.scanning import scan

TOP = 3
HOSTILE = "<script>document.title='broken'<\uff0fscript>.png"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    place = tmp_path_factory.mktemp("units")
    (place / "photos").mkdir()
    for index, name in enumerate((HOSTILE, "b.png", "c.png", "d.png")):
        pixels = np.random.default_rng(index).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(place / "photos" / name)
    model = nets.model(nets.plain())
    made = scan(place / "photos", model, place / "c", layers=["relu2"], top=TOP, workers=0)
    return units(model, made, channels=[0, 2, 5])


@pytest.fixture(scope="module")
def address(found, tmp_path_factory):
    return (found.save(tmp_path_factory.mktemp("page") / "units") / "index.html").as_uri()


@pytest.fixture
def page(visit, address):
    """The page, which must raise no error."""
    return visit(address)


def patch(page, index):
    return page.locator(".peak summary").nth(index)


def box(locator):
    """Left, top, right and bottom in the window."""
    found = locator.bounding_box()
    return found["x"], found["y"], found["x"] + found["width"], found["y"] + found["height"]


def test_patches_are_at_least_96_pixels_and_have_the_pixels_of_their_sheet(page, found):
    tiles = page.locator(".peak .tile")
    assert tiles.count() == 3 * TOP * 2
    left, top, right, bottom = box(tiles.nth(4))  # the third patch of the first channel
    assert min(right - left, bottom - top) >= 96
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    page.wait_for_load_state("networkidle")
    drawn = Image.open(io.BytesIO(page.screenshot(clip=clip, type="png"))).convert("RGB")
    sheet = found.shots[0].picture.crop((0, 124, 120, 244))  # two tiles in a row, 4 pixels between
    middle = np.s_[20:100, 20:100]
    assert np.abs(np.array(drawn)[middle].astype(int) - np.array(sheet)[middle]).max() <= 2


def test_a_click_enlarges_with_the_photo_and_the_place_in_it(page, found):
    patch(page, 1).click()
    assert page.evaluate("dialog.open")
    assert page.text_content("#title") == "relu2:0, patch 2 of 3"
    top = found.facts["units"][0]["top"][1]
    said = page.text_content("#large figcaption")
    assert top["path"] in said
    assert f"value {top['value']:.3g} in row {top['row']}, column {top['column']}" in said
    photo, place = box(page.locator("#large .photo-of")), box(page.locator("#large .box"))
    wide, high = photo[2] - photo[0], photo[3] - photo[1]
    assert wide / high == pytest.approx(40 / 30, rel=0.02)
    shares = [(place[i] - photo[i % 2]) / (wide, high)[i % 2] for i in range(4)]
    assert shares == pytest.approx(top["in_photo"], abs=0.01)
    tile = box(page.locator("#large .tile").first)
    assert tile[2] - tile[0] > 240
    assert page.locator("#large .tile").count() == 2


def test_arrows_go_on_and_escape_closes(page):
    patch(page, 0).click()

    def shown(*keys):
        for key in keys:
            page.keyboard.press(key)
        return page.text_content("#title")

    assert shown("ArrowRight") == "relu2:0, patch 2 of 3"
    assert shown("ArrowRight", "ArrowRight") == "relu2:2, patch 1 of 3"
    assert shown("ArrowLeft") == "relu2:0, patch 3 of 3"
    assert shown("ArrowDown", "ArrowDown") == "relu2:5, patch 1 of 3"
    assert shown("ArrowDown") == "relu2:5, patch 1 of 3"
    assert shown("ArrowUp") == "relu2:2, patch 1 of 3"
    page.keyboard.press("Escape")
    assert not page.evaluate("dialog.open")
    assert page.evaluate("document.activeElement === peaks[3].querySelector('summary')")
    page.keyboard.press("Enter")
    assert page.evaluate("dialog.open")
    page.click("#close")
    assert not page.evaluate("dialog.open")


def test_a_channel_is_found_by_its_number(page):
    page.fill("#channel", "5")
    assert page.locator("#channel-5").is_visible()
    assert page.evaluate("document.getElementById('channel-5').getBoundingClientRect().top < innerHeight")


def test_channels_at_the_edge_can_be_hidden(browser, found, tmp_path):
    units = [{**one, "mostly_at_edge": one["channel"] == 2} for one in found.facts["units"]]
    changed = type(found)(**{**vars(found), "facts": {**found.facts, "units": units}})
    opened = browser.new_page()
    opened.goto((changed.save(tmp_path / "out") / "index.html").as_uri())
    assert opened.locator(".unit").count() == 3
    opened.check("#hide")
    assert not opened.locator("#channel-2").is_visible()
    patch(opened, 2).click()
    opened.keyboard.press("ArrowRight")
    assert opened.text_content("#title") == "relu2:5, patch 1 of 3"
    opened.close()


def test_without_scripts_a_patch_opens_its_photo_in_its_place(browser, address, found):
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(address)
    assert not opened.locator(".photo-of").first.is_visible()
    patch(opened, 0).click()
    assert opened.locator(".photo-of").first.is_visible()
    assert opened.locator(".box").first.is_visible()
    assert found.facts["units"][0]["top"][0]["path"] in opened.locator("figcaption").first.text_content()
    context.close()


def test_the_page_is_whole_by_itself(browser, found, tmp_path):
    (tmp_path / "alone.html").write_text(found.html(), "utf-8")
    opened, asked = browser.new_page(), []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto((tmp_path / "alone.html").as_uri())
    patch(opened, 0).click()
    assert opened.locator("#large .photo-of").is_visible()
    assert [url for url in asked if not url.startswith("data:")] == [(tmp_path / "alone.html").as_uri()]
    opened.close()
