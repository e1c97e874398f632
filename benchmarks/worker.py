"""One provider on one case, in a process of its own: a lack of memory or a crash there is a result, not the end."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks import memory
from benchmarks.assignment import PROVIDERS, Case, compute, gate, make_inputs
from benchmarks.timed import Timed, Timing

ANSWER_S, END_S = 300, 10

TIMING = {
    "cpu": Timing(rounds=10, share_s=0.3, calls=(1, 50), enough_s=3, fewest=3),
    "cuda": Timing(rounds=10, share_s=0.1, calls=(2, 50), enough_s=15, fewest=6),
    "quick": Timing(rounds=2, share_s=0.01, calls=(2, 5), enough_s=3, fewest=3),
}


class Bench(Timed):
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
        super().__init__(device, timing, threads, limit_bytes)
        self.case, self.seed = case, seed
        torch.set_float32_matmul_precision("high" if case.precision == "tf32" else "highest")
        self.provider = PROVIDERS[case.op][provider]()

    def gate(self) -> dict[str, Any]:
        """See [`benchmarks.assignment.gate`]; its inputs have the seed after that of the timed ones."""
        return gate(self.case, self.provider, self.device, self.seed + 1)

    def prepare(self) -> dict[str, Any]:
        """Makes the inputs, calls once, and measures the memory of a second call."""
        self.inputs = make_inputs(self.case, self.device, self.seed)
        return super().prepare()

    def _call(self) -> None:
        compute(self.case.op, self.provider, self.inputs)


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
    """A [`Local`] in a process of its own; that the process dies or does not answer is an answer too.

    Args:
        answer_s: seconds that a method may take.
        parent: whether the process may start processes itself; one that may not ends with this one in any case.
    """

    def __init__(
        self, build: Callable[..., Any], *arguments: Any, answer_s: float = ANSWER_S, parent: bool = False
    ) -> None:
        self.answer_s = answer_s
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.worker"])  # imported once: a process then starts at once
        self._connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, build, arguments), daemon=not parent)
        self.process.start()
        other.close()

    def call(self, name: str) -> dict[str, Any]:
        """What the method returns, or the [`failure`] that it ended in."""
        try:
            self._connection.send(name)
            if not self._connection.poll(self.answer_s):
                self.process.kill()
                return {"unavailable": f"no answer within {self.answer_s} s"}
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
