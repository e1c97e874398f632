"""Each released checkpoint is what its card says."""

import pytest
import torch

from benchmarks import photographs
from benchmarks.checkpoint import SETS, weights_sha256
from lgq_hf import LGQImageProcessor, LGQTokenizer
from lgq_hf.hub.publishable import check_publishable
from lgq_hf.metrics.reconstruction import psnr
from model_cards import card

NAMES = card.released()


@pytest.mark.parametrize("name", NAMES)
def test_its_files_are_small_and_those_that_were_measured(name: str) -> None:
    folder = card.place_of(name).parent
    sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
    assert max(sizes) <= 15e6 and sum(sizes) <= 60e6
    assert {"README.md", card.PICTURE, "config.json"} < check_publishable(folder).files.keys()
    assert weights_sha256(str(folder)) == card.load(card.words_of(name)["result"])["weights_sha256"]


@pytest.mark.parametrize("name", NAMES)
def test_it_reconstructs_photographs_as_measured(name: str) -> None:
    folder, result = card.place_of(name).parent, card.load(card.words_of(name)["result"])
    tokenizer, processor = LGQTokenizer.from_pretrained(folder), LGQImageProcessor.from_pretrained(folder)
    assert {parameter.dtype for parameter in tokenizer.parameters()} == {torch.float32}
    assert tokenizer.num_parameters() == result["parameters"]
    decibels, used = [], set()
    for picture in SETS["photographs"]:
        batch = processor(photographs.load(picture), return_tensors="pt")
        with torch.inference_mode():
            tokens = tokenizer.encode(batch["pixel_values"]).image_tokens
            decoded = tokenizer.decode(tokens).decoded_pixel_values
        assert tokens.shape == (1, *[256 // result["downsampling_factor"]] * 2)
        pair = [processor.postprocess(x, batch["original_sizes"], "pt") for x in (batch["pixel_values"], decoded)]
        decibels.append(float(psnr(*pair)[0]))
        assert tokens.unique().numel() > 100
        used |= set(tokens.flatten().tolist())
    assert min(decibels) > {8: 19, 16: 18}[result["downsampling_factor"]]
    assert sum(decibels) / len(decibels) == pytest.approx(result["photographs"]["psnr"], abs=0.02)
    assert len(used) == pytest.approx(result["photographs"]["codes_used"], rel=0.01)
