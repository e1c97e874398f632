"""A model of ours in a layout that other programs read.

python -m conversion.export DIR --to diffusers --output vqmodel          # VQModel.from_pretrained("vqmodel")
python -m conversion.export DIR --to lgq_official --output best_model.pt
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.utils import logging

from conversion.export_diffusers import export_diffusers
from conversion.export_lgq_official import export_lgq_official
from lgq_hf import LGQImageProcessor, LGQModel
from lgq_hf.files import atomic_file, atomic_folder


def export(source: str | Path, to: str, output: Path) -> None:
    """Writes a saved model in another layout, whole or not at all.

    Args:
        source: folder of `save_pretrained`, or a repository of the Hub.
        to: `"diffusers"` writes a folder with config.json and weights, `"lgq_official"` a file as the official trainer
            writes it.
        output: what to write; must not be there.

    Raises:
        ValueError: for what the other layout cannot hold, naming the field, and for an output that exists.
    """
    if output.exists():
        raise ValueError(f"{output} exists: take another name, nothing is replaced")
    model = LGQModel.from_pretrained(source)
    if to == "lgq_official":
        content = export_lgq_official(model)
        with atomic_file(output) as temporary:
            torch.save(content, temporary)
        return
    settings, tensors = export_diffusers(model)
    settings["lookup_from_codebook"] = _reads_zero_to_one(LGQImageProcessor.from_pretrained(source))
    with atomic_folder(output) as folder:
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def _reads_zero_to_one(processor: LGQImageProcessor) -> bool:
    """Whether pixels are in [0, 1], as aMUSEd's are, whose VQModel looks codes up by `lookup_from_codebook`."""
    if not processor.do_normalize:
        return True
    if [*processor.image_mean, *processor.image_std] != [0.5] * 6:
        raise ValueError(
            f"image_mean={list(processor.image_mean)} cannot be exported: diffusers' pipelines give a VQModel pixels "
            "in [-1, 1] or, aMUSEd's, in [0, 1]"
        )
    return False


def main(arguments: list[str] | None = None) -> int:
    """The command; 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m conversion.export", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="a folder of save_pretrained, or a repository of the Hub")
    parser.add_argument("--to", required=True, choices=["diffusers", "lgq_official"])
    parser.add_argument(
        "--output", required=True, type=Path, help="folder (diffusers) or file (lgq_official) to write"
    )
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    try:
        export(options.source, options.to, options.output)
    except (ValueError, OSError) as error:
        print(f"{options.source}: not exported, nothing was written: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: written for {options.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
