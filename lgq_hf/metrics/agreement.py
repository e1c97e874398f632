"""Whether a network still sees the same thing in a reconstruction.

Shapes: B pictures, M classes.
"""

from torch import Tensor


def top1_agreement(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    """Where argmax_m a_bm = argmax_m b_bm: a classifier names the same class first for both pictures of a pair.

    The share of agreeing pairs, the mean over B, is the rate at which reconstructions keep what a classifier sees;
    no labels are needed. It says nothing about whether that class is right, and it depends on the classifier: name it
    beside the number. Of equal scores the class that comes first counts. Stanton et al. 2021 ("Does knowledge
    distillation really work?") call the mean "average top-1 agreement", of two networks on one picture.

    Args:
        logits_a: scores of M classes for each picture (B,M), floating point, finite, in any unit: only their order
            within a row counts.
        logits_b: those of the pictures to compare with, of the same shape and on the same device.

    Returns:
        (B,) bool, on the device of the scores.

    Raises:
        ValueError: other shapes or dtypes, shapes that differ, no picture, fewer than 2 classes, or NaN or infinities.
    """
    for name, logits in (("logits_a", logits_a), ("logits_b", logits_b)):
        if logits.ndim != 2 or not len(logits) or logits.shape[1] < 2 or not logits.is_floating_point():
            expected = f"{name}: expected floats (B,M) of at least 1 picture and 2 classes"
            raise ValueError(f"{expected}, got shape {tuple(logits.shape)}, {logits.dtype}")
    if logits_a.shape != logits_b.shape:
        got = f"{tuple(logits_a.shape)} and {tuple(logits_b.shape)}"
        raise ValueError(f"expected scores of the same pictures and classes, got shapes {got}")
    for name, logits in (("logits_a", logits_a), ("logits_b", logits_b)):
        if not bool(logits.isfinite().all()):  # the largest of NaN is NaN: two such rows would seem to agree
            raise ValueError(f"{name}: expected finite scores, got NaN or infinities: look at the pictures")
    return logits_a.argmax(1) == logits_b.argmax(1)


__all__ = ["top1_agreement"]
