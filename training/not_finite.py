"""What is done where a loss or a gradient is not finite."""

import json
from collections.abc import Iterable
from pathlib import Path

from lgq_hf.files import atomic_file
from training.base_step import BaseStep


def stop_if_not_finite(step: BaseStep, recent: Iterable[tuple[int, list[str]]], output: Path, samples: str) -> None:
    """Looks at the device, and ends a run that cannot go on.

    Args:
        recent: (number, names of the samples) of the last steps of this process, the newest last.
        output: where a file lists the samples of the step that failed.
        samples: what they are called.

    Raises:
        FloatingPointError: naming the step, and the file.
    """
    scaler, failed = step.scaler, step.failure()
    if failed is None and not (scaler.is_enabled() and scaler.get_scale() < 1):
        return
    names = dict(recent)
    number = list(names)[-1] if failed is None else failed
    dump = output / f"not-finite-step-{number:08d}-process-{step.accelerator.process_index}.json"
    with atomic_file(dump) as temporary:
        temporary.write_text(json.dumps({"step": number, samples: names.get(number, [])}, indent=1) + "\n")
    what = "loss or gradient is not finite" if failed is not None else "gradients overflow fp16 at every scale"
    raise FloatingPointError(
        f"{what} at step {number}, which was not taken; its {samples} are listed in {dump}. The run can go on from "
        f"its last checkpoint with a lower optimizer.learning_rate or another engine.mixed_precision (--allow-change)"
    )
