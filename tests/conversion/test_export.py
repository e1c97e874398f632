"""From our folders back to other layouts: round trips are exact, and what those cannot hold is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conversion.convert import convert
from conversion.export import export, main
from conversion.export_diffusers import diffusers_net, export_diffusers
from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel, LGQTokenizer

OFFICIAL = Path(__file__).parents[1] / "fixtures" / "lgq_official"
Converted = Callable[..., Path]
NET = {
    "backbone": "vqgan",
    "base_channels": 8,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "latent_channels": 6,
    "code_dim": 5,
    "codebook_size": 16,
    "quantizer": "vq",
}


def official(tmp_path: Path, mode: str) -> Path:
    """A recorded mode as the official trainer's file."""
    checkpoint = {
        "epoch": 3,
        "model_state_dict": load_file(OFFICIAL / mode / "official_model.safetensors"),
        "optimizer_state_dict": {"state": {}, "param_groups": []},
        "config": json.loads((OFFICIAL / mode / "official_config.json").read_text()),
        "model_type": "lgq",
    }
    torch.save(checkpoint, tmp_path / "best_model.pt")
    return tmp_path / "best_model.pt"


@pytest.mark.parametrize("mode", sorted(folder.name for folder in OFFICIAL.glob("lgq_*")))
@torch.no_grad()
def test_official_file_to_folder_and_back(mode: str, tmp_path: Path) -> None:
    source = official(tmp_path, mode)
    convert(source, tmp_path / "ours")
    export(tmp_path / "ours", "lgq_official", tmp_path / "again.pt")
    first, again = (torch.load(path, weights_only=True) for path in (source, tmp_path / "again.pt"))
    buffers = {name for name in first["model_state_dict"] if name.startswith("quantize._")}
    assert buffers <= set(again["model_state_dict"])
    for name, tensor in first["model_state_dict"].items():
        if name not in buffers:
            assert torch.equal(again["model_state_dict"][name], tensor), name
    convert(tmp_path / "again.pt", tmp_path / "ours_again")
    one, two = (LGQTokenizer.from_pretrained(tmp_path / name) for name in ("ours", "ours_again"))
    images = load_file(OFFICIAL / mode / "expected.safetensors")["images"]
    assert torch.equal(one(images).decoded_pixel_values, two(images).decoded_pixel_values)
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())
    processor = LGQImageProcessor.from_pretrained(tmp_path / "ours")
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("source", ["diffusers_a/checkpoint", "diffusers_a/checkpoint_legacy", "amused_a/checkpoint"])
def test_diffusers_folder_to_ours_and_back(source: str, converted: Converted, family: Path, tmp_path: Path) -> None:
    export(converted(source), "diffusers", tmp_path / "vqmodel")
    folder = source.replace("_legacy", "")
    first = load_file(family / folder / "diffusion_pytorch_model.safetensors")
    again = load_file(tmp_path / "vqmodel" / "diffusion_pytorch_model.safetensors")
    assert first.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    said, says = (json.loads((path / "config.json").read_text()) for path in (family / folder, tmp_path / "vqmodel"))
    # absent there where it is latent_channels; 32 there is a default that is not taken over
    same = set(says) - {"vq_embed_dim", *(["sample_size"] if said["sample_size"] == 32 else [])}
    assert {name: says[name] for name in same} == {name: said[name] for name in same}
    convert(tmp_path / "vqmodel", tmp_path / "ours")
    for name in ("model.safetensors", "preprocessor_config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (converted(source) / name).read_bytes()


@pytest.mark.parametrize("source", ["taming_a/checkpoint.ckpt", "llamagen_a/checkpoint.pt", "diffusers_a/checkpoint"])
@torch.no_grad()
def test_diffusers_itself_loads_the_export(
    source: str, converted: Converted, recorded: Callable[[str], dict[str, Tensor]], tmp_path: Path
) -> None:
    """Tokens as diffusers' own quantizer finds them, and its pictures, are those of the source project."""
    expected = recorded(source.split("/")[0])
    export(converted(source), "diffusers", tmp_path / "vqmodel")
    model, problems = diffusers.VQModel.from_pretrained(tmp_path / "vqmodel", output_loading_info=True)
    assert not any(problems.values())
    latents = model.encode(expected["images_rect"]).latents
    torch.testing.assert_close(latents, expected["latent_rect"], rtol=0, atol=1e-4)
    _, _, (_, _, indices) = model.quantize(latents)
    assert torch.equal(indices.reshape(expected["indices_rect"].shape), expected["indices_rect"])
    decoded = model.decode(latents).sample
    torch.testing.assert_close(decoded, expected["reconstruction_rect"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer": "ibq", "distance": "dot"}, "quantizer='ibq' cannot be exported"),
        ({"quantizer": "lgq"}, "quantizer='lgq' cannot be exported"),
        ({"code_dim": None}, "code_dim=None cannot be exported"),
        ({"stem_channels": 4}, "stem_channels=4 cannot be exported"),
        ({"decoder_extra_block": False}, "decoder_extra_block=False cannot be exported"),
        ({"num_mid_blocks": 1}, "num_mid_blocks=1 cannot be exported"),
        ({"norm_eps": 1e-5}, "norm_eps=1e-05 cannot be exported"),
        ({"conv_bias": False}, "conv_bias=False cannot be exported"),
        ({"downsample": "avg_pool"}, "downsample='avg_pool' cannot be exported"),
        ({"upsample": "depth_to_space"}, "upsample='depth_to_space' cannot be exported"),
        ({"shortcut_on_hidden": True}, "shortcut_on_hidden=True cannot be exported"),
        ({"adaptive_group_norm": True}, "adaptive_group_norm=True cannot be exported"),
        ({"encoder_out_kernel": 1}, "encoder_out_kernel=1 cannot be exported"),
    ],
)
def test_what_diffusers_cannot_hold(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export_diffusers(LGQModel(LGQConfig(**{**NET, **changes})))


def test_another_backbone_is_refused() -> None:
    small = {"base_channels": 8, "channel_multiplier": [1, 2], "num_res_blocks": 1, "latent_channels": 6}
    with pytest.raises(ValueError, match="backbone='lgq' cannot be exported"):
        diffusers_net(LGQModel(LGQConfig(**small, codebook_size=16)))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = LGQModel(LGQConfig(**NET))
    model.save_pretrained(tmp_path / "ours")
    LGQImageProcessor().save_pretrained(tmp_path / "ours")
    output = tmp_path / "vqmodel"
    assert main([str(tmp_path / "ours"), "--to", "diffusers", "--output", str(output)]) == 0
    assert "written for diffusers" in capsys.readouterr().out
    assert main([str(tmp_path / "ours"), "--to", "diffusers", "--output", str(output)]) == 1
    assert "exists: take another name" in capsys.readouterr().err
    assert main([str(tmp_path / "ours"), "--to", "lgq_official", "--output", str(tmp_path / "x.pt")]) == 1
    assert "backbone" in capsys.readouterr().err and not (tmp_path / "x.pt").exists()
    LGQImageProcessor(image_mean=[0.4] * 3).save_pretrained(tmp_path / "ours")
    assert main([str(tmp_path / "ours"), "--to", "diffusers", "--output", str(tmp_path / "y")]) == 1
    assert "image_mean=[0.4, 0.4, 0.4] cannot be exported" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "vqmodel"]
