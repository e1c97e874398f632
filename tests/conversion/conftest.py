"""Where the recorded miniatures of other projects' checkpoints lie, and models converted from them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from conversion import verify
from conversion.convert import convert

FIXTURES = Path(__file__).parents[1] / "fixtures" / "vqgan_family"
_SIZES = verify._SIZES


@pytest.fixture(scope="module", autouse=True)
def _small_inputs() -> Iterator[None]:
    """Conversions try models on small inputs, and on those as large as pictures in tests that use `large_inputs`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "_SIZES", ((64, 64), (64, 96)))
        yield


@pytest.fixture
def large_inputs(monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[int, int], ...]:
    """The inputs that conversions try models on, as they are outside of tests; they are in use again."""
    monkeypatch.setattr(verify, "_SIZES", _SIZES)
    return _SIZES


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
