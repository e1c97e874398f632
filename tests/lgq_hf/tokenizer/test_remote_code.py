"""A checkpoint's own code, in a process that has no lgq_hf (`trust_remote_code=True`)."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from lgq_hf import LGQImageProcessor, LGQModel

pytestmark = pytest.mark.slow
NAMES = ["sq_l2", "l2_widths_f8", "identity_projected_f16", "per_channel_widths", "product"]

# Runs in the other process. argv: the folder of checkpoints, and where to leave results.
SCRIPT = """
import importlib.abc, importlib.util, json, pathlib, sys

class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lgq_hf":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, NotInstalled())
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel

torch.set_num_threads(1)
checkpoints, results = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
trusted = {"trust_remote_code": True}
report = {}

def error_of(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

@torch.no_grad()
def outputs(model, folder):
    pixels = load_file(folder / "pixels.safetensors")["pixels"]
    encoded = model.encode(pixels)
    return {
        "tokens": encoded.image_tokens,
        "codes": encoded.quantized_last_hidden_state,
        "decoded": model.decode(encoded.image_tokens).decoded_pixel_values,
        "forward": model(pixels).decoded_pixel_values,
        "half_tokens": type(model).from_pretrained(folder, dtype=torch.bfloat16).encode(pixels).image_tokens,
    }

for folder in sorted(path for path in checkpoints.iterdir() if path.name != "broken"):
    name = folder.name
    untrusted = [error_of(auto.from_pretrained, folder) for auto in (AutoConfig, AutoModel, AutoImageProcessor)]
    config = AutoConfig.from_pretrained(folder, **trusted)
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True, **trusted)
    processor = AutoImageProcessor.from_pretrained(folder, **trusted)
    found = outputs(model, folder)
    found["processed"] = processor(Image.open(checkpoints.parent / "picture.png"), return_tensors="pt")["pixel_values"]
    model.train()
    trained = model(load_file(folder / "pixels.safetensors")["pixels"])
    found["loss"] = trained.embedding_loss.detach()
    model.eval()
    save_file(found, results / f"{name}.safetensors")
    again = results / "again" / name
    model.save_pretrained(again)
    processor.save_pretrained(again)
    (again / "pixels.safetensors").write_bytes((folder / "pixels.safetensors").read_bytes())
    save_file(outputs(AutoModel.from_pretrained(again, **trusted), again), results / f"{name}.again.safetensors")
    report[name] = {
        "untrusted": untrusted,
        "classes": [type(thing).__name__ for thing in (config, model, processor)],
        "modules": [type(thing).__module__ for thing in (config, model, processor)],
        "config": config.to_dict(),
        "missing": sorted(info["missing_keys"]),
        "state": sorted(model.state_dict()),
    }

report["broken"] = error_of(AutoModel.from_pretrained, checkpoints / "broken", **trusted)
report["import"] = error_of(importlib.import_module, "lgq_hf")
report["imported"] = sorted(name for name in sys.modules if name.partition(".")[0] == "lgq_hf")
(results / "report.json").write_text(json.dumps(report))
"""


class Other:
    """What the other process found, beside the models that were saved for it."""

    def __init__(self, folder: Path, models: dict[str, LGQModel]) -> None:
        self.folder, self.models = folder, models
        self.report: dict[str, Any] = json.loads((folder / "results" / "report.json").read_text())

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / "results" / f"{name}.safetensors")


@pytest.fixture(scope="module")
def other(
    tmp_path_factory: pytest.TempPathFactory,
    build_model: Callable[..., LGQModel],
    make_pixels: Callable[..., Tensor],
) -> Other:
    folder = tmp_path_factory.mktemp("remote_code")
    (folder / "results").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "picture.png")
    models = {name: build_model(name) for name in NAMES}
    for name, model in models.items():
        model.save_pretrained(folder / "checkpoints" / name)
        LGQImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder / "checkpoints" / name)
        save_file({"pixels": make_pixels(model)}, folder / "checkpoints" / name / "pixels.safetensors")
    broken = folder / "checkpoints" / "broken"
    models["sq_l2"].save_pretrained(broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["stray"] = tensors.pop("quantizer.temperature")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "HF_MODULES_CACHE": str(folder / "code")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, str(folder / "checkpoints"), str(folder / "results")],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return Other(folder, models)


def test_the_other_process_has_no_package(other: Other) -> None:
    assert other.report["import"] == "ModuleNotFoundError: No module named 'lgq_hf'"
    assert other.report["imported"] == []
    for name in NAMES:
        assert other.report[name]["classes"] == ["LGQConfig", "LGQModel", "LGQImageProcessor"]
        assert all(module.startswith("transformers_modules.") for module in other.report[name]["modules"])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_same_tokens_and_pixels(other: Other, name: str) -> None:
    model, found = other.models[name], other.tensors(name)
    encoded = model.encode(load_file(other.folder / "checkpoints" / name / "pixels.safetensors")["pixels"])
    decoded = model.decode(encoded.image_tokens).decoded_pixel_values
    assert torch.equal(found["tokens"], encoded.image_tokens)
    assert torch.equal(found["codes"], encoded.quantized_last_hidden_state)
    assert torch.equal(found["decoded"], decoded)
    assert torch.equal(found["forward"], decoded)


@pytest.mark.parametrize("name", NAMES)
def test_same_in_half_precision_and_training(other: Other, name: str) -> None:
    found, folder = other.tensors(name), other.folder / "checkpoints" / name
    pixels = load_file(folder / "pixels.safetensors")["pixels"]
    half = LGQModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert torch.equal(found["half_tokens"], half.encode(pixels).image_tokens)
    loss = LGQModel.from_pretrained(folder).train()(pixels).embedding_loss
    torch.testing.assert_close(found["loss"], loss.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_same_processing(other: Other, name: str) -> None:
    processor = LGQImageProcessor.from_pretrained(other.folder / "checkpoints" / name)
    expected = processor(Image.open(other.folder / "picture.png"), return_tensors="pt")["pixel_values"]
    assert torch.equal(other.tensors(name)["processed"], expected)


@pytest.mark.parametrize("name", NAMES)
def test_saved_again_with_its_code(other: Other, name: str) -> None:
    first, again = other.folder / "checkpoints" / name, other.folder / "results" / "again" / name
    assert {path.name for path in again.iterdir()} == {path.name for path in first.iterdir()}
    for path in first.glob("*.py"):
        assert (again / path.name).read_text() == path.read_text(), path.name
    assert (again / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert json.loads((again / "config.json").read_text()) == json.loads((first / "config.json").read_text())
    assert (again / "preprocessor_config.json").read_text() == (first / "preprocessor_config.json").read_text()
    found, expected = other.tensors(f"{name}.again"), other.tensors(name)
    for key, tensor in found.items():
        assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_refused_without_the_flag(other: Other, name: str) -> None:
    for error in other.report[name]["untrusted"]:
        assert error.startswith("ValueError: ")
        assert "trust_remote_code=True" in error


def test_other_tensors_are_refused_there_too(other: Other) -> None:
    assert other.report["broken"].startswith("ValueError: the weights in ")
    assert "Tensors 1 missing: quantizer.temperature; 1 unexpected: stray. " in other.report["broken"]
