"""Distances between pictures in the features of a network, as a loss and as a metric.

Both modules are called with two batches (B,3,H,W) of one shape, RGB, floating point in [0, 1] (values outside are
neither refused nor clamped), and give (B,) fp32, 0 where the two are equal. They are differentiable in both
batches, frozen, and always in evaluation mode. Numbers of one cannot be compared with numbers of the other: say
`name` and `weights_sha256` beside them.
"""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lgq_hf.metrics.efficientnet import EfficientNetLite0
from lgq_hf.metrics.frozen import FrozenNetwork, check_pair, sha256_of, unit_difference
from lgq_hf.metrics.vgg16 import load_heads, load_vgg16

_SMALLEST = 16  # pixels: one position is left after four poolings


class EfficientNetDistance(FrozenNetwork):
    """Mean squared difference of unit-length features at the five resolutions of EfficientNet-lite0.

    At each resolution features are scaled to length 1 over channels (as in Zhang et al. 2018, equation 1), squared
    differences are summed over channels and averaged over positions; the five numbers are averaged. No weights
    stand before channels: it is not calibrated to human judgements, and its numbers, in [0, 4] and without unit, are
    not LPIPS.

    Raises:
        ModuleNotFoundError: the packages of the extra `metrics` are missing.
    """

    name = "efficientnet-lite0"

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0()
        self.weights_sha256 = self.network.weights_sha256
        self.freeze()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(B,) fp32 for pictures with sides of at least 32 pixels, not resized; see the module's first lines.

        Raises:
            ValueError: batches of different shapes, another shape, or integers.
        """
        check_pair(a, b)
        distances = [
            unit_difference(one, other).sum(1).mean((1, 2))
            for one, other in zip(self.network.stages(a), self.network.stages(b), strict=True)
        ]
        return torch.stack(distances).mean(0).float()


class LPIPS(FrozenNetwork):
    """LPIPS with VGG16 (Zhang et al. 2018, equation 1; version 0.1 of the lpips project with its "lin" heads).

    Features after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3, scaled to length 1 over channels; squared
    differences weighted by channel, summed over channels, averaged over positions, summed over layers. Numbers are at
    least 0 and have no unit.

    Args:
        vgg_weights: file with VGG16's weights in torchvision's layout, see `load_vgg16`.
        heads: file with the weights of the channels, see `load_heads`.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: one of the files is not what is meant.
    """

    name = "lpips-vgg16"
    _shift: Tensor
    _scale: Tensor

    def __init__(self, vgg_weights: str | Path, heads: str | Path) -> None:
        super().__init__()
        self.network = load_vgg16(vgg_weights)
        for i, head in enumerate(load_heads(heads)):
            self.register_buffer(f"_head{i}", head)
        # of pictures in [-1, 1], from the lpips project
        self.register_buffer("_shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("_scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.weights_sha256 = f"{sha256_of(vgg_weights)}+{sha256_of(heads)}"
        self.freeze()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(B,) fp32 for pictures with sides of at least 16 pixels, not resized; see the module's first lines.

        Raises:
            ValueError: batches of different shapes, another shape, or integers.
        """
        check_pair(a, b)
        distances = [
            (self.get_buffer(f"_head{i}") * unit_difference(one, other)).sum(1).mean((1, 2))
            for i, (one, other) in enumerate(zip(self._features(a), self._features(b), strict=True))
        ]
        return torch.stack(distances).sum(0).float()

    def _features(self, pictures: Tensor) -> list[Tensor]:
        pictures = self._prepare(pictures, _SMALLEST)
        return self.network((pictures * 2 - 1 - self._shift) / self._scale)


def build_perceptual(
    name: Literal["efficientnet-lite0", "lpips-vgg16"],
    *,
    vgg_weights: str | Path | None = None,
    heads: str | Path | None = None,
) -> EfficientNetDistance | LPIPS:
    """The perceptual distance of that name.

    Args:
        name: "efficientnet-lite0" needs no files, "lpips-vgg16" needs both.
        vgg_weights: for "lpips-vgg16" only, see `LPIPS`.
        heads: for "lpips-vgg16" only, see `LPIPS`.

    Raises:
        ValueError: another name, a file that is missing from the arguments, or one that the name has no use for.
    """
    files = {"vgg_weights": vgg_weights, "heads": heads}
    if name == "efficientnet-lite0":
        given = [option for option, path in files.items() if path is not None]
        if given:
            raise ValueError(f"{' and '.join(given)}: only for lpips-vgg16, got the name {name}: leave out")
        return EfficientNetDistance()
    if name == "lpips-vgg16":
        if vgg_weights is None or heads is None:
            missing = " and ".join(option for option, path in files.items() if path is None)
            raise ValueError(f"lpips-vgg16 needs two files, not given: {missing}. Nothing is downloaded; see LPIPS")
        return LPIPS(vgg_weights, heads)
    raise ValueError(f"perceptual: expected efficientnet-lite0 or lpips-vgg16, got {name!r}")


__all__ = ["LPIPS", "EfficientNetDistance", "build_perceptual"]
