"""Training mode: the loss and its statistics, where gradients go, and activation checkpointing."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lgq_hf import LGQModel


def test_loss_and_statistics_are_there_in_training_alone(
    trainable: LGQModel, make_pixels: Callable[..., Tensor]
) -> None:
    model = trainable
    pixels = make_pixels(model)
    for output in (model(pixels), model.encode(pixels)):
        assert output.embedding_loss is None
        assert output.statistics is None
        assert not {"embedding_loss", "statistics"} & set(output.keys())
    model.train()
    for output in (model(pixels), model.encode(pixels)):
        assert output.embedding_loss.shape == ()
        assert output.embedding_loss.requires_grad
        assert output.embedding_loss.isfinite()
        assert output.embedding_loss > 0 or model.config.quantizer == "fsq"  # which has none
        for name, value in output.statistics.items():
            assert value.shape == (), name
            assert not value.requires_grad, name
            assert value.isfinite(), name


def test_embedding_loss_is_the_weighted_sum_of_its_terms(
    build_model: Callable[..., LGQModel], make_pixels: Callable[..., Tensor]
) -> None:
    model = build_model("sq_l2", lambda_peak=0.3, lambda_usage=0.7, lambda_floor=0.01, min_perplexity=31.5).train()
    output = model(make_pixels(model))
    terms = {name: float(value) for name, value in output.statistics.items()}
    assert terms["floor_loss"] == pytest.approx((31.5 - terms["soft_perplexity"]) ** 2, rel=1e-4)
    assert min(terms[f"{name}_loss"] for name in ("quantization", "peak", "usage", "floor")) > 0
    expected = (
        terms["quantization_loss"] + 0.3 * terms["peak_loss"] + 0.7 * terms["usage_loss"] + 0.01 * terms["floor_loss"]
    )
    assert output.embedding_loss.item() == pytest.approx(expected, rel=1e-5)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_reconstruction_gradient_reaches_every_part(trainable: LGQModel, make_pixels: Callable[..., Tensor]) -> None:
    model = trainable
    pixels = make_pixels(model)
    (model.train()(pixels).decoded_pixel_values - pixels).square().mean().backward()
    found = gradients(model)
    # codes that the straight-through gradient passes by learn from the quantizer's loss alone
    passed_by = "quantizer." if model.config.quantizer in ("vq", "simvq") else "nothing"
    names = [name for name, p in model.named_parameters() if p.requires_grad and not name.startswith(passed_by)]
    assert sorted(found) == sorted(names)
    assert all(grad.isfinite().all() for grad in found.values())
    parts = ["encoder.stem", "encoder.to_emb", "decoder.from_emb", "decoder.out"]
    parts += ["pre_quant_norm"] if model.config.backbone == "lgq" else []
    parts += ["pre_quant", "post_quant"] if model.config.code_dim is not None else []
    for name in [f"{part}.weight" for part in parts] + [n for n in found if n.startswith("quantizer.")]:
        assert found[name].abs().max() > 0, name


def test_embedding_loss_gradient_stops_at_the_codes(trainable: LGQModel, make_pixels: Callable[..., Tensor]) -> None:
    model = trainable
    model.train()(make_pixels(model)).embedding_loss.backward()
    found = gradients(model)
    assert not [name for name in found if name.startswith(("decoder.", "post_quant."))]
    missing = {name for name, p in model.named_parameters() if p.requires_grad} - found.keys()
    assert all(name.startswith(("decoder.", "post_quant.")) for name in missing)
    if model.config.quantizer == "fsq":  # which has no loss
        assert not any(grad.any() for grad in found.values())
        return
    for name in ["encoder.stem.weight", *(n for n in found if n.startswith("quantizer."))]:
        assert found[name].abs().max() > 0, name


@pytest.mark.parametrize("case", ["sq_l2", "product_identity"], indirect=True)
def test_one_step_of_training_moves_every_part(model: LGQModel, make_pixels: Callable[..., Tensor]) -> None:
    pixels = make_pixels(model, 4, (3, 3))
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-2)

    def loss() -> Tensor:
        output = model(pixels)
        return (output.decoded_pixel_values - pixels).square().mean() + output.embedding_loss

    first = loss()
    first.backward()
    optimizer.step()
    after = model.state_dict()
    for name in ("encoder.stem.weight", "quantizer.centers", "decoder.out.weight"):
        assert not torch.equal(after[name], before[name]), name
    assert torch.equal(after["quantizer.temperature"], before["quantizer.temperature"])
    for _ in range(20):
        optimizer.zero_grad()
        last = loss()
        last.backward()
        optimizer.step()
    assert last < first


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@pytest.mark.parametrize(
    "case", ["sq_l2", "cosine_no_attention", "identity_projected_f16", "vqgan_lgq"], indirect=True
)
def test_gradient_checkpointing(model: LGQModel, make_pixels: Callable[..., Tensor]) -> None:
    """Same loss and gradients; every block runs twice, and far less is kept for the backward pass."""
    pixels = make_pixels(model, 2, (3, 3))
    runs = dict.fromkeys((n for n, m in model.named_modules() if type(m).__name__.endswith("Block")), 0)
    assert all(isinstance(model.get_submodule(name), GradientCheckpointingLayer) for name in runs)
    assert len(runs) >= 2 * len(model.config.channel_multiplier)

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            runs[name] += 1

        return hook

    for name in runs:
        first = next(model.get_submodule(name).children())  # hooks of the block itself stay outside the checkpoint
        first.register_forward_pre_hook(count(name))

    def step() -> tuple[float, dict[str, Tensor], int, set[int]]:
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        runs.update(dict.fromkeys(runs, 0))
        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(pixels)
            loss = (output.decoded_pixel_values - pixels).square().mean() + output.embedding_loss
        loss.backward()
        return loss.item(), gradients(model), sum(kept.values()), set(runs.values())

    model.train()
    loss, expected, memory, times = step()
    assert times == {1}
    model.gradient_checkpointing_enable()
    checkpointed_loss, checkpointed, checkpointed_memory, times = step()
    assert times == {2}
    assert checkpointed_memory < 0.6 * memory
    assert checkpointed_loss == loss
    assert checkpointed.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(checkpointed[name], expected[name])] == []
