"""The two processes of test_processes.py: one evaluation, each leaves what it returned."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from lgq_hf.checkpoint.loading import load_checkpoint
from lgq_hf.evaluation import Settings, evaluate_tokenizer
from lgq_hf.images.sources import open_source
from lgq_hf.images.views import Preprocessing
from lgq_hf.metrics.perceptual import EfficientNetDistance
from tests.lgq_hf.evaluation.plain import MeanColours


def evaluate(pictures: Path) -> dict[str, Any]:
    """The built-in checkpoint on five pictures in batches of two."""
    source, settings = open_source(str(pictures), kind="folder"), Settings(Preprocessing(32), 2, limit=5)
    colours = MeanColours()
    return evaluate_tokenizer(
        load_checkpoint(None, "cpu"), source, settings, colours, EfficientNetDistance(), colours, colours
    )


def main(pictures: Path, folder: Path, rank: int) -> None:
    """Writes the result, and the error where only one picture of both processes can be read."""
    os.environ["RANK"] = str(rank)
    torch.set_num_threads(1)
    (folder / f"{rank}.json").write_text(json.dumps(evaluate(pictures)))
    try:
        evaluate_tokenizer(
            load_checkpoint(None, "cpu"),
            open_source(str(folder / "broken"), kind="folder"),
            Settings(Preprocessing(32), 2, on_error="skip"),
            MeanColours(),
        )
    except ValueError as error:
        (folder / f"{rank}.txt").write_text(str(error))


if __name__ == "__main__":
    child = os.fork()  # what is imported above takes seconds, once
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(child == 0))
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
