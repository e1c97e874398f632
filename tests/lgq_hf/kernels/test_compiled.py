"""The kernels through Triton's compiler, for GPUs that need not be there: what the interpreter cannot see."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lgq_hf.kernels.blocks import Limits, choose_blocks, shared_bytes

pytest.importorskip("triton")

Compiled = dict[tuple[str, ...], dict[str, dict]]
HOPPER = ("--capability", "90", "--channels", "64", "--parts", "3")
OTHERS = [
    ("--capability", "80", "--channels", "32", "--parts", "3", "--distance", "l2", "--widths"),
    ("--capability", "89", "--channels", "64", "--parts", "1", "--distance", "cosine"),
    ("--capability", "90", "--channels", "512", "--parts", "1", "--distance", "dot"),
]
SCRIPT = """
import json, sys
from compile_kernels import main
for words in json.loads(sys.argv[1]):
    main(words)
    print(flush=True)
"""


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    """Per arguments of compile_kernels.py what it says of each kernel; all made by one process."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", SCRIPT, json.dumps([HOPPER, *OTHERS])]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=800,
        cwd=Path(__file__).parent,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    parts = run.stdout.removesuffix("\n\n").split("\n\n")
    return {
        arguments: {line["kernel"]: line for line in map(json.loads, part.splitlines())}
        for arguments, part in zip((HOPPER, *OTHERS), parts, strict=True)
    }


@pytest.mark.slow
def test_hopper_at_64_channels(compiled: Compiled) -> None:
    """fp32 on an H100: warp-group matrix instructions, no atomics, and next to nothing spilled."""
    kernels = compiled[HOPPER]
    assert len(kernels) == 8
    for name, kernel in kernels.items():
        assert kernel["wgmma"] > 0 or name in ("exact_codes", "_prepare_rows", "_prepare_codes")
        assert kernel["atomics"] == 0
        assert kernel["shared_bytes"] <= 227 * 1024
        assert kernel["stack_bytes"] <= 512


@pytest.mark.slow
@pytest.mark.parametrize("arguments", OTHERS)
def test_other_gpus_and_sizes(arguments: tuple[str, ...], compiled: Compiled) -> None:
    available = {"80": 163, "89": 99, "90": 227}[arguments[1]] * 1024
    for kernel in compiled[arguments].values():
        assert kernel["shared_bytes"] <= available
        assert kernel["atomics"] == 0
        assert kernel["stack_bytes"] <= 1024


@pytest.mark.parametrize("available", [99 * 1024, 163 * 1024, 227 * 1024])
@pytest.mark.parametrize("channels", [16, 32, 64, 128, 256, 512])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_blocks_fit(available: int, channels: int, parts: int) -> None:
    hopper = available > 200 * 1024
    for operands in ((1, 1), (2, 1), (1, 2)):
        stay, stream, stages, warps = choose_blocks(*operands, 2**20, channels, parts, Limits(available, 132, hopper))
        if shared_bytes(1, 2, channels, parts) <= available:  # what is refused otherwise
            assert shared_bytes(*operands, channels, parts, (stay, stream, stages)) <= available
        assert min(stay, stream) >= 16 and warps in (4, 8)


def test_blocks_shrink_where_they_would_leave_processors_idle() -> None:
    limits = Limits(227 * 1024, 132, hopper=True)
    assert choose_blocks(1, 1, 2**20, 64, 3, limits)[0] == 128
    assert choose_blocks(1, 1, 4096, 64, 3, limits)[0] == 64
