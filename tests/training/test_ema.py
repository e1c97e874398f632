"""Averages against a loop in float64."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode

from lgq_hf import LGQConfig, LGQModel
from training.losses import PatchDiscriminator
from training.optimization import ExponentialAverage


class Tied(nn.Module):
    """Parameters shared, parametrized and of whole numbers, buffers of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, bias=False)
        self.second = nn.Linear(3, 4)
        self.second.weight = self.first.weight
        self.normed = spectral_norm(nn.Linear(4, 4))
        self.steps = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
        self.register_buffer("usage", torch.zeros(3))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("passing", torch.zeros(2), persistent=False)


def move(model: nn.Module, seed: int) -> None:
    """Changes every tensor of a model, as a step of training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                value += torch.randn(value.shape, generator=generator)
            else:
                value += 1


def states(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in (*model.named_parameters(), *model.named_buffers())}


class Waits(TorchDispatchMode):
    """Counts what a device would have to be waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        self.count += func in (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("make", [Tied, lambda: PatchDiscriminator(4, 1)], ids=["tied", "spectral"])
def test_values(make: Callable[[], nn.Module], warmup: bool) -> None:
    torch.manual_seed(0)
    model = make()
    ema = ExponentialAverage(model, 0.9, warmup=warmup)
    wanted = {name: value.detach().double() for name, value in model.named_parameters() if value.is_floating_point()}
    for step in range(120):
        move(model, step)
        ema.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step)) if warmup else 0.9
        for name, average in wanted.items():
            wanted[name] = decay * average + (1 - decay) * model.get_parameter(name).detach().double()
    found = dict(ema.average.named_parameters())
    for name, average in wanted.items():
        torch.testing.assert_close(found[name].detach().double(), average, rtol=1e-5, atol=1e-5)
    for name, buffer in model.named_buffers():
        assert torch.equal(ema.average.get_buffer(name), buffer)
    if isinstance(model, Tied) and isinstance(ema.average, Tied):
        assert ema.average.first.weight is ema.average.second.weight
        assert ema.average.steps.tolist() == [120, 120]


def test_warmup_ends_at_the_decay() -> None:
    ema = ExponentialAverage(nn.Linear(1, 1), 0.999)
    assert ema.decay_at(0) == 0.1 and ema.decay_at(8) == 0.5 and ema.decay_at(10**6) == 0.999
    assert ExponentialAverage(nn.Linear(1, 1), 0.999, warmup=False).decay_at(0) == 0.999


def test_the_copy_is_apart() -> None:
    model = Tied().train()
    ema = ExponentialAverage(model, 0.9)
    before = states(ema.average)
    move(model, 0)
    assert all(torch.equal(value, before[name]) for name, value in states(ema.average).items())
    assert model.training and not any(module.training for module in ema.average.modules())
    assert not any(parameter.requires_grad for parameter in ema.average.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters() if parameter.is_floating_point())


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_keep(dtype: torch.dtype) -> None:
    model = Tied()
    ema = ExponentialAverage(model, 0.9)
    plain = copy.deepcopy(ema)
    before = states(ema.average)
    move(model, 0)
    ema.update(model, 0, keep=torch.ones((), dtype=dtype))
    assert all(torch.equal(value, before[name]) for name, value in states(ema.average).items())
    ema.update(model, 0, keep=torch.zeros((), dtype=dtype))
    plain.update(model, 0)
    for name, value in states(ema.average).items():
        assert torch.equal(value, states(plain.average)[name]) and not torch.equal(value, before[name])


@pytest.mark.parametrize("keep", [None, torch.tensor(True), torch.tensor(0.0)])
def test_an_update_waits_for_nothing(keep: Tensor | None) -> None:
    model = Tied()
    ema = ExponentialAverage(model, 0.9)
    with Waits() as waits:
        ema.update(model, 3, keep)
    assert waits.count == 0
    with Waits() as waits:
        float(model.usage.sum())
    assert waits.count == 1


def test_state_round_trip() -> None:
    model = Tied()
    ema = ExponentialAverage(model, 0.9)
    for step in range(3):
        move(model, step)
        ema.update(model, step)
    other = ExponentialAverage(Tied(), 0.9)
    other.load_state_dict(copy.deepcopy(ema.state_dict()))
    for average in (ema, other):
        average.update(model, 3)
    assert all(torch.equal(value, states(other.average)[name]) for name, value in states(ema.average).items())
    state = dict(ema.state_dict())
    del state["usage"]
    with pytest.raises(RuntimeError, match='Missing key.*"usage"'):
        other.load_state_dict(state)
    with pytest.raises(RuntimeError, match='Unexpected key.*"more"'):
        other.load_state_dict({**ema.state_dict(), "more": torch.zeros(1)})


def test_a_tokenizer() -> None:
    torch.manual_seed(0)
    model = LGQModel(
        LGQConfig(base_channels=8, channel_multiplier=[1, 2], num_res_blocks=1, latent_channels=4, codebook_size=16)
    ).train()
    ema = ExponentialAverage(model, 0.99)
    assert isinstance(ema.average, LGQModel)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    result = model(pixels)
    (result.decoded_pixel_values.abs().mean() + result.embedding_loss).backward()
    optimizer.step()
    model.quantizer.set_temperature(0.25)
    ema.update(model, 10**6)
    assert ema.average.quantizer.temperature.item() == 0.25
    tokens = ema.average.encode(pixels).image_tokens
    assert tokens.shape == (2, 8, 8)


def test_what_does_not_learn_is_copied() -> None:
    """Such as a codebook that is a moving average itself, whose dead codes jump."""
    torch.manual_seed(0)
    config = LGQConfig(
        quantizer="vq", codebook_update="ema", codebook_size=8, latent_channels=8, base_channels=8,
        channel_multiplier=[1], num_res_blocks=1,
    )  # fmt: skip
    model = LGQModel(config)
    ema = ExponentialAverage(model, 0.9, warmup=False)
    before = states(model)
    move(model, 1)
    ema.update(model, 0)
    assert torch.equal(ema.average.quantizer.codebook, model.quantizer.codebook)
    assert not torch.equal(model.quantizer.codebook, before["quantizer.codebook"])
    weight = "encoder.stem.weight"
    expected = 0.9 * before[weight] + 0.1 * states(model)[weight]
    torch.testing.assert_close(ema.average.encoder.stem.weight, expected)


def test_arguments_out_of_range() -> None:
    for decay in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match=f"decay must lie between 0 and 1, got {decay}"):
            ExponentialAverage(nn.Linear(1, 1), decay)
    with pytest.raises(ValueError, match="got weight in torch.bfloat16: keep the model in float32"):
        ExponentialAverage(nn.Linear(1, 1).bfloat16(), 0.9)
    ema = ExponentialAverage(nn.Linear(1, 1), 0.9)
    with pytest.raises(ValueError, match=r"keep must be a 0-dim tensor, got shape \(1,\)"):
        ema.update(nn.Linear(1, 1), 0, keep=torch.zeros(1))
    with pytest.raises(ValueError, match=r"model that the average was made from, got one that differs in \['bias'\]"):
        ema.update(nn.Linear(1, 1, bias=False), 0)
