"""How tokens are drawn from logits: pure functions of logits and numbers in [0, 1).

Shapes: B pictures, T tokens of each, N rows of logits, K codes. A number u decides a token by the inverse of the
cumulative distribution, so what is drawn does not depend on how rows are batched, nor on how a network was run, except
by the rounding of its logits.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_LOGITS_AT_ONCE = 2**24  # of which float64 copies are made
Generators = torch.Generator | Sequence[torch.Generator] | None


def uniform_noise(shape: Sequence[int], count: int, generator: Generators, device: torch.device) -> Tensor:
    """Numbers in [0, 1) of shape (count, *shape), float64 where the device has it.

    Args:
        shape: of what one picture needs.
        count: B.
        generator: one for all, from which pictures draw in turn; one for each; or `None` for torch's own of the
            device. Numbers are drawn where the generator is, and then moved.
        device: where they are wanted.

    Raises:
        ValueError: another number of generators than pictures.
    """
    if isinstance(generator, Sequence):
        if len(generator) != count:
            raise ValueError(f"expected one generator, or one for each of {count} pictures, got {len(generator)}")
        several: list[torch.Generator | None] = list(generator)
    else:
        several = [generator] * count
    rows = []
    for one in several:
        place = device if one is None else one.device
        dtype = torch.float32 if "mps" in (place.type, device.type) else torch.float64
        rows.append(torch.rand(tuple(shape), generator=one, device=place, dtype=dtype).to(device))
    return torch.stack(rows)


def at_least_fp32(logits: Tensor) -> Tensor:
    """In float32, or in float64 where they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def guide(with_class: Tensor, without: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): without + scale * (with_class - without).

    A scale of 1 is `with_class` and one of 0 `without`, both exactly. Shapes are equal and any.
    """
    return torch.lerp(without, with_class, scale)


def filter_logits(logits: Tensor, *, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Logits (..., K) with -inf for all but the likeliest codes.

    Args:
        logits: of any shape.
        top_k: how many codes stay; those that tie with the last of them stay too. `None`: all.
        top_p: the fewest codes stay whose probabilities sum to at least this (Holtzman et al. 2020, arXiv
            1904.09751). `None`: all.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    return logits


def sample(
    logits: Tensor,
    noise: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Draws one code of each row.

    Args:
        logits: (N, K), finite.
        noise: (N,) in [0, 1): the same number draws the same code.
        temperature: logits are divided by it; 0 takes the likeliest code, of several the first.
        top_k, top_p: as in `filter_logits`, after the temperature.

    Returns:
        (N,) int64 in [0, K). A code with probability 0 is never drawn.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # the largest stays finite, however cold it is
    logits = filter_logits(logits, top_k=top_k, top_p=top_p)
    cumulative = logits.softmax(-1).to(noise.dtype).cumsum(-1)  # in fp32 the tail of many codes would be lost
    total = cumulative[:, -1:]
    wanted = torch.minimum(noise[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    drawn = torch.searchsorted(cumulative, wanted, right=True)[:, 0]
    return drawn.clamp_max(logits.shape[1] - 1)  # beyond the last code only where logits are NaN


def masked_counts(masked_B: Tensor, steps: int, schedule: Callable[[float], float]) -> Tensor:
    """How many tokens are still masked after each step.

    Args:
        masked_B: (B,) int64, how many are masked before the first step.
        steps: at least 1.
        schedule: share of them that is masked at r in [0, 1], from 1 down to 0; one of `SCHEDULES`.

    Returns:
        (steps, B) int64: floor(schedule(i / steps) * masked) after step i, but at least one fewer than before, down
        to 0; and 0 after the last step.
    """
    counts, before = [], masked_B
    for step in range(1, steps + 1):
        share = schedule(step / steps) if step < steps else 0.0
        wanted = (masked_B.double() * share + 1e-9).floor().long()  # 0.3 * 10 is 3, whatever its rounding
        before = torch.minimum(wanted, before - 1).clamp_min(0)
        counts.append(before)
    return torch.stack(counts)


def fill_masked(
    logits_BTK: Tensor,
    tokens_BT: Tensor,
    masked_BT: Tensor,
    keep_B: Tensor,
    noise_B2T: Tensor,
    *,
    choice_temperature: Tensor | float,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of MaskGIT's decoding (arXiv 2202.04200, section 3.2): draws masked tokens, keeps the likeliest.

    Args:
        logits_BTK: of the codes.
        tokens_BT: int64; what stands at masked places is not looked at.
        masked_BT: bool, which tokens are not known.
        keep_B: (B,) int64, how many of them stay masked.
        noise_B2T: in [0, 1): for the draw, and for Gumbel noise on the confidences.
        choice_temperature: factor of that noise, a number or (B, 1); 0 keeps the likeliest.
        temperature, top_k, top_p: of the draw, as in `sample`.

    Returns:
        Tokens (B, T) and what is masked now (B, T). Known tokens are never changed, nor masked. What stands at places
        that stay masked has no meaning.
    """
    drawn_N, log_p_N = _draw(
        logits_BTK[masked_BT], noise_B2T[:, 0][masked_BT], temperature=temperature, top_k=top_k, top_p=top_p
    )
    tokens = tokens_BT.masked_scatter(masked_BT, drawn_N)
    tiny = torch.finfo(noise_B2T.dtype).tiny
    gumbel = -torch.log((-torch.log(noise_B2T[:, 1].clamp_min(tiny))).clamp_min(tiny))
    confidence = torch.full_like(gumbel, torch.inf).masked_scatter(masked_BT, log_p_N.to(gumbel.dtype))
    confidence = torch.where(masked_BT, confidence + choice_temperature * gumbel, confidence)
    rank = confidence.argsort(dim=-1, stable=True).argsort(dim=-1)
    return tokens, masked_BT & (rank < keep_B[:, None])


def _draw(logits_NK: Tensor, noise_N: Tensor, **options: float | None) -> tuple[Tensor, Tensor]:
    """Drawn codes (N,), and the log of their probability (N,) at temperature 1 and without a filter."""
    rows = max(1, _LOGITS_AT_ONCE // max(1, logits_NK.shape[1]))
    drawn, log_p = [], []
    for logits, noise in zip(logits_NK.split(rows), noise_N.split(rows), strict=True):
        drawn.append(sample(logits, noise, **options))  # type: ignore[arg-type]
        log_p.append(logits.log_softmax(-1).gather(-1, drawn[-1][:, None])[:, 0])
    return torch.cat(drawn), torch.cat(log_p)


__all__ = [
    "Generators",
    "at_least_fp32",
    "fill_masked",
    "filter_logits",
    "guide",
    "masked_counts",
    "sample",
    "uniform_noise",
]
