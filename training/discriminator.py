"""A discriminator that judges patches: one logit for each overlapping region of a picture.

Isola et al. 2017 (PatchGAN, arXiv 1611.07004); spectral normalisation by Miyato et al. 2018 (arXiv 1802.05957).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

DiscriminatorNorm = Literal["spectral", "group", "none"]

_KERNEL = 4
_GROUP = 16  # channels normalised together, a choice of Wu & He 2018, Table 3


class _Conv(nn.Conv2d):
    """A 4x4 convolution whose weight is made in the weight's own precision, whatever autocast is on.

    The power iteration of spectral normalisation would otherwise run on bf16 products, and its vectors with it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, (H - 2) // stride + 1, (W - 2) // stride + 1)."""
        with torch.autocast(input.device.type, enabled=False):
            weight = self.weight
        return F.conv2d(input, weight, self.bias, self.stride, self.padding)


def _conv(inputs: int, outputs: int, stride: int, norm: DiscriminatorNorm, *, bias: bool = True) -> nn.Module:
    conv = _Conv(inputs, outputs, _KERNEL, stride, padding=1, bias=bias)
    nn.init.normal_(conv.weight, 0.0, 0.02)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return spectral_norm(conv) if norm == "spectral" else conv  # its vectors begin at the weight drawn above


class PatchDiscriminator(nn.Module):
    """Convolutions of 4x4: `num_layers` of stride 2, one of stride 1, and one to a single channel.

    The widths are `base_channels` times 1, 2, 4, 8, 8, ...; LeakyReLU of 0.2 follows all but the last; weights are
    drawn from N(0, 0.02²), biases are 0 (Isola et al. 2017, section 6). With 3 layers of stride 2 a logit sees 70x70
    pixels. No logit depends on the other pictures of its batch, so a batch may be split at will.

    With spectral normalisation, the power iteration advances once in every forward pass in train mode, and in none in
    eval mode; nothing else differs between the modes. A step that calls the discriminator in train mode exactly once,
    on its first micro-batch, and in eval mode for everything else is the same step however often it accumulates.

    Args:
        base_channels: width of the first layer.
        num_layers: layers of stride 2.
        norm: "spectral" divides every convolution's weight by an estimate of its largest singular value; "group" puts
            GroupNorm, of 16 channels a group, where Isola et al. have batch normalisation (all layers but the first
            and the last); "none" does neither.
        in_channels: channels of a picture.

    Raises:
        ValueError: for counts below one, an unknown norm, or a `base_channels` that groups do not divide.
    """

    def __init__(
        self,
        base_channels: int = 64,
        num_layers: int = 3,
        norm: DiscriminatorNorm = "spectral",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        counts = {"base_channels": base_channels, "num_layers": num_layers, "in_channels": in_channels}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if norm not in ("spectral", "group", "none"):
            raise ValueError(f"norm must be spectral, group or none, got '{norm}'")
        if norm == "group" and 2 * base_channels % _GROUP:
            raise ValueError(
                f"norm 'group' normalises {_GROUP} channels at a time: base_channels must be a multiple of "
                f"{_GROUP // 2}, got {base_channels}"
            )
        self.in_channels = in_channels
        self.min_size = 3 * 2**num_layers
        width = base_channels
        layers: list[nn.Module] = [_conv(in_channels, width, 2, norm), nn.LeakyReLU(0.2)]
        for number in range(1, num_layers + 1):
            before, width = width, base_channels * min(2**number, 8)
            stride = 1 if number == num_layers else 2
            layers.append(_conv(before, width, stride, norm, bias=norm != "group"))  # GroupNorm has its own bias
            if norm == "group":
                layers.append(nn.GroupNorm(width // _GROUP, width))
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers, _conv(width, 1, 1, norm))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Judges pictures.

        Args:
            pixel_values: (B, in_channels, H, W), about [-1, 1]; what lies outside is not clamped. H and W at least
                3 · 2^num_layers.

        Returns:
            (B, 1, H // 2^num_layers - 2, W // 2^num_layers - 2) logits, high for what looks real.

        Raises:
            ValueError: for another shape.
        """
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != self.in_channels:
            raise ValueError(f"expected pictures of shape (B, {self.in_channels}, H, W), got {shape}")
        if min(shape[2:]) < self.min_size:
            raise ValueError(
                f"expected pictures of at least {self.min_size}x{self.min_size} pixels, got {shape[2]}x{shape[3]}: "
                "give larger pictures, or a discriminator with a smaller num_layers"
            )
        return self.layers(pixel_values)
