"""Results that are not finite say so, with the place where it begins."""

import pytest
import torch
from torch import Tensor, nn

import nets
import opsin
from hostile import networks
from opsin.network.finite import origin
from opsin.results.gallery import Gallery, Panel
from opsin.results.heatmap import Heatmap
from opsin.results.pictures import Picture, Pictures

IMAGE = nets.images(1)


class Between(nets.Plain):
    """Takes the logarithm of a negative number outside of any layer."""

    def __init__(self, *, before: str) -> None:
        super().__init__()
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        for name, module in self.named_children():
            if name == self.before:
                x = (x - 1e3).log()
            x = module(x)
        return (x - 1e3).log() if self.before == "output" else x


class Keyword(nn.Module):
    """Hands on its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = networks.Giving(lambda x: x)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x=(x - 1e3).log())


class ByName(networks.Giving):
    def forward(self, *, x: Tensor) -> Tensor:
        return x


def test_the_layer_where_it_begins_is_the_first_whose_input_is_finite():
    for make in networks.NOT_FINITE.values():
        assert origin(nets.model(make()), IMAGE) == "in layer 'mid' (Giving)"
    assert not origin(nets.model(nets.plain()), IMAGE)


def test_the_innermost_of_nested_layers_is_named():
    inside = nn.Sequential(nn.ReLU(), nn.Sequential(networks.Giving(lambda x: x / 0)))
    assert origin(nets.model(networks.around(mid=inside)), IMAGE) == "in layer 'mid.1.0' (Giving)"


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("conv1", "between the image and layer 'conv1'"),
        ("conv2", "between layer 'pool' and layer 'conv2'"),
        ("output", "between layer 'fc' and the output"),
    ],
)
def test_what_begins_outside_of_any_layer_lies_between_two(before, said):
    assert origin(nets.model(nets.seeded(Between(before=before))), IMAGE) == said


def test_what_a_layer_is_given_by_name_is_its_input_too():
    keyword = Keyword()
    keyword.inner = ByName(lambda x: x)
    model = nets.model(networks.around(mid=keyword))
    assert origin(model, IMAGE) == "between layer 'pool' and layer 'mid.inner'"


def test_only_the_images_on_which_it_begins_are_named():
    images = nets.images(3)
    means = nets.model(nets.plain()).run(images, ("pool",))["pool"].mean((1, 2, 3), keepdim=True)
    least, _, most = means.flatten().sort().values
    beyond = float(least + most) / 2
    model = nets.model(
        networks.around(
            mid=networks.Giving(lambda x: x.where(x.mean((1, 2, 3), keepdim=True) < beyond, torch.nan))
        )
    )
    result = opsin.grad_cam(model, images, target=1, layer="conv2")
    (said,) = [note for note in result.record.notes if "NaN" in note]
    named = ", ".join(str(index) for index, mean in enumerate(means.flatten()) if mean >= beyond)
    assert said.endswith(f"; on image {named} they begin in layer 'mid' (Giving)")


class NoSlope(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context, signal: Tensor) -> Tensor:
        return signal * torch.nan


def test_a_gradient_that_is_not_finite_is_told_where_every_layer_is():
    result = opsin.saliency(nets.model(networks.around(mid=networks.Giving(NoSlope.apply))), IMAGE, target=1)
    (said,) = [note for note in result.record.notes if "NaN" in note]
    assert said == (
        "Caution: NaN or infinite numbers in the map of image 0, extras['gradient']; "
        "every layer is finite: they begin in the target, the gradient or changed images"
    )


def test_a_score_that_is_not_finite_is_told_although_the_map_is():
    result = opsin.saliency(nets.model(networks.NOT_FINITE["NaN"]()), IMAGE, target=1)
    assert result.values.isfinite().all()
    assert any(
        "in the target's score; on image 0 they begin in layer 'mid'" in n for n in result.record.notes
    )


def test_finite_results_of_finite_scores_say_nothing():
    result = opsin.saliency(nets.model(networks.NOT_FINITE["NaN"]()), IMAGE, target="conv1:1")
    assert not result.not_finite()
    assert not any("NaN" in note for note in result.record.notes)


def test_results_name_what_of_them_is_not_finite():
    good, bad = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), torch.inf)
    heatmap = Heatmap(torch.cat([good, bad]), torch.zeros(2, 3, 4, 4), True, False, {"a": bad, "b": good})
    assert heatmap.not_finite() == ["the map of image 1", "extras['a']"]
    gallery = Gallery((Panel("g", "t", "c", good), Panel("g", "u", "c", bad * torch.nan)))
    assert gallery.not_finite() == ["g: u"]
    made, given = (Picture(name, "", torch.full((3, 2, 2), torch.nan), made=name == "p") for name in "pq")
    pictures = Pictures(
        (made, given), numbers={"scores": torch.tensor([1.0, torch.nan]), "loss": torch.ones(2)}
    )
    assert pictures.not_finite() == ["the picture 'p'", "scores"]


def test_a_page_shows_no_classes_of_an_output_that_is_not_finite(tmp_path):
    model = nets.model(networks.NOT_FINITE["NaN"]())
    report = opsin.explain(model, nets.images(1, dtype=torch.float32))
    page = report.html()
    (view,) = report.sections[0].views
    assert not view.top
    assert "nan %" not in page
    assert "output is NaN or infinite: this begins in layer &#39;mid&#39; (Giving)" in page
    assert page.count("they begin in layer &#39;mid&#39;") >= len(view.answers) - 1
    report.save(tmp_path / "out", values=True)
    loaded = opsin.Result.load(tmp_path / "out" / "photo 0" / "grad_cam")
    assert any("in layer 'mid'" in note for note in loaded.record.notes)


def test_a_climbed_picture_is_given_no_class_of_an_output_that_is_not_finite():
    result = opsin.feature_visualization(nets.model(networks.NOT_FINITE["NaN"]()), target="conv1:1", steps=1)
    assert "sees" not in result.panels[0].caption
    other = opsin.feature_visualization(nets.model(nets.plain()), target="conv1:1", steps=1)
    assert "sees" in other.panels[0].caption
