"""One provider on one case, in a process of its own: a lack of memory or a crash there is a result, not the end."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks import memory
from benchmarks.assignment import PROVIDERS, Case, compute, gate, make_inputs

ANSWER_S, END_S = 300, 10


@dataclass(frozen=True)
class Timing:
    """How often a provider is called; rounds of the providers alternate.

    Attributes:
        share_s: seconds of a round, in as many calls as fit, but within the bounds `calls`.
        enough_s: a provider has no more rounds once it has taken this long in `fewest` timed calls or more.
    """

    rounds: int
    share_s: float
    calls: tuple[int, int]
    enough_s: float
    fewest: int


TIMING = {
    "cpu": Timing(rounds=10, share_s=0.3, calls=(1, 50), enough_s=3, fewest=3),
    "cuda": Timing(rounds=10, share_s=0.1, calls=(2, 50), enough_s=15, fewest=6),
    "quick": Timing(rounds=2, share_s=0.01, calls=(2, 5), enough_s=3, fewest=3),
}


class Bench:
    """A provider on a case, in this process: `gate`, then `prepare`, then `round` as often as wanted."""

    def __init__(
        self,
        case: Case,
        provider: str,
        device: str,
        seed: int,
        timing: Timing,
        threads: int,
        limit_bytes: int | None = None,
    ):
        self.case, self.device, self.seed, self.timing = case, device, seed, timing
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("high" if case.precision == "tf32" else "highest")
        if limit_bytes is not None:
            memory.limit_memory(limit_bytes)
        self.provider = PROVIDERS[case.op][provider]()

    def gate(self) -> dict[str, Any]:
        """See [`benchmarks.assignment.gate`]; its inputs have the seed after that of the timed ones."""
        return gate(self.case, self.provider, self.device, self.seed + 1)

    def prepare(self) -> dict[str, Any]:
        """Makes the inputs, calls once, and measures the memory of a second call."""
        self.inputs = make_inputs(self.case, self.device, self.seed)
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
            self.estimate_s = self._times(1)[0] / 1000
        fits = int(timing.share_s / max(self.estimate_s, 1e-9))
        times = self._times(min(max(fits, timing.calls[0]), timing.calls[1]))
        if self.device == "cuda":
            memory.trim(self.device)  # other providers' processes need the memory that this one's cache holds
        return {"ms": times}

    def _call(self) -> None:
        compute(self.case.op, self.provider, self.inputs)

    def _times(self, calls: int) -> list[float]:
        if self.device == "cuda":
            return cuda_times(self._call, calls)
        times = []
        for _ in range(calls):
            start = time.perf_counter()
            self._call()
            times.append(1000 * (time.perf_counter() - start))
        return times


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


def failure(error: BaseException) -> dict[str, str]:
    """An error as a result: `out_of_memory` or `unavailable`, with its first line."""
    lines = str(error).strip().splitlines() or ["no message"]
    kind = "out_of_memory" if memory.is_lack_of_memory(error) else "unavailable"
    return {kind: f"{type(error).__name__}: {lines[0][:300]}"}


class Local:
    """Calls methods of what `build(*arguments)` makes in this process; an error is an answer."""

    def __init__(self, build: Callable[..., Any], *arguments: Any):
        self._build, self._arguments, self._built = build, arguments, None

    def call(self, name: str) -> dict[str, Any]:
        """What the method returns, or the [`failure`] that it ended in."""
        try:
            if self._built is None:
                self._built = self._build(*self._arguments)
            answer: dict[str, Any] = getattr(self._built, name)()
        except Exception as error:
            answer = failure(error)
        return answer

    def close(self) -> None:
        """Forgets what was built."""
        self._built = None


class Isolated:
    """A [`Local`] in a process of its own; that the process dies or does not answer is an answer too."""

    def __init__(self, build: Callable[..., Any], *arguments: Any):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.worker"])  # imported once: a process then starts at once
        self._connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, build, arguments), daemon=True)
        self.process.start()
        other.close()

    def call(self, name: str) -> dict[str, Any]:
        """What the method returns, or the [`failure`] that it ended in."""
        try:
            self._connection.send(name)
            if not self._connection.poll(ANSWER_S):
                self.process.kill()
                return {"unavailable": f"no answer within {ANSWER_S} s"}
            return self._connection.recv()
        except (EOFError, OSError):
            self.process.join()
        code = self.process.exitcode or 0
        if code == -signal.SIGKILL:
            return {"out_of_memory": "the system killed the process (signal 9), as it does when memory runs out"}
        return {"unavailable": f"the process ended with {f'signal {-code}' if code < 0 else f'status {code}'}"}

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()  # it returns when nothing more can come
        self.process.join(END_S)
        self.process.kill()
        self.process.join()


def _serve(connection: Connection, build: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes beside this one
    local = Local(build, *arguments)
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        connection.send(local.call(name))
