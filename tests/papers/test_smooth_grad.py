import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nets
import opsin
import reference

NET = nets.plain()
MODEL = nets.model(NET)
IMAGES = nets.images(2)


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x**2


def squares() -> opsin.Model:
    """S = 1/2 sum of x^2 over all pixels of a colour: the gradient at a noisy x is the noisy x itself."""
    net = nets.chain(square=Square(), sum=nn.LPPool2d(1, 32), flat=nn.Flatten())
    return nets.model(net, mean=[0.0] * 3, std=[1.0] * 3, labels=None, size=32)


def by_hand(image, target, *, samples, noise, seed):
    image = reference.array(image)
    sigma = noise * (image.max() - image.min())
    generator = torch.Generator().manual_seed(seed)
    total = np.zeros_like(image)
    for _ in range(samples):
        noisy = image + sigma * torch.randn(3, 16, 16, generator=generator, dtype=torch.float64).numpy()
        total += reference.backward(NET, reference.forward(NET, noisy), reference.one_hot(target))
    return total / samples


@pytest.mark.parametrize(("samples", "noise", "seed"), [(1, 0.15, 0), (5, 0.15, 0), (3, 0.5, 7)])
def test_is_the_mean_gradient_at_noisy_copies(samples, noise, seed):
    settings = {"samples": samples, "noise": noise, "seed": seed}
    result = opsin.smooth_grad(MODEL, 0.2 + 0.5 * IMAGES, target=2, **settings)
    assert result.signed
    for image, got in zip(0.2 + 0.5 * IMAGES, result.values, strict=True):
        np.testing.assert_allclose(got, by_hand(image, 2, **settings), rtol=1e-9, atol=1e-12)


def test_without_noise_is_the_gradient():
    got = opsin.smooth_grad(MODEL, IMAGES, target=1, samples=3, noise=0.0).values
    expected = opsin.saliency(MODEL, IMAGES, target=1).extras["gradient"]
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)


def test_the_noise_has_the_standard_deviation_asked_for_as_a_share_of_the_images_range():
    # of S = 1/2 sum x^2 the mean gradient is x + mean noise, which has deviation sigma / sqrt(samples)
    image = 0.25 + 0.5 * nets.images(1, 32)
    image[0, 0, 0, 0], image[0, 0, 0, 1] = 0.25, 0.75  # a range of exactly 1/2
    score = opsin.logit(0) + opsin.logit(1) + opsin.logit(2)
    result = opsin.smooth_grad(squares(), image, target=score, samples=4, noise=0.2)
    error = result.values - image
    assert float(error.std()) == pytest.approx(0.2 * 0.5 / 2, rel=0.05)
    assert float(error.mean()) == pytest.approx(0, abs=0.005)


def test_another_seed_is_another_noise():
    one, same, other = (
        opsin.smooth_grad(MODEL, IMAGES, target=0, samples=2, seed=seed).values for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


def test_the_predicted_class_is_the_image_without_noises():
    result = opsin.smooth_grad(MODEL, IMAGES, samples=4, noise=2.0)
    predicted = MODEL.run(IMAGES)["output"].argmax(1).tolist()
    expected = opsin.smooth_grad(MODEL, IMAGES, target=predicted, samples=4, noise=2.0)
    assert torch.equal(result.values, expected.values)
    noisy = IMAGES + 2.0 * torch.randn(
        3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    assert MODEL.run(noisy)["output"].argmax(1).tolist() != predicted


def test_a_unit_is_a_target():
    got = opsin.smooth_grad(MODEL, IMAGES, target="relu2:1@3,4", samples=2).values
    assert got.any()
    assert not got[:, :, 12:].any()  # far from what the unit sees
