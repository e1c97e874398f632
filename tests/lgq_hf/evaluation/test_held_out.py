"""Bits of held-out tokens against cross entropies computed from the pipeline's network row by row."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from skimage import data
from torch.nn import functional as F

from lgq_hf import LGQImageProcessor
from lgq_hf.checkpoint.loading import find_checkpoint
from lgq_hf.evaluation.likelihood import held_out_bits
from lgq_hf.images.sources import open_source
from lgq_hf.images.views import Preprocessing
from lgq_hf.tokens.collators import MaskedCollator
from lgq_hf.tokens.encoding import Encoding
from lgq_hf.tokens.engine import Job, tokenize
from lgq_hf.tokens.plan import make_plan
from lgq_hf.tokens.reading import TokenDataset
from tests.lgq_hf.generation.pipelines import small_pipeline, tokenizer

KINDS = ("masked", "autoregressive")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tokens(size=32)`: shards of seven pictures in the folders "cats" and "people"."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("held_out")
    for number in range(7):
        name, photograph = ("cats", data.chelsea()) if number % 3 else ("people", data.astronaut())
        (folder / "pictures" / name).mkdir(exist_ok=True, parents=True)
        Image.fromarray(photograph[30 * number : 100 + 30 * number, 90:190]).save(
            folder / "pictures" / name / f"{number}.png"
        )
    tokenizer().save_pretrained(folder / "model")
    LGQImageProcessor(pad_to_multiple_of=4).save_pretrained(folder / "model")

    def make(size: int = 32) -> Path:
        if not (folder / str(size)).exists():
            reference, source = find_checkpoint(str(folder / "model")), open_source(str(folder / "pictures"))
            plan = make_plan(reference, "tiny", source, Preprocessing(size), Encoding(batch_size=4), split="test")
            tokenize(Job(plan, reference, source, str(folder / str(size))))
        return folder / str(size)

    return make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", [False, True])
@torch.no_grad()
def test_bits_are_cross_entropies_of_the_rows(kind: str, named: bool, tokens: Callable[..., Path]) -> None:
    pipe = small_pipeline(kind, id2label={0: "owls", 1: "people", 2: "cats"} if named else None)
    metrics, protocol = held_out_bits(pipe, tokens(), batch_size=3)
    classes = [2, 1] if named else [0, 1]  # of cats and people
    nats = []
    for row in TokenDataset(tokens()):
        row = {**row, "label": classes[row["label"]]}
        if kind == "masked":
            batch = MaskedCollator(codebook_size=32, num_classes=3, schedule="linear")([row])
            logits = pipe.transformer(input_ids=batch["input_ids"], class_labels=batch["class_labels"]).logits
            nats.append(F.cross_entropy(logits[0].double(), batch["labels"][0]))
        else:
            flat = row["image_tokens"].flatten()
            logits = pipe.transformer(torch.cat([torch.tensor([32 + row["label"]]), flat[:-1]])[None]).logits
            nats.append(F.cross_entropy(logits[0, :, :32].double(), flat))
    bits = float(torch.stack(nats).mean()) / math.log(2)
    assert len(nats) == protocol["held_out_rows"] == 7 and protocol["held_out_classes"] == "of the rows"
    assert metrics["bits_per_token"] == pytest.approx(bits, rel=1e-5)
    assert metrics["bits_per_pixel"] == pytest.approx(bits * 64 / 1024, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(2**bits, rel=1e-5)
    assert protocol["bits"].startswith("upper bound" if kind == "masked" else "exact")
    assert held_out_bits(pipe, tokens(), batch_size=7)[0]["bits_per_token"] == pytest.approx(bits, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_without_classes_does_not_look_at_labels(kind: str, tokens: Callable[..., Path]) -> None:
    state = torch.random.get_rng_state()
    _, protocol = held_out_bits(small_pipeline(kind, num_classes=0), tokens())
    assert protocol["held_out_classes"] == "none" and torch.equal(torch.random.get_rng_state(), state)


def test_refuses(tokens: Callable[..., Path], tmp_path: Path) -> None:
    pipe: Any = small_pipeline("masked", id2label={0: "people", 1: "dogs"})
    with pytest.raises(ValueError, match="tokens in .* have the class 'cats', the pipeline has people, dogs: measure"):
        held_out_bits(pipe, tokens())
    with pytest.raises(ValueError, match="expected grids of 8 x 8, got 10 x 10"):
        held_out_bits(pipe, tokens(40))
    with pytest.raises(ValueError, match=r"no manifest.json in .*: expected a folder that `lgq tokenize` finished"):
        held_out_bits(pipe, tmp_path)
    with torch.no_grad():
        pipe.vqvae.quantizer.get_parameter("centers").mul_(2)
    with pytest.raises(ValueError, match="the transformer learned tokens of 'tiny'"):
        held_out_bits(pipe, tokens())


def test_bits_a_pixel_are_of_pixels_that_were_not_padded(tokens: Callable[..., Path]) -> None:
    pipe = small_pipeline("autoregressive", num_classes=2)
    metrics, _ = held_out_bits(pipe, tokens(30))  # padded to 32
    assert metrics["bits_per_pixel"] == pytest.approx(metrics["bits_per_token"] * 64 / 900)
