"""The published recipes, by what they train."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
_ALL = sorted((ROOT / "training" / "recipes").glob("*.yaml"))
GENERATORS = [path for path in _ALL if "kind" in yaml.safe_load(path.read_text())]
TOKENIZERS = [path for path in _ALL if path not in GENERATORS]
