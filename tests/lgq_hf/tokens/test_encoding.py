from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lgq_hf import LGQImageProcessor
from lgq_hf.checkpoint.loading import Checkpoint, load_checkpoint
from lgq_hf.images.views import CROPS, Preprocessing, cut_views
from lgq_hf.tokens.encoding import Encoder, Encoding, pixel_table


@pytest.fixture(scope="module")
def checkpoint(model_folder: Path) -> Checkpoint:
    return load_checkpoint(str(model_folder), "cpu")


_OWN = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}


def _pixel_values(views: np.ndarray, processor: LGQImageProcessor) -> torch.Tensor:
    table = pixel_table(processor)
    return torch.stack([table[channel][torch.from_numpy(views[:, channel]).int()] for channel in range(3)], dim=1)


@pytest.mark.parametrize(("kind", "settings"), [("RGB", _OWN), ("L", {}), ("RGBA", _OWN), ("I;16", {}), ("P", {})])
def test_pixels_are_the_processors_bit_for_bit(chelsea: Image.Image, kind: str, settings: dict[str, Any]) -> None:
    processor = LGQImageProcessor(**settings)
    picture = chelsea if kind == "RGB" else chelsea.convert("L" if kind == "I;16" else kind)
    if kind == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    if kind == "I;16":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 211)
    for size in (None, 64, 170):
        options: dict[str, Any] = {}
        if size:
            options = {"do_resize": True, "size": {"shortest_edge": size}, "do_center_crop": True}
            options["crop_size"] = {"height": size, "width": size}
        batch = processor(picture, return_tensors="pt", **options)
        views, original = cut_views(picture, processor, Preprocessing(size))
        assert original == tuple(batch["original_sizes"][0].tolist())
        assert torch.equal(_pixel_values(views, processor), batch["pixel_values"])


def test_the_processors_own_settings_hold_without_a_size(chelsea: Image.Image) -> None:
    processor = LGQImageProcessor(
        do_resize=True, size={"shortest_edge": 70}, do_center_crop=True, crop_size={"height": 60, "width": 44}
    )
    views, original = cut_views(chelsea, processor, Preprocessing())
    assert original == (60, 44)
    assert torch.equal(_pixel_values(views, processor), processor(chelsea, return_tensors="pt")["pixel_values"])


def test_crops_stand_in_the_corners_and_the_middle(chelsea: Image.Image) -> None:
    processor, preprocessing = LGQImageProcessor(), Preprocessing(100, crops=5, crop_scale=1.2, flip=True)
    views, original = cut_views(chelsea, processor, preprocessing)
    scale = 120 / 150
    whole = np.asarray(chelsea.resize((int(203 * scale), 120), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    assert preprocessing.views() == [(name, flip) for name in CROPS for flip in (False, True)]
    assert (original, views.shape) == ((100, 100), (10, 3, 104, 104))
    width = whole.shape[2]
    corners = {"top_left": (0, 0), "top_right": (0, width - 100), "center": (10, (width - 100) // 2)}
    corners |= {"bottom_left": (20, 0), "bottom_right": (20, width - 100)}
    for (name, flip), view in zip(preprocessing.views(), views, strict=True):
        top, left = corners[name]
        expected = whole[:, top : top + 100, left : left + 100]
        assert np.array_equal(view[:, :100, :100], expected[:, :, ::-1] if flip else expected)
        assert np.array_equal(view[:, 100:, :], np.repeat(view[:, 99:100, :], 4, axis=1))  # padded by its edge


def test_tokens_are_the_models_and_do_not_depend_on_the_batch(checkpoint: Checkpoint, chelsea: Image.Image) -> None:
    encoder = Encoder(checkpoint, Encoding(batch_size=4))
    several = [chelsea.rotate(angle) for angle in range(0, 90, 15)]
    cut = [cut_views(picture, checkpoint.processor, Preprocessing(64))[0] for picture in several]
    pixels = torch.from_numpy(np.concatenate(cut))
    tokens = torch.cat([encoder(pixels[:4], fill=True), encoder(pixels[4:], fill=True)])
    alone = torch.cat([encoder(pixels[i : i + 1], fill=True) for i in range(6)])
    values = _pixel_values(pixels.numpy(), checkpoint.processor)
    values = torch.cat([values, values[-1:].expand(2, -1, -1, -1)])
    with torch.inference_mode():
        by_model = torch.cat([checkpoint.model.encode(values[i : i + 4]).image_tokens for i in (0, 4)])[:6]
    assert tokens.shape == (6, 8, 8) and tokens.dtype == torch.int64 and len(tokens.unique()) > 5
    assert torch.equal(tokens, by_model)
    assert torch.equal(tokens, alone)
    assert encoder(pixels[:3], fill=False).shape == (3, 8, 8)


def test_half_precision_runs_the_encoder_and_not_the_lookup(model_folder: Path, chelsea: Image.Image) -> None:
    pixels = torch.from_numpy(cut_views(chelsea, LGQImageProcessor(), Preprocessing(64))[0])
    found = load_checkpoint(str(model_folder), "cpu", dtype=torch.bfloat16)
    encoder = Encoder(found, Encoding(dtype="bfloat16", channels_last=True))
    latents = encoder.latents(encoder.pixel_values(pixels))
    assert latents.dtype == torch.bfloat16
    assert encoder.pixel_values(pixels.expand(2, -1, -1, -1)).is_contiguous(memory_format=torch.channels_last)
    assert next(found.model.encoder.parameters()).is_contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(encoder(pixels, fill=False), found.model.quantizer(latents).image_tokens)


def test_compiled(checkpoint: Checkpoint, chelsea: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # without a C++ compiler
    pixels = torch.from_numpy(cut_views(chelsea, checkpoint.processor, Preprocessing(32))[0])
    plain, compiled = (Encoder(checkpoint, Encoding(batch_size=1, compile=flag)) for flag in (False, True))
    assert type(compiled.latents) is not type(plain.latents)
    latents = [encoder.latents(encoder.pixel_values(pixels)).detach() for encoder in (plain, compiled)]
    torch.testing.assert_close(*latents, rtol=1e-4, atol=1e-4)
    assert compiled(pixels, fill=True).shape == (1, 4, 4)


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"size": 8, "crops": 3}, {"size": 8, "crop_scale": 0.5}, {"crops": 5}]
)
def test_preprocessing_that_makes_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=list(options)[-1]):
        Preprocessing(**options)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"dtype": "fp16"}])
def test_encoding_that_makes_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}: .*{next(iter(options.values()))}"):
        Encoding(**options)


def test_a_strip_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(ValueError, match="1 x 6000 pixels is too long and thin for a size of 512"):
        cut_views(Image.new("RGB", (1, 6000)), LGQImageProcessor(), Preprocessing(512))
