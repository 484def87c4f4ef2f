import os
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

import nets
import opsin
from opsin.base.job import noting
from opsin.collection.ask import approximate, cache, search
from opsin.collection.ask.coarse import ALIGNMENT, EXTRA, GROUP, QUERIES, Coarse
from opsin.collection.ask.search import nearest
from opsin.collection.store import tables
from opsin.collection.store.about import About, LayerAbout, about_model
from opsin.collection.store.intake import writing
from opsin.collection.store.tally import Tally

MODEL = nets.model(nets.plain())
WIDE = ALIGNMENT - EXTRA  # the width that fills the aligned columns


def brute(rows, queries, k):
    """Every distance |q - x| in float64; equal ones in the order of the rows."""
    away = np.array([[np.sqrt(((x - q) ** 2).sum()) for x in as64(rows)] for q in as64(queries)])
    order = np.argsort(away, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(away, order, 1)


def angles(rows, queries):
    """1 - cos of every query and row; one where one of them is zero, zero where both are."""

    def one(x, q):
        norms = np.linalg.norm(x) * np.linalg.norm(q)
        return 1 - x @ q / norms if norms else float(x.any() or q.any())

    return np.array([[one(x, q) for x in as64(rows)] for q in as64(queries)])


def as64(values):
    return values.double().numpy()


def coarse(folder, rows, parts=100):
    folder.mkdir()
    Coarse.write(folder, iter(rows.split(parts)), rows.shape[1])
    return Coarse(folder)


def agrees(folder, rows, queries, k):
    found = coarse(folder, rows).nearest(queries, k, lambda which: rows[which])
    order, away = brute(rows, queries, k)
    count = min(k, len(rows))
    np.testing.assert_array_equal(found.rows[:, :count], order)
    np.testing.assert_allclose(found.distances[:, :count], away, rtol=1e-12, atol=1e-300)
    assert found.rows.shape == found.distances.shape == (len(queries), k)
    assert (found.rows[:, count:] == -1).all()
    assert (found.distances[:, count:] == torch.inf).all()


def drawn(kind, n=700, width=24, seed=0):
    """Rows of a kind that is hard to search."""
    g = torch.Generator().manual_seed(seed)
    normal = torch.randn(n, width, generator=g)
    centres = torch.randn(12, width, generator=g)
    share = torch.rand(n, 1, generator=g)
    giant = torch.ones(n, 1)
    giant[n // 2] = 1e6
    return {
        "random": normal,
        "clusters": (centres[(12 * share[:, 0]).long()] + 0.05 * normal).relu(),  # as pooled features are
        "norms": normal * 10 ** (8 * share - 4),
        "one giant": normal * giant,
        "duplicates": torch.randint(3, (n, min(3, width)), generator=g).float(),
        "some zeros": normal * (share > 0.5),
        "positive": normal.abs() * (share > 0.1),
        "closer than bfloat16": 1 + 1e-4 * normal,
        "closer than bfloat16, far out": 300 + 1e-3 * normal,
        # all are rounded alike, to a number that none of them is
        "one corner of a bfloat16 cell": 1 + 2.0**-9 + 1e-3 + 1e-5 * normal,
        "small": 1e-12 * normal,
        "equal": torch.ones(n, width),
    }[kind]


KINDS = (
    "random",
    "clusters",
    "norms",
    "one giant",
    "duplicates",
    "some zeros",
    "closer than bfloat16",
    "closer than bfloat16, far out",
    "one corner of a bfloat16 cell",
    "small",
    "equal",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 10, 90])
def test_the_coarse_search_is_exact(tmp_path, kind, k):
    rows = drawn(kind)
    others = drawn(kind, seed=1)[:3]
    width = rows.shape[1]
    agrees(tmp_path / "c", rows, torch.cat([others, rows[[0, 350, 699]], torch.zeros(1, width)]), k)


@pytest.mark.parametrize("n", [1, 2, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP, 3 * GROUP + 1])
@pytest.mark.parametrize("k", [1, GROUP, GROUP + 2, 500])
@pytest.mark.parametrize("kind", ["random", "duplicates"])
def test_any_number_of_rows_and_of_neighbours(tmp_path, n, k, kind):
    agrees(tmp_path / "c", drawn(kind, n), drawn(kind, 4, seed=1), k)


@pytest.mark.parametrize("width", [1, 2, WIDE - 1, WIDE, WIDE + 1, ALIGNMENT, 2 * ALIGNMENT - EXTRA + 1, 200])
def test_any_width(tmp_path, width):
    agrees(tmp_path / "c", drawn("random", 150, width), drawn("random", 3, width, seed=1), 5)


@pytest.mark.parametrize("n", [1, QUERIES - 1, QUERIES, QUERIES + 1, 2 * QUERIES + 3])
def test_any_number_of_queries(tmp_path, n):
    agrees(tmp_path / "c", drawn("clusters", 200), drawn("clusters", n, seed=1), 4)


UP = 1 + 2.0**-8 + 1e-5  # rounded up to bfloat16: to 1 + 2^-7


@pytest.mark.parametrize("broken", [False, True])
def test_a_row_that_rounding_moves_away_is_found(tmp_path, broken):
    """It lies 1.0039 √d from the query 0, the others 1.0049 √d; rounded it lies 1.0078 √d away."""
    rows = torch.ones(200, 32)
    rows[:, :20] = 1 + 2.0**-7
    rows[150] = UP
    if broken:
        rows[[20, 140]] = torch.nan
    agrees(tmp_path / "c", rows, torch.zeros(1, 32), 3)


def test_a_query_that_rounding_moves_away_finds_its_nearest(tmp_path):
    """One row lies 1.0039 √d away, the others 1.0048 √d; from the rounded query 1.0078 √d and 1.0010 √d."""
    rows = torch.full((200, 32), 2.0)
    rows[:, :18] = 2 + 2.0**-6
    rows[150] = 0
    agrees(tmp_path / "c", rows, torch.full((1, 32), UP), 3)


@pytest.mark.parametrize("seed", range(6))
def test_squared_norms_much_larger_than_distances_are_allowed_for(tmp_path, seed):
    g = torch.Generator().manual_seed(seed)
    centre = (100 * torch.randn(24, generator=g)).bfloat16().float()
    rows = centre + 1e-5 * torch.randn(300, 24, generator=g)
    agrees(tmp_path / "c", rows, torch.stack([centre, rows[7]]), 5)


def test_equal_rows_come_in_their_order(tmp_path):
    rows = torch.zeros(3 * GROUP, 5)
    rows[::2, 0] = 1
    found = coarse(tmp_path / "c", rows).nearest(torch.zeros(1, 5), 100, lambda which: rows[which])
    assert found.rows[0, :96].tolist() == list(range(1, 192, 2))
    assert found.rows[0, 96:].tolist() == [0, 2, 4, 6]


def test_parts_make_the_same_matrix(tmp_path):
    rows = drawn("clusters", 300)
    one, other = coarse(tmp_path / "a", rows, 300), coarse(tmp_path / "b", rows, 7)
    assert torch.equal(one.rows.view(torch.int16), other.rows.view(torch.int16))
    assert (one.count, one.norm, one.error) == (other.count, other.norm, other.error)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_vectors_that_are_no_numbers_are_near_to_nothing_and_hide_no_others(tmp_path, broken):
    rows = drawn("random", 200)
    rows[5] = rows[77, 3] = broken
    good = torch.tensor([i for i in range(200) if i not in (5, 77)])
    queries = drawn("random", 3, seed=1)
    found = coarse(tmp_path / "c", rows).nearest(queries, 10, lambda which: rows[which])
    order, away = brute(rows[good], queries, 10)
    np.testing.assert_array_equal(found.rows, good[torch.tensor(order)])
    np.testing.assert_allclose(found.distances, away, rtol=1e-12)
    if not np.isfinite(broken):
        every = coarse(tmp_path / "d", rows).nearest(queries, 250, lambda which: rows[which])
        assert ((every.rows >= 0).sum(1) == 198).all()
        assert (every.distances[every.rows < 0] == torch.inf).all()
        none = coarse(tmp_path / "e", rows).nearest(rows[[5, 0]], 3, lambda which: rows[which])
        assert none.rows[0].tolist() == [-1, -1, -1]
        assert none.rows[1, 0] == 0


# --- of a collection


def collection(folder, features):
    """A collection with these features and nothing else of worth."""
    layers = (LayerAbout("first", 2, (1, 1)), LayerAbout("second", features.shape[1], (1, 1)))
    with writing(folder, About(str(folder), about_model(MODEL), None, layers, 1, {}), MODEL) as made:
        if len(features):
            add(made, features)
    return made


def add(made, features):
    n, start = len(features), len(made)
    given = {
        "id": range(start, start + n),
        "path": [f"{i}.png".encode() for i in range(start, start + n)],
        **{name: [""] * n for name in ("sha256",)},
        **{name: [1] * n for name in ("width", "height", "version")},
        "thumbnail": [b""] * n,
        "classes": [[]] * n,
        "probabilities": [[]] * n,
        "chunk": [start] * n,
        "features_0": [[0.0, 1.0]] * n,
        "features_1": features.tolist(),
    }
    schema = tables.schemas(made.about)[tables.IMAGES]
    columns = [pa.array(list(given[field.name]), field.type) for field in schema]
    tallies = [Tally.empty(layer.channels, 1) for layer in made.about.layers]
    made.append(pa.table(columns, schema=schema), tallies, start)


@pytest.mark.parametrize(
    "kind",
    [
        "random",
        "clusters",
        "norms",
        "some zeros",
        "closer than bfloat16",
        "duplicates",
        "positive",
        "small",
    ],
)
def test_cosine_distance_is_one_minus_the_cosine(tmp_path, kind):
    rows = drawn(kind, 130)
    queries = torch.cat([drawn(kind, 3, seed=1), rows[[7]], torch.zeros(1, rows.shape[1])])
    found = nearest(collection(tmp_path / "c", rows), queries, 12, layer="second")
    every = angles(rows, queries)
    least = np.sort(every, 1)[:, :12]
    np.testing.assert_allclose(found.distances, least, atol=5e-7)
    np.testing.assert_allclose(np.take_along_axis(every, found.rows.numpy(), 1), least, atol=5e-7)
    assert all(len(set(one)) == 12 for one in found.rows.tolist())
    assert (found.distances.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("kind", ["random", "clusters", "norms", "duplicates"])
def test_euclidean_distance_is_that_of_the_features(tmp_path, kind):
    rows, queries = drawn(kind, 130), drawn(kind, 5, seed=1)
    found = nearest(collection(tmp_path / "c", rows), queries, 12, layer="second", metric="euclidean")
    order, away = brute(rows, queries, 12)
    np.testing.assert_array_equal(found.rows, order)
    np.testing.assert_allclose(found.distances, away, rtol=1e-12)


def test_a_collection_of_several_chunks_that_grows_is_searched_whole(tmp_path):
    rows = drawn("clusters", 90)
    made = collection(tmp_path / "c", rows[:30])
    for start in (30, 60, 90):
        found = nearest(made, rows[:3], 40, layer="second", metric="euclidean")
        order, away = brute(rows[:start], rows[:3], 40)
        np.testing.assert_array_equal(found.rows[:, : order.shape[1]], order)
        np.testing.assert_allclose(found.distances[:, : order.shape[1]], away, rtol=1e-12, atol=1e-300)
        assert (found.rows[:, start:] == -1).all()
        if start < 90:
            add(made, rows[start : start + 30])


def kept(cache):
    """The rounded features in a cache."""
    return sorted(path.parent for path in cache.rglob("rows.bf16"))


def test_the_cache_may_be_deleted_and_is_not_mistaken_for_another(tmp_path, own_cache):
    rows = drawn("norms", 80)
    made = collection(tmp_path / "c", rows)

    def answers():
        return [
            nearest(made, rows[:4], 5, layer="second", metric=metric) for metric in ("cosine", "euclidean")
        ]

    first = answers()
    assert not torch.equal(first[0].rows, first[1].rows)
    held = kept(own_cache)
    assert len(held) == 2
    times = [place.stat().st_mtime_ns for place in held]
    for act in (lambda: None, lambda: shutil.rmtree(own_cache), made.tidy):
        act()
        for one, other in zip(first, answers(), strict=True):
            assert torch.equal(one.rows, other.rows)
            assert torch.equal(one.distances, other.distances)
        if times:  # at first nothing was made anew
            assert [place.stat().st_mtime_ns for place in held] == times
            times = []
    made.forget([0])
    add(made, -rows)
    assert nearest(made, -rows[:1], 1, layer="second").distances.item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("file", ["rows.bf16", "facts.json"])
@pytest.mark.parametrize("how", ["cut", "empty", "gone", "longer", "a folder"])
def test_a_damaged_cache_is_made_anew(tmp_path, own_cache, file, how):
    rows = drawn("random", 80)
    made = collection(tmp_path / "c", rows)
    expected = nearest(made, rows[:2], 3, layer="second")
    (place,) = kept(own_cache)
    cache.mapped.cache_clear()  # as in another process
    damaged = place / file
    data = damaged.read_bytes()
    damaged.unlink()
    if how == "a folder":
        damaged.mkdir()
    elif how != "gone":
        damaged.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "longer": data + b"x"}[how])
    found = nearest(made, rows[:2], 3, layer="second")
    assert torch.equal(found.rows, expected.rows)
    assert (place / file).read_bytes() == data


def test_nothing_is_kept_in_the_collection_nor_taken_from_there(tmp_path, own_cache):
    """A collection that came with wrong rounded rows, as an earlier Opsin laid them into it."""
    rows = drawn("random", 70)
    made = collection(tmp_path / "c", rows)
    held = sorted(made.folder.rglob("*"))
    expected = nearest(made, rows[:2], 3, layer="second")
    assert sorted(made.folder.rglob("*")) == held
    (place,) = kept(own_cache)
    for name in (place.name, f"features_1-cosine-{made.table(tables.IMAGES).version}"):
        (made.folder / "cache" / name).mkdir(parents=True)
        Coarse.write(made.folder / "cache" / name, iter([-rows]), 24)
    cache.mapped.cache_clear()
    shutil.rmtree(own_cache)
    assert torch.equal(nearest(made, rows[:2], 3, layer="second").rows, expected.rows)


def test_another_collection_in_the_place_of_one_is_not_mistaken_for_it(tmp_path, own_cache):
    """Its files have the names, the sizes and the times of the first one's."""
    rows = drawn("random", 70)
    made = collection(tmp_path / "c", rows)
    nearest(made, rows[:2], 3, layer="second")
    other = collection(tmp_path / "other", -rows)
    names, theirs = (sorted(one.folder.glob("images.lance/data/*")) for one in (made, other))
    about, data = names[0].stat(), theirs[0].read_bytes()
    assert about.st_size == len(data)
    names[0].write_bytes(data)
    os.utime(names[0], ns=(about.st_atime_ns, about.st_mtime_ns))
    cache.mapped.cache_clear()
    assert (nearest(opsin.Collection(made.folder), -rows[:2], 1, layer="second").distances < 1e-6).all()


def test_the_cache_holds_nothing_of_earlier_states_and_of_collections_that_are_gone(tmp_path, own_cache):
    rows = drawn("random", 70)
    made, other = collection(tmp_path / "c", rows), collection(tmp_path / "other", -rows)
    for searched in (made, other):
        nearest(searched, rows[:2], 3, layer="second")
    first = kept(own_cache)
    add(made, rows)
    nearest(made, rows[:2], 3, layer="second")
    assert len(kept(own_cache)) == len(first) == 2
    assert kept(own_cache) != first
    shutil.rmtree(made.folder)
    add(other, rows)
    nearest(other, rows[:2], 3, layer="second")
    assert len(kept(own_cache)) == 1


def test_two_searches_may_build_the_cache_at_once(tmp_path, monkeypatch, own_cache):
    rows = drawn("random", 70)
    made = collection(tmp_path / "c", rows)
    first = nearest(made, rows[:2], 3, layer="second")
    (place,) = kept(own_cache)
    shutil.rmtree(place)
    cache.mapped.cache_clear()
    write = Coarse.write

    def slow(folder, parts, width):
        write(folder, parts, width)
        shutil.copytree(folder, place)  # the other one was faster

    monkeypatch.setattr(Coarse, "write", staticmethod(slow))
    assert torch.equal(nearest(made, rows[:2], 3, layer="second").rows, first.rows)
    assert kept(own_cache) == [place]


def test_a_cache_that_cannot_be_written_is_told(tmp_path, own_cache):
    made = collection(tmp_path / "c", drawn("random", 10))
    (own_cache / "opsin").write_text("")
    with pytest.raises(opsin.InputError, match="cannot write to"):
        nearest(made, torch.zeros(1, 24), 3, layer="second")


def test_an_index_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    made = collection(tmp_path / "c", torch.rand(approximate.LEAST_INDEXED, 24))

    def refused(*_, **__):
        raise OSError("Read-only file system (os error 30)")

    monkeypatch.setattr(approximate.lance.LanceDataset, "create_index", refused)
    with pytest.raises(opsin.InputError, match=r"cannot write an index into .*Read-only"):
        nearest(made, torch.zeros(1, 24), 3, layer="second", index=True)


def test_features_of_another_width_are_refused(tmp_path):
    made = collection(tmp_path / "c", drawn("random", 10))
    with pytest.raises(opsin.InputError, match="queries of 23 numbers: the features of this layer have 24"):
        nearest(made, torch.zeros(1, 23), 3, layer="second")
    with pytest.raises(opsin.InputError, match="unknown layer of the collection 'third'"):
        nearest(made, torch.zeros(1, 24), 3, layer="third")


def test_of_a_collection_without_images_nothing_is_near(tmp_path):
    made = collection(tmp_path / "c", torch.zeros(0, 24))
    with pytest.raises(opsin.InputError, match="holds no images yet"):
        nearest(made, torch.zeros(1, 24), 3, layer="second")
    add(made, drawn("random", 5))
    made.forget([0])
    assert len(made) == 0
    with pytest.raises(opsin.InputError, match="holds no images yet"):
        nearest(made, torch.zeros(1, 24), 3, layer="second")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_an_index_gives_true_distances_and_says_that_it_may_miss_some(tmp_path, metric, monkeypatch):
    monkeypatch.setattr(approximate, "LEAST_INDEXED", 512)
    rows = drawn("clusters", 600, 16)
    made, queries = collection(tmp_path / "c", rows), drawn("clusters", 4, 16, seed=0)
    exact = nearest(made, queries, 5, layer="second", metric=metric)
    with noting() as notes:
        found = nearest(made, queries, 5, layer="second", metric=metric, index=True)
    assert "approximate index" in notes[0]
    assert made.table(tables.IMAGES).describe_indices()
    true = angles(rows, queries) if metric == "cosine" else brute(rows, queries, 600)[1]
    if metric == "euclidean":
        order = brute(rows, queries, 600)[0]
        true = np.take_along_axis(true, order.argsort(1), 1)
    np.testing.assert_allclose(found.distances, np.take_along_axis(true, found.rows.numpy(), 1), atol=1e-5)
    shared = [len(set(a) & set(b)) for a, b in zip(found.rows.tolist(), exact.rows.tolist(), strict=True)]
    assert sum(shared) >= 16
    with noting() as notes:
        nearest(made, queries, 5, layer="second", metric=metric)
    assert notes == []


def test_an_index_is_asked_where_the_features_outgrow_the_memory(tmp_path, monkeypatch):
    rows = drawn("random", 40)
    made = collection(tmp_path / "c", rows)
    monkeypatch.setattr(search, "_free_memory", lambda: 2 * 40 * 24)
    with noting() as notes:
        found = nearest(made, rows[:2], 50, layer="second", metric="euclidean")
    assert "approximate index" in notes[0]
    order, away = brute(rows, rows[:2], 40)  # so few rows are looked at one by one
    np.testing.assert_array_equal(found.rows[:, :40], order)
    np.testing.assert_allclose(found.distances[:, :40], away, atol=1e-5)
    assert (found.rows[:, 40:] == -1).all()
