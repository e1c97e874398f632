"""Numbers of the page, against the same computed by hand."""

import importlib
import math

import numpy as np
import pytest
from PIL import Image

from lgq_hf.demo.measures import facts, measure, table


def _noise(size: tuple[int, int], seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_numbers_are_those_of_their_definitions() -> None:
    a, b = _noise((40, 24), 0), _noise((40, 24), 1)
    found = measure(a, b, (3, 5), 1000)
    error = np.mean((np.asarray(a, dtype=np.float64) / 255 - np.asarray(b, dtype=np.float64) / 255) ** 2)
    assert found.psnr == pytest.approx(-10 * math.log10(error), abs=1e-9)
    assert found.ssim is not None and abs(found.ssim) < 0.2
    assert found.tokens == 15
    assert found.bits == pytest.approx(15 * math.log2(1000))
    assert found.bits_per_pixel == pytest.approx(found.bits / 960)
    assert found.compression == pytest.approx(960 * 24 / found.bits)


def test_facts_as_text() -> None:
    picture = _noise((256, 128), 0)
    assert facts(measure(picture, picture, (16, 32), 4096)) == [
        ("psnr", "PSNR", "no difference"),
        ("ssim", "SSIM", "1.000"),
        ("size", "Picture", "256 x 128 px"),
        ("grid", "Token grid", "16 x 32"),
        ("bits", "Bits", "6,144 = 512 x log2(4,096)"),
        ("bits_per_pixel", "Bits per pixel", "0.188"),
        ("compression", "Against raw RGB", "128.0 : 1"),
    ]
    of_channels = {key: text for key, _, text in facts(measure(picture, picture, (4, 8, 16), 6))}
    assert of_channels["grid"] == "4 x 8 x 16"


def test_ssim_that_cannot_be_had_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    small = measure(_noise((10, 30), 0), _noise((10, 30), 1), (1, 3), 8)
    assert facts(small)[1] == ("ssim", "SSIM", "needs sides of 11 pixels")

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    without = measure(_noise((20, 30), 0), _noise((20, 30), 1), (1, 3), 8)
    assert facts(without)[1] == ("ssim", "SSIM", "needs lgq_hf[metrics]")
    assert math.isfinite(without.psnr)


def test_pictures_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected two pictures of one size"):
        measure(_noise((20, 30), 0), _noise((30, 20), 1), (1, 3), 8)


def test_table_has_a_line_for_each_name_and_escapes_it() -> None:
    one = measure(_noise((20, 30), 0), _noise((20, 30), 1), (1, 3), 8)
    html = table([("first", one), ("<script>alert(1)</script>", one)])
    assert html.count('data-number="psnr"') == 2 and html.count("<th>PSNR</th>") == 1
    assert "<script" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    with pytest.raises(ValueError, match="expected the numbers of at least one picture, got none"):
        table([])
