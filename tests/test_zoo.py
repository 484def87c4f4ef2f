import io
import json

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from skimage import data
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import opsin
from hostile.weights import Executes
from opsin.base.choices import DEFAULT_NETWORK
from opsin.images.tensors import fit
from opsin.zoo import by_name, entries
from opsin.zoo.recorded import as_options, read_loaded


@pytest.fixture(scope="module")
def lite0():
    return opsin.load("efficientnet_lite0")


@pytest.mark.parametrize(
    ("photo", "words"),
    [("cat", "cat"), ("coffee", "espresso"), ("rocket", "missile"), ("chelsea", "cat")],
)
def test_the_embedded_network_knows_sample_photos(lite0, photo, words):
    from PIL import Image

    image = fit(Image.fromarray(getattr(data, photo)()), lite0)[None]
    top = lite0.run(image)["output"][0].topk(5).indices
    assert any(words in lite0.label(int(index)) for index in top)


def test_embedded_preprocessing_is_the_weights_own(lite0):
    assert lite0.mean == pytest.approx((127 / 255,) * 3)
    assert lite0.std == pytest.approx((128 / 255,) * 3)
    assert lite0.label(281) == "tabby, tabby cat"
    assert lite0.weigh().finite


def test_timm_and_torchvision_networks_have_their_own_preprocessing():
    small = opsin.load("timm:resnet10t", weights="random")
    assert small.size == (176, 176)
    assert small.mean == pytest.approx((0.485, 0.456, 0.406))
    assert small.labels[281] == "tabby, tabby cat"
    net = opsin.load("torchvision:mobilenet_v3_small", weights="random")
    assert net.size == (224, 224)
    assert net.labels[281] == "tabby"
    assert net.crop == pytest.approx(224 / 256)


def test_random_weights_are_the_same_each_time_and_leave_the_random_state():
    before = torch.get_rng_state()
    a, b = (opsin.load("timm:resnet10t", weights="random").weigh().fingerprint for _ in range(2))
    assert a == b
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("form", ["pth", "wrapped", "safetensors"])
def test_own_checkpoints(tmp_path, form):
    source = opsin.load("timm:resnet10t", weights="random")
    with torch.no_grad():
        source.network.fc.bias += 1
    state = source.network.state_dict()
    path = tmp_path / ("own.safetensors" if form == "safetensors" else "own.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(
            {"state_dict": {f"module.{k}": v for k, v in state.items()}} if form == "wrapped" else state, path
        )
    assert opsin.load("timm:resnet10t", weights=path).weigh().fingerprint == source.weigh().fingerprint


def test_a_checkpoint_of_another_network_names_five_of_each_fault_and_counts_them(tmp_path):
    state = opsin.load("timm:resnet10t", weights="random").network.state_dict()
    state["fc.bias"] = state["fc.bias"][:5]
    for name in list(state)[:7]:
        state[f"other.{name}"] = state.pop(name)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(opsin.NetworkError, match=r"other\.pth does not fit timm:resnet10t: ") as caught:
        opsin.load("timm:resnet10t", weights=tmp_path / "other.pth")
    first = "conv1.0.weight, conv1.1.weight, conv1.1.bias, conv1.1.running_mean, conv1.1.running_var"
    said = str(caught.value)
    assert said.count("\n") == 0
    assert f"7 missing ({first} and 2 more)" in said
    assert f"7 unknown ({first.replace('conv1', 'other.conv1')} and 2 more)" in said
    assert "1 of another shape (fc.bias (5,) for (1000,))" in said


def tiny(**settings):
    """The smallest network of timm, and its weights."""
    model = opsin.load(TINY, weights="random", **settings)
    return model, model.network.state_dict()


TINY = "timm:test_resnet"
PREFIXED = {
    "DDP": "module.",
    "torch.compile": "_orig_mod.",
    "Lightning, model": "model.",
    "Lightning, net": "net.",
    "Lightning, network": "network.",
    "DDP of a compiled one": "module._orig_mod.",
    "Lightning, compiled": "model._orig_mod.",
}


@pytest.mark.parametrize("kind", PREFIXED)
def test_prefixes_that_all_weights_carry_are_removed(tmp_path, kind):
    model, state = tiny()
    torch.save({f"{PREFIXED[kind]}{k}": v for k, v in state.items()}, tmp_path / "own.pth")
    assert opsin.load(TINY, weights=tmp_path / "own.pth").weigh().fingerprint == model.weigh().fingerprint


def test_a_prefix_that_the_network_has_itself_stays(tmp_path):
    (tmp_path / "own.py").write_text(
        "import nets\nfrom torch import nn\n\n\n"
        "class Wrapped(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.model = nets.plain()\n\n"
        "    def forward(self, x):\n"
        "        return self.model(x)\n\n\n"
        "def f():\n    return nets.model(Wrapped())\n"
    )
    own = f"{tmp_path / 'own.py'}:f"
    state = opsin.load(own).network.state_dict()
    state["model.fc.bias"] = state["model.fc.bias"] + 1
    for prefix in ("", "module.", "net.module."):
        torch.save({f"{prefix}{k}": v for k, v in state.items()}, tmp_path / "own.pth")
        loaded = opsin.load(own, weights=tmp_path / "own.pth").network.state_dict()
        assert torch.equal(loaded["model.fc.bias"], state["model.fc.bias"])


@pytest.mark.parametrize(
    "keys", ["state_dict", "model", "model_state_dict", "net", "ema", "state_dict_ema", "state_dict model"]
)
def test_weights_are_found_in_the_dicts_of_training_scripts(tmp_path, keys):
    model, held = tiny()
    for key in reversed(keys.split()):
        held = {"epoch": 3, key: held, "optimizer": {"lr": 0.1}}
    torch.save(held, tmp_path / "own.pth")
    assert opsin.load(TINY, weights=tmp_path / "own.pth").weigh().fingerprint == model.weigh().fingerprint


def test_the_weights_themselves_come_before_their_averages(tmp_path):
    model, state = tiny()
    torch.save({"ema": {k: v * 2 for k, v in state.items()}, "model": state}, tmp_path / "own.pth")
    assert opsin.load(TINY, weights=tmp_path / "own.pth").weigh().fingerprint == model.weigh().fingerprint


# --- own heads, class names and preprocessing


@pytest.mark.parametrize("name", [TINY, "torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1"])
def test_a_head_of_another_size_is_built_where_it_is_asked_for_and_named_where_it_is_not(tmp_path, name):
    model = opsin.load(name, weights="random", classes=3)
    assert (model.classes, model.labels) == (3, None)
    path = tmp_path / "own.pth"
    torch.save(model.network.state_dict(), path)
    again = opsin.load(name, weights=path, classes=3, labels=["a", "b", "c"])
    assert again.weigh().fingerprint == model.weigh().fingerprint
    assert again.labels == ("a", "b", "c")
    for settings, built in (({}, 1000), ({"classes": 4}, 4)):
        with pytest.raises(
            opsin.NetworkError,
            match=rf"saved with 3 classes, .*built for {built}: pass classes=3 \(--classes 3\)",
        ):
            opsin.load(name, weights=path, **settings)


def test_a_checkpoint_that_differs_elsewhere_names_no_number_of_classes(tmp_path):
    state = opsin.load("timm:resnet10t", weights="random").network.state_dict()
    state["fc.weight"] = state["fc.weight"][:, :7]
    torch.save(state, tmp_path / "own.pth")
    with pytest.raises(opsin.NetworkError, match=r"1 of another shape .*\)$"):
        opsin.load("timm:resnet10t", weights=tmp_path / "own.pth")


def test_an_own_head_of_a_thousand_classes_has_no_names_of_imagenets():
    assert opsin.load(TINY, weights="random", classes=1000).labels is None
    assert opsin.load(TINY, weights="random").labels[281] == "tabby, tabby cat"


@pytest.mark.parametrize(
    "text", ["cat\n dog \nlittle bird\n\n", '["cat", "dog", "little bird"]', "\ufeffcat\ndog\r\nlittle bird"]
)
def test_class_names_come_from_a_file(tmp_path, text):
    (tmp_path / "names.txt").write_bytes(text.encode())
    model = opsin.load(TINY, weights="random", classes=3, labels=tmp_path / "names.txt")
    assert model.labels == ("cat", "dog", "little bird")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"cat\ndog\n", "has 3 classes, and the number of labels is 2"),
        (b"a\nb\nc\nd\n", "has 3 classes, and the number of labels is 4"),
        (b"cat\n\ndog\n", r"class name 2 in .*names\.txt is empty"),
        (b"", "holds no class names"),
        (b" \n", "holds no class names"),
        (b"[]", "holds no class names"),
        (b'["cat", 1, "dog"]', "must hold a JSON list of class names"),
        (b'{"0": "cat"}', "must hold a JSON list of class names"),
        (b'["cat", ', "holds no valid JSON"),
        (b"[" * 100_000, "holds no valid JSON"),
        (b"\xff\xfe\0", "is not a text file in UTF-8"),
        (None, "unknown file of class names"),
    ],
)
def test_a_file_without_as_many_class_names_as_classes_is_told(tmp_path, text, said):
    if text is not None:
        (tmp_path / "names.txt").write_bytes(text)
    with pytest.raises(opsin.InputError, match=said):
        opsin.load(TINY, weights="random", classes=3, labels=tmp_path / "names.txt")


def test_class_names_of_published_classes_are_counted(tmp_path):
    with pytest.raises(opsin.InputError, match="has 1,000 classes, and the number of labels is 2"):
        opsin.load(TINY, weights="random", labels=["a", "b"])


def test_own_preprocessing_replaces_the_published_one():
    model = opsin.load(TINY, weights="random", mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 1], size=(48, 32))
    assert (model.mean, model.std, model.size) == ((0.5, 0.4, 0.3), (0.1, 0.2, 1.0), (48, 32))
    plain = opsin.load(TINY, weights="random")
    assert (model.crop, model.interpolation, model.labels) == (plain.crop, plain.interpolation, plain.labels)
    image = torch.rand(1, 3, 48, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    with torch.no_grad():
        expected = plain.network((image - mean) / std)
    torch.testing.assert_close(model.run(image)["output"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["timm:test_vit", "torchvision:vit_b_32"])
def test_networks_for_images_of_one_size_are_built_for_the_size_that_is_asked_for(name):
    model = opsin.load(name, weights="random", size=64, classes=3)
    assert (model.size, model.classes) == ((64, 64), 3)


def test_a_network_for_squares_says_so():
    with pytest.raises(opsin.InputError, match=r"vit_b_32 takes square images: .* not 64,96"):
        opsin.load("torchvision:vit_b_32", weights="random", size=(64, 96))


@pytest.mark.parametrize("name", ["vgg16_features", DEFAULT_NETWORK])
@pytest.mark.parametrize(
    "settings",
    [
        {"classes": 3},
        {"labels": ["a"]},
        {"mean": [0.5] * 3},
        {"std": [0.5] * 3},
        {"size": 64},
        {"mean": [0.5] * 3, "std": [0.5] * 3},
    ],
)
def test_fixed_weights_take_no_settings_of_own_ones(name, settings):
    with pytest.raises(
        opsin.InputError, match=f"{name} has fixed weights: leave out {' and '.join(settings)}$"
    ):
        opsin.load(name, **settings)


@pytest.mark.parametrize("name", [TINY, "torchvision:resnet18", "hf:nobody/nothing", "own.py:f"])
@pytest.mark.parametrize("setting", ["classes", "mean", "std", "size"])
def test_published_weights_take_no_settings_of_own_ones(name, setting):
    value = {"classes": 3, "size": 64}.get(setting, [0.5] * 3)
    with pytest.raises(
        opsin.InputError, match=f"has its published weights: leave out {setting}, or name weights of your own"
    ):
        opsin.load(name, **{setting: value})


def test_networks_that_say_themselves_how_many_classes_they_have_are_not_asked_for_another_number():
    for name, said in (("hf:a/b", "its configuration says"), ("own.py:f", "the function in it says")):
        with pytest.raises(opsin.InputError, match=said):
            opsin.load(name, weights="w.pt", classes=3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"classes": 0}, "classes must be a whole number of at least 1, not 0"),
        ({"classes": True}, "not True"),
        ({"size": 0}, "size must be one or two whole numbers of at least 1, not 0"),
        ({"size": (32, 32, 32)}, "size must be one or two"),
        ({"mean": [0.5]}, r"mean must be three numbers, for red, green and blue, not \[0.5\]"),
        (
            {"mean": [123.7, 116.3, 103.5]},
            "mean must be three numbers from 0 to 1.*divide numbers for bytes by 255",
        ),
        ({"mean": [float("nan")] * 3}, "from 0 to 1"),
        ({"std": [0.5, 0, 0.5]}, "std must be three numbers above 0"),
        ({"std": [58.4, 57.1, 57.4]}, "std must be three numbers above 0 and at most 1"),
        ({"classes": 3, "labels": ["a", "b"]}, "has 3 classes, and the number of labels is 2"),
    ],
)
def test_settings_that_cannot_be_are_told(settings, said):
    with pytest.raises(opsin.InputError, match=said):
        opsin.load(TINY, weights="random", **settings)


def test_own_files_take_class_names_and_preprocessing_of_own_weights(tmp_path):
    (tmp_path / "own.py").write_text("import nets\ndef f():\n    return nets.model(nets.plain())\n")
    name = f"{tmp_path / 'own.py'}:f"
    torch.save(opsin.load(name).network.state_dict(), tmp_path / "own.pt")
    model = opsin.load(name, weights=tmp_path / "own.pt", mean=[0.1] * 3, labels=list("abcde"))
    assert (model.mean, model.labels) == ((0.1,) * 3, tuple("abcde"))
    assert opsin.load(name, labels=list("abcde")).labels == tuple("abcde")


def test_what_a_model_was_loaded_with_loads_it_again(tmp_path):
    settings = {"classes": 3, "labels": ["a", "b", "c"], "mean": [0.5] * 3, "std": [0.2] * 3, "size": 32}
    torch.save(tiny(classes=3)[1], tmp_path / "own.pth")
    model = opsin.load(TINY, weights=tmp_path / "own.pth", **settings)
    loaded = read_loaded(json.loads(json.dumps(model.loaded)), "somewhere")
    again = opsin.load(**loaded)
    for name in ("labels", "mean", "std", "size", "classes"):
        assert getattr(again, name) == getattr(model, name)
    assert again.weigh().fingerprint == model.weigh().fingerprint
    assert again.loaded == model.loaded
    assert opsin.load(TINY, weights="random").loaded == {"name": TINY, "weights": "random"}


@pytest.mark.parametrize(
    ("recorded", "loaded"),
    [
        (["timm:resnet18"], {"name": "timm:resnet18"}),
        (["timm:resnet18", "w.pt"], {"name": "timm:resnet18", "weights": "w.pt"}),
    ],
)
def test_records_of_earlier_versions_are_read(recorded, loaded):
    assert read_loaded(recorded, "somewhere") == loaded


@pytest.mark.parametrize(
    "recorded",
    [
        {},
        {"weights": "w.pt"},
        {"name": 1},
        {"name": "a", "more": 1},
        {"name": "a", "classes": 0},
        {"name": "a", "classes": 2**40},
        {"name": "a", "classes": "3"},
        {"name": "a", "labels": "abc"},
        {"name": "a", "labels": [1]},
        {"name": "a", "mean": [0.5]},
        {"name": "a", "mean": [9.0] * 3},
        {"name": "a", "std": [float("nan")] * 3},
        {"name": "a", "size": 32},
        {"name": "a", "size": [2**30, 2**30]},
        [],
        ["a", "b", {}],
        [1],
    ],
)
def test_a_record_of_something_else_is_damaged(recorded):
    with pytest.raises(opsin.InputError, match="somewhere is damaged: the network that it names is"):
        read_loaded(recorded, "somewhere")


def test_the_options_that_load_a_network_again_are_named():
    loaded = {"name": "a.py:f", "weights": "w.pt", "labels": ["a"], "mean": [0.5] * 3, "size": [32, 48]}
    said = "--model a.py:f --weights w.pt --mean 0.5,0.5,0.5 --input-size 32,48 --class-names FILE"
    assert " ".join(as_options(loaded)) == said


# --- without a connection


@pytest.fixture
def unreachable(monkeypatch):
    """A hub that does not answer; how often it was asked. A pause before another attempt is an error."""
    asked = []

    class Session:
        def head(self, address, timeout):
            asked.append(address)
            raise OSError("no route to host")

    def retry(_):
        raise AssertionError("tried again")

    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", retry)
    return asked


def test_published_weights_without_a_connection_are_told_after_one_request(
    unreachable, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        opsin.NetworkError, match=r"https://huggingface\.co cannot be reached, and .* does not hold.*'random'"
    ):
        opsin.load("timm:resnet10t")
    with pytest.raises(opsin.NetworkError, match="hf:nobody/nothing cannot be loaded"):
        opsin.load("hf:nobody/nothing")
    assert len(unreachable) == 2
    assert not constants.HF_HUB_OFFLINE


def test_published_weights_in_the_cache_are_loaded_without_a_connection(unreachable, tmp_path, monkeypatch):
    import timm

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model, state = tiny()
    repository = tmp_path / f"models--{timm.get_pretrained_cfg('test_resnet').hf_hub_id.replace('/', '--')}"
    for folder in ("refs", "snapshots/abc"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    save_file(state, repository / "snapshots/abc/model.safetensors")
    assert opsin.load(TINY).weigh().fingerprint == model.weigh().fingerprint
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_is_switched_off_is_not_asked(unreachable, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(opsin.NetworkError, match="HF_HUB_OFFLINE is set"):
        opsin.load("timm:resnet10t")
    assert unreachable == []
    assert constants.HF_HUB_OFFLINE


def test_weights_that_cannot_be_downloaded_say_what_to_do(monkeypatch):
    import timm

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def unreachable(name, pretrained):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(opsin.NetworkError, match=r"cannot be loaded .*no route to host.*'random'"):
        opsin.load("timm:resnet10t")


@pytest.mark.parametrize("weights", [None, "random"])
def test_a_pretrained_tag_that_timm_does_not_have_is_unknown_whatever_the_weights(weights):
    with pytest.raises(opsin.InputError, match=r"unknown timm model 'resnet18\.nope'; nearest: resnet18\."):
        opsin.load("timm:resnet18.nope", weights=weights)
    assert opsin.load("timm:resnet18.a1_in1k", weights="random").name == "timm:resnet18.a1_in1k"


def test_a_network_that_cannot_be_built_is_told(monkeypatch):
    import timm

    def unable(name, pretrained):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(timm, "create_model", unable)
    with pytest.raises(opsin.NetworkError, match="timm:resnet10t cannot be built: RuntimeError: no such op"):
        opsin.load("timm:resnet10t", weights="random")


def transformer(folder, **settings):
    """An image classifier in a folder, with its preprocessing."""
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32,
        patch_size=8, id2label={0: "left", 1: "right"}, label2id={"left": 0, "right": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(folder)
    made = ViTImageProcessor(size={"height": 32, "width": 32}, **settings)
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_normalize": False, "rescale_factor": 0.01},
    ],
)
def test_an_image_classifier_of_transformers_from_a_folder(tmp_path, settings):
    processor = transformer(tmp_path, **settings)
    model = opsin.load(f"hf:{tmp_path}")
    assert model.size == (32, 32)
    assert model.labels == ("left", "right")
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = model.network(**processor(images=list(pixels), return_tensors="pt")).logits
    torch.testing.assert_close(model.run(pixels / 255)["output"], theirs, atol=1e-4, rtol=1e-4)
    assert opsin.grad_cam(model, pixels / 255, target="left").values.shape == (2, 1, 4, 4)


def test_preprocessing_that_mixes_colours_is_told(tmp_path, monkeypatch):
    transformer(tmp_path)
    real = ViTImageProcessor.__call__

    def flipped(self, *args, **kwargs):
        found = real(self, *args, **kwargs)
        return {"pixel_values": found["pixel_values"].flip(1)}

    monkeypatch.setattr(ViTImageProcessor, "__call__", flipped)
    with pytest.raises(
        opsin.NetworkError,
        match=r"has preprocessing that mixes colours: build the model in a FILE\.py:FACTORY",
    ):
        opsin.load(f"hf:{tmp_path}")


def describe(folder, **settings):
    """Write more into the description of a network that Transformers saved."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


@pytest.mark.parametrize("weights", [None, "random"])
def test_a_folder_that_is_not_there_or_holds_no_network_is_told(tmp_path, weights):
    (tmp_path / "vit").mkdir()
    for name, said in (
        (tmp_path / "vid", r"unknown folder or name on the hub '.*/vid'; nearest: .*vit"),
        (tmp_path / "vit", "vit is a folder without config.json"),
        ("../..", "is a folder without config.json"),
        ("x" * 5000, "unknown folder or name on the hub 'xxx"),
        ("a\0b", "unknown folder or name on the hub"),
    ):
        with pytest.raises(opsin.InputError, match=said):
            opsin.load(f"hf:{name}", weights=weights)


@pytest.mark.parametrize("weights", [None, "random"])
def test_a_hub_that_cannot_be_reached_is_told(monkeypatch, weights):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(opsin.NetworkError, match=r"nothing cannot be loaded \(and there is no folder"):
        opsin.load("hf:nobody/nothing", weights=weights)


def test_a_folder_without_weights_or_preprocessing_is_told(tmp_path):
    transformer(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(opsin.NetworkError, match=r"the weights of hf:.*Error no file named") as caught:
        opsin.load(f"hf:{tmp_path}")
    assert "connection" not in str(caught.value)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(opsin.NetworkError, match="cannot be loaded"):
        opsin.load(f"hf:{tmp_path}", weights="random")


@pytest.mark.parametrize("weights", [None, "random"])
def test_code_beside_a_network_of_transformers_is_not_run_and_nobody_is_asked(tmp_path, monkeypatch, weights):
    transformer(tmp_path)
    code = f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Config: pass\nclass Net: pass\n"
    (tmp_path / "own.py").write_text(code)
    names = {"AutoConfig": "own.Config", "AutoModelForImageClassification": "own.Net"}
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    describe(tmp_path, model_type="own", auto_map=names)
    with pytest.raises(opsin.NetworkError, match="contains custom code"):
        opsin.load(f"hf:{tmp_path}", weights=weights)
    assert not (tmp_path / "executed").exists()


def test_an_attention_that_a_folder_names_is_not_fetched_from_a_hub(tmp_path):
    transformer(tmp_path)
    describe(tmp_path, attn_implementation="nobody/kernel")
    model = opsin.load(f"hf:{tmp_path}")
    assert model.network.config._attn_implementation in ("sdpa", "eager")


def test_weights_of_transformers_that_hold_code_are_not_run(tmp_path):
    transformer(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"a": Executes(tmp_path / "executed")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(opsin.NetworkError, match=r"it holds posix\.mkdir, which is not run"):
        opsin.load(f"hf:{tmp_path}")
    assert not (tmp_path / "executed").exists()


def test_the_list_names_every_network_of_the_zoo():
    assert entries.ENTRIES.keys() == by_name.ZOO.keys()


def test_the_forms_that_the_list_names_are_the_forms_that_load_takes():
    assert {form.partition(":")[0] for form in entries.FORMS} == {*by_name.FAMILIES, "FILE.py"}


def test_a_network_of_the_zoo_takes_preprocessing_but_no_head_with_own_weights():
    model = opsin.load(DEFAULT_NETWORK, weights="random", mean=[0.5] * 3, std=[0.5] * 3, size=96)
    assert (model.mean, model.size, model.classes) == ((0.5,) * 3, (96, 96), 1000)
    with pytest.raises(opsin.InputError, match="takes no number of classes: its own form says"):
        opsin.load(DEFAULT_NETWORK, weights="random", classes=3)
