import html.parser
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

import nets
from opsin.base.errors import InputError, NetworkError
from opsin.collection.ask import map as module
from opsin.collection.ask.map import PAPERS, laid_out, map
from opsin.collection.scan.scanning import scan
from opsin.collection.store.store import Collection
from opsin.results import map as drawing
from opsin.results.findings import Shot
from opsin.results.map import PALETTE, Map, Spot, legend, uncovered
from opsin.results.result import Result

LABELS = ("ant", "bee", "cat")
HOSTILE = (
    "quote\" and 'apostrophe'.png",
    "</script><script>alert(1)</script>.png",
    "<!--<script>.png",
    "new\nline & {{ jinja }}.png",
    os.fsdecode(b"not utf-8 \xff\xfe.png"),
    "line\u2028separator \U0001f41d.png",
)


def write(folder: Path, names: Sequence[str], *, same: bool = False) -> Path:
    """Noise photos below the folder."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(0 if same else index).integers(0, 256, (nets.SIZE, nets.SIZE, 3))
        Image.fromarray(values.astype(np.uint8)).save(path)
    return folder


def scanned(folder: Path, place: Path) -> Collection:
    return scan(folder, nets.model(nets.plain()), place, layers=["relu2", "relu1"], workers=0)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    place = tmp_path_factory.mktemp("map")
    write(place / "photos", [f"{LABELS[i % 3]}/{i:02d}.png" for i in range(24)])
    return scanned(place / "photos", place / "collection")


def few(place: Path, n: int, *, same: bool = False) -> Collection:
    write(place / "photos", [f"{i}.png" for i in range(n)], same=same)
    return scanned(place / "photos", place / "collection")


def spot(colour: str, label: str | None = None, size: tuple[int, int] = (40, 40)) -> Spot:
    return Spot(f"{colour}.png", label, None, None, jpeg(Image.new("RGB", size, colour)))


def jpeg(picture: Image.Image) -> bytes:
    return Shot.of("", "", picture).data


def hand_made(places: Sequence[tuple[float, float]], spots: Sequence[Spot]) -> Map:
    return Map("title", "intro", torch.tensor(places, dtype=torch.float32), tuple(spots))


class Page(html.parser.HTMLParser):
    """The scripts of a page by their ids, and the addresses that it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[str | None, str]] = []
        self.addresses: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append((given.get("id"), ""))
        self.addresses += [given[name] or "" for name in ("src", "href") if name in given]

    def handle_data(self, data: str) -> None:
        if self.inside:
            name, text = self.scripts[-1]
            self.scripts[-1] = (name, text + data)

    def handle_endtag(self, tag: str) -> None:
        self.inside = False


def data(page: str) -> dict[str, list[dict[str, object]]]:
    (text,) = [text for name, text in Page(page).scripts if name == "data"]
    return json.loads(text)


@pytest.mark.parametrize("layer", [None, "relu1"])
def test_pca_places_are_scikit_learns_of_the_normalised_features(collection, layer):
    features = collection.features(layer or "relu2").astype(np.float64)
    wanted = PCA(2).fit_transform(features / np.sqrt((features**2).sum(1, keepdims=True)))
    found = map(collection, layer=layer, method="pca").places.double().numpy()
    for column in range(2):
        sign = np.sign(found[:, column] @ wanted[:, column])
        np.testing.assert_allclose(found[:, column], sign * wanted[:, column], atol=1e-6)


def test_the_length_of_features_says_nothing():
    features = np.random.default_rng(0).random((12, 5)).astype(np.float32)
    longer = features * np.arange(1, 13, dtype=np.float32)[:, None]
    np.testing.assert_allclose(laid_out(features, "pca", 0), laid_out(longer, "pca", 0), atol=1e-6)


@pytest.mark.parametrize("n", [12, 30, 90])
def test_tsne_puts_what_is_alike_together(n):
    random = np.random.default_rng(1)
    kinds = np.arange(n) % 3
    features = random.random((3, 60))[kinds] + 0.05 * random.standard_normal((n, 60))
    places = laid_out(features.astype(np.float32), "tsne", 0)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argsort(1)[:, : n // 3 - 1]
    assert (kinds[nearest] == kinds[:, None]).mean() > 0.95


def test_tsne_takes_fifty_components_and_its_perplexity(monkeypatch):
    given = []

    class Spy(module.TSNE):
        def __init__(self, **settings):
            given.append(settings)
            super().__init__(**settings)

        def fit_transform(self, values):
            given.append(values.shape)
            return values[:, :2]

    monkeypatch.setattr(module, "TSNE", Spy)
    random = np.random.default_rng(0)
    for n, perplexity in ((13, 4), (120, 30)):
        laid_out(random.random((n, 70)).astype(np.float32), "tsne", 5)
        settings, shape = given[-2:]
        assert (settings["perplexity"], settings["random_state"]) == (perplexity, 5)
        assert shape == (n, min(50, n))
        assert settings["init"][:, 0].std() == pytest.approx(1e-4)


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_the_same_seed_gives_the_same_bits(collection, method):
    one, other = (map(collection, method=method, seed=3) for _ in range(2))
    assert one == other
    assert torch.equal(one.places, other.places)


def test_the_record_says_how(collection):
    found = map(collection, layer="relu1", method="pca", seed=4)
    assert found.record.technique == "map"
    assert found.record.paper == PAPERS["pca"]
    wanted = {"layer": "relu1", "method": "pca", "most": 2000, "seed": 4, "images": 24}
    assert wanted.items() <= found.record.arguments.items()
    assert found.record.notes == ()
    assert map(collection).record.paper == PAPERS["tsne"]


def test_of_too_many_images_a_sample_is_laid_out(collection):
    found = map(collection, most=11, method="pca", seed=1)
    paths = [one.path for one in found.spots]
    assert len(found.places) == len(set(paths)) == 11
    assert found.record.notes == ("a random sample of 11 of the 24 images is laid out",)
    assert found == map(collection, most=11, method="pca", seed=1)
    assert paths != [one.path for one in map(collection, most=11, method="pca", seed=2).spots]
    assert "random sample of 11 of the 24" in found.html()


def test_a_sample_reads_no_other_features(collection, monkeypatch):
    asked = []
    whole = Collection.features
    monkeypatch.setattr(
        Collection,
        "features",
        lambda self, layer, places: (asked.append(places), whole(self, layer, places))[1],
    )
    map(collection, most=5, method="pca")
    assert [len(places) for places in asked] == [5]


def test_spots_are_their_own_images(collection):
    found = map(collection, most=11, method="pca")
    rows = {row.path: row for row in collection.rows(range(24))}
    order = [row.path for row in rows.values()]
    features = collection.features("relu2")
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    chosen = units[[order.index(one.path) for one in found.spots]]
    apart = torch.from_numpy(np.asarray(PCA(2).fit_transform(chosen)))
    torch.testing.assert_close(torch.pdist(found.places), torch.pdist(apart), atol=1e-5, rtol=0)
    for one in found.spots:
        row = rows[one.path]
        assert one.thumbnail == row.thumbnail
        assert one.label == one.path.split("/")[0]
        assert one.seen == nets.LABELS[row.classes[0]]
        assert one.probability == row.probabilities[0]


def test_labels_that_are_numbers_are_shown_with_the_class(tmp_path):
    write(tmp_path / "photos", ["1/a.png", "7/b.png", "beagle/c.png"])
    found = map(scanned(tmp_path / "photos", tmp_path / "collection"))
    assert [one.label for one in found.spots] == ["tiger cat (1)", "7", "beagle"]


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_saved_and_loaded_it_is_equal(collection, method, tmp_path):
    found = map(collection, method=method)
    found.save(tmp_path / "map")
    loaded = Result.load(tmp_path / "map")
    assert loaded == found
    assert loaded.html() == found.html() == (tmp_path / "map" / "index.html").read_text("utf-8")
    found.save(tmp_path / "map")  # what Opsin wrote may be written again
    moved = hand_made(found.places.flip(0).tolist(), found.spots)
    assert moved != found


@pytest.mark.parametrize("method", ["tsne", "pca"])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_few_images(n, method, tmp_path):
    found = map(few(tmp_path, n), method=method)
    assert found.places.shape == (n, 2)
    assert found.places.isfinite().all()
    assert len(found.places.unique(dim=0)) == n
    assert any("too few for t-SNE" in note for note in found.record.notes) == (method == "tsne")
    found.save(tmp_path / "map")
    assert len(data((tmp_path / "map" / "index.html").read_text("utf-8"))["points"]) == n


@pytest.mark.parametrize("method", ["tsne", "pca"])
@pytest.mark.parametrize("n", [2, 14])
def test_images_that_are_all_alike(n, method, tmp_path):
    found = map(few(tmp_path, n, same=True), method=method)
    assert (found.places == 0).all()
    assert found.record.notes == ("all features have the same direction: all images are at one position",)
    assert found.pictures()[0][0] == f"1 of {n} images shown, the others would cover them"
    assert len(data(found.html())["points"]) == n


def test_directions_that_differ_by_rounding_are_the_same():
    lengths = np.arange(1, 30, dtype=np.float32)
    features = np.outer(lengths, np.random.default_rng(0).random(6)).astype(np.float32)
    assert (laid_out(features, "tsne", 0) == 0).all()


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_a_single_channel_and_features_of_zero(method):
    features = np.zeros((12, 1), np.float32)
    features[::2] = 1
    places = laid_out(features, method, 0)
    assert places.shape == (12, 2)
    assert np.isfinite(places).all()
    assert places[::2, 0].min() > places[1::2, 0].max() or places[::2, 0].max() < places[1::2, 0].min()


def test_errors(collection, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"at least 2 images.* holds 1"):
        map(few(tmp_path, 1))
    with pytest.raises(InputError, match="most must be at least 2, not 1"):
        map(collection, most=1)
    with pytest.raises(InputError, match=r"seed .* not -1"):
        map(collection, seed=-1)
    with pytest.raises(InputError, match="unknown layer of the collection 'relu3'"):
        map(collection, layer="relu3")
    monkeypatch.setattr(Collection, "features", lambda *_: np.full((24, 6), np.nan, np.float32))
    with pytest.raises(NetworkError, match="'relu2' hold NaN"):
        map(collection)


def test_an_unknown_method_is_named(collection):
    with pytest.raises(Exception, match="umap"):  # here by the checker of types, else as an InputError
        map(collection, method="umap")


def test_the_page_holds_every_path_safely(tmp_path):
    write(tmp_path / "photos", HOSTILE)
    found = map(scanned(tmp_path / "photos", tmp_path / "collection"))
    found.save(tmp_path / "map")
    text = (tmp_path / "map" / "index.html").read_bytes().decode("utf-8")
    assert sorted(point["path"] for point in data(text)["points"]) == sorted(HOSTILE)
    page = Page(text)
    assert [name for name, _ in page.scripts] == ["data", None]
    assert "alert(1)" not in page.scripts[1][1]
    assert Result.load(tmp_path / "map") == found
    assert [one.path for one in Result.load(tmp_path / "map").spots] == [one.path for one in found.spots]


def test_the_page_needs_nothing_else(collection):
    text = map(collection).html()
    assert Page(text).addresses == []
    assert "http:" not in text
    assert "https:" not in text
    assert 'atlas.src = "data:image/webp;base64,' in text


def test_the_page_is_told_what_the_picture_shows(collection):
    found = map(collection, method="pca")
    told = data(found.html())
    assert [point["path"] for point in told["points"]] == [one.path for one in found.spots]
    x, y = (np.array([point[axis] for point in told["points"]]) for axis in "xy")
    assert min(x.min(), y.min()) == 0
    assert max(x.max(), y.max()) == 1
    places = found.places.numpy()
    assert np.corrcoef(x, places[:, 0])[0, 1] == pytest.approx(1, abs=1e-6)
    assert np.corrcoef(y, places[:, 1])[0, 1] == pytest.approx(-1, abs=1e-6)  # downwards on a screen
    assert told["legends"]["label"] == [[name, PALETTE[i], 8] for i, name in enumerate(LABELS)]
    assert {name for name, *_ in told["legends"]["seen"]} == {one.seen for one in found.spots}


def test_the_atlas_holds_every_thumbnail(monkeypatch):
    colours = ["red", "lime", "blue", "white", "black"]
    found = hand_made([(0, i) for i in range(5)], [spot(one, size=(40, 20)) for one in colours])
    sheets = []
    monkeypatch.setattr(drawing, "webp_uri", lambda sheet, side: sheets.append((sheet, side)) or "data:")
    told = data(found.html())
    ((sheet, side),) = sheets
    assert side == max(sheet.size)
    assert (told["columns"], told["side"]) == (3, 160)
    assert [point["size"] for point in told["points"]] == [[160, 80]] * 5
    for index, colour in enumerate(colours):
        seen = sheet.getpixel((index % 3 * 160 + 80, index // 3 * 160 + 40))
        assert np.abs(np.subtract(seen, Image.new("RGB", (1, 1), colour).getpixel((0, 0)))).max() < 8


def test_the_atlas_does_not_grow_with_the_images(monkeypatch):
    monkeypatch.setattr(drawing, "ATLAS", 200)
    found = hand_made([(0, i) for i in range(50)], [spot("red")] * 50)
    sheets = []
    monkeypatch.setattr(drawing, "webp_uri", lambda sheet, _: sheets.append(sheet) or "data:")
    assert data(found.html())["side"] == 25
    assert sheets[0].size == (200, 175)


def test_a_thumbnail_that_would_cover_another_is_left_out():
    found = hand_made([(0, 0), (0.01, 0), (1, 0), (1, 1)], [spot(c) for c in ("red", "lime", "blue", "red")])
    ((caption, picture),) = found.pictures()
    assert caption == "3 of 4 images shown, the others would cover them"
    assert picture.size == (2400, 2400)
    edge = drawing.MARGIN + drawing.SIDES[0] // 2
    corners = [
        (edge, 2400 - edge),
        (2400 - edge, 2400 - edge),
        (2400 - edge, edge),
    ]  # the second axis points up
    for corner, wanted in zip(corners, ((254, 0, 0), (0, 0, 254), (254, 0, 0)), strict=True):
        assert np.abs(np.subtract(picture.getpixel(corner), wanted)).max() < 8
    values = np.asarray(picture).astype(int)
    assert not ((values[..., 1] > 200) & (values[..., 0] < 100)).any()
    assert found.pictures()[0][1].tobytes() == picture.tobytes()


def test_what_covers_nothing_is_all_shown():
    found = hand_made([(0, 0), (1, 0.5)], [spot("red"), spot("blue")])
    ((caption, picture),) = found.pictures()
    assert caption == "2 of 2 images shown"
    edge = drawing.MARGIN + drawing.SIDES[0] / 2
    assert picture.size == (2400, 2 * edge + (2400 - 2 * edge) / 2)


def test_covering_is_measured_in_shares_of_the_smaller_one():
    boxes = np.array([[0, 0, 100, 100], [90, 0, 190, 100], [0, 89, 100, 189], [85, 40, 105, 60]])
    # the second shares a tenth of the first, the third more, the fourth lies in the first almost wholly
    assert uncovered(boxes) == [0, 1]
    assert uncovered(boxes[[2, 0, 1]]) == [0, 2]


def test_thumbnails_are_smaller_where_more_are_shown_then():
    close = [(i % 14 / 13, i // 14 / 13) for i in range(196)]  # about 170 pixels apart
    closer = [(i % 20 / 19, i // 20 / 19) for i in range(400)]  # about 115
    for places, side in ((close, 160), (closer, 104)):
        found = hand_made(places, [spot("red")] * len(places))
        ((caption, picture),) = found.pictures()
        assert caption == f"{len(places)} of {len(places)} images shown"
        values = np.asarray(picture).astype(int)
        row = values[picture.height - drawing.MARGIN - side // 2]
        assert np.flatnonzero(row[:, 1] < 50)[0] == drawing.MARGIN + drawing.THIN
        assert np.diff(np.flatnonzero(np.diff((row[:, 1] < 50).astype(int))))[0] == side - 2 * drawing.THIN


def test_borders_have_the_colours_of_the_labels():
    labels = ["b", "a", "b", None]
    found = hand_made([(0, 0), (1, 0), (0, 1), (1, 1)], [spot("red", label) for label in labels])
    ((_, picture),) = found.pictures()
    left, far = drawing.MARGIN, 2400 - drawing.MARGIN - drawing.SIDES[0]
    corners = [(left, far), (far, far), (left, left), (far, left)]
    wanted = [PALETTE[0], PALETTE[1], PALETTE[0], drawing.LINE]
    for (x, y), colour in zip(corners, wanted, strict=True):
        assert "#{:02x}{:02x}{:02x}".format(*picture.getpixel((x, y + 80))) == colour


def test_the_legend_is_of_the_most_frequent():
    assert legend(["x", None, "y", "y", ""]) == [("y", PALETTE[0], 2), ("x", PALETTE[1], 1)]
    many = [f"{i:02d}" for i in range(20)]
    assert legend(many) == []
    assert legend([*many, "07", "03"]) == [("03", PALETTE[0], 2), ("07", PALETTE[1], 2)]
    assert [name for name, *_ in legend(many * 2)] == many[:12]
    assert len(set(PALETTE)) == 12
