"""diffusers' VQModel: any net of its kind beside diffusers itself, and configurations that say something else."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from conversion import diffusers_vq
from conversion.plan import CheckpointError, Plan
from conversion.read import read_weights, weight_files
from lgq_hf import LGQModel

# what each changes of a small net
NETS: dict[str, dict[str, Any]] = {
    "one_level": {"block_out_channels": [12]},
    "widths_without_a_common_factor": {"block_out_channels": [20, 12, 28], "layers_per_block": 2},
    "wide_first": {"block_out_channels": [24, 8], "layers_per_block": 3, "vq_embed_dim": 5},
    "attention_in_the_middle": {
        "block_out_channels": [8, 12, 20],
        "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        "mid_block_add_attention": False,
    },
    "attention_at_both_ends": {
        "block_out_channels": [12, 8],
        "down_block_types": ["AttnDownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D", "AttnUpDecoderBlock2D"],
        "layers_per_block": 2,
        "norm_num_groups": 2,
    },
    "grey": {"block_out_channels": [8, 16], "in_channels": 1, "out_channels": 1, "num_vq_embeddings": 3},
    "codes_as_wide_as_latents": {"block_out_channels": [8, 8], "latent_channels": 6, "vq_embed_dim": 6},
    "one_group": {"block_out_channels": [7, 9], "norm_num_groups": 1},
}


def peer(**changes: Any) -> diffusers.VQModel:
    """A small net of diffusers, with nothing where its initialisation left it."""
    levels = len(changes["block_out_channels"])
    defaults = {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": 4,
        "num_vq_embeddings": 16,
        "norm_num_groups": 4,
        "sample_size": 24,
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = diffusers.VQModel(**{**defaults, **changes}).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # codes as far apart as latents are; the rest moved from zeros and ones
                parameter.add_(torch.randn_like(parameter) * (1.0 if "embedding" in name else 0.1))
    return model


def planned(model: diffusers.VQModel, **config: Any) -> Plan:
    return diffusers_vq.plan(model.state_dict(), {**model.config, **config}, "auto", "diffusers")


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_any_net_beside_diffusers(name: str) -> None:
    theirs = peer(**NETS[name])
    plan = planned(theirs)
    ours = LGQModel(plan.config).eval()
    ours.load_state_dict(plan.tensors)
    given, config = theirs.config, plan.config
    widths = [config.base_channels * multiplier for multiplier in config.channel_multiplier]
    assert widths == list(given.block_out_channels) and config.num_res_blocks == given.layers_per_block
    assert config.codebook_size == given.num_vq_embeddings and config.image_size == 24
    assert config.code_dim == (given.vq_embed_dim or given.latent_channels)

    factor = config.spatial_downsample_factor
    pixels = (
        torch.rand(2, given.in_channels, 4 * factor, 6 * factor, generator=torch.Generator().manual_seed(5)) * 2 - 1
    )
    encoded, latents = ours.encode(pixels), theirs.encode(pixels).latents
    torch.testing.assert_close(encoded.last_hidden_state, latents, rtol=0, atol=1e-4)
    _, _, (_, _, tokens) = theirs.quantize(latents)
    assert torch.equal(encoded.image_tokens.flatten(), tokens) and len(tokens.unique()) > 1
    torch.testing.assert_close(
        ours.decode(encoded.image_tokens).decoded_pixel_values, theirs.decode(latents).sample, rtol=0, atol=1e-4
    )


def test_every_tensor_is_the_files_own() -> None:
    theirs = peer(**NETS["attention_at_both_ends"])
    plan, state = planned(theirs), theirs.state_dict()
    assert set(plan.sources.values()) == set(state) and not plan.dropped
    for name, tensor in plan.tensors.items():
        source = state[plan.sources[name]]
        assert tensor.data_ptr() == source.data_ptr() and torch.equal(tensor.reshape(source.shape), source)
        linear = source.ndim == 2 and "embedding" not in plan.sources[name]
        assert tensor.shape == (*source.shape, 1, 1) if linear else tensor.shape == source.shape


# Names before diffusers 0.17


def test_old_names_give_the_same_tensors(family: Path) -> None:
    def plan_of(folder: str) -> Plan:
        source = family / "diffusers_a" / folder
        config = json.loads((source / "config.json").read_text())
        return diffusers_vq.plan(read_weights(weight_files(source)), config, "auto", "diffusers")

    new, old = plan_of("checkpoint"), plan_of("checkpoint_legacy")
    assert new.config.to_diff_dict() == old.config.to_diff_dict() and new.processor == old.processor
    assert new.tensors.keys() == old.tensors.keys()
    assert all(torch.equal(new.tensors[name], old.tensors[name]) for name in new.tensors)
    assert old.sources["encoder.mid.attentions.0.q.weight"] == "encoder.mid_block.attentions.0.query.weight"
    assert new.sources["encoder.mid.attentions.0.q.weight"] == "encoder.mid_block.attentions.0.to_q.weight"
    assert old.sources["decoder.stages.0.attentions.1.proj.bias"].endswith("attentions.1.proj_attn.bias")
    assert new.sources["decoder.stages.0.attentions.1.proj.bias"].endswith("attentions.1.to_out.0.bias")


# Configurations

# by the name under which a field is compared: another value
CHANGES: dict[str, Any] = {
    "block_out_channels": [8, 16, 32],
    "layers_per_block": 2,
    "in_channels": 4,
    "out_channels": 1,
    "latent_channels": 8,
    "num_vq_embeddings": 129,
    "vq_embed_dim": 16,
    "mid_block_add_attention": False,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D"],
}


@pytest.fixture
def weights(family: Path) -> dict[str, Tensor]:
    return read_weights(weight_files(family / "diffusers_a/checkpoint"))


@pytest.fixture
def config(family: Path) -> dict[str, Any]:
    return json.loads((family / "diffusers_a/checkpoint/config.json").read_text())


@pytest.mark.parametrize("name", CHANGES)
def test_a_configuration_that_says_something_else(
    name: str, weights: dict[str, Tensor], config: dict[str, Any]
) -> None:
    said = rf"config\.json belongs to another checkpoint\. {name}: {re.escape(repr(CHANGES[name]))} there, [^;]*$"
    with pytest.raises(CheckpointError, match=said):
        diffusers_vq.plan(weights, {**config, name: CHANGES[name]}, "auto", "diffusers")


def test_every_field_that_is_compared_is_changed_above(
    weights: dict[str, Tensor], config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    compare: Callable[..., None] = diffusers_vq.compare
    monkeypatch.setattr(diffusers_vq, "compare", lambda fields, where: (seen.update(fields), compare(fields, where)))
    diffusers_vq.plan(weights, config, "auto", "diffusers")
    assert seen.keys() == CHANGES.keys()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("act_fn", "relu", r"act_fn='relu', and only silu or swish can"),
        ("act_fn", ["silu"], r"act_fn=\['silu'\], and only"),
        ("norm_type", "spatial", "norm_type='spatial', and only group can"),
        ("_class_name", "AutoencoderKL", "_class_name='AutoencoderKL', and only VQModel can"),
    ],
)
def test_nets_that_compute_something_else(
    name: str, value: Any, said: str, weights: dict[str, Tensor], config: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json has {said}"):
        diffusers_vq.plan(weights, {**config, name: value}, "auto", "diffusers")


def test_a_net_without_its_configuration_is_refused(weights: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"needs its config\.json .* number of groups of its norms"):
        diffusers_vq.plan(weights, None, "auto", "diffusers")


@pytest.mark.parametrize(("groups", "said"), [(3, "does not divide"), (None, "norm_num_groups")])
def test_groups_that_do_not_fit(groups: Any, said: str, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=f"(?s)do not make a model: .*{said}"):
        diffusers_vq.plan(weights, {**config, "norm_num_groups": groups}, "auto", "diffusers")


def test_groups_that_are_not_said_are_diffusers_default() -> None:
    theirs = peer(block_out_channels=[32, 64], norm_num_groups=32)
    assert diffusers_vq.plan(theirs.state_dict(), {}, "auto", "diffusers").config.norm_num_groups == 32


def test_attention_on_one_side_only_is_refused() -> None:
    theirs = peer(block_out_channels=[8, 8], down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"])
    with pytest.raises(CheckpointError, match=r"attention in levels \[1\] and the decoder in \[\]"):
        planned(theirs)


def test_other_channels_out_than_in_are_refused() -> None:
    with pytest.raises(CheckpointError, match="the encoder takes 3 channels and the decoder gives 1"):
        planned(peer(block_out_channels=[8], out_channels=1))


@pytest.mark.parametrize(("size", "ours"), [(48, 48), ([48, 64], 256), (None, 256)])
def test_the_sample_size(size: Any, ours: int, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    plan = diffusers_vq.plan(weights, {**config, "sample_size": size}, "auto", "diffusers")
    assert plan.config.image_size == ours


@pytest.mark.parametrize(("format", "normalised"), [("diffusers", True), ("amused", False)])
def test_pixels(format: str, normalised: bool, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    plan = diffusers_vq.plan(weights, config, "auto", format)
    assert plan.format == format and plan.processor["do_normalize"] is normalised
    assert plan.processor["pad_to_multiple_of"] == 4


@pytest.mark.parametrize(("name", "value"), [("block_out_channels", 8), ("down_block_types", 3)])
def test_values_of_another_kind_are_refused(
    name: str, value: Any, weights: dict[str, Tensor], config: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        diffusers_vq.plan(weights, {**config, name: value}, "auto", "diffusers")
