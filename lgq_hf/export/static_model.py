"""Encoder and decoder in plain operators, without branches on values: what `lgq_hf.export.onnx` traces.

Shapes: B images, H W pixels, f downsampling factor, h = H / f and w = W / f, N = B*h*w rows, C channels of a code,
K codes, G tokens per grid position, T codes that are scored again.

The network is the model's own. Its search for the nearest code looks at as many candidates as a bound does not
exclude, a number that depends on values. Here a product in float64 finds T candidates, and the model's own
`exact_scores` decides between them, so tokens are those of the model unless more than T different codes are equally
near to about 15 digits. Codes that are the same count as one. The product is an N x K matrix of 8 bytes a number.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lgq_hf import LGQModel
from lgq_hf.tokenizer.assignment_reference import exact_scores, score_divisors
from lgq_hf.tokenizer.quantizer_base import Quantizer
from lgq_hf.tokenizer.quantizer_bsq import BSQQuantizer
from lgq_hf.tokenizer.quantizer_fsq import FSQQuantizer
from lgq_hf.tokenizer.quantizer_ibq import IBQQuantizer
from lgq_hf.tokenizer.quantizer_lfq import LFQQuantizer
from lgq_hf.tokenizer.quantizer_lgq import LGQScalarQuantizer, LGQVectorQuantizer
from lgq_hf.tokenizer.quantizer_simvq import SimVQQuantizer
from lgq_hf.tokenizer.quantizer_vq import VQQuantizer

NO_TOKEN = -1  # of a latent that is not finite
_SCORED_AGAIN = 8  # T


class StaticEncoder(nn.Module):
    """`pixel_values` (B, 3, H, W) fp32 -> `image_tokens` (B, h, w) int64, or (B, h, w, G).

    Tokens are in [0, K). Where NaN or infinite pixels make a latent that is not finite, they are `NO_TOKEN`, which no
    decoder takes: a graph cannot refuse its input by a message.

    Args:
        model: in evaluation mode; its weights are shared, but for tables that are computed from them.
        with_rows: also return the latents (N, C) fp32, as they are compared with codes.

    Raises:
        ValueError: for a quantizer whose search is not known here.
    """

    def __init__(self, model: LGQModel, *, with_rows: bool = False) -> None:
        super().__init__()
        self.network = _network(model, ("encoder", "pre_quant_norm", "pre_quant"))
        self.search = _search(model.quantizer)
        self.with_rows = with_rows

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """See the class."""
        latents = self.network.latents(pixel_values)
        batch, channels, height, width = latents.shape
        rows_NC = latents.permute(0, 2, 3, 1).reshape(-1, channels)
        tokens = self.search(rows_NC)
        finite_N = torch.isfinite(rows_NC).all(dim=1)
        tokens = torch.where(finite_N if tokens.ndim == 1 else finite_N[:, None], tokens, NO_TOKEN)
        image_tokens = tokens.reshape(batch, height, width, *tokens.shape[1:])
        return (image_tokens, rows_NC) if self.with_rows else image_tokens


class StaticDecoder(nn.Module):
    """`image_tokens` (B, h, w) int64, or (B, h, w, G), -> `decoded_pixel_values` (B, 3, h*f, w*f) fp32.

    Tokens outside [0, K), negative ones too, end the run: by the error of `Quantizer.check_tokens` in a program of
    torch. ONNX has no assertions; there a lookup in a table of one row fails.
    """

    inside: Tensor

    def __init__(self, model: LGQModel) -> None:
        super().__init__()
        self.network = _network(model, ("post_quant", "decoder"))
        quantizer = model.quantizer
        self.check = quantizer.check_tokens  # the method alone: what is in `_Lookup` is all that it needs of weights
        self.codebook_size = quantizer.codebook_size
        self.lookup = _Lookup(quantizer)
        self.register_buffer("inside", torch.zeros(1, 1, dtype=torch.int64))

    def forward(self, image_tokens: Tensor) -> Tensor:
        """See the class."""
        self.check(image_tokens)
        outside = (image_tokens < 0) | (image_tokens >= self.codebook_size)
        image_tokens = image_tokens + F.embedding(outside.long(), self.inside)[..., 0]
        codes_NC = self.lookup(image_tokens.flatten(0, 2))
        codes = codes_NC.reshape(*image_tokens.shape[:3], codes_NC.shape[1]).permute(0, 3, 1, 2)
        decoded: Tensor = self.network.decode_codes(codes.contiguous()).decoded_pixel_values
        return decoded


def _network(model: LGQModel, parts: tuple[str, ...]) -> Any:
    """The model with some of its modules, since the weights of all would be in every program; they are shared."""
    network = copy.copy(model)
    network._modules = {name: module for name, module in model._modules.items() if name in parts}
    return network


def _search(quantizer: Quantizer) -> nn.Module:
    """Latents (N, C) fp32 -> tokens (N,) or (N, G) int64."""
    kind = type(quantizer)  # exactly this: a class derived from it may search otherwise
    searches: dict[type, Callable[[Any], nn.Module]] = {
        LGQVectorQuantizer: lambda own: TableSearch(own.centers, own.widths, own.distance),
        SimVQQuantizer: lambda own: TableSearch(own._table(), None, "sq_l2"),
        VQQuantizer: lambda own: TableSearch(own.codebook, None, own.distance),
        IBQQuantizer: lambda own: TableSearch(own.codebook, None, own.distance),
        LGQScalarQuantizer: _BinSearch,
        **dict.fromkeys((FSQQuantizer, LFQQuantizer, BSQQuantizer), _Rounding),
    }
    if kind not in searches:
        raise ValueError(
            f"a {kind.__name__} cannot be exported: its search for tokens has no form without branches on values. Add "
            "one to lgq_hf/export/static_model.py"
        )
    return searches[kind](quantizer)


class TableSearch(nn.Module):
    """The code that wins each row, as `nearest_code`: latents (N, C) fp32 -> (N,) int64; NaN gets some number."""

    numbers_K: Tensor
    centers_KC: Tensor
    divisors_K: Tensor

    def __init__(self, centers_KC: Tensor, widths_K: Tensor | None, distance: str) -> None:
        super().__init__()
        self.distance, self.shared = distance, widths_K is None
        centers_KC = centers_KC.detach()
        # computed here, since another runtime's softplus may round differently
        divisors_K = score_divisors(centers_KC, None if widths_K is None else widths_K.detach(), distance)
        group_K = torch.cat([centers_KC.double(), divisors_K[:, None]], dim=1).unique(dim=0, return_inverse=True)[1]
        number_K = torch.arange(len(group_K))
        first_K = torch.full_like(number_K, len(group_K)).scatter_reduce(0, group_K, number_K, "amin")
        # of codes that are the same the lowest number wins, and the others would crowd the candidates
        self.register_buffer("numbers_K", first_K[first_K < len(group_K)].sort().values)
        self.register_buffer("centers_KC", centers_KC[self.numbers_K])
        self.register_buffer("divisors_K", divisors_K[self.numbers_K])

    def forward(self, x_NC: Tensor) -> Tensor:
        """See the class."""
        scores_NK = self._scores(x_NC.double(), self.centers_KC.double())
        codes = len(self.numbers_K)
        # argmax takes the lowest of equal scores, topk any of them
        highest = [scores_NK.argmax(dim=1, keepdim=True), scores_NK.topk(min(_SCORED_AGAIN, codes), dim=1).indices]
        code_NT = torch.cat(highest, dim=1)
        exact_NT = exact_scores(x_NC[:, None], self.centers_KC[code_NT], self.divisors_K[code_NT], self.distance)
        wins_NT = exact_NT == exact_NT.amax(dim=1, keepdim=True)
        return self.numbers_K[torch.where(wins_NT, code_NT, codes - 1).amin(dim=1)]

    def _scores(self, x_NC: Tensor, centers_KC: Tensor) -> Tensor:
        """Float64 scores as one product, up to what is the same for all codes; around the mean code, as it cancels."""
        divisors_K1 = self.divisors_K[:, None]
        if self.distance not in ("sq_l2", "l2"):
            return x_NC @ (centers_KC / divisors_K1).T
        mean_C = centers_KC.mean(dim=0)
        x_NC, centers_KC = x_NC - mean_C, centers_KC - mean_C
        square_N1, square_K1 = (v.square().sum(dim=1, keepdim=True) for v in (x_NC, centers_KC))
        features = [2 * x_NC, torch.ones_like(square_N1)], [centers_KC, -square_K1]
        if not self.shared:
            features[0].append(square_N1)
            features[1].append(-torch.ones_like(square_K1))
        return torch.cat(features[0], dim=1) @ (torch.cat(features[1], dim=1) / divisors_K1).T


class _BinSearch(nn.Module):
    """The nearest bin of each channel, by the exact scores of all of them."""

    def __init__(self, quantizer: LGQScalarQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        channels = quantizer._channels(torch.empty(0, quantizer.code_dim))
        for channel, (_, bins_L1, widths_L) in enumerate(channels):
            self.register_buffer(f"bins_{channel}", bins_L1.detach())
            self.register_buffer(f"divisors_{channel}", score_divisors(bins_L1, widths_L, "sq_l2").detach())

    def forward(self, x_NC: Tensor) -> Tensor:
        bins = []
        for channel in range(x_NC.shape[1]):
            table = getattr(self, f"bins_{channel}"), getattr(self, f"divisors_{channel}")
            bins.append(exact_scores(x_NC[:, channel, None, None], *table, "sq_l2").argmax(dim=1))
        return self.quantizer._to_tokens(torch.stack(bins, dim=1))


class _Rounding(nn.Module):
    """Tokens by rounding or by signs, in float64: another runtime's tanh in fp32 may be off by a few digits more."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x_NC: Tensor) -> Tensor:
        return self.quantizer.assign_rows(x_NC.double())


class _Lookup(nn.Module):
    """Tokens (N,) or (N, G) -> codes (N, C) fp32: rows of a table that is computed once, where there is one."""

    table_KC: Tensor

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = None if isinstance(quantizer, LGQVectorQuantizer | VQQuantizer) else quantizer
        if self.quantizer is None:
            self.register_buffer("table_KC", quantizer.lookup_rows(torch.arange(quantizer.codebook_size)).detach())

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.table_KC) if self.quantizer is None else self.quantizer.lookup_rows(tokens)


__all__ = ["NO_TOKEN", "StaticDecoder", "StaticEncoder", "TableSearch"]
