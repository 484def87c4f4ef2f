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
from opsin.collection.ask import units as module
from opsin.collection.ask.units import GAP, TILE, units
from opsin.collection.scan.scanning import scan

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
    """The photo's pixels in a unit's field, each a square; grey beyond the photo."""
    top, bottom, left, right = field(layer, y, x)
    cut = np.full((bottom - top, right - left, 3), 128, np.uint8)
    for i, j in product(range(top, bottom), range(left, right)):
        if 0 <= i < len(photo) and 0 <= j < photo.shape[1]:
            cut[i - top, j - left] = photo[i, j]
    side = TILE // len(cut)
    return cut.repeat(side, 0).repeat(side, 1)


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
    assert [shot.group for shot in found.shots] == [f"{layer}:{c}" for c in range(len(found.facts["units"]))]
    cut = 0
    for shot, one in zip(found.shots, found.facts["units"], strict=True):
        for tile, top in zip(tiles(shot), one["top"], strict=True):
            expected = patch(pixels(made, top["path"]), layer, top["row"], top["column"])
            np.testing.assert_array_equal(tile, expected)
            cut += (expected == 128).all(2).any()
    assert cut or layer != "relu2"  # some lay at the border


def test_of_a_vector_layer_a_patch_is_the_whole_photo(made, exact):
    for layer in ("flat", "mean"):
        found = units(MODEL, made, layer=layer, channels=[1], projection="none")
        assert "(the whole image)" in found.intro
        ((*_, last),) = [tiles(shot) for shot in found.shots]
        photo = pixels(made, found.facts["units"][0]["top"][2]["path"])
        np.testing.assert_array_equal(last, photo.repeat(6, 0).repeat(6, 1))


def test_large_fields_are_resized(tmp_path, exact):
    model = nets.model(nets.plain(), size=(40, 64))
    write_photos(tmp_path / "photos", 2, (40, 64))
    made = scan(tmp_path / "photos", model, tmp_path / "c", layers=["flat"], workers=0)
    found = units(model, made, channels=[0], projection="none")
    drawn = tiles(found.shots[0], 60, 96, 2)  # 9 were asked for, there are 2
    for tile, top in zip(drawn, found.facts["units"][0]["top"], strict=True):
        photo = Image.fromarray(pixels(made, top["path"]))
        np.testing.assert_array_equal(tile, np.array(photo.resize((96, 60), Image.Resampling.BICUBIC)))


def peaks(made, layer, channels):
    tally = made.tally(layer)
    rows = made.with_ids(tally.ids[list(channels)].flatten().tolist())
    columns = COLUMNS.get(layer, 1)
    return [
        module._Peak(c, rows[i], place // columns, place % columns, value)
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
    patches, projections = found.shots
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
        whole = np.full((8, 8, 3), 128)
        inside = np.s_[max(0, -top) : 8 - max(0, bottom - 16), max(0, -left) : 8 - max(0, right - 16)]
        whole[inside] = drawn
        assert np.abs(tile.astype(int) - whole.repeat(12, 0).repeat(12, 1)).max() <= 1


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
    assert len(units(model, made, channels=[0], projection="none").shots) == 1


def test_channels_are_chosen_in_their_order_once(made):
    found = units(MODEL, made, layer="relu2", channels=[4, 1, 4], projection="none")
    assert [one["channel"] for one in found.facts["units"]] == [4, 1]
    whole = units(MODEL, made, layer="relu2", projection="none")
    assert found.shots == (whole.shots[4], whole.shots[1])
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
    assert found.facts == before.facts
    notes = [note for note in found.record.notes if note.startswith("Caution")]
    assert len(notes) == 2
    assert any("0.png cannot be read" in note for note in notes)
    assert any("2.png has changed since the scan" in note for note in notes)
    for kind in (0, 1):
        for one, old, facts in zip(
            found.shots[kind::2], before.shots[kind::2], found.facts["units"], strict=True
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
    assert opsin.Result.load(found.save(tmp_path / "out")) == found
    assert found.record.technique == "units"
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("<img") == 4
    assert "<h3>relu2:0</h3>" in page
    assert "8×8 pixels" in page
