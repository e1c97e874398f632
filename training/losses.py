"""The losses of a tokenizer, and the discriminator."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight
from torch.nn.utils.parametrizations import spectral_norm

PixelLoss = Literal["l1", "l2"]


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def pixel_loss(kind: PixelLoss, decoded: Tensor, pixels: Tensor) -> Tensor:
    """Mean distance of decoded pictures from their originals.

    Args:
        kind: "l1" for |d|, "l2" for d².
        decoded: (B, C, H, W), any range; not clamped.
        pixels: (B, C, H, W) in the same units.

    Returns:
        0-dim mean over all values.

    Raises:
        ValueError: for shapes that differ or an unknown kind.
    """
    if decoded.shape != pixels.shape:
        raise ValueError(
            f"expected decoded pictures of the originals' shape {tuple(pixels.shape)}, got {tuple(decoded.shape)}"
        )
    difference = _at_least_float32(decoded) - _at_least_float32(pixels)
    if kind == "l1":
        return difference.abs().mean()
    if kind == "l2":
        return difference.square().mean()
    raise ValueError(f"pixel loss must be l1 or l2, got '{kind}'")


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """½ mean relu(1 - D(x)) + ½ mean relu(1 + D(x̂)): 0-dim, from logits of any shapes.

    Lim & Ye 2017 (arXiv 1705.02894); the halves as in the code of Esser et al. 2021.
    """
    real, fake = _at_least_float32(real_logits), _at_least_float32(fake_logits)
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """-mean D(x̂): 0-dim, from logits of any shape (Lim & Ye 2017, arXiv 1705.02894)."""
    return -_at_least_float32(fake_logits).mean()


class LeCam(nn.Module):
    """Keeps a discriminator's logits near the moving averages of the other kind (Tseng et al. 2021, arXiv 2104.03310).

    Args:
        decay: of the averages, per update; between 0 and 1.

    Attributes:
        real: 0-dim buffer, average over the updates of the mean logit of originals. Its weights sum to 1 from the
            first update on (the corrected average of Kingma & Ba 2015, section 3); 0 before.
        fake: the same of decoded pictures.
        updates: 0-dim int64 buffer, how many there were.

    Raises:
        ValueError: for a decay out of range.
    """

    real: Tensor
    fake: Tensor
    updates: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, got {decay}")
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def regularizer(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """mean relu(D(x) - fake)² + mean relu(real - D(x̂))²: 0-dim, from logits of any shapes.

        R_LC of the paper, with a relu so that logits on the wrong side of the other kind's average are left to the
        hinge loss. The averages get no gradient.
        """
        real, fake = _at_least_float32(real_logits), _at_least_float32(fake_logits)
        return F.relu(real - self.fake).square().mean() + F.relu(self.real - fake).square().mean()

    @torch.no_grad()
    def update(self, real_mean: Tensor, fake_mean: Tensor, keep: Tensor | None = None) -> None:
        """Takes one optimizer step's mean logits, 0-dim, of all micro-batches and processes, into the averages.

        Args:
            keep: 0-dim bool on the device; where it is true, the averages stay as they are, whatever the means.
        """
        if keep is not None:
            real_mean, fake_mean = torch.where(keep, self.real, real_mean), torch.where(keep, self.fake, fake_mean)
        self.updates += 1
        log_decay = math.log(self.decay)
        share = (1 - self.decay) / -torch.expm1(log_decay * self.updates)  # 1 at first, 1 - decay after many
        self.real += share * (_at_least_float32(real_mean) - self.real)
        self.fake += share * (_at_least_float32(fake_mean) - self.fake)


@torch.no_grad()
def conv_weight_gradient(inputs: Tensor, grad_outputs: Tensor, conv: nn.Conv2d) -> Tensor:
    """Gradient at the weight of a convolution, from what went in and the gradient at what came out.

    So the gradients of two losses at the last layer need one backward pass each to the decoded picture, and none
    through the decoder.

    Args:
        inputs: (B, C, H, W).
        grad_outputs: (B, O, H', W'), of the size that `conv` gives.
        conv: with zero padding given in numbers.

    Returns:
        (O, C / groups, kH, kW), detached.

    Raises:
        ValueError: for shapes that do not fit, or another padding.
    """
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        raise ValueError(
            f"expected a convolution with zero padding given in numbers, got padding={conv.padding!r}, "
            f"padding_mode='{conv.padding_mode}'"
        )
    sizes = [
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, padding, dilation, kernel, stride in zip(
            inputs.shape[2:], conv.padding, conv.dilation, conv.kernel_size, conv.stride, strict=True
        )
    ]
    wanted = (inputs.shape[0], conv.out_channels, *sizes)
    if inputs.shape[1] != conv.in_channels or grad_outputs.shape != wanted:
        raise ValueError(
            f"expected inputs of {conv.in_channels} channels and the gradient at their outputs, {wanted}, "
            f"got {tuple(inputs.shape)} and {tuple(grad_outputs.shape)}"
        )
    return conv2d_weight(
        _at_least_float32(inputs),
        conv.weight.shape,
        _at_least_float32(grad_outputs),
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
    )


@torch.no_grad()
def adaptive_weight(reconstruction_gradient: Tensor, gan_gradient: Tensor, cap: float) -> Tensor:
    """Factor on the generator's loss that makes it pull the last layer as hard as reconstruction does.

    Esser et al. 2021 (arXiv 2012.09841), eq. 7: ‖∇rec‖ / (‖∇gan‖ + 10⁻⁶), at most `cap`.

    Args:
        reconstruction_gradient: at the decoder's last weight, of any shape; of the whole batch, so summed over
            micro-batches and processes first.
        gan_gradient: the same of the generator's loss, before any weight.
        cap: positive.

    Returns:
        0-dim, without gradient. NaN where either gradient is not finite: the loss then shows it, and the cap does not
        hide it.

    Raises:
        ValueError: for a cap that is not positive.
    """
    if not cap > 0:
        raise ValueError(f"cap must be positive, got {cap}")
    reconstruction, gan = (
        torch.linalg.vector_norm(_at_least_float32(gradient)) for gradient in (reconstruction_gradient, gan_gradient)
    )
    weight = (reconstruction / (gan + 1e-6)).clamp(max=cap)
    return torch.where(torch.isfinite(reconstruction + gan), weight, torch.nan)


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
