"""Pictures in, pixel values out, and back: real photographs, every mode and every refusal."""

import ast
import base64
import functools
import http.server
import inspect
import sys
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from skimage import data
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from lgq_hf.tokenizer import image_processing_lgq
from lgq_hf.tokenizer.image_processing_lgq import LGQImageProcessor

ASTRONAUT = data.astronaut()  # 512x512
CHELSEA = data.chelsea()  # 300x451: no multiple of 8
THUMBNAIL = np.array(Image.fromarray(CHELSEA).resize((29, 19)))  # odd and not square


@pytest.fixture
def processor() -> LGQImageProcessor:
    return LGQImageProcessor()


def picture_of(images: Any, processor: LGQImageProcessor | None = None, **options: Any) -> np.ndarray:
    """The uint8 (h,w,3) picture that the processor made of one input."""
    processor = processor or LGQImageProcessor()
    batch = processor(images, return_tensors="pt", **options)
    assert batch["pixel_values"].shape[0] == 1
    height, width = batch["original_sizes"][0].tolist()
    levels = (batch["pixel_values"][0, :, :height, :width].numpy().transpose(1, 2, 0) + 1) * 127.5
    rounded = np.rint(levels)
    assert np.abs(levels - rounded).max() < 1e-4
    return rounded.astype(np.uint8)


def over_white(rgba: np.ndarray) -> np.ndarray:
    """Floats: what composition over white should give."""
    rgba = rgba.astype(np.float64)
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(content: bytes) -> Image.Image:
    return Image.open(BytesIO(content))


def test_pixel_values_of_a_photograph(processor: LGQImageProcessor) -> None:
    batch = processor(Image.fromarray(ASTRONAUT), return_tensors="pt")
    assert set(batch) == {"pixel_values", "original_sizes"}
    pixel_values = batch["pixel_values"]
    assert pixel_values.shape == (1, 3, 512, 512)
    assert pixel_values.dtype == torch.float32
    assert pixel_values.is_contiguous()
    expected = torch.from_numpy(ASTRONAUT).permute(2, 0, 1)[None].double() / 127.5 - 1
    assert (pixel_values - expected).abs().max() < 1e-6
    assert (pixel_values.min(), pixel_values.max()) == (-1, 1)
    assert batch["original_sizes"].dtype == torch.int64
    assert batch["original_sizes"].tolist() == [[512, 512]]


def test_imagenet_normalisation() -> None:
    processor = LGQImageProcessor(image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD)
    pixel_values = processor(ASTRONAUT, return_tensors="np")["pixel_values"]
    expected = (ASTRONAUT / 255 - IMAGENET_DEFAULT_MEAN) / IMAGENET_DEFAULT_STD
    np.testing.assert_allclose(pixel_values[0], expected.transpose(2, 0, 1), atol=2e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_mean": 0.5, "image_std": 0.25},
        {"do_normalize": False, "do_pad": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3, "pad_to_multiple_of": 32},
    ],
)
def test_round_trip_is_exact(options: dict[str, Any]) -> None:
    processor = LGQImageProcessor(**options)
    every_level = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    for picture in (CHELSEA, THUMBNAIL, every_level, CHELSEA[:1, :1], CHELSEA[:1, :37], CHELSEA[:37, :1]):
        batch = processor(Image.fromarray(picture), return_tensors="pt")
        assert batch["original_sizes"].tolist() == [list(picture.shape[:2])]
        [image] = processor.postprocess(batch["pixel_values"], batch["original_sizes"])
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), picture)


def test_padding_repeats_the_last_row_and_column(processor: LGQImageProcessor) -> None:
    batch = processor(CHELSEA, return_tensors="pt")
    pixel_values = batch["pixel_values"][0]
    assert pixel_values.shape == (3, 304, 456)
    assert batch["original_sizes"].tolist() == [[300, 451]]
    assert torch.equal(pixel_values[:, 300:, :451], pixel_values[:, 299:300, :451].expand(-1, 4, -1))
    assert torch.equal(pixel_values[:, :, 451:], pixel_values[:, :, 450:451].expand(-1, -1, 5))
    for multiple, padded in ((1, (19, 29)), (16, (32, 32)), (7, (21, 35))):
        assert (
            processor(THUMBNAIL, return_tensors="pt", pad_to_multiple_of=multiple)["pixel_values"].shape[2:] == padded
        )


def test_without_return_tensors_sizes_may_differ(processor: LGQImageProcessor) -> None:
    batch = processor([CHELSEA, ASTRONAUT])
    assert [picture.shape for picture in batch["pixel_values"]] == [(3, 304, 456), (3, 512, 512)]
    assert batch["original_sizes"] == [(300, 451), (512, 512)]
    tensors = [torch.from_numpy(picture)[None] for picture in batch["pixel_values"]]
    for tensor, size, original in zip(tensors, batch["original_sizes"], (CHELSEA, ASTRONAUT), strict=True):
        np.testing.assert_array_equal(np.asarray(processor.postprocess(tensor, [size])[0]), original)


def test_resize_is_pillows_lanczos() -> None:
    processor = LGQImageProcessor(size=64, do_resize=True)
    assert processor.size == {"shortest_edge": 64}
    expected = np.asarray(Image.fromarray(CHELSEA).resize((96, 64), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(picture_of(CHELSEA, processor), expected)
    expected = np.asarray(Image.fromarray(CHELSEA).resize((40, 30), Image.Resampling.NEAREST))
    options = {"size": {"height": 30, "width": 40}, "resample": Image.Resampling.NEAREST}
    np.testing.assert_array_equal(picture_of(CHELSEA, processor, **options), expected)


def test_center_crop_cuts_the_middle() -> None:
    processor = LGQImageProcessor(do_center_crop=True, crop_size={"height": 200, "width": 101})
    np.testing.assert_array_equal(picture_of(CHELSEA, processor), CHELSEA[50:250, 175:276])
    np.testing.assert_array_equal(picture_of(CHELSEA, processor, crop_size=256), CHELSEA[22:278, 97:353])
    processor = LGQImageProcessor(do_resize=True, do_center_crop=True, size=64, crop_size=64)
    batch = processor([CHELSEA, ASTRONAUT, CHELSEA.transpose(1, 0, 2), THUMBNAIL], return_tensors="pt")
    assert batch["pixel_values"].shape == (4, 3, 64, 64)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"])
def test_opaque_modes_are_pillows_rgb(mode: str) -> None:
    rgb = Image.fromarray(THUMBNAIL)
    image = rgb.convert(mode)
    assert image.mode == mode
    np.testing.assert_array_equal(picture_of(image), np.asarray(image.convert("RGB")))
    if mode in ("RGB", "RGBX", "CMYK"):
        np.testing.assert_array_equal(picture_of(image), THUMBNAIL)
    elif mode in ("YCbCr", "LAB", "HSV"):
        assert np.abs(picture_of(image).astype(int) - THUMBNAIL).mean() < 3


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA", "RGBa"])
def test_alpha_is_composited_over_white(mode: str) -> None:
    rgb = Image.fromarray(THUMBNAIL)
    alpha = Image.fromarray(np.linspace(0, 255, THUMBNAIL[..., 0].size).reshape(19, 29).astype(np.uint8))
    image = {"PA": rgb.quantize(64), "LA": rgb.convert("L")}.get(mode, rgb)
    image.putalpha(alpha)
    image = image.convert(mode)
    assert image.mode == mode
    picture = picture_of(image)
    assert np.abs(picture - over_white(np.asarray(image.convert("RGBA")))).max() <= 0.5
    assert picture[0, 0].tolist() == [255] * 3
    assert picture[-1, -1].tolist() == np.asarray(image.convert("RGBA"))[-1, -1, :3].tolist()


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (7, 7, 7)), ("1", 1)])
def test_transparent_colour_of_a_png(mode: str, key: Any) -> None:
    image = Image.new(mode, (5, 4), 0)
    image.putpixel((1, 2), key)
    image = decoded(encoded(image, "PNG", transparency=key))
    assert "transparency" in image.info
    picture = picture_of(image)
    assert picture[2, 1].tolist() == [255] * 3
    assert picture.sum() == 3 * 255


def test_palette_with_transparency() -> None:
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50, 10, 20, 30])
    image.putpixel((3, 2), 2)
    one_key = decoded(encoded(image, "PNG", transparency=2))
    alphas = decoded(encoded(image, "PNG", transparency=bytes([255, 128, 0])))
    for transparent, brown in ((one_key, [200, 100, 50]), (alphas, [227, 177, 152])):
        assert transparent.mode == "P"
        picture = picture_of(transparent)
        assert picture[2, 3].tolist() == [255] * 3 and picture[1, 1].tolist() == brown
    half_red = Image.fromarray(np.full((4, 5, 4), (255, 0, 0, 128), dtype=np.uint8)).quantize(
        4
    )  # alpha in the palette
    assert (picture_of(half_red) == (255, 127, 127)).all()


LEVELS_16 = np.arange(65536, dtype=np.uint16).reshape(256, 256)
LEVELS_8 = np.round(LEVELS_16.astype(np.float64) * 255 / 65535).astype(np.uint8)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_16_bit_modes(mode: str) -> None:
    dtype = {"I;16B": ">u2", "I": "=i4", "I;16N": "=u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (256, 256), LEVELS_16.astype(dtype).tobytes())
    assert image.mode == mode
    np.testing.assert_array_equal(picture_of(image)[..., 0], LEVELS_8)
    assert picture_of(image)[-1, -1].tolist() == [255] * 3


STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = CHELSEA[40:160, 100:287]
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    path = tmp_path / "turned.png"
    stored.save(path, exif=exif)
    for given in (Image.open(path), str(path)):
        np.testing.assert_array_equal(picture_of(given), upright)
    grey = Image.fromarray(np.ascontiguousarray(STORED[orientation](LEVELS_16[:20])))
    np.testing.assert_array_equal(picture_of(decoded(encoded(grey, "PNG", exif=exif)))[..., 0], LEVELS_8[:20])


def test_paths_and_addresses(tmp_path: Path, processor: LGQImageProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    rgba = np.dstack([THUMBNAIL, np.linspace(0, 255, 19 * 29).reshape(19, 29).astype(np.uint8)])
    path = tmp_path / "glass.png"
    Image.fromarray(rgba).save(path)
    expected = picture_of(rgba)
    assert (expected != THUMBNAIL).any()
    data_url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    for source in (str(path), path, data_url, [[str(path)]]):
        np.testing.assert_array_equal(picture_of(source), expected)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/glass.png"
            np.testing.assert_array_equal(picture_of(url), expected)
            monkeypatch.setattr(image_processing_lgq, "MAX_BYTES", 1000)
            with pytest.raises(ValueError, match="more than 1000 bytes"):
                processor(url)
        finally:
            server.shutdown()


def test_files_that_are_not_opened(
    tmp_path: Path, processor: LGQImageProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same rules as everywhere in the package: `tests/lgq_hf/images/test_opening.py` has the rest."""
    with pytest.raises(ValueError, match=r"file's path, .* got 'no\.png'"):
        processor("no.png")
    (tmp_path / "cut.png").write_bytes(encoded(Image.fromarray(ASTRONAUT), "PNG")[:1000])
    with pytest.raises(ValueError, match=r"cut\.png: truncated"):
        processor(tmp_path / "cut.png")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program was run"))
    Image.fromarray(THUMBNAIL).save(tmp_path / "eps.png", "EPS")
    with pytest.raises(ValueError, match=r"eps\.png: not an image"):
        processor(tmp_path / "eps.png")


def test_arrays_of_every_layout() -> None:
    grey = THUMBNAIL[..., 1]
    for given in (
        THUMBNAIL,
        THUMBNAIL.transpose(2, 0, 1),
        torch.from_numpy(THUMBNAIL),
        torch.from_numpy(THUMBNAIL).permute(2, 0, 1),
        THUMBNAIL[None],
        [[THUMBNAIL]],
        (torch.from_numpy(THUMBNAIL)[None],),
        np.asfortranarray(THUMBNAIL),
    ):
        np.testing.assert_array_equal(picture_of(given), THUMBNAIL)
    for given in (grey, grey[..., None], grey[None], torch.from_numpy(grey.copy()), grey[None, ..., None]):
        np.testing.assert_array_equal(picture_of(given), grey[..., None].repeat(3, axis=2))


def test_batches_and_mixtures(processor: LGQImageProcessor) -> None:
    batch_NHWC = np.stack([THUMBNAIL, THUMBNAIL[::-1]])
    expected = processor([THUMBNAIL, THUMBNAIL[::-1]], return_tensors="np")["pixel_values"]
    for given in (
        batch_NHWC,
        torch.from_numpy(batch_NHWC).permute(0, 3, 1, 2),
        [[torch.from_numpy(THUMBNAIL).permute(2, 0, 1)], Image.fromarray(THUMBNAIL[::-1])],
    ):
        np.testing.assert_array_equal(processor(given, return_tensors="np")["pixel_values"], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float_tensors(processor: LGQImageProcessor, dtype: torch.dtype) -> None:
    tensor = torch.rand(3, 8, 16, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    pixel_values = processor(tensor, return_tensors="pt", do_rescale=False)["pixel_values"]
    assert pixel_values.dtype == torch.float32
    assert not pixel_values.requires_grad
    torch.testing.assert_close(pixel_values[0], tensor.detach().float() * 2 - 1, atol=1e-6, rtol=0)


def test_floats_of_four_and_one_channels(processor: LGQImageProcessor) -> None:
    rgba = processor(np.full((8, 8, 4), (1, 0, 0, 0.5)), return_tensors="pt", do_rescale=False)["pixel_values"]
    assert rgba[0, :, 0, 0].tolist() == [1, 0, 0]
    assert (processor(np.full((8, 8), 0.75), return_tensors="pt", do_rescale=False)["pixel_values"] == 0.5).all()


def test_input_data_format_settles_what_the_shape_does_not(processor: LGQImageProcessor) -> None:
    row = THUMBNAIL[:1]  # (1, 29, 3): one row of RGB, or a grey picture three pixels wide
    with pytest.raises(ValueError, match=r"end of shape \(1, 29, 3\) may be the channels; pass input_data_format="):
        processor(row)
    np.testing.assert_array_equal(picture_of(row, input_data_format="channels_last"), row)
    grey = picture_of(row, input_data_format="channels_first")
    np.testing.assert_array_equal(grey, row[0][..., None].repeat(3, axis=2))
    with pytest.raises(ValueError, match=r"1, 3 or 4 channels \(channels_first\), got .* shape \(19, 29, 3\)"):
        processor(THUMBNAIL, input_data_format="channels_first")
    with pytest.raises(ValueError, match=r"input_data_format='sideways'"):
        processor(THUMBNAIL, input_data_format="sideways")


NAN = torch.zeros(3, 8, 8).index_fill(2, torch.tensor(3), torch.nan)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (np.zeros((8, 8, 2), np.uint8), {}, r"1, 3 or 4 channels .*\(8, 8, 2\)"),
        (np.zeros(8, np.uint8), {}, r"shape \(8,\)"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), {}, r"shape \(1, 2, 8, 8, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), {}, r"shape \(0, 8, 3\)"),
        (np.zeros((8, 8, 3), np.uint16), {}, "got uint16"),
        (np.zeros((8, 8, 3), bool), {}, "got bool"),
        (torch.zeros(3, 8, 8, dtype=torch.bfloat16), {}, r"got torch\.bfloat16; .*do_rescale=False"),
        (NAN, {"do_rescale": False}, "got NaN or infinity"),
        (np.full((8, 8, 3), 1.5), {"do_rescale": False}, r"got 1\.5\.\.1\.5"),
        (torch.full((3, 8, 8), -0.25), {"do_rescale": False}, r"got -0\.25"),
        (Image.fromarray(THUMBNAIL), {"do_rescale": False}, "got uint8"),
        (torch.rand(3, 16, 16), {"do_rescale": False, "do_resize": True}, "do_resize .*float32"),
        (CHELSEA, {"do_center_crop": True, "crop_size": 512}, "300x451 .*512x512"),
        (CHELSEA, {"do_center_crop": True, "crop_size": {"shortest_edge": 64}}, "crop_size: "),
        (Image.new("F", (4, 4)), {}, "mode 'F'"),
        (Image.new("I", (4, 4), -1), {}, r"mode 'I': .*-1"),
        (Image.new("I", (4, 4), 65536), {}, r"mode 'I': .*65536"),
        ([CHELSEA, ASTRONAUT], {}, "304x456, 512x512 after padding"),
        ([[]], {}, "at least one image"),
        (torch.zeros(0, 3, 8, 8), {}, "at least one image"),
    ],
)
def test_what_is_refused(processor: LGQImageProcessor, given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(given, return_tensors="pt", **options)


@pytest.mark.parametrize("given", [None, {"image": THUMBNAIL}, [[1, 2], [3, 4]], b"bytes"])
def test_things_that_are_no_images(processor: LGQImageProcessor, given: Any) -> None:
    with pytest.raises(TypeError, match="expected a PIL image, path, URL"):
        processor(given)


def test_do_convert_rgb_false_refuses_what_is_not_rgb() -> None:
    processor = LGQImageProcessor(do_convert_rgb=False)
    for given in (Image.fromarray(THUMBNAIL), THUMBNAIL, THUMBNAIL.transpose(2, 0, 1)):
        np.testing.assert_array_equal(picture_of(given, processor), THUMBNAIL)
    with pytest.raises(ValueError, match=r"do_convert_rgb=False expects opaque RGB pictures, got mode 'L'"):
        processor(Image.fromarray(THUMBNAIL).convert("L"))
    with pytest.raises(ValueError, match=r"do_convert_rgb=False expects 3 channels, got .* shape \(1, 19, 29\)"):
        processor(THUMBNAIL[..., 0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pad_to_multiple_of", 0),
        ("pad_to_multiple_of", -8),
        ("image_mean", [0.5, 0.5]),
        ("image_std", [0.5, float("nan"), 0.5]),
        ("image_std", [0.5, 0.0, 0.5]),
        ("rescale_factor", 0.0),
        ("pad_size", {"height": 8, "width": 8}),
        ("data_format", "channels_last"),
        ("do_resise", True),
    ],
)
def test_options_that_are_refused(processor: LGQImageProcessor, name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        LGQImageProcessor(**{name: value})  # type: ignore[misc]
    with pytest.raises((ValueError, TypeError), match=name):
        processor(THUMBNAIL, **{name: value})  # type: ignore[misc]


def test_defaults(processor: LGQImageProcessor) -> None:
    assert LGQImageProcessor.model_input_names == ["pixel_values"]
    assert LGQImageProcessor(data_format="channels_first").to_dict().pop("data_format") == "channels_first"
    assert processor.to_dict() == {
        "image_processor_type": "LGQImageProcessor",
        "do_convert_rgb": True,
        "do_resize": False,
        "size": {"shortest_edge": 256},
        "resample": Image.Resampling.LANCZOS,
        "do_center_crop": False,
        "crop_size": {"height": 256, "width": 256},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
        "do_pad": True,
        "pad_to_multiple_of": 8,
    }


def test_save_and_load(tmp_path: Path) -> None:
    sizes: Any = {"size": 64, "do_resize": True, "crop_size": 48, "do_center_crop": True, "pad_to_multiple_of": 16}
    processor = LGQImageProcessor(**sizes, image_mean=IMAGENET_DEFAULT_MEAN, resample=Image.Resampling.BICUBIC)
    processor.save_pretrained(tmp_path)
    loaded = LGQImageProcessor.from_pretrained(tmp_path)
    # `auto_map` is bookkeeping: save_pretrained adds it where the class is registered for remote code
    assert {**processor.to_dict(), "auto_map": None} == {**loaded.to_dict(), "auto_map": None}
    pixels = (one(CHELSEA, return_tensors="pt")["pixel_values"] for one in (loaded, processor))
    assert torch.equal(*pixels)
    changed = LGQImageProcessor.from_pretrained(tmp_path, size=32, pad_to_multiple_of=4)
    assert (changed.size, changed.pad_to_multiple_of) == ({"shortest_edge": 32}, 4)


def test_the_file_travels_alone() -> None:
    tree = ast.parse(inspect.getsource(image_processing_lgq))
    imported: set[Any] = {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    outside = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names
    assert outside == {"numpy", "torch", "PIL", "transformers"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_postprocess_types(processor: LGQImageProcessor, dtype: torch.dtype) -> None:
    pixel_values = processor([CHELSEA, CHELSEA[::-1]], return_tensors="pt")["pixel_values"].to(dtype)
    sizes = [(300, 451), (10, 20)]
    expected = [(x.float() * 0.5 + 0.5).clamp(0, 1)[:, :h, :w] for x, (h, w) in zip(pixel_values, sizes, strict=True)]
    tensors = processor.postprocess(pixel_values, sizes, output_type="pt")
    arrays = processor.postprocess(pixel_values, sizes, output_type="np")
    images = processor.postprocess(pixel_values, sizes)
    assert [len(pictures) for pictures in (tensors, arrays, images)] == [2, 2, 2]
    for tensor, array, image, wanted in zip(tensors, arrays, images, expected, strict=True):
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, wanted)
        assert (array.dtype, array.flags.c_contiguous) == (np.float32, True)
        np.testing.assert_array_equal(array, wanted.permute(1, 2, 0).numpy())
        np.testing.assert_array_equal(np.asarray(image), (wanted * 255).round().permute(1, 2, 0).numpy())
    if dtype == torch.bfloat16:
        assert np.abs(np.asarray(images[0]).astype(int) - CHELSEA).max() <= 1


def test_postprocess_clamps_what_overshoots(processor: LGQImageProcessor) -> None:
    pixel_values = torch.tensor([-3.0, -1.001, 0.0, 1.001, 1e30]).reshape(1, 1, 1, 5).repeat(1, 3, 1, 1)
    assert np.asarray(processor.postprocess(pixel_values)[0])[0, :, 1].tolist() == [0, 0, 128, 255, 255]


def test_postprocess_sizes_of_every_kind(processor: LGQImageProcessor) -> None:
    pixel_values = processor([THUMBNAIL] * 2, return_tensors="pt")["pixel_values"].requires_grad_()
    sizes = torch.tensor([[19, 29], [3, 32]])
    for given in (sizes, sizes.numpy(), sizes.tolist(), list(sizes), [(19, 29), (3, 32)], sizes.int()):
        images = processor.postprocess(pixel_values, given)
        assert [image.size for image in images] == [(29, 19), (32, 3)]
    assert [image.size for image in processor.postprocess(pixel_values)] == [(32, 24)] * 2
    assert not processor.postprocess(pixel_values, output_type="pt")[0].requires_grad
    assert processor.postprocess(torch.zeros(0, 3, 8, 8), []) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 8, 8),), r"\(3, 8, 8\)"),
        ((torch.zeros(1, 4, 8, 8),), r"\(1, 4, 8, 8\)"),
        ((torch.zeros(1, 3, 8, 8, dtype=torch.uint8),), r"torch\.uint8"),
        ((np.zeros((1, 3, 8, 8)),), "got ndarray"),
        ((torch.full((1, 3, 8, 8), torch.nan),), "NaN"),
        ((torch.zeros(2, 3, 8, 8), [(8, 8)]), "each of 2 pictures, got 1"),
        ((torch.zeros(1, 3, 8, 8), [(9, 8)]), "got 9x8"),
        ((torch.zeros(1, 3, 8, 8), [(8, 9)]), "got 8x9"),
        ((torch.zeros(1, 3, 8, 8), [(8.0, 8.0)]), r"\(B,2\) integers"),
        ((torch.zeros(1, 3, 8, 8), None, "jpeg"), "got 'jpeg'"),
    ],
)
def test_postprocess_refusals(processor: LGQImageProcessor, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        processor.postprocess(*arguments)
