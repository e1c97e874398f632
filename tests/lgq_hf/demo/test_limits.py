"""Which checkpoints of strangers are refused before they are made."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lgq_hf import default_checkpoint
from lgq_hf.checkpoint.loading import load_checkpoint
from lgq_hf.demo.limits import check_affordable

Changed = Callable[..., Path]
VQGAN = {"backbone": "vqgan", "bottleneck_attention": True, "norm_num_groups": 1}


@pytest.fixture
def changed(model_folder: Path, tmp_path: Path) -> Changed:
    """`changed(**fields)`: a folder whose weights are those of a tiny model, and its config.json another."""

    def make(**fields: Any) -> Path:
        folder = Path(shutil.copytree(model_folder, tmp_path / "changed"))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))
        return folder

    return make


def test_what_a_checkpoint_of_ours_is_passes(
    model_folder: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    check_affordable(model_folder)
    check_affordable(default_checkpoint())
    check_affordable(make_model(tmp_path / "bins", codebook_mode="per_channel", codebook_size=6))
    signs = {"quantizer": "lfq", "codebook_size": 2**16, "temperature": 1.0}  # without a table
    check_affordable(make_model(tmp_path / "signs", **signs))


def test_half_precision_passes(model_folder: Path, tmp_path: Path) -> None:
    model = load_checkpoint(str(model_folder), "cpu").model.half()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 0.6 * (model_folder / "model.safetensors").stat().st_size
    check_affordable(tmp_path)


@pytest.mark.parametrize(
    ("fields", "numbers"),
    [({"codebook_size": 2**33}, r"137,\d{3},\d{3},\d{3}"), ({"base_channels": 40000}, r"384,\d{3},\d{3},\d{3}")],
)
def test_a_model_larger_than_its_weights_is_refused(changed: Changed, fields: dict[str, int], numbers: str) -> None:
    """No machine could hold these: they are not made."""
    message = rf"^the model of its config.json has {numbers} numbers, of at least 2 bytes each, and its weights have "
    with pytest.raises(ValueError, match=message):
        check_affordable(changed(**fields))


def test_buffers_count_too(make_model: Callable[..., Path], tmp_path: Path) -> None:
    small = {"quantizer": "vq", "temperature": 1.0, "codebook_size": 2**18}
    folder = make_model(tmp_path / "vq", **small)
    config = json.loads((folder / "config.json").read_text())
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 2**18])  # as much as fp16 has
    check_affordable(folder)
    (folder / "config.json").write_text(json.dumps(config | {"codebook_update": "ema"}))
    with pytest.raises(ValueError, match="numbers, of at least 2 bytes each"):
        check_affordable(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channel_multiplier": [1] * 9}, "expected at most 8 stages in channel_multiplier, got 9"),
        ({"num_res_blocks": 10**9}, "expected num_res_blocks of at most 16, got 1000000000"),
        ({"decoder_num_res_blocks": [1, 1, 17, 1]}, "expected decoder_num_res_blocks of at most 16, got 17"),
        ({**VQGAN, "num_mid_blocks": 17}, "expected num_mid_blocks of at most 16, got 17"),
        ({"latent_channels": 513}, "expected latent_channels of at most 512, got 513"),
        ({"code_dim": 10**9, "codebook_mode": "per_channel"}, "expected quantizer_dim of at most 512, got 1000000000"),
    ],
)
def test_what_takes_long_to_make_is_refused(changed: Changed, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_affordable(changed(**fields))


def test_attention_at_full_resolution_is_refused(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(tmp_path / "slow", channel_multiplier=[1], bottleneck_attention=True)
    message = r"^a picture of 2048 x 512 pixels takes 7\.0e\+13 floating point operations, expected at most 2e\+13: "
    with pytest.raises(ValueError, match=message):
        check_affordable(folder)


def test_a_search_in_a_large_codebook_is_work_too(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(tmp_path / "slow", channel_multiplier=[1], codebook_size=2**20)
    with pytest.raises(
        ValueError, match=r"^a picture of 2048 x 512 pixels takes 3\.5e\+13 floating point operations, "
    ):
        check_affordable(folder)


@pytest.mark.parametrize("key", ["num_labels", "quantization_config", "attn_implementation", "configuration_files"])
def test_keys_that_send_transformers_elsewhere_are_refused(changed: Changed, key: str) -> None:
    message = f"^config.json: expected fields of LGQConfig alone, got \\['{key}'\\]: take them out$"
    with pytest.raises(ValueError, match=message):
        check_affordable(changed(**{key: 10**12}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "^expected JSON in config.json: Expecting property name"),
        ("[1]", "^config.json is of type 'None', expected 'lgq'$"),
        ('{"model_type": "bert"}', "^config.json is of type 'bert', expected 'lgq'$"),
        ('{"model_type": "lgq", "codebook_size": 0}', "^config.json: .*codebook_size must be at least 1, got 0$"),
    ],
)
def test_what_is_no_configuration_is_told(model_folder: Path, tmp_path: Path, content: str, message: str) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "changed"))
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        check_affordable(folder)
