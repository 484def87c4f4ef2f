import numpy as np
import pytest
import torch

import nets
import opsin
import reference
from opsin import objectives
from opsin.objectives import parsing
from opsin.objectives.units import STRONGEST

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(2)
RUN = MODEL.run(IMAGES, ("output", "conv1", "conv2", "relu2", "fc"))
BY_HAND = [reference.forward(NET, reference.array(image)) for image in IMAGES]


def scores(target: object, model: opsin.Model = MODEL) -> list[float]:
    objective = parsing.resolve(target, model, len(IMAGES))
    return objective.score(model.run(IMAGES, objective.layers)).tolist()


def by_hand(score) -> list[object]:
    return [pytest.approx(score(a), rel=1e-9) for a in BY_HAND]


# --- what can be asked


def test_a_class_is_its_score_before_the_softmax():
    assert scores(3) == by_hand(lambda a: a["output"][3])
    assert scores(opsin.logit(3)) == scores(3)


def test_a_channel_is_its_mean_over_positions():
    assert scores("conv2:1") == by_hand(lambda a: a["conv2"][1].mean())
    assert scores(opsin.channel("conv2", 1)) == scores("conv2:1")


def test_a_unit_is_one_channel_at_a_row_and_a_column():
    assert scores("conv1:2@3,5") == by_hand(lambda a: a["conv1"][2, 3, 5])
    assert scores(opsin.unit("conv1", 2, 3, 5)) == scores("conv1:2@3,5")


def test_a_channel_of_a_layer_without_positions_is_its_value():
    assert scores("fc:4") == by_hand(lambda a: a["output"][4])


def test_channels_are_found_however_the_network_lays_them_out():
    model = nets.model(nets.channels_last())
    run = model.run(IMAGES, ("relu",))
    assert scores("relu:7", model) == pytest.approx(run["relu"][..., 7].mean((1, 2)).tolist())
    assert scores("relu:7@1,2", model) == run["relu"][:, 1, 2, 7].tolist()
    model = nets.model(nets.vit())
    run = model.run(IMAGES, ("blocks.0",))
    assert (
        scores("blocks.0:3@1,2", model) == run["blocks.0"][:, 1 + 4 * 1 + 2, 3].tolist()
    )  # behind the class token
    assert scores("blocks.0:3", model) == pytest.approx(run["blocks.0"][:, 1:, 3].mean(1).tolist())


def test_a_repeated_layer_is_asked_by_its_call():
    model = nets.model(nets.reused())
    assert scores("relu1#2:3@1,1", model) == by_hand(lambda a: a["relu2"][3, 1, 1])


def test_nothing_asked_is_the_predicted_class_of_each_image():
    assert scores(None) == by_hand(lambda a: a["output"].max())
    assert scores("predicted class") == scores(None)


def test_the_predicted_class_is_one_class_even_in_a_tie():
    model = nets.model(nets.chain(conv=nets.conv([[[[w]], [[0.0]], [[0.0]]] for w in (1.0, 3.0, 3.0)])))
    run = model.run(torch.ones(1, 3, 16, 16, dtype=torch.float64), ("conv",), start="conv")
    run["output"] = run["conv"].mean((2, 3))
    (gradient,) = torch.autograd.grad(objectives.predicted().score(run).sum(), run["output"])
    assert gradient.tolist() == [[0, 1, 0]]


def test_the_strongest_unit_is_the_greatest_of_a_layer_in_each_image():
    assert scores("strongest(conv2)") == by_hand(lambda a: a["conv2"].max())
    assert scores("strongest(fc)") == by_hand(lambda a: a["output"].max())
    assert scores(objectives.strongest("conv2")) == scores("strongest(conv2)")


def test_the_strongest_unit_without_a_layer_is_that_of_the_default_layer():
    assert MODEL.default_layer == "relu2"
    for target in ("strongest unit", STRONGEST):
        assert parsing.resolve(target, MODEL, 2).name == "strongest(relu2)"
        assert scores(target) == by_hand(lambda a: a["relu2"].max())
    assert scores("2*strongest unit - 3") == by_hand(lambda a: 2 * a["relu2"].max() - a["output"][3])
    assert scores(["strongest unit", 2]) == [scores("strongest unit")[0], scores(2)[1]]


def test_the_strongest_unit_in_arithmetic_needs_its_layer():
    with pytest.raises(opsin.InputError, match=r"strongest\(LAYER\)"):
        scores(2 * STRONGEST)


def test_the_strongest_unit_stays_the_one_that_it_is_in_its_image():
    for target in ("strongest(conv2)", "strongest(fc)"):
        objective = parsing.resolve(target, MODEL, 2)
        first, second = (objective.for_image(RUN, index) for index in range(2))
        assert first.name != second.name
        assert first.score(RUN)[0] == objective.score(RUN)[0]
        assert second.score(RUN)[1] == objective.score(RUN)[1]
        assert parsing.parse(first.name, MODEL).score(RUN)[0] == objective.score(RUN)[0]


def test_the_strongest_unit_is_one_even_in_a_tie():
    run = MODEL.run(IMAGES, ("conv2",), start="conv2")
    run["conv2"].data.fill_(1.0)
    (gradient,) = torch.autograd.grad(objectives.strongest("conv2").score(run).sum(), run["conv2"])
    assert (gradient != 0).flatten(1).sum(1).tolist() == [1, 1]


def test_an_objective_of_ones_own_is_used_as_it_is():
    own = opsin.Objective("brightness", ("image",), lambda a: a["image"].mean((1, 2, 3)))
    assert parsing.resolve(own, MODEL, 2) is own
    assert scores(own) == by_hand(lambda a: a["image"].mean())


# --- arithmetic


def test_objectives_add_subtract_and_scale():
    one, other = opsin.channel("conv2", 1), opsin.logit(3)
    first, second = np.array(scores(one)), np.array(scores(other))
    for objective, expected in (
        (one + other, first + second),
        (one - other, first - second),
        (2.5 * one, 2.5 * first),
        (one * 2.5, 2.5 * first),
        (-one, -first),
        (one - (other - one), 2 * first - second),
        (2 * (one - other) + one, 3 * first - 2 * second),
    ):
        assert scores(objective) == pytest.approx(expected.tolist(), rel=1e-9)


def test_a_sum_needs_the_layers_of_both_once():
    both = opsin.channel("conv2", 1) + opsin.logit(3) - opsin.unit("conv2", 0, 1, 1)
    assert both.layers == ("conv2", "output")


def test_names_read_as_they_are_computed():
    one, other = opsin.channel("conv2", 1), opsin.logit(3)
    assert (one + other).name == "conv2:1 + 3"
    assert (2 * one - 0.5 * other).name == "2*conv2:1 - 0.5*3"
    assert (one - (other - one)).name == "conv2:1 - (3 - conv2:1)"
    assert (2 * (one + other)).name == "2*(conv2:1 + 3)"
    assert opsin.unit("conv1", 2, 3, 5).name == "conv1:2@3,5"


# --- the text form


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("2", lambda a: a["output"][2]),
        (" 2 ", lambda a: a["output"][2]),
        ("conv2:1", lambda a: a["conv2"][1].mean()),
        ("conv1:2@3,5", lambda a: a["conv1"][2, 3, 5]),
        ("1.5*conv2:1 - conv2:3", lambda a: 1.5 * a["conv2"][1].mean() - a["conv2"][3].mean()),
        ("-1*0", lambda a: -a["output"][0]),
        (".5*0 + 2*beagle - goldfish", lambda a: 0.5 * a["output"][0] + 2 * a["output"][2] - a["output"][3]),
        ("tiger cat - tiger shark", lambda a: a["output"][1] - a["output"][4]),
        ("1e-3*0", lambda a: 0.001 * a["output"][0]),
        ("1e3*0", lambda a: 1000 * a["output"][0]),
        ("0 - 1 - 2", lambda a: a["output"][0] - a["output"][1] - a["output"][2]),
    ],
)
def test_texts_mean_what_they_say(text, score):
    assert scores(text) == by_hand(score)


@pytest.mark.parametrize(
    "text",
    [
        "beagle",
        "3",
        "conv2:1",
        "conv1:2@3,5",
        "1.5*conv2:1 - conv2:3",
        "2*tiger cat + 0.5*beagle - relu2:0@1,1",
        "-1*0",
        "1000000*conv2:1",
        "0 - 1",
        "tabby cat - tiger cat - (beagle - goldfish)",
        "0.00001*conv2:1",
        "predicted class",
    ],
)
def test_the_name_that_the_record_keeps_means_the_same_again(text):
    objective = parsing.parse(text, MODEL)
    again = parsing.parse(objective.name, MODEL)
    assert again.name == objective.name
    assert scores(again) == scores(text)


@pytest.mark.parametrize(
    "text", ["", "  ", "0 + ", "- 0", "0 - - 1", "2*", "*0", "conv2:", "conv2:x", "conv2:1@3", ":3"]
)
def test_texts_that_mean_nothing_are_refused(text):
    for model in (MODEL, nets.model(nets.plain(), labels=None)):
        with pytest.raises(opsin.InputError):
            parsing.parse(text, model)


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_text_is_called_empty(text):
    with pytest.raises(opsin.InputError, match="empty target"):
        parsing.parse(text, MODEL)


def test_a_layer_alone_asks_for_its_channel():
    with pytest.raises(opsin.InputError, match=r"'conv2' is a layer.*conv2:0"):
        parsing.parse("conv2", MODEL)


# --- class names


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("tabby, tabby cat", 0),
        ("tabby", 0),
        ("tabby cat", 0),
        ("TABBY Cat", 0),
        ("Carassius auratus", 3),
        ("gold", 3),
        ("galeocerdo", 4),
        ("shark", 4),
        ("agl", 2),
        ("4", 4),
        ("4 (tiger shark)", 4),
    ],
)
def test_a_class_is_named_in_full_by_a_synonym_or_by_a_unique_part(text, index):
    assert parsing.parse(text, MODEL).name.split()[0] == str(index)
    assert scores(text) == scores(index)


@pytest.mark.parametrize(("text", "candidates"), [("tiger", (1, 4)), ("cat", (0, 1)), ("a", (0, 1, 2, 3, 4))])
def test_an_ambiguous_name_lists_its_candidates(text, candidates):
    with pytest.raises(opsin.InputError, match=f"{text!r} is ambiguous") as caught:
        parsing.parse(text, MODEL)
    for index, label in enumerate(nets.LABELS):
        assert (f"{index} ({label})" in str(caught.value)) is (index in candidates)


def test_a_synonym_comes_before_a_part_and_a_whole_word_before_a_piece_of_one():
    labels = ["house cat, cat", "tiger cat", "catamaran", "boat", "cats"]
    model = nets.model(nets.plain(), labels=labels)
    assert parsing.parse("cat", model).name.startswith("0 ")
    assert parsing.parse("cats", model).name.startswith("4 ")
    assert parsing.parse("tiger", model).name.startswith("1 ")
    labels = ["a crane, bird", "crane machine", "crabapple", "apple", "x"]
    model = nets.model(nets.plain(), labels=labels)
    assert parsing.parse("apple", model).name.startswith("3 ")
    with pytest.raises(opsin.InputError, match=r"0 \(a crane, bird\), 1 \(crane machine\)"):
        parsing.parse("crane", model)


def test_many_candidates_are_counted():
    model = nets.model(nets.plain(), labels=[f"cat number {n}" for n in range(20)])
    with pytest.raises(opsin.InputError, match="and 8 more"):
        parsing.parse("cat", model)


def test_a_name_with_a_sign_in_it_is_a_name():
    labels = ["black - and - tan", "black", "tan", "3 + 4", "x"]
    model = nets.model(nets.plain(), labels=labels)
    assert scores("black - and - tan", model) == scores(0)
    assert scores("3 + 4", model) == scores(3)
    assert scores("1 - tan", model) == scores("1 - 2")


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(opsin.InputError, match=r"unknown class 'beegle'; nearest: beagle"):
        parsing.parse("beegle", MODEL)
    with pytest.raises(opsin.InputError, match=r"unknown class 'goldfisch'; nearest: goldfish"):
        parsing.parse("2*goldfisch - 0", MODEL)


def test_a_name_is_refused_without_a_forward():
    calls = []

    class Counting(nets.Plain):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    model = nets.model(nets.seeded(Counting()))
    for text in ("beegle", "2*beegle - 0", "conv2", "conv2:x", "beagle_dog", "blur(3)", "class 7"):
        with pytest.raises(opsin.InputError):
            opsin.saliency(model, IMAGES, target=text)
    assert not calls


@pytest.mark.parametrize("text", ["conv2:x", "conv2:", "conv2:-1", "conv2:1@3", "conv2:1@3x4", "relu1#1:one"])
def test_a_layer_with_something_else_than_a_channel_shows_how_to_name_one(text):
    layer = text.partition(":")[0]
    with pytest.raises(
        opsin.InputError, match=rf"no channel of layer '{layer}': write {layer}:0 .*{layer}:0@3,4"
    ):
        parsing.parse(text, MODEL)


def test_without_class_names_a_class_is_an_index():
    model = nets.model(nets.plain(), labels=None)
    assert scores("3", model) == scores(3)
    with pytest.raises(opsin.InputError, match="no class names"):
        parsing.parse("beagle", model)


# --- ranges


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (5, "class 5 does not exist.*0 to 4"),
        (-1, "class -1 does not exist.*0 to 4"),
        ("7", "class 7 does not exist.*0 to 4"),
        ("conv2:6", "'conv2' has channels 0 to 5, not 6"),
        ("conv2:1@8,0", "8,0 is outside layer 'conv2', which is 8x8"),
        ("conv2:1@0,8", "0,8 is outside"),
        ("fc:1@0,0", "'fc' has no positions: write fc:1"),
        ("fc:5", "'fc' has channels 0 to 4, not 5"),
        ("conv3:1", "unknown layer 'conv3'; nearest: conv"),
        (opsin.channel("conv2", -1), "channels 0 to 5, not -1"),
        (opsin.unit("conv2", 1, -1, 0), "-1,0 is outside"),
    ],
)
def test_what_is_out_of_range_is_refused_with_the_range(target, said):
    with pytest.raises(opsin.InputError, match=said):
        scores(target)


@pytest.mark.parametrize("target", [1.5, True, object(), {"class": 1}])
def test_what_is_no_target_is_refused(target):
    with pytest.raises(opsin.InputError, match="a target must be"):
        parsing.resolve(target, MODEL, 2)


def test_a_class_needs_a_row_of_classes():
    net = nets.chain(conv=nets.conv([[[[1.0]], [[0.0]], [[0.0]]]]))
    with pytest.raises(
        opsin.InputError, match=r"output of \(n, classes\), this network gives \(2, 1, 16, 16\)"
    ):
        scores(0, nets.model(net, labels=None))


# --- one for each image


def test_each_image_may_have_its_own_target():
    assert scores([2, "conv2:1"]) == [scores(2)[0], scores("conv2:1")[1]]
    assert scores(["beagle", None]) == [scores(2)[0], scores(None)[1]]
    mixed = parsing.resolve((opsin.logit(1), "conv2:1 - 0"), MODEL, 2)
    assert mixed.layers == ("output", "conv2")


@pytest.mark.parametrize("targets", [[0], [0, 1, 2], []])
def test_the_number_of_targets_is_that_of_the_images(targets):
    with pytest.raises(opsin.InputError, match=f"{len(targets)} targets for 2 images"):
        parsing.resolve(targets, MODEL, 2)


@pytest.mark.parametrize(
    "target",
    [
        None,
        2,
        "conv2:1",
        [None, 3],
        ["beagle", None],
        objectives.predicted() - 2 * opsin.logit(2),
        -objectives.predicted(),
        opsin.logit(2) + objectives.each([opsin.logit(0), objectives.predicted()]),
    ],
)
def test_for_one_image_it_asks_the_same_of_any_batch(target):
    objective = parsing.resolve(target, MODEL, 2)
    run = MODEL.run(IMAGES, objective.layers)
    for index in range(2):
        alone = objective.for_image(run, index)
        assert alone.score(run)[index] == objective.score(run)[index]
        several = MODEL.run(IMAGES[index].expand(3, -1, -1, -1), alone.layers)
        expected = objective.score(run)[index].expand(3)
        torch.testing.assert_close(alone.score(several), expected, rtol=1e-9, atol=1e-9)


def test_the_predicted_class_is_pinned_to_the_image_that_it_was_predicted_for():
    predicted = RUN["output"].argmax(1).tolist()
    assert predicted[0] != predicted[1]
    pinned = objectives.pinned(objectives.predicted(), RUN)
    swapped = MODEL.run(IMAGES.flip(0))
    expected = [swapped["output"][0, predicted[0]].item(), swapped["output"][1, predicted[1]].item()]
    assert pinned.score(swapped).tolist() == expected
    assert expected != swapped["output"].amax(1).tolist()


def test_scores_can_be_differentiated_for_each_image_alone():
    objective = parsing.resolve([2, "conv2:1"], MODEL, 2)
    run = MODEL.run(IMAGES, objective.layers, start="image")
    (gradient,) = torch.autograd.grad(objective.score(run)[0], run["image"])
    assert gradient[0].any()
    assert not gradient[1].any()


@pytest.mark.parametrize("make", [np.int64, torch.tensor, np.array])
def test_indices_of_other_libraries_are_targets(make):
    assert parsing.resolve(make(3), nets.model(nets.plain())).name.startswith("3 ")
    if make is not np.int64:
        both = parsing.resolve(make([3, 1]), nets.model(nets.plain()), 2)
        assert both.name.split("; ")[1].startswith("1 ")


# --- what pictures are climbed towards


MAPS = {name: RUN[name].numpy() for name in ("conv1", "conv2", "relu2")}
VECTOR = [1, 0, -2, 0.5, 0, 3]


def grams(maps):
    """G_ij = Σ_k F_ik F_jk / K of every image, summed up position by position."""
    n, c, h, w = maps.shape
    found = np.zeros((n, c, c))
    for image in range(n):
        for y in range(h):
            for x in range(w):
                found[image] += np.outer(maps[image, :, y, x], maps[image, :, y, x]) / (h * w)
    return found


def unlike(maps):
    """Minus the mean cosine of every image's Gram matrix with the others'."""
    found = grams(maps).reshape(len(maps), -1)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    others = [[unit[i] @ unit[j] for j in range(len(maps)) if j != i] for i in range(len(maps))]
    return [-np.mean(one) if one else 0 for one in others]


def variation(image, beta):
    total = 0.0
    for channel in image:
        for y in range(channel.shape[0] - 1):
            for x in range(channel.shape[1] - 1):
                right, down = channel[y, x + 1] - channel[y, x], channel[y + 1, x] - channel[y, x]
                total -= (right**2 + down**2) ** (beta / 2)
    return total


def close(values):
    return [pytest.approx(float(value), rel=1e-8, abs=1e-12) for value in values]


PHOTOS = IMAGES.numpy()
FORMULAS = {
    "neuron(conv2, 1)": lambda: MAPS["conv2"][:, 1, 4, 4],
    "neuron(fc, 2)": lambda: [a["output"][2] for a in BY_HAND],
    "direction(conv2, 1, 0, -2, 0.5, 0, 3)": lambda: [
        sum(v * m.mean() for v, m in zip(VECTOR, maps, strict=True)) for maps in MAPS["conv2"]
    ],
    "energy(conv1)": lambda: [(maps**2).mean() / 2 for maps in MAPS["conv1"]],
    "diversity(conv2)": lambda: unlike(MAPS["conv2"]),
    "total_variation(2)": lambda: [variation(image, 2) for image in PHOTOS],
    "total_variation(1.5)": lambda: [variation(image, 1.5) for image in PHOTOS],
    "norm(2)": lambda: [-(image**2).sum() for image in PHOTOS],
    "norm(6)": lambda: [-(image**6).sum() for image in PHOTOS],
    "norm(1.5)": lambda: [-(image**1.5).sum() for image in PHOTOS],
}
every_formula = pytest.mark.parametrize("text", FORMULAS)


@every_formula
def test_a_call_means_its_formula(text):
    assert scores(text) == close(FORMULAS[text]())


@every_formula
def test_a_calls_name_parses_back_to_the_same(text):
    objective = parsing.parse(text, MODEL)
    assert objective.name == text
    assert scores(objective.name) == scores(text)


def test_calls_made_in_python_are_the_ones_that_are_written():
    for text, made in (
        ("neuron(conv2, 1)", opsin.neuron("conv2", 1)),
        ("direction(conv2, 1, 0, -2, 0.5, 0, 3)", opsin.direction("conv2", VECTOR)),
        ("diversity(conv2)", opsin.diversity("conv2")),
        ("total_variation(2)", objectives.total_variation()),
        ("norm(2)", objectives.norm()),
    ):
        assert made.name == text
        assert scores(made) == scores(text)


def test_a_direction_of_many_digits_is_the_same_when_it_is_read_again():
    made = opsin.direction("conv2", [1 / 3, -2 / 7, 1e-9, 123456.789, 0.1, -1 / 9])
    assert scores(made.name) == scores(made)


def test_a_weight_of_many_digits_is_the_same_when_it_is_read_again():
    made = (1 / 3) * opsin.channel("conv2", 1) + 1234567.89 * opsin.logit(3)
    assert scores(made.name) == scores(made)


def test_the_energys_gradient_is_the_activations_over_their_number():
    run = MODEL.run(IMAGES, ("conv2",), start="conv2")
    (gradient,) = torch.autograd.grad(objectives.energy("conv2").score(run).sum(), run["conv2"])
    torch.testing.assert_close(gradient, run["conv2"].detach() / run["conv2"][0].numel())


def test_a_single_picture_is_as_diverse_as_can_be():
    objective = opsin.diversity("conv2")
    assert objective.score(MODEL.run(IMAGES[:1], ("conv2",))).tolist() == pytest.approx([0], abs=1e-12)
    three = MODEL.run(nets.images(3), ("conv2",))
    assert objective.score(three).tolist() == close(unlike(three["conv2"].numpy()))


def test_a_match_is_minus_the_distance_as_a_share_of_what_is_wanted():
    wanted = MODEL.run(nets.images(2, seed=9), ("conv2",))["conv2"]
    for given in (wanted, wanted[:1]):
        found = scores(objectives.match("conv2", given))
        other = given.expand(2, -1, -1, -1).numpy()
        assert found == close(
            [-((m - o) ** 2).sum() / (o**2).sum() for m, o in zip(MAPS["conv2"], other, strict=True)]
        )
    assert scores(objectives.match("conv2", RUN["conv2"])) == [0, 0]


def test_a_content_match_is_minus_half_the_mean_squared_distance():
    wanted = MODEL.run(nets.images(1, seed=9), ("conv2",))["conv2"]
    found = scores(objectives.content_match("conv2", wanted, 3.0))
    assert found == close([-(9 * (m - wanted[0].numpy()) ** 2).mean() / 2 for m in MAPS["conv2"]])


def test_a_dream_match_is_the_mean_product_with_the_guides_best_fitting_features():
    guide = MODEL.run(nets.images(1, 12, 20, seed=9), ("conv2",))["conv2"]
    features = guide[0].flatten(1).numpy()  # (c, hw)
    expected = []
    for maps in MAPS["conv2"]:
        flat = maps.reshape(len(maps), -1)
        best = [max((flat[:, k] @ f, j) for j, f in enumerate(features.T))[0] for k in range(flat.shape[1])]
        expected.append(np.mean(best) / len(maps))  # a mean over channels too
    assert scores(objectives.dream_match("conv2", guide)) == close(expected)


def test_a_gram_matrix_is_the_mean_over_positions_of_products():
    found = objectives.gram(RUN["conv2"])
    np.testing.assert_allclose(found, grams(MAPS["conv2"]), rtol=1e-9, atol=1e-12)
    even = objectives.gram(RUN["conv2"], weight=torch.full((1, 1, 16, 16), 0.3, dtype=torch.float64))
    torch.testing.assert_close(even, found)
    left = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    left[..., :8] = 1
    half = objectives.gram(RUN["conv2"], weight=left)
    np.testing.assert_allclose(half, grams(MAPS["conv2"][..., :4]), rtol=1e-9, atol=1e-12)


def test_a_gram_match_is_minus_the_squared_distance_over_four_times_the_channels_squared():
    wanted = objectives.gram(MODEL.run(nets.images(1, seed=9), ("conv2",))["conv2"])
    for scale in (1.0, 2.5):
        expected = []
        for found in grams(scale * MAPS["conv2"]):
            total = 0.0
            for i in range(6):
                for j in range(6):
                    total += (found[i, j] - float(wanted[0, i, j])) ** 2
            expected.append(-total / (4 * 6**2))
        assert scores(objectives.gram_match("conv2", wanted, scale=scale)) == close(expected)
    assert scores(objectives.gram_match("conv2", wanted)) == scores(
        objectives.gram_match("conv2", wanted, torch.ones(1, 1, 8, 8, dtype=torch.float64))
    )


def test_a_norm_may_be_taken_around_a_colour_and_in_its_unit():
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (nets.MEAN, nets.STD))
    x = (IMAGES.numpy() - mean.numpy()) / std.numpy()
    assert scores(objectives.norm(2, mean, std)) == close([-(one**2).sum() for one in x])


@pytest.mark.parametrize("beta", [1.0, 1.5, 2.0])
def test_priors_have_a_gradient_where_the_image_is_flat(beta):
    flat = torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64)
    for prior in (objectives.total_variation(beta), objectives.norm(beta, 0.5)):
        run = MODEL.run(flat, ("image",), start="image")
        (gradient,) = torch.autograd.grad(prior.score(run).sum(), run["image"])
        assert gradient.isfinite().all()


def test_what_is_a_sum_of_terms_may_be_worked_in_tiles():
    wanted = objectives.gram(RUN["conv2"][:1])
    one, other = objectives.gram_match("conv2", wanted), objectives.content_match("conv2", RUN["conv2"][:1])
    for objective in (one + other, one - 2 * other, -(one + other)):
        assert len(objective.terms) == 2
        assert objective.score(RUN).tolist() == close(
            sum(
                t.score(t.part(RUN[t.layer], objectives.Place(slice(0, 8), slice(0, 8), (8, 8))))
                for t in objective.terms
            )
        )
    assert (one + opsin.logit(1)).terms == (opsin.logit(1) - one).terms == ()


# --- brackets, and one for each picture


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (
            "1.5*(conv2:1 - conv2:3) - (0 + conv1:2@3,5)",
            lambda a: (
                1.5 * (a["conv2"][1].mean() - a["conv2"][3].mean()) - (a["output"][0] + a["conv1"][2, 3, 5])
            ),
        ),
        ("(0 - 1) - (2 - (3 - 4))", lambda a: np.dot(a["output"], [1, -1, -1, 1, -1])),
        ("((2))", lambda a: a["output"][2]),
        ("2*(0 + 3*(1 - 2))", lambda a: np.dot(a["output"], [2, 6, -6, 0, 0])),
        ("-1*(beagle + goldfish)", lambda a: -a["output"][2] - a["output"][3]),
        (
            "neuron(conv2, 1) - 0.5*energy(conv1)",
            lambda a: a["conv2"][1, 4, 4] - (a["conv1"] ** 2).mean() / 4,
        ),
    ],
)
def test_brackets_group(text, score):
    assert scores(text) == by_hand(score)
    assert scores(parsing.parse(text, MODEL).name) == scores(text)


@pytest.mark.parametrize("text", ["(0 + 1", "0 + 1)", "2*(0", "(0))", ")0(", "()", "(0)(1)", "energy(conv1"])
def test_brackets_without_their_other_half_are_refused(text):
    with pytest.raises(opsin.InputError):
        parsing.parse(text, MODEL)


def test_semicolons_ask_something_else_of_every_picture():
    objective = parsing.resolve("beagle; 1.5*(conv2:1 - 0)", MODEL)
    assert objective.count == 2
    assert objective.score(RUN).tolist() == [scores(2)[0], scores("1.5*(conv2:1 - 0)")[1]]
    again = parsing.resolve(objective.name, MODEL)
    assert (again.count, again.name) == (2, objective.name)
    assert scores(again) == scores("beagle; 1.5*(conv2:1 - 0)")
    assert (objective + 2 * opsin.logit(1)).count == 2


@pytest.mark.parametrize("text", ["0; 1", "beagle; conv2:1; 3", "0;", "0; ; 1", "; 0"])
def test_as_many_parts_as_pictures_and_none_empty(text):
    if text == "0; 1":
        assert len(scores(text)) == 2
        return
    with pytest.raises(opsin.InputError, match=r"targets for 2 images|empty target"):
        scores(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("neuron(conv2)", r"neuron\(conv2\) is invalid"),
        ("neuron(conv2, 1, 2)", "is invalid"),
        ("neuron(conv2, x)", "is invalid"),
        ("neuron(conv2, 1.5)", "is invalid"),
        ("neuron(conv2, 9)", "channels 0 to 5, not 9"),
        ("neuron(conv2, -1)", "channels 0 to 5, not -1"),
        ("neuron(conv3, 1)", "unknown layer 'conv3'; nearest: conv"),
        ("neuron()", "layer"),
        ("energy(conv2, 1)", "is invalid"),
        ("energy(nosuch)", "unknown layer 'nosuch'"),
        ("energy()", "layer"),
        ("diversity(conv2, 3)", "is invalid"),
        ("diversity(conv3)", "unknown layer"),
        ("direction(conv2)", "6 channels, but the direction has 0 numbers|is invalid"),
        ("direction(conv2, 1, 2)", "6 channels, but the direction has 2"),
        ("direction(conv2, 1, a)", "is invalid"),
        ("direction(conv3, 1)", "unknown layer"),
        ("norm(1, 2, 3, 4)", "is invalid"),
        ("norm(x)", "is invalid"),
        ("total_variation(1, 2)", "is invalid"),
        ("total_variation(conv1)", "is invalid"),
        ("energi(conv1)", "unknown objective 'energi'; nearest: energy"),
        ("gram(conv1)", "unknown objective 'gram'"),
    ],
)
def test_calls_that_do_not_fit_are_told(text, said):
    with pytest.raises(opsin.InputError, match=said):
        scores(text)


def test_a_class_name_may_have_brackets_and_signs():
    model = nets.model(nets.plain(), labels=["crane (bird)", "crane (machine)", "a - b", "energy (x)", "y"])
    for text in ("crane (bird) - crane (machine)", "2 - 3", "0 - (1 - 2)"):
        objective = parsing.parse(text, model)
        assert scores(parsing.parse(objective.name, model), model) == scores(objective, model)
    assert parsing.parse("0 (crane (bird)) - 1 (crane (machine))", model).name.count("crane") == 2


def test_a_class_name_may_have_a_semicolon():
    model = nets.model(nets.plain(), labels=["cat; house", "dog", "a; b", "x", "y"])
    for text, count in (("cat; house", 1), ("dog; cat", 2), ("0 (cat; house); dog", 2), ("a; b", 1)):
        objective = parsing.resolve(text, model)
        assert objective.count == count
        assert parsing.resolve(objective.name, model).name == objective.name
    made = opsin.class_model(model, [0, 1], steps=1)
    assert [panel.group for panel in made.panels] == ["0 (cat; house)", "1 (dog)"]
    assert opsin.resume(made, model, steps=2).record.arguments["target"] == "0 (cat; house); 1 (dog)"


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_gradient_of_a_gram_matrix_holds_for_signals_that_are_not_symmetric(channels_last):
    form = torch.channels_last if channels_last else torch.contiguous_format
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    maps = maps.contiguous(memory_format=form).requires_grad_()
    assert torch.autograd.gradcheck(objectives.gram, (maps,))  # differentiates every entry by itself


@pytest.mark.parametrize("text", ["-1", "-12", "2*-1", "0 + -1", "-1; 2"])
@pytest.mark.parametrize("labels", [None, nets.LABELS])
def test_a_negative_class_says_what_a_class_index_is(text, labels):
    said = r"-1.? is no class: a class index is a whole number from 0 to 4, the last class"
    with pytest.raises(opsin.InputError, match=said):
        parsing.resolve(text, nets.model(nets.plain(), labels=labels))


def test_a_class_may_be_called_like_a_negative_number():
    model = nets.model(nets.plain(), labels=["-1", "0", "1", "2", "3"])
    assert parsing.resolve("-1", model).name == "0 (-1)"
