"""Binary spherical quantization (arXiv 2406.07548; zhaoyue-zephyrus/bsq-vit)."""

from torch import Tensor
from torch.nn import functional as F

from .configuration_lgq import LGQConfig
from .quantizer_lfq import LFQQuantizer


class BSQQuantizer(LFQQuantizer):
    """Signs of latents on the unit sphere: u = z / |z|, code sign(u) / sqrt(C), which has length 1 too.

    As [`LFQQuantizer`], with u for z and these codes. Published: `commitment_weight` is 0 (its term is a sum over
    channels there, here a mean), the entropy term is divided by the inverse temperature (multiply `entropy_weight` by
    the temperature for the same number), its groups have 9 bits, and the decoder's gradient reaches u times
    1 / sqrt(C).
    """

    name = "bsq"

    def __init__(self, config: LGQConfig) -> None:
        super().__init__(config)
        self.scale = self.code_dim**-0.5

    def comparable(self, x_NC: Tensor) -> Tensor:
        """Latents at length 1."""
        return F.normalize(x_NC, dim=1)

    def carrier(self, x_NC: Tensor) -> Tensor:
        """As published: the sign's gradient is 1, and 1 / sqrt(C) follows it."""
        return x_NC * self.scale


__all__ = ["BSQQuantizer"]
