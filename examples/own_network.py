"""Two techniques on a network of your own.

The network has random weights, so its maps mean nothing: put a trained one in its place.
"""

import torch
from torch import Tensor, nn

import opsin


class Small(nn.Module):
    """Two convolutions and a linear layer on the mean of their maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (n, 3) of images (n, 3, h, w)."""
        x = self.conv1(x).relu()
        x = self.conv2(x).relu()
        return self.head(x.mean((2, 3)))


torch.manual_seed(0)
model = opsin.Model(
    Small().eval(),
    mean=[0.485, 0.456, 0.406],
    std=[0.229, 0.224, 0.225],
    size=64,
    labels=["ant", "bee", "cicada"],
)
images = torch.rand(2, 3, 64, 64)  # or opsin.read("photo.jpg", model)

where = opsin.grad_cam(model, images, target="bee", layer="conv2")
where.save("grad_cam")  # pictures, values.npz and record.json

pixels = opsin.saliency(model, images, target="conv1:5")  # a channel of a layer is a target too
pixels.save("saliency")

print(where.values.shape, pixels.values.shape)
