import numpy as np
import pytest
import torch
from pytorch_grad_cam import AblationCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

import nets
import opsin

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(2)
MEAN, STD = (torch.tensor(v, dtype=IMAGES.dtype).view(-1, 1, 1) for v in (nets.MEAN, nets.STD))


def scores_without(layer, index, channel=None):
    """The class scores of an image, with one channel of a layer set to zero."""

    def drop(_module, _given, output):
        kept.append(output.detach())
        if channel is None:
            return None
        output = output.clone()
        output[:, channel] = 0
        return output

    kept = []
    handle = NET.get_submodule(layer).register_forward_hook(drop)
    with torch.no_grad():
        scores = NET((IMAGES[index : index + 1] - MEAN) / STD)[0]
    handle.remove()
    return scores.numpy(), kept[0][0].numpy()


def by_hand(layer, index, score):
    whole, maps = scores_without(layer, index)
    total = np.zeros(maps.shape[1:])
    for channel, values in enumerate(maps):
        without, _ = scores_without(layer, index, channel)
        total += (score(whole) - score(without)) / abs(score(whole)) * values
    return np.maximum(total, 0)


@pytest.mark.parametrize("layer", ["conv1", "pool", "conv2", "relu2"])
@pytest.mark.parametrize("target", [0, 3])
def test_weighs_each_map_by_the_share_of_the_score_that_is_lost_without_it(layer, target):
    result = opsin.ablation_cam(MODEL, IMAGES, target=target, layer=layer)
    assert not result.signed
    for index, got in enumerate(result.values[:, 0]):
        expected = by_hand(layer, index, lambda scores: scores[target])
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_the_predicted_class_is_that_of_the_whole_network():
    result = opsin.ablation_cam(MODEL, IMAGES, layer="conv2")
    for index, got in enumerate(result.values[:, 0]):
        chosen = scores_without("conv2", index)[0].argmax()
        expected = by_hand("conv2", index, lambda scores, chosen=chosen: scores[chosen])
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_more_channels_than_fit_a_batch_are_weighed_one_by_one():
    result = opsin.ablation_cam(MODEL, IMAGES[:1], target=1, layer="conv2")
    maps = MODEL.run(IMAGES[:1], ("conv2",)).maps("conv2")
    assert result.extras["weights"].shape == maps.shape[:2]
    again = torch.einsum("nc,nchw->nhw", result.extras["weights"], maps)[:, None].relu()
    assert torch.allclose(again.to(result.values), result.values)


class Raised(nn.Module):
    """The network with every score raised by as much."""

    def __init__(self, by):
        super().__init__()
        self.net, self.by = NET, by

    def forward(self, x):
        return self.net(x) + self.by


@pytest.mark.parametrize("by", [10.0, -10.0])
def test_equals_the_peer_where_the_score_is_above_zero_and_keeps_the_sign_below(by):
    net = Raised(by).eval()
    ours = opsin.ablation_cam(nets.model(net), IMAGES[:1], target=2, layer="net.conv2")
    seen = (IMAGES[:1] - MEAN) / STD
    peer = AblationCAM(net.float(), [net.net.conv2])
    with peer:
        peer.activations_and_grads(seen.float())  # its layer's activations
        weights = peer.get_cam_weights(
            seen.float(),
            net.net.conv2,
            [ClassifierOutputTarget(2)],
            peer.activations_and_grads.activations[0].cpu().numpy(),
            None,
        )
    net.double()
    sign = 1 if by > 0 else -1  # the peer divides by the score, as the paper does
    np.testing.assert_allclose(sign * weights, ours.extras["weights"], rtol=2e-3, atol=1e-6)
