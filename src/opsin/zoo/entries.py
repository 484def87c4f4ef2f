"""The zoo's networks and the other forms of a network's name, as text: read without importing torch."""

ENTRIES = {
    "tf_efficientnet_lite0": "EfficientNet-Lite0, ImageNet, 4.7 M parameters; weights come with the install",
    "vgg16_features": "VGG-16's convolutions, ImageNet, for texture and style; fetched once by pip (61 MB)",
}
FORMS = {
    "timm:NAME": "every network of timm, with its published weights (list: opsin models timm)",
    "torchvision:NAME": "every classifier of torchvision, with its weights (list: opsin models torchvision)",
    "hf:NAME": "an image classifier of Transformers, from its hub or a folder (extra: opsin[hf])",
    "FILE.py:FACTORY": "your own: a function that returns an opsin.Model",
}
