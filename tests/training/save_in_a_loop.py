"""Forks processes that save checkpoints, and kills each after as many seconds as a line of its input says.

For each line it answers with the newest checkpoint's step, after it has loaded it, and how many are half-written.
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from accelerate import Accelerator
from torch import nn

from training.output import Progress, newest_checkpoint, save_checkpoint


def check(accelerator: Accelerator, model: nn.Module, progress: Progress, output: Path) -> int:
    """Loads the newest checkpoint; all of its parts must be of its step."""
    folder, step = newest_checkpoint(output)
    if folder is not None:
        accelerator.load_state(str(folder))
        assert progress.step == step and all(bool((p == step).all()) for p in model.parameters()), step
    return step


def save(accelerator: Accelerator, model: nn.Module, progress: Progress, output: Path) -> None:
    """Saves one step after another, each twice."""
    while True:
        progress.step += 1
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(progress.step)
        for _ in range(2):
            save_checkpoint(accelerator, output, progress.step, keep=2)


def main(output: Path) -> None:
    """Answers lines until there are none."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(nn.Sequential(*[nn.Linear(16, 16) for _ in range(8)]))
    progress = Progress({})
    accelerator.register_for_checkpointing(progress)
    for line in sys.stdin:
        check(accelerator, model, progress, output)
        child = os.fork()
        if not child:
            save(accelerator, model, progress, output)
        time.sleep(float(line))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        temporaries = len(list(output.glob(".checkpoint-*.tmp")))
        print(check(accelerator, model, progress, output), temporaries, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
