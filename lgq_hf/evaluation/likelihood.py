"""How likely held-out tokens are to a generator: cross entropy, in nats and in bits.

Shapes: B rows, T tokens of each, K codes.

Autoregressive generators give it exactly: the mean of -log2 p(token | class, tokens before it), p over the K codes.

Masked generators have no order, and fill in a row in any. What a row costs on average over all orders is an upper
bound of -log2 of its probability: Hoogeboom et al. 2022, Autoregressive Diffusion Models (arXiv 2110.02037), eq. 4. An
unbiased estimate of it, a token: mask a number of tokens uniform on 1 to T, at places drawn uniformly, and take the
mean cross entropy of those masked; then the mean over rows. `MaskedCollator(schedule="linear")` masks in this way."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lgq_hf.generation.pipeline_base import LGQPipeline, check_made_by
from lgq_hf.generation.pipeline_masked import LGQMaskedPipeline
from lgq_hf.generation.sampling import at_least_fp32
from lgq_hf.images.sources import LABEL
from lgq_hf.tokens.collators import IGNORED, AutoregressiveCollator, MaskedCollator
from lgq_hf.tokens.manifest import Manifest
from lgq_hf.tokens.reading import Row, TokenStream

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


def held_out_bits(
    pipe: LGQPipeline, place: str | os.PathLike[str], *, batch_size: int = 16
) -> tuple[dict[str, float], dict[str, Any]]:
    """Measures the network on all rows of a folder of token shards, with their labels.

    Args:
        pipe: the generator, in evaluation mode.
        place: folder that `lgq tokenize` finished, of pictures that the generator did not learn from.
        batch_size: rows at once.

    Returns:
        `bits_per_token`, `bits_per_pixel` and `perplexity` (codes), as `likelihood.summary` defines them; and their
        protocol: `bits` says how, then `held_out_rows`, `held_out_source_sha256`, `held_out_classes`.

    Raises:
        ValueError: no tokens there, of another tokenizer, another grid, or labels that the generator does not know.
    """
    stream = TokenStream(place, rank=0, world_size=1, shuffle_buffer=0)
    manifest = stream.manifest
    check_made_by(pipe.vqvae, manifest.tokenizer)
    if manifest.grid != list(pipe.grid):
        found = " x ".join(map(str, manifest.grid)) if manifest.grid else "several sizes"
        raise ValueError(f"tokens in {place}: expected grids of {pipe.grid[0]} x {pipe.grid[1]}, got {found}")
    kind = "masked" if isinstance(pipe, LGQMaskedPipeline) else "autoregressive"
    collate = held_out_collator(kind, codebook_size=pipe.codebook_size, num_classes=pipe.num_classes)
    numbers = _class_numbers(pipe, manifest, stream.place)

    def batch(rows: Sequence[Row]) -> dict[str, Tensor]:
        return collate(rows if numbers is None else [{**row, LABEL: numbers[row[LABEL]]} for row in rows])

    # a generator of its own, as torch's global one would be moved
    loader = DataLoader(stream, batch_size=batch_size, collate_fn=batch, generator=torch.Generator())
    assert manifest.size is not None  # as there is a grid
    height, width = manifest.size  # as in training; what the tokenizer padded is not counted
    made = summary(
        held_out(pipe.transformer, loader, pipe.codebook_size),
        tokens=pipe.grid[0] * pipe.grid[1],
        pixels=height * width,
    )
    labelled = pipe.num_classes and LABEL in manifest.features
    protocol = {
        "bits": PROTOCOLS[kind],
        "held_out_rows": made["rows"],
        "held_out_source_sha256": manifest.source.sha256,
        "held_out_classes": "of the rows" if labelled else "none",
    }
    return {name: made[name] for name in ("bits_per_token", "bits_per_pixel", "perplexity")}, protocol


def _class_numbers(pipe: LGQPipeline, manifest: Manifest, place: str) -> list[int] | None:
    """The pipeline's number of each label, by name; `None` where labels are its numbers, or are not looked at."""
    named = manifest.features.get(LABEL, {}).get("names")
    if not pipe.num_classes or named is None or not pipe.id2label:
        return None
    known = {name: number for number, name in pipe.id2label.items()}
    if unknown := [name for name in named if name not in known]:
        raise ValueError(
            f"tokens in {place} have the class {unknown[0]!r}, the pipeline has {', '.join([*known][:5])}: measure it "
            "on pictures of classes that it knows"
        )
    return [known[name] for name in named]
