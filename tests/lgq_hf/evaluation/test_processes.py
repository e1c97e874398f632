"""Two processes find what one finds."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from lgq_hf.checkpoint.loading import Checkpoint
from lgq_hf.evaluation.pictures import keys_of
from lgq_hf.evaluation.processes import Processes, processes
from lgq_hf.images.sources import ImageSource
from tests.lgq_hf.evaluation.evaluate_on_two_ranks import evaluate
from tests.lgq_hf.evaluation.plain import evaluated, settings


@pytest.mark.slow
def test_two_processes_find_what_one_finds(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "broken" / "0.png")
    for number in range(1, 4):
        (tmp_path / "broken" / f"{number}.png").write_text("no picture")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    script = str(Path(__file__).with_name("evaluate_on_two_ranks.py"))
    subprocess.run([sys.executable, script, str(photographs), str(tmp_path)], env=environment, check=True, timeout=300)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    alone = evaluate(photographs)
    for name, value in alone["metrics"].items():
        assert first["metrics"][name] == pytest.approx(value, rel=1e-9), name
    for part in ("model", "extremes", "codebook_counts", "versions"):
        assert first[part] == alone[part]
    assert {**first["protocol"], "processes": 1, "process_backend": None} == alone["protocol"]
    assert (first["protocol"]["processes"], first["protocol"]["process_backend"]) == (2, "gloo")
    assert first["cost"]["processes_together"] == 2
    for rank in range(2):  # the second of them reads none
        expected = f"expected at least 2 pictures that can be used, got 1 in {tmp_path / 'broken'}"
        assert (tmp_path / f"{rank}.txt").read_text() == expected


def test_a_launcher_must_say_where_to_meet(
    monkeypatch: pytest.MonkeyPatch, tiny: Checkpoint, source: ImageSource
) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    message = r"WORLD_SIZE=2, but MASTER_PORT not set: start the processes by torchrun or accelerate launch"
    with pytest.raises(ValueError, match=message):
        evaluated(tiny, source, settings())
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ValueError, match=r"expected 0 to 1, .*got 2"):
        evaluated(tiny, source, settings())


def test_one_process_needs_nothing() -> None:
    with processes(torch.device("cpu")) as group:
        assert group == Processes()
        assert group.gathered(3) == [3] and group.from_first(lambda: 4) == 4
        assert torch.equal(group.total(torch.ones(2)), torch.ones(2))


def test_chunks_do_not_depend_on_processes() -> None:
    assert keys_of(7, settings(batch_size=3)) == [(0, 0, 3), (1, 3, 6), (2, 6, 7)]
    assert keys_of(3, settings(crops=5, batch_size=12)) == [(0, 0, 2), (1, 2, 3)]
    assert keys_of(2, settings(crops=5, batch_size=4)) == [(0, 0, 1), (1, 1, 2)]  # views of one fill more than a batch
