"""How both samplers are defined, picture by picture and place by place, in plain loops and float64."""

import math
from typing import Any

import torch

from lgq_hf.tokens.collators import SCHEDULES


def draw(logits: torch.Tensor, number: float, temperature: float, top_k: int | None, top_p: float | None) -> int:
    """The code whose share of [0, 1) the number lies in."""
    weights = (logits.double() / temperature).softmax(-1)
    order = weights.argsort(descending=True).tolist()
    kept = order[:top_k]
    if top_p is not None:
        total, nucleus = 0.0, []
        of_kept = sum(float(weights[code]) for code in kept)
        for code in kept:
            if total < top_p * of_kept:
                nucleus.append(code)
            total += float(weights[code])
        kept = nucleus
    total, wanted = 0.0, number * sum(float(weights[code]) for code in sorted(kept))
    for code in sorted(kept):
        total += float(weights[code])
        if total > wanted:
            return code
    raise AssertionError("numbers are below 1")


def _guided(with_class: torch.Tensor, without: torch.Tensor, scale: float) -> torch.Tensor:
    return without.double() + scale * (with_class.double() - without.double())


@torch.no_grad()
def masked_tokens(
    network: Any,
    label: int,
    seed: int,
    *,
    steps: int,
    schedule: str,
    guidance: float,
    temperature: float,
    choice_temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> list[int]:
    """MaskGIT's decoding of one picture."""
    config = network.config
    length, mask = config.num_image_tokens, config.codebook_size
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand((steps, 2, length), generator=generator, dtype=torch.float64).tolist()
    counts, before = [], length
    for step in range(1, steps + 1):
        share = SCHEDULES[schedule](step / steps) if step < steps else 0.0
        before = max(0, min(math.floor(length * share + 1e-9), before - 1))
        counts.append(before)
    own_steps = counts.index(0) + 1
    tokens = [mask] * length
    for step in range(own_steps):
        ids = torch.tensor([tokens])
        pair = [network(ids, torch.tensor([one])).logits[0] for one in (label, config.num_classes)]
        logits = _guided(*pair, guidance)
        confidence = {}
        for place in [place for place in range(length) if tokens[place] == mask]:
            code = draw(logits[place], noise[step][0][place], temperature, top_k, top_p)
            tokens[place] = code
            gumbel = -math.log(-math.log(noise[step][1][place]))
            noisy = choice_temperature * (1 - (step + 1) / own_steps) * gumbel
            confidence[place] = float(logits[place].log_softmax(-1)[code]) + noisy
        for place in sorted(confidence, key=lambda place: confidence[place])[: counts[step]]:
            tokens[place] = mask
    return tokens


@torch.no_grad()
def autoregressive_tokens(
    network: Any,
    codes: int,
    label: int,
    null: int,
    length: int,
    seed: int,
    *,
    guidance: float,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> list[int]:
    """Token after token, each by a pass over all before it."""
    numbers = torch.rand(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    tokens: list[int] = []
    for number in numbers:
        pair = [
            network(torch.tensor([[codes + one, *tokens]]), use_cache=False).logits[0, -1, :codes]
            for one in (label, null)
        ]
        tokens.append(draw(_guided(*pair, guidance), number, temperature, top_k, top_p))
    return tokens
