"""Losses against NumPy in float64, gradients against finite differences."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.losses import (
    LeCam,
    adaptive_weight,
    conv_weight_gradient,
    hinge_discriminator_loss,
    hinge_generator_loss,
    pixel_loss,
)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, grad: bool = False) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).requires_grad_(grad)


def test_pixel_loss() -> None:
    decoded, pixels = draw(2, 3, 4, 5, seed=1, grad=True), draw(2, 3, 4, 5, seed=2)
    difference = decoded.detach().numpy() - pixels.numpy()
    assert pixel_loss("l1", decoded, pixels).item() == pytest.approx(np.abs(difference).mean())
    assert pixel_loss("l2", decoded, pixels).item() == pytest.approx((difference**2).mean())
    for kind in ("l1", "l2"):
        assert torch.autograd.gradcheck(lambda x, kind=kind: pixel_loss(kind, x, pixels), (decoded,))


def test_pixel_loss_of_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"of the originals' shape \(2, 3, 4, 4\), got \(2, 1, 4, 4\)"):
        pixel_loss("l1", torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="pixel loss must be l1 or l2, got 'huber'"):
        pixel_loss("huber", torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2))


def test_hinge_losses() -> None:
    real, fake = 2 * draw(2, 1, 3, 4, seed=1), 2 * draw(3, 1, 3, 4, seed=2)
    real, fake = real.requires_grad_(), fake.requires_grad_()
    x, y = real.detach().numpy(), fake.detach().numpy()
    wanted = np.maximum(1 - x, 0).mean() / 2 + np.maximum(1 + y, 0).mean() / 2
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(wanted)
    assert hinge_generator_loss(fake).item() == pytest.approx(-y.mean())
    assert torch.autograd.gradcheck(hinge_discriminator_loss, (real, fake))
    assert torch.autograd.gradcheck(hinge_generator_loss, (fake,))


def test_signs() -> None:
    """The discriminator wants high logits for originals, low ones for decoded pictures; the generator the opposite."""
    real, fake = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    gradients = torch.autograd.grad(hinge_discriminator_loss(real, fake), (real, fake))
    assert [gradient.item() for gradient in gradients] == [-0.5, 0.5]
    assert torch.autograd.grad(hinge_generator_loss(fake), fake)[0].item() == -1
    assert hinge_discriminator_loss(torch.tensor([1.0]), torch.tensor([-1.0])).item() == 0


def test_half_precision_is_computed_in_float32() -> None:
    half, other = draw(64, seed=1, dtype=torch.bfloat16), draw(64, seed=2, dtype=torch.bfloat16)
    lecam = LeCam()
    for loss in (
        lambda x, y: pixel_loss("l1", x, y),
        lambda x, y: pixel_loss("l2", x, y),
        hinge_discriminator_loss,
        lambda x, y: hinge_generator_loss(x),
        lecam.regularizer,
        lambda x, y: adaptive_weight(x, y, 10.0),
    ):
        found = loss(half, other)
        assert found.dtype == torch.float32 and found.ndim == 0
        assert torch.equal(found, loss(half.float(), other.float()))


def test_lecam_averages() -> None:
    """The weights of a moving average, divided by their sum."""
    lecam, decay = LeCam(0.9), 0.9
    reals, fakes = draw(40, seed=1), draw(40, seed=2)
    for count, (real, fake) in enumerate(zip(reals, fakes, strict=True), 1):
        lecam.update(real, fake)
        weights = decay ** np.arange(count - 1, -1, -1)
        for average, values in ((lecam.real, reals), (lecam.fake, fakes)):
            wanted = (weights * values[:count].numpy()).sum() / weights.sum()
            assert average.item() == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert lecam.updates.item() == 40


def test_lecam_begins_at_the_first_means_and_forgets_slowly() -> None:
    lecam = LeCam()
    lecam.update(torch.tensor(3.0), torch.tensor(-2.0))
    assert lecam.real.item() == pytest.approx(3) and lecam.fake.item() == pytest.approx(-2)
    lecam.updates.fill_(1_000_000)
    lecam.update(torch.tensor(4.0), torch.tensor(-2.0))
    assert lecam.real.item() == pytest.approx(3.001)


def test_lecam_regularizer() -> None:
    lecam = LeCam().double()
    lecam.update(torch.tensor(0.3), torch.tensor(-0.4))
    real, fake = draw(2, 1, 3, 3, seed=1, grad=True), draw(2, 1, 3, 3, seed=2, grad=True)
    x, y = real.detach().numpy(), fake.detach().numpy()
    wanted = (np.maximum(x + 0.4, 0) ** 2).mean() + (np.maximum(0.3 - y, 0) ** 2).mean()
    assert lecam.regularizer(real, fake).item() == pytest.approx(wanted, rel=1e-5)
    assert torch.autograd.gradcheck(lecam.regularizer, (real, fake))


def test_lecam_state_and_graph() -> None:
    lecam, other = LeCam(), LeCam()
    mean = torch.tensor(1.5, requires_grad=True)
    lecam.update(mean * 2, mean)
    assert not any(buffer.requires_grad for buffer in lecam.buffers())
    other.load_state_dict(lecam.state_dict())
    for module in (lecam, other):
        module.update(torch.tensor(1.0), torch.tensor(0.0))
    assert all(torch.equal(a, b) for a, b in zip(lecam.buffers(), other.buffers(), strict=True))


def test_lecam_decay_out_of_range() -> None:
    with pytest.raises(ValueError, match="decay must lie between 0 and 1, got 1"):
        LeCam(1.0)


CONVOLUTIONS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1},
    "strided": {"kernel_size": (4, 3), "stride": 2, "padding": (1, 0)},
    "grouped": {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conv_weight_gradient(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, **CONVOLUTIONS[name]).to(dtype)
    inputs = draw(2, 4, 9, 8, seed=1, dtype=dtype, grad=True)
    outputs = conv(inputs)
    at_outputs, wanted = torch.autograd.grad(outputs.tanh().square().sum(), (outputs, conv.weight))
    found = conv_weight_gradient(inputs, at_outputs, conv)
    assert found.dtype == dtype and not found.requires_grad
    torch.testing.assert_close(found, wanted)


def test_conv_weight_gradient_of_half_precision() -> None:
    conv = nn.Conv2d(4, 3, 3, padding=1)
    inputs, at_outputs = draw(2, 4, 8, 8, dtype=torch.bfloat16), draw(2, 3, 8, 8, seed=1, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = conv_weight_gradient(inputs, at_outputs, conv)
    assert found.dtype == torch.float32
    wanted = conv_weight_gradient(inputs.double(), at_outputs.double(), conv)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


def test_convolutions_that_do_not_fit() -> None:
    inputs, gradient = torch.zeros(2, 4, 8, 8), torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match="zero padding given in numbers, got padding='same', padding_mode='zeros'"):
        conv_weight_gradient(inputs, gradient, nn.Conv2d(4, 3, 3, padding="same"))
    with pytest.raises(ValueError, match=r"got padding=\(1, 1\), padding_mode='reflect'"):
        conv_weight_gradient(inputs, gradient, nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match=r"inputs of 4 channels .* \(2, 3, 6, 6\), got \(2, 4, 8, 8\) and \(2, 3, 8"):
        conv_weight_gradient(inputs, gradient, nn.Conv2d(4, 3, 3))
    with pytest.raises(ValueError, match=r"inputs of 5 channels"):
        conv_weight_gradient(inputs, gradient, nn.Conv2d(5, 3, 3, padding=1))


def test_adaptive_weight() -> None:
    reconstruction, gan = draw(3, 4, 3, 3, seed=1), 0.1 * draw(3, 4, 3, 3, seed=2)
    wanted = np.linalg.norm(reconstruction.numpy()) / (np.linalg.norm(gan.numpy()) + 1e-6)
    found = adaptive_weight(reconstruction, gan, 1e4)
    assert found.item() == pytest.approx(wanted) and found.ndim == 0
    assert adaptive_weight(reconstruction, gan, 2.5).item() == 2.5
    assert adaptive_weight(reconstruction, 0 * gan, 1e4).item() == 1e4
    assert adaptive_weight(0 * reconstruction, 0 * gan, 1e4).item() == 0
    assert not adaptive_weight(reconstruction.requires_grad_(), gan.requires_grad_(), 2.5).requires_grad


def test_adaptive_weight_balances_the_last_layer() -> None:
    """Against autograd through a decoder: the weighted loss pulls the last weight as hard as reconstruction does."""
    torch.manual_seed(0)
    body, last = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
    inputs = body(torch.randn(2, 4, 8, 8)).relu()
    decoded = last(inputs)
    losses = (pixel_loss("l1", decoded, torch.rand(2, 3, 8, 8)), hinge_generator_loss(decoded.tanh().cumsum(2)))
    gradients = [
        conv_weight_gradient(inputs, torch.autograd.grad(loss, decoded, retain_graph=True)[0], last) for loss in losses
    ]
    weight = adaptive_weight(*gradients, 1e4)
    pulls = [
        torch.autograd.grad(loss, last.weight, retain_graph=True)[0].norm().item()
        for loss in (losses[0], weight * losses[1])
    ]
    assert pulls[0] == pytest.approx(pulls[1], rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_weight_of_gradients_that_are_not_finite_is_nan(bad: float) -> None:
    """1e30 is finite, its square in float32 is not."""
    fine, broken = torch.ones(3, 4), torch.full((3, 4), bad)
    for pair in itertools.permutations((fine, broken)):
        assert adaptive_weight(*pair, 10.0).isnan()


def test_cap_out_of_range() -> None:
    with pytest.raises(ValueError, match="cap must be positive, got 0"):
        adaptive_weight(torch.ones(1), torch.ones(1), 0.0)
