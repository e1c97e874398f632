"""FID's Inception with random weights, against features that torch-fidelity and pytorch-fid computed with them.

Where the recorded numbers come from stands in tests/fixtures/metrics/README.md.
"""

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lgq_hf.metrics import inception
from lgq_hf.metrics.frozen import sha256_of
from lgq_hf.metrics.inception import InceptionV3Fid

FIXTURES = Path(__file__).parents[2] / "fixtures" / "metrics"
SHAPES: dict[str, list[int]] = json.loads((FIXTURES / "inception_shapes.json").read_text())
RECORDED = load_file(FIXTURES / "inception.safetensors")


def random_state() -> dict[str, Tensor]:
    """Uniform numbers in the order of names, exact on every machine; of a size that keeps activations near 1."""
    draw = torch.Generator().manual_seed(2015)
    state = {}
    for name, shape in sorted(SHAPES.items()):
        numbers = torch.rand(shape, generator=draw)
        if name.endswith((".bn.weight", ".bn.running_var")):
            state[name] = numbers + 0.5
        elif len(shape) == 1:
            state[name] = numbers - 0.5
        else:
            state[name] = (numbers * 2 - 1) * math.sqrt(6 / math.prod(shape[1:]))
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({**random_state(), "Mixed_5b.branch1x1.bn.num_batches_tracked": torch.tensor(7)}, path)
    yield path
    path.unlink()  # 95 MB


@pytest.fixture(scope="module")
def network(weights: Path) -> InceptionV3Fid:
    return InceptionV3Fid(weights)


def pictures() -> Tensor:
    """(2,3,40,56) in [0, 1]."""
    return RECORDED["pictures"].float() / 255


def test_features_are_those_of_torch_fidelity(network: InceptionV3Fid) -> None:
    features = network.pooled(pictures())
    assert (features.shape, features.dtype) == ((2, network.dimensions), torch.float32)
    assert float(features.min()) >= 0
    assert float((RECORDED["torch-fidelity"][0] - RECORDED["torch-fidelity"][1]).std()) > 0.1
    torch.testing.assert_close(features, RECORDED["torch-fidelity"], rtol=0, atol=1e-4)


def test_features_are_those_of_pytorch_fid(weights: Path) -> None:
    network = InceptionV3Fid(weights, resize="torch")
    assert network.preparation == "8 bits, 299 x 299 pixels, bilinear as in torch, not antialiased"
    assert float((RECORDED["pytorch-fid"] - RECORDED["torch-fidelity"]).abs().max()) > 0.1
    torch.testing.assert_close(network.pooled(pictures()), RECORDED["pytorch-fid"], rtol=0, atol=1e-4)


def test_logits_and_batches(network: InceptionV3Fid) -> None:
    logits = network.logits(pictures()[1:])
    assert (logits.shape, logits.dtype) == ((1, 1008), torch.float32)
    torch.testing.assert_close(logits, RECORDED["torch-fidelity.logits"][1:], rtol=0, atol=1e-4)
    assert network.pooled(pictures()[:0]).shape == (0, 2048)


def test_pictures_are_rounded_to_8_bits(network: InceptionV3Fid) -> None:
    exact = pictures()[:1].double()
    near = exact + 0.49 / 255 * torch.where(exact < 0.5, 1, -1)
    torch.testing.assert_close(network.pooled(near), RECORDED["torch-fidelity"][:1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 500), (299, 40), (300, 2)])
def test_the_resize_of_tensorflow(size: tuple[int, int]) -> None:
    picture = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = picture.double().numpy()
    for axis, old in ((3, size[1]), (2, size[0])):
        places = np.arange(299) * old / 299
        expected = np.apply_along_axis(partial(np.interp, places, np.arange(old)), axis, expected)
    resized = inception._resized_like_tensorflow(picture)
    assert resized.shape == (2, 3, 299, 299)
    np.testing.assert_allclose(resized, expected, rtol=0, atol=5e-5)  # places are in fp32, as in the original
    same = torch.rand(1, 3, 299, 299)
    assert torch.equal(inception._resized_like_tensorflow(same), same)


def test_says_what_it_is(network: InceptionV3Fid, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (network.name, network.dimensions) == ("inception-2015", 2048)
    assert network.preparation == "8 bits, 299 x 299 pixels, bilinear as in tensorflow, not antialiased"
    assert network.weights_sha256 == sha256_of(weights)
    assert not network.is_reference
    assert inception.REFERENCE_SHA256.startswith("6726825d")  # in both names of the file
    monkeypatch.setattr(inception, "REFERENCE_SHA256", network.weights_sha256)
    assert network.is_reference


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(3, 8, 8), r"expected \(B,3,H,W\) with sides of at least 1 pixels, got shape \(3, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8).byte(), r"expected floats in \[0, 1\], got torch.uint8; divide 8-bit values by 255"),
        (torch.full((1, 3, 8, 8), 255.0), r"pictures: expected values in \[0, 1\], got 255 to 255"),
        (torch.full((1, 3, 8, 8), -0.01), r"pictures: expected values in \[0, 1\], got -0.01 to -0.01"),
        (torch.full((1, 3, 8, 8), math.nan), r"pictures: expected values in \[0, 1\], got nan to nan"),
    ],
)
def test_refuses_other_pictures(network: InceptionV3Fid, wrong: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network.pooled(wrong)


def test_refuses_other_weights(tmp_path: Path) -> None:
    state = {name: torch.tensor(0.5).expand(shape) for name, shape in SHAPES.items()}  # one number each: a small file
    path, variance = tmp_path / "weights.pth", "Mixed_7c.branch3x3_2b.bn.running_var"
    for change, message in (
        ({"AuxLogits.fc.bias": torch.zeros(1)}, "AuxLogits.fc.bias"),
        ({variance: -state[variance]}, f"{variance}: expected variances of at least 0, got -0.5"),
        ({variance: state[variance] / 0}, "NaN or infinities"),
    ):
        torch.save({**state, **change}, path)
        with pytest.raises(ValueError, match=f"weights: .*{message}"):
            InceptionV3Fid(path)
    with pytest.raises(ValueError, match="resize: .*'bicubic'"):
        InceptionV3Fid(path, resize="bicubic")  # type: ignore[arg-type]
