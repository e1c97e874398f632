"""Puts a finished run's model where it is released, without the code that checkpoints carry elsewhere, and its logs.

    python -m model_cards.embed runs/lgq_tiny/final lgq_hf/pretrained/lgq-tiny --dtype float16
    python -m model_cards.embed runs/lgq_16k_stage1/final model_cards/lgq-16k --dtype float16 --max-shard-size 15MB
    python -m model_cards.embed runs/lgq_tiny_stage1/final lgq-tiny-stage1 --records-only

Records go to benchmarks/results/<name>_training.json (what was run, on what, how it went) and, of each step and each
validation, to <name>_training.csv and <name>_validation.csv there, where the name is the folder's with `_` for `-`.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file

import lgq_hf
from lgq_hf.files import atomic_file, atomic_folder

RESULTS = Path(lgq_hf.__file__).parents[1] / "benchmarks" / "results"
KEPT = ("README.md", "reconstruction.jpg")  # of what is in the folder already
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def embed(final: Path, folder: Path, dtype: torch.dtype = torch.float32, max_shard_size: str = "5GB") -> None:
    """Copies weights and configurations of `final` to `folder`; a card and its picture that are there stay.

    Args:
        final: folder of a finished run.
        folder: where to.
        dtype: weights are stored in it; a model loads in the dtype that its configuration names, as before.
        max_shard_size: above it, weights are spread over files and an index, as by `save_pretrained`.

    Raises:
        ValueError: a weight is not finite in `dtype`.
    """
    kept = {name: (folder / name).read_bytes() for name in KEPT if (folder / name).exists()}
    with atomic_folder(folder) as temporary:
        weights = {name: tensor.to(dtype) for name, tensor in load_file(final / "model.safetensors").items()}
        if lost := sorted(name for name, tensor in weights.items() if not bool(tensor.isfinite().all())):
            raise ValueError(f"{', '.join(lost)}: expected values that {dtype} can hold; embed without --dtype")
        save_torch_state_dict(weights, temporary, max_shard_size=max_shard_size)
        for name in ("config.json", "preprocessor_config.json"):
            values = json.loads((final / name).read_text())
            values.pop("auto_map", None)
            (temporary / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
        for name, content in kept.items():
            (temporary / name).write_bytes(content)


def keep_records(final: Path, name: str, results: Path = RESULTS) -> None:
    """Copies what a run wrote of itself into `results`, named after the checkpoint."""
    stem = name.replace("-", "_")
    for source, kind in (
        ("results.json", "training.json"),
        ("training.csv", "training.csv"),
        ("validation.csv", "validation.csv"),
    ):
        with atomic_file(results / f"{stem}_{kind}") as temporary:
            shutil.copyfile(final / source, temporary)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("final", type=Path, help="folder `final` of a finished run")
    parser.add_argument("folder", type=Path, help="of the released checkpoint; its name is the checkpoint's")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the stored weights (float32)")
    parser.add_argument("--max-shard-size", default="5GB", help="of a file of weights (5GB)")
    parser.add_argument("--records-only", action="store_true", help="of a stage that another goes on from: no weights")
    arguments = parser.parse_args()
    keep_records(arguments.final, arguments.folder.name)  # a folder without them replaces nothing
    if not arguments.records_only:
        embed(arguments.final, arguments.folder, DTYPES[arguments.dtype], arguments.max_shard_size)


if __name__ == "__main__":
    main()
