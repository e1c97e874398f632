"""The operators under DistributedDataParallel, in two real processes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.lgq_hf.kernels.cases import draw
from tests.lgq_hf.kernels.ddp_rank import Assign

BACKENDS = ["chunked", *(["triton"] if importlib.util.find_spec("triton") is not None else [])]


@pytest.mark.slow
def test_ranks_agree_with_one_process(tmp_path: Path) -> None:
    x, centers = (t.cpu() for t in draw("random", rows=40, codes=30, channels=6)[:2])
    torch.save({"x": x, "centers": centers}, tmp_path / "inputs.pt")
    root = Path(__file__).parents[3]
    # on CPU tensors, in the interpreter, whatever the machine has
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, str(Path(__file__).with_name("ddp_rank.py")), str(tmp_path)]
    subprocess.run([*command, *BACKENDS], env=environment, check=True, timeout=300)
    model = Assign(centers, "reference")
    model(x).backward()
    for backend in BACKENDS:
        first, second = (torch.load(tmp_path / f"{backend}.{rank}.pt", weights_only=True) for rank in range(2))
        assert torch.equal(first, second), backend
        torch.testing.assert_close(
            first, model.centers.grad, rtol=1e-4, atol=1e-7, msg=lambda m, b=backend: f"{b}: {m}"
        )
