"""LlamaGen's VQ-8 and VQ-16 (MIT), and the tokenizer inside Janus, which is the same net."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from conversion import taming
from conversion.family import ENDS, MINUS_ONE_TO_ONE, Rules, compare, reading, rename, vqgan_plan
from conversion.plan import CheckpointError, Plan, Weights
from conversion.weights import Chosen, choose_entry

# the decoder's blocks are numbered in the order in which they run, as ours are
RULES: Rules = [
    *ENDS,
    (r"encoder\.conv_blocks\.(\d+)\.res\.(\d+)\.(\w+\.\w+)", r"encoder.stages.\1.blocks.\2.@\3"),
    (r"encoder\.conv_blocks\.(\d+)\.attn\.(\d+)\.(\w+\.\w+)", r"encoder.stages.\1.attentions.\2.@\3"),
    (r"encoder\.conv_blocks\.(\d+)\.downsample\.conv\.(\w+)", r"encoder.downsamplers.\1.conv.\2"),
    (r"decoder\.conv_blocks\.(\d+)\.res\.(\d+)\.(\w+\.\w+)", r"decoder.stages.\1.blocks.\2.@\3"),
    (r"decoder\.conv_blocks\.(\d+)\.attn\.(\d+)\.(\w+\.\w+)", r"decoder.stages.\1.attentions.\2.@\3"),
    (r"decoder\.conv_blocks\.(\d+)\.upsample\.conv\.(\w+)", r"decoder.upsamplers.\1.conv.\2"),
    (r"(encoder|decoder)\.mid\.0\.(\w+\.\w+)", r"\1.mid.blocks.0.@\2"),
    (r"(encoder|decoder)\.mid\.1\.(\w+\.\w+)", r"\1.mid.attentions.0.@\2"),
    (r"(encoder|decoder)\.mid\.2\.(\w+\.\w+)", r"\1.mid.blocks.1.@\2"),
]
# transformers' Janus has taming's names, but numbers the decoder's stages in the order in which they run
_TRANSFORMERS_RULES: Rules = [(pattern, template.replace("<1>", r"\1")) for pattern, template in taming.RULES]
# where the tokenizer stands inside a whole Janus model
_PREFIXES = ("gen_vision_model.", "model.vqmodel.", "vqmodel.")


def plan(content: Mapping[str, Any], weights: Weights) -> Plan:
    """The conversion of LlamaGen's file: its trainer's, or the released one.

    Raises:
        CheckpointError: for what is not such a checkpoint.
    """
    chosen = choose_entry(content, weights)
    return _plan("llamagen", chosen, RULES)


def janus_plan(content: Mapping[str, Any], config: Mapping[str, Any] | None, weights: Weights) -> Plan:
    """The conversion of the tokenizer in a Janus model, of its own repository or of transformers.

    transformers' class does not normalise latents where it looks them up, and normalises codes where it decodes them;
    the conversion normalises both, as the model's own code does.

    Raises:
        CheckpointError: for what is not such a checkpoint, and for a configuration that differs from the tensors.
    """
    if weights == "ema":
        raise CheckpointError("--weights ema: a Janus model has no moving averages")
    names, dropped = _inside_janus(content)
    rules = RULES if any(".conv_blocks." in name for name in names) else _TRANSFORMERS_RULES
    chosen = Chosen({name: content[key] for name, key in names.items()}, names, dropped, "raw")
    made = _plan("janus", chosen, rules)
    if config is not None:
        with reading("config.json"):
            _compare_config(made, config)
    return made


def _inside_janus(content: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """File's key by the tokenizer's key, and what belongs to the rest of the model."""
    prefix = next((p for p in _PREFIXES if any(key.startswith(p) for key in content)), "")
    inside = {key.removeprefix(prefix): key for key in content if key.startswith(prefix)}
    dropped = {key: "not of the image tokenizer" for key in content if not key.startswith(prefix)}
    return inside, dropped


def _plan(format: str, chosen: Chosen, rules: Rules) -> Plan:
    tensors: dict[str, Tensor] = dict(chosen.tensors)
    dropped = dict(chosen.dropped)
    if tensors.pop("quantize.codebook_used", None) is not None:
        dropped[chosen.origin["quantize.codebook_used"]] = "trainer: statistic"
    names = rename(tensors, rules)
    made = vqgan_plan(
        format,
        {names[name]: tensor for name, tensor in tensors.items()},
        {names[name]: chosen.origin[name] for name in tensors},
        MINUS_ONE_TO_ONE,
        quantizer="vq",
        distance="cosine",
    )
    made.dropped, made.weights = dropped, chosen.weights
    made.notes.append(
        "Codes are normalised where they are looked up and where they are decoded; the table is kept as stored."
    )
    return made


def _compare_config(made: Plan, config: Mapping[str, Any]) -> None:
    given = config.get("vq_config", config)
    ours = made.config
    if not isinstance(given, Mapping):
        raise CheckpointError("expected vq_config as a dictionary in config.json")
    original = (config.get("gen_vision_config") or {}).get("params") or {}
    said = None
    if given.get("base_channels") is not None and given.get("channel_multiplier") is not None:
        said = [given["base_channels"] * multiplier for multiplier in given["channel_multiplier"]]
    compare(
        {
            "base_channels times channel_multiplier": (said, ours.stage_channels),
            "num_res_blocks": (given.get("num_res_blocks"), ours.num_res_blocks),
            "latent_channels": (given.get("latent_channels"), ours.latent_channels),
            "embed_dim": (given.get("embed_dim"), ours.quantizer_dim),
            "num_embeddings": (given.get("num_embeddings"), ours.codebook_size),
            "in_channels": (given.get("in_channels"), ours.in_channels),
            "out_channels": (given.get("out_channels"), ours.in_channels),
            "double_latent": (given.get("double_latent"), False),
            "gen_vision_config.params.image_token_size": (original.get("image_token_size"), ours.codebook_size),
            "gen_vision_config.params.n_embed": (original.get("n_embed"), ours.quantizer_dim),
        },
        "config.json",
    )


__all__ = ["RULES", "janus_plan", "plan"]
