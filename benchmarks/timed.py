"""Timing of one call in this process: its memory, then rounds of its time; and what the GPU itself can do."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from benchmarks import memory


@dataclass(frozen=True)
class Timing:
    """How often something is called; rounds of what is compared alternate.

    Attributes:
        share_s: seconds of a round, in as many calls as fit, but within the bounds `calls`.
        enough_s: there are no more rounds once one has taken this long in `fewest` timed calls or more.
    """

    rounds: int
    share_s: float
    calls: tuple[int, int]
    enough_s: float
    fewest: int


class Timed:
    """A call that is measured: a subclass defines `_call`; then `prepare`, then `round` as often as wanted."""

    def __init__(self, device: str, timing: Timing, threads: int, limit_bytes: int | None) -> None:
        self.device, self.timing = device, timing
        torch.set_num_threads(threads)
        if limit_bytes is not None:
            memory.limit_memory(limit_bytes)

    def _call(self) -> None:
        """What is measured."""
        raise NotImplementedError

    def prepare(self) -> dict[str, Any]:
        """Calls once, and measures the memory of a second call."""
        if memory.reset_peak(self.device):
            self._call()  # compiles, and starts what libraries start once
        start = time.perf_counter()
        peak_mib = memory.peak_mib(self._call, self.device)
        self.estimate_s = time.perf_counter() - start
        memory.trim(self.device)
        return {"peak_mib": peak_mib}

    def round(self) -> dict[str, Any]:
        """Milliseconds of the calls of one round, after one that is not timed unless calls are slow."""
        timing = self.timing
        if self.estimate_s < timing.share_s:
            self.estimate_s = times(self._call, 1, self.device)[0] / 1000
        fits = int(timing.share_s / max(self.estimate_s, 1e-9))
        measured = times(self._call, min(max(fits, timing.calls[0]), timing.calls[1]), self.device)
        if self.device == "cuda":
            memory.trim(self.device)  # other processes need the memory that this one's cache holds
        return {"ms": measured}


def times(call: Callable[[], Any], calls: int, device: str) -> list[float]:
    """Milliseconds of each of `calls` calls: by the clock, or on a GPU between events."""
    if device == "cuda":
        return cuda_times(call, calls)
    measured = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        measured.append(1000 * (time.perf_counter() - start))
    return measured


def cuda_times(call: Callable[[], Any], calls: int) -> list[float]:
    """Milliseconds of each of `calls` calls issued one behind the other, between events."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairwise(events)]


class Rates:
    """What the GPU itself can do: plain matrix products and a copy."""

    SIDE, COPY_BYTES = 8192, 2**31

    def rates(self) -> dict[str, float]:
        """TFLOP/s of an 8192^3 product in each precision, and GB/s read and written by a copy of 2 GiB."""
        result = {}
        for precision in ("fp32", "tf32", "bf16"):
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            a, b = (torch.randn(self.SIDE, self.SIDE, device="cuda").to(dtype) for _ in range(2))
            result[f"{precision}_tflop_per_s"] = 2 * self.SIDE**3 / self._median_s(torch.matmul, a, b) / 1e12
        a, b = (torch.zeros(self.COPY_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
        result["copy_gb_per_s"] = 2 * self.COPY_BYTES / self._median_s(a.copy_, b) / 1e9
        return result

    def _median_s(self, call: Callable[..., Any], *arguments: Any) -> float:
        cuda_times(lambda: call(*arguments), 5)
        return sorted(cuda_times(lambda: call(*arguments), 21))[10] / 1000
