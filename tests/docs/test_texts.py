"""What pages say of settings and sizes, compared with the code."""

import dataclasses
import math
import re

import pytest

from lgq_hf import LGQConfig
from tests.docs.pages import pages, read
from training.generator_recipe import GeneratorRecipe
from training.recipe import Recipe

SECTIONS = ("data", "loss", "discriminator", "quantizer", "optimizer", "engine", "validation", "report")
_SETTING = re.compile(rf"`({'|'.join(SECTIONS)}|model)\.([a-z_]+)(?![\w.])")
_FILES = {"ckpt", "csv", "json", "jsonl", "png", "safetensors", "yaml"}


def settings_of(text: str) -> list[tuple[str, str]]:
    """(section, field) of the settings of recipes that a text names in code."""
    return [found for found in _SETTING.findall(text) if found[1] not in _FILES]


def known_settings() -> set[tuple[str, str]]:
    known = {("model", name) for name in LGQConfig.__annotations__}
    for recipe in (Recipe, GeneratorRecipe):
        for section in dataclasses.fields(recipe):
            default = section.default_factory() if callable(section.default_factory) else None
            if dataclasses.is_dataclass(default):
                known |= {(section.name, field.name) for field in dataclasses.fields(default)}
    return known


@pytest.mark.parametrize("page", [page for page in pages() if settings_of(read(page))])
def test_settings_are_fields_of_recipes(page: str) -> None:
    assert set(settings_of(read(page))) <= known_settings()


def test_bits_in_the_table_of_choosing_a_tokenizer() -> None:
    text = read("docs/choosing_a_tokenizer.md")
    factors = [int(factor) for factor in re.findall(r"f(\d+)", text[text.index("| bits a pixel") :].split("\n")[0])]
    rows = re.findall(r"^\| K = ([\d,]+) \|(.+)\|$", text, flags=re.MULTILINE)
    assert factors == [4, 8, 16, 32] and len(rows) == 5
    for codes, cells in rows:
        bits = [math.log2(int(codes.replace(",", ""))) / factor**2 for factor in factors]
        assert [float(cell) for cell in cells.split("|")] == pytest.approx(bits, abs=5.1e-5)
    tokens = next(line for line in text.splitlines() if line.startswith("| tokens of 256 x 256"))
    assert [int(cell) for cell in tokens.split("|")[2:-1]] == [(256 // factor) ** 2 for factor in factors]
