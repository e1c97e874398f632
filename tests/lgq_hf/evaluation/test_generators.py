"""An evaluation against the same numbers from the metrics' own functions, with the real extractor on few pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from skimage import data
from torch import Tensor

from lgq_hf import LGQImageProcessor
from lgq_hf.checkpoint.loading import find_checkpoint
from lgq_hf.evaluation.generators import _cut, evaluate
from lgq_hf.evaluation.likelihood import held_out_bits
from lgq_hf.generation.draw import Draw, picture_generator
from lgq_hf.images.sources import open_source
from lgq_hf.images.views import Preprocessing
from lgq_hf.metrics.efficientnet import WEIGHTS_SHA256, EfficientNetLite0
from lgq_hf.metrics.frechet import gaussian_frechet_distance
from lgq_hf.metrics.precision_recall import precision_recall
from lgq_hf.tokens.encoding import Encoding
from lgq_hf.tokens.engine import Job, tokenize
from lgq_hf.tokens.plan import make_plan
from tests.lgq_hf.generation.pipelines import small_pipeline, tokenizer

NAMES = {0: "owls", 1: "people", 2: "cats"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photographs of other sizes than the generator's in the folders "cats" and "people"."""
    folder = tmp_path_factory.mktemp("real")
    for number in range(6):
        name, photograph = ("cats", data.chelsea()) if number % 3 else ("people", data.astronaut())
        (folder / name).mkdir(exist_ok=True)
        Image.fromarray(photograph[40 * number : 64 + 40 * number, 90 : 170 + number]).save(
            folder / name / f"{number}.png"
        )
    return folder


@pytest.fixture(scope="module")
def extractor() -> EfficientNetLite0:
    return EfficientNetLite0()


def features(extractor: EfficientNetLite0, pictures: list[Image.Image]) -> Tensor:
    with torch.inference_mode():
        pixels = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])
        return extractor.pooled(pixels / 255).double()


def distance(a: Tensor, b: Tensor) -> float:
    return gaussian_frechet_distance(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())


@pytest.mark.parametrize("kind", ["masked", "autoregressive"])
def test_numbers_are_those_of_the_metrics(kind: str, folder: Path, extractor: EfficientNetLite0) -> None:
    pipe = small_pipeline(kind, id2label=NAMES)
    source: Any = open_source(str(folder), kind="folder")
    draw = Draw(guidance_scale=1.5, temperature=0.9, top_k=20, seed=4, batch_size=4)
    seen: dict[str, list[tuple[int, Tensor]]] = {"real": [], "generated": []}
    result = evaluate(pipe, source, 9, extractor, draw, watch=lambda stage, *batch: seen[stage].append(batch))

    processor = pipe.image_processor
    real = [
        processor.postprocess(
            processor(
                source.read(number),
                do_resize=True,
                size={"shortest_edge": 32},
                do_center_crop=True,
                crop_size={"height": 32, "width": 32},
                return_tensors="pt",
            )["pixel_values"]
        )[0]
        for number in range(6)
    ]
    with torch.inference_mode():
        again = [pipe.vqvae(processor(one, return_tensors="pt")["pixel_values"]) for one in real]
    again = [processor.postprocess(one.decoded_pixel_values)[0] for one in again]
    classes = [1] * 3 + [2] * 6  # people are a third of the pictures
    options: dict[str, Any] = {"guidance_scale": 1.5, "temperature": 0.9, "top_k": 20}
    generators = [picture_generator(4, number) for number in range(9)]
    made = pipe(class_labels=classes, generator=generators, **options).images

    for stage, pictures, firsts in (("real", real, [0, 4]), ("generated", made, [0, 4, 8])):
        assert [first for first, _ in seen[stage]] == firsts
        shown = torch.cat([batch for _, batch in seen[stage]])
        difference = shown.permute(0, 2, 3, 1).numpy().astype(int) - np.stack([np.asarray(one) for one in pictures])
        assert np.abs(difference).max() <= (stage == "generated")  # convolutions round differently in another batch
    real_6D, again_6D, made_9D = (features(extractor, pictures) for pictures in (real, again, made))
    near = precision_recall(real_6D, made_9D, k=3)
    metrics = result["metrics"]
    assert metrics.keys() == {"frechet_distance", "frechet_distance_of_reconstructions", "precision", "recall"}
    assert metrics["frechet_distance"] == pytest.approx(distance(made_9D, real_6D), rel=1e-3)
    assert metrics["frechet_distance_of_reconstructions"] == pytest.approx(distance(again_6D, real_6D), rel=1e-3)
    assert min(metrics["frechet_distance"], metrics["frechet_distance_of_reconstructions"]) > 1
    assert (metrics["precision"], metrics["recall"]) == near


def test_the_protocol_says_what_the_numbers_depend_on(folder: Path, extractor: EfficientNetLite0) -> None:
    pipe = small_pipeline("masked", id2label=NAMES)
    source: Any = open_source(str(folder), kind="folder")
    result = evaluate(pipe, source, 5, extractor, Draw(num_inference_steps=2, batch_size=3))
    protocol = result["protocol"]
    assert (protocol["extractor"], protocol["extractor_sha256"]) == ("efficientnet-lite0", WEIGHTS_SHA256)
    assert (protocol["generated_pictures"], protocol["real_pictures"], protocol["neighbours"]) == (5, 6, 3)
    assert (protocol["picture_size"], protocol["dtype"]) == ([32, 32], "float32")
    assert protocol["resize"] == "to cover, lanczos, then the middle"
    assert protocol["classes"] == "as the real pictures' folders"
    assert (protocol["num_inference_steps"], protocol["guidance_scale"], protocol["seed"]) == (2, 1.0, 0)
    assert protocol["real_names_and_sizes_sha256"] == source.digest()
    assert result["pipeline"]["class"] == "LGQMaskedPipeline" and len(result["pipeline"]["transformer_sha256"]) == 64
    assert result["versions"]["torch"] == torch.__version__ and result["versions"]["diffusers"]
    assert "hardware" in result and "commit" in result
    assert result["cost"]["timed_pictures"] == 2 and result["cost"]["seconds_per_picture"] > 0
    text = json.dumps(result, allow_nan=False)
    assert "fid" not in text.lower().replace("confid", "")


def test_bits_of_held_out_tokens_stand_beside(folder: Path, extractor: EfficientNetLite0, tmp_path: Path) -> None:
    pipe = small_pipeline("autoregressive", id2label=NAMES)
    tokenizer().save_pretrained(tmp_path / "model")
    LGQImageProcessor(pad_to_multiple_of=4).save_pretrained(tmp_path / "model")
    reference, source = find_checkpoint(str(tmp_path / "model")), open_source(str(folder))
    plan = make_plan(reference, "tiny", source, Preprocessing(32), Encoding(batch_size=4), split="test")
    tokenize(Job(plan, reference, source, str(tmp_path / "tokens")))
    pictures: Any = source
    result = evaluate(pipe, pictures, 4, extractor, tokens=tmp_path / "tokens")
    bits, protocol = held_out_bits(pipe, tmp_path / "tokens")
    assert bits.items() <= result["metrics"].items() and protocol.items() <= result["protocol"].items()


def test_a_generator_of_pictures_that_are_no_squares(folder: Path, extractor: EfficientNetLite0) -> None:
    pipe = small_pipeline("masked", num_classes=0, width=4)
    seen: list[Tensor] = []
    source: Any = open_source(str(folder), kind="folder")
    evaluate(pipe, source, 4, extractor, watch=lambda stage, first, batch: seen.append(batch))
    assert {batch.shape[1:] for batch in seen} == {(3, 32, 16)}
    middle = ImageOps.fit(source.read(0), (32, 32), Image.Resampling.LANCZOS).crop((8, 0, 24, 32))
    difference = np.asarray(middle).astype(int) - seen[0][0].permute(1, 2, 0).numpy()
    assert np.abs(difference).mean() < 3  # ImageOps cuts before it resizes


def test_a_picture_of_the_right_size_is_not_touched(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 20, 3), dtype=np.uint8)
    (tmp_path / "real").mkdir()
    Image.fromarray(pixels).save(tmp_path / "real" / "a.png")
    Image.fromarray(pixels).resize((40, 64), Image.Resampling.NEAREST).save(tmp_path / "real" / "b.png")
    source: Any = open_source(str(tmp_path / "real"), kind="folder")
    pipe = small_pipeline("masked", width=5)
    assert np.array_equal(_cut(pipe, source, 0).permute(1, 2, 0).numpy(), pixels)
    assert _cut(pipe, source, 1).shape == (3, 32, 20)


def test_refuses(folder: Path, extractor: EfficientNetLite0, tmp_path: Path) -> None:
    pipe = small_pipeline("autoregressive", id2label=NAMES)
    source: Any = open_source(str(folder), kind="folder")
    with pytest.raises(ValueError, match="expected at least 4 pictures on both sides, got 3 to generate and 6 in"):
        evaluate(pipe, source, 3, extractor)
    with pytest.raises(ValueError, match="num_inference_steps=2: a LGQAutoregressivePipeline has one step for each"):
        evaluate(pipe, source, 4, extractor, Draw(num_inference_steps=2))
    with pytest.raises(ValueError, match=r"no manifest.json in"):
        evaluate(pipe, source, 4, extractor, tokens=tmp_path)
    for number in range(4):
        (tmp_path / f"{number}.png").write_text("no picture")
    broken: Any = open_source(str(tmp_path), kind="folder")
    with pytest.raises(ValueError, match=r"0.png in .*: not an image that can be read.*; take it out to go on"):
        evaluate(pipe, broken, 4, extractor)
