"""Names and configuration of a VQGAN's tensors, by names and shapes alone."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from conversion.family import check_fit, compare, infer, rename, shorten, vqgan_plan
from conversion.plan import CheckpointError, Plan
from conversion.taming import RULES
from lgq_hf import LGQConfig, LGQModel

NET = {
    "backbone": "vqgan",
    "base_channels": 32,
    "channel_multiplier": [1, 2, 2],
    "num_res_blocks": 1,
    "latent_channels": 6,
    "code_dim": 4,
    "codebook_size": 10,
    "quantizer": "vq",
}
BARE = {"conv_bias": False, "mid_attention": False, "decoder_extra_block": False, "encoder_out_kernel": 1}


def shapes(**changes: Any) -> dict[str, Tensor]:
    """Tensors of a model, without memory."""
    with torch.device("meta"):
        return LGQModel(LGQConfig(**{**NET, **changes})).state_dict()


def resized(tensors: dict[str, Tensor], name: str, *shape: int) -> dict[str, Tensor]:
    return {**tensors, name: torch.empty(shape, device="meta")}


def without(tensors: dict[str, Tensor], *parts: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)}


# Names


def test_the_decoders_levels_are_numbered_from_the_other_end() -> None:
    keys = [f"encoder.down.{level}.block.0.conv1.weight" for level in range(3)]
    names = rename([*keys, "decoder.up.2.block.1.conv1.weight", "decoder.up.0.attn.0.q.bias"], RULES)
    assert [names[key] for key in keys] == [f"encoder.stages.{level}.blocks.0.conv1.weight" for level in range(3)]
    assert names["decoder.up.2.block.1.conv1.weight"] == "decoder.stages.0.blocks.1.conv1.weight"
    assert names["decoder.up.0.attn.0.q.bias"] == "decoder.stages.2.attentions.0.q.bias"


def test_one_level_is_both_ends() -> None:
    keys = ["encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight"]
    assert list(rename(keys, RULES).values()) == [
        "encoder.stages.0.blocks.0.conv1.weight",
        "decoder.stages.0.blocks.0.conv1.weight",
    ]


@pytest.mark.parametrize(
    ("layer", "ours"), [("nin_shortcut", "shortcut"), ("conv_shortcut", "shortcut"), ("norm1", "norm1")]
)
def test_layers_have_one_name(layer: str, ours: str) -> None:
    key = f"encoder.down.0.block.0.{layer}.weight"
    assert rename([key], RULES) == {key: f"encoder.stages.0.blocks.0.{ours}.weight"}


def test_keys_that_no_rule_fits_are_named() -> None:
    keys = ["encoder.conv_in.weight", "encoder.conv_in.weight.extra", "xencoder.conv_in.weight"]
    with pytest.raises(CheckpointError, match=r"2 keys .* not have: encoder\.conv_in\.weight\.extra, xencoder"):
        rename(keys, RULES)


def test_two_keys_for_one_tensor_are_named() -> None:
    twice = [f"encoder.down.0.block.0.{layer}.weight" for layer in ("nin_shortcut", "conv_shortcut")]
    with pytest.raises(CheckpointError, match=rf"one tensor: {re.escape(', '.join(twice))}$"):
        rename(["encoder.conv_in.weight", *twice], RULES)


def test_long_lists_are_cut() -> None:
    assert shorten("abcdef") == "a, b, c, d, e, f"
    assert shorten("abcdefgh") == "a, b, c, d, e, f and 2 more"


# Configuration by shapes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"base_channels": 32, "channel_multiplier": [2, 3, 5]},  # none a multiple of the first
        {"channel_multiplier": [3, 2], "stem_channels": 64},
        {"channel_multiplier": [2, 4], "stem_channels": 32},
        {"channel_multiplier": [1]},
        {"channel_multiplier": [1, 1, 1, 2, 2, 4]},
        {"attention_levels": [0, 2], "num_res_blocks": 3},
        {"attention_levels": [1], "mid_attention": False},
        {"num_mid_blocks": 4},
        {"decoder_extra_block": False, "num_res_blocks": 2},
        {"in_channels": 1},
        {"code_dim": None},
        {"code_dim": 6},  # projections, though nothing asks for them
        {"upsample": "depth_to_space", "adaptive_group_norm": True},
        {"num_mid_blocks": 1, **BARE},
    ],
    ids=str,
)
def test_shapes_show_the_configuration(changes: dict[str, Any]) -> None:
    wanted = {**NET, **changes}
    found = infer(shapes(**changes))
    assert {**LGQConfig(**found, quantizer="vq").to_diff_dict()} == LGQConfig(**wanted).to_diff_dict()


def test_widths_without_a_common_base_but_their_divisor() -> None:
    found = infer(shapes(base_channels=1, channel_multiplier=[96, 160], norm_num_groups=32))
    assert (found["base_channels"], found["channel_multiplier"], found["stem_channels"]) == (32, [3, 5], None)


@pytest.mark.parametrize(
    "name",
    ["encoder.stem.weight", "encoder.to_emb.weight", "encoder.stages.1.blocks.0.conv2.weight"],
)
def test_a_missing_tensor_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"nothing for {re.escape(name)}: it is not whole"):
        infer(without(shapes(), name))


def test_a_missing_stage_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"nothing for encoder\.stages\.1\.blocks\.0\.conv2\.weight"):
        infer(without(shapes(), "encoder.stages.1."))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("encoder.stem.weight", (32, 3)),
        ("encoder.to_emb.weight", (6, 64, 0, 3)),
        ("decoder.upsamplers.0.conv.weight", (64,)),
        ("pre_quant.weight", (4, 6)),
        ("quantizer.codebook", (10, 4, 1, 1)),
    ],
)
def test_a_wrong_rank_or_an_empty_tensor_is_named(name: str, shape: tuple[int, ...]) -> None:
    said = rf"dimensions, none of them 0, for {re.escape(name)}, got shape {re.escape(str(shape))}"
    with pytest.raises(CheckpointError, match=said):
        infer(resized(shapes(), name, *shape))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("decoder.stages.2.attentions", r"in levels \[0, 2\] and the decoder in \[2\]"),
        ("encoder.stages.0.attentions", r"in levels \[2\] and the decoder in \[0, 2\]"),
    ],
)
def test_attention_on_one_side_only_is_refused(part: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        infer(without(shapes(attention_levels=[0, 2]), part))


@pytest.mark.parametrize("blocks", [1, 4])
def test_other_numbers_of_decoder_blocks_are_refused(blocks: int) -> None:
    found = without(shapes(num_res_blocks=2), *(f"decoder.stages.{i}.blocks.{j}." for i in range(3) for j in (1, 2)))
    for extra in range(1, blocks):
        found = resized(found, f"decoder.stages.0.blocks.{extra}.conv1.weight", 64, 64, 3, 3)
    with pytest.raises(CheckpointError, match=f"the encoder has 2 and the decoder {blocks}$"):
        infer(found)


# The model that they fill


def planned(tensors: dict[str, Tensor], **fields: Any) -> Plan:
    sources = {name: f"their.{name}" for name in tensors}
    return vqgan_plan("taming", tensors, sources, {"do_normalize": False}, quantizer="vq", **fields)


def test_a_plan_holds_the_same_tensors_and_the_factor() -> None:
    tensors = shapes()
    plan = planned(tensors, image_size=96)
    assert all(plan.tensors[name] is tensor for name, tensor in tensors.items())
    assert plan.processor == {"do_normalize": False, "pad_to_multiple_of": 4}
    assert plan.config.image_size == 96 and plan.format == "taming"


def test_fields_add_to_what_shapes_show() -> None:
    assert planned(shapes(), distance="cosine", norm_num_groups=8).config.norm_num_groups == 8


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"distance": "dot"}, "has distance='sq_l2' or 'cosine'"), ({"norm_num_groups": 24}, r"stage widths \[32, 64\]")],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=f"(?s)do not make a model: .*{said}"):
        planned(shapes(), **fields)


def test_widths_that_no_group_norm_has_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"(?s)do not make a model: .*norm_num_groups=32 does not divide"):
        planned(shapes(base_channels=8, norm_num_groups=8))


def test_missing_extra_and_misshapen_tensors_are_named_together() -> None:
    tensors = without(shapes(), "decoder.out.bias", "encoder.stages.0.blocks.0.norm1.weight")
    tensors = resized(tensors, "encoder.stages.7.attentions.9.q.bias", 3)
    tensors = resized(tensors, "encoder.norm_out.bias", 63)
    with pytest.raises(CheckpointError) as caught:
        planned(without(tensors, "encoder.stages.7"))
    assert "does not fill a taming model" in str(caught.value)
    assert "nothing for 2 of the model's tensors: decoder.out.bias, encoder.stages.0.bl" in str(caught.value)
    assert "1 of another shape: their.encoder.norm_out.bias (63,) where encoder.norm_out.bias has (64,)" in str(
        caught.value
    )
    with pytest.raises(CheckpointError, match=r"no place for 1: their\.quantizer\.extra$"):
        planned({**shapes(), "quantizer.extra": torch.empty(3)})


def test_a_linear_weight_in_place_of_a_convolution_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"mid\.attentions\.0\.q\.weight \(64, 64\) where .* \(64, 64, 1, 1\)"):
        planned(resized(shapes(), "encoder.mid.attentions.0.q.weight", 64, 64))


def test_fit_is_checked_without_memory() -> None:
    plan = planned(shapes())
    plan.config.codebook_size = 2**40
    with pytest.raises(CheckpointError, match=r"quantizer\.codebook \(10, 4\) where .* has \(1099511627776, 4\)"):
        check_fit(plan)


# Configurations that came along


def test_only_what_is_said_is_compared() -> None:
    compare({"a": (None, 3), "b": (3, 3), "c": ([1, 2], [1, 2])}, "it")
    with pytest.raises(CheckpointError) as caught:
        compare({"a": (None, 3), "b": (4, 3), "c": ([2], [1, 2]), "d": (0, 0)}, "the YAML")
    assert str(caught.value) == (
        "the YAML belongs to another checkpoint. b: 4 there, 3 in the tensors; c: [2] there, [1, 2] in the tensors"
    )


@pytest.mark.parametrize("found", [None, False, 0])
def test_a_value_that_the_tensors_do_not_have_differs(found: Any) -> None:
    with pytest.raises(CheckpointError, match=f"n_embed: 7 there, {found} in the tensors"):
        compare({"n_embed": (7, found)}, "it")
