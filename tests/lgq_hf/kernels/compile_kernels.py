"""Compiles the kernels for a GPU that need not be there; prints a JSON list: resources and instructions of each.

    python compile_kernels.py --capability 90 --channels 64 --parts 3 --distance sq_l2 [--kernel NAME ...]

Run without TRITON_INTERPRET. `stack_bytes` of a thread above 0 are spilled registers.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lgq_hf.kernels import backward, forward, nearest, parts
from lgq_hf.kernels.blocks import Limits, choose_blocks

SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}
POINTERS = dict.fromkeys(("parts", "x_parts", "c_parts", "d_parts"), "*bf16") | {"order": "*i64", "count": "*i32"}
NUMBERS = (
    *("rows", "rows_padded", "codes", "codes_padded", "padded"),
    *("rows_per_split", "codes_per_split", "width_stride"),
)


def kernels(arguments: argparse.Namespace) -> dict[str, tuple[Any, dict[str, Any], tuple[int, int]]]:
    """Per kernel: function, constants without blocks, and (operands that stay, operands that stream)."""
    cp = parts.pad_channels(arguments.channels)
    block = {"BLOCK": parts.prepare_block(cp)}
    scale = {"WITH_SCALE": arguments.widths}
    two = {"PARTS": min(2, arguments.parts)}
    names = {"DISTANCE": arguments.distance, "C": arguments.channels, "CP": cp, "PARTS": arguments.parts}
    uniform = arguments.distance in ("sq_l2", "dot") and not arguments.widths
    euclidean = arguments.distance in ("sq_l2", "l2")
    return {
        "_prepare_rows": (parts._prepare_rows, names | block, (0, 0)),
        "_prepare_codes": (parts._prepare_codes, names | block, (0, 0)),
        "forward_rows": (forward.forward_rows, names, (1, 1)),
        "forward_columns": (forward.forward_columns, names, (1, 1)),
        "backward_rows": (backward.backward_rows, names | {"UNIFORM": uniform, "THROUGH_SOFT": True}, (2, 1)),
        "backward_columns": (backward.backward_columns, names | scale | {"WITH_SOFT": True}, (1, 2)),
        "filter_codes": (nearest.filter_codes, names | two | {"EUCLIDEAN": euclidean}, (1, 1)),
        "exact_codes": (nearest.exact_codes, names | two | {"EUCLIDEAN": euclidean}, (0, 0)),
    }  # fmt: skip


def build(
    kernel: Any, names: dict[str, Any], operands: tuple[int, int], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Compiles one kernel with the blocks that the launcher would take."""
    if operands == (0, 0):
        stay, stream, stages, warps = 16, 32, 1, 4
    else:
        shared = arguments.shared or SHARED[arguments.capability]
        stay, stream, stages, warps = choose_blocks(
            *operands, 2**20, names["CP"], names["PARTS"], Limits(shared, 132, arguments.capability >= 90)
        )
    over_codes = kernel.fn.__name__.endswith("columns")
    names = names | {"BLOCK_N": stream if over_codes else stay, "BLOCK_K": stay if over_codes else stream}
    constants = {name: names[name] for name in kernel.arg_names if name in names}
    signature, divisible = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in NUMBERS or (name == "count" and kernel.fn.__name__.startswith("_prepare")):
            signature[name] = "i32"
            if name.endswith("padded") or name.endswith("split"):
                divisible[(place,)] = [["tt.divisibility", 16]]
        else:
            kind = POINTERS.get(name, "*fp32")
            if name == "index":
                kind = "*i64" if kernel.fn.__name__ == "forward_rows" else "*i32"
            signature[name] = "*fp64" if (kernel.fn.__name__, name) == ("exact_codes", "best") else kind
            divisible[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, divisible)
    target = GPUTarget("cuda", arguments.capability, 32)
    built = triton.compile(source, target=target, options={"num_warps": warps, "num_stages": stages})
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(built.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True)
    found = dict(re.findall(r"(REG|STACK|SHARED):(\d+)", usage.stdout + usage.stderr))
    return {
        "kernel": kernel.fn.__name__,
        "blocks": [stay, stream, stages, warps],
        "shared_bytes": built.metadata.shared,
        "registers": int(found["REG"]),
        "stack_bytes": int(found["STACK"]),
        "wgmma": built.asm["ptx"].count("wgmma.mma_async"),
        "mma": built.asm["ptx"].count("mma.sync"),
        "atomics": len(re.findall(r"\b(?:red|atom)\.global", built.asm["ptx"])),
    }


def main(words: list[str] | None = None) -> None:
    """Compiles what the arguments name; those of the command, if none are given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--parts", type=int, default=3)
    parser.add_argument("--distance", default="sq_l2")
    parser.add_argument("--widths", action="store_true", help="with gradients of widths and temperature")
    parser.add_argument("--shared", type=int)
    parser.add_argument("--kernel", nargs="*")
    arguments = parser.parse_args(words)
    chosen = {name: kernel for name, kernel in kernels(arguments).items() if name in (arguments.kernel or name)}
    for kernel in chosen.values():
        print(json.dumps(build(*kernel, arguments)), flush=True)


if __name__ == "__main__":
    main()
