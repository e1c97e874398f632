"""Folders that are fit to be published: tiny ones, with card and results."""

import json
from pathlib import Path

from lgq_hf.checkpoint.loading import weights_fingerprint
from lgq_hf.files import file_sha256
from tests.lgq_hf.conftest import save_model
from tests.lgq_hf.generation.pipelines import small_pipeline

CARD = """---
license: mit
tags:
- image-tokenizer
---
# tiny
"""
MODEL_INDEX = """---
license: mit
model-index:
- name: tiny
  results:
  - task:
      type: image-reconstruction
    dataset:
      name: photographs
      type: photographs
    metrics:
    - type: psnr
      value: 24.5
---
# tiny
"""


def write_results(folder: Path, weights: str) -> None:
    """results.json as a trainer leaves it."""
    rows = [{"step": 10, "psnr": 20.5}]
    (folder / "results.json").write_text(json.dumps({"validation": rows, "weights_sha256": weights}))


def tokenizer_folder(folder: Path, seed: int = 0) -> Path:
    """A tiny tokenizer (f8, K = 64) with its code, card and results."""
    save_model(folder, seed)
    (folder / "README.md").write_text(CARD)
    write_results(folder, file_sha256(folder / "model.safetensors"))
    return folder


def pipeline_folder(folder: Path, kind: str) -> Path:
    """A tiny pipeline with card and results."""
    small_pipeline(kind).save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    write_results(folder, weights_fingerprint(folder / "transformer"))
    return folder
