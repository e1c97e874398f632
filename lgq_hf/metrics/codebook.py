"""How a tokenizer uses its codes, from a histogram over a whole set of pictures.

Shapes: K codes. Histograms of parts (batches, processes) add up to that of the whole; shares, entropies and
perplexities of parts do not average to it.
"""

import torch
from torch import Tensor


def count_tokens(image_tokens: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs.

    Args:
        image_tokens: tokens of any shape, integers in [0, K). On an accelerator their range is not looked at, as that
            would wait for the device; there a token out of range ends in the device's own index error.
        codebook_size: K, at least 1.

    Returns:
        (K,) int64, on the device of the tokens.

    Raises:
        ValueError: tokens that are no integers, K below 1, or (on a CPU) tokens outside [0, K).
    """
    if codebook_size < 1:
        raise ValueError(f"codebook_size: expected at least 1, got {codebook_size}")
    if image_tokens.is_floating_point() or image_tokens.is_complex() or image_tokens.dtype == torch.bool:
        raise ValueError(f"image_tokens: expected integers, got {image_tokens.dtype}")
    tokens = image_tokens.reshape(-1).long()
    if tokens.device.type == "cpu" and len(tokens):
        low, high = (int(value) for value in tokens.aminmax())
        if low < 0 or high >= codebook_size:
            raise ValueError(f"image_tokens: expected tokens in [0, {codebook_size}), got {low} to {high}")
    counts_K = torch.zeros(codebook_size, dtype=torch.int64, device=tokens.device)
    return counts_K.scatter_add_(0, tokens, torch.ones_like(tokens))  # bincount would ask the device for the maximum


def codebook_statistics(counts_K: Tensor) -> dict[str, int | float]:
    """What a histogram of tokens says about the codebook. All in float64, with 0 log 0 = 0.

    The entropy is Shannon's (1948, section 6), the perplexity its exponential (Jelinek et al. 1977): as many codes as
    would, evenly used, have the same entropy. That a tenth of even use is where a code begins to count is a convention
    of this project.

    Args:
        counts_K: (K,) integers, how often each code occurred (`count_tokens`, summed over batches and processes).

    Returns:
        tokens: N, the sum of the counts. Every number below depends on it: N tokens use at most N codes.
        codebook_size: K.
        codes_used: codes with a count of at least 1.
        share_used: codes_used / K, in [0, 1].
        codes_used_tenth: codes with a count of at least 0.1 N / K, a tenth of what even use would give.
        share_used_tenth: codes_used_tenth / K, in [0, 1].
        dead_codes: codes with a count of 0; K - codes_used.
        entropy_bits: H = -sum_k p_k log2 p_k with p_k = count_k / N, in bits per token, in [0, log2 K].
        perplexity: 2^H, in codes, in [1, K].

    Raises:
        ValueError: not one dimension, no codes, no integers, a negative count, or no tokens at all.
    """
    if counts_K.ndim != 1 or not len(counts_K):
        raise ValueError(f"counts: expected one count for each code (K,), got shape {tuple(counts_K.shape)}")
    if counts_K.is_floating_point() or counts_K.is_complex() or counts_K.dtype == torch.bool:
        raise ValueError(f"counts: expected integers, got {counts_K.dtype}")
    counts_K = counts_K.detach().cpu().long()
    if int(counts_K.min()) < 0:
        raise ValueError(f"counts: expected none below 0, got {int(counts_K.min())}")
    codes, tokens = len(counts_K), int(counts_K.sum())
    if not tokens:
        raise ValueError(f"counts: expected at least one token, got {codes} codes that all have a count of 0")
    used_K = counts_K > 0
    used = int(used_K.sum())
    tenth = int((counts_K >= -(-tokens // (10 * codes))).sum())  # 0.1 N / K rounded up, in integers
    p = counts_K[used_K].double() / tokens
    entropy = abs(float((p * p.log2()).sum()))  # the sum is at most 0, and -0.0 where one code has all tokens
    return {
        "tokens": tokens,
        "codebook_size": codes,
        "codes_used": used,
        "share_used": used / codes,
        "codes_used_tenth": tenth,
        "share_used_tenth": tenth / codes,
        "dead_codes": codes - used,
        "entropy_bits": entropy,
        "perplexity": 2.0**entropy,
    }


__all__ = ["codebook_statistics", "count_tokens"]
