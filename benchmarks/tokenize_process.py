"""One process of the tokenization benchmark: says "ready", and at each line of input makes its share of the files.

    python -m benchmarks.tokenize_process PICTURES OUTPUT SETTING RANK WORLD_SIZE CORE

The lines it answers with are JSON: seconds, and the peak resident set in MiB. It runs on one thread, pinned to CORE
where the system can do that.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import torch

from benchmarks import memory
from benchmarks.tokenize_parts import SETTINGS, make_job
from lgq_hf.tokens.engine import FileMaker


def main(words: list[str]) -> int:
    """Serves until its input ends."""
    pictures, output, name, rank, world_size, core = words
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))  # a container may not have core 0
        os.sched_setaffinity(0, {cores[int(core) % len(cores)]})
    job = make_job(Path(pictures), Path(output) / rank, None, SETTINGS[name])
    maker = FileMaker(job, "cpu")
    own = list(range(int(rank), job.plan.files, int(world_size)))
    assert job.plan.size is not None
    maker.encoder(torch.zeros(1, 3, *job.plan.size, dtype=torch.uint8), fill=True)  # warm
    print("ready", flush=True)
    for _ in sys.stdin:
        shutil.rmtree(job.output, ignore_errors=True)
        memory.reset_peak("cpu")
        start = time.perf_counter()
        maker.make(own)
        answer = {"seconds": time.perf_counter() - start, "peak_mib": memory.resident_peak_mib()}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
