"""Checkpoints of the LGQ paper's own trainer (KurbanIntelligenceLab/LGQ) to [`LGQModel`].

config, state_dict = convert(torch.load("latest_model.pt", weights_only=True))
model = LGQModel(config); model.load_state_dict(state_dict)
"""

import math
import re
from typing import Any, Literal

import torch
from torch import Tensor

from lgq_hf import LGQConfig
from lgq_hf.tokenizer.assignment import Distance

_OPTIONS = {
    "distance_type",
    "flatten_channels",
    "image_size",
    "lambda_bins",
    "lambda_floor",
    "lambda_peak",
    "p_min",
    "tau_end",
}
_DISTANCES: dict[str, Distance] = {"l2_sq": "sq_l2", "cosine": "cosine", "dot": "dot"}
_ENCODER_STAGES = ["256", "128", "64", "32", "16"]  # names of the stages, whatever the picture's size
_BLOCK_NAMES = {"in_norm": "norm1", "out_norm": "norm2"}
_RULES = [
    (r"(enc|dec)\.block_(256|128|64|32|16)\.(\d)\.(\w+)\.(\w+)", "block"),
    (r"enc\.down(\d)\.conv\.(\w+)", "down"),
    (r"dec\.up(\d)\.deconv\.(\w+)", "up"),
    (r"enc\.(stem|to_emb|emb_norm)\.(\w+)", r"encoder.\1.\2"),
    (r"dec\.(from_emb|out)\.(\w+)", r"decoder.\1.\2"),
    (r"pre_vq_norm\.(\w+)", r"pre_quant_norm.\1"),
    (r"(pre|post)_quant\.(\w+)", r"\1_quant.\2"),
    (r"quantize\.(centers|alpha)", r"quantizer.\1"),
]
# the lazy initialisation's flag and what the trainer logged
_DROPPED = {f"quantize.{name}" for name in ("_inited", "_dbg_usage", "_dbg_avg_max_p", "_dbg_soft_perplexity")}


def rename(key: str) -> str | None:
    """Our name of an official key; `None` for one that is dropped on purpose; `ValueError` for an unknown one."""
    if key in _DROPPED:
        return None
    for pattern, target in _RULES:
        match = re.fullmatch(pattern, key)
        if match is None:
            continue
        if target == "block":
            side, stage, block, layer, leaf = match.groups()
            order = _ENCODER_STAGES if side == "enc" else _ENCODER_STAGES[::-1]
            layer = _BLOCK_NAMES.get(layer, layer)
            return f"{side}oder.stages.{order.index(stage)}.{block}.{layer}.{leaf}"
        if target in ("down", "up"):
            number, leaf = match.groups()
            side = "encoder" if target == "down" else "decoder"
            return f"{side}.{target}samplers.{int(number) - 1}.{leaf}"
        return match.expand(target)
    raise ValueError(f"unknown key '{key}': not a checkpoint of the official LGQ trainer")


def convert(checkpoint: dict[str, Any]) -> tuple[LGQConfig, dict[str, Tensor]]:
    """Configuration and state dict for [`LGQModel`] from the official trainer's dictionary.

    Args:
        checkpoint: with `model_state_dict` and `config`, the trainer's arguments. Shapes are read from the tensors;
            the arguments only decide what the tensors do not show (distance, mode, weights of the loss, temperature).

    Raises:
        ValueError: for keys that are unknown or missing, a distance that is unknown, a codebook that was never
            initialised, or a file without `enc.emb_norm` (early
            releases had another encoder under the same names).
    """
    if missing := {"model_state_dict", "config"} - set(checkpoint):
        raise ValueError(f"not a checkpoint of the official LGQ trainer: it lacks {sorted(missing)}")
    source, options = checkpoint["model_state_dict"], checkpoint["config"]
    if missing := _OPTIONS - set(options):
        raise ValueError(f"the checkpoint's config lacks {sorted(missing)}")
    if "enc.emb_norm.weight" not in source:
        raise ValueError("no enc.emb_norm in the checkpoint: it is of an early release whose encoder differs")
    if int(source.get("quantize._inited", 1)) == 0:
        raise ValueError("the codebook was never initialised (quantize._inited is 0): the model saw no batch")
    state_dict = {ours: tensor for key, tensor in source.items() if (ours := rename(key)) is not None}
    base = source["enc.stem.weight"].shape[0]
    latent_channels = source["enc.to_emb.weight"].shape[0]
    code_dim = source["pre_quant.weight"].shape[0] if "pre_quant.weight" in source else None
    centers = source["quantize.centers"]
    levels = None
    mode: Literal["vector", "per_channel", "product"]
    if options["flatten_channels"]:
        mode, codebook_size = "vector", centers.shape[0]
    elif code_dim is None:
        mode, codebook_size = "per_channel", centers.shape[1]
    else:
        levels = list(options["lmb_levels"])
        mode, codebook_size = "product", math.prod(levels)
    if options["distance_type"] not in _DISTANCES:
        raise ValueError(f"distance_type '{options['distance_type']}' is none of {sorted(_DISTANCES)}")
    config = LGQConfig(
        base_channels=base,
        in_channels=source["enc.stem.weight"].shape[1],
        channel_multiplier=[1, 2, 2, 2, 2],
        bottleneck_attention="enc.block_16.2.q.weight" in source,
        legacy_decoder=source["dec.from_emb.weight"].shape[0] != 2 * base,
        latent_channels=latent_channels,
        code_dim=code_dim,
        codebook_mode=mode,
        codebook_size=codebook_size,
        levels=levels,
        distance=_DISTANCES[options["distance_type"]] if mode == "vector" else "sq_l2",
        learn_widths="quantize.alpha" in source,
        temperature=float(options["tau_end"]),
        lambda_peak=options["lambda_peak"],
        lambda_usage=options["lambda_bins"],
        lambda_floor=options["lambda_floor"],
        min_perplexity=options["p_min"],
        image_size=options["image_size"],
    )
    state_dict["quantizer.temperature"] = torch.tensor(float(options["tau_end"]))
    return config, state_dict


__all__ = ["convert", "rename"]
