"""Co-occurrence matrices and features: IBSI's printed values, slow loops, and what other packages give."""

import csv
import json
from itertools import product

import numpy as np
import pytest
import torch
from skimage.feature import graycomatrix, graycoprops

import nets
import opsin
from opsin.statistics.cooccurrence import RULES, matrices, offset_of, offsets_of
from opsin.statistics.haralick import HARALICK, NAMES, distributions, features, maximal_correlation
from opsin.statistics.levels import Levels
from opsin.statistics.windows import Windows

# The digital phantom of the Image Biomarker Standardization Initiative, four slices, `.` outside the region
# (Zwanenburg et al., arXiv:1612.07003, chapter 5; data and values CC BY 4.0)
PHANTOM = (
    "14411 14611 41641 44641",
    "14411 11611 .1311 44611",
    "144.. 11111 11.11 11611",
    "144.. 11111 11111 11611",
)
# Its printed values in two dimensions: averaged over slices and directions; merged by slice, then averaged;
# (2.5-D) merged by direction, then averaged; all merged.
PRINTED = {
    "joint_maximum": (0.519, 0.512, 0.489, 0.492),
    "joint_average": (2.14, 2.14, 2.20, 2.20),
    "joint_variance": (2.69, 2.71, 3.22, 3.24),
    "joint_entropy": (2.05, 2.24, 2.48, 2.61),
    "difference_average": (1.42, 1.40, 1.46, 1.44),
    "difference_variance": (2.90, 3.06, 3.11, 3.23),
    "difference_entropy": (1.40, 1.49, 1.61, 1.67),
    "sum_average": (4.28, 4.29, 4.41, 4.41),
    "sum_variance": (5.47, 5.66, 7.48, 7.65),
    "sum_entropy": (1.60, 1.79, 2.01, 2.14),
    "angular_second_moment": (0.368, 0.352, 0.286, 0.277),
    "contrast": (5.28, 5.19, 5.39, 5.29),
    "dissimilarity": (1.42, 1.40, 1.46, 1.44),
    "inverse_difference": (0.678, 0.683, 0.668, 0.673),
    "normalised_inverse_difference": (0.851, 0.854, 0.847, 0.850),
    "inverse_difference_moment": (0.619, 0.625, 0.606, 0.613),
    "normalised_inverse_difference_moment": (0.899, 0.901, 0.897, 0.899),
    "inverse_variance": (0.0567, 0.0553, 0.0597, 0.0582),
    "correlation": (-0.0121, 0.0173, 0.178, 0.182),
    "autocorrelation": (5.09, 5.14, 5.40, 5.45),
    "cluster_tendency": (5.47, 5.66, 7.48, 7.65),
    "cluster_shade": (7.00, 6.98, 16.6, 16.4),
    "cluster_prominence": (79.1, 80.4, 147, 142),
    "information_correlation_1": (-0.155, -0.0341, -0.124, -0.0334),
    "information_correlation_2": (0.487, 0.263, 0.487, 0.291),
}
# The same with more digits, for the first slice, which is complete, with its four directions merged
FIRST_SLICE = {
    "joint_maximum": 0.2,
    "joint_average": 3.154545,
    "joint_variance": 3.730661,
    "joint_entropy": 2.997648,
    "difference_variance": 2.801983,
    "sum_entropy": 2.379466,
    "angular_second_moment": 0.136198,
    "contrast": 6.309091,
    "correlation": 0.154427,
    "cluster_prominence": 146.335118,
    "information_correlation_1": -0.017935,
    "information_correlation_2": 0.229793,
    "maximal_correlation": 0.156806,
}


def phantom(dtype=torch.float64):
    """The slices as images whose six levels of equal width are the phantom's, and their masks."""
    rows = [[[0 if c == "." else int(c) for c in row] for row in one.split()] for one in PHANTOM]
    grey = torch.tensor(rows, dtype=dtype)
    masks = (grey > 0).to(dtype)[:, None].expand(-1, 3, -1, -1)
    return ((grey - 0.5).clamp(min=0) / 6)[:, None].expand(-1, 3, -1, -1), masks


def measured(counts):
    shares = counts / counts.sum((-1, -2), keepdim=True)
    return features(distributions(shares), RULES["ibsi"], NAMES, maximal_correlation(shares))


def test_gives_every_value_that_ibsi_prints_for_its_phantom_in_two_dimensions():
    images, masks = phantom()
    result = opsin.glcm(images, levels=6, mask=masks, normalised=False)
    averaged = opsin.glcm(images, levels=6, mask=masks, over="average").features
    counts = result.matrices[:, 0]  # (slices, directions, levels, levels)
    by_direction, merged = measured(counts.sum(0)), measured(counts.sum((0, 1)))
    assert set(PRINTED) | {"maximal_correlation"} == set(NAMES)
    for name, printed in PRINTED.items():
        found = (averaged[name], result.features[name], by_direction[name], merged[name])
        for one, wanted in zip(found, printed, strict=True):
            assert float(f"{float(one.mean()):.3g}") == pytest.approx(wanted, rel=1e-9), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gives_the_values_of_the_first_slice(dtype):
    images, _ = phantom(dtype)
    result = opsin.glcm(images[:1], levels=6)
    for name, wanted in FIRST_SLICE.items():
        assert float(result.features[name]) == pytest.approx(wanted, abs=1e-6)


def slow(p, first, log):
    """Every feature by the sums that the papers print."""
    count = len(p)
    level = [first + i for i in range(count)]
    cells = [(i, j, p[a, b]) for a, i in enumerate(level) for b, j in enumerate(level)]
    x, y = p.sum(1), p.sum(0)
    mean_x = sum(i * s for i, s in zip(level, x, strict=True))
    mean_y = sum(i * s for i, s in zip(level, y, strict=True))
    var_x = sum((i - mean_x) ** 2 * s for i, s in zip(level, x, strict=True))
    var_y = sum((i - mean_y) ** 2 * s for i, s in zip(level, y, strict=True))
    sums, differences = {}, {}
    for i, j, share in cells:
        sums[i + j] = sums.get(i + j, 0) + share
        differences[abs(i - j)] = differences.get(abs(i - j), 0) + share

    def entropy(shares):
        return -sum(s * log(s) for s in shares if s > 0)

    def moment(shares, order, about):
        return sum((k - about) ** order * s for k, s in shares.items())

    mean_sum = sum(k * s for k, s in sums.items())
    mean_difference = sum(k * s for k, s in differences.items())
    h, h_x, h_y = entropy(p.flatten()), entropy(x), entropy(y)
    one = -sum(s * log(x[i - first] * y[j - first]) for i, j, s in cells if s > 0)
    two = entropy(np.outer(x, y).flatten())
    kept = [i for i in range(count) if x[i] > 0]
    q = np.array(
        [
            [sum(p[i, k] * p[j, k] / (x[i] * y[k]) for k in range(count) if y[k] > 0) for j in kept]
            for i in kept
        ]
    )
    return {
        "joint_maximum": p.max(),
        "joint_average": sum(i * s for i, _, s in cells),
        "joint_variance": sum((i - mean_x) ** 2 * s for i, _, s in cells),
        "joint_entropy": h,
        "difference_average": mean_difference,
        "difference_variance": moment(differences, 2, mean_difference),
        "difference_entropy": entropy(differences.values()),
        "sum_average": mean_sum,
        "sum_variance": moment(sums, 2, mean_sum),
        "sum_entropy": entropy(sums.values()),
        "angular_second_moment": (p**2).sum(),
        "contrast": sum((i - j) ** 2 * s for i, j, s in cells),
        "dissimilarity": sum(abs(i - j) * s for i, j, s in cells),
        "inverse_difference": sum(s / (1 + abs(i - j)) for i, j, s in cells),
        "normalised_inverse_difference": sum(s / (1 + abs(i - j) / count) for i, j, s in cells),
        "inverse_difference_moment": sum(s / (1 + (i - j) ** 2) for i, j, s in cells),
        "normalised_inverse_difference_moment": sum(s / (1 + (i - j) ** 2 / count**2) for i, j, s in cells),
        "inverse_variance": sum(s / (i - j) ** 2 for i, j, s in cells if i != j),
        "correlation": sum((i - mean_x) * (j - mean_y) * s for i, j, s in cells) / (var_x * var_y) ** 0.5,
        "autocorrelation": sum(i * j * s for i, j, s in cells),
        "cluster_tendency": sum((i + j - mean_x - mean_y) ** 2 * s for i, j, s in cells),
        "cluster_shade": sum((i + j - mean_x - mean_y) ** 3 * s for i, j, s in cells),
        "cluster_prominence": sum((i + j - mean_x - mean_y) ** 4 * s for i, j, s in cells),
        "information_correlation_1": (h - one) / max(h_x, h_y),
        "information_correlation_2": (1 - np.exp(-2 * (two - h))) ** 0.5,
        "maximal_correlation": sorted(np.linalg.eigvals(q).real)[-2] ** 0.5,
    }


def counted(levels, offset, count, *, symmetric):
    """The matrix by a loop over pixels."""
    found = np.zeros((count, count))
    for row, column in product(*map(range, levels.shape)):
        below, right = row + offset[0], column + offset[1]
        if 0 <= below < levels.shape[0] and 0 <= right < levels.shape[1]:
            one, other = levels[row, column], levels[below, right]
            if one >= 0 and other >= 0:
                found[one, other] += 1
                found[other, one] += symmetric
    return found


CONVENTIONS = {"ibsi": (1, np.log2), "haralick": (1, np.log), "scikit-image": (0, np.log)}


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_is_the_papers_sums_in_every_convention(convention, symmetric):
    image = nets.images(1, 7, 9, seed=4)
    mask = (nets.images(1, 7, 9, seed=5) > 0.1).double()
    mask = mask[:, :1].expand(-1, 3, -1, -1)
    result = opsin.glcm(
        image, levels=4, offsets="1,2;-2,1;0,-1", convention=convention, symmetric=symmetric, mask=mask
    )
    levels = result.levels[0, 0].long().numpy()
    assert (levels >= 0).tolist() == (mask[0, 0] > 0.5).tolist()
    merged = 0
    for index, offset in enumerate([(1, 2), (-2, 1), (0, -1)]):
        counts = counted(levels, offset, 4, symmetric=symmetric)
        merged = merged + counts
        shares = counts / counts.sum()
        np.testing.assert_allclose(result.matrices[0, 0, index], shares, atol=1e-15)
        for name, value in slow(shares, *CONVENTIONS[convention]).items():
            found = result.values[0, 0, index, NAMES.index(name)]
            assert float(found) == pytest.approx(value, rel=1e-9, abs=1e-12), name
    for name, value in slow(merged / merged.sum(), *CONVENTIONS[convention]).items():
        assert float(result.features[name]) == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_agrees_with_scikit_image_in_its_convention():
    image = nets.images(1, 12, 15, seed=1)[:, :1].expand(-1, 3, -1, -1)
    angles = [0, 45, 90, 135, 180, 30]
    result = opsin.glcm(
        image,
        levels=8,
        distances="2,3",
        angles="0,45,90,135,180,30",
        convention="scikit-image",
        symmetric=False,
        over="average",
    )
    grey = result.levels[0, 0].numpy().astype(np.uint8)
    theirs = graycomatrix(grey, [2, 3], np.deg2rad(angles), levels=8, normed=True)
    np.testing.assert_allclose(
        result.matrices[0, 0].reshape(2, 6, 8, 8), theirs.transpose(2, 3, 0, 1), atol=1e-15
    )
    names = {
        "contrast": "contrast",
        "dissimilarity": "dissimilarity",
        "inverse_difference_moment": "homogeneity",
        "angular_second_moment": "ASM",
        "correlation": "correlation",
        "joint_average": "mean",
        "joint_variance": "variance",
        "joint_entropy": "entropy",
    }
    for name, other in names.items():
        expected = graycoprops(theirs, other)
        found = result.values[0, 0, :-1, NAMES.index(name)].reshape(2, 6)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12, err_msg=name)
        assert float(result.features[name]) == pytest.approx(expected.mean(), rel=1e-9)


def test_distance_two_at_45_degrees_is_two_rows_and_two_columns_but_in_scikit_image():
    assert offset_of(2, 45, RULES["haralick"]) == offset_of(2, 45, RULES["ibsi"]) == (-2, 2)
    assert offset_of(2, 45, RULES["scikit-image"]) == (1, 1)
    assert offset_of(2, 135, RULES["haralick"]) == (-2, -2)
    assert offset_of(3, 180, RULES["haralick"]) == (0, -3)
    with pytest.raises(opsin.InputError, match="scikit-image, which rounds"):
        offset_of(2, 30, RULES["haralick"])


def test_haralicks_numbers_name_fourteen_features():
    assert sorted(HARALICK.values()) == list(range(1, 15))
    assert set(HARALICK) < set(NAMES)


def test_levels_of_equal_width_of_the_range_and_of_equal_shares():
    values = torch.tensor([[0.0, 0.1, 0.25, 0.5], [0.75, 0.5, 1.0, 0.3]], dtype=torch.float64)
    everywhere = torch.ones_like(values, dtype=torch.bool)
    assert Levels(4).of(values, everywhere).tolist() == [[0, 0, 1, 2], [3, 2, 3, 1]]
    assert Levels(4, low=0.2, high=0.6).of(values, everywhere).tolist() == [[0, 0, 0, 3], [3, 3, 3, 1]]
    inside = values > 0.2
    ranged = Levels(3, "range").of(values, inside)
    assert ranged.tolist() == [[-1, -1, 0, 1], [2, 1, 2, 0]]
    shared = Levels(4, "share").of(values, everywhere)
    assert shared.tolist() == [[0, 0, 1, 2], [3, 2, 3, 1]]
    many = torch.rand(30, 40, generator=torch.Generator().manual_seed(0))
    counts = Levels(8, "share").of(many, torch.ones_like(many, dtype=torch.bool)).flatten().bincount()
    assert counts.tolist() == [150] * 8


@pytest.mark.parametrize("bits", [3, 5, 6])
def test_levels_of_bytes_are_their_first_bits_in_any_precision(bits):
    for dtype in (torch.float32, torch.float64):
        values = torch.arange(256, dtype=dtype)[None] / 256
        levels = Levels(2**bits).of(values, torch.ones_like(values, dtype=torch.bool))
        assert levels[0].tolist() == [value >> (8 - bits) for value in range(256)]


def test_colours_are_channels_of_their_own():
    image = nets.images(1, 9, 8)
    result = opsin.glcm(image, levels=5, colour="channels")
    assert result.channels == ("red", "green", "blue")
    for index in range(3):
        alone = opsin.glcm(image[:, index : index + 1].expand(-1, 3, -1, -1).contiguous(), levels=5)
        assert torch.equal(result.matrices[:, index], alone.matrices[:, 0])


def test_an_image_of_one_level_has_defined_features():
    result = opsin.glcm(torch.full((1, 3, 6, 6), 0.4), levels=4)
    expected = {"correlation": 1, "maximal_correlation": 1, "information_correlation_1": 0, "contrast": 0}
    for name, value in expected.items():
        assert float(result.features[name]) == value
    assert any("1 of 4 levels" in note for note in result.record.notes)


def test_writes_a_page_and_a_table(tmp_path):
    result = opsin.glcm(nets.images(2), levels=4)
    result.save(tmp_path / "out")
    text = (tmp_path / "out" / "features.csv").read_text("utf-8")
    rows = list(csv.reader(text.splitlines()))
    assert rows[0] == ["image", "channel", "feature", *result.columns]
    assert len(rows) == 1 + 2 * len(NAMES)
    assert float(rows[1][-1]) == float(result.features[NAMES[0]][0])
    facts = json.loads((tmp_path / "out" / "facts.json").read_text("utf-8"))
    contrast = facts["images"][1]["brightness"]["up 1, left 1"]["contrast"]
    assert contrast == float(result.values[1, 0, 3, NAMES.index("contrast")])
    assert "angular second moment" in (tmp_path / "out" / "index.html").read_text("utf-8")


def test_a_page_has_the_images_in_their_order():
    shots = opsin.glcm(nets.images(11, 8, 8), levels=2, angles="0").findings().shots
    assert list(dict.fromkeys(shot.group for shot in shots)) == [f"image {index}" for index in range(11)]
    assert [shot.caption for shot in shots[:3]] == ["photo", "levels", "right 1"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"distances": "0"}, "at least 1"),
        ({"distances": "one"}, "numbers with commas"),
        ({"distances": "20"}, "leads out"),
        ({"angles": "0,180", "distances": "1,1"}, "twice"),
        ({"angles": "30"}, "multiple of 45"),
        ({"offsets": "1"}, "pairs"),
        ({"offsets": "0,0"}, "to itself"),
        ({"low": 0.5, "cut": "share"}, "leave them out"),
        ({"low": 0.5, "high": 0.5}, "below high"),
        ({"cut": "share", "levels": 256, "mask": torch.ones(1, 3, 16, 16).tril(-12)}, "too few for 256"),
        ({"mask": torch.zeros(1, 3, 16, 16)}, "leaves nothing"),
        ({"mask": torch.eye(16)[0].expand(1, 3, 16, 16)}, "no two pixels at an offset of 0,1"),
        ({"mask": torch.ones(1, 3, 8, 8)}, "8x8"),
        ({"mask": torch.ones(3, 3, 16, 16)}, "3 masks for 2"),
    ],
)
def test_what_cannot_be_counted_is_refused(settings, said):
    with pytest.raises(opsin.InputError, match=said):
        opsin.glcm(nets.images(2), **settings)


# --- in windows


def windowed(levels, side, offsets, count, *, symmetric):
    """The matrices in every window by a loop."""
    half, found = side // 2, {}
    for row, column in product(*map(range, levels.shape)):
        part = levels[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
        found[row, column] = [counted(part, offset, count, symmetric=symmetric) for offset in offsets]
    return found


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("over", ["merged", "average"])
@pytest.mark.parametrize("masked", [False, True])
def test_every_window_has_the_features_of_its_own_matrix(symmetric, over, masked):
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 4, (7, 9), generator=generator)
    if masked:
        levels[torch.rand(7, 9, generator=generator) < 0.4] = -1
    offsets = ((0, 1), (-1, 1), (2, 0))
    windows = Windows(NAMES, 3, offsets, 4, RULES["ibsi"], symmetric, over)
    found = torch.cat([windows.band(levels, *rows) for rows in ((0, 3), (3, 4), (4, 7))], 1)
    for place, counts in windowed(levels.numpy(), 3, offsets, 4, symmetric=symmetric).items():
        several = [sum(counts)] if over == "merged" else counts
        each = [measured(torch.tensor(one)) for one in several if one.sum()]
        for index, name in enumerate(NAMES):
            expected = np.mean([float(one[name]) for one in each]) if each else np.nan
            got = float(found[index, place[0], place[1]])
            assert got == pytest.approx(expected, rel=1e-7, abs=1e-7, nan_ok=True), name  # roots of rounding
    for name in NAMES:  # asked for by itself, it may be found in a shorter way
        alone = Windows((name,), 3, offsets, 4, RULES["ibsi"], symmetric, over).band(levels, 0, 7)
        torch.testing.assert_close(
            alone[0], found[NAMES.index(name)], rtol=1e-7, atol=1e-7, equal_nan=True, msg=name
        )


@pytest.mark.parametrize("feature", ["contrast", "correlation"])
def test_a_map_is_scikit_images_loop(feature):
    image = nets.images(1, 10, 11, seed=2)[:, :1].expand(-1, 3, -1, -1)
    found = opsin.glcm_map(image, feature=feature, window=5, convention="scikit-image", angles="0,45")
    grey = Levels(8).of(image[0, 0], torch.ones(10, 11, dtype=torch.bool)).numpy().astype(np.uint8)
    for row, column in product(range(10), range(11)):
        part = grey[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
        counts = graycomatrix(part, [1], [0, np.pi / 4], levels=8, symmetric=True)
        merged = counts.sum(3, keepdims=True).astype(float)
        expected = graycoprops(merged / merged.sum(), feature)[0, 0]
        assert float(found.values[0, 0, row, column]) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_a_map_of_many_bands_is_that_of_one(monkeypatch):
    image = nets.images(1, 40, 21)
    whole = opsin.glcm_map(image, window=5, feature="joint_entropy").values
    monkeypatch.setattr("opsin.statistics.windows.BAND", 21 * 7)
    assert torch.equal(opsin.glcm_map(image, window=5, feature="joint_entropy").values, whole)
    monkeypatch.setattr("opsin.statistics.windows.MATRICES", 64 * 21 * 3)
    few = opsin.glcm_map(image, window=5, feature="maximal_correlation").values
    monkeypatch.undo()
    torch.testing.assert_close(opsin.glcm_map(image, window=5, feature="maximal_correlation").values, few)


def test_there_is_no_value_outside_the_mask_and_the_record_says_so():
    mask = torch.zeros(1, 3, 16, 16)
    mask[..., :8] = 1
    result = opsin.glcm_map(nets.images(1), window=3, mask=mask)
    assert result.values[..., 8:].isnan().all()
    assert result.values[..., :8].isfinite().all()
    assert any("no value (NaN)" in note for note in result.record.notes)
    alone = opsin.glcm_map(nets.images(1)[..., :8].contiguous(), window=3)
    torch.testing.assert_close(result.values[..., :8], alone.values)


@pytest.mark.parametrize(
    ("settings", "said"), [({"window": 4}, "odd"), ({"window": 3, "distances": "3"}, "3,0|0,3")]
)
def test_a_window_without_a_middle_or_without_pairs_is_refused(settings, said):
    with pytest.raises(opsin.InputError, match=said):
        opsin.glcm_map(nets.images(1), **settings)


def test_the_offsets_of_texts():
    assert offsets_of("1,2", "0,90", None, RULES["ibsi"]) == ((0, 1), (-1, 0), (0, 2), (-2, 0))
    assert offsets_of("1", "0", "3,-2; 0,1", RULES["ibsi"]) == ((3, -2), (0, 1))


def test_counts_may_be_taken_of_a_batch_of_levels():
    levels = torch.randint(-1, 5, (3, 8, 9), generator=torch.Generator().manual_seed(1))
    found = matrices(levels, [(1, -1)], 5, symmetric=False)
    for one, got in zip(levels, found, strict=True):
        np.testing.assert_array_equal(got[0], counted(one.numpy(), (1, -1), 5, symmetric=False))


# --- beside mahotas


def test_mahotas_agrees_but_for_f10_and_f14():
    features_of = pytest.importorskip("mahotas.features", exc_type=ImportError)
    grey = np.array([[int(c) for c in row] for row in PHANTOM[0].split()])
    directions = [(0, 1), (1, 1), (1, 0), (1, -1)]  # mahotas' order
    counts = matrices(torch.tensor(grey)[None], directions, 7, symmetric=True)[0]
    ours = measured(counts)
    theirs = features_of.haralick(grey, compute_14th_feature=True).T
    variance = features_of.haralick(grey, use_x_minus_y_variance=True).T[9]
    for name, number in HARALICK.items():
        found, expected = ours[name].numpy(), theirs[number - 1]
        if name == "sum_average":  # its levels are numbered from 0
            found = found - 2
        if name == "difference_variance":  # by default the variance of the numbers p_d, not of k
            assert (np.abs(expected) < 0.1 * found).all()
            np.testing.assert_allclose(found, variance, rtol=1e-9)
        elif name == "maximal_correlation":  # eigenvalues of the correlations of p's rows, not of Q
            assert (np.abs(expected - found) > 0.05).all()
            for share, value in zip(counts / counts.sum((-1, -2), keepdim=True), found, strict=True):
                assert slow(share.numpy(), 1, np.log2)[name] == pytest.approx(value, rel=1e-6)
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-9, err_msg=name)
