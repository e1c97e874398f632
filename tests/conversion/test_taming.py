"""taming-transformers' VQGAN and IBQ: any net of theirs, and YAMLs that say something else."""

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conversion import taming
from conversion.configs import find_configs
from conversion.plan import CheckpointError
from conversion.read import read_weights
from lgq_hf import LGQConfig, LGQModel
from tests.conversion.renamed import their_name

NET = {
    "backbone": "vqgan",
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "latent_channels": 10,
    "code_dim": 6,
    "quantizer": "vq",
    "codebook_size": 12,
}
# of the names that are not common to the nets in this manner
THEIRS = [
    (r"^pre_quant\.", "quant_conv."),
    (r"^post_quant\.", "post_quant_conv."),
    (r"encoder\.stages\.(\d+)\.attentions\.", r"encoder.down.\1.attn."),
    (r"encoder\.downsamplers\.(\d+)\.", r"encoder.down.\1.downsample."),
    (r"decoder\.stages\.(\d+)\.attentions\.", r"decoder.up.<\1>.attn."),
    (r"decoder\.upsamplers\.(\d+)\.", r"decoder.up.<\1>.upsample."),
    (r"mid\.blocks\.0\.", "mid.block_1."),
    (r"mid\.blocks\.1\.", "mid.block_2."),
    (r"mid\.attentions\.0\.", "mid.attn_1."),
    (r"\.proj\.", ".proj_out."),
]


def net(**changes: Any) -> tuple[LGQConfig, dict[str, Tensor], dict[str, Tensor]]:
    """A configuration, random tensors that fill its model by our names, and the same by theirs."""
    config = LGQConfig(**{**NET, **changes})
    with torch.device("meta"):
        shapes = LGQModel(config).state_dict()
    tensors = {name: torch.randn(tensor.shape) for name, tensor in shapes.items()}
    return (
        config,
        tensors,
        {their_name(name, len(config.channel_multiplier), THEIRS): t for name, t in tensors.items()},
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channel_multiplier": [1]},
        {"base_channels": 32, "channel_multiplier": [3, 1, 2], "stem_channels": 64},
        {"channel_multiplier": [1, 1, 3, 5], "num_res_blocks": 2, "attention_levels": [1, 3]},
        {"num_res_blocks": 4, "latent_channels": 3, "code_dim": 3, "codebook_size": 1000},
        {"base_channels": 64, "channel_multiplier": [2, 1, 1], "attention_levels": [0, 1, 2], "in_channels": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("format", ["taming", "ibq"])
def test_any_net(format: str, changes: dict[str, Any]) -> None:
    lookup = {"taming": {}, "ibq": {"quantizer": "ibq", "distance": "dot"}}[format]
    config, tensors, theirs = net(**changes, **lookup)
    made = taming.plan({"state_dict": theirs, "epoch": 1}, None, "auto", format)
    assert made.config.to_diff_dict() == config.to_diff_dict()
    assert made.tensors.keys() == tensors.keys()
    assert all(made.tensors[name] is theirs[made.sources[name]] for name in tensors)
    assert all(torch.equal(made.tensors[name], tensors[name]) for name in tensors)
    assert made.processor == {
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "pad_to_multiple_of": 2 ** (len(config.channel_multiplier) - 1),
    }


def test_gumbel_vq_is_refused() -> None:
    _, _, theirs = net()
    theirs["quantize.embed.weight"] = theirs.pop("quantize.embedding.weight")
    theirs["quantize.proj.weight"] = torch.zeros(12, 10, 1, 1)
    with pytest.raises(CheckpointError, match="it is taming's GumbelVQ, whose tokens come from a learned projection"):
        taming.plan(theirs, None, "auto", "taming")


def test_keys_of_other_nets_are_refused() -> None:
    _, _, theirs = net()
    with pytest.raises(CheckpointError, match=r"1 keys that this format does not have: quantize\.cluster_size"):
        taming.plan({**theirs, "quantize.cluster_size": torch.zeros(12)}, None, "auto", "taming")


# YAMLs

RECORDED = {"taming": "taming_a", "ibq": "ibq_a"}
# by the name under which a field is compared: where it stands, and another value
CHANGES: dict[str, tuple[str, Any]] = {
    "ddconfig.ch": ("ddconfig.ch", 128),
    "ddconfig.ch times ddconfig.ch_mult": ("ddconfig.ch_mult", [1, 1, 2, 2]),
    "ddconfig.num_res_blocks": ("ddconfig.num_res_blocks", 1),
    "ddconfig.z_channels": ("ddconfig.z_channels", 47),
    "ddconfig.in_channels": ("ddconfig.in_channels", 1),
    "ddconfig.out_ch": ("ddconfig.out_ch", 4),
    "ddconfig.double_z": ("ddconfig.double_z", True),
    "ddconfig.attn_type": ("ddconfig.attn_type", "linear"),
    "ddconfig.resamp_with_conv": ("ddconfig.resamp_with_conv", False),
    "remap": ("remap", "remap.npy"),
    "embed_dim": ("embed_dim", 31),
    "n_embed": ("n_embed", 257),
    "l2_normalize": ("l2_normalize", True),
    "levels of ddconfig.attn_resolutions": ("ddconfig.attn_resolutions", [16, 32]),
}
Content = tuple[Mapping[str, Any], dict[str, Any]]


@pytest.fixture(params=RECORDED)
def format(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def content(format: str, family: Path) -> Content:
    """A recorded file and its YAML."""
    file = family / RECORDED[format] / "checkpoint.ckpt"
    return read_weights([file]), copy.deepcopy(dict(find_configs(file, None, "yaml")["yaml"]))


def put(config: dict[str, Any], where: str, value: Any) -> None:
    *path, last = where.split(".")
    place = config["model"].get("params") or config["model"]["init_args"]
    for name in path:
        place = place[name]
    place[last] = value


@pytest.mark.parametrize("name", CHANGES)
def test_a_yaml_that_says_something_else(name: str, format: str, content: Content) -> None:
    weights, config = content
    put(config, *CHANGES[name])
    with pytest.raises(CheckpointError, match=rf"YAML .* another checkpoint\. (.*; )?{re.escape(name)}: .* there, "):
        taming.plan(weights, config, "auto", format)
    taming.plan(weights, None, "auto", format)


def test_every_field_that_is_compared_is_changed_above(
    format: str, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    compare: Callable[..., None] = taming.compare
    monkeypatch.setattr(taming, "compare", lambda fields, where: (seen.update(fields), compare(fields, where)))
    taming.plan(*content, "auto", format)
    assert seen.keys() == CHANGES.keys()


@pytest.mark.parametrize("where", ["ddconfig.attn_resolutions", "ddconfig.resolution", "ddconfig.ch", "n_embed"])
def test_what_a_yaml_leaves_out_is_not_compared(where: str, format: str, content: Content) -> None:
    weights, config = content
    put(config, where, None)
    assert taming.plan(weights, config, "auto", format).config.image_size == 256


def test_the_resolution_becomes_the_image_size_and_places_attention(format: str, content: Content) -> None:
    weights, config = content
    put(config, "ddconfig.resolution", 512)
    with pytest.raises(CheckpointError, match=r"attn_resolutions: \[\] there, \[4\] in the tensors"):
        taming.plan(weights, config, "auto", format)
    put(config, "ddconfig.attn_resolutions", [32])
    assert taming.plan(weights, config, "auto", format).config.image_size == 512


@pytest.mark.parametrize(
    "config",
    [{}, {"model": []}, {"model": {"params": {}}}, {"model": {"params": {"ddconfig": 3}}}, {"model": {"params": [1]}}],
    ids=str,
)
def test_a_yaml_without_a_net(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"model\.params\.ddconfig or .* got one without\. --no-config converts"):
        taming.arguments(config)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("ddconfig.resolution", "large"),
        ("ddconfig.resolution", [256, 256]),
        ("ddconfig.ch_mult", 2),
        ("ddconfig.ch_mult", ["a", None]),
        ("ddconfig.attn_resolutions", 16),
        ("ddconfig.ch", {"a": 1}),
    ],
)
@pytest.mark.parametrize("format", ["taming"], indirect=True)
def test_values_of_another_kind_are_refused(where: str, value: Any, format: str, content: Content) -> None:
    weights, config = content
    put(config, where, value)
    with pytest.raises(CheckpointError, match="YAML configuration"):
        taming.plan(weights, config, "auto", format)
