"""The benchmark of the training step: what it writes, what it refuses, and its table. Nothing here judges times."""

import json
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import run, run_training_step, step_table, tables
from benchmarks.step_parts import StepParts, count_flop
from benchmarks.step_worker import DataBench, StepBench, write_photographs
from benchmarks.training_step import (
    LOSSES,
    NORMS,
    PARTS,
    SETTINGS,
    TOLERANCES,
    VARIANTS,
    compare,
    not_finite,
    quantizer_flop,
)
from benchmarks.worker import Isolated, Local
from lgq_hf.tokenizer import quantizer_lgq
from tests.training import steps

QUICK = SETTINGS["quick"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("LGQ_COMMIT", "0123456789abcdef")
    # started here, so that what the processes of all benchmarks import is imported once
    multiprocessing.get_context("forkserver").set_forkserver_preload(["benchmarks.worker", "benchmarks.step_worker"])
    forkserver.ensure_running()
    steps.forget_processes()


@pytest.fixture
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def local(build: Callable[..., Any], *arguments: Any, **_: Any) -> Local:
        return Local(build, *(arguments[:-1] if build is StepBench else arguments))  # no limit on memory here

    monkeypatch.setattr(run_training_step, "Isolated", local)


@pytest.fixture
def bench() -> StepBench:
    """The step after those of the gate."""
    made = StepBench("step", QUICK, 4, "cpu", 0, 1)
    made.gate()
    return made


def check(result: dict[str, Any], variants: list[str]) -> None:
    assert {"commit", "versions", "hardware", "protocol", "setting", "seed", "load_average"} <= result.keys()
    assert result["commit"] == "0123456789abcdef" and result["seed"] == 5 and result["batch_size"] == 4
    assert list(result["variants"]) == variants and result["batch_sizes_out_of_memory"] == {}
    for name, row in result["variants"].items():
        assert 0 < row["seconds"]["p20"] <= row["seconds"]["p50"] <= row["seconds"]["p80"]
        assert row["pictures_per_s"] == pytest.approx(4 / row["seconds"]["p50"])
        assert row["tflop_per_s"] > 0 and row["peak_mib"] >= 0 and row["calls"] >= 2
        assert row["gate"]["largest_error"] <= max(TOLERANCES["no"][1]) and len(row["gate"]["values"]) == 2
        assert (row["speed_against_step"] == 1) == (name == "step")
    parts = result["parts"]
    assert list(parts["seconds"]) == list(parts["share"]) == list(PARTS)
    assert parts["unexplained_share"] == pytest.approx(1 - sum(parts["share"].values()))
    assert parts["outside_networks_share"] == pytest.approx(1 - parts["share"]["networks"])
    both = parts["share"]["quantizer"] + parts["share"]["bookkeeping"]
    assert parts["quantizer_and_bookkeeping_share"] == pytest.approx(both)
    data = result["data"]
    assert data["alone"]["pictures_per_s"].keys() == {"0", "2"} and data["pictures"] == 28
    assert all(rate > 0 for rate in data["alone"]["pictures_per_s"].values())
    assert 0 <= data["loop"]["wait_share"] == data["loop"]["idle_share"] < 1
    assert len(step_table.training_step_table(result).splitlines()) > 15


ARGUMENTS = ["training_step", "--quick", "--seed", "5", "--threads", "1", "--variant", "materialised"]


@pytest.mark.usefixtures("_in_this_process")
def test_quick_run_writes_every_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*ARGUMENTS, "--output", str(tmp_path)]) == 0
    check(json.loads((tmp_path / "quick_training_step_cpu.json").read_text()), ["step", "materialised"])
    lines = capsys.readouterr().out.splitlines()
    assert [text.split()[0] for text in lines[:-1]] == ["step", "materialised", "parts", "data"]


@pytest.mark.slow
def test_quick_run_in_processes(tmp_path: Path) -> None:
    assert run.main([*ARGUMENTS, "--output", str(tmp_path)]) == 0
    check(json.loads((tmp_path / "quick_training_step_cpu.json").read_text()), ["step", "materialised"])


@pytest.mark.slow
def test_process_that_starts_processes(tmp_path: Path) -> None:
    write_photographs(tmp_path, (36,))
    worker = Isolated(DataBench, str(tmp_path), QUICK, 4, "cpu", 0, 1, answer_s=100, parent=True)
    assert worker.call("alone")["pictures_per_s"]["2"] > 0
    worker.close()
    worker = Isolated(DataBench, str(tmp_path), QUICK, 4, "cpu", 0, 1, answer_s=0.001)
    assert worker.call("alone") == {"unavailable": "no answer within 0.001 s"}
    worker.close()


@pytest.mark.usefixtures("_in_this_process")
def test_wrong_variant_is_refused_and_never_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = quantizer_lgq.soft_assign

    def wrong(x: Any, centers: Any, temperature: Any, *, backend: Any, **options: Any) -> Any:
        result = right(x, centers, temperature, backend="chunked", **options)
        if backend != "reference":
            return result
        calls.append(backend)
        soft = result.soft_codes_NC
        return result._replace(soft_codes_NC=soft.detach() + 1.5 * (soft - soft.detach()))  # the gradient alone

    calls: list[str] = []
    monkeypatch.setattr(quantizer_lgq, "soft_assign", wrong)
    monkeypatch.setattr(run_training_step, "measure_data", lambda *_: {"alone": {}, "loop": {}})
    assert run.main([*ARGUMENTS, "--output", str(tmp_path)]) == 1
    rows = json.loads((tmp_path / "quick_training_step_cpu.json").read_text())["variants"]
    assert rows["materialised"].keys() == {"refused", "gate"} and len(calls) == 2
    assert "grad_norm of step 1 is " in rows["materialised"]["refused"]
    assert "seconds" in rows["step"] and "refused: grad_norm" in capsys.readouterr().out


def values(**changes: float) -> list[dict[str, float]]:
    return [{**dict.fromkeys(LOSSES + NORMS, 1.0), **changes}]


def test_comparison_says_what_differs() -> None:
    assert compare(values(l1_loss=1.00005), values(), "no") == (pytest.approx(5e-5), [])
    (failure,) = compare(values(l1_loss=1.01), values(), "no")[1]
    with pytest.raises(AssertionError, match=r"l1_loss of step 1 is 1.01, that of 'step' 1: they differ by 1.00e-02"):
        raise AssertionError(failure)
    assert compare(values(l1_loss=1.01, grad_norm=1.05), values(), "bf16")[1] == []
    (failure,) = compare(values() + values(loss=1.009, grad_norm=1.06), values() + values(), "no")[1]
    assert failure.startswith("grad_norm of step 2 is 1.06") and failure.endswith("allowed 5.00e-02")
    assert compare(values(gan_loss=5e-6), values(gan_loss=0.0), "no")[1] == []  # against the floor
    assert "differ by nan" in compare(values(loss=float("nan")), values(), "no")[1][0]
    assert not_finite(values(grad_norm=float("inf"))) == ["grad_norm of step 1 is inf"]


class Scripted:
    """A worker whose answers are written down, by variant and batch size."""

    def __init__(self, answers: dict[str, Any], log: list[str], name: str) -> None:
        self.answers, self.log, self.name = answers, log, name

    def call(self, name: str) -> dict[str, Any]:
        answer = self.answers[name]
        return dict(answer)

    def close(self) -> None:
        self.log.append(self.name)


def test_step_without_memory_gets_a_smaller_batch() -> None:
    lack = {"out_of_memory": "OutOfMemoryError: 16 GiB"}
    fits = {"gate": {"values": values()}, "prepare": {"peak_mib": 5.0}}
    answers = {
        ("step", 32): {"gate": lack},
        ("step", 16): {"gate": {"values": values()}, "prepare": lack},
        ("step", 8): fits,
        ("materialised", 8): {"gate": lack},
        ("compiled", 8): fits,
    }
    closed: list[str] = []
    result: dict[str, Any] = {}
    setting = replace(QUICK, batch_sizes=(32, 16, 8))
    workers = run_training_step.admit_all(
        setting, list(VARIANTS), lambda *what: Scripted(answers[what], closed, f"{what}"), result
    )
    assert list(workers) == ["step", "compiled"] and result["batch_size"] == 8
    assert result["batch_sizes_out_of_memory"] == {"32": lack["out_of_memory"], "16": lack["out_of_memory"]}
    assert result["variants"]["materialised"] == lack
    assert closed == ["('step', 32)", "('step', 16)", "('materialised', 8)"]


def test_without_a_step_nothing_can_be_compared() -> None:
    broken, works = {"gate": {"unavailable": "ValueError: no"}}, {"gate": {"values": values()}}
    result: dict[str, Any] = {}
    workers = run_training_step.admit_all(
        QUICK, ["step", "compiled"], lambda name, _: Scripted(broken if name == "step" else works, [], name), result
    )
    assert workers == {}
    assert result["variants"]["compiled"] == {"unavailable": "'step' has no losses to compare with"}


def test_parts_leave_the_gradients_of_a_step(bench: StepBench) -> None:
    parts = StepParts(bench.step, bench.pixels, bench.number)
    kept = {id(parameter): gradient.clone() for parameter, gradient in parts.gradients}
    model, discriminator = bench.step.model, bench.step.discriminator
    assert discriminator is not None
    parts.networks()
    assert model.quantizer.centers.grad is None
    for module in (model.encoder, model.decoder, model.pre_quant_norm):
        for parameter in module.parameters():
            torch.testing.assert_close(parameter.grad, kept[id(parameter)])
    parts.quantizer()
    torch.testing.assert_close(model.quantizer.centers.grad, kept[id(model.quantizer.centers)])
    assert all(parameter.grad is None for parameter in model.decoder.parameters())
    parts.discriminator()
    assert all(parameter.grad is not None for parameter in discriminator.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bookkeeping_takes_a_step(bench: StepBench) -> None:
    bench._call()
    parts = StepParts(bench.step, bench.pixels, bench.number)
    learned = [parameter for parameter, _ in parts.gradients]
    before = [parameter.detach().clone() for parameter in learned]
    bench.step.take_window()
    for _ in range(2):  # as often as wanted
        parts.bookkeeping()
    assert bench.step.failure() is None
    assert all((new != old).any() for new, old in zip(learned, before, strict=True))
    _, counts = bench.step.take_window()
    assert int(counts.sum()) == 2 * parts.tokens.numel()


def test_flop_of_a_step(bench: StepBench) -> None:
    flop = count_flop(bench._call, bench.step, bench.pixels)
    assert flop["quantizer"] == quantizer_flop(4 * 16 * 16, 8, 512) == 7 * 2 * 1024 * 512 * 8
    assert flop["total"] == flop["networks"] + flop["quantizer"]
    out = bench.step.model.decoder.out  # its weight's gradient, its input's, and itself are far from everything
    assert flop["networks"] > 3 * 2 * 4 * 32 * 32 * out.weight.numel()


def test_photographs_are_never_enlarged(tmp_path: Path) -> None:
    assert write_photographs(tmp_path, (36, 302, 5000)) == 14 + 13  # chelsea.png has 300 px
    assert (tmp_path / "coins-302.png").exists() and not (tmp_path / "chelsea-302.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant", "fast"], "argument --variant: invalid choice: 'fast'"),
        (["--provider", "chunked"], "unrecognized arguments: --provider"),
        (["--device", "cuda"], "--device cuda: torch sees no GPU here"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        run.main(["training_step", *arguments])
    assert message in capsys.readouterr().err


def test_without_photographs_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(ModuleNotFoundError, match=r"sample photographs come with scikit-image: pip install"):
        run.main([*ARGUMENTS, "--output", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def h100() -> dict[str, Any]:
    """A result file of a GPU as the command writes it, shortened."""

    def row(p50: float, mib: float) -> dict[str, Any]:
        return {"ms": {"p20": 990 * p50, "p50": 1000 * p50, "p80": 1010 * p50}, "peak_mib": mib, "calls": 20}

    result: dict[str, Any] = {
        "commit": "0123456789abcdef",
        "versions": {"lgq_hf": "0.1.0", "torch": "2.11.0", "triton": None},
        "hardware": {"cpu": "a CPU", "threads": 16, "gpu": "NVIDIA H100 80GB HBM3"},
        "setting": {"image_size": 256, "mixed_precision": "bf16"},
        "seed": 7,
        "load_average": 0.2,
        "gpu_rates": {"bf16_tflop_per_s": 700.0},
        "batch_size": 24,
        "batch_sizes_out_of_memory": {"32": "OutOfMemoryError: 2 GiB"},
        "variants": {
            "step": row(0.2, 40000),
            "materialised": {"out_of_memory": "OutOfMemoryError: 16 | GiB"},
            "compiled": row(0.1, 20000),
        },
        "flop": {"networks": 34_000_000_000_000, "quantizer": 1_000_000_000_000, "total": 35_000_000_000_000},
        "parts": {
            "seconds": {
                "networks": 0.12,
                "quantizer": 0.01,
                "losses": 0.03,
                "discriminator": 0.02,
                "bookkeeping": 0.008,
            },
            "share": {"networks": 0.6, "quantizer": 0.05, "losses": 0.15, "discriminator": 0.1, "bookkeeping": 0.04},
            "step_seconds": 0.2,
            "outside_networks_share": 0.4,
            "quantizer_and_bookkeeping_share": 0.09,
            "unexplained_share": 0.06,
            "calls": 20,
        },
        "data": {
            "pictures": 37,
            "alone": {"pictures_per_s": {"0": 60.0, "2": 118.4}},
            "loop": {"num_workers": 2, "pictures_per_s": 100.0, "wait_share": 0.25, "idle_share": 0.125},
        },
    }
    run_training_step.finish_rows(result, result["gpu_rates"], SETTINGS["cuda"])
    return result


def test_table(h100: dict[str, Any]) -> None:
    text = step_table.training_step_table(h100)
    lines = text.splitlines()
    assert lines[0].endswith("| speed against step | memory against step | TFLOP/s | MFU |")
    assert "| step | 0.198 / 0.2 / 0.202 | 120 | 40000 | 1x | 1x | 175 | 25.0 % |" in lines
    assert "| compiled | 0.099 / 0.1 / 0.101 | 240 | 20000 | 2x | 0.5x | 350 | 50.0 % |" in lines
    assert "| materialised | out of memory: OutOfMemoryError: 16 \\| GiB |  |  |  |  |  |  |" in lines
    assert "24 pictures of 256 px in bf16 a step. For 32 the memory did not suffice. A step takes 35 TFLOP; " in text
    assert f"| networks: {PARTS['networks']} | 0.12 | 60.0 % |" in lines
    assert "| not explained by the parts |  | 6.0 % |" in lines
    assert "40.0 % of a step are outside encoder and decoder." in text
    assert "take 9.0 % together (target: at most 10.0 %, met)." in text
    assert "| alone, 2 worker processes | 118 |" in lines
    assert "waits for pictures 25.0 % of the time, and the GPU is idle between two steps 12.5 % of it." in text
    assert lines[-1].endswith("on NVIDIA H100 80GB HBM3 at commit `0123456789ab` with torch 2.11.0; seed 7.")
    assert all(len(line.split(" | ")) == 8 for line in lines[:2] if " | " in line)


def test_table_of_what_is_missing(h100: dict[str, Any]) -> None:
    h100["parts"]["quantizer_and_bookkeeping_share"] = 0.11
    assert "11.0 % together (target: at most 10.0 %, missed)" in step_table.training_step_table(h100)
    h100["parts"] = {"out_of_memory": "OutOfMemoryError: 1 GiB"}
    h100["data"] |= {"alone": {"unavailable": "ValueError: no"}, "loop": {"unavailable": "ValueError: no"}}
    text = step_table.training_step_table(h100)
    assert "Parts of a step: out of memory: OutOfMemoryError: 1 GiB" in text
    assert "| alone | unavailable: ValueError: no |" in text and "| with the step | unavailable: ValueError" in text
    for name in ("gpu_rates", "parts", "data"):
        del h100[name]
    text = step_table.training_step_table(h100)
    assert "A step takes 35 TFLOP. Memory" in text and "MFU" not in text.splitlines()[0]


BEGIN, END = step_table.BEGIN, step_table.END


def test_text_between_markers_is_replaced(tmp_path: Path, h100: dict[str, Any]) -> None:
    text = f"# Training\n{BEGIN}old{END} after\n<!-- rendered: other -->kept{END}\n"
    rendered = tables.render(text, tmp_path)
    assert "not measured yet: run `python -m benchmarks.run training_step`" in rendered and "old" not in rendered
    (tmp_path / "training_step_cuda_nvidia-h100.json").write_text(json.dumps(h100))
    (tmp_path / "quick_training_step_cpu.json").write_text("{}")
    again = tables.render(rendered, tmp_path)
    assert step_table.training_step_table(h100) in again
    assert again.endswith(f"{END} after\n<!-- rendered: other -->kept{END}\n")
    assert tables.render(again, tmp_path) == again
    assert step_table.render_step("no markers", tmp_path) == "no markers"


@pytest.mark.parametrize("text", [BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_markers_that_are_not_whole(text: str) -> None:
    with pytest.raises(ValueError, match="expected one '<!-- rendered: training_step -->' and an '<!-- end -->'"):
        tables.render(text)


def test_command_renders_the_texts_that_have_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme, training = tmp_path / "README.md", tmp_path / "training.md"
    readme.write_text("<!-- assignment:cuda -->\n<!-- /assignment:cuda -->\n")
    training.write_text("# Training\n")
    monkeypatch.setattr(tables, "README", readme)
    monkeypatch.setattr(tables, "TRAINING", training)
    assert tables.main([]) == 0 and training.read_text() == "# Training\n"
    training.write_text(f"{BEGIN}{END}")
    assert tables.main(["--check"]) == 1
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0 and training.read_text() != f"{BEGIN}{END}"


def test_rendered_table_is_up_to_date() -> None:
    if not tables.TRAINING.exists() or BEGIN not in tables.TRAINING.read_text():
        pytest.skip("docs/training.md has no markers")
    text = tables.TRAINING.read_text()
    assert step_table.render_step(text) == text, "run `python -m benchmarks.tables`"
