"""Checkpoints: what is written, that it comes back bit for bit, and that nothing else is taken for one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel

import lgq_hf.tokenizer
from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel
from tests.conftest import MODELS

CODE = {path.name for path in Path(lgq_hf.tokenizer.__file__).parent.glob("*.py")} - {"__init__.py"}


def assert_same_model(model: nn.Module, expected: nn.Module, pixels: Tensor) -> None:
    """Every tensor, every token and every pixel bit for bit."""
    tensors, expected_tensors = model.state_dict(), expected.state_dict()
    assert tensors.keys() == expected_tensors.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected_tensors[name].dtype, name
        assert torch.equal(tensor, expected_tensors[name]), name
    assert_same_output(model, expected, pixels)


@torch.no_grad()
def assert_same_output(model: nn.Module, expected: nn.Module, pixels: Tensor) -> None:
    encoded, expected_encoded = model.encode(pixels), expected.encode(pixels)
    assert torch.equal(encoded.image_tokens, expected_encoded.image_tokens)
    assert torch.equal(encoded.last_hidden_state, expected_encoded.last_hidden_state)
    expected_decoded = expected.decode(expected_encoded.image_tokens).decoded_pixel_values
    assert torch.equal(model.decode(encoded.image_tokens).decoded_pixel_values, expected_decoded)
    assert torch.equal(model(pixels).decoded_pixel_values, expected_decoded)


# --- what is written


@pytest.mark.parametrize("case", ["sq_l2"], indirect=True)
def test_a_checkpoint_holds_weights_config_and_code(model: LGQModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"config.json", "model.safetensors", *(CODE - {"image_processing_lgq.py"})}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == {"AutoConfig": "configuration_lgq.LGQConfig", "AutoModel": "modeling_lgq.LGQModel"}
    assert config["architectures"] == ["LGQModel"]
    assert config["model_type"] == "lgq"
    for name in written & CODE:
        source = Path(lgq_hf.tokenizer.__file__).parent / name
        assert (tmp_path / name).read_text() == source.read_text(), name
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(model.state_dict())


@pytest.mark.parametrize("case", ["sq_l2"], indirect=True)
def test_a_processor_brings_its_code_too(model: LGQModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    LGQImageProcessor().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == CODE
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["auto_map"] == {"AutoImageProcessor": "image_processing_lgq.LGQImageProcessor"}


# --- that it comes back


@pytest.mark.parametrize("case", MODELS, indirect=True)
def test_round_trip(model: LGQModel, tmp_path: Path, make_pixels: Callable[..., Tensor]) -> None:
    model.save_pretrained(tmp_path)
    loaded, info = LGQModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is LGQModel
    assert not loaded.training
    assert {name: len(found) for name, found in info.items()} == {
        "missing_keys": 0,
        "unexpected_keys": 0,
        "mismatched_keys": 0,
        "error_msgs": 0,
    }
    if model.config.quantizer == "lgq":
        assert loaded.quantizer.temperature.item() == 0.375  # not the 0.5 of its config
    learns = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in loaded.named_parameters()} == learns
    assert_same_model(loaded, model, make_pixels(model))
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert (again / "config.json").read_text() == (tmp_path / "config.json").read_text()


def test_shards(build_model: Callable[..., LGQModel], tmp_path: Path, make_pixels: Callable[..., Tensor]) -> None:
    model = build_model("sq_l2")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    expected = split_torch_state_dict_into_shards(model.state_dict(), max_shard_size="20KB")
    assert len(shards) == len(expected.filename_to_tensors) >= 3
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(model.state_dict())
    loaded = LGQModel.from_pretrained(tmp_path)
    assert_same_model(loaded, model, make_pixels(model))
    held = load_file(tmp_path / shards[0])
    held.pop(min(held))
    save_file(held, tmp_path / shards[0], metadata={"format": "pt"})
    with pytest.raises(ValueError, match="Tensors 1 missing: "):
        LGQModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_loaded_in_half_precision(
    model: LGQModel, dtype: torch.dtype, tmp_path: Path, make_pixels: Callable[..., Tensor]
) -> None:
    """Same as a cast: the quantizer keeps its fp32; and the cast model's own checkpoint comes back as it was."""
    model.save_pretrained(tmp_path)
    loaded = LGQModel.from_pretrained(tmp_path, dtype=dtype)
    pixels = make_pixels(model)
    latents = model.encode(pixels).last_hidden_state
    assert torch.equal(loaded.quantizer(latents).image_tokens, model.quantizer(latents).image_tokens)
    assert loaded.dtype == dtype
    assert {tensor.dtype for tensor in loaded.quantizer.state_dict().values()} <= {torch.float32}
    assert_same_model(loaded, model.to(dtype), pixels)
    half = tmp_path / "half"
    loaded.save_pretrained(half)
    stored = load_file(half / "model.safetensors")
    assert stored["encoder.stem.weight"].dtype == dtype
    assert all(tensor.dtype == torch.float32 for name, tensor in stored.items() if name.startswith("quantizer."))
    assert_same_model(LGQModel.from_pretrained(half), loaded, pixels)
    full = LGQModel.from_pretrained(half, dtype=torch.float32)
    assert full.dtype == torch.float32
    for name, tensor in full.quantizer.state_dict().items():
        assert torch.equal(tensor, loaded.quantizer.state_dict()[name]), name


def test_device_map(model: LGQModel, tmp_path: Path, make_pixels: Callable[..., Tensor]) -> None:
    model.save_pretrained(tmp_path)
    assert_same_model(LGQModel.from_pretrained(tmp_path, device_map="auto"), model, make_pixels(model))


def _offload(model: LGQModel, *parts: str) -> dict[str, str]:
    if parts == ("",):
        return {"": "disk"}
    return {name: "disk" if name in parts else "cpu" for name, _ in model.named_children()}


@pytest.mark.parametrize(
    "parts",
    [("",), ("quantizer",), pytest.param(("encoder", "decoder"), marks=pytest.mark.slow)],
    ids=lambda parts: "+".join(parts) or "everything",
)
def test_offloaded_to_disk(
    model: LGQModel, parts: tuple[str, ...], tmp_path: Path, make_pixels: Callable[..., Tensor]
) -> None:
    model.save_pretrained(tmp_path)
    loaded = LGQModel.from_pretrained(
        tmp_path, device_map=_offload(model, *parts), offload_folder=str(tmp_path / "offload")
    )
    away = {name for name, p in loaded.named_parameters() if p.device.type == "meta"}
    assert away == {name for name, _ in model.named_parameters() if parts == ("",) or name.split(".")[0] in parts}
    pixels = make_pixels(model)
    for _ in range(2):  # weights that were fetched once are put away again
        assert_same_output(loaded, model, pixels)
        assert away == {name for name, p in loaded.named_parameters() if p.device.type == "meta"}
    with torch.no_grad():
        tokens = model.encode(pixels).image_tokens
        assert torch.equal(loaded.encode(pixel_values=pixels).image_tokens, tokens)
        decoded = model.decode(tokens).decoded_pixel_values
        assert torch.equal(loaded.decode(image_tokens=tokens).decoded_pixel_values, decoded)
        codes = model.quantizer.codes_from_tokens(tokens)
        assert torch.equal(loaded.quantizer.codes_from_tokens(tokens), codes)
        assert torch.equal(loaded.decode_codes(codes).decoded_pixel_values, decoded)


class _Recorder(ModelHook):
    """Writes down when accelerate's hook on a module runs."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.log.append(f"fetch {self.name}")
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        self.log.append(f"release {self.name}")
        return output


@torch.no_grad()
def test_hooks_see_more_than_forward(model: LGQModel, make_pixels: Callable[..., Tensor]) -> None:
    """Where the whole model waits on another device, its hook must run around every public method."""
    pixels = make_pixels(model)
    encoded = model.encode(pixels)
    log: list[str] = []
    add_hook_to_module(model, _Recorder("model", log))
    for name, child in model.named_children():
        add_hook_to_module(child, _Recorder(name, log))
    calls: dict[str, Callable[[], Any]] = {
        "encoder quantizer": lambda: model.encode(pixels),
        "quantizer decoder": lambda: model.decode(image_tokens=encoded.image_tokens),
        "decoder": lambda: model.decode_codes(encoded.quantized_last_hidden_state),
        "encoder quantizer decoder": lambda: model(pixels),
    }
    for used, call in calls.items():
        log.clear()
        call()
        assert log[0] == "fetch model"
        assert log[-1] == "release model"
        fetched = [line.split()[1] for line in log if line.startswith("fetch")]
        assert [name for name in fetched if name in ("encoder", "quantizer", "decoder")] == used.split()


# --- that nothing else is taken for one


Change = Callable[[dict[str, Tensor]], Any]
CHANGES: list[tuple[Change, str]] = [
    (lambda tensors: tensors.pop("quantizer.temperature"), r"Tensors 1 missing: quantizer\.temperature\. "),
    (lambda tensors: tensors.pop("encoder.stem.bias"), r"Tensors 1 missing: encoder\.stem\.bias\. "),
    (
        lambda tensors: tensors.update({"quantizer.ema_count": torch.zeros(32)}),
        r"Tensors 1 unexpected: quantizer\.ema_count\. ",
    ),
    (
        lambda tensors: tensors.update({"quantizer.centers": torch.zeros(48, 8)}),
        r"Tensors 1 of another shape: quantizer\.centers \(48, 8\) where the model has \(32, 8\)\. ",
    ),
    (
        lambda tensors: tensors.update({"encoder.stem.w": tensors.pop("encoder.stem.weight")}),
        r"Tensors 1 missing: encoder\.stem\.weight; 1 unexpected: encoder\.stem\.w\. ",
    ),
    (
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("decoder.")],
        r"Tensors \d\d missing: decoder\.from_emb\.bias, .* and \d\d more\. ",
    ),
]


@pytest.fixture
def changed_checkpoint(build_model: Callable[..., LGQModel], tmp_path: Path) -> Callable[[Change], Path]:
    """Writes the `sq_l2` model, its tensors changed."""

    def write(change: Change) -> Path:
        build_model("sq_l2").save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return tmp_path

    return write


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_refuses_other_tensors(change: Change, message: str, changed_checkpoint: Callable[[Change], Path]) -> None:
    folder = changed_checkpoint(change)
    for load in (LGQModel.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match=rf"'{folder}' .*{message}"):
            load(folder)


def test_refuses_a_config_that_does_not_belong_to_the_weights(
    build_model: Callable[..., LGQModel], tmp_path: Path
) -> None:
    build_model("sq_l2").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"1 missing: quantizer\.alpha\."):
        LGQModel.from_pretrained(tmp_path, learn_widths=True)
    with pytest.raises(ValueError, match=r"quantizer\.centers \(32, 8\) where the model has \(40, 8\)"):
        LGQModel.from_pretrained(tmp_path, codebook_size=40)
    with pytest.raises(ValueError, match=r"4 missing: post_quant.bias, .*; 1 of another shape: quantizer\.centers"):
        LGQModel.from_pretrained(tmp_path, config=LGQConfig.from_pretrained(tmp_path, code_dim=5))


def test_shapes_may_differ_where_that_is_asked_for(
    build_model: Callable[..., LGQModel], changed_checkpoint: Callable[[Change], Path]
) -> None:
    folder = changed_checkpoint(CHANGES[3][0])
    loaded, info = LGQModel.from_pretrained(folder, ignore_mismatched_sizes=True, output_loading_info=True)
    assert info["mismatched_keys"] == {("quantizer.centers", torch.Size([48, 8]), torch.Size([32, 8]))}
    assert loaded.quantizer.centers.shape == (32, 8)
    assert loaded.quantizer.centers.std() > 0.5  # initialised anew
    expected = build_model("sq_l2").encoder.stem.weight
    assert torch.equal(loaded.encoder.stem.weight, expected)
    missing = changed_checkpoint(CHANGES[0][0])
    with pytest.raises(ValueError, match=r"1 missing: quantizer\.temperature"):
        LGQModel.from_pretrained(missing, ignore_mismatched_sizes=True)


# --- Auto classes, with the package imported


def test_auto_classes_give_the_installed_classes(
    model: LGQModel, tmp_path: Path, make_pixels: Callable[..., Tensor]
) -> None:
    model.save_pretrained(tmp_path)
    LGQImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    config, loaded = AutoConfig.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    assert type(config) is LGQConfig
    assert config.codebook_size == model.config.codebook_size
    assert type(loaded) is LGQModel
    assert type(AutoModel.from_pretrained(tmp_path, trust_remote_code=True)) is LGQModel
    assert_same_model(loaded, model, make_pixels(model))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is LGQImageProcessor
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
