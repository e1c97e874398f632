"""The convolutions of VGG16 (Simonyan and Zisserman 2015, table 1, column D) and weight files for LPIPS.

No weights come with this package and none are downloaded: they are read from files the caller names.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from lgq_hf.metrics.frozen import read_weights

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
        ValueError: not a state dict, other names, or NaN or infinities.
        RuntimeError: other shapes, from torch.
    """
    with torch.device("meta"):  # nothing is initialised, and no random numbers are drawn
        network = VGG16Features()
    state = read_weights(path, "vgg_weights", VGG_FILE, network.state_dict(), ignored="classifier.")
    network.load_state_dict(state, assign=True)
    return network


def load_heads(path: str | Path) -> list[Tensor]:
    """The weights of LPIPS's five linear heads: (1,C,1,1) fp32 each, at least 0.

    Args:
        path: a state dict with `lin0.model.1.weight` to `lin4.model.1.weight`, as .pth or .safetensors.

    Raises:
        FileNotFoundError: no such file; says which file is meant.
        ValueError: not a state dict, other names or shapes, NaN or infinities, or weights below 0.
    """
    shapes = {f"lin{i}.model.1.weight": (1, channels, 1, 1) for i, channels in enumerate(STAGE_CHANNELS)}
    state = read_weights(path, "heads", HEADS_FILE, shapes)
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape or float(state[name].min()) < 0:
            raise ValueError(f"heads: {path}: {name}: expected weights of at least 0 {shape}; expected {HEADS_FILE}")
    return [state[name] for name in shapes]


__all__ = ["HEADS_FILE", "STAGE_CHANNELS", "VGG_FILE", "VGG16Features", "load_heads", "load_vgg16"]
