from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import nets
import opsin
import reference
from opsin.collection.ask import patches as module
from opsin.collection.ask.patches import NARROWEST, PHOTO, TILE, Peak
from opsin.collection.ask.units import units
from opsin.collection.scan.scanning import scan
from opsin.results.units import GAP, PHOTOS

NET = nets.plain()
MODEL = nets.model(NET)
COUNT, TOP = 7, 3
LAYERS = ("relu2", "conv1", "relu1", "conv2", "flat", "mean")
COLUMNS = {"relu2": 8, "conv2": 8, "conv1": 16, "relu1": 16}


def write_photos(folder, count=COUNT, size=(16, 16), seed=0):
    """Noise, without loss."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for index in range(count):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Photos of the network's size, scanned: the network sees their pixels as they are."""
    place = tmp_path_factory.mktemp("units")
    write_photos(place / "photos")
    return scan(place / "photos", MODEL, place / "collection", layers=LAYERS, top=TOP, workers=0)


def pixels(made, path):
    with Image.open(Path(made.about.root) / path) as photo:
        return np.array(photo.convert("RGB"))


def activations(made, path):
    return reference.forward(NET, pixels(made, path).transpose(2, 0, 1) / 255)


def paths(made):
    return sorted(p.name for p in Path(made.about.root).iterdir())


def tiles(shot, height=TILE, width=TILE, count=TOP):
    """The tiles of a sheet, as far as there are so many."""
    sheet = np.array(shot.picture)
    columns = int(np.ceil(count**0.5))
    corners = [(i // columns * (height + GAP), i % columns * (width + GAP)) for i in range(count)]
    return [sheet[top : top + height, left : left + width] for top, left in corners]


def field(layer, y, x):
    """Rows and columns of pixels that a unit of the plain net would see if the photo had no end."""
    low, high = {"relu2": (-3, 5), "conv1": (-1, 2), "relu1": (-1, 2)}[layer]
    step = 2 if layer == "relu2" else 1
    return step * y + low, step * y + high, step * x + low, step * x + high


def patch(photo, layer, y, x):
    """The photo's pixels in a unit's field, enlarged smoothly; grey beyond the photo."""
    top, bottom, left, right = field(layer, y, x)
    zoom = TILE // (bottom - top)
    low, first = max(0, top), max(0, left)
    cut = Image.fromarray(photo[low : min(16, bottom), first : min(16, right)])
    tile = Image.new("RGB", (TILE, TILE), (128, 128, 128))
    tile.paste(
        cut.resize((cut.width * zoom, cut.height * zoom), Image.Resampling.BICUBIC),
        (zoom * (first - left), zoom * (low - top)),
    )
    return np.array(tile)


def sheets(found):
    """The pictures of patches and projections."""
    return [shot for shot in found.shots if shot.lead]


@pytest.mark.parametrize("layer", LAYERS)
def test_the_strongest_images_and_their_places_are_told(made, layer):
    found = units(MODEL, made, layer=layer, projection="none").facts
    kept = {path: activations(made, path)["mean" if layer == "flat" else layer] for path in paths(made)}
    assert [one["channel"] for one in found["units"]] == list(range(len(found["units"])))
    assert len(found["units"]) == len(kept["0.png"])
    for one in found["units"]:
        maps = {path: np.atleast_2d(a[one["channel"]]) for path, a in kept.items()}
        peaks = sorted(((a.max(), path) for path, a in maps.items()), reverse=True)[:TOP]
        assert [top["path"] for top in one["top"]] == [path for _, path in peaks]
        for top, (value, path) in zip(one["top"], peaks, strict=True):
            assert top["value"] == pytest.approx(value, rel=1e-6)
            assert (top["row"], top["column"]) == np.unravel_index(maps[path].argmax(), maps[path].shape)
        every = np.concatenate([a.ravel() for a in maps.values()])
        assert one["mean"] == pytest.approx(every.mean(), rel=1e-5)
        assert one["deviation"] == pytest.approx(every.std(), rel=1e-5)
        assert one["sparsity"] == pytest.approx((every <= 0).mean())


@pytest.mark.parametrize("layer", ["relu2", "conv1", "relu1"])
def test_a_patch_is_what_the_unit_sees_of_the_photo(made, exact, layer):
    found = units(MODEL, made, layer=layer, projection="none")
    assert [shot.group for shot in sheets(found)] == [
        f"{layer}:{c}" for c in range(len(found.facts["units"]))
    ]
    cut = 0
    for shot, one in zip(sheets(found), found.facts["units"], strict=True):
        for tile, top in zip(tiles(shot), one["top"], strict=True):
            expected = patch(pixels(made, top["path"]), layer, top["row"], top["column"])
            np.testing.assert_array_equal(tile, expected)
            cut += (expected == 128).all(2).any()
    assert cut or layer != "relu2"  # some lay at the border


def test_of_a_vector_layer_a_patch_is_the_whole_photo(made, exact):
    for layer in ("flat", "mean"):
        found = units(MODEL, made, layer=layer, channels=[1], projection="none")
        assert "(the whole image)" in found.intro
        ((*_, last),) = [tiles(shot) for shot in sheets(found)]
        photo = Image.fromarray(pixels(made, found.facts["units"][0]["top"][2]["path"]))
        large = photo.resize((TILE, TILE), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(last, np.array(large))


@pytest.mark.parametrize(
    ("size", "tile"), [((60, 72), (100, 120)), ((40, 80), (96, 192)), ((150, 180), (100, 120))]
)
def test_patches_keep_their_proportions_and_are_never_narrow(tmp_path, exact, size, tile):
    model = nets.model(nets.plain(), size=size)
    write_photos(tmp_path / "photos", 2, size)
    made = scan(tmp_path / "photos", model, tmp_path / "c", layers=["flat"], workers=0)
    found = units(model, made, channels=[0], projection="none")
    assert min(tile) >= NARROWEST
    drawn = tiles(found.shots[0], *tile, 2)  # 9 were asked for, there are 2
    for picture, top in zip(drawn, found.facts["units"][0]["top"], strict=True):
        photo = Image.fromarray(pixels(made, top["path"]))
        expected = np.array(photo.resize(tile[::-1], Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(picture, expected)


def peaks(made, layer, channels):
    tally = made.tally(layer)
    rows = made.with_ids(tally.ids[list(channels)].flatten().tolist())
    columns = COLUMNS.get(layer, 1)
    return [
        Peak(c, rows[i], place // columns, place % columns, value)
        for c in channels
        for i, place, value in zip(
            tally.ids[c].tolist(), tally.places[c].tolist(), tally.values[c].tolist(), strict=True
        )
    ]


def carried(model, made, layer, how, channels=(0, 1, 2)):
    """What is projected, and beside it each peak, its photo and the target that names it."""
    found = peaks(made, layer, channels)
    photos = torch.stack([made.photo(one.row, model) for one in found])
    projected = module._projected(model, photos, layer, found, how)
    targets = [f"{layer}:{one.channel}" + (f"@{one.y},{one.x}" if layer in COLUMNS else "") for one in found]
    return zip(projected, found, photos.split(1), targets, strict=True)


OF_A_UNIT = {
    "deconvnet": lambda model, photo, target, peak: opsin.deconvnet(model, photo, target=target).values[0],
    "guided": lambda model, photo, target, peak: (
        peak.value * opsin.guided_backprop(model, photo, target=target).values[0]
    ),
    "gradient": lambda model, photo, target, peak: (
        peak.value * opsin.saliency(model, photo, target=target).extras["gradient"][0]
    ),
}


@pytest.mark.parametrize("how", OF_A_UNIT)
@pytest.mark.parametrize("layer", ["relu2", "relu1"])
def test_a_projection_is_that_of_the_technique(made, how, layer):
    for found, peak, photo, target in carried(MODEL, made, layer, how):
        expected = OF_A_UNIT[how](MODEL, photo, target, peak)
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected.to(found), rtol=1e-5, atol=1e-6)
        top, bottom, left, right = field(layer, peak.y, peak.x)
        outside = found.clone()
        outside[:, max(0, top) : bottom, max(0, left) : right] = 0
        assert not outside.any()


@pytest.mark.parametrize("how", OF_A_UNIT)
def test_a_unit_of_a_vector_layer_is_projected_too(made, how):
    for found, _, photo, _ in carried(MODEL, made, "flat", how, (3,)):
        a = reference.forward(NET, photo[0].double().numpy())
        rule = {"deconvnet": reference.deconvnet, "guided": reference.guided}.get(
            how, reference.plain_gradient
        )
        expected = reference.backward(NET, a, reference.one_hot(3, 6) * a["mean"], start="mean", rule=rule)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", OF_A_UNIT)
def test_of_a_channel_that_never_fires_nothing_is_projected(tmp_path, how):
    net = nets.plain()
    net.conv2.bias.data -= 100
    model = nets.model(net)
    write_photos(tmp_path / "photos", 2)
    made = scan(tmp_path / "photos", model, tmp_path / "c", layers=["conv2"], top=2, workers=0)
    for found, peak, photo, target in carried(model, made, "conv2", how):
        assert peak.value < 0
        assert not found.any()
        assert opsin.saliency(model, photo, target=target).values.any()


@pytest.mark.parametrize("twin", nets.TWINS)
def test_the_spelling_of_a_rectifier_does_not_matter(made, twin):
    model = nets.model(nets.TWINS[twin]())
    for how in OF_A_UNIT:
        pairs = zip(carried(model, made, "conv2", how), carried(MODEL, made, "conv2", how), strict=True)
        for (found, *_), (expected, *_) in pairs:
            torch.testing.assert_close(found, expected)


def test_the_picture_is_the_projection_inside_the_field(made, exact):
    found = units(MODEL, made, layer="relu2", channels=[1])
    patches, projections = sheets(found)
    assert (patches.group, patches.lead, projections.lead) == ("relu2:1", True, True)
    assert projections.caption == "deconvnet of each"
    numbers = found.facts["units"][0]
    assert patches.caption == ", ".join(f"{n} {numbers[n]:.3g}" for n in ("mean", "deviation", "sparsity"))
    for tile, (values, peak, *_) in zip(
        tiles(projections), carried(MODEL, made, "relu2", "deconvnet", (1,)), strict=True
    ):
        top, bottom, left, right = field("relu2", peak.y, peak.x)
        cut = values[:, max(0, top) : bottom, max(0, left) : right].numpy()
        strength = np.sort(np.abs(cut).ravel())[max(1, round(0.995 * cut.size)) - 1]
        drawn = (np.clip(0.5 + cut / (2 * strength), 0, 1) * 255).round().transpose(1, 2, 0)
        picture = np.zeros((16, 16, 3), np.uint8)
        picture[max(0, top) : bottom, max(0, left) : right] = drawn
        expected = patch(picture, "relu2", peak.y, peak.x)
        assert np.abs(tile.astype(int) - expected.astype(int)).max() <= 2


def smooth():
    return nets.seeded(nets.Plain(nn.SiLU))


def strided():
    """Rectifiers, no max-pooling."""
    net = nets.Plain()
    net.pool = nn.AvgPool2d(2)
    return nets.seeded(net)


@pytest.mark.parametrize(
    ("make", "layer", "expected"),
    [
        (nets.plain, "relu2", "deconvnet"),
        (nets.plain, "conv2", "deconvnet"),
        (nets.plain, "pool", "deconvnet"),
        (nets.plain, "flat", "deconvnet"),
        (nets.plain, "relu1", "guided"),
        (nets.plain, "conv1", "gradient"),
        (strided, "relu2", "guided"),
        (smooth, "relu2", "gradient"),
    ],
)
def test_the_projection_that_says_something_is_picked(tmp_path, make, layer, expected):
    model = nets.model(make())
    write_photos(tmp_path / "photos", 2, (8, 8))
    made = scan(tmp_path / "photos", model, tmp_path / "c", layers=[layer], workers=0)
    found = units(model, made, channels=[0])
    assert found.facts["projection"] == found.record.arguments["projection"] == expected
    said = {"guided": "guided backpropagation", "gradient": "the plain gradient"}.get(expected, expected)
    assert found.shots[1].caption == f"{said} of each"
    told = any("no rectifier below" in note for note in found.record.notes)
    assert told == (expected == "gradient")
    if expected == "gradient":
        for how in ("deconvnet", "guided"):
            with pytest.raises(opsin.NetworkError, match="met no rectifier"):
                units(model, made, channels=[0], projection=how)
    assert units(model, made, channels=[0], projection="gradient").facts["projection"] == "gradient"
    assert len(sheets(units(model, made, channels=[0], projection="none"))) == 1


def test_channels_are_chosen_in_their_order_once(made):
    found = units(MODEL, made, layer="relu2", channels=[4, 1, 4], projection="none")
    assert [one["channel"] for one in found.facts["units"]] == [4, 1]
    whole = units(MODEL, made, layer="relu2", projection="none")
    assert sheets(found) == [sheets(whole)[4], sheets(whole)[1]]
    assert found.record.arguments["channels"] == [4, 1]


def test_what_there_is_not_is_told(made):
    for channel in (6, -1):
        with pytest.raises(opsin.InputError, match=f"'relu2' has the channels 0 to 5, not {channel}"):
            units(MODEL, made, layer="relu2", channels=[0, channel])
    with pytest.raises(opsin.InputError, match="unknown layer of the collection 'relu3'; nearest: relu"):
        units(MODEL, made, layer="relu3")
    with pytest.raises(opsin.InputError, match="was scanned with Plain"):
        units(nets.model(nets.plain(seed=1)), made)


def test_photos_that_changed_or_are_gone_are_told_and_the_rest_is_shown(tmp_path, exact):
    write_photos(tmp_path / "photos", 4)
    made = scan(tmp_path / "photos", MODEL, tmp_path / "c", layers=["relu2"], workers=0)
    before = units(MODEL, made)
    (tmp_path / "photos/0.png").unlink()
    Image.new("RGB", (16, 16)).save(tmp_path / "photos/2.png")
    found = units(MODEL, made)
    for one, old in zip(found.facts["units"], before.facts["units"], strict=True):
        for top, old_top in zip(one["top"], old["top"], strict=True):
            assert (top["photo"] is None) == (top["path"] in ("0.png", "2.png"))
            assert {**top, "photo": old_top["photo"]} == old_top
    page = found.html()
    assert "0.png cannot be read" in page
    assert page.count('<details class="peak">') == 2 * len(found.facts["units"])
    notes = [note for note in found.record.notes if note.startswith("Caution")]
    assert len(notes) == 2
    assert any("0.png cannot be read" in note for note in notes)
    assert any("2.png has changed since the scan" in note for note in notes)
    for kind in (0, 1):
        for one, old, facts in zip(
            sheets(found)[kind::2], sheets(before)[kind::2], found.facts["units"], strict=True
        ):
            kept = [i for i, top in enumerate(facts["top"]) if top["path"] in ("1.png", "3.png")]
            old_tiles = tiles(old, count=4)
            for tile, index in zip(tiles(one, count=2), kept, strict=True):
                np.testing.assert_array_equal(tile, old_tiles[index])
    for photo in (tmp_path / "photos").iterdir():
        photo.unlink()
    assert units(MODEL, made).shots == ()


def test_the_field_of_units_that_choose_is_that_of_what_they_choose_from(tmp_path):
    class Where(nets.Plain):
        def forward(self, x):
            x = self.pool(self.relu1(self.conv1(x)))
            x = self.relu2(torch.where(x > 1, self.conv2(x)[:, :4], 0))
            return self.fc(torch.cat([x, x[:, :2]], 1).mean((2, 3)))

    model = nets.model(nets.seeded(Where()))
    write_photos(tmp_path / "photos", 2)
    made = scan(tmp_path / "photos", model, tmp_path / "c", layers=["relu2"], workers=0)
    assert "(8×8 pixels)" in units(model, made).intro


def test_units_are_saved_and_loaded(made, tmp_path):
    found = units(MODEL, made, layer="relu2", channels=[0, 3])
    loaded = opsin.Result.load(found.save(tmp_path / "out"))
    assert loaded == found
    assert loaded.html() == found.html()
    assert found.record.technique == "units"
    assert isinstance(found, opsin.Findings)
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".html", ".json", ".npz", ".webp"}


def test_the_page_names_each_channel_and_patch_and_its_photo(made, tmp_path):
    found = units(MODEL, made, layer="relu2", channels=[0, 3])
    page = (found.save(tmp_path / "out") / "index.html").read_text()
    assert "8×8 pixels" in page
    assert page.count('<details class="peak">') == 2 * TOP
    for one in found.facts["units"]:
        assert f">relu2:{one['channel']}</a>" in page
        for top in one["top"]:
            assert f"value <b>{top['value']:.3g}</b> in row {top['row']}, column {top['column']}" in page
            assert f'url("{top["photo"]:03d}.webp")' in page
            assert found.shots[top["photo"]].caption == top["path"]
    assert found.html().count("data:image/webp;base64,") == len(found.shots)
    assert "http" not in page


def test_every_photo_is_kept_once_small_and_whole(tmp_path, exact):
    write_photos(tmp_path / "photos", 3, (200, 800))
    made = scan(tmp_path / "photos", MODEL, tmp_path / "c", layers=["relu2"], workers=0)
    found = units(MODEL, made)
    photos = [shot for shot in found.shots if shot.group == PHOTOS]
    assert sorted(shot.caption for shot in photos) == ["0.png", "1.png", "2.png"]
    for shot in photos:
        assert shot.size == (PHOTO, 80)
        with Image.open(tmp_path / "photos" / shot.caption) as photo:
            photo.thumbnail((PHOTO, PHOTO))
            np.testing.assert_array_equal(np.array(shot.picture), np.array(photo))


def test_labels_and_classes_stand_beside_the_patches(tmp_path):
    write_photos(tmp_path / "photos", 3)
    (tmp_path / "l.csv").write_text("path,label\n0.png,1\n1.png,<own>\n")
    made = scan(
        tmp_path / "photos", MODEL, tmp_path / "c", layers=["relu2"], workers=0, labels=tmp_path / "l.csv"
    )
    found = units(MODEL, made, channels=[2])
    told = {top["path"]: (top["label"], top["label_name"]) for top in found.facts["units"][0]["top"]}
    assert told == {"0.png": ("1", "tiger cat"), "1.png": ("<own>", "<own>"), "2.png": (None, None)}
    for row in made.rows(range(3)):
        (top,) = [top for top in found.facts["units"][0]["top"] if top["path"] == row.path]
        assert (top["class_name"], top["probability"]) == (nets.LABELS[row.classes[0]], row.probabilities[0])
    page = found.html()
    assert "labelled <b>tiger cat</b>, seen as" in page
    assert "labelled <b>&lt;own&gt;</b>" in page


# --- places at the edge


def at_edge(layer, y, x):
    top, bottom, left, right = field(layer, y, x)
    return top < 0 or left < 0 or bottom > 16 or right > 16


def brightened(channel):
    """A network whose second convolution answers to zeros in this channel: only its bias is above zero."""
    net = nets.plain()
    with torch.no_grad():
        net.conv2.weight[channel] = -0.5
        net.conv2.bias[channel] = 20.0
    return nets.model(net)


def test_places_at_the_edge_are_told(made):
    kinds = set()
    for layer in ("relu2", "conv1"):
        found = units(MODEL, made, layer=layer, projection="none").facts
        side = COLUMNS[layer]
        total = sum(at_edge(layer, y, x) for y, x in product(range(side), range(side)))
        assert found["edge"] == pytest.approx(total / side**2)
        places = [top for one in found["units"] for top in one["top"]]
        assert [top["at_edge"] for top in places] == [at_edge(layer, t["row"], t["column"]) for t in places]
        kinds |= {top["at_edge"] for top in places}
    assert kinds == {True, False}


def test_a_channel_that_fires_for_the_padding_is_said_to(tmp_path):
    model = brightened(2)
    write_photos(tmp_path / "photos", 6, (64, 64))
    wide = nets.model(model.network, size=64)
    made = scan(tmp_path / "photos", wide, tmp_path / "c", layers=["relu2", "flat"], workers=0)
    found = units(wide, made, layer="relu2", projection="none")
    assert found.facts["units"][2]["mostly_at_edge"]
    assert all(top["at_edge"] for top in found.facts["units"][2]["top"])
    flagged = sum(one["mostly_at_edge"] for one in found.facts["units"])
    assert flagged < 6
    assert f"{flagged} of 6 channels" in found.intro
    assert "--inside" in found.intro
    page = found.html()
    assert (
        page.count("fires mostly at the picture&#39;s edge:")
        + page.count("fires mostly at the picture's edge:")
        == flagged
    )
    assert "6 of 6 places see the padding" in page
    vector = units(wide, made, layer="flat", projection="none")
    assert not any(one["mostly_at_edge"] for one in vector.facts["units"])
    assert not any(top["at_edge"] for one in vector.facts["units"] for top in one["top"])
    assert vector.facts["edge"] is None


@pytest.mark.parametrize(
    ("count", "total", "share", "said"),
    [(5, 9, 0.1, True), (4, 9, 0.1, False), (9, 9, 0.45, True), (9, 9, 0.5, False), (0, 0, 0.1, False)],
)
def test_most_places_are_at_the_edge_if_they_are_more_than_chance_puts_there(count, total, share, said):
    from opsin.collection.ask.edges import mostly

    assert mostly(count, total, share) is said


def test_inside_shows_the_strongest_places_away_from_the_edge(made):
    found = units(MODEL, made, layer="relu2", channels=[4, 1], projection="none", inside=True)
    assert (found.facts["inside"], found.record.arguments["inside"]) == (True, True)
    inner = np.array([[not at_edge("relu2", y, x) for x in range(8)] for y in range(8)])
    kept = {path: activations(made, path)["relu2"] for path in paths(made)}
    changed = 0
    for one in found.facts["units"]:
        peaks = sorted(
            ((np.where(inner, a[one["channel"]], -1).max(), path) for path, a in kept.items()), reverse=True
        )
        assert [top["path"] for top in one["top"]] == [path for _, path in peaks[:TOP]]
        for top, (value, _) in zip(one["top"], peaks, strict=False):
            assert top["value"] == pytest.approx(value, rel=1e-5)
            assert not top["at_edge"]
            assert inner[top["row"], top["column"]]
        every = np.concatenate([a[one["channel"]].ravel() for a in kept.values()])
        assert one["mean"] == pytest.approx(every.mean(), rel=1e-5)  # of all positions
        changed += peaks[0][0] < every.max()
    assert changed
    assert "away from the picture's edge" in found.intro


def test_inside_needs_positions_that_see_no_padding(made):
    for layer in ("flat", "mean"):
        with pytest.raises(opsin.InputError, match=f"every unit of layer '{layer}' sees the whole picture"):
            units(MODEL, made, layer=layer, inside=True)


def test_inside_tells_photos_that_are_gone(tmp_path):
    write_photos(tmp_path / "photos", 3)
    made = scan(tmp_path / "photos", MODEL, tmp_path / "c", layers=["relu2"], workers=0)
    (tmp_path / "photos/1.png").unlink()
    found = units(MODEL, made, channels=[0], projection="none", inside=True)
    assert sorted(top["path"] for top in found.facts["units"][0]["top"]) == ["0.png", "2.png"]
    assert any("1.png cannot be read" in note for note in found.record.notes)
