import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from training.losses import DiscriminatorNorm, PatchDiscriminator

NORMS: tuple[DiscriminatorNorm, ...] = ("spectral", "group", "none")


@pytest.fixture(params=NORMS)
def discriminator(request: pytest.FixtureRequest) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(8, 2, request.param).eval()


def pictures(count: int = 2, height: int = 32, width: int = 24) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def test_the_layers_of_isola_et_al() -> None:
    model = PatchDiscriminator(norm="none")
    sizes = [(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride[0]) for conv in convolutions(model)]
    widths = [(3, 64, 2), (64, 128, 2), (128, 256, 2), (256, 512, 1), (512, 1, 1)]
    assert sizes == [(inputs, outputs, (4, 4), stride) for inputs, outputs, stride in widths]
    assert model(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


def test_a_logit_sees_70_pixels() -> None:
    model = PatchDiscriminator(2, norm="none")
    for conv in convolutions(model):
        nn.init.ones_(conv.weight)
    pixels = torch.ones(1, 3, 256, 256, requires_grad=True)
    model(pixels)[0, 0, 15, 15].backward()
    assert pixels.grad is not None
    rows = pixels.grad.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 70


def test_weights_as_drawn() -> None:
    torch.manual_seed(0)
    model = PatchDiscriminator(32, norm="spectral")
    raw = [value for name, value in model.named_parameters() if name.endswith("original")]
    assert len(raw) == 5
    for weight in raw[:-1]:
        assert weight.std().item() == pytest.approx(0.02, rel=0.05) and abs(weight.mean().item()) < 0.002
    assert all((value == 0).all() for name, value in model.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("size", [(12, 12), (33, 50), (47, 15)])
def test_size_of_the_logits(discriminator: PatchDiscriminator, size: tuple[int, int]) -> None:
    assert discriminator(pictures(1, *size)).shape == (1, 1, size[0] // 4 - 2, size[1] // 4 - 2)


def test_only_the_groups_normalise_activations() -> None:
    layers = {norm: [type(layer) for layer in PatchDiscriminator(8, 2, norm).layers] for norm in NORMS}
    assert [kind is nn.GroupNorm for kind in layers["group"]] == [False] * 3 + [True] + [False] * 2 + [True] + [
        False
    ] * 2
    assert not any(kind is nn.GroupNorm for norm in ("spectral", "none") for kind in layers[norm])


def test_a_logit_does_not_depend_on_the_rest_of_the_batch(discriminator: PatchDiscriminator) -> None:
    pixels = pictures(3)
    for mode in (True, False):
        discriminator.train(mode)
        other = copy.deepcopy(discriminator)
        alone = other(pixels[:1])
        torch.testing.assert_close(discriminator(pixels)[:1], alone, rtol=1e-5, atol=1e-6)


def test_spectral_norm_is_that_of_the_whole_matrix() -> None:
    torch.manual_seed(0)
    model = PatchDiscriminator(4, 1)
    for _ in range(200):
        model(pictures(1))
    for conv in convolutions(model.eval()):
        largest = torch.linalg.svdvals(conv.weight.detach().double().flatten(1))[0]
        assert largest.item() == pytest.approx(1, abs=1e-4)


def test_the_power_iteration_advances_in_train_mode_only() -> None:
    model = PatchDiscriminator(4, 1)
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert before
    model.eval()(pictures())
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    model.train()(pictures())
    assert not all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_accumulation_changes_nothing() -> None:
    """Train mode for the first micro-batch alone: gradients and power iteration are those of the whole batch."""
    torch.manual_seed(0)
    whole = PatchDiscriminator(8, 2)
    parts = copy.deepcopy(whole)
    pixels = pictures(4)
    whole(pixels).mean().backward()
    for number, part in enumerate(pixels.chunk(4)):
        parts.train(number == 0)
        (parts(part).mean() / 4).backward()
    for (name, mine), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert all(torch.equal(a, b) for a, b in zip(whole.buffers(), parts.buffers(), strict=True))


@pytest.mark.parametrize("norm", NORMS)
def test_gradients(norm: DiscriminatorNorm) -> None:
    torch.manual_seed(0)
    model = PatchDiscriminator(8, 1, norm, in_channels=1).double().eval()
    pixels = torch.randn(1, 1, 6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (pixels,))
    name, weight = next((name, value) for name, value in model.named_parameters() if value.ndim == 4)

    def logits(changed: Tensor) -> Tensor:
        return torch.func.functional_call(model, {name: changed}, (pixels.detach(),))

    assert torch.autograd.gradcheck(logits, (weight.detach().clone().requires_grad_(),))


def test_saved_loaded_and_copied(
    discriminator: PatchDiscriminator, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    discriminator.train()(pictures())
    discriminator.eval()
    save_file(discriminator.state_dict(), tmp_path / "discriminator.safetensors")
    loaded = PatchDiscriminator(8, 2, request.node.callspec.params["discriminator"]).eval()
    loaded.load_state_dict(load_file(tmp_path / "discriminator.safetensors"))
    wanted = discriminator(pictures())
    assert torch.equal(loaded(pictures()), wanted)
    twin = copy.deepcopy(discriminator)
    assert torch.equal(twin(pictures()), wanted)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert torch.equal(discriminator(pictures()), wanted)


@pytest.mark.parametrize("training", [True, False])
def test_compiled(discriminator: PatchDiscriminator, training: bool) -> None:
    discriminator.train(training)
    twin = copy.deepcopy(discriminator)
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    for _ in range(2):
        wanted = discriminator(pictures())
        found = compiled(pictures())
        torch.testing.assert_close(found, wanted)
    wanted.mean().backward()
    found.mean().backward()
    for mine, other in zip(discriminator.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_channels_last(discriminator: PatchDiscriminator) -> None:
    wanted = discriminator(pictures())
    moved = discriminator.to(memory_format=torch.channels_last)
    found = moved(pictures().contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_autocast(discriminator: PatchDiscriminator) -> None:
    discriminator.train()
    twin = copy.deepcopy(discriminator)
    wanted = discriminator(pictures())
    with torch.autocast("cpu", torch.bfloat16):
        found = twin(pictures())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=0.05, atol=0.02)
    assert all(torch.equal(a, b) for a, b in zip(discriminator.buffers(), twin.buffers(), strict=True))
    found.float().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in twin.parameters())


def test_weights_are_made_outside_autocast() -> None:
    """On a GPU, autocast would run the power iteration's products in half precision; on a CPU it leaves them alone."""
    seen: list[bool] = []

    class Watch(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return weight

    model = PatchDiscriminator(4, 1)
    for conv in convolutions(model):
        register_parametrization(conv, "weight", Watch())
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        model(pictures())
        assert torch.is_autocast_enabled("cpu")
    assert seen == [False] * 3


def test_pictures_that_do_not_fit() -> None:
    model = PatchDiscriminator(8, 2)
    with pytest.raises(ValueError, match="at least 12x12 pixels, got 12x11: give larger pictures, or .*num_layers"):
        model(pictures(1, 12, 11))
    with pytest.raises(ValueError, match=r"expected pictures of shape \(B, 3, H, W\), got \(1, 4, 32, 32\)"):
        model(torch.zeros(1, 4, 32, 32))
    with pytest.raises(ValueError, match=r"expected pictures of shape \(B, 3, H, W\), got \(3, 32, 32\)"):
        model(torch.zeros(3, 32, 32))


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        PatchDiscriminator(num_layers=0)
    with pytest.raises(ValueError, match="norm must be spectral, group or none, got 'batch'"):
        PatchDiscriminator(norm="batch")
    with pytest.raises(ValueError, match="base_channels must be a multiple of 8, got 12"):
        PatchDiscriminator(12, norm="group")
