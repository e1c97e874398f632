import math
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from lgq_hf.tokens.collators import IGNORED, SCHEDULES, AutoregressiveCollator, MaskedCollator

K = 10


def _rows(count: int = 3, height: int = 2, width: int = 3, epoch: int = 0) -> list[dict[str, Any]]:
    grids = torch.arange(count * height * width).reshape(count, height, width) % K
    return [
        {"image_tokens": grid, "id": f"row{i}", "label": i % 4, "crop": "", "flip": False, "epoch": epoch}
        for i, grid in enumerate(grids)
    ]


def test_class_and_raster_order() -> None:
    rows = _rows()
    del rows[1]["label"]
    collate = AutoregressiveCollator(K, 4)
    batch = collate(rows)
    assert (collate.null_token, collate.vocabulary_size) == (14, 15)
    assert batch["input_ids"].tolist() == [
        [10, 0, 1, 2, 3, 4, 5],
        [14, 6, 7, 8, 9, 0, 1],
        [12, 2, 3, 4, 5, 6, 7],
    ]
    assert batch["labels"].tolist() == [[IGNORED, *row[1:]] for row in batch["input_ids"].tolist()]
    shifted = AutoregressiveCollator(K, 4, shift=True)(rows)
    assert torch.equal(shifted["input_ids"], batch["input_ids"][:, :-1])
    assert torch.equal(shifted["labels"], batch["input_ids"][:, 1:])
    assert AutoregressiveCollator(K, 0)(rows)["input_ids"][:, 0].tolist() == [K, K, K]
    assert MaskedCollator(K, 0)(rows)["class_labels"].tolist() == [0, 0, 0]


def test_llama_computes_the_same_loss_from_both_forms() -> None:
    collate = AutoregressiveCollator(K, 4)
    config = LlamaConfig(
        vocab_size=collate.vocabulary_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    shifted = AutoregressiveCollator(K, 4, shift=True)(_rows())
    logits = model(input_ids=shifted["input_ids"]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), shifted["labels"].flatten())
    torch.testing.assert_close(model(**collate(_rows())).loss, expected)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_masks_follow_the_schedule(schedule: str) -> None:
    rows = _rows(600, 4, 8)
    batch = MaskedCollator(K, 4, schedule=schedule)(rows)
    masked = batch["input_ids"] == K
    tokens = torch.stack([row["image_tokens"].reshape(-1) for row in rows])
    assert torch.equal(batch["input_ids"][~masked], tokens[~masked])
    assert torch.equal(batch["labels"][masked], tokens[masked])
    assert (batch["labels"][~masked] == IGNORED).all()
    counts = masked.sum(1)
    assert counts.min() >= 1 and counts.max() <= 32
    mean = {"cosine": 2 / math.pi, "linear": 1 / 2, "square": 2 / 3, "square_root": 1 / 3}[schedule]
    assert abs(counts.float().mean().item() / 32 - mean - 0.5 / 32) < 0.045  # 3.5 standard errors; rounded up
    assert (masked.float().mean(0) - masked.float().mean()).abs().max() < 0.07  # no place is preferred
    for function in SCHEDULES.values():
        assert function(0.0) == 1 and abs(function(1.0)) < 1e-12


def test_a_row_is_masked_alike_in_any_batch_and_worker() -> None:
    rows = _rows(12)
    collate = MaskedCollator(K, 4, label_dropout=0.5)
    whole = collate(rows)
    for options in ({"batch_size": 4}, {"batch_size": 3, "num_workers": 2}):
        batches = list(DataLoader(rows, collate_fn=collate, **options))  # type: ignore[arg-type]
        for name, expected in whole.items():
            assert torch.equal(torch.cat([batch[name] for batch in batches]), expected)
    assert not torch.equal(collate(_rows(12, epoch=1))["input_ids"], whole["input_ids"])
    assert not torch.equal(MaskedCollator(K, 4, seed=1)(rows)["input_ids"], whole["input_ids"])
    flipped = [{**row, "flip": True} for row in rows]
    assert not torch.equal(collate(flipped)["input_ids"] == K, whole["input_ids"] == K)


def test_labels_are_dropped_by_the_share() -> None:
    rows = _rows(1000)
    for collate in (AutoregressiveCollator(K, 4, label_dropout=0.1), MaskedCollator(K, 4, label_dropout=0.1)):
        batch = collate(rows)
        classes = batch["class_labels"] if "class_labels" in batch else batch["input_ids"][:, 0] - K
        dropped = classes == 4
        assert 70 < dropped.sum() < 130
        assert torch.equal(classes[~dropped], torch.arange(1000)[~dropped] % 4)
    assert (AutoregressiveCollator(K, 4, label_dropout=1.0)(rows)["input_ids"][:, 0] == 14).all()


@pytest.mark.parametrize("collate", [AutoregressiveCollator(K, 2), MaskedCollator(K, 2)])
def test_rows_that_are_refused(collate: Any) -> None:
    several, large = _rows(1), _rows(1)
    several[0]["image_tokens"] = several[0]["image_tokens"][..., None]
    large[0]["image_tokens"][1, 1] = K
    for rows, message in (
        (_rows(), "row2 has label 2"),
        (_rows(1) + _rows(1, 3, 2), r"\(2, 3\), \(3, 2\)"),
        (several, r"\(2, 3, 1\)"),
        (large, r"\[0, 10\), got 0 to 10"),
        ([], "at least one row"),
    ):
        with pytest.raises(ValueError, match=message):
            collate(rows)


@pytest.mark.parametrize("options", [{"label_dropout": 1.5}, {"codebook_size": 0}, {"schedule": "sine"}])
def test_options_that_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}.*{next(iter(options.values()))}"):
        MaskedCollator(**{"codebook_size": K, "num_classes": 4, **options})
    with pytest.raises(ValueError, match="'id'"):
        MaskedCollator(K, 4)([{"image_tokens": torch.zeros(2, 2, dtype=torch.int64)}])
