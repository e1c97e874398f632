"""The convolutions of VGG16 (Simonyan and Zisserman 2015, table 1, column D) and weight files for LPIPS.

No weights come with this package and none are downloaded: they are read from files the caller names.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

STAGE_CHANNELS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = (2, 2, 3, 3, 3)

VGG_FILE = "the ImageNet weights of VGG16 in torchvision's layout (torchvision's vgg16-397923af.pth)"
HEADS_FILE = "the linear heads for VGG16 of the lpips project (lpips/weights/v0.1/vgg.pth in its package)"


class VGG16Features(nn.Module):
    """The 13 convolutions, with parameters named `features.N.weight` and `features.N.bias` as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self._ends = []
        channels = 3
        for width, convolutions in zip(STAGE_CHANNELS, _CONVOLUTIONS, strict=True):
            if layers:
                layers.append(nn.MaxPool2d(2))
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self._ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 of inputs (B,3,H,W) normalised for the weights.

        They have 64, 128, 256, 512 and 512 channels and sides divided by 1, 2, 4, 8 and 16, rounded down.
        """
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self._ends:
                maps.append(x)
        return maps


def load_vgg16(path: str | Path) -> VGG16Features:
    """VGG16's convolutions with the weights in a file, fp32.

    Args:
        path: a state dict with `features.N.weight` and `features.N.bias` of the 13 convolutions, as .pth or
            .safetensors; `classifier.*` is ignored.

    Raises:
        FileNotFoundError: no such file; says which file is meant.
        ValueError: not a state dict, other names or shapes, or NaN or infinities.
    """
    with torch.device("meta"):  # nothing is initialised, and no random numbers are drawn
        network = VGG16Features()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict(_read(path, "vgg_weights", VGG_FILE, shapes, ignored="classifier."), assign=True)
    return network


def load_heads(path: str | Path) -> list[Tensor]:
    """The weights of LPIPS's five linear heads: (1,C,1,1) fp32 each, at least 0.

    Args:
        path: a state dict with `lin0.model.1.weight` to `lin4.model.1.weight`, as .pth or .safetensors.

    Raises:
        FileNotFoundError: no such file; says which file is meant.
        ValueError: not a state dict, other names or shapes, NaN or infinities, or weights below 0.
    """
    shapes: dict[str, tuple[int, ...]] = {
        f"lin{i}.model.1.weight": (1, channels, 1, 1) for i, channels in enumerate(STAGE_CHANNELS)
    }
    state = _read(path, "heads", HEADS_FILE, shapes)
    for name in shapes:
        if float(state[name].min()) < 0:
            lowest = f"{name}: expected weights of at least 0, got {float(state[name].min()):.3g}"
            raise ValueError(f"heads: {path}: {lowest}; expected {HEADS_FILE}")
    return [state[name] for name in shapes]


def _read(
    path: str | Path, option: str, meant: str, shapes: dict[str, tuple[int, ...]], ignored: str | None = None
) -> dict[str, Tensor]:
    """The tensors named in `shapes`, fp32; there must be no others but those whose names begin with `ignored`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{option}: no file {path}. Expected {meant}; nothing is downloaded: give its path")
    try:
        state: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # what torch.load raises depends on what the file is
        raise ValueError(
            f"{option}: {path} cannot be read as a state dict ({type(error).__name__}); expected {meant}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{option}: {path}: expected a state dict of tensors, got {type(state).__name__}: {meant}")
    if ignored is not None:
        state = {name: value for name, value in state.items() if not name.startswith(ignored)}
    missing, extra = sorted(shapes.keys() - state.keys()), sorted(state.keys() - shapes.keys())
    if missing or extra:
        problem = f"missing: {_few(missing)}; not expected: {_few(extra)}"
        raise ValueError(f"{option}: {path} has other tensors ({problem}); expected {meant}")
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise ValueError(f"{option}: {path}: {name}: expected shape {shape}, got {tuple(state[name].shape)}")
        if not state[name].is_floating_point() or not bool(state[name].isfinite().all()):
            raise ValueError(f"{option}: {path}: {name}: expected finite floats, got {_kind(state[name])}")
    return {name: state[name].detach().float() for name in shapes}


def _kind(tensor: Tensor) -> str:
    return "NaN or infinities" if tensor.is_floating_point() else str(tensor.dtype)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"


__all__ = ["HEADS_FILE", "STAGE_CHANNELS", "VGG_FILE", "VGG16Features", "load_heads", "load_vgg16"]
