"""Runs the Python blocks of pages, in a process of its own: forked and changed state stays out of the suite.

    python -m tests.docs.run_pages FOLDER REPORT PAGE...

REPORT is JSON: for each page the traceback of the block that failed, or null.
"""

import json
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from skimage import data

from tests.docs.pages import CARDS, ROOT, Block, blocks_of, read

CLASSES = {0: "stellarium-data", 1: "tuxpaint-stamps-default", 2: "torcs-data", 3: "nexuiz-textures"}


def prepare(folder: Path) -> None:
    """Makes what pages name: photo.jpg, photos/, org/lgq-16k, tokens/ and two generators in runs/.

    The repository org/lgq-16k is a folder of that name, which everything takes in its place. Generators have random
    weights.
    """
    from PIL import Image

    from lgq_hf.cli.main import main

    pictures = {"cats": data.chelsea(), "people": data.astronaut()}
    for number in range(6):
        name = sorted(pictures)[number % 2]
        cut = pictures[name][40 + 8 * number : 120 + 8 * number, 100 : 196 + 8 * (number % 2)]
        (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(cut).save(folder / "photos" / name / f"{number}.jpg", quality=95)
    Image.fromarray(data.chelsea()[80:180, 120:251]).save(folder / "photo.jpg", quality=95)  # no multiple of 8
    shutil.copytree(CARDS / "lgq-16k", folder / "org" / "lgq-16k")
    os.chdir(folder)
    tokenize = ["tokenize", "photos", "--output", "tokens", "--model", "org/lgq-16k", "--size", "64"]
    if main([*tokenize, "--batch-size", "4"]):
        raise RuntimeError("tokens/ was not made")
    _generators(folder)


def _generators(folder: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    from lgq_hf import LGQImageProcessor, LGQModel, default_checkpoint
    from lgq_hf.generation import (
        LGQAutoregressivePipeline,
        LGQMaskedConfig,
        LGQMaskedPipeline,
        LGQMaskedTransformer,
        llama_config,
    )

    torch.manual_seed(0)
    tokenizer = LGQModel.from_pretrained(default_checkpoint())
    processor = LGQImageProcessor.from_pretrained(default_checkpoint())
    codes, classes = tokenizer.config.codebook_size, len(CLASSES)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    masked: Any = LGQMaskedConfig(
        codebook_size=codes, num_classes=classes, grid_height=8, grid_width=8, dropout=0.0, **sizes
    )
    llama = llama_config(codebook_size=codes, num_classes=classes, num_tokens=64, **sizes)
    grid: Any = {"grid_height": 8, "grid_width": 8, "id2label": CLASSES}
    for name, pipe in (
        ("tiny_masked_cpu", LGQMaskedPipeline(tokenizer, processor, LGQMaskedTransformer(masked).eval(), **grid)),
        ("tiny_ar_cpu", LGQAutoregressivePipeline(tokenizer, processor, LlamaForCausalLM(llama).eval(), **grid)),
    ):
        pipe.save_pretrained(folder / "runs" / name / "final")


def run_blocks(blocks: list[Block]) -> str | None:
    """Runs Python blocks in their order in one namespace, in the current folder.

    Returns:
        The traceback of the one that failed, with the page's name and line; `None` if all ran. Blocks that are marked
        as not run are compiled.
    """
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        if block.language != "python":
            continue
        try:
            # empty lines before it, so that a traceback has the page's own line numbers
            code = compile("\n" * (block.line - 1) + block.code, block.page, "exec")
            if block.not_run is None:
                exec(code, namespace)
        except BaseException:
            return traceback.format_exc()
    return None


def run_all(folder: Path, names: list[str]) -> dict[str, str | None]:
    """Each page in a folder of its own, whose files are links to those of `prepare`; a card beside its checkpoint."""
    from lgq_hf.tokens import EncodeImages

    made = folder / "made"
    made.mkdir(parents=True)
    prepare(made)
    # where a page leaves the default: batches are filled up, and sixteen pictures of 256 px would be seconds
    defaults: Any = EncodeImages.__init__.__kwdefaults__
    defaults["batch_size"] = 3
    report = {}
    for number, name in enumerate(names):
        place = folder / str(number)
        shutil.copytree(made, place, copy_function=os.link)
        if (card := ROOT / name).is_relative_to(CARDS):
            shutil.copytree(card.parent, place, dirs_exist_ok=True)
        os.chdir(place)
        report[name] = run_blocks(blocks_of(read(name), name))
    return report


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run_all(Path(sys.argv[1]).resolve(), sys.argv[3:])))
