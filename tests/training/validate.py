"""Validation of a small model on a corpus, the same in every process that makes it; run as a program, two ranks."""

import json
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator

from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel
from lgq_hf.metrics.efficientnet import EfficientNetLite0
from lgq_hf.metrics.perceptual import build_perceptual
from tests.training.steps import VALUES, on_two_ranks
from training.data import open_source, validation_batches
from training.recipe import Validation
from training.validation import Validator

SIZE = 64


def a_model() -> LGQModel:
    """A small model whose reconstructions differ from picture to picture."""
    torch.manual_seed(0)
    return LGQModel(LGQConfig(**VALUES["model"])).train()


def a_validator(corpus: Path, count: int, *, split: str = "train", batch_size: int = 2, sheet: int = 3) -> Validator:
    """Of the first `count` pictures of a split, with a perceptual distance and the Fréchet distance."""
    accelerator = Accelerator(cpu=True)
    processor = LGQImageProcessor(pad_to_multiple_of=2)
    batches = partial(
        validation_batches,
        open_source("corpus", corpus, split),
        SIZE,
        processor,
        count=count,
        batch_size=batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    perceptual = build_perceptual("efficientnet-lite0")
    settings = Validation(sheet=sheet)
    return Validator(accelerator, settings, processor, batches, perceptual, EfficientNetLite0())


def main(corpus: Path, folder: Path) -> None:
    """Validates 5 pictures, and 1 that leaves a process without any; leaves values in `rank-<r>.json`."""
    torch.set_num_threads(1)
    validator, model = a_validator(corpus, 5), a_model()
    rank = validator.accelerator.process_index
    values, sheet = validator(model)
    single = a_validator(corpus, 1)
    single.extractor = None  # a Fréchet distance needs two pictures
    found = [values, single(model)[0]]
    (folder / f"rank-{rank}.json").write_text(json.dumps({"values": found, "sheet": sheet is not None}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    on_two_ranks(lambda: main(Path(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[2]))
