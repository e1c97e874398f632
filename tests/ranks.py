"""Two processes joined by gloo, started once for a whole session of tests, that run functions by name.

def total(value):  # at the top level of a test's module, as the processes import it
    tensor = torch.tensor(float(value + dist.get_rank()))
    dist.all_reduce(tensor)
    return tensor.item()

def test_total(ranks):
    assert ranks(total, 10) == [21.0, 21.0]
"""

import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

WORLD_SIZE = 2
_PATIENCE = timedelta(seconds=90)  # of a rank that waits for one that failed
_ROOT = str(Path(__file__).parents[1])


class Ranks:
    """The processes. After a failure they are started anew, as they may stand at different places."""

    def __init__(self) -> None:
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Runs `function(*arguments)` in both ranks; returns what each returned.

        Raises:
            AssertionError: a rank raised; with its traceback.
        """
        if not self._processes:
            self._start()
        call = pickle.dumps((function, arguments))
        for pipe in self._pipes:
            pipe.send_bytes(call)
        results, failures = [], []
        for rank, pipe in enumerate(self._pipes):
            try:
                failed, result = pickle.loads(pipe.recv_bytes())
            except EOFError:
                failed, result = True, "the process died"
            results.append(result)
            failures += [f"rank {rank}: {result}"] * failed
        if failures:
            self.close()
            raise AssertionError("\n".join(failures))
        return results

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        for rank in range(WORLD_SIZE):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self._folder.name, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def close(self) -> None:
        """Ends both processes."""
        for process in self._processes:
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._pipes, self._processes = [], []


def _serve(rank: int, folder: str, pipe: Connection) -> None:
    sys.path.insert(0, _ROOT)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD_SIZE)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "ACCELERATE_USE_CPU": "true"}
    import torch
    import torch.distributed as dist

    import tests.conftest  # noqa: F401  # the environment of tests, before torch is used

    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD_SIZE, timeout=_PATIENCE)
    while True:
        try:
            function, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:  # the session has ended
            return
        try:
            answer = (False, function(*arguments))
            message = pickle.dumps(answer)
        except BaseException:
            message = pickle.dumps((True, traceback.format_exc()))
        finally:
            if "accelerate" in sys.modules:  # its state outlives an Accelerator
                from accelerate.state import AcceleratorState, GradientState

                AcceleratorState._reset_state(reset_partial_state=True)
                GradientState._reset_state()
        pipe.send_bytes(message)
