"""Open-MAGVIT2 (Apache-2.0), SimVQ (MIT) and WeTok (Apache-2.0): one net, in Lightning files."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from conversion.family import ENDS, MINUS_ONE_TO_ONE, Rules, compare, reading, rename, vqgan_plan
from conversion.plan import CheckpointError, Plan, Weights
from conversion.read import own_tensors
from conversion.taming import YAML, arguments, compare_yaml, image_size
from conversion.weights import choose_lightning

RULES: Rules = [
    *ENDS,
    (r"encoder\.down\.(\d+)\.block\.(\d+)\.(\w+\.\w+)", r"encoder.stages.\1.blocks.\2.@\3"),
    (r"encoder\.down\.(\d+)\.downsample\.(\w+)", r"encoder.downsamplers.\1.conv.\2"),
    (r"decoder\.up\.(\d+)\.block\.(\d+)\.(\w+\.\w+)", r"decoder.stages.<1>.blocks.\2.@\3"),
    (r"decoder\.up\.(\d+)\.upsample\.conv1\.(\w+)", r"decoder.upsamplers.<1>.conv.\2"),
    (r"decoder\.adaptive\.(\d+)\.(gamma|beta)\.(\w+)", r"decoder.adaptive_norms.<1>.\2.\3"),
    (r"(encoder|decoder)\.mid_block\.(\d+)\.(\w+\.\w+)", r"\1.mid.blocks.\2.@\3"),
]
_EMBEDDING, _PROJECTION = "quantize.embedding.weight", "quantize.embedding_proj"


def plan(content: Mapping[str, Any], config: Mapping[str, Any] | None, weights: Weights, format: str) -> Plan:
    """The conversion of a Lightning checkpoint; `format` is `"magvit2"`, `"simvq"` or `"wetok"`.

    Raises:
        CheckpointError: for what is not such a checkpoint, and for a configuration that differs from the tensors.
    """
    frozen = frozenset([_EMBEDDING]) if format == "simvq" else frozenset()
    chosen = choose_lightning(content, weights, frozen)
    tensors, origin, baked = dict(chosen.tensors), dict(chosen.origin), {}
    if format == "simvq":
        tensors[_EMBEDDING] = _bake(tensors)
        parts = [_EMBEDDING, f"{_PROJECTION}.weight", f"{_PROJECTION}.bias"]
        baked["quantizer.codebook"] = "embedding_proj(embedding), in float64"
        origin[_EMBEDDING] = ", ".join(origin[part] for part in parts)
        for part in parts[1:]:
            del tensors[part]
    names = rename(tensors, RULES)
    made = vqgan_plan(
        format,
        {names[name]: tensor for name, tensor in tensors.items()},
        {names[name]: origin[name] for name in tensors},
        MINUS_ONE_TO_ONE,
        downsample="conv",
        **_quantizer(tensors, config, format),
        **image_size(config),
    )
    made.dropped, made.weights, made.baked = chosen.dropped, chosen.weights, baked
    if config is not None:
        with reading(YAML):
            compare_yaml(made, config)
            _compare_quantizer(made, config)
    return made


def _bake(tensors: Mapping[str, Tensor]) -> Tensor:
    """The table that is looked up: each row of the frozen one through the learned linear map (K, C)."""
    try:
        table, weight, bias = (tensors[name] for name in (_EMBEDDING, f"{_PROJECTION}.weight", f"{_PROJECTION}.bias"))
    except KeyError as error:
        raise CheckpointError(
            f"a SimVQ checkpoint has quantize.embedding and its projection, this one lacks {error}"
        ) from None
    if table.ndim != 2 or tuple(weight.shape) != (table.shape[1],) * 2 or tuple(bias.shape) != (table.shape[1],):
        raise CheckpointError(
            f"expected quantize.embedding (K, C) with a projection (C, C) and (C,), got {tuple(table.shape)}, "
            f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    own = own_tensors({"table": table, "weight": weight, "bias": bias})  # a view may claim any size: checked here
    return torch.addmm(own["bias"].double(), own["table"].double(), own["weight"].double().T).float()


def _quantizer(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None, format: str) -> dict[str, Any]:
    if format == "simvq":
        return {"quantizer": "simvq"}
    channels = tensors["encoder.conv_out.weight"].shape[0] if "encoder.conv_out.weight" in tensors else 0
    groups = 1
    if format == "wetok":
        if config is None or not arguments(config).get("num_codebooks"):
            raise CheckpointError(
                "a WeTok checkpoint does not show into how many groups its channels are split: give the YAML that "
                "came with it, with num_codebooks (--config FILE)"
            )
        with reading(f"{YAML}'s num_codebooks"):
            groups = int(arguments(config)["num_codebooks"])
    if groups < 1 or channels % groups:
        raise CheckpointError(f"num_codebooks={groups} does not divide the {channels} channels of encoder.conv_out")
    return {"quantizer": "lfq", "codebook_size": 2 ** (channels // groups)}


def _compare_quantizer(made: Plan, config: Mapping[str, Any]) -> None:
    given, ours = arguments(config), made.config
    if ours.quantizer == "lfq":
        fields = {
            "n_embed": (given.get("n_embed"), ours.codebook_size),
            "num_codebooks": (given.get("num_codebooks"), ours.tokens_per_position),
            "gan_decoder": (given.get("gan_decoder"), False),
        }
    else:
        table = given["quantconfig"]["params"] if given.get("quantconfig") else {}
        fields = {
            "quantconfig.params.n_e": (table.get("n_e"), ours.codebook_size),
            "quantconfig.params.e_dim": (table.get("e_dim"), ours.quantizer_dim),
        }
    compare(fields, YAML)


__all__ = ["RULES", "plan"]
