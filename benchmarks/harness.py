"""What the benchmarks share: a call that is timed, in a process of its own, in turns with what it is compared with.

The memory of a call is what its process grows by, so each way to compute something has a process for itself; a lack of
memory or a crash there is a result and not the end.
"""

import argparse
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Timer

from benchmarks import memory
from lgq_hf.provenance import provenance

Row = dict[str, Any]
END_S = 10
REASONS = ("refused", "out_of_memory", "unavailable")


@dataclass(frozen=True)
class Timing:
    """How often something is called; rounds of what is compared alternate.

    Attributes:
        share_s: seconds of a round, in as many calls as fit, but within the bounds `calls`.
        enough_s: there are no more rounds once three or more have taken this long.
    """

    rounds: int
    share_s: float
    calls: tuple[int, int]
    enough_s: float


class Timed:
    """A call that is measured: a subclass defines `_call`; then `prepare`, then `round` as often as wanted."""

    def __init__(self, device: str, timing: Timing, threads: int, limit_bytes: int | None = None) -> None:
        self.device, self.timing = device, timing
        torch.set_num_threads(threads)
        if limit_bytes is not None:
            memory.limit_memory(limit_bytes)

    def _call(self) -> None:
        """What is measured."""
        raise NotImplementedError

    def prepare(self) -> Row:
        """Calls once, and measures the memory of a second call."""
        if memory.reset_peak(self.device):
            self._call()  # compiles, and starts what libraries start once
        start = time.perf_counter()
        peak_mib = memory.peak_mib(self._call, self.device)
        self.estimate_s = time.perf_counter() - start
        memory.trim(self.device)
        return {"peak_mib": peak_mib}

    def round(self) -> Row:
        """Milliseconds of a call, the mean of one round, and how many were timed."""
        fits = int(self.timing.share_s / max(self.estimate_s, 1e-9))
        calls = min(max(fits, self.timing.calls[0]), self.timing.calls[1])
        self.estimate_s = seconds(self._call, calls)
        if self.device == "cuda":
            memory.trim(self.device)  # other processes need the memory that this one's cache holds
        return {"ms": 1000 * self.estimate_s, "calls": calls}


def seconds(call: Callable[[], Any], calls: int = 1) -> float:
    """Of a call, the mean of `calls` calls behind two that are not timed; a GPU is waited for."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return float(timer.timeit(calls).mean)


class Isolated:
    """What `build(*arguments)` makes, in a process of its own; that it dies or does not answer is an answer too.

    Args:
        answer_s: seconds that a method may take.
        parent: whether the process may start processes itself; one that may not ends with this one in any case.
    """

    def __init__(
        self, build: Callable[..., Any], *arguments: Any, answer_s: float = 300, parent: bool = False
    ) -> None:
        self.answer_s = answer_s
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.harness"])  # imported once: a process then starts at once
        self._connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, build, arguments), daemon=not parent)
        self.process.start()
        other.close()

    def begin(self, name: str, *arguments: Any) -> None:
        """Lets it call a method; [`answer`] waits for what that returns."""
        try:
            self._connection.send((name, arguments))
        except OSError:  # it has ended, which `answer` tells
            self.process.join()

    def answer(self) -> Row:
        """What the method returned, or why it did not: `out_of_memory` or `unavailable`."""
        try:
            if not self._connection.poll(self.answer_s):
                self.process.kill()
                return {"unavailable": f"no answer within {self.answer_s} s"}
            answer: Row = self._connection.recv()
            return answer
        except (EOFError, OSError):
            self.process.join()
        code = self.process.exitcode or 0
        if code == -signal.SIGKILL:
            return {"out_of_memory": "the system killed the process (signal 9), as it does when memory runs out"}
        return {"unavailable": f"the process ended with {f'signal {-code}' if code < 0 else f'status {code}'}"}

    def call(self, name: str, *arguments: Any) -> Row:
        """Calls a method, and waits for its [`answer`]."""
        self.begin(name, *arguments)
        return self.answer()

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()  # it returns when nothing more can come
        self.process.join(END_S)
        self.process.kill()
        self.process.join()


def _serve(connection: Connection, build: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes beside this one
    built = None
    while True:
        try:
            name, given = connection.recv()
        except EOFError:
            return
        try:
            built = build(*arguments) if built is None else built
            answer = getattr(built, name)(*given)
        except Exception as error:  # whatever it is, it is the row's reason
            answer = failure(error)
        connection.send(answer)


def failure(error: BaseException) -> Row:
    """An error as a result: `out_of_memory` or `unavailable`, with its first line."""
    lines = str(error).strip().splitlines() or ["no message"]
    kind = "out_of_memory" if memory.is_lack_of_memory(error) else "unavailable"
    return {kind: f"{type(error).__name__}: {lines[0][:300]}"}


def reason_of(row: Row | None) -> str | None:
    """Why a row has no figures; `None` where it has."""
    if row is None:
        return "not measured"
    return next((f"{key.replace('_', ' ')}: {row[key]}" for key in REASONS if key in row), None)


Gate = Callable[[Any, dict[str, Row]], Row]


def admit(
    names: Iterable[str],
    start: Callable[[str], Any],
    stack: ExitStack,
    gate: Gate = lambda worker, rows: worker.call("gate"),
) -> tuple[dict[str, Any], dict[str, Row]]:
    """Starts a worker for each name: those that pass the gate, with their memory, and a row for each name.

    Args:
        start: makes an [`Isolated`].
        stack: closes the workers in the end.
        gate: asks a worker for its gate, in view of the rows before; `failures` there refuse it.
    """
    workers: dict[str, Any] = {}
    rows: dict[str, Row] = {}
    for name in names:
        worker = start(name)
        stack.callback(worker.close)
        row = gate(worker, rows)
        if reason_of(row) is None:
            failures = row.pop("failures")
            row = {"refused": "; ".join(failures), "gate": row} if failures else {"gate": row}
        if not reason_of(row):
            row |= worker.call("prepare")
        rows[name] = row
        if reason_of(row):
            worker.close()
        else:
            workers[name] = worker
    return workers, rows


def time_in_turns(workers: dict[str, Any], rows: dict[str, Row], timing: Timing) -> None:
    """Rounds of all workers in turn, so that what else the machine does meets all alike; adds the times to `rows`."""
    rounds: dict[str, list[Row]] = {name: [] for name in workers}
    for _ in range(timing.rounds):
        for name in list(workers):
            done = rounds[name]
            if len(done) >= 3 and sum(one["ms"] * one["calls"] for one in done) >= 1000 * timing.enough_s:
                continue
            answer = workers[name].call("round")
            if reason_of(answer):
                rows[name] = answer
                workers.pop(name).close()
            else:
                done.append(answer)
    for name in workers:
        values = np.percentile([one["ms"] for one in rounds[name]], (20, 50, 80))
        rows[name]["ms"] = dict(zip(("p20", "p50", "p80"), map(float, values), strict=True))
        rows[name]["calls"] = sum(one["calls"] for one in rounds[name])


def compare(rows: dict[str, Row], base: str, amount: int) -> None:
    """Turns milliseconds into seconds; adds pictures a second, `amount` a call, and ratios to the row `base`."""
    for row in rows.values():
        if "ms" in row:
            row["seconds"] = {name: value / 1000 for name, value in row.pop("ms").items()}
            row["pictures_per_s"] = amount / row["seconds"]["p50"]
    first = rows.get(base, {})
    for row in rows.values():
        if "seconds" in row and "seconds" in first:
            row[f"speed_against_{base}"] = first["seconds"]["p50"] / row["seconds"]["p50"]
            row[f"memory_against_{base}"] = row["peak_mib"] / first["peak_mib"] if first["peak_mib"] else None


def line(name: str, row: Row) -> str:
    """A row for the terminal."""
    if (reason := reason_of(row)) is not None:
        return f"{name:46} {reason}"
    time_ms = row["ms"]["p50"] if "ms" in row else 1000 * row["seconds"]["p50"]
    speeds = {key.removeprefix("speed_against_"): row[key] for key in row if key.startswith("speed_against_")}
    ratios = "  ".join(f"{speed:.2f}x {other}" for other, speed in speeds.items() if speed is not None)
    return f"{name:46} {time_ms:10.3f} ms {row['peak_mib']:10.1f} MiB   {ratios}"


def gpu_rates() -> dict[str, float]:
    """TFLOP/s of an 8192^3 product on the GPU in each precision, and GB/s read and written by a copy of 2 GiB."""
    side, copied, result = 8192, 2**31, {}
    before = torch.get_float32_matmul_precision()
    for precision in ("fp32", "tf32", "bf16"):
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = (torch.randn(side, side, device="cuda").to(dtype) for _ in range(2))
        result[f"{precision}_tflop_per_s"] = 2 * side**3 / seconds(partial(torch.matmul, a, b), 20) / 1e12
    torch.set_float32_matmul_precision(before)
    a, b = (torch.zeros(copied, dtype=torch.uint8, device="cuda") for _ in range(2))
    result["copy_gb_per_s"] = 2 * copied / seconds(partial(a.copy_, b), 20) / 1e9
    memory.trim("cuda")
    return result


def result_name(what: str, device: str, quick: bool) -> str:
    """<what>_cpu or <what>_cuda_<GPU>; quick runs have a name that nothing renders."""
    where = device
    if device == "cuda":
        where += "_" + re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return f"quick_{what}_{where}" if quick else f"{what}_{where}"


def begin(arguments: argparse.Namespace) -> tuple[Row, int | None]:
    """Sets the threads; returns what a result begins with, and by how much a process may grow.

    Raises:
        SystemExit: a GPU that is not there, or kernels that would be interpreted.
    """
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no GPU here; run on a machine with one, or with --device cpu")
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        sys.exit("TRITON_INTERPRET is set, so kernels would be interpreted: unset it to measure them")
    limit_bytes = None
    if arguments.device == "cpu":
        gib = arguments.memory_gib
        limit_bytes = int(gib * 2**30) if gib is not None else memory.available_bytes() * 3 // 4
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    provenance()  # where it fails, it should before anything is measured
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"this machine is busy (load average {load:.1f}): times will be too long", file=sys.stderr)
    result: Row = {"seed": arguments.seed, "load_average": load}
    return result, limit_bytes


def shared_protocol(device: str, limit_bytes: int | None) -> Row:
    """How time and memory come about in any benchmark."""
    return {
        "time": "torch.utils.benchmark, the mean of a round's calls, percentiles over rounds; a process for each row, "
        "rounds alternate",
        "memory": memory.method(device),
        "memory_limit_gib": None if limit_bytes is None else limit_bytes / 2**30,
    }
