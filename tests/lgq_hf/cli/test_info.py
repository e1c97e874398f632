"""`lgq info`, and what it says about checkpoints that cannot be loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel
from lgq_hf.checkpoint.loading import load_checkpoint

Lgq = Callable[..., Any]


def test_json(lgq: Lgq, model_folder: Path) -> None:
    result = lgq("info", model_folder, "--json")
    assert (result.status, result.err) == (0, "")
    facts = json.loads(result.out)
    model = LGQModel.from_pretrained(model_folder)
    parameters = facts.pop("parameters")
    assert parameters["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert parameters["total"] == sum(parameters[part] for part in ("encoder", "quantizer", "decoder"))
    assert parameters["quantizer"] == 64 * 16
    assert facts.pop("weights_bytes") == (model_folder / "model.safetensors").stat().st_size
    assert len(facts.pop("fingerprint")) == 64
    assert facts == {
        "model": str(model_folder),
        "backbone": "lgq",
        "base_channels": 8,
        "channel_multiplier": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "decoder_num_res_blocks": None,
        "attention": False,
        "latent_channels": 16,
        "downsample_factor": 8,
        "quantizer": "lgq",
        "codebook_mode": "vector",
        "codebook_size": 64,
        "code_dim": 16,
        "distance": "sq_l2",
        "image_size": 64,
        "token_grid": [8, 8],
        "tokens_per_picture": 64,
        "bits_per_pixel": 6 / 64,
        "bits_per_picture": 384.0,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "converted_from": None,
    }


def test_text(lgq: Lgq, model_folder: Path) -> None:
    result = lgq("info", model_folder)
    assert (result.status, result.err) == (0, "")
    rows = dict(line.split("  ", 1) for line in result.out.splitlines() if "  " in line.strip())
    assert rows["codebook"].strip() == "64 codes of 16 channels"
    assert rows["token grid"].strip() == "8 x 8 for 64 x 64 pixels"
    assert rows["tokens per picture"].strip() == "64"
    assert rows["bits per pixel"].strip() == "0.09375"
    values = {line[20:] == line[20:].lstrip() for line in result.out.splitlines()}
    assert values == {True}  # aligned


def test_projections_and_channels_are_counted(tmp_path: Path, lgq: Lgq, make_model: Callable[..., Path]) -> None:
    folder = make_model(tmp_path / "m", code_dim=3, codebook_mode="per_channel", codebook_size=8, learn_widths=True)
    facts = json.loads(lgq("info", folder, "--json").out)
    assert facts["parameters"]["total"] == sum(p.numel() for p in LGQModel.from_pretrained(folder).parameters())
    assert set(facts["parameters"]) == {"encoder", "quantizer", "decoder", "total"}
    assert (facts["token_grid"], facts["tokens_per_picture"], facts["code_dim"]) == ([8, 8, 3], 192, 3)
    assert facts["bits_per_picture"] == 192 * 3


BROKEN: dict[str, tuple[str, Any, str]] = {  # the file, what it is changed to or with, and the error
    "no config": ("config.json", None, "no model in the folder .*: it has no config.json"),
    "no weights": ("model.safetensors", None, "cannot load the model .*no file named model.safetensors"),
    "cut weights": ("model.safetensors", b"cut", "cannot load the model "),
    "no processor": ("preprocessor_config.json", None, "cannot load the model .*preprocessor_config.json"),
    "padding": ("preprocessor_config.json", {"pad_to_multiple_of": 12}, "pads to multiples of 12"),
    "other type": ("config.json", {"model_type": "vit"}, "cannot load the model .*'vit', expected 'lgq'"),
    "more layers": ("config.json", {"num_res_blocks": 2}, "cannot load the model .*64 missing: decoder"),
    "impossible": ("config.json", {"codebook_size": 0}, "cannot load the model .*codebook_size.*got 0$"),
}


@pytest.mark.parametrize("kind", list(BROKEN))
def test_broken_checkpoints_are_refused(tmp_path: Path, lgq: Lgq, model_folder: Path, kind: str) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "m")
    name, change, message = BROKEN[kind]
    if change is None:
        (folder / name).unlink()
    elif isinstance(change, bytes):
        (folder / name).write_bytes(change)
    else:
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **change}))
    with pytest.raises(ValueError, match=message) as raised:
        load_checkpoint(str(folder))
    result = lgq("info", folder)
    assert (result.status, result.out, result.err) == (2, "", f"lgq: {raised.value}\n")


@pytest.mark.parametrize("reference", ["./gone", "a/b/c", "gone/"])
def test_paths_that_do_not_exist_are_not_looked_for_on_the_hub(lgq: Lgq, reference: str) -> None:
    assert lgq("info", reference).err == f"lgq: no model at {reference!r}: no such folder\n"


def test_a_file_is_no_model(lgq: Lgq, model_folder: Path) -> None:
    result = lgq("info", model_folder / "model.safetensors")
    assert result.status == 2
    assert "the model is a folder (or a Hub repository), got the file" in result.err


def test_a_repository_that_cannot_be_reached(lgq: Lgq, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(_: str) -> None:
        raise OSError("We couldn't connect to the Hub.\nCheck your internet connection.")

    monkeypatch.setattr(LGQConfig, "get_config_dict", offline)
    assert lgq("info", "some/model").err == (
        "lgq: cannot load the model 'some/model': We couldn't connect to the Hub. Check your internet connection.\n"
    )


def test_a_converted_checkpoint_says_what_it_was_made_of(lgq: Lgq, tmp_path: Path) -> None:
    config = LGQConfig(
        backbone="vqgan",
        base_channels=4,
        channel_multiplier=[1, 1],
        norm_num_groups=2,
        mid_attention=False,
        quantizer="lfq",
        codebook_size=4,
        latent_channels=6,
        converted_from={"file": "last.ckpt", "project": "WeTok", "weights": "ema"},
    )
    LGQModel(config).save_pretrained(tmp_path)
    LGQImageProcessor(do_normalize=False, pad_to_multiple_of=2).save_pretrained(tmp_path)
    text = lgq("info", tmp_path).out
    rows = dict(line.split("  ", 1) for line in text.splitlines() if "  " in line.strip())
    values = {name: value.strip() for name, value in rows.items()}
    assert values["converted from"] == "last.ckpt (WeTok, ema)"
    assert values["quantizer"] == "lfq, signs"
    assert "2 residual blocks per stage, no attention" in text
    assert (values["pixel mean"], values["pixel deviation"]) == ("0 0 0", "1 1 1")
    assert values["token grid"] == "128 x 128 x 3 for 256 x 256 pixels"
