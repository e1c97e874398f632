"""Moving averages and moved codes beside plain loops."""

import pytest
import torch
from torch import Tensor

from lgq_hf import LGQConfig, LGQModel
from lgq_hf.tokenizer.codebook_upkeep import CodebookUpkeep

TAKE, SKIP = torch.tensor(False), torch.tensor(True)


def passes(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Two passes of 20 rows and their codes, of which code 4 of 5 never is one."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(20, 3, generator=generator), torch.randint(0, 4, (20,), generator=generator)) for _ in range(2)
    ]


def make(**changes: float | bool) -> CodebookUpkeep:
    return CodebookUpkeep(5, 3, **{"decay": 0.9, "dead_below": 0.0, "averages": True, **changes})  # type: ignore[arg-type]


def test_a_code_is_the_mean_of_its_latents_with_a_fading_memory() -> None:
    upkeep, codebook = make(), torch.randn(5, 3, generator=torch.Generator().manual_seed(9))
    upkeep.restart(codebook)
    shares, means = [0.2] * 5, [row.double() / 5 for row in codebook]
    for step in range(3):
        seen = passes(step)
        for rows, tokens in seen:
            upkeep.observe(rows, tokens)
        upkeep.end_step(codebook, TAKE)
        every = [(row.double(), int(token)) for rows, tokens in seen for row, token in zip(rows, tokens, strict=True)]
        for code in range(5):
            mine = [row for row, token in every if token == code]
            shares[code] = 0.9 * shares[code] + 0.1 * len(mine) / 40
            means[code] = 0.9 * means[code] + 0.1 * sum(mine, torch.zeros(3).double()) / 40
            wanted = means[code] / ((shares[code] + 1e-5 / 5) / (1 + 1e-5))
            torch.testing.assert_close(codebook[code].double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(upkeep.shares_K, torch.tensor(shares))
    assert int(upkeep.steps) == 3


def test_a_step_that_is_called_off_changes_nothing() -> None:
    upkeep, codebook = make(dead_below=0.5), torch.ones(5, 3)
    upkeep.restart(codebook)
    before = {name: buffer.clone() for name, buffer in upkeep.state_dict().items()}
    upkeep.observe(torch.full((2, 3), torch.nan), torch.tensor([0, 1]))
    upkeep.end_step(codebook, SKIP)
    assert torch.equal(codebook, torch.ones(5, 3))
    assert all(torch.equal(buffer, before[name]) for name, buffer in upkeep.state_dict().items())
    upkeep.observe(*passes()[0])  # and what was seen of it is forgotten
    upkeep.end_step(codebook, TAKE)
    assert codebook.isfinite().all()


@pytest.mark.parametrize("averages", [True, False])
def test_dead_codes_move_onto_latents_and_used_ones_stay(averages: bool) -> None:
    upkeep, codebook = make(dead_below=0.5, averages=averages), torch.full((5, 3), 7.0)
    upkeep.restart(codebook)
    (rows, tokens), _ = passes()
    for step in range(1, 12):
        upkeep.observe(rows, tokens)
        upkeep.end_step(codebook, TAKE)
        if 0.2 * 0.9**step < 0.5 / 5:
            break
        assert torch.allclose(codebook[4], torch.tensor(7.0))
    assert step == 7  # 0.9^7 < 0.5: seven steps without a latent
    assert (codebook[4] == rows).all(1).any()
    assert upkeep.shares_K[4] == pytest.approx(0.2)
    if not averages:
        assert torch.equal(codebook[:4], torch.full((4, 3), 7.0))
    moved = codebook[4].clone()
    upkeep.observe(rows, tokens)
    upkeep.end_step(codebook, TAKE)  # and is not moved again at once
    torch.testing.assert_close(codebook[4], moved, rtol=1e-4, atol=1e-4)


def test_a_table_that_was_not_placed_here_is_kept() -> None:
    upkeep, codebook = make(), torch.full((5, 3), 7.0)
    upkeep.init_weights()
    upkeep.observe(*passes()[0])
    upkeep.end_step(codebook, TAKE)
    torch.testing.assert_close(codebook[4], torch.full((3,), 7.0), rtol=1e-3, atol=0)


def test_no_two_dead_codes_move_onto_one_row() -> None:
    for rows in (3, 32, 99, 100, 400):
        upkeep, codebook = CodebookUpkeep(100, 3, decay=0.0, dead_below=0.5, averages=False), torch.full((100, 3), 9.0)
        seen = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
        for _ in range(3):
            upkeep.observe(seen, torch.zeros(rows, dtype=torch.long))
            upkeep.end_step(codebook, TAKE)
        moved = codebook[(codebook != 9.0).any(1)]
        assert len(moved) == min(99, rows) and len(moved.unique(dim=0)) == len(moved)
        assert (moved[:, None] == seen).all(2).any(1).all()


def test_an_empty_step_changes_nothing() -> None:
    upkeep, codebook = make(dead_below=0.5), torch.ones(5, 3)
    upkeep.end_step(codebook, TAKE)
    upkeep.observe(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    upkeep.end_step(codebook, TAKE)
    assert torch.equal(codebook, torch.ones(5, 3)) and int(upkeep.steps) == 0


def test_the_average_stays_with_a_codebook_that_was_placed() -> None:
    torch.manual_seed(0)
    config = LGQConfig(
        quantizer="vq", codebook_update="ema", codebook_size=8, latent_channels=8, base_channels=8,
        channel_multiplier=[1], num_res_blocks=1,
    )  # fmt: skip
    quantizer = LGQModel(config).quantizer
    latents = 5 + torch.randn(2, 8, 4, 4)
    quantizer.init_from(latents, "random")
    before = quantizer.codebook.clone()
    quantizer.observe(latents, quantizer.eval()(latents).image_tokens)
    quantizer.end_step(TAKE)
    assert 0 < (quantizer.codebook - before).norm() / before.norm() < 0.1
    assert not quantizer.codebook.requires_grad


def test_a_code_of_no_share_is_finite() -> None:
    upkeep, codebook = make(decay=0.0), torch.ones(5, 3)
    upkeep.restart(codebook)
    upkeep.observe(*passes()[0])
    upkeep.end_step(codebook, TAKE)
    assert upkeep.shares_K[4] == 0 and codebook.isfinite().all()


def test_dead_codes_move_onto_rows_of_all_passes() -> None:
    upkeep, codebook = CodebookUpkeep(100, 1, decay=0.0, dead_below=0.5, averages=False), torch.zeros(100, 1)
    for value in (1.0, 2.0):
        upkeep.observe(torch.full((20, 1), value), torch.zeros(20, dtype=torch.long))
    upkeep.end_step(codebook, TAKE)
    assert set(codebook[1:41].flatten().tolist()) == {1.0, 2.0}  # as many as there are rows


def test_a_codebook_that_is_placed_anew_has_even_use() -> None:
    upkeep = make()
    upkeep.shares_K.zero_()
    upkeep.restart(torch.ones(5, 3))
    assert torch.equal(upkeep.shares_K, torch.full((5,), 0.2))
    assert torch.equal(upkeep.means_KC, torch.full((5, 3), 0.2))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"quantizer": "vq"},
        {"quantizer": "vq", "distance": "cosine"},
        {"quantizer": "vq", "codebook_update": "ema"},
    ],
)
def test_dead_codes_of_a_quantizer_move_where_latents_are_compared(fields: dict[str, str]) -> None:
    torch.manual_seed(0)
    config = LGQConfig(
        **fields, dead_code_threshold=0.5, codebook_decay=0.0, codebook_size=8, latent_channels=8, base_channels=8,
        channel_multiplier=[1], num_res_blocks=1,
    )  # fmt: skip
    quantizer = LGQModel(config).quantizer
    latents = 5 + torch.randn(2, 8, 4, 4)
    quantizer.observe(latents, torch.zeros(2, 4, 4, dtype=torch.long))
    quantizer.end_step(TAKE)
    table = quantizer.codebook if fields else quantizer.centers
    rows = latents.permute(0, 2, 3, 1).flatten(0, 2)
    if fields.get("distance") == "cosine":
        rows = quantizer.comparable(rows)
    assert (
        torch.cdist(table[1:].detach().double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist")
        .min(1)
        .values
        < 1e-5
    ).all()
