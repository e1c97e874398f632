"""Perceptual distances against float64 computations written another way."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lgq_hf.metrics.efficientnet import EfficientNetLite0
from lgq_hf.metrics.perceptual import LPIPS, EfficientNetDistance, build_perceptual

# torchvision's positions of the convolutions of VGG16, their channels, and where the max-poolings stand
CONVOLUTIONS = {
    0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
    17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512),
}  # fmt: skip
POOLINGS = (4, 9, 16, 23)
TAPS = (2, 7, 14, 21, 28)


def random_vgg(classifier: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for i, (inputs, outputs) in CONVOLUTIONS.items():
        state[f"features.{i}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=generator) / (4.5 * inputs) ** 0.5
        state[f"features.{i}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    if classifier:
        state["classifier.0.weight"] = torch.zeros(2, 2)
    return state


def random_heads() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    channels = (64, 128, 256, 512, 512)
    return {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1, generator=generator) for i, n in enumerate(channels)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("lpips")
    torch.save(random_vgg(), folder / "vgg16.pth")
    torch.save(random_heads(), folder / "heads.pth")
    return folder / "vgg16.pth", folder / "heads.pth"


@pytest.fixture(scope="module")
def lpips(files: tuple[Path, Path]) -> LPIPS:
    return LPIPS(*files)


@pytest.fixture(scope="module")
def distance() -> EfficientNetDistance:
    return EfficientNetDistance()


@pytest.fixture(params=["efficientnet-lite0", "lpips-vgg16"])
def module(request: pytest.FixtureRequest) -> EfficientNetDistance | LPIPS:
    return request.getfixturevalue("distance" if request.param == "efficientnet-lite0" else "lpips")


def units(features: Tensor) -> np.ndarray:
    values = features.detach().double().numpy()
    return values / (np.sqrt((values**2).sum(1, keepdims=True)) + 1e-10)


def expected_lpips(a: Tensor, b: Tensor) -> np.ndarray:
    weights = {name: value.double() for name, value in random_vgg().items()}
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]).double(), torch.tensor([0.458, 0.448, 0.450]).double()
    taps: list[list[np.ndarray]] = []
    for picture in (a, b):
        x = (2 * picture.double() - 1 - shift[:, None, None]) / scale[:, None, None]
        maps = []
        for i in CONVOLUTIONS:
            if i - 1 in POOLINGS:
                x = functional.max_pool2d(x, 2, 2)
            x = functional.conv2d(x, weights[f"features.{i}.weight"], weights[f"features.{i}.bias"], padding=1)
            x = x.clamp(min=0)
            if i in TAPS:
                maps.append(units(x))
        taps.append(maps)
    heads = [head.double().numpy() for head in random_heads().values()]
    return sum((head * (x - y) ** 2).sum(1).mean((1, 2)) for head, x, y in zip(heads, *taps, strict=True))


def pair(batch: int = 2, size: tuple[int, int] = (40, 32)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    a = torch.rand(batch, 3, *size, generator=generator)
    return a, a + 0.1 * torch.randn(a.shape, generator=generator)


@pytest.mark.parametrize("size", [(32, 48), (16, 16), (37, 21)])
def test_lpips_agrees_with_float64(lpips: LPIPS, size: tuple[int, int]) -> None:
    a, b = pair(size=size)
    wanted = expected_lpips(a, b)
    assert wanted.min() > 0.05
    np.testing.assert_allclose(lpips(a, b), wanted, rtol=2e-6)


def test_distance_agrees_with_float64(distance: EfficientNetDistance, network: EfficientNetLite0) -> None:
    a, b = pair(size=(33, 64))
    stages = zip(network.stages(a), network.stages(b), strict=True)
    wanted = np.mean([((units(one) - units(other)) ** 2).sum(1).mean((1, 2)) for one, other in stages], axis=0)
    np.testing.assert_allclose(distance(a, b), wanted, rtol=1e-5)
    assert wanted.min() > 0.01


def test_a_picture_is_at_no_distance_from_itself(module: EfficientNetDistance | LPIPS) -> None:
    a, b = pair()
    assert module(a, a).tolist() == [0, 0]
    result = module(a, b)
    assert (result.dtype, result.shape) == (torch.float32, (2,))
    torch.testing.assert_close(module(b, a), result, rtol=0, atol=0)
    torch.testing.assert_close(module(a[1:], b[1:]), result[1:])


def test_gradients_flow_to_both_pictures_only(module: EfficientNetDistance | LPIPS) -> None:
    a, b = (picture.requires_grad_() for picture in pair())
    module(a, b).sum().backward()
    for picture in (a, b):
        assert picture.grad is not None and bool(picture.grad.isfinite().all()) and float(picture.grad.norm()) > 0
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_the_gradient_is_that_of_finite_differences(module: EfficientNetDistance | LPIPS) -> None:
    a, b = pair(1, (32, 32))
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(module(a, b).sum(), a)
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        change = float(module(a + step, b) - module(a - step, b)) / 2e-3
    assert change == pytest.approx(float(gradient.norm()), rel=0.05)


def test_under_autocast(module: EfficientNetDistance | LPIPS) -> None:
    a, b = pair()
    with torch.autocast("cpu", torch.bfloat16):
        result = module(a, b)
        assert module(a, a).tolist() == [0, 0]
    assert result.dtype == torch.float32 and not torch.equal(result, module(a, b))
    torch.testing.assert_close(result, module(a, b), rtol=0.1, atol=0)


def test_refuses_other_pictures(distance: EfficientNetDistance, lpips: LPIPS) -> None:
    a, b = pair()
    for module in (distance, lpips):
        with pytest.raises(
            ValueError, match=r"expected two batches of one shape, got \(2, 3, 40, 32\) and \(1, 3, 40"
        ):
            module(a, b[:1])
    with pytest.raises(ValueError, match="sides of at least 32 pixels"):
        distance(a[..., :16], b[..., :16])
    with pytest.raises(ValueError, match="sides of at least 16 pixels"):
        lpips(a[..., :15], b[..., :15])


def test_build_perceptual(files: tuple[Path, Path]) -> None:
    state = torch.get_rng_state()
    distance = build_perceptual("efficientnet-lite0")
    assert isinstance(distance, EfficientNetDistance)
    assert (distance.name, distance.weights_sha256[:8]) == ("efficientnet-lite0", "57934424")
    lpips = build_perceptual("lpips-vgg16", vgg_weights=files[0], heads=str(files[1]))
    assert isinstance(lpips, LPIPS)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert (lpips.name, lpips.weights_sha256) == ("lpips-vgg16", "+".join(hashes))
    assert torch.equal(torch.get_rng_state(), state)


def test_build_perceptual_refuses(files: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="lpips-vgg16 needs two files, not given: vgg_weights and heads"):
        build_perceptual("lpips-vgg16")
    with pytest.raises(ValueError, match="lpips-vgg16 needs two files, not given: heads. Nothing is downloaded"):
        build_perceptual("lpips-vgg16", vgg_weights=files[0])
    with pytest.raises(ValueError, match="heads: only for lpips-vgg16, got the name efficientnet-lite0: leave out"):
        build_perceptual("efficientnet-lite0", heads=files[1])
    with pytest.raises(ValueError, match="expected efficientnet-lite0 or lpips-vgg16, got 'vgg'"):
        build_perceptual("vgg")  # type: ignore[arg-type]
