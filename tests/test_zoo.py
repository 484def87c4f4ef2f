import io
import json

import pytest
import torch
from safetensors.torch import save_file
from skimage import data
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import opsin
from hostile.weights import Executes
from opsin.images.tensors import fit
from opsin.zoo import by_name, entries


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


def test_weights_that_cannot_be_downloaded_say_what_to_do(monkeypatch):
    import timm

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
