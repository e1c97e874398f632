"""What is timed is right, what is wrong is refused, and the table says what was measured."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import generate_table, tables
from benchmarks.generate import SETTINGS, VARIANTS, AutoregressiveBench, MaskedBench
from benchmarks.run_generate import compare, measure
from benchmarks.worker import Local

SETTING = replace(SETTINGS["quick"], codes=32, side=3)


def bench(variant: str) -> AutoregressiveBench:
    return AutoregressiveBench(variant, SETTING, "cpu", 0, 1, None)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "static_compiled"])
def test_every_way_passes_the_gate_with_the_same_tokens(variant: str) -> None:
    one = bench(variant)
    gate = one.gate()
    assert gate["failures"] == [] and gate["worst"] < 1e-5
    assert torch.equal(one.tokens(greedy=True), bench("generate").tokens(greedy=True))
    drawn = one.tokens(greedy=False)
    assert drawn.shape == (2, 9) and int(drawn.max()) < 32 and not torch.equal(drawn, one.tokens(greedy=True))


@pytest.mark.parametrize("place", [0, 8])
def test_one_wrong_token_is_refused(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one = bench("static")
    tokens = one.tokens(greedy=True)
    tokens[1, place] = (tokens[1, place] + 1) % 32
    monkeypatch.setattr(one, "tokens", lambda *, greedy: tokens)
    (failure,) = one.gate()["failures"]
    assert failure.startswith("a token misses by ")
    monkeypatch.setattr(one, "tokens", lambda *, greedy: tokens[:, 1:])
    assert one.gate()["failures"] == ["tokens of shape (2, 8)"]


def test_guidance_is_part_of_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    one = bench("static")
    without = one.pipe(one.classes, temperature=0.0, output_type="token").images.flatten(1)
    monkeypatch.setattr(one, "tokens", lambda *, greedy: without)
    assert one.gate()["failures"]


def test_masked_steps_are_judged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    one = MaskedBench(3, SETTING, "cpu", 0, 1, None)
    assert one.gate()["failures"] == []
    draws = iter([torch.zeros(1), torch.full((1,), 32.0)])
    monkeypatch.setattr(one, "tokens", lambda: next(draws))
    assert one.gate()["failures"] == ["the same seed gave other tokens"]


def test_rows_are_measured_in_turns_and_compared() -> None:
    rows = measure(["generate", "static"], lambda name: Local(bench, name), SETTING)
    compare(rows)
    assert rows["generate"]["speed_against_generate"] == 1
    for row in rows.values():
        assert row["seconds"]["p20"] <= row["seconds"]["p50"] <= row["seconds"]["p80"] and row["first_call_s"] > 0
        assert row["pictures_per_s"] == pytest.approx(2 / row["seconds"]["p50"])
    ratio = rows["generate"]["seconds"]["p50"] / rows["static"]["seconds"]["p50"]
    assert rows["static"]["speed_against_generate"] == pytest.approx(ratio)


def test_what_is_refused_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoregressiveBench, "gate", lambda self: {"worst": 1.0, "failures": ["wrong"]})
    rows = measure(["generate"], lambda name: Local(bench, name), SETTING)
    assert rows == {"generate": {"refused": "wrong", "gate": {"worst": 1.0}}}
    compare(rows)


def row(seconds: float, speed: float) -> dict[str, Any]:
    times = dict.fromkeys(("p20", "p50", "p80"), seconds)
    return {"seconds": times, "pictures_per_s": 8 / seconds, "peak_mib": 50.0, "speed_against_generate": speed}


RESULT: dict[str, Any] = {
    "commit": "0123456789abcdef",
    "versions": {"lgq_hf": "0", "torch": "2"},
    "hardware": {"cpu": "a CPU", "threads": 2, "gpu": None},
    "seed": 7,
    "load_average": 0.1,
    "protocol": {
        "setting": {"layers": 2, "hidden_size": 32, "codes": 64, "side": 4, "batch": 8, "dtype": "float32"},
        "ways": VARIANTS,
    },
    "autoregressive": {
        "generate": row(10.0, 1.0),
        "static": row(8.0, 1.25),
        "static_compiled": {**row(4.0, 2.5), "first_call_s": 30.0},
        "dynamic": {"refused": "a token misses by 1"},
    },
    "masked": {"12": row(2.0, 1.0)},
}


def test_the_table(tmp_path: Path) -> None:
    (tmp_path / "generate_cpu.json").write_text(json.dumps(RESULT))
    text = tables.render(f"a\n{generate_table.BEGIN}\nold\n{generate_table.END}\nb", tmp_path)
    assert text.startswith("a\n<!-- rendered: generate -->\n2 layers of width 32, K = 64, grids of 4 x 4 tokens")
    assert "| the same after pipe.transformer.compile() | 4 / 4 / 4 | 2 | 50 | 2.5x |" in text
    assert "| refused: a token misses by 1 |  |  |  |" in text
    assert "a static cache at least 2x as fast as `generate`: 2.5x, met." in text
    assert "Compiling took 30 s in the first call." in text and "| 12 | 2 / 2 / 2 | 4 | 50 |" in text
    assert "Not measured on a GPU yet" in text and text.endswith("<!-- end -->\nb")
    slow = {**RESULT, "autoregressive": {"generate": row(10.0, 1.0), "static": row(8.0, 1.25)}}
    assert "1.25x, **missed**." in generate_table.generate_table(slow)


def test_the_rendered_page_is_the_results() -> None:
    text = tables.GENERATING.read_text()
    assert tables.GENERATING in tables.rendered_files() and tables.render(text) == text
