"""Token after token: the same whatever the cache, and what `generate()` makes."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.testing import CompileCounter

from lgq_hf.generation.sampling import sample
from tests.lgq_hf.generation import reference
from tests.lgq_hf.generation.pipelines import CODES, SIDE, small_pipeline

TOKENS = SIDE * SIDE


@pytest.fixture
def pipe() -> Any:
    """In float64, and with weights that make its choices clear."""
    pipe = small_pipeline("autoregressive")
    pipe.transformer.double()
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    return pipe


def draw(pipe: Any, labels: Any, **options: Any) -> torch.Tensor:
    return pipe(labels, output_type="token", generator=torch.Generator().manual_seed(6), **options).images


@pytest.mark.parametrize(
    ("guidance", "temperature", "top_k", "top_p"),
    [(1.0, 1.0, None, None), (2.5, 0.7, 9, None), (0.5, 1.6, 20, 0.7)],
)
def test_tokens_are_those_of_the_definition(
    pipe: Any, guidance: float, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    seeds = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    made = pipe([2, 0], generator=seeds, guidance_scale=guidance, output_type="token", **options).images.flatten(1)
    for tokens, label, seed in zip(made.tolist(), (2, 0), (5, 6), strict=True):
        assert tokens == reference.autoregressive_tokens(
            pipe.transformer, CODES, label, 3, TOKENS, seed, guidance=guidance, **options
        )


@pytest.mark.parametrize("options", [{"guidance_scale": 2.0, "top_p": 0.8}, {"temperature": 0.0}])
def test_all_caches_give_the_same_tokens(pipe: Any, options: dict[str, Any]) -> None:
    made = [draw(pipe, [0, 2], cache_implementation=cache, **options) for cache in ("static", "dynamic", "none")]
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    given = made[0].roll(1, dims=2)
    completed = [
        draw(pipe, [0, 2], image_tokens=given, keep_rows=3, cache_implementation=cache, **options)
        for cache in ("static", "dynamic", "none")
    ]
    assert torch.equal(completed[0], completed[1]) and torch.equal(completed[0], completed[2])
    assert torch.equal(completed[0][:, :3], given[:, :3]) and not torch.equal(completed[0], made[0])


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_likeliest_tokens_are_those_of_generate(pipe: Any, scale: float) -> None:
    ids = torch.tensor([[CODES], [CODES + 2], [CODES + 1]])
    guidance: dict[str, Any] = {}
    if scale != 1:
        guidance = {"guidance_scale": scale, "negative_prompt_ids": torch.full_like(ids, CODES + 3)}
    no_codes = list(range(CODES, CODES + 4))
    expected = pipe.transformer.generate(
        ids, max_new_tokens=TOKENS, do_sample=False, suppress_tokens=no_codes, **guidance
    )
    made = draw(pipe, [0, 2, 1], temperature=0.0, guidance_scale=scale)
    assert torch.equal(made.flatten(1), expected[:, 1:])
    assert made.unique().numel() > 4


def test_logits_are_those_of_one_pass_over_the_whole_picture(pipe: Any) -> None:
    """Teacher forcing: every token is the likeliest after those before it, by a pass without any cache."""
    made = draw(pipe, [1], temperature=0.0, guidance_scale=3.0).flatten(1)
    with torch.no_grad():
        prefix = torch.tensor([[CODES + 1], [CODES + 3]])
        logits = pipe.transformer(torch.cat([prefix, made.repeat(2, 1)[:, :-1]], 1)).logits[..., :CODES]
    guided = logits[1] + 3.0 * (logits[0] - logits[1])
    assert torch.equal(guided.argmax(-1), made[0])


def test_a_picture_is_completed_from_its_upper_half(pipe: Any) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    tokens = pipe.encode_images(picture)
    made = draw(pipe, [0, 1], image=picture)
    assert torch.equal(made[:, : SIDE // 2], tokens[:, : SIDE // 2].expand(2, -1, -1))
    assert not torch.equal(made[0, SIDE // 2 :], tokens[0, SIDE // 2 :])
    assert torch.equal(draw(pipe, [0], image_tokens=tokens, keep_rows=SIDE), tokens)
    assert torch.equal(draw(pipe, [0], image_tokens=tokens, keep_rows=0), draw(pipe, [0]))


def test_steps_have_one_shape_and_compile_once_without_a_break(pipe: Any) -> None:
    expected = draw(pipe, [0, 1], guidance_scale=2.0)
    counter = CompileCounter()
    pipe.transformer.compile(backend=counter, fullgraph=True)
    for _ in range(2):
        assert torch.equal(draw(pipe, [0, 1], guidance_scale=2.0), expected)
    assert counter.frame_count == 1
    completed = draw(pipe, [0, 1], guidance_scale=2.0, image_tokens=expected, keep_rows=4)
    assert torch.equal(completed[:, :4], expected[:, :4]) and counter.frame_count == 1
    for cache in ("dynamic", "none"):
        assert torch.equal(draw(pipe, [0, 1], guidance_scale=2.0, cache_implementation=cache), expected)
    assert counter.frame_count == 1


def test_logits_of_half_precision_are_drawn_from_in_fp32() -> None:
    pipe = small_pipeline("autoregressive")
    pipe.transformer.bfloat16()
    seen: list[torch.dtype] = []

    def look(logits: torch.Tensor, *given: Any, **options: Any) -> torch.Tensor:
        seen.append(logits.dtype)
        return sample(logits, *given, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lgq_hf.generation.pipeline_autoregressive.sample", look)
        draw(pipe, 0, guidance_scale=2.0)
    assert set(seen) == {torch.float32}


def test_a_grid_that_is_no_square() -> None:
    pipe = small_pipeline("autoregressive", width=5)
    assert draw(pipe, 0).shape == (1, SIDE, 5) and pipe.picture_size == (32, 20)
    with pytest.raises(ValueError, match="40 tokens.*6 x 6"):
        type(pipe)(**pipe.components)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_implementation": "paged"}, "'paged'"),
        ({"keep_rows": 3}, "keep_rows"),
        ({"keep_rows": 9, "image_tokens": torch.zeros(SIDE, SIDE, dtype=torch.int64)}, "0 to 8.*got 9"),
    ],
)
def test_what_is_refused(pipe: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(0, **options)
