"""LlamaGen's files, and the tokenizer inside Janus, beside transformers' own Janus."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from conversion.convert import convert
from conversion.llamagen import janus_plan, plan
from conversion.plan import CheckpointError
from conversion.read import read_weights
from lgq_hf import LGQModel, LGQTokenizer

FIELDS = {
    "base_channels": 32,
    "channel_multiplier": [1, 1, 2],
    "num_res_blocks": 1,
    "latent_channels": 16,
    "embed_dim": 4,
    "num_embeddings": 64,
    "num_patches": 8,
}


def janus(**changes: Any) -> JanusVQVAE:
    """A small random one whose codes have length 1, without which transformers' lookup is another."""
    torch.manual_seed(0)
    model = JanusVQVAE(JanusVQVAEConfig(**{**FIELDS, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.quantize.embedding.weight.copy_(F.normalize(torch.randn_like(model.quantize.embedding.weight), dim=1))
    return model


@pytest.mark.parametrize("prefix", ["", "model.vqmodel.", "vqmodel."])
@pytest.mark.parametrize("changes", [{}, {"channel_multiplier": [1, 1, 1, 3], "num_res_blocks": 2, "num_patches": 4}])
@torch.no_grad()
def test_transformers_janus(prefix: str, changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = janus(**changes)
    tensors = {f"{prefix}{name}": tensor.clone() for name, tensor in theirs.state_dict().items()}
    config = {"model_type": "janus_vqgan", **FIELDS, **changes}
    if prefix:
        tensors["model.language_model.embed_tokens.weight"] = torch.randn(7, 5)
        config = {"model_type": "janus", "vq_config": config}
    (tmp_path / "source").mkdir()
    save_file(tensors, tmp_path / "source" / "model.safetensors")
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    report = convert(tmp_path / "source", tmp_path / "out")
    assert report["format"] == "janus"
    assert set(report["dropped"].values()) == ({"not of the image tokenizer"} if prefix else set())
    ours = LGQTokenizer.from_pretrained(tmp_path / "out")
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    encoded = ours.encode(pixels)
    latents = theirs.quant_conv(theirs.encoder(pixels))
    torch.testing.assert_close(encoded.last_hidden_state, latents, rtol=0, atol=1e-4)
    # transformers leaves out the normalisation of latents, so it is done for it
    _, _, indices = theirs.quantize(F.normalize(latents, dim=1))
    assert torch.equal(encoded.image_tokens.flatten(), indices)
    decoded = theirs.decode(encoded.image_tokens.flatten(1))
    torch.testing.assert_close(ours.decode(encoded.image_tokens).decoded_pixel_values, decoded, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_original_layout_of_janus_is_llamagens(
    family: Path, recorded: Callable[[str], dict[str, Tensor]], tmp_path: Path
) -> None:
    """Whole model: the tokenizer's names behind `gen_vision_model.`, in shards, beside other parts."""
    state = read_weights([family / "llamagen_a" / "checkpoint_release.pt"])["model"]
    tensors = {f"gen_vision_model.{name}": tensor.clone() for name, tensor in state.items()}
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:100], "model-00002-of-00002.safetensors": names[100:]}
    for shard, inside in shards.items():
        save_file(
            {name: tensors[name] for name in inside} | {f"vision_model.{shard}": torch.ones(2)}, tmp_path / shard
        )
    index = {name: shard for shard, inside in shards.items() for name in inside}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"model_type": "multi_modality", "gen_vision_config": {"params": {"image_token_size": 512, "n_embed": 8}}}
        )
    )
    report = convert(tmp_path, tmp_path / "out")
    assert report["format"] == "janus" and len(report["source"]["sha256"]) == 2
    assert report["dropped"]["gen_vision_model.quantize.codebook_used"] == "trainer: statistic"
    assert report["dropped"]["vision_model.model-00001-of-00002.safetensors"] == "not of the image tokenizer"
    model = LGQTokenizer.from_pretrained(tmp_path / "out")
    expected = recorded("llamagen_a")
    encoded = model.encode(expected["images_rect"])
    assert torch.equal(encoded.image_tokens, expected["indices_rect"])
    pixels = model.decode(encoded.image_tokens).decoded_pixel_values
    torch.testing.assert_close(pixels, expected["reconstruction_rect"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "field", ["num_res_blocks", "latent_channels", "embed_dim", "num_embeddings", "base_channels"]
)
def test_a_configuration_that_differs_is_refused(field: str) -> None:
    content = dict(janus().state_dict())
    said = {**FIELDS, field: FIELDS[field] + 1}
    with pytest.raises(
        CheckpointError, match=rf"config\.json belongs to another checkpoint\. {field}.* in the tensors"
    ):
        janus_plan(content, said, "auto")
    assert janus_plan(content, FIELDS, "auto").config.codebook_size == 64


@pytest.mark.parametrize(("field", "value"), [("image_token_size", 16384), ("n_embed", 8)])
def test_the_configuration_of_the_original_janus_is_compared(field: str, value: int) -> None:
    config = {"model_type": "multi_modality", "gen_vision_config": {"cls": "VQ-16", "params": {field: value}}}
    with pytest.raises(CheckpointError, match=rf"gen_vision_config\.params\.{field}: {value} there"):
        janus_plan(dict(janus().state_dict()), config, "auto")


def test_janus_has_no_averages() -> None:
    with pytest.raises(CheckpointError, match="a Janus model has no moving averages"):
        janus_plan(dict(janus().state_dict()), None, "ema")


def test_codes_are_decoded_at_length_one_whatever_is_stored(family: Path) -> None:
    """The table keeps its rows as they were trained; their lengths range over two orders of magnitude."""
    made = plan(read_weights([family / "llamagen_a" / "checkpoint.pt"]), "auto")
    lengths = made.tensors["quantizer.codebook"].norm(dim=1)
    assert lengths.max() / lengths.min() > 100
    model = LGQModel(made.config)
    model.load_state_dict({name: tensor.clone() for name, tensor in made.tensors.items()})
    codes = model.quantizer.codes_from_tokens(torch.arange(512).reshape(1, 16, 32))
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(1, 16, 32))


def test_either_set_of_weights_and_only_what_is_there(family: Path) -> None:
    content = read_weights([family / "llamagen_a" / "checkpoint.pt"])
    assert plan(content, "auto").weights == "ema" and plan(content, "raw").weights == "raw"
    assert plan(content, "auto").dropped["model"] == "optimised weights: their moving average is used"
    released = read_weights([family / "llamagen_a" / "checkpoint_release.pt"])
    assert plan(released, "auto").weights == "raw"
    with pytest.raises(CheckpointError, match="expected weights under 'ema', the file has model"):
        plan(released, "ema")
