"""Draws against their definition, against transformers' filters and against diffusers' scheduler."""

import math

import pytest
import torch
from diffusers import AmusedScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TopKLogitsWarper, TopPLogitsWarper

from lgq_hf.generation.sampling import fill_masked, filter_logits, guide, masked_counts, sample, uniform_noise
from lgq_hf.tokens.collators import SCHEDULES


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_guidance_is_exact_at_zero_and_one_and_linear_between_and_beyond() -> None:
    with_class, without = torch.randn(2, 3, 50, generator=generator(0)) * 30
    assert torch.equal(guide(with_class, without, 0.0), without)
    assert torch.equal(guide(with_class, without, 1.0), with_class)
    for scale in (0.3, 2.5, 7.0):
        expected = without.double() + scale * (with_class.double() - without.double())
        torch.testing.assert_close(guide(with_class, without, scale).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("top_k", [1, 3, 16, 17])
def test_top_k_is_that_of_transformers(top_k: int) -> None:
    logits = torch.randn(5, 16, generator=generator(1))
    logits[0, 3:7] = logits[0, 2]  # ties
    assert torch.equal(filter_logits(logits, top_k=top_k), TopKLogitsWarper(top_k)(None, logits))


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_top_p_is_that_of_transformers(top_p: float) -> None:
    logits = 3 * torch.randn(5, 16, generator=generator(2))
    assert torch.equal(filter_logits(logits, top_p=top_p), TopPLogitsWarper(top_p)(None, logits))
    assert filter_logits(logits, top_p=top_p).isfinite().any(-1).all()


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0, -1.0])
    count = 40_000
    drawn = sample(logits.expand(count, -1), uniform_noise((count,), 1, generator(3), torch.device("cpu"))[0])
    expected = logits.softmax(-1) * count
    found = torch.bincount(drawn, minlength=5)
    assert found[2] == 0
    chi_squared = float((((found - expected) ** 2) / expected)[expected > 0].sum())
    assert chi_squared < 16.3  # 3 degrees of freedom: one in a thousand
    halved = sample(logits.expand(count, -1), torch.linspace(0, 1 - 1e-9, count).double(), temperature=0.5)
    torch.testing.assert_close(
        torch.bincount(halved, minlength=5) / count, (2 * logits).softmax(-1), rtol=0, atol=2 / count
    )


@given(st.integers(0, 2**32), st.floats(0, 1, exclude_max=True), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_a_code_without_probability_is_never_drawn(seed: int, number: float, codes: int) -> None:
    logits = 20 * torch.randn(1, codes, generator=generator(seed))
    logits[0, torch.rand(codes, generator=generator(seed + 1)) < 0.5] = -torch.inf
    logits[0, seed % codes] = 1.0
    for noise in (torch.tensor([number], dtype=torch.float64), torch.tensor([1 - 2**-53], dtype=torch.float64)):
        assert logits[0, int(sample(logits, noise))] > -torch.inf


def test_temperature_zero_takes_the_first_of_the_likeliest() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]])
    assert sample(logits, torch.tensor([0.99, 0.99]), temperature=0).tolist() == [1, 0]


def test_noise_of_a_picture_does_not_depend_on_the_others() -> None:
    cpu = torch.device("cpu")
    together = uniform_noise((2, 7), 3, [generator(seed) for seed in (5, 6, 7)], cpu)
    alone = uniform_noise((2, 7), 1, generator(6), cpu)
    assert torch.equal(together[1:2], alone) and together.dtype == torch.float64
    in_turn = uniform_noise((2, 7), 3, generator(5), cpu)
    assert torch.equal(in_turn[:1], together[:1]) and not torch.equal(in_turn[1], in_turn[0])
    with pytest.raises(ValueError, match="expected one generator, or one for each of 3 pictures, got 2"):
        uniform_noise((2,), 3, [generator(0)] * 2, cpu)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 5, 12, 40])
def test_counts_fall_to_none(schedule: str, steps: int) -> None:
    masked = torch.tensor([0, 1, 7, 30])
    counts = masked_counts(masked, steps, SCHEDULES[schedule])
    assert counts.shape == (steps, 4) and counts[-1].tolist() == [0, 0, 0, 0]
    before = masked
    for step, after in enumerate(counts, 1):
        assert ((after < before) | (before == 0)).all() and (after >= 0).all()
        most = (masked * SCHEDULES[schedule](step / steps) + 1e-9).floor()
        assert (after <= most).all()
        before = after


def test_no_number_draws_a_code_without_probability() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    drawn = [int(sample(logits, torch.tensor([u], dtype=torch.float64))) for u in (0.0, 0.5, 1 - 2**-53)]
    assert drawn == [1, 3, 3]


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-20])
def test_the_coldest_draw_is_the_likeliest(temperature: float) -> None:
    logits = torch.randn(5, 9, generator=generator(0)) * 50
    assert torch.equal(sample(logits, torch.full((5,), 0.999), temperature=temperature), logits.argmax(-1))


def test_the_tail_of_many_codes_is_not_lost() -> None:
    """In fp32 a cumulative sum near 1 has steps of 6e-8, and codes of less probability would never be drawn."""
    codes = 2**18
    logits = torch.zeros(1, codes, dtype=torch.float64)
    logits[0, 0] = 20.0  # leaves 2e-9 to each of the others
    probabilities = logits.softmax(-1)[0]
    for code in (1000, 131_071, codes - 2):
        middle = probabilities[:code].sum() + probabilities[code] / 2
        assert int(sample(logits, middle[None])) == code


def test_the_code_that_reaches_the_share_is_the_last() -> None:
    halves = torch.tensor([[0.25, 0.25, 0.5]]).log()
    assert filter_logits(halves, top_p=0.5).isfinite().tolist() == [[False, False, True]]


def test_counts_are_those_of_the_paper() -> None:
    counts = masked_counts(torch.tensor([256]), 8, SCHEDULES["cosine"])[:, 0].tolist()
    assert counts == [math.floor(256 * math.cos(math.pi / 2 * step / 8)) for step in range(1, 8)] + [0]


def test_a_step_keeps_what_is_known_and_the_likeliest_of_the_rest() -> None:
    tokens = torch.tensor([[3, 9, 9, 9, 1, 9]])
    masked = tokens == 9
    logits = torch.zeros(1, 6, 9)
    for place, height in {1: 5.0, 2: 1.0, 3: 8.0, 5: 3.0}.items():
        logits[0, place, place] = height
    filled, still = fill_masked(
        logits, tokens, masked, torch.tensor([2]), torch.zeros(1, 2, 6), choice_temperature=0.0, temperature=0
    )
    assert filled[0, [0, 4]].tolist() == [3, 1]  # known
    assert still.tolist() == [[False, False, True, False, False, True]]  # the least likely
    assert filled[0, [1, 3]].tolist() == [1, 3]


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_no_known_token_is_ever_changed_or_masked(seed: int) -> None:
    rng = generator(seed)
    tokens = torch.randint(0, 8, (3, 20), generator=rng)
    masked = torch.rand(3, 20, generator=rng) < torch.rand(3, 1, generator=rng)
    keep = (masked.sum(1) * torch.rand(3, generator=rng)).long()
    logits = 10 * torch.randn(3, 20, 8, generator=rng)
    noise = torch.rand(3, 2, 20, generator=rng, dtype=torch.float64)
    noise[:, 1, ::3] = 0.0  # the most and the least that Gumbel noise can be
    noise[:, 1, 1::3] = 1 - 2**-53
    filled, still = fill_masked(logits, tokens, masked, keep, noise, choice_temperature=100.0)
    assert torch.equal(filled[~masked], tokens[~masked]) and not (still & ~masked).any()
    assert torch.equal(still.sum(1), keep) and (filled < 8).all()


def test_a_step_does_not_depend_on_how_many_logits_are_drawn_from_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, masked = torch.zeros(2, 9, dtype=torch.int64), torch.ones(2, 9, dtype=torch.bool)
    logits = torch.randn(2, 9, 8, generator=generator(0))
    noise = torch.rand(2, 2, 9, generator=generator(1), dtype=torch.float64)
    arguments = (logits, tokens, masked, torch.tensor([4, 0]), noise)
    whole = fill_masked(*arguments, choice_temperature=1.0)
    monkeypatch.setattr("lgq_hf.generation.sampling._LOGITS_AT_ONCE", 24)
    parts = fill_masked(*arguments, choice_temperature=1.0)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_steps_are_those_of_diffusers_scheduler_where_nothing_is_drawn(schedule: str) -> None:
    length, codes, steps = 31, 16, 6  # with 30, half of them is 14.999998 to the scheduler
    scheduler = AmusedScheduler(mask_token_id=codes, masking_schedule=schedule)
    scheduler.set_timesteps(steps, temperature=(0, 0))
    theirs = torch.full((2, length), codes)
    ours = theirs.clone()
    counts = masked_counts(torch.tensor([length, length]), steps, SCHEDULES[schedule])
    for step, timestep in enumerate(scheduler.timesteps):
        # one code of each row is certain but for 1e-3 to 1e-6, in an order that is not that of the places
        heights = 10 + 6 * torch.rand(2, length, 1, generator=generator(step)).double()
        logits = torch.zeros(2, length, codes).double()
        logits.scatter_(-1, torch.randint(0, codes, (2, length, 1), generator=generator(step)), heights)
        theirs = scheduler.step(logits, timestep, theirs, generator=generator(step)).prev_sample
        half = torch.full((2, 2, length), 0.5)
        options = {"choice_temperature": 0.0, "temperature": 0.0}
        ours, still = fill_masked(logits, ours, ours == codes, counts[step], half, **options)
        ours = ours.masked_fill(still, codes)
        assert torch.equal(ours, theirs)
    assert (ours < codes).all()
