"""The masked transformer as a model of transformers, and what it may depend on."""

from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel

from lgq_hf.generation import LGQMaskedConfig, LGQMaskedTransformer

SMALL = {
    "codebook_size": 12,
    "num_classes": 3,
    "grid_height": 2,
    "grid_width": 3,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def build(**changes: int | float) -> LGQMaskedTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LGQMaskedTransformer(LGQMaskedConfig(**{**SMALL, **changes})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def model() -> LGQMaskedTransformer:
    return build()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 13, (4, 6), generator=torch.Generator().manual_seed(1))


def test_logits_are_of_codes_alone_and_the_loss_of_what_is_compared(
    model: LGQMaskedTransformer, tokens: torch.Tensor
) -> None:
    labels = torch.randint(0, 12, (4, 6)).masked_fill(tokens < 6, -100)
    output = model(tokens, torch.tensor([0, 1, 2, 3]), labels)
    assert output.logits.shape == (4, 6, 12)
    expected = -output.logits.double().log_softmax(-1)[labels >= 0].gather(1, labels[labels >= 0][:, None]).mean()
    torch.testing.assert_close(output.loss.double(), expected, rtol=1e-5, atol=0)
    assert model(tokens).loss is None


def test_every_place_sees_every_token_the_class_and_itself(model: LGQMaskedTransformer, tokens: torch.Tensor) -> None:
    before = model(tokens, torch.tensor([0, 0, 0, 0])).logits
    for place in range(6):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % 13
        assert ((model(changed, torch.tensor([0, 0, 0, 0])).logits - before).abs().amax(-1) > 1e-6).all()
    assert ((model(tokens, torch.tensor([1, 1, 1, 1])).logits - before).abs().amax(-1) > 1e-6).all()
    assert torch.equal(model(tokens).logits, model(tokens, torch.full((4,), 3)).logits)  # the last one stands for none


def test_a_grid_of_masks_alone_tells_its_places_apart(model: LGQMaskedTransformer) -> None:
    logits = model(torch.full((1, 6), 12)).logits[0]
    apart = torch.cdist(logits, logits) + torch.eye(6)
    assert (apart > 1e-4).all()


def test_save_load_and_auto_class(model: LGQMaskedTransformer, tokens: torch.Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    for loaded in (LGQMaskedTransformer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert torch.equal(loaded(tokens).logits, model(tokens).logits) and not loaded.training


def test_implementations_of_attention_agree(model: LGQMaskedTransformer, tokens: torch.Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    eager = LGQMaskedTransformer.from_pretrained(tmp_path, attn_implementation="eager")
    assert model.config._attn_implementation == "sdpa" and eager.config._attn_implementation == "eager"
    torch.testing.assert_close(eager(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-4)
    exact = LGQMaskedTransformer.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float64)
    torch.testing.assert_close(exact(tokens).logits, model(tokens).logits.double(), rtol=1e-4, atol=1e-4)


def test_half_precision_under_autocast_and_cast(model: LGQMaskedTransformer, tokens: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(tokens).logits
    torch.testing.assert_close(mixed.float(), model(tokens).logits, rtol=0.1, atol=0.3)
    cast = build().to(torch.bfloat16)(tokens).logits
    assert cast.dtype == torch.bfloat16
    torch.testing.assert_close(cast.float(), model(tokens).logits, rtol=0.1, atol=0.3)


def test_gradients_reach_every_parameter_with_and_without_checkpointing(tokens: torch.Tensor) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build(dropout=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        labels = tokens.clamp(max=11)
        model(tokens, torch.tensor([0, 1, 2, 3]), labels).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
        gradients.append([parameter.grad for parameter in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_what_blocks_add_starts_small_and_norms_at_one() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LGQMaskedTransformer(LGQMaskedConfig(**{**SMALL, "hidden_size": 128, "num_hidden_layers": 8}))
    block = model.blocks[3]
    assert float(block.attention.out.weight.detach().std()) == pytest.approx(0.02 / 4, rel=0.05)
    assert float(block.feed_forward[2].weight.detach().std()) == pytest.approx(0.02 / 4, rel=0.05)
    assert float(block.attention.query_key_value.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert torch.equal(block.attention.query_norm.weight, torch.ones(32)) and not model.tokens.bias.any()


def test_another_grid_is_refused(model: LGQMaskedTransformer) -> None:
    with pytest.raises(ValueError, match=r"expected input_ids \(B, 6\), a grid of 2 x 3 tokens .* got shape \(1, 4\)"):
        model(torch.zeros(1, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    "change",
    [
        {"codebook_size": 0},
        {"num_classes": -1},
        {"num_attention_heads": 3},
        {"intermediate_size": 0},
        {"dropout": 1.0},
        {"layer_norm_eps": 0.0},
    ],
)
def test_configurations_that_are_none(change: dict) -> None:
    with pytest.raises((ValueError, StrictDataclassError), match=next(iter(change))):
        LGQMaskedConfig(**{**SMALL, **change})
