"""Weight files that the caller gives: two formats, what is left out, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lgq_hf.metrics.weight_files import read_weights

SHAPES: dict[str, tuple[int, ...]] = {"a.weight": (2, 3), "b": ()}
STATE = {"a.weight": torch.arange(6.0).view(2, 3).half(), "b": torch.tensor(1.5, dtype=torch.float64)}


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x"])
def test_both_formats_are_read_as_fp32(tmp_path: Path, name: str) -> None:
    (save_file if name.endswith(".safetensors") else torch.save)(STATE, tmp_path / name)
    for path in (tmp_path / name, str(tmp_path / name)):
        state = read_weights(path, "option", "the file", SHAPES)
        assert {name: value.dtype for name, value in state.items()} == dict.fromkeys(SHAPES, torch.float32)
        assert state["a.weight"].tolist() == [[0, 1, 2], [3, 4, 5]] and float(state["b"]) == 1.5


def test_parameters_come_without_gradients(tmp_path: Path) -> None:
    torch.save({**STATE, "b": torch.nn.Parameter(torch.zeros(()))}, tmp_path / "x.pth")
    assert not read_weights(tmp_path / "x.pth", "option", "the file", SHAPES)["b"].requires_grad


def test_only_what_is_ignored_may_be_left_over(tmp_path: Path) -> None:
    torch.save({**STATE, "a.count": torch.tensor(4)}, tmp_path / "x.pth")
    state = read_weights(tmp_path / "x.pth", "option", "it", SHAPES, ignored=lambda name: name.endswith("count"))
    assert state.keys() == SHAPES.keys()
    with pytest.raises(ValueError, match=r"option: .* has other tensors \(missing: none; not expected: a.count\)"):
        read_weights(tmp_path / "x.pth", "option", "it", SHAPES)
    with pytest.raises(ValueError, match=r"\(missing: b; not expected: none\); expected it"):
        read_weights(tmp_path / "x.pth", "option", "it", SHAPES, ignored=lambda name: name in ("b", "a.count"))


def test_refuses_what_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"option: no file .*no. Expected it; nothing is downloaded: give its"):
        read_weights(tmp_path / "no", "option", "it", SHAPES)
    with pytest.raises(FileNotFoundError, match="option: no file"):
        read_weights(tmp_path, "option", "it", SHAPES)
    (tmp_path / "x.pth").write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=r"option: .*x.pth cannot be read as a state dict \(.*\); expected it"):
        read_weights(tmp_path / "x.pth", "option", "it", SHAPES)
    torch.save({"x": Path}, tmp_path / "x.pth")  # code in a pickle is not run
    with pytest.raises(ValueError, match=r"x.pth cannot be read as a state dict \(UnpicklingError\)"):
        read_weights(tmp_path / "x.pth", "option", "it", SHAPES)
