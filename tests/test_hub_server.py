"""Models on the Hub of the tests, with the real client; in processes of their own, as it reads its settings at import.

What datasets need of it is tested by tests/lgq_hf/tokens/test_hub.py.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import serve

_WRITE = """
import sys
from pathlib import Path
import diffusers, torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel

folder = Path(sys.argv[1])
torch.manual_seed(0)
small = {"base_channels": 8, "channel_multiplier": [1, 2], "num_res_blocks": 1, "bottleneck_attention": False}
model = LGQModel(LGQConfig(**small, latent_channels=8, codebook_size=16, image_size=16)).eval()
processor = LGQImageProcessor(pad_to_multiple_of=2)
model.push_to_hub("org/tiny")
processor.push_to_hub("org/tiny")

for part in (model, processor):
    part.save_pretrained(folder / "pipe" / "vqvae")
api = HfApi()
api.create_repo("org/pipe")
try:
    api.create_repo("org/pipe")
    raise AssertionError("made twice")
except HfHubHTTPError as error:
    assert error.response.status_code == 409
api.create_repo("org/pipe", exist_ok=True)
(folder / "pipe" / "note.txt").write_text("first")
first = api.upload_folder(repo_id="org/pipe", folder_path=folder / "pipe").oid
(folder / "pipe" / "note.txt").write_text("second")
api.upload_folder(repo_id="org/pipe", folder_path=folder / "pipe")
api.delete_file("vqvae/preprocessor_config.json", "org/pipe", revision="main")

unet = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
unet = diffusers.UNet2DModel(sample_size=8, layers_per_block=1, norm_num_groups=4, **unet)
diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).push_to_hub("org/ddpm")

pixels = torch.rand(1, 3, 16, 16)
torch.save({"pixels": pixels, "tokens": model.encode(pixels).image_tokens, "first": first}, folder / "expected.pt")
torch.save(unet.state_dict(), folder / "unet.pt")
"""

_READ = """
import sys
from pathlib import Path
import diffusers, torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from lgq_hf import LGQImageProcessor, LGQTokenizer

folder = Path(sys.argv[1])
expected = torch.load(folder / "expected.pt")
for place in ({}, {"subfolder": "vqvae"}):
    model = LGQTokenizer.from_pretrained("org/pipe" if place else "org/tiny", **place)
    assert torch.equal(model.encode(expected["pixels"]).image_tokens, expected["tokens"])
assert LGQImageProcessor.from_pretrained("org/tiny").pad_to_multiple_of == 2
here = Path(snapshot_download("org/pipe"))
there = Path(snapshot_download("org/pipe", revision=expected["first"]))
assert there.name == expected["first"] != here.name
assert ((there / "note.txt").read_text(), (here / "note.txt").read_text()) == ("first", "second")
deleted = "vqvae/preprocessor_config.json"
assert (there / deleted).is_file() and not (here / deleted).exists()
unet = diffusers.DDPMPipeline.from_pretrained("org/ddpm").unet
written = torch.load(folder / "unet.pt")
assert all(torch.equal(tensor, written[name]) for name, tensor in unet.state_dict().items())
if not constants.HF_HUB_OFFLINE:
    from huggingface_hub import hf_hub_download
    for code, at in (
        (RepositoryNotFoundError, {"repo_id": "org/none", "filename": "config.json"}),
        (RevisionNotFoundError, {"repo_id": "org/tiny", "filename": "config.json", "revision": "none"}),
        (EntryNotFoundError, {"repo_id": "org/tiny", "filename": "none.json"}),
    ):
        try:
            hf_hub_download(**at)
            raise AssertionError(f"expected {code}")
        except code:
            pass
"""


def run(script: str, folder: Path, **settings: Any) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_TOKEN": "hf_test", "OMP_NUM_THREADS": "1", **settings},
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_models_and_pipelines_travel_over_the_hub(tmp_path: Path) -> None:
    with serve() as hub:
        run(_WRITE, tmp_path, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "writer"))
        assert hub.repositories.keys() == {"org/tiny", "org/pipe", "org/ddpm"}
        tiny, pipe = hub.repositories["org/tiny"], hub.repositories["org/pipe"]
        assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= tiny.files.keys()
        assert {"note.txt", "vqvae/config.json", "vqvae/model.safetensors"} <= pipe.files.keys()
        assert len(pipe.commits) == 3 and pipe.commits[2] == ["vqvae/preprocessor_config.json"]
        reader = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "reader")}
        run(_READ, tmp_path, **reader)
    run(_READ, tmp_path, **reader, HF_HUB_OFFLINE="1")  # the Hub is gone
