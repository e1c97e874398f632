"""How likely held-out tokens are to a generator: cross entropy, in nats and in bits.

Shapes: B rows, T tokens of each, K codes.

Autoregressive generators give it exactly: the mean of -log2 p(token | class, tokens before it), p over the K codes.

Masked generators have no order, and fill in a row in any. What a row costs on average over all orders is an upper
bound of -log2 of its probability: Hoogeboom et al. 2022, Autoregressive Diffusion Models (arXiv 2110.02037), eq. 4. An
unbiased estimate of it, a token: mask a number of tokens uniform on 1 to T, at places drawn uniformly, and take the
mean cross entropy of those masked; then the mean over rows. `MaskedCollator(schedule="linear")` masks in this way.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lgq_hf.generation.sampling import at_least_fp32
from lgq_hf.tokens.collators import IGNORED, AutoregressiveCollator, MaskedCollator

LABELS, CLASSES = "labels", "class_labels"
_LARGEST = 700.0  # nats whose exponential is still a float
PROTOCOLS = {
    "autoregressive": "exact: mean of -log2 p(token | class, tokens before it), over the codes alone",
    "masked": "upper bound: cross entropy of masked tokens, their number uniform on 1 to all of a row's, mean over a "
    "row's masked tokens, then over rows (arXiv 2110.02037, eq. 4), one draw for each row, the same at every "
    "measurement",
}


def held_out_collator(kind: str, *, codebook_size: int, num_classes: int) -> AutoregressiveCollator | MaskedCollator:
    """What makes the batches that `held_out` wants for a generator of a kind in `PROTOCOLS`; no label is dropped."""
    if kind == "masked":
        return MaskedCollator(codebook_size, num_classes, schedule="linear")
    return AutoregressiveCollator(codebook_size, num_classes, shift=True)


def code_logits(model: nn.Module, batch: Mapping[str, Tensor], codebook_size: int) -> Tensor:
    """Logits (B,T,K) of a generator of either kind, or of a wrapper around it.

    Args:
        model: `LGQMaskedTransformer` or `LlamaForCausalLM`.
        batch: of `MaskedCollator` or of `AutoregressiveCollator(shift=True)`, on the model's device; `labels` are left
            out.
        codebook_size: K.
    """
    inputs: dict[str, Any] = {name: tensor for name, tensor in batch.items() if name != LABELS}
    if CLASSES not in batch:  # a Llama, which would keep keys and values for a next call that does not come
        inputs["use_cache"] = False
    logits: Tensor = model(**inputs).logits
    return logits[..., :codebook_size]


@torch.no_grad()
def held_out(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], codebook_size: int) -> Tensor:
    """Sums over rows, which can be added up over processes before `summary` reads them.

    Args:
        model: as in `code_logits`; in evaluation mode, in the precision that is to be measured.
        batches: of `held_out_collator`, on any device.
        codebook_size: K.

    Returns:
        (2,) float64 on the model's device: the rows' mean cross entropies over their labels, in nats, and the rows.

    Raises:
        ValueError: a model in training mode, whose dropout would be measured too.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first, or dropout is measured too")
    device = next(model.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for given in batches:
        batch = {name: tensor.to(device) for name, tensor in given.items()}
        logits, labels = at_least_fp32(code_logits(model, batch, codebook_size)), batch[LABELS]
        nats = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        of_rows = nats.view_as(labels).double().sum(1) / (labels != IGNORED).sum(1)
        sums += torch.stack([of_rows.sum(), of_rows.new_tensor(float(len(of_rows)))])
    return sums


def summary(sums: Tensor, *, tokens: int, pixels: int) -> dict[str, float]:
    """What the sums of `held_out` come to.

    Args:
        sums: (2,), of all rows.
        tokens: T of a picture.
        pixels: of that picture.

    Returns:
        `loss` in nats a token, `bits_per_token`, `perplexity` in codes (2 to the power of bits_per_token),
        `bits_per_pixel` and `rows`.

    Raises:
        ValueError: no rows.
    """
    nats, rows = sums.tolist()
    if not rows:
        raise ValueError("no rows were measured: give at least one")
    loss = nats / rows
    bits = loss / math.log(2)
    return {
        "loss": loss,
        "bits_per_token": bits,
        "perplexity": math.exp(loss) if loss < _LARGEST else math.inf,
        "bits_per_pixel": bits * tokens / pixels,
        "rows": int(rows),
    }


__all__ = ["PROTOCOLS", "code_logits", "held_out", "held_out_collator", "summary"]
