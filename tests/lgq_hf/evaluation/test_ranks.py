"""Two ranks find what one finds, and an error of any kind in one ends both."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from PIL import Image

from lgq_hf.checkpoint import Checkpoint, load_checkpoint
from lgq_hf.evaluation import Settings, evaluate_tokenizer
from lgq_hf.evaluation.pictures import keys_of
from lgq_hf.evaluation.totals import Processes, processes
from lgq_hf.images.sources import ImageSource, open_source
from lgq_hf.images.views import Preprocessing
from lgq_hf.metrics.perceptual import EfficientNetDistance
from tests.lgq_hf.evaluation.plain import MeanColours, evaluated, settings
from tests.ranks import Ranks


def evaluate(images: Path) -> dict[str, Any]:
    """The built-in checkpoint on five images in batches of two."""
    source, how = open_source(str(images), kind="folder"), Settings(Preprocessing(32), 2, limit=5)
    colours = MeanColours()
    return evaluate_tokenizer(
        load_checkpoint(None, "cpu"), source, how, colours, EfficientNetDistance(), colours, colours
    )


def failure(images: Path, failing: str) -> str:
    """The error where images cannot be read, or where something else fails in one rank."""

    def watch(seen: int, total: int) -> None:
        if failing == "rank 1" and dist.get_rank() == 1:
            raise OSError("the disk is gone")

    try:
        evaluate_tokenizer(
            load_checkpoint(None, "cpu"),
            open_source(str(images), kind="folder"),
            Settings(Preprocessing(32), 2, on_error="stop" if failing == "image" else "skip"),
            MeanColours(),
            watch=watch,
        )
    except Exception as error:
        return repr(error)
    return "none"


def test_two_ranks_find_what_one_finds(photographs: Path, ranks: Ranks) -> None:
    first, second = ranks(evaluate, photographs)
    assert first == second
    alone = evaluate(photographs)
    for name, value in alone["metrics"].items():
        assert first["metrics"][name] == pytest.approx(value, rel=1e-9), name
    for part in ("model", "extremes", "codebook_counts", "versions"):
        assert first[part] == alone[part]
    assert {**first["protocol"], "processes": 1, "process_backend": None} == alone["protocol"]
    assert (first["protocol"]["processes"], first["protocol"]["process_backend"]) == (2, "gloo")
    assert first["cost"]["processes_together"] == 2


def test_an_error_of_any_kind_in_one_rank_ends_both(tmp_path: Path, photographs: Path, ranks: Ranks) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_text("no image")
    Image.new("RGB", (40, 40)).save(tmp_path / "0.png")  # rank 0 has 0 and 1, rank 1 the others
    told = f"expected at least 2 pictures that can be used, got 1 in {tmp_path}"
    assert ranks(failure, tmp_path, "none") == [f"ValueError({told!r})"] * 2
    first, second = ranks(failure, tmp_path, "image")
    assert (
        "1.png" in first and "2.png" in second and first.startswith("ValueError") and second.startswith("ValueError")
    )
    first, second = ranks(failure, photographs, "rank 1")
    assert first == "RuntimeError('rank 1: the disk is gone')" and second == "OSError('the disk is gone')"


def test_a_launcher_must_say_where_to_meet(
    monkeypatch: pytest.MonkeyPatch, tiny: Checkpoint, source: ImageSource
) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(ValueError, match="WORLD_SIZE=2, but MASTER_PORT not set"):
        evaluated(tiny, source, settings())


def test_one_process_needs_nothing() -> None:
    with processes(torch.device("cpu")) as group:
        assert group == Processes()
        assert group.gathered(3) == [3] and group.from_first(lambda: 4) == 4
        assert torch.equal(group.total(torch.ones(2)), torch.ones(2))


def test_chunks_do_not_depend_on_ranks() -> None:
    assert keys_of(7, settings(batch_size=3)) == [(0, 0, 3), (1, 3, 6), (2, 6, 7)]
    assert keys_of(3, settings(crops=5, batch_size=12)) == [(0, 0, 2), (1, 2, 3)]
    assert keys_of(2, settings(crops=5, batch_size=4)) == [(0, 0, 1), (1, 1, 2)]  # views of one fill more than a batch
