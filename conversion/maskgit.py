"""The PyTorch MaskGIT-VQGAN of open-muse and 1d-tokenizer (Apache-2.0)."""

from collections.abc import Mapping
from typing import Any

from conversion.family import ENDS, ZERO_TO_ONE, Rules, compare, reading, rename, vqgan_plan
from conversion.plan import CheckpointError, Plan, Weights
from conversion.weights import choose_entry

RULES: Rules = [
    *ENDS,
    (r"encoder\.down\.(\d+)\.block\.(\d+)\.(\w+\.\w+)", r"encoder.stages.\1.blocks.\2.@\3"),
    (r"decoder\.up\.(\d+)\.block\.(\d+)\.(\w+\.\w+)", r"decoder.stages.<1>.blocks.\2.@\3"),
    (r"decoder\.up\.(\d+)\.upsample_conv\.(\w+)", r"decoder.upsamplers.<1>.conv.\2"),
    (r"(encoder|decoder)\.mid\.(\d+)\.(\w+\.\w+)", r"\1.mid.blocks.\2.@\3"),
]


def plan(content: Mapping[str, Any], config: Mapping[str, Any] | None, weights: Weights) -> Plan:
    """The conversion of a flat state dict; `config` is what open-muse saves beside it.

    Raises:
        CheckpointError: for what is not such a checkpoint, and for a configuration that differs from the tensors.
    """
    chosen = choose_entry(content, weights)
    names = rename(chosen.tensors, RULES)
    size = {}
    if config is not None and config.get("resolution") is not None:
        with reading("config.json"):
            size = {"image_size": int(config["resolution"])}
    made = vqgan_plan(
        "maskgit",
        {names[name]: tensor for name, tensor in chosen.tensors.items()},
        {names[name]: key for name, key in chosen.origin.items()},
        ZERO_TO_ONE,
        quantizer="vq",
        downsample="avg_pool",
        shortcut_on_hidden=True,
        **size,
    )
    made.dropped, made.weights = chosen.dropped, chosen.weights
    if config is not None:
        with reading("config.json"):
            _compare(made, config)
    return made


def _compare(made: Plan, config: Mapping[str, Any]) -> None:
    ours = made.config
    if config.get("_class_name") not in (None, "MaskGitVQGAN"):
        raise CheckpointError(f"config.json is of a {config['_class_name']}, expected MaskGitVQGAN")
    said = None
    if config.get("hidden_channels") is not None and config.get("channel_mult") is not None:
        said = [config["hidden_channels"] * multiplier for multiplier in config["channel_mult"]]
    fields = {
        "hidden_channels times channel_mult": (said, ours.stage_channels),
        "num_res_blocks": (config.get("num_res_blocks"), ours.num_res_blocks),
        "num_channels": (config.get("num_channels"), ours.in_channels),
        "z_channels": (config.get("z_channels"), ours.latent_channels),
        "quantized_embed_dim": (config.get("quantized_embed_dim"), ours.quantizer_dim),
        "num_embeddings": (config.get("num_embeddings"), ours.codebook_size),
    }
    compare(fields, "config.json")


__all__ = ["RULES", "plan"]
