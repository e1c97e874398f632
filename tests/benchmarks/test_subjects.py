"""What is timed is right, what is wrong is refused, and the tables say what was measured."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import assignment, generate, photographs, run, straight_through_gain, tables, tokenizing, training_step
from benchmarks.assignment import CASES, PROVIDERS, TIMING, AssignmentBench, Case, gate
from benchmarks.generate import AutoregressiveBench, MaskedBench
from benchmarks.harness import Isolated, compare, failure
from benchmarks.step_parts import StepParts, count_flop
from benchmarks.training_step import LOSSES, NORMS, StepBench, disagreements, write_photographs
from lgq_hf.tokenizer.assignment import nearest_code, soft_assign

SOFT, NEAREST = CASES["quick"]
Provider = Callable[..., Any]


class Local:
    """As `Isolated`, in this process."""

    def __init__(self, build: Callable[..., Any], *arguments: Any) -> None:
        self.build, self.arguments, self.built = build, arguments, None

    def call(self, name: str, *arguments: Any) -> Any:
        try:
            self.built = self.build(*self.arguments) if self.built is None else self.built
            return getattr(self.built, name)(*arguments)
        except Exception as error:
            return failure(error)

    def close(self) -> None:
        self.built = None


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("LGQ_COMMIT", "0123456789abcdef")  # with a git history or without


def in_this_process(case: Case, provider: str) -> Local:
    return Local(AssignmentBench, case, provider, 0, "cpu", TIMING["quick"], 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["assignment"], ["training_step", "--variant", "materialised"], ["tokenize"], ["generate"]], ids=" ".join
)
def test_a_quick_run_gives_figures_and_a_table(words: list[str], tmp_path: Path) -> None:
    assert run.main([*words, "--quick", "--seed", "5", "--threads", "1", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / f"quick_{words[0]}_cpu.json").read_text())
    assert {"commit", "versions", "hardware", "protocol", "seed", "load_average"} <= result.keys()
    assert (result["commit"], result["seed"]) == ("0123456789abcdef", 5)
    (tmp_path / f"{words[0]}_cpu.json").write_text(json.dumps(result))
    marker = "assignment:cpu" if words == ["assignment"] else words[0]
    text = tables.render(f"<!-- rendered: {marker} --><!-- end -->", tmp_path)
    assert "seed 5." in text and text.count("|") > 30


def test_memory_and_speed_of_a_case_are_measured() -> None:
    rows = assignment.measure_case(SOFT, ["reference", "chunked"], in_this_process, TIMING["quick"])["providers"]
    for row in rows.values():
        assert 0 < row["ms"]["p20"] <= row["ms"]["p50"] <= row["ms"]["p80"] and row["calls"] >= 2
    assert rows["reference"]["peak_mib"] > SOFT.rows * SOFT.codes * 4 / 2**20  # it holds the matrix
    ratio = rows["reference"]["ms"]["p50"] / rows["chunked"]["ms"]["p50"]
    assert rows["chunked"]["speed_against_reference"] == pytest.approx(ratio)
    assert rows["chunked"]["speed_against_eager"] is None


def scaled_gradient(x: torch.Tensor, centers: torch.Tensor, temperature: torch.Tensor) -> Any:
    return soft_assign(x * 1.0005 - (x * 0.0005).detach(), centers, temperature, backend="chunked")


def no_usage_gradient(x: torch.Tensor, centers: torch.Tensor, temperature: torch.Tensor) -> Any:
    result = soft_assign(x, centers, temperature, backend="chunked")
    return result._replace(usage_K=result.usage_K.detach() + 0 * centers.sum())


def no_peak_gradient(x: torch.Tensor, centers: torch.Tensor, temperature: torch.Tensor) -> Any:
    result = soft_assign(x, centers, temperature, backend="chunked")
    return result._replace(peak_N=result.peak_N.detach() + 0 * x.sum())


def never_written(x: torch.Tensor, centers: torch.Tensor, temperature: torch.Tensor) -> Any:
    result = soft_assign(x, centers, temperature, backend="chunked")
    return result._replace(usage_K=torch.empty(len(centers)) + 0 * result.usage_K)


def next_index(x: torch.Tensor, centers: torch.Tensor, temperature: torch.Tensor) -> Any:
    result = soft_assign(x, centers, temperature, backend="chunked")
    return result._replace(index_N=(result.index_N + 1) % len(centers))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (scaled_gradient, "d_x differs from the float64 reference by 5.0.e-04, allowed "),
        (no_usage_gradient, "d_centers differs"),
        (no_peak_gradient, "d_centers differs"),
        (never_written, "usage differs from the float64 reference by nan"),
        (next_index, "index is wrong in 51. of 512 rows"),
    ],
)
def test_gate_sees_what_is_wrong(wrong: Provider, reason: str) -> None:
    assert gate(SOFT, lambda *inputs: soft_assign(*inputs, backend="chunked"), "cpu", 0)["failures"] == []
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError("; ".join(gate(SOFT, wrong, "cpu", 0)["failures"]))


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_gate_of_the_other_precisions(precision: Any) -> None:
    case = Case("case", "soft_assign", 1, 16, 1, precision)
    for name in ("reference", "eager", "chunked"):
        assert gate(case, PROVIDERS["soft_assign"][name](), "cpu", 0)["failures"] == []
    assert gate(case, next_index, "cpu", 0)["failures"] != []


def test_index_out_of_range_is_wrong_and_another_type_an_error() -> None:
    failures = gate(NEAREST, lambda x, c: nearest_code(x, c) + 1024, "cpu", 0)["failures"]
    assert failures and failures[0].startswith("index is wrong in 512 of 512 rows")
    with pytest.raises(ValueError, match=r"index must be int64 \(512,\), got torch.int32"):
        gate(NEAREST, lambda x, c: nearest_code(x, c).int(), "cpu", 0)


def test_wrong_and_hungry_providers_are_not_timed_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(x: torch.Tensor, *rest: Any) -> Any:
        if len(x) == 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16.00 GiB")
        return soft_assign(x, *rest)

    monkeypatch.setitem(PROVIDERS["soft_assign"], "eager", lambda: hungry)
    monkeypatch.setitem(PROVIDERS["soft_assign"], "chunked", lambda: next_index)
    case = Case("case", "soft_assign", 300, 8, 512)
    names = ["reference", "eager", "chunked", "triton"]
    rows = assignment.measure_case(case, names, in_this_process, TIMING["quick"])["providers"]
    assert "16.00 GiB" in rows["eager"]["out_of_memory"] and "index is wrong" in rows["chunked"]["refused"]
    assert "CUDA" in rows["triton"]["unavailable"]
    assert [name for name in names if "ms" in rows[name]] == ["reference"]


@pytest.mark.slow
def test_a_process_over_its_limit_or_killed_is_a_result() -> None:
    big = Case("case", "nearest_code", 4096, 8, 2**17)  # 2 GiB of distances
    worker = Isolated(AssignmentBench, big, "cdist+argmin", 0, "cpu", TIMING["quick"], 1, 500 * 2**20)
    assert worker.call("gate")["failures"] == []
    answer = worker.call("prepare")
    assert list(answer) == ["out_of_memory"], answer
    worker.process.kill()
    assert "signal 9" in worker.call("gate")["out_of_memory"]
    worker.close()


def test_wrong_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="soft-k9"):
        run.main(["assignment", "--quick", "--only", "soft-k9"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU"):
        run.main(["assignment", "--device", "cuda"])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="TRITON_INTERPRET"):
        run.main(["generate"])


@pytest.fixture
def bench() -> StepBench:
    setting = training_step.SETTINGS["quick"]
    return StepBench("step", setting, 4, "cpu", 0, 1)


def values(**changes: float) -> list[dict[str, float]]:
    return [dict.fromkeys(LOSSES + NORMS, 1.0), {**dict.fromkeys(LOSSES + NORMS, 1.0), **changes}]


def test_variants_must_agree_in_losses_and_norms() -> None:
    assert disagreements(values(loss=1.0005), values(), "no") == (pytest.approx(5e-4), [])
    for name, value in {"l1_loss": 1.02, "grad_norm": 1.06, "loss": float("nan")}.items():
        (said,) = disagreements(values(**{name: value}), values(), "no")[1]
        assert said.startswith(f"{name} of step 2 ")
    assert disagreements(values(loss=1.05), values(), "bf16")[1] == []


def test_a_step_agrees_with_itself_and_its_parts_with_it(bench: StepBench) -> None:
    first = bench.gate(None)
    assert first["failures"] == [] and len(first["values"]) == 2 and first["values"][0] != first["values"][1]
    parts = StepParts(bench.step, bench.pixels, bench.number)
    kept = {id(parameter): gradient.clone() for parameter, gradient in parts.gradients}
    model = bench.step.model
    parts.networks()
    assert model.quantizer.centers.grad is None
    for module in (model.encoder, model.decoder):
        for parameter in module.parameters():
            torch.testing.assert_close(parameter.grad, kept[id(parameter)])
    parts.quantizer()
    torch.testing.assert_close(model.quantizer.centers.grad, kept[id(model.quantizer.centers)])
    before = model.quantizer.centers.detach().clone()
    parts.bookkeeping()
    assert bool((model.quantizer.centers != before).any())
    flop = count_flop(bench._call, bench.step, bench.pixels)
    assert flop["quantizer"] == 7 * 2 * 1024 * 512 * 8 and flop["total"] == flop["networks"] + flop["quantizer"]


def test_photographs_are_never_enlarged(tmp_path: Path) -> None:
    assert write_photographs(tmp_path, (302, 5000)) == 13  # chelsea.png has 300 px
    assert not (tmp_path / "chelsea-302.png").exists() and photographs.shorter_side("chelsea.png") == 300


DECODING = replace(generate.SETTINGS["quick"], codes=32, side=3)


def decoder(variant: str) -> AutoregressiveBench:
    return AutoregressiveBench(variant, DECODING, "cpu", 0, 1, None)


def test_every_way_of_decoding_passes_the_gate_and_a_wrong_token_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for variant in ("generate", "generate_static", "dynamic", "static"):
        one = decoder(variant)
        assert one.gate()["failures"] == [], variant
        assert torch.equal(one.tokens(greedy=True), decoder("generate").tokens(greedy=True))
        assert not torch.equal(one.tokens(greedy=True), one.tokens(greedy=False))
    tokens = one.tokens(greedy=True)
    tokens[1, 8] = (tokens[1, 8] + 1) % 32
    monkeypatch.setattr(one, "tokens", lambda *, greedy: tokens)
    assert len(one.gate()["failures"]) == 1


def test_masked_steps_are_judged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    one = MaskedBench(3, DECODING, "cpu", 0, 1, None)
    assert one.gate()["failures"] == []
    draws = iter([torch.zeros(1), torch.full((1,), 32.0)])
    monkeypatch.setattr(one, "tokens", lambda: next(draws))
    assert one.gate()["failures"] == ["the same seed gave other tokens"]


def test_rows_are_compared() -> None:
    rows: dict[str, Any] = {
        "a": {"ms": {"p50": 2000.0}, "peak_mib": 8.0},
        "b": {"ms": {"p50": 500.0}, "peak_mib": 2.0},
        "c": {"refused": "wrong"},
    }
    compare(rows, "a", 8)
    assert (rows["b"]["pictures_per_s"], rows["b"]["speed_against_a"], rows["b"]["memory_against_a"]) == (16, 4, 0.25)
    assert rows["c"] == {"refused": "wrong"}


def test_tokens_in_the_files_are_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = replace(tokenizing.SETTINGS["quick"], pictures=8, rounds=1)
    tokenizing.make_pictures(tmp_path / "images", 8, 0)
    parts = tokenizing.Parts(tokenizing.make_job(tmp_path / "images", tmp_path / "tokens", None, setting), "cpu")
    parts.whole(0)
    assert parts.gate() is None
    monkeypatch.setattr(parts.encoder, "table", parts.encoder.table.clone().flip(1))  # negatives of the images
    row = tokenizing.measure_parts(parts, setting)
    assert list(row) == ["refused"] and row["refused"].endswith(" differ")


def test_storage_is_near_the_bound(tmp_path: Path) -> None:
    row = tokenizing.storage(tmp_path, 256, 16384, 0)
    assert row["equal"] and row["bound"] == 1.75 < row["parquet_bytes_a_token"] < 1.95


def test_gain_falls_with_the_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(straight_through_gain, "ROWS", 16)
    monkeypatch.setattr(straight_through_gain, "CODES", 256)
    warm, cold = (float(straight_through_gain.gains(temperature).median()) for temperature in (1.0, 0.1))
    assert warm != cold and warm > 0


def _row(p50: float, mib: float, **more: Any) -> dict[str, Any]:
    speeds = {"speed_against_reference": None, "speed_against_eager": 40 / p50}
    return {"ms": {"p20": p50 * 0.9, "p50": p50, "p80": p50 * 1.1}, "peak_mib": mib, **speeds, **more}


@pytest.fixture
def h100() -> dict[str, Any]:
    """A result file of a GPU as `run` writes it."""
    cases = {case.name: case for case in CASES["cuda"]}
    rows: dict[str, dict[str, dict[str, Any]]] = {
        "soft-fp32": {"reference": _row(80, 6400), "triton": _row(8, 64)},
        "soft-bf16": {"reference": _row(79, 6400), "triton": {"refused": "d_x differs | by 1"}},
        "soft-k262144": {"reference": {"out_of_memory": "OutOfMemoryError: 16 GiB"}, "triton": _row(130, 700)},
        "nearest-k262144": {"cdist+argmin": {"out_of_memory": "OutOfMemoryError"}, "triton": _row(5, 1)},
    }
    measured = {
        name: {"op": case.op, "rows": case.rows, "channels": 64, "codes": case.codes, "precision": case.precision}
        | {"providers": rows[name]}
        for name, case in cases.items()
        if name in rows
    }
    rates = {"fp32_tflop_per_s": 50.0, "tf32_tflop_per_s": 400.0, "bf16_tflop_per_s": 700.0, "copy_gb_per_s": 2900.0}
    for name, case in measured.items():
        assignment.add_products(case, cases[name], rates)
    return {
        "commit": "0123456789abcdef",
        "versions": {"lgq_hf": "0.1.0", "torch": "2.11.0", "triton": None},
        "hardware": {"cpu": "a CPU", "threads": 16, "gpu": "NVIDIA H100 80GB HBM3"},
        "seed": 7,
        "load_average": 0.2,
        "gpu_rates": rates,
        "cases": measured,
    }


def test_table(h100: dict[str, Any]) -> None:
    lines = tables.assignment_table(h100).splitlines()
    assert lines[0] == (
        "| case | provider | p20 / p50 / p80 ms | peak MiB | speed against reference | against eager |"
    )
    shape = "soft_assign, forward and backward; N=16384 C=64"
    assert f"| soft-fp32: {shape} K=16384 fp32 | triton | 7.2 / 8 / 8.8 | 64 |  | 5x |" in lines
    assert f"| soft-bf16: {shape} K=16384 bf16 | triton | refused: d_x differs \\| by 1 |  |  |  |" in lines
    oom = "| reference | out of memory: OutOfMemoryError: 16 GiB |  |  |  |"
    assert f"| soft-k262144: {shape} K=262144 fp32 {oom}" in lines
    assert "| soft-fp32 | 4.81 | reference 16.6, triton 1.66 |" in lines  # 7 * 2 * 16384^2 * 64 FLOP at 50 TFLOP/s
    end = "on NVIDIA H100 80GB HBM3 at commit `0123456789ab` with torch 2.11.0; seed 7."
    assert lines[-1].endswith(end)
    h100["load_average"] = 3.0
    assert "(busy: load average 3.0 before)" in tables.assignment_table(h100)


def test_targets_are_judged(h100: dict[str, Any]) -> None:
    lines = tables.assignment_table(h100).splitlines()
    assert "| soft-fp32: triton at least 10x faster than reference | 10 | met |" in lines
    assert "| soft-fp32: triton at most 1/50 of the memory of reference | 100 | met |" in lines
    assert "| soft-fp32: triton at most 2.5x the seven products alone | 1.66 | met |" in lines
    refused = "triton refused: d_x differs \\| by 1"
    assert f"| soft-bf16: triton at least 10x faster than reference |  | {refused} |" in lines
    assert "| soft-tf32: triton at least 10x faster than reference |  | triton not measured |" in lines
    assert "| soft-k262144: triton at most 2048 MiB | 700 | met |" in lines
    growth = "| soft-k262144: triton from soft-fp32, time grows at most 1x as K does | 1.02 | missed |"
    assert growth in lines
    reason = "cdist+argmin out of memory: OutOfMemoryError"
    assert f"| nearest-k262144: triton at least 5x faster than cdist+argmin |  | {reason} |" in lines


def test_a_target_that_is_missed_and_a_gpu_without_targets(h100: dict[str, Any]) -> None:
    target = tables.Target("soft-fp32", "triton", "speed", 10.5, "reference")
    assert tables.judge(target, h100) == (10, "missed")
    h100["hardware"]["gpu"] = "NVIDIA A10"
    assert "| target |" not in tables.assignment_table(h100)


def test_text_between_markers_is_replaced(tmp_path: Path, h100: dict[str, Any]) -> None:
    text = "# Kernels\n<!-- rendered: assignment:cuda -->old<!-- end -->\nend\n"
    rendered = tables.render(text, tmp_path)
    assert "old" not in rendered and rendered.startswith("# Kernels\n") and rendered.endswith("-->\nend\n")
    assert "not measured on a GPU yet" in rendered
    (tmp_path / "assignment_cuda_nvidia-h100.json").write_text(json.dumps(h100))
    again = tables.render(rendered, tmp_path)
    assert tables.assignment_table(h100) in again and tables.render(again, tmp_path) == again
    for broken in ("no markers", "<!-- end -->", "<!-- rendered: tokenize -->"):
        with pytest.raises(ValueError, match="marker|expected|without"):
            tables.render(broken, tmp_path)


def test_rendered_tables_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_command_renders_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "README.md"
    file.write_text("<!-- rendered: training_step -->\n\n<!-- end -->\n")
    assert tables.main([str(file), "--check"]) == 1
    assert tables.main([str(file)]) == 0 and tables.main([str(file), "--check"]) == 0
    assert "| variant |" in file.read_text()
