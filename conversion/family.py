"""From any member of the VQGAN family to the `vqgan` backbone: renaming, and a configuration read from shapes."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from conversion.plan import CheckpointError, Plan
from lgq_hf import LGQConfig, LGQModel

Rules = list[tuple[str, str]]

_LONGEST_KEY = 200
# what the layers of a residual or attention block are called elsewhere
_LAYERS = {
    "nin_shortcut": "shortcut",
    "conv_shortcut": "shortcut",
    "proj_out": "proj",
    "proj_attn": "proj",
    "to_out.0": "proj",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "query": "q",
    "key": "k",
    "value": "v",
}
ENDS: Rules = [
    (r"encoder\.conv_in\.(\w+)", r"encoder.stem.\1"),
    (r"encoder\.conv_out\.(\w+)", r"encoder.to_emb.\1"),
    (r"decoder\.conv_in\.(\w+)", r"decoder.from_emb.\1"),
    (r"decoder\.conv_out\.(\w+)", r"decoder.out.\1"),
    (r"(encoder|decoder)\.(?:conv_)?norm_out\.(\w+)", r"\1.norm_out.\2"),
    (r"quant_conv\.(\w+)", r"pre_quant.\1"),
    (r"post_quant_conv\.(\w+)", r"post_quant.\1"),
    (r"quantize\.embedding\.weight", "quantizer.codebook"),
]
# pixel values are x/127.5 - 1 in one half of the family and x/255 in the other; both as options of LGQImageProcessor
MINUS_ONE_TO_ONE: dict[str, Any] = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
ZERO_TO_ONE: dict[str, Any] = {"do_normalize": False}


def rename(keys: Iterable[str], rules: Rules) -> dict[str, str]:
    """Our name of each source key, by the first rule that fits it whole.

    A template's `<n>` is the number of the level in group n counted from the other end: our decoder's stages are
    numbered in the order in which they run.

    Raises:
        CheckpointError: for keys that no rule fits, and for two keys with one name.
    """
    keys = list(keys)
    if long := [key for key in keys if len(key) > _LONGEST_KEY]:
        raise CheckpointError(f"{len(long)} keys are longer than {_LONGEST_KEY} characters: {long[0]:.40}...")
    levels = 1 + max(
        (int(m[1]) for key in keys if (m := re.match(r"encoder\.\w+\.(\d+)\.(?:block|res)", key))), default=0
    )
    names = {key: _target(key, rules, levels) for key in keys}
    if unknown := [key for key, target in names.items() if target is None]:
        raise CheckpointError(f"{len(unknown)} keys that this format does not have: {shorten(unknown)}")
    known = {key: target for key, target in names.items() if target is not None}
    if len(set(known.values())) < len(known):
        twice = [key for key, target in known.items() if list(known.values()).count(target) > 1]
        raise CheckpointError(f"several keys stand for one tensor: {shorten(twice)}")
    return known


def _target(key: str, rules: Rules, levels: int) -> str | None:
    for pattern, template in rules:
        if match := re.fullmatch(pattern, key):
            target = re.sub(
                r"<(\d)>", lambda group: str(levels - 1 - int(match[int(group[1])])), match.expand(template)
            )
            head, separator, rest = target.rpartition("@")
            if not separator:
                return target
            layer, leaf = rest.rsplit(".", 1)
            return f"{head}{_LAYERS.get(layer, layer)}.{leaf}"
    return None


def shorten(names: Iterable[str], limit: int = 6) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def infer(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of [`LGQConfig`] that the shapes of our tensors show.

    Raises:
        CheckpointError: where a tensor is missing or has a shape that no member of the family gives it.
    """
    stem = _shape(tensors, "encoder.stem.weight", 4)
    levels = _count(tensors, "encoder.stages")
    widths = [_shape(tensors, f"encoder.stages.{i}.blocks.0.conv2.weight", 4)[0] for i in range(levels)]
    to_emb = _shape(tensors, "encoder.to_emb.weight", 4)
    blocks = _count(tensors, "encoder.stages.0.blocks")
    extra = _count(tensors, "decoder.stages.0.blocks") - blocks
    out = _shape(tensors, "decoder.out.weight", 4)
    if out[0] != stem[1]:
        raise CheckpointError(
            f"the encoder takes {stem[1]} channels and the decoder gives {out[0]}: expected the same"
        )
    attention = [i for i in range(levels) if f"encoder.stages.{i}.attentions.0.q.weight" in tensors]
    decoder = [i for i in range(levels) if f"decoder.stages.{levels - 1 - i}.attentions.0.q.weight" in tensors]
    if attention != decoder:
        raise CheckpointError(
            f"the encoder has attention in levels {attention} and the decoder in {decoder} (0 is full resolution): "
            "nets where they differ cannot be represented"
        )
    if extra not in (0, 1):
        raise CheckpointError(
            f"expected as many residual blocks in a decoder stage as in the encoder's, or one more; the encoder has "
            f"{blocks} and the decoder {blocks + extra}"
        )
    base = math.gcd(stem[0], *widths)
    fields = {
        "backbone": "vqgan",
        "in_channels": stem[1],
        "base_channels": base,
        "channel_multiplier": [width // base for width in widths],
        "stem_channels": None if stem[0] == widths[0] else stem[0],
        "num_res_blocks": blocks,
        "decoder_extra_block": extra == 1,
        "num_mid_blocks": _count(tensors, "encoder.mid.blocks"),
        "attention_levels": attention,
        "mid_attention": "encoder.mid.attentions.0.q.weight" in tensors,
        "conv_bias": "encoder.stem.bias" in tensors,
        "adaptive_group_norm": "decoder.adaptive_norms.0.gamma.weight" in tensors,
        "latent_channels": to_emb[0],
        "encoder_out_kernel": to_emb[2],
    }
    if "decoder.upsamplers.0.conv.weight" in tensors:
        up = _shape(tensors, "decoder.upsamplers.0.conv.weight", 4)
        fields["upsample"] = "depth_to_space" if up[0] == 4 * up[1] else "nearest_conv"
    if "pre_quant.weight" in tensors:
        fields["code_dim"] = _shape(tensors, "pre_quant.weight", 4)[0]
    if "quantizer.codebook" in tensors:
        fields["codebook_size"] = _shape(tensors, "quantizer.codebook", 2)[0]
    return fields


def _shape(tensors: Mapping[str, Tensor], name: str, rank: int) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"the checkpoint has nothing for {name}: it is not whole, or of another format")
    shape = tuple(tensors[name].shape)
    if len(shape) != rank or 0 in shape:
        raise CheckpointError(f"expected {rank} dimensions, none of them 0, for {name}, got shape {shape}")
    return shape


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for name in tensors if (match := pattern.match(name))})


def vqgan_plan(
    format: str,
    tensors: Mapping[str, Tensor],
    sources: dict[str, str],
    pixels: dict[str, Any],
    **fields: Any,
) -> Plan:
    """A plan for our tensors by our names; `fields` of the configuration add to those that the shapes show.

    Raises:
        CheckpointError: where [`infer`] does, for fields that contradict each other, and for tensors that do not fill
            the model of that configuration exactly.
    """
    found = {**infer(tensors), **fields}
    try:
        config = LGQConfig(**found)
    except Exception as error:  # huggingface_hub's own classes, which share no base but this
        raise CheckpointError(f"the tensors do not make a model: {str(error).splitlines()[-1].strip()}") from error
    plan = Plan(
        format=format,
        config=config,
        processor={**pixels, "pad_to_multiple_of": config.spatial_downsample_factor},
        tensors=dict(tensors),
        sources=sources,
    )
    check_fit(plan)
    return plan


def check_fit(plan: Plan) -> None:
    """Refuses tensors that do not fill the plan's model exactly, by the source's names (`CheckpointError`)."""
    with torch.device("meta"):
        try:
            expected = {name: tuple(tensor.shape) for name, tensor in LGQModel(plan.config).state_dict().items()}
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"the tensors do not make a model: {error}") from error
    problems = []
    if missing := sorted(set(expected) - set(plan.tensors)):
        problems.append(f"nothing for {len(missing)} of the model's tensors: {shorten(missing)}")
    if extra := sorted(set(plan.tensors) - set(expected)):
        problems.append(f"no place for {len(extra)}: {shorten(plan.sources[name] for name in extra)}")
    wrong = [
        f"{plan.sources[name]} {tuple(tensor.shape)} where {name} has {expected[name]}"
        for name, tensor in sorted(plan.tensors.items())
        if name in expected and tuple(tensor.shape) != expected[name]
    ]
    if wrong:
        problems.append(f"{len(wrong)} of another shape: {shorten(wrong)}")
    if problems:
        raise CheckpointError(f"the checkpoint does not fill a {plan.format} model. It has {'; '.join(problems)}")


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Within it, values of another kind than expected end in an error that says where they stand."""
    try:
        yield
    except CheckpointError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{where} has a value of another kind than expected: {error}") from error


def compare(given: Mapping[str, tuple[Any, Any]], where: str) -> None:
    """Refuses a configuration that says something else than the tensors.

    Args:
        given: by field name, what the configuration says and what the tensors show; a field that the configuration
            does not have is `None` there.

    Raises:
        CheckpointError: that names every field that differs.
    """
    wrong = [
        f"{name}: {said!r:.80} there, {found!r:.80} in the tensors"
        for name, (said, found) in given.items()
        if said is not None and said != found
    ]
    if wrong:
        raise CheckpointError(f"{where} belongs to another checkpoint. {'; '.join(wrong)}")


__all__ = [
    "ENDS",
    "MINUS_ONE_TO_ONE",
    "ZERO_TO_ONE",
    "Rules",
    "check_fit",
    "compare",
    "infer",
    "reading",
    "rename",
    "shorten",
    "vqgan_plan",
]
