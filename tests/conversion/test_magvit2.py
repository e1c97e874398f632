"""Open-MAGVIT2, SimVQ and WeTok: any net of theirs, their lookups, and YAMLs that say something else."""

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from conversion import magvit2, taming
from conversion.configs import find_configs
from conversion.plan import CheckpointError
from conversion.read import read_weights
from lgq_hf import LGQConfig, LGQModel
from tests.conversion.renamed import their_name

FORMATS = ["magvit2", "simvq", "wetok"]
NET = {
    "backbone": "vqgan",
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "num_mid_blocks": 1,
    "latent_channels": 8,
    "conv_bias": False,
    "mid_attention": False,
    "decoder_extra_block": False,
    "downsample": "conv",
    "upsample": "depth_to_space",
    "encoder_out_kernel": 1,
}
LOOKUPS: dict[str, dict[str, Any]] = {
    "magvit2": {"quantizer": "lfq", "codebook_size": 256, "adaptive_group_norm": True},
    "simvq": {"quantizer": "simvq", "codebook_size": 20},
    "wetok": {"quantizer": "lfq", "codebook_size": 16, "adaptive_group_norm": True},
}
# of the names that are not common to the nets in this manner
THEIRS = [
    (r"encoder\.downsamplers\.(\d+)\.conv\.", r"encoder.down.\1.downsample."),
    (r"decoder\.upsamplers\.(\d+)\.conv\.", r"decoder.up.<\1>.upsample.conv1."),
    (r"decoder\.adaptive_norms\.(\d+)\.", r"decoder.adaptive.<\1>."),
    (r"\.mid\.blocks\.", ".mid_block."),
]


def net(format: str, **changes: Any) -> tuple[LGQConfig, dict[str, Tensor], dict[str, Tensor]]:
    """A configuration, random tensors that fill its model by our names, and the same by theirs."""
    config = LGQConfig(**{**NET, **LOOKUPS[format], **changes})
    with torch.device("meta"):
        shapes = LGQModel(config).state_dict()
    tensors = {name: torch.randn(tensor.shape) for name, tensor in shapes.items()}
    theirs = {their_name(name, len(config.channel_multiplier), THEIRS): tensor for name, tensor in tensors.items()}
    if format == "simvq":
        channels = config.latent_channels
        theirs["quantize.embedding_proj.weight"] = torch.randn(channels, channels)
        theirs["quantize.embedding_proj.bias"] = torch.randn(channels)
    return config, tensors, theirs


def groups(count: int) -> dict[str, Any]:
    return {"model": {"init_args": {"ddconfig": {}, "num_codebooks": count}}}


# Any net


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channel_multiplier": [2, 3, 5], "num_mid_blocks": 3},
        {"channel_multiplier": [3, 1, 1, 2], "stem_channels": 32, "num_res_blocks": 3},
        {"base_channels": 64, "channel_multiplier": [1, 1, 1], "num_res_blocks": 2, "num_mid_blocks": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("format", FORMATS)
def test_any_net(format: str, changes: dict[str, Any]) -> None:
    config, tensors, theirs = net(format, **changes)
    made = magvit2.plan(theirs, groups(2) if format == "wetok" else None, "auto", format)
    assert made.config.to_diff_dict() == config.to_diff_dict()
    assert made.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        if name not in made.baked:
            assert made.tensors[name] is theirs[made.sources[name]] is tensor
    assert made.baked.keys() == ({"quantizer.codebook"} if format == "simvq" else set())
    assert made.processor["pad_to_multiple_of"] == 2 ** (len(config.channel_multiplier) - 1)
    assert made.processor["do_normalize"] and made.processor["image_mean"] == [0.5] * 3


@pytest.mark.parametrize("channels", [1, 5, 18])
def test_bits_are_the_channels_of_the_latents(channels: int) -> None:
    _, _, theirs = net("magvit2", latent_channels=channels, codebook_size=2**channels)
    made = magvit2.plan(theirs, None, "auto", "magvit2")
    assert made.config.codebook_size == 2**channels and made.config.tokens_per_position == 1


# WeTok's groups


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_groups_of_bits(count: int) -> None:
    _, _, theirs = net("wetok")
    config = magvit2.plan(theirs, groups(count), "auto", "wetok").config
    assert (config.codebook_size, config.tokens_per_position) == (2 ** (8 // count), count)


@pytest.mark.parametrize("config", [None, {"model": {"params": {"ddconfig": {}}}}, groups(0)], ids=str)
def test_wetok_needs_its_number_of_groups(config: dict[str, Any] | None) -> None:
    _, _, theirs = net("wetok")
    with pytest.raises(CheckpointError, match=r"into how many groups .* with num_codebooks \(--config FILE\)"):
        magvit2.plan(theirs, config, "auto", "wetok")


@pytest.mark.parametrize("count", [3, -1, 16, "many", [2]])
def test_other_numbers_of_groups_are_refused(count: Any) -> None:
    _, _, theirs = net("wetok")
    with pytest.raises(CheckpointError, match="num_codebooks"):
        magvit2.plan(theirs, groups(count), "auto", "wetok")


def test_a_decoder_that_also_takes_noise_is_refused() -> None:
    _, _, theirs = net("wetok")
    theirs["decoder.conv_in.weight"] = torch.zeros(64, 16, 3, 3)
    with pytest.raises(CheckpointError, match=r"decoder\.conv_in\.weight \(64, 16, 3, 3\) where .* \(64, 8, 3, 3\)"):
        magvit2.plan(theirs, groups(2), "auto", "wetok")


# SimVQ's table


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_baked_table_is_the_recorded_one(
    weights: Any, family: Path, recorded: Callable[[str], dict[str, Tensor]]
) -> None:
    content = read_weights([family / "simvq_a/checkpoint.ckpt"])
    state = content["state_dict"]
    made = magvit2.plan(content, None, weights, "simvq")
    parts = {
        "ema": ["model_ema.quantizeembedding_projweight", "model_ema.quantizeembedding_projbias"],
        "raw": ["quantize.embedding_proj.weight", "quantize.embedding_proj.bias"],
    }[weights]
    table = made.tensors["quantizer.codebook"]
    # no average of the table itself: nothing trains it
    wanted = F.linear(state["quantize.embedding.weight"], *(state[part] for part in parts))
    torch.testing.assert_close(table, wanted, rtol=0, atol=2e-6)
    assert table.dtype == torch.float32
    assert made.sources["quantizer.codebook"] == ", ".join(["quantize.embedding.weight", *parts])
    distance = float((table - recorded("simvq_a")["effective_codebook"]).abs().max())
    assert distance < 2e-6 if weights == "ema" else distance > 0.1


@pytest.mark.parametrize("part", ["embedding.weight", "embedding_proj.weight", "embedding_proj.bias"])
def test_a_table_without_a_part_is_refused(part: str) -> None:
    _, _, theirs = net("simvq")
    del theirs[f"quantize.{part}"]
    with pytest.raises(CheckpointError, match=rf"this one lacks 'quantize\.{re.escape(part)}'"):
        magvit2.plan(theirs, None, "auto", "simvq")


@pytest.mark.parametrize(
    ("part", "shape"),
    [("embedding.weight", (160,)), ("embedding_proj.weight", (4, 8)), ("embedding_proj.bias", (20, 8))],
)
def test_a_table_of_other_shapes_is_refused(part: str, shape: tuple[int, ...]) -> None:
    _, _, theirs = net("simvq")
    theirs[f"quantize.{part}"] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=rf"expected quantize\.embedding \(K, C\) .*{re.escape(str(shape))}"):
        magvit2.plan(theirs, None, "auto", "simvq")


def test_half_precision_is_baked_in_full() -> None:
    _, _, theirs = net("simvq")
    half = {name: tensor.half() for name, tensor in theirs.items()}
    table = magvit2.plan(half, None, "auto", "simvq").tensors["quantizer.codebook"]
    parts = [half[f"quantize.{part}"].double() for part in ("embedding.weight", "embedding_proj.weight")]
    wanted = parts[0] @ parts[1].T + half["quantize.embedding_proj.bias"].double()
    assert table.dtype == torch.float32
    torch.testing.assert_close(table.double(), wanted, rtol=1e-6, atol=1e-6)


def test_a_projection_has_no_place_in_the_others() -> None:
    _, _, theirs = net("simvq")
    with pytest.raises(CheckpointError, match=r"not have: quantize\.embedding_proj\.weight"):
        magvit2.plan(theirs, None, "auto", "magvit2")


# YAMLs

NETS: dict[str, tuple[str, Any]] = {
    "ddconfig.ch": ("ddconfig.ch", 64),
    "ddconfig.ch times ddconfig.ch_mult": ("ddconfig.ch_mult", [1, 4]),
    "ddconfig.num_res_blocks": ("ddconfig.num_res_blocks", 5),
    "ddconfig.z_channels": ("ddconfig.z_channels", 47),
    "ddconfig.in_channels": ("ddconfig.in_channels", 1),
    "ddconfig.out_ch": ("ddconfig.out_ch", 4),
    "ddconfig.double_z": ("ddconfig.double_z", True),
    "ddconfig.attn_type": ("ddconfig.attn_type", "linear"),
    "ddconfig.resamp_with_conv": ("ddconfig.resamp_with_conv", False),
    "remap": ("remap", "remap.npy"),
    "embed_dim": ("embed_dim", 31),
    "l2_normalize": ("l2_normalize", True),
    "levels of ddconfig.attn_resolutions": ("ddconfig.attn_resolutions", [16]),
}
SIGNS: dict[str, tuple[str, Any]] = {**NETS, "n_embed": ("n_embed", 512)}
# by format: by the name under which a field is compared, where it stands, and another value
CHANGES: dict[str, dict[str, tuple[str, Any]]] = {
    "magvit2": {**SIGNS, "num_codebooks": ("num_codebooks", 2), "gan_decoder": ("gan_decoder", True)},
    "wetok": {**SIGNS, "gan_decoder": ("gan_decoder", True)},  # the number of groups is taken from the YAML
    "simvq": {
        **NETS,
        "n_embed": ("n_embed", 255),
        "quantconfig.params.n_e": ("quantconfig.params.n_e", 255),
        "quantconfig.params.e_dim": ("quantconfig.params.e_dim", 31),
    },
}
Content = tuple[Mapping[str, Any], dict[str, Any]]


def content_of(format: str, family: Path) -> Content:
    """A recorded file and its YAML."""
    file = family / f"{format}_a" / "checkpoint.ckpt"
    return read_weights([file]), copy.deepcopy(dict(find_configs(file, None, "yaml")["yaml"]))


def put(config: dict[str, Any], where: str, value: Any) -> None:
    *path, last = where.split(".")
    place = config["model"]["init_args"]
    for name in path:
        place = place[name]
    place[last] = value


@pytest.mark.parametrize(("format", "name"), [(format, name) for format in FORMATS for name in CHANGES[format]])
def test_a_yaml_that_says_something_else(format: str, name: str, family: Path) -> None:
    weights, config = content_of(format, family)
    put(config, *CHANGES[format][name])
    with pytest.raises(CheckpointError, match=rf"YAML .* another checkpoint\. (.*; )?{re.escape(name)}: .* there, "):
        magvit2.plan(weights, config, "auto", format)


@pytest.mark.parametrize("format", FORMATS)
def test_every_field_that_is_compared_is_changed_above(
    format: str, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    compare: Callable[..., None] = magvit2.compare
    for module in (magvit2, taming):
        monkeypatch.setattr(module, "compare", lambda fields, where: (seen.update(fields), compare(fields, where)))
    weights, config = content_of(format, family)
    put(config, "ddconfig.attn_resolutions", [])
    magvit2.plan(weights, config, "auto", format)
    assert seen.keys() - CHANGES[format].keys() == ({"num_codebooks"} if format == "wetok" else set())
    assert CHANGES[format].keys() <= seen.keys()


@pytest.mark.parametrize("format", FORMATS)
def test_what_a_yaml_leaves_out_is_not_compared(format: str, family: Path) -> None:
    weights, config = content_of(format, family)
    for where in ("n_embed", "embed_dim", "ddconfig.ch_mult", "quantconfig"):
        put(config, where, None)
    assert magvit2.plan(weights, config, "auto", format).config.image_size == 128
