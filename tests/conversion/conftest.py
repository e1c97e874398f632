"""Where the recorded miniatures of other projects' checkpoints lie, and models converted from them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from conversion.convert import convert

FIXTURES = Path(__file__).parents[1] / "fixtures" / "vqgan_family"


@pytest.fixture(scope="session")
def family() -> Path:
    """The folder of the recorded miniatures."""
    return FIXTURES


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], dict[str, Tensor]]:
    """`recorded("taming_a")`: the tensors that the project's own code gave."""
    return lambda name: load_file(FIXTURES / name / "expected.safetensors")


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`converted("taming_a/checkpoint.ckpt", **options)`: the folder of its conversion, made once."""
    folder = tmp_path_factory.mktemp("converted")
    made: dict[str, Path] = {}

    def get(source: str, **options: Any) -> Path:
        name = f"{source.replace('/', '-')}{json.dumps(options, sort_keys=True, default=str) if options else ''}"
        if name not in made:
            output = folder / str(len(made))
            convert(FIXTURES / source, output, **options)
            made[name] = output
        return made[name]

    return get
