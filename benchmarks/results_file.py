"""Where results lie, and writing one: a JSON file that says of itself where its numbers come from."""

import json
from pathlib import Path
from typing import Any

from lgq_hf.files import atomic_file
from lgq_hf.provenance import provenance

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, result: dict[str, Any], folder: Path | None = None) -> Path:
    """Writes <name>.json in `folder` (results/) as a whole, with provenance; returns its path."""
    path = (folder or RESULTS) / f"{name}.json"
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps({**provenance(), **result}, indent=1) + "\n")
    return path
