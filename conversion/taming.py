"""taming-transformers' VQGAN (MIT) and SEED-Voken's IBQ (Apache-2.0): the same net and names, two lookups."""

from collections.abc import Iterable, Mapping
from typing import Any

from conversion.family import ENDS, MINUS_ONE_TO_ONE, Rules, compare, reading, rename, vqgan_plan
from conversion.plan import CheckpointError, Plan, Weights
from conversion.weights import choose_lightning

RULES: Rules = [
    *ENDS,
    (r"encoder\.down\.(\d+)\.block\.(\d+)\.(\w+\.\w+)", r"encoder.stages.\1.blocks.\2.@\3"),
    (r"encoder\.down\.(\d+)\.attn\.(\d+)\.(\w+\.\w+)", r"encoder.stages.\1.attentions.\2.@\3"),
    (r"encoder\.down\.(\d+)\.downsample\.conv\.(\w+)", r"encoder.downsamplers.\1.conv.\2"),
    (r"decoder\.up\.(\d+)\.block\.(\d+)\.(\w+\.\w+)", r"decoder.stages.<1>.blocks.\2.@\3"),
    (r"decoder\.up\.(\d+)\.attn\.(\d+)\.(\w+\.\w+)", r"decoder.stages.<1>.attentions.\2.@\3"),
    (r"decoder\.up\.(\d+)\.upsample\.conv\.(\w+)", r"decoder.upsamplers.<1>.conv.\2"),
    (r"(encoder|decoder)\.mid\.block_1\.(\w+\.\w+)", r"\1.mid.blocks.0.@\2"),
    (r"(encoder|decoder)\.mid\.block_2\.(\w+\.\w+)", r"\1.mid.blocks.1.@\2"),
    (r"(encoder|decoder)\.mid\.attn_1\.(\w+\.\w+)", r"\1.mid.attentions.0.@\2"),
]
YAML = "the YAML configuration"
_QUANTIZER = {"taming": ("vq", "sq_l2"), "ibq": ("ibq", "dot")}


def plan(content: Mapping[str, Any], config: Mapping[str, Any] | None, weights: Weights, format: str) -> Plan:
    """The conversion of a Lightning checkpoint; `format` is `"taming"` or `"ibq"`.

    Raises:
        CheckpointError: for what is not such a checkpoint, and for a configuration that differs from the tensors.
    """
    chosen = choose_lightning(content, weights)
    refuse_gumbel(chosen.tensors)
    names = rename(chosen.tensors, RULES)
    quantizer, distance = _QUANTIZER[format]
    made = vqgan_plan(
        format,
        {names[name]: tensor for name, tensor in chosen.tensors.items()},
        {names[name]: key for name, key in chosen.origin.items()},
        MINUS_ONE_TO_ONE,
        quantizer=quantizer,
        distance=distance,
        **image_size(config),
    )
    made.dropped, made.weights = chosen.dropped, chosen.weights
    if config is not None:
        with reading(YAML):
            compare_yaml(made, config)
    return made


def refuse_gumbel(names: Iterable[str]) -> None:
    """Refuses taming's GumbelVQ by its keys (`CheckpointError`)."""
    if "quantize.embed.weight" in names:
        raise CheckpointError(
            "the checkpoint has quantize.embed and quantize.proj: it is taming's GumbelVQ, whose tokens come from a "
            "learned projection to K logits. There is no such lookup here"
        )


def arguments(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model's arguments in a project's YAML: `model.params` (taming) or `model.init_args` (Lightning's own)."""
    model = config.get("model", {})
    found = model.get("params") or model.get("init_args") if isinstance(model, Mapping) else None
    if not isinstance(found, Mapping) or not isinstance(found.get("ddconfig"), Mapping):
        raise CheckpointError(
            "expected a YAML configuration with model.params.ddconfig or model.init_args.ddconfig, got one without. "
            "--no-config converts by the tensors alone"
        )
    return found


def image_size(config: Mapping[str, Any] | None) -> dict[str, int]:
    """The `resolution` of a project's YAML as a field of our configuration; nothing without one."""
    if config is None:
        return {}
    with reading(YAML):
        resolution = arguments(config)["ddconfig"].get("resolution")
        return {} if resolution is None else {"image_size": int(resolution)}


def compare_yaml(made: Plan, config: Mapping[str, Any]) -> None:
    """Refuses a YAML that says something else than the tensors (`CheckpointError`)."""
    given, ours = arguments(config), made.config
    net = given["ddconfig"]
    levels = len(ours.channel_multiplier)
    resolutions = net.get("attn_resolutions")
    said_levels = None
    if resolutions is not None and net.get("resolution") is not None:
        said_levels = [level for level in range(levels) if net["resolution"] / 2**level in resolutions]
    stem = ours.stem_channels or ours.stage_channels[0]
    said_widths = None
    if net.get("ch") is not None and net.get("ch_mult") is not None:
        said_widths = [net["ch"] * multiplier for multiplier in net["ch_mult"]]
    code_dim = ours.quantizer_dim
    table = made.tensors.get("quantizer.codebook")
    fields = {
        "ddconfig.ch": (net.get("ch"), stem),
        "ddconfig.ch times ddconfig.ch_mult": (said_widths, ours.stage_channels),
        "ddconfig.num_res_blocks": (net.get("num_res_blocks"), ours.num_res_blocks),
        "ddconfig.z_channels": (net.get("z_channels"), ours.latent_channels),
        "ddconfig.in_channels": (net.get("in_channels"), ours.in_channels),
        "ddconfig.out_ch": (net.get("out_ch"), ours.in_channels),
        "ddconfig.double_z": (net.get("double_z"), False),
        "embed_dim": (given.get("embed_dim"), code_dim),
        "levels of ddconfig.attn_resolutions": (said_levels, list(ours.attention_levels)),
        "ddconfig.attn_type": (net.get("attn_type"), "vanilla"),
        "ddconfig.resamp_with_conv": (net.get("resamp_with_conv"), True),
        "remap": (given.get("remap"), None),
        "l2_normalize": (given.get("l2_normalize"), False),
    }
    if ours.quantizer != "lfq":
        fields["n_embed"] = (given.get("n_embed"), None if table is None else table.shape[0])
    compare(fields, YAML)


__all__ = ["RULES", "YAML", "arguments", "compare_yaml", "image_size", "plan"]
