"""The PyTorch MaskGIT-VQGAN: any net of its kind, and configurations that say something else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conversion import maskgit
from conversion.plan import CheckpointError
from conversion.read import read_weights
from lgq_hf import LGQConfig, LGQModel
from tests.conversion.renamed import their_name

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
    "downsample": "avg_pool",
    "shortcut_on_hidden": True,
    "encoder_out_kernel": 1,
    "quantizer": "vq",
    "codebook_size": 20,
}
# of the names that are not common to the nets in this manner
THEIRS = [
    (r"decoder\.upsamplers\.(\d+)\.conv\.", r"decoder.up.<\1>.upsample_conv."),
    (r"\.mid\.blocks\.", ".mid."),
]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channel_multiplier": [2, 3, 5], "num_mid_blocks": 3},
        {"channel_multiplier": [3, 1, 1, 2], "num_res_blocks": 3, "stem_channels": 32},
        {"base_channels": 64, "channel_multiplier": [1, 1, 1], "codebook_size": 7, "latent_channels": 3},
    ],
    ids=str,
)
def test_any_net(changes: dict[str, Any]) -> None:
    config = LGQConfig(**{**NET, **changes})
    with torch.device("meta"):
        shapes = LGQModel(config).state_dict()
    tensors = {name: torch.randn(tensor.shape) for name, tensor in shapes.items()}
    theirs = {their_name(name, len(config.channel_multiplier), THEIRS): tensor for name, tensor in tensors.items()}
    made = maskgit.plan(theirs, None, "auto")
    assert made.config.to_diff_dict() == config.to_diff_dict()
    assert made.tensors.keys() == tensors.keys()
    assert all(made.tensors[name] is theirs[made.sources[name]] is tensors[name] for name in tensors)
    assert made.processor == {"do_normalize": False, "pad_to_multiple_of": 2 ** (len(config.channel_multiplier) - 1)}


# by the name under which a field is compared: where it stands, and another value
CHANGES: dict[str, tuple[str, Any]] = {
    "hidden_channels times channel_mult": ("hidden_channels", 128),
    "num_res_blocks": ("num_res_blocks", 1),
    "num_channels": ("num_channels", 1),
    "z_channels": ("z_channels", 256),
    "quantized_embed_dim": ("quantized_embed_dim", 31),
    "num_embeddings": ("num_embeddings", 1024),
}


@pytest.fixture
def weights(family: Path) -> dict[str, Tensor]:
    return read_weights([family / "maskgit_a/checkpoint.bin"])


@pytest.fixture
def config(family: Path) -> dict[str, Any]:
    return json.loads((family / "maskgit_a/open_muse/config.json").read_text())


def test_the_configuration_of_open_muse(weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    config["resolution"] = 512
    assert maskgit.plan(weights, config, "auto").config.image_size == 512
    assert maskgit.plan(weights, {}, "auto").config.image_size == 256  # what is not said is not compared


@pytest.mark.parametrize("name", CHANGES)
def test_a_configuration_that_says_something_else(
    name: str, weights: dict[str, Tensor], config: dict[str, Any]
) -> None:
    where, value = CHANGES[name]
    with pytest.raises(
        CheckpointError, match=rf"config\.json belongs to another checkpoint\. {name}: .* there, [^;]*$"
    ):
        maskgit.plan(weights, {**config, where: value}, "auto")


def test_other_multipliers(weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"channel_mult: \[32, 64\] there, \[32, 32, 64, 64, 64\]"):
        maskgit.plan(weights, {**config, "channel_mult": [1, 2]}, "auto")


def test_every_field_that_is_compared_is_changed_above(
    weights: dict[str, Tensor], config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    compare: Callable[..., None] = maskgit.compare
    monkeypatch.setattr(maskgit, "compare", lambda fields, where: (seen.update(fields), compare(fields, where)))
    maskgit.plan(weights, config, "auto")
    assert seen.keys() == CHANGES.keys()


def test_a_configuration_of_another_class(weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="is of a PaellaVQModel, expected MaskGitVQGAN"):
        maskgit.plan(weights, {**config, "_class_name": "PaellaVQModel"}, "auto")


@pytest.mark.parametrize(("name", "value"), [("resolution", "large"), ("channel_mult", 2), ("hidden_channels", [32])])
def test_values_of_another_kind_are_refused(
    name: str, value: Any, weights: dict[str, Tensor], config: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        maskgit.plan(weights, {**config, name: value}, "auto")


def test_averages_that_are_not_there_are_refused(weights: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="--weights ema: the file is one state dict"):
        maskgit.plan(weights, None, "ema")
