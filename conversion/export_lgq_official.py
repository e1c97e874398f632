"""An LGQ model back to a checkpoint of the LGQ paper's own trainer (KurbanIntelligenceLab/LGQ)."""

from typing import Any

import torch
from torch import Tensor

from conversion.lgq_official import (
    CHANNEL_MULTIPLIER,
    DISTANCES,
    NUM_ATTENTION_HEADS,
    NUM_RES_BLOCKS,
    official_names,
    unbuildable,
)
from lgq_hf import LGQConfig, LGQModel


def export_lgq_official(model: LGQModel) -> dict[str, Any]:
    """The dictionary that the official code loads strictly, for `torch.save`.

    It has the weights and the arguments that fix the model, no optimizer: the official code evaluates it, and
    `conversion.lgq_official.plan` reads it back. Tokens and pictures are the same there. What only our training has
    stays behind: `straight_through` and `commitment_weight` (the official code always trains with `"soft"`). Bins of
    a product codebook that fill up a shorter row, which no token stands for, become 0.

    Args:
        model: of the `lgq` backbone and quantizer, on any device.

    Returns:
        `epoch`, `model_state_dict` (copies on the CPU), `config`, `model_type` and `run_name`.

    Raises:
        ValueError: that names every field that the official code has no place for.
    """
    if problems := _problems(model.config):
        raise ValueError(f"the official LGQ code has no such model. {'; '.join(problems)}")
    return {
        "epoch": 0,
        "model_state_dict": _state_dict(model),
        "config": _arguments(model),
        "model_type": "lgq",
        "run_name": "lgq_hf",
    }


def _problems(config: LGQConfig) -> list[str]:
    """What the official code cannot represent: the field, its value and why; nothing where all is well."""
    for name in ("backbone", "quantizer"):
        if getattr(config, name) != "lgq":  # the other fields mean other things then
            return [f"{name}={getattr(config, name)!r}: expected 'lgq', whose weights have names there"]
    mode = config.codebook_mode
    fitting = {
        "in_channels": (config.in_channels == 3, "the trainer's models take 3 channels"),
        "channel_multiplier": (
            list(config.channel_multiplier) == CHANNEL_MULTIPLIER,
            f"its stages always have {CHANNEL_MULTIPLIER} times the base width",
        ),
        "num_res_blocks": (config.num_res_blocks == NUM_RES_BLOCKS, f"it always has {NUM_RES_BLOCKS} per stage"),
        "decoder_num_res_blocks": (
            set(config.decoder_num_res_blocks or [NUM_RES_BLOCKS]) == {NUM_RES_BLOCKS},
            f"it always has {NUM_RES_BLOCKS} per stage",
        ),
        "bottleneck_attention": (config.bottleneck_attention, "the trainer's models always have it"),
        "latent_group_norm": (config.latent_group_norm, "the trainer's models always have it"),
        "num_attention_heads": (
            config.num_attention_heads == NUM_ATTENTION_HEADS,
            f"it always has {NUM_ATTENTION_HEADS}",
        ),
        "distance": (config.distance in DISTANCES.values(), f"expected one of {sorted(DISTANCES.values())}"),
        "code_dim": (
            mode == "vector" or (config.code_dim is None) == (mode == "per_channel"),
            f"with codebook_mode={mode!r} it {'never' if mode == 'per_channel' else 'always'} has projections",
        ),
    }
    problems = [f"{name}={getattr(config, name)!r}: {why}" for name, (fits, why) in fitting.items() if not fits]
    reason = unbuildable(config)
    return problems + ([reason] if reason else [])


def _state_dict(model: LGQModel) -> dict[str, Tensor]:
    config = model.config
    ours = model.state_dict()
    state = {key: ours[name].detach().cpu().clone() for name, key in official_names(config).items()}
    centers = state["quantize.centers"]
    for row, level in zip(centers, config.levels or [], strict=False):
        row[level:] = 0
    state["quantize._inited"] = torch.tensor(1, dtype=torch.uint8)
    state["quantize._dbg_usage"] = torch.zeros(len(centers) if config.codebook_mode == "vector" else centers.shape)
    if config.codebook_mode != "product":  # another class there, without these
        state["quantize._dbg_avg_max_p"] = torch.tensor(0.0)
        state["quantize._dbg_soft_perplexity"] = torch.tensor(0.0)
    return state


def _arguments(model: LGQModel) -> dict[str, Any]:
    """The trainer's arguments, as far as the model determines them."""
    config = model.config
    now = model.state_dict()["quantizer.temperature"].item()
    # the decimal number of the configuration, unless training has moved the temperature from there
    tau = float(config.temperature) if now == float(torch.tensor(float(config.temperature))) else now
    arguments = {
        "model": "lgq",
        "dim": 2 * config.base_channels,
        "embedding_dim": config.latent_channels,
        "compression_factor": config.spatial_downsample_factor,
        "num_residual_layers": config.num_res_blocks,
        "legacy_decoder": config.legacy_decoder,
        "image_size": config.image_size,
        "num_bins": config.codebook_size,
        "lambda_peak": config.lambda_peak,
        "lambda_bins": config.lambda_usage,
        "lambda_floor": config.lambda_floor,
        "p_min": config.min_perplexity,
        "tau_start": tau,
        "tau_end": tau,
        "learn_widths": config.learn_widths,
        "flatten_channels": config.codebook_mode == "vector",
        "distance_type": {ours: theirs for theirs, ours in DISTANCES.items()}[config.distance],
        "perchannel_fair": config.code_dim is not None,
    }
    if config.code_dim is not None:
        # of a vector codebook behind projections the official code reads the number of levels and their product only
        arguments["lmb_levels"] = list(config.levels or [config.codebook_size] + [1] * (config.code_dim - 1))
    return arguments


__all__ = ["export_lgq_official"]
