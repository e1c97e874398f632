import json
import multiprocessing
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import run, tables
from benchmarks.assignment import CASES, PROVIDERS, TARGETS, Case, Target, gate
from benchmarks.worker import TIMING, Bench, Isolated, Local
from lgq_hf.tokenizer.assignment import nearest_code, soft_assign

SOFT, NEAREST = CASES["quick"]
Provider = Callable[..., Any]


def in_this_process(case: Case, provider: str) -> Local:
    return Local(Bench, case, provider, "cpu", 0, TIMING["quick"], 1)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("LGQ_COMMIT", "0123456789abcdef")  # with a git history or without
    # started here, so that what the processes of all benchmarks import is imported once
    multiprocessing.get_context("forkserver").set_forkserver_preload(["benchmarks.worker", "benchmarks.step_worker"])
    forkserver.ensure_running()


@pytest.fixture
def replace(monkeypatch: pytest.MonkeyPatch) -> Callable[[Case, str, Provider], None]:
    """Puts another function in a provider's place."""

    def put(case: Case, name: str, provider: Provider) -> None:
        monkeypatch.setitem(PROVIDERS[case.op], name, lambda: provider)

    return put


def test_quick_run_writes_every_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    providers = ["reference", "eager", "cdist+argmin", "chunked", "triton"]  # to compile would take longer
    arguments = [
        "assignment",
        "--quick",
        "--seed",
        "5",
        "--threads",
        "1",
        "--output",
        str(tmp_path),
        "--provider",
        *providers,
    ]
    assert run.main(arguments) == 0
    result = json.loads((tmp_path / "quick_assignment_cpu.json").read_text())
    assert {"commit", "versions", "hardware", "protocol", "seed", "load_average"} <= result.keys()
    assert result["commit"] == "0123456789abcdef" and result["seed"] == 5
    assert result["hardware"]["threads"] == 1 and "triton" in result["versions"]
    assert list(result["cases"]) == [SOFT.name, NEAREST.name]
    lines = capsys.readouterr().out
    for case in (SOFT, NEAREST):
        measured = result["cases"][case.name]
        assert (measured["op"], measured["codes"], measured["precision"]) == (case.op, case.codes, "fp32")
        assert list(measured["providers"]) == [name for name in PROVIDERS[case.op] if name in providers]
        for name, row in measured["providers"].items():
            assert f"{case.name:20} {name:26} " in lines
            if name == "triton":
                assert "ValueError" in row["unavailable"]  # tensors on the CPU
                continue
            assert 0 < row["ms"]["p20"] <= row["ms"]["p50"] <= row["ms"]["p80"]
            assert row["calls"] >= 3 and row["peak_mib"] >= 0
            assert row["speed_against_reference"] > 0 and row["speed_against_eager"] > 0
            assert all(error <= row["gate"]["limits"][output] for output, error in row["gate"]["errors"].items())
    soft = result["cases"][SOFT.name]["providers"]
    assert soft["reference"]["peak_mib"] > SOFT.rows * SOFT.codes * 4 / 2**20  # it holds the matrix
    assert len(tables.assignment_table(result).splitlines()) > 10


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


def test_wrong_provider_is_refused_and_never_timed(
    tmp_path: Path,
    replace: Callable[[Case, str, Provider], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows_seen = []

    def wrong(x: torch.Tensor, *rest: Any) -> Any:
        rows_seen.append(len(x))
        return scaled_gradient(x, *rest)

    replace(SOFT, "chunked", wrong)
    small = Case(SOFT.name, SOFT.op, 300, SOFT.channels, SOFT.codes)
    monkeypatch.setitem(CASES, "quick", (small,))
    monkeypatch.setattr(run, "Isolated", lambda build, *arguments: Local(build, *arguments[:-1]))  # no limit here
    providers = ["--provider", "reference", "chunked"]
    assert run.main(["assignment", "--quick", "--output", str(tmp_path), *providers]) == 1
    rows = json.loads((tmp_path / "quick_assignment_cpu.json").read_text())["cases"][SOFT.name]["providers"]
    assert rows["chunked"].keys() == {"refused", "gate"}
    assert "d_x differs" in rows["chunked"]["refused"]
    assert rows_seen == [512]  # the gate's, and nothing else
    assert rows["reference"]["speed_against_eager"] is None and rows["reference"]["calls"] >= 3
    assert "chunked" in capsys.readouterr().out


def test_lack_of_memory_is_a_result_and_the_others_go_on(replace: Callable[[Case, str, Provider], None]) -> None:
    def hungry(x: torch.Tensor, *rest: Any) -> Any:
        if len(x) == 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16.00 GiB\nmore")
        return soft_assign(x, *rest)

    def hungry_later(x: torch.Tensor, *rest: Any) -> Any:
        calls.append(len(x))
        if len(calls) > 4:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")
        return soft_assign(x, *rest)

    calls: list[int] = []
    replace(SOFT, "eager", hungry)
    replace(SOFT, "chunked", hungry_later)
    case = Case("case", "soft_assign", 300, 8, 512)
    rows = run.measure_case(case, ["reference", "eager", "chunked"], in_this_process, TIMING["quick"])["providers"]
    assert rows["eager"]["out_of_memory"].endswith("Tried to allocate 16.00 GiB")
    assert "ms" not in rows["eager"] and "ms" not in rows["chunked"]
    assert "can't allocate memory" in rows["chunked"]["out_of_memory"]
    assert rows["reference"]["calls"] >= 3 and rows["reference"]["speed_against_eager"] is None


def test_process_over_its_limit_or_killed_is_a_result() -> None:
    big = Case("case", "nearest_code", 4096, 8, 2**17)  # 2 GiB of distances
    worker = Isolated(Bench, big, "cdist+argmin", "cpu", 0, TIMING["quick"], 1, 500 * 2**20)
    assert worker.call("gate")["failures"] == []
    answer = worker.call("prepare")
    assert list(answer) == ["out_of_memory"], answer
    worker.process.kill()
    assert "signal 9" in worker.call("gate")["out_of_memory"]
    worker.close()


def test_other_errors_are_results_too() -> None:
    worker = Isolated(Bench, SOFT, "no such provider", "cpu", 0, TIMING["quick"], 1)
    assert worker.call("gate") == {"unavailable": "KeyError: 'no such provider'"}
    worker.process.terminate()
    assert worker.call("gate") == {"unavailable": "the process ended with signal 15"}
    worker.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "soft-k1"], "--only: no case soft-k1; there are soft-k16384, "),
        (["--provider", "cuda"], "--provider: no cuda; there are reference, "),
    ],
)
def test_unknown_names(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["assignment", *arguments])
    assert message in capsys.readouterr().err


def test_cuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        run.main(["assignment", "--device", "cuda"])
    assert "--device cuda: torch sees no GPU here" in capsys.readouterr().err


def test_interpreted_kernels_are_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit):
        run.main(["assignment"])
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


def test_name_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert run.result_name("assignment", "cuda", False) == "assignment_cuda_nvidia-h100-80gb-hbm3"
    assert run.result_name("assignment", "cpu", False) == "assignment_cpu"


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
        run.add_products(case, cases[name], rates)
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


def test_targets_name_what_there_is() -> None:
    for kind, device in {"cpu": "cpu", "H100": "cuda"}.items():
        cases = {case.name: case for case in CASES[device]}
        for target in TARGETS[kind]:
            providers = PROVIDERS[cases[target.case].op]
            assert target.provider in providers
            assert target.against in ("", *cases) if target.measure == "growth" else target.against in ("", *providers)


def test_another_gpu_has_no_targets(h100: dict[str, Any]) -> None:
    h100["hardware"]["gpu"] = "NVIDIA A10"
    assert "| target |" not in tables.assignment_table(h100)


def test_target_that_is_missed(h100: dict[str, Any]) -> None:
    target = Target("soft-fp32", "triton", "speed", 10.5, "reference")
    assert tables.judge(target, h100) == (10, "missed")


def test_text_between_markers_is_replaced(tmp_path: Path, h100: dict[str, Any]) -> None:
    cpu, cuda = ("<!-- assignment:cpu -->", "<!-- /assignment:cpu -->"), "<!-- assignment:cuda -->old"
    text = f"# Kernels\n{cpu[0]}old\n\nold{cpu[1]} after\n{cuda}<!-- /assignment:cuda -->\nend\n"
    rendered = tables.render(text, tmp_path)
    assert "old" not in rendered and rendered.startswith("# Kernels\n") and rendered.endswith("-->\nend\n")
    assert "not measured on a GPU yet: run `python -m benchmarks.run assignment --device cuda`" in rendered
    (tmp_path / "assignment_cuda_nvidia-h100.json").write_text(json.dumps(h100))
    (tmp_path / "quick_assignment_cpu.json").write_text("{}")
    again = tables.render(rendered, tmp_path)
    assert tables.assignment_table(h100) in again and "not measured on a CPU yet" in again
    assert tables.render(again, tmp_path) == again


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing", "no markers"),
        ("<!-- assignment:cpu -->", "one '<!-- assignment:cpu -->' and one '<!-- /assignment:cpu -->', got 1 and 0"),
        ("<!-- /assignment:cpu --><!-- assignment:cpu -->", "stands before"),
    ],
)
def test_markers_that_are_not_whole(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tables.render(text)


def test_command_renders_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "README.md"
    file.write_text("<!-- assignment:cuda -->\n<!-- /assignment:cuda -->\n")
    assert tables.main([str(file), "--check"]) == 1
    assert tables.main([str(file)]) == 0
    assert tables.main([str(file), "--check"]) == 0


def test_rendered_tables_are_up_to_date() -> None:
    if not tables.README.exists() or "<!-- assignment:" not in tables.README.read_text():
        pytest.skip("lgq_hf/kernels/README.md has no markers")
    text = tables.README.read_text()
    assert tables.render(text) == text, "run `python -m benchmarks.tables`"
