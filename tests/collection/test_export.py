"""A collection as files for other programs: what is in them, what may not be overwritten, what is refused."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

import nets
import opsin
from opsin.collection.scan.scanning import scan
from opsin.collection.store.export import IMAGE, TALLY
from opsin.collection.store.tally import NONE

MODEL = nets.model(nets.plain())
LAYERS = {"relu2": 6, "flat": 6, "relu1": 4}
TOP = 3
LABELS = {0: "1", 1: "=HYPERLINK(1)", 2: "tabby", 3: '+own, "quoted"\nnext', 4: "@x"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Photos with names and labels that are not harmless everywhere."""
    place = tmp_path_factory.mktemp("export")
    names = ["a.png", "-b.png", "sub/c, d.png", "é.png", "=e.png", "f.png"]
    (place / "photos/sub").mkdir(parents=True)
    for index, name in enumerate(names):
        pixels = np.random.default_rng(index).integers(0, 256, (20 + index, 24, 3), np.uint8)
        Image.fromarray(pixels).save(place / "photos" / name)
    with (place / "l.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((names[i], text) for i, text in LABELS.items())])
    os.rename(place / "photos/f.png", os.fsencode(place / "photos") + b"/f\xff.png")  # noqa: PTH104
    return scan(
        place / "photos", MODEL, place / "c", layers=list(LAYERS), top=TOP, labels=place / "l.csv", workers=0
    )


@pytest.fixture(scope="module")
def rows(made):
    return made.rows(range(len(made)))


def text_of(row):
    return row.path.encode("utf-8", "backslashreplace").decode()


def expected(made, row):
    """What the columns of an image hold, but for its features."""
    names = made.about.labels
    label_class = {"1": 1, "tabby": 0}.get(row.label)
    return {
        "path": text_of(row),
        "width": row.width,
        "height": row.height,
        "sha256": row.sha256,
        "label": row.label,
        "label_class": label_class,
        "label_name": None if label_class is None else names[label_class],
        **{f"class_{rank}": index for rank, index in enumerate(row.classes, 1)},
        **{f"class_name_{rank}": names[index] for rank, index in enumerate(row.classes, 1)},
        **{f"probability_{rank}": chance for rank, chance in enumerate(row.probabilities, 1)},
    }


def expected_tallies(made):
    """One mapping for each place where a channel fires most."""
    for layer, channels in LAYERS.items():
        tally = made.tally(layer)
        columns = made.about.layers[list(LAYERS).index(layer)].extent[1]
        by_id = made.with_ids(tally.ids.unique().tolist())
        for channel in range(channels):
            for rank in range(TOP):
                place = int(tally.places[channel, rank])
                yield {
                    "layer": layer,
                    "channel": channel,
                    **{
                        name: float(getattr(tally, name)[channel])
                        for name in ("mean", "deviation", "sparsity")
                    },
                    "rank": rank + 1,
                    "value": float(tally.values[channel, rank]),
                    "path": text_of(by_id[int(tally.ids[channel, rank])]),
                    "row": place // columns,
                    "column": place % columns,
                }


def test_parquet_holds_every_column_with_its_text_unchanged(made, rows, tmp_path):
    assert made.export(tmp_path / "o.parquet") == [tmp_path / "o.parquet", tmp_path / "o-tallies.parquet"]
    table = parquet.read_table(tmp_path / "o.parquet")
    assert table.column_names == [*IMAGE.names, *(f"features/{layer}" for layer in LAYERS)]
    assert [{name: line[name] for name in IMAGE.names} for line in table.to_pylist()] == [
        expected(made, row) for row in rows
    ]
    for layer, channels in LAYERS.items():
        features = table.column(f"features/{layer}")
        assert features.type == pa.list_(pa.float32(), channels)
        np.testing.assert_array_equal(np.array(features.to_pylist(), np.float32), made.features(layer))
    tallies = parquet.read_table(tmp_path / "o-tallies.parquet")
    assert tallies.schema.names == TALLY.names
    assert tallies.to_pylist() == list(expected_tallies(made))


def harmless(text):
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def read_csv(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_csv_holds_the_same_and_no_formula(made, rows, tmp_path):
    made.export(tmp_path / "o.csv")
    read = read_csv(tmp_path / "o.csv")
    channels = [f"features/{layer}:{i}" for layer, count in LAYERS.items() for i in range(count)]
    assert list(read[0]) == [*IMAGE.names, *channels]
    guarded = 0
    for line, row in zip(read, rows, strict=True):
        for name, value in expected(made, row).items():
            if isinstance(value, str):
                assert line[name] == harmless(value)
                guarded += line[name] != value
            elif value is None:
                assert line[name] == ""
            else:
                assert float(line[name]) == pytest.approx(value, rel=1e-6)
    assert guarded == 2 + 3  # paths, labels
    values = np.array([[line[name] for name in channels] for line in read], np.float32)
    np.testing.assert_allclose(
        values, np.concatenate([made.features(layer) for layer in LAYERS], 1), rtol=1e-6
    )
    for line, told in zip(read_csv(tmp_path / "o-tallies.csv"), expected_tallies(made), strict=True):
        assert {name: line[name] for name in ("layer", "channel", "rank", "row", "column")} == {
            name: str(told[name]) for name in ("layer", "channel", "rank", "row", "column")
        }
        assert line["path"] == harmless(told["path"])
        for name in ("mean", "deviation", "sparsity", "value"):
            assert float(line[name]) == pytest.approx(told[name], rel=1e-6)


def test_npz_holds_the_same_without_objects(made, rows, tmp_path):
    assert made.export(tmp_path / "o.npz") == [tmp_path / "o.npz"]
    with np.load(tmp_path / "o.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    moments = ("mean", "deviation", "sparsity", "value", "image", "row", "column")
    assert set(arrays) == {
        *IMAGE.names,
        *(f"features/{layer}" for layer in LAYERS),
        *(f"tallies/{layer}/{name}" for layer in LAYERS for name in moments),
    }
    for index, row in enumerate(rows):
        for name, value in expected(made, row).items():
            missing = "" if arrays[name].dtype.kind == "U" else NONE
            assert arrays[name][index] == (missing if value is None else value)
    for layer in LAYERS:
        np.testing.assert_array_equal(arrays[f"features/{layer}"], made.features(layer))
    for told in expected_tallies(made):
        of = {name: arrays[f"tallies/{told['layer']}/{name}"][told["channel"]] for name in moments}
        for name in ("mean", "deviation", "sparsity"):
            assert of[name] == told[name]
        for name in ("value", "row", "column"):
            assert of[name][told["rank"] - 1] == told[name]
        assert arrays["path"][of["image"][told["rank"] - 1]] == told["path"]


def test_fewer_places_and_classes_than_there_is_room_for_are_missing(tmp_path):
    class Maps(nets.Plain):
        def forward(self, x):
            return self.relu2(self.conv2(self.pool(self.relu1(self.conv1(x)))))

    model = nets.model(nets.seeded(Maps()), labels=None)  # without classes
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (16, 16), "red").save(tmp_path / "photos/a.png")
    made = scan(tmp_path / "photos", model, tmp_path / "c", layers=["relu2"], top=2, workers=0)
    for suffix in ("parquet", "csv", "npz"):
        made.export(tmp_path / f"o.{suffix}")
    (line,) = parquet.read_table(tmp_path / "o.parquet").to_pylist()
    assert (line["class_1"], line["class_name_5"], line["probability_1"], line["label"]) == (None,) * 4
    (line,) = read_csv(tmp_path / "o.csv")
    assert (line["class_1"], line["probability_1"], line["label"]) == ("", "", "")
    assert len(parquet.read_table(tmp_path / "o-tallies.parquet")) == 6  # one place a channel
    with np.load(tmp_path / "o.npz", allow_pickle=False) as stored:
        assert stored["class_1"].tolist() == [NONE]
        assert np.isnan(stored["probability_1"]).all()
        assert stored["label"].tolist() == [""]
        assert stored["tallies/relu2/image"].tolist() == [[0, NONE]] * 6
        assert stored["tallies/relu2/row"][:, 1].tolist() == [NONE] * 6
        assert stored["tallies/relu2/column"][:, 1].tolist() == [NONE] * 6
        assert np.isnan(stored["tallies/relu2/value"][:, 1]).all()


@pytest.mark.parametrize("name", ["o.xlsx", "o", "o.csv.gz", ".csv"])
def test_another_suffix_is_refused_and_the_three_are_named(made, tmp_path, name):
    with pytest.raises(opsin.InputError, match=r"must end in one of \.parquet, \.csv, \.npz"):
        made.export(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_the_suffix_may_be_in_capitals(made, tmp_path):
    made.export(tmp_path / "o.CSV")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o-tallies.CSV", "o.CSV"]


@pytest.mark.parametrize("existing", ["o.csv", "o-tallies.csv"])
def test_a_file_that_exists_is_replaced_only_where_that_is_asked_for(made, tmp_path, existing):
    (tmp_path / existing).write_text("mine")
    with pytest.raises(opsin.InputError, match=rf"{existing} exists already: .*--overwrite"):
        made.export(tmp_path / "o.csv")
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "mine"
    made.export(tmp_path / "o.csv", overwrite=True)
    assert len(read_csv(tmp_path / "o.csv")) == len(made)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("kind", ["a folder", "a link", "a link to nothing", "a pipe"])
def test_what_is_no_regular_file_is_never_replaced(made, tmp_path, kind):
    (tmp_path / "mine.npz").write_text("mine")
    target = tmp_path / "o.npz"
    if kind == "a folder":
        target.mkdir()
    elif kind == "a pipe":
        os.mkfifo(target)
    else:
        target.symlink_to("mine.npz" if kind == "a link" else "nothing.npz")
    with pytest.raises(opsin.InputError, match=r"o\.npz exists and is not a regular file"):
        made.export(target, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.npz", "o.npz"]
    assert (tmp_path / "mine.npz").read_text() == "mine"


def test_a_folder_that_there_is_not_is_told_with_the_nearest(made, tmp_path):
    (tmp_path / "exports").mkdir()
    with pytest.raises(opsin.InputError, match=r"unknown folder .*export'; nearest: exports"):
        made.export(tmp_path / "export/o.csv")
    with pytest.raises(opsin.InputError, match="cannot be written"):
        made.export("a\0b.csv")


@pytest.mark.parametrize("suffix", ["parquet", "csv", "npz"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_after_an_error_nothing_has_changed(made, tmp_path, monkeypatch, suffix, error):
    (tmp_path / f"o.{suffix}").write_text("mine")

    def full(*_, **__):
        raise error

    monkeypatch.setattr(opsin.Collection, "tally", full)  # what is written last
    with pytest.raises(opsin.InputError if isinstance(error, OSError) else KeyboardInterrupt):
        made.export(tmp_path / f"o.{suffix}", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [f"o.{suffix}"]
    assert (tmp_path / f"o.{suffix}").read_text() == "mine"


def test_a_file_that_appears_meanwhile_is_kept(made, tmp_path, monkeypatch):
    real = opsin.Collection.tally

    def tally(self, layer=None):
        (tmp_path / "o.csv").write_text("mine")
        return real(self, layer)

    monkeypatch.setattr(opsin.Collection, "tally", tally)
    with pytest.raises(opsin.InputError, match=r"o\.csv exists already"):
        made.export(tmp_path / "o.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["o.csv"]
    assert (tmp_path / "o.csv").read_text() == "mine"


def test_every_column_is_documented():
    page = (Path(__file__).parents[2] / "docs/export.md").read_text("utf-8")
    named = set(re.findall(r"`([^`]+)`", re.sub("```.*?```", "", page, flags=re.DOTALL)))
    ranked = {re.sub(r"_\d$", "_1", name) for name in IMAGE.names}
    assert {*ranked, *TALLY.names} <= named


# --- names that there are not


def test_an_unknown_table_or_column_is_told_with_the_nearest(made):
    with pytest.raises(
        opsin.InputError, match=r"unknown table of a collection 'image\.lance'; nearest: images"
    ):
        made.table("image.lance")
    with pytest.raises(opsin.InputError, match="unknown column of a collection 'widht'; nearest: width"):
        made.column("widht")
    with pytest.raises(
        opsin.InputError, match="unknown column of a collection 'features_3'; nearest: features_"
    ):
        made.batches(["id", "features_3"])


# --- from the command line


def test_export_from_the_command_line(made, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    words = ("export", made.folder, "o.csv")
    assert call(*words) == (0, "o.csv\no-tallies.csv\n", "")
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert "o.csv exists already" in err
    code, out, err = call(*words, "--overwrite", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"files": ["o.csv", "o-tallies.csv"], "images": len(made)}
    code, out, err = call("export", made.folder, "o.txt")
    assert (code, out) == (2, "")
    assert "'o.txt' must end in one of .parquet, .csv, .npz, not in '.txt'" in err
    code, _, err = call("export", "nowhere", "o.csv")
    assert code == 2
    assert "nowhere is not a collection" in err
    _, out, _ = call("export", "--help")
    for name in ("path", "label_class", "probability_5", "features/LAYER:CHANNEL", "deviation", "apostrophe"):
        assert name in out
