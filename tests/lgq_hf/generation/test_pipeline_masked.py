"""What the masked sampler keeps, fills and refuses."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.lgq_hf.generation import reference
from tests.lgq_hf.generation.pipelines import CODES, SIDE, small_pipeline

TOKENS = SIDE * SIDE


@pytest.fixture(scope="module")
def pipe() -> Any:
    return small_pipeline("masked")


@pytest.fixture
def given() -> torch.Tensor:
    return torch.randint(0, CODES, (2, SIDE, SIDE), generator=torch.Generator().manual_seed(4))


def masked_after_each_step(pipe: Any, **options: Any) -> list[torch.Tensor]:
    seen = []

    def watch(_: Any, step: int, left: int, tensors: dict[str, torch.Tensor]) -> None:
        seen.append(tensors["image_tokens"].clone())

    seen.append(pipe(output_type="token", callback_on_step_end=watch, **options).images)
    return seen


@pytest.mark.parametrize(
    ("schedule", "steps", "guidance", "temperature", "choice_temperature", "top_k", "top_p"),
    [
        ("cosine", 6, 1.0, 1.0, 4.5, None, None),
        ("linear", 5, 2.5, 0.7, 1.0, 9, None),
        ("square", 7, 1.5, 1.6, 0.3, None, 0.7),
        ("square_root", 4, 0.5, 0.9, 0.0, 20, 0.9),
        ("linear", 90, 1.5, 1.0, 2.0, None, None),  # more steps than tokens
    ],
)
def test_tokens_are_those_of_the_definition(
    schedule: str,
    steps: int,
    guidance: float,
    temperature: float,
    choice_temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    pipe = small_pipeline("masked")
    pipe.transformer.double()
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter.mul_(6 if parameter.ndim > 1 else 1)
    shared = {"temperature": temperature, "choice_temperature": choice_temperature, "top_k": top_k, "top_p": top_p}
    made = pipe(
        [2, 0],
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
        num_inference_steps=steps,
        mask_schedule=schedule,
        guidance_scale=guidance,
        output_type="token",
        **shared,
    ).images.flatten(1)
    for tokens, label, seed in zip(made.tolist(), (2, 0), (5, 6), strict=True):
        assert tokens == reference.masked_tokens(
            pipe.transformer, label, seed, steps=steps, schedule=schedule, guidance=guidance, **shared
        )


@pytest.mark.parametrize(("schedule", "steps"), [("cosine", 7), ("linear", 200), ("square", 1), ("square_root", 7)])
def test_counts_fall_until_none_is_masked_and_what_was_filled_stays(pipe: Any, schedule: str, steps: int) -> None:
    options = {"mask_schedule": schedule, "num_inference_steps": steps, "class_labels": [0, 1], "guidance_scale": 2.0}
    *grids, final = masked_after_each_step(pipe, **options)
    assert len(grids) <= min(steps, TOKENS) and torch.equal(grids[-1], final) and (final < CODES).all()
    counts = torch.tensor([TOKENS, *((grid[0] == CODES).sum() for grid in grids)])
    assert (counts[1:] < counts[:-1]).all() and counts[-1] == 0
    for before, after in itertools.pairwise(grids):
        assert torch.equal(after[before != CODES], before[before != CODES])


def test_filling_in_keeps_every_given_token(pipe: Any, given: torch.Tensor) -> None:
    mask = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    mask[0, 2:6, 1:4] = True
    mask[1, 0, 0] = True  # finished long before the other
    for grid in masked_after_each_step(
        pipe, class_labels=[0, 1], image_tokens=given, mask=mask, choice_temperature=50.0, num_inference_steps=6
    ):
        assert torch.equal(grid[~mask], given[~mask])
    assert (grid < CODES).all()
    one_for_all = pipe([0, 1], image_tokens=given[0], mask=mask[0], output_type="token").images
    assert torch.equal(one_for_all[:, ~mask[0]], given[:1, ~mask[0]].expand(2, -1))


def test_with_nothing_to_fill_the_picture_comes_back_and_with_all_it_is_new(pipe: Any, given: torch.Tensor) -> None:
    nothing, everything = (fill(SIDE, SIDE, dtype=torch.bool) for fill in (torch.zeros, torch.ones))
    (made,) = masked_after_each_step(pipe, class_labels=[0, 1], image_tokens=given, mask=nothing)  # not one step
    assert torch.equal(made, given)
    seeds = [{"generator": torch.Generator().manual_seed(3)} for _ in range(2)]
    filled = pipe([0, 1], image_tokens=given, mask=everything, output_type="token", **seeds[0]).images
    assert torch.equal(filled, pipe([0, 1], output_type="token", **seeds[1]).images)


def test_a_picture_and_where_it_is_white(pipe: Any) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    tokens = pipe.encode_images(picture)
    white = np.zeros((32, 32), np.uint8)
    white[7, 12] = 255  # one pixel of token (1, 3)
    white[20:28, 8:16] = 128
    white[0, 0] = 127
    expected = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    expected[1, 3] = expected[5:7, 2:4] = True
    for mask in (Image.fromarray(white), white, white > 127, [Image.fromarray(white).convert("RGB")]):
        seen = masked_after_each_step(pipe, class_labels=1, image=picture, mask_image=mask, num_inference_steps=2)
        assert all(torch.equal(grid[0][~expected], tokens[0][~expected]) for grid in seen)
        assert int((seen[0] == CODES).sum()) == 3  # floor(5 cos(pi / 4))


def test_temperature_zero_draws_nothing(pipe: Any) -> None:
    greedy = {"temperature": 0.0, "choice_temperature": 0.0, "output_type": "token"}
    a, b = (pipe(1, generator=torch.Generator().manual_seed(seed), **greedy).images for seed in (1, 2))
    assert torch.equal(a, b)


_GRID = {"image_tokens": torch.zeros(8, 8, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps.*0"),
        ({"choice_temperature": -1.0}, "choice_temperature.*-1.0"),
        ({"mask_schedule": "cubic"}, "'cubic'"),
        ({"mask": torch.ones(8, 8, dtype=torch.bool)}, "without a picture"),
        (_GRID, "without a mask_image or mask"),
        ({**_GRID, "mask": torch.ones(8, 8)}, "torch.float32"),
        ({**_GRID, "mask": torch.ones(4, 8, dtype=torch.bool)}, r"\(1, 4, 8\)"),
        ({**_GRID, "mask_image": Image.new("L", (16, 32))}, r"32 x 32.*\(32, 16\)"),
        ({"mask_image": Image.new("L", (32, 32)), "mask": torch.ones(8, 8, dtype=torch.bool)}, "mask_image and mask"),
    ],
)
def test_what_is_refused(pipe: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(0, **options)
