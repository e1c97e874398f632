"""Pipelines over the Hub, with the real client; in processes of their own, as it reads its settings at import."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import serve

ROOT = Path(__file__).parents[3]

_WRITE = """
import sys, torch
from huggingface_hub import HfApi
from tests.lgq_hf.generation.pipelines import small_pipeline

expected = {}
for kind in ("masked", "autoregressive"):
    pipe = small_pipeline(kind, id2label={0: "cats"})
    pipe.push_to_hub(f"org/{kind}")
    expected[kind] = pipe("cats", generator=torch.Generator().manual_seed(0)).image_tokens
first = HfApi().model_info("org/masked").sha
pipe = small_pipeline("masked")
with torch.no_grad():
    pipe.transformer.tokens.bias[5] = 50.0  # every token is 5
pipe.push_to_hub("org/masked")
expected["first"] = first
small_pipeline("masked").save_pretrained(sys.argv[1] + "/saved", push_to_hub=True, repo_id="org/saved")
torch.save(expected, sys.argv[1] + "/expected.pt")
"""

_READ = """
import sys, torch
from lgq_hf import LGQImageProcessor, LGQTokenizer
from lgq_hf.generation import LGQAutoregressivePipeline, LGQMaskedPipeline, load_pipeline

expected = torch.load(sys.argv[1] + "/expected.pt")
classes = {"masked": LGQMaskedPipeline, "autoregressive": LGQAutoregressivePipeline}
for kind, cls in classes.items():
    for load in (cls.from_pretrained, load_pipeline):
        pipe = load(f"org/{kind}", revision=expected["first"] if kind == "masked" else "main")
        assert type(pipe) is cls
        assert torch.equal(pipe("cats", generator=torch.Generator().manual_seed(0)).image_tokens, expected[kind])
for load in (LGQMaskedPipeline.from_pretrained, load_pipeline):
    assert (load("org/masked")(None).image_tokens == 5).all()  # the newest commit
model = LGQTokenizer.from_pretrained("org/masked", subfolder="vqvae")
assert torch.equal(model.quantizer.centers, pipe.vqvae.quantizer.centers)
assert LGQImageProcessor.from_pretrained("org/masked", subfolder="vqvae").pad_to_multiple_of == 4
assert LGQMaskedPipeline.from_pretrained("org/saved").grid == (8, 8)
"""


def run(script: str, folder: Path, **settings: Any) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_TOKEN": "hf_test", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **settings},
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_pipelines_are_pushed_and_loaded_back_also_from_the_cache_alone(tmp_path: Path) -> None:
    with serve() as hub:
        run(_WRITE, tmp_path, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "writer"))
        masked = hub.repositories["org/masked"]
        assert {"model_index.json", "vqvae/model.safetensors", "transformer/model.safetensors"} <= masked.files.keys()
        assert {"vqvae/preprocessor_config.json", "README.md"} <= masked.files.keys()
        reader = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "reader")}
        run(_READ, tmp_path, **reader)
    run(_READ, tmp_path, **reader, HF_HUB_OFFLINE="1")  # the Hub is gone
