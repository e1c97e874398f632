"""Puts a finished run's model into the package, without the code that a checkpoint carries elsewhere.

python -m training.embed runs/lgq_default/final lgq-default
"""

import argparse
import json
import shutil
from pathlib import Path

import lgq_hf
from lgq_hf.files import atomic_folder

PRETRAINED = Path(lgq_hf.__file__).parent / "pretrained"


def embed(final: Path, folder: Path) -> None:
    """Copies weights and configurations of `final` to `folder`; a card that is there stays."""
    card = folder / "README.md"
    text = card.read_text() if card.exists() else None
    with atomic_folder(folder) as temporary:
        shutil.copyfile(final / "model.safetensors", temporary / "model.safetensors")
        for name in ("config.json", "preprocessor_config.json"):
            values = json.loads((final / name).read_text())
            values.pop("auto_map", None)
            (temporary / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
        if text is not None:
            (temporary / "README.md").write_text(text)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("final", type=Path, help="folder `final` of a finished run")
    parser.add_argument("name", help="of the checkpoint inside the package")
    arguments = parser.parse_args()
    embed(arguments.final, PRETRAINED / arguments.name)


if __name__ == "__main__":
    main()
