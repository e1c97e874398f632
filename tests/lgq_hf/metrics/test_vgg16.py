"""Weight files for LPIPS: two formats, and what is refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lgq_hf.metrics.vgg16 import VGG16Features, load_heads, load_vgg16

SHAPES = {name: value.shape for name, value in VGG16Features().state_dict().items()}
CHANNELS = (64, 128, 256, 512, 512)


def vgg() -> dict[str, Tensor]:
    """One number behind each tensor, so that the file is small."""
    return {name: torch.tensor(0.5).expand(shape) for name, shape in SHAPES.items()}


def heads() -> dict[str, Tensor]:
    return {f"lin{i}.model.1.weight": torch.full((1, n, 1, 1), i + 0.5) for i, n in enumerate(CHANNELS)}


def test_names_and_shapes_are_those_of_torchvision() -> None:
    assert len(SHAPES) == 26
    assert {int(name.split(".")[1]) for name in SHAPES} == {0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28}
    assert sum(shape.numel() for shape in SHAPES.values()) == 14_714_688  # of the 138,357,544 with the classifier
    assert SHAPES["features.28.weight"] == (512, 512, 3, 3)


def test_both_formats_load(tmp_path: Path) -> None:
    state = {**vgg(), "features.7.bias": torch.arange(128.0).half()}
    torch.save({**state, "classifier.6.bias": torch.zeros(3)}, tmp_path / "vgg.pth")
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "vgg.safetensors")
    for name in ("vgg.pth", "vgg.safetensors"):
        network = load_vgg16(tmp_path / name)
        assert network.features[7].bias.tolist() == list(range(128))
        assert all(value.dtype == torch.float32 for value in network.state_dict().values())
    torch.save(heads(), tmp_path / "heads.pth")
    save_file(heads(), tmp_path / "heads.safetensors")
    for name in ("heads.pth", "heads.safetensors"):
        loaded = load_heads(str(tmp_path / name))
        assert [tuple(head.shape) for head in loaded] == [(1, n, 1, 1) for n in CHANNELS]
        assert [float(head.mean()) for head in loaded] == [0.5, 1.5, 2.5, 3.5, 4.5]


def without(name: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: {other: value for other, value in state.items() if other != name}


LIN2 = "lin2.model.1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(LIN2), f"{LIN2}; expected the linear heads for VGG16"),
        (lambda state: {**state, "net.x": torch.zeros(1)}, "net.x; expected"),
        (lambda state: {**state, LIN2: torch.zeros(1, 64, 1, 1)}, f"{LIN2}.*256"),
        (lambda state: {**state, LIN2: state[LIN2] * math.nan}, "NaN"),
        (lambda state: {**state, LIN2: -state[LIN2]}, f"{LIN2}: expected weights of at least 0"),
        (lambda state: {"state_dict": state}, "cannot be read"),
        (lambda state: {"code": Path}, "cannot be read as a state dict .UnpicklingError"),  # and is not run
    ],
)
def test_refuses_other_heads(tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    torch.save(change(heads()), tmp_path / "heads.pth")
    with pytest.raises(ValueError, match=message):
        load_heads(tmp_path / "heads.pth")


def test_refuses_what_is_not_there_or_no_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"vgg_weights: no file .*no.pth.*vgg16-397923af"):
        load_vgg16(tmp_path / "no.pth")
    for name in ("vgg.pth", "vgg.safetensors"):
        (tmp_path / name).write_bytes(b"<html>404</html>")
        with pytest.raises(ValueError, match=f"vgg_weights: .*{name} cannot be read"):
            load_vgg16(tmp_path / name)
    torch.save({**vgg(), "features.5.weight": torch.zeros(2)}, tmp_path / "vgg.pth")
    with pytest.raises(RuntimeError, match="features.5.weight"):
        load_vgg16(tmp_path / "vgg.pth")
