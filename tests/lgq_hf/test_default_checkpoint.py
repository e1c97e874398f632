"""The checkpoint inside the package, and the package as a wheel."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import photographs
from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel, LGQTokenizer, default_checkpoint
from lgq_hf.cli.main import main

ROOT = Path(__file__).parents[2]
TOKENIZE = """
import json, sys, torch
from PIL import Image
from lgq_hf import LGQImageProcessor, LGQTokenizer, default_checkpoint
processor = LGQImageProcessor.from_pretrained(default_checkpoint())
batch = processor(Image.open(sys.argv[1]), return_tensors="pt")
with torch.inference_mode():
    tokens = LGQTokenizer.from_pretrained(default_checkpoint()).encode(batch["pixel_values"]).image_tokens
print(json.dumps([str(default_checkpoint()), tokens.flatten().tolist()]))
"""


def test_it_is_small_and_complete() -> None:
    files = {file.name: file.stat().st_size for file in default_checkpoint().iterdir()}
    weights = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert set(files) == {"README.md", "reconstruction.jpg", *weights}
    assert sum(files.values()) <= 15e6


@pytest.mark.slow
def test_reconstruct_works_on_large_pictures(tmp_path: Path) -> None:
    """Twelve megapixels by a net of few channels, for the time it takes, with the checkpoint's grid and codes."""
    photographs.load("coffee.png").resize((4000, 3000)).save(tmp_path / "in.jpg")
    few = {"base_channels": 4, "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1, "latent_channels": 16}
    config = LGQConfig(**{**LGQConfig.from_pretrained(default_checkpoint()).to_diff_dict(), **few})
    LGQModel(config).save_pretrained(tmp_path / "model")
    LGQImageProcessor.from_pretrained(default_checkpoint()).save_pretrained(tmp_path / "model")
    words = ["reconstruct", str(tmp_path / "in.jpg"), "-o", str(tmp_path / "out.png")]
    assert main([*words, "--model", str(tmp_path / "model")]) == 0
    with Image.open(tmp_path / "out.png") as sheet:
        assert sheet.width > 2 * 4000 and sheet.height > 3000


def test_the_readme_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = re.findall(r"## Five lines\n\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in snippet.splitlines() if line and "import" not in line]) == 5
    photographs.load("rocket.jpg").resize((250, 199)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert names["picture"].size == (250, 199)
    assert names["tokens"].shape == (1, 25, 32)


def test_a_copy_of_it_carries_its_code(tmp_path: Path) -> None:
    LGQTokenizer.from_pretrained(default_checkpoint()).save_pretrained(tmp_path)
    assert "auto_map" in (tmp_path / "config.json").read_text()
    assert (tmp_path / "quantizer_lgq.py").is_file()


@pytest.mark.slow
def test_the_wheel_works_from_elsewhere(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = tmp_path / "source"  # a build leaves folders behind, and takes over what an earlier one left
    shutil.copytree(ROOT / "lgq_hf", source / "lgq_hf", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [*pip, "wheel", str(source), "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run(build, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "lgq_hf/pretrained/lgq-tiny/model.safetensors" in names and "lgq_hf/py.typed" in names
    assert {name.split("/")[0] for name in names if not name.startswith("lgq_hf-")} == {"lgq_hf"}
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    photographs.load("coffee.png").save(tmp_path / "coffee.png")
    command = [sys.executable, "-c", TOKENIZE, str(tmp_path / "coffee.png")]
    found = []
    for place in (site, ROOT):
        environment = {**os.environ, "PYTHONPATH": str(place), "HF_HUB_OFFLINE": "1"}
        run = subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        folder, tokens = json.loads(run.stdout)
        assert folder.startswith(str(place / "lgq_hf"))
        found.append(tokens)
    assert found[0] == found[1] and len(set(found[0])) > 100
