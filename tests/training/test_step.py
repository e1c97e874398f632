"""The optimizer step: who learns from what, and that sharing it changes nothing."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training import steps
from training.losses import hinge_discriminator_loss, hinge_generator_loss, pixel_loss
from training.step import TrainingStep

ROOT = Path(__file__).parents[2]
NO_GAN = {"weight": 0}


@pytest.fixture(autouse=True)
def _alone() -> None:
    steps.forget_processes()


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def assert_same_rows(a: list[dict[str, float]], b: list[dict[str, float]], tolerance: float) -> None:
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left == pytest.approx(right, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("estimator", ["soft", "identity"])
@pytest.mark.parametrize("micro_batch_size", [4, 1])
def test_accumulation_changes_nothing(estimator: str, micro_batch_size: int) -> None:
    recipe = steps.changed(model={"straight_through": estimator}, loss={"perceptual_weight": 0.3})
    results = []
    for size in (8, micro_batch_size):
        step = steps.make(recipe, dtype=torch.float64, perceptual=steps.Blur())
        rows = steps.run(step, steps.pictures(torch.float64), size)
        results.append((rows, steps.weights(step)))
    assert_same_rows(results[0][0], results[1][0], 1e-6)
    assert_same(results[0][1], results[1][1], 1e-6)
    last = results[0][0][-1]
    assert last["usage_loss"] > 1 and last["floor_loss"] > 0 and last["gan_weight"] > 0 and last["lecam_loss"] > 0


def test_accumulation_changes_nothing_in_fp32_beyond_rounding() -> None:
    results = []
    for size in (8, 4):
        step = steps.make(steps.changed())
        results.append((steps.run(step, steps.pictures(), size), steps.weights(step)))
    assert_same_rows(results[0][0], results[1][0], 2e-4)
    # Adam divides a gradient by its own size: where one is nothing but rounding, its step is up to the whole rate
    differences = [(a - results[1][1][name]).abs().flatten() for name, a in results[0][1].items()]
    assert torch.cat(differences).max() < steps.STEPS * 1e-3
    assert (torch.cat(differences) > 1e-4).float().mean() < 0.01


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, str(Path(__file__).with_name("steps.py")), str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    whole = steps.make(steps.changed(), dtype=torch.float64)
    rows = steps.run(whole, steps.pictures(torch.float64), 8)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]
    for passes, first in ranks[0].items():
        for name, tensor in first["weights"].items():
            assert torch.equal(tensor, ranks[1][passes]["weights"][name]), name
        assert_same_rows(first["rows"], rows, 1e-6)
        assert_same(first["weights"], steps.weights(whole), 1e-6)
    # gradients are sent once a step, however many passes it has
    assert len({first["messages"] for first in ranks[0].values()}) == 1
    model, discriminator = steps.STEPS, steps.STEPS - 1  # which begins at step 1
    assert ranks[0]["passes of 4"]["messages"] == model + discriminator


def _keep_gradients(step: TrainingStep, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Tensor]]:
    """Lets the step compute gradients and not apply them."""
    kept: dict[str, list[Tensor]] = {}

    def keep(skip: Tensor, optimizer: Any) -> None:
        name = "model" if optimizer is step.optimizer else "discriminator"
        kept[name] = [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]

    monkeypatch.setattr("training.optimization.step_unless", keep)
    return kept


def _parameters(optimizer: Any) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_each_loss_reaches_its_own_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against losses written out here and walked back by autograd."""
    recipe = steps.changed(
        optimizer={"max_grad_norm": 1e9}, discriminator={"start": 0, "warmup": 0, "ramp": 0, "adaptive": False}
    )
    step = steps.make(recipe, dtype=torch.float64, perceptual=steps.Blur())
    pixels = steps.pictures(torch.float64)[0]
    kept = _keep_gradients(step, monkeypatch)
    step([pixels], 0)
    assert step.discriminator is not None
    output = step.model(pixels)
    decoded = output.decoded_pixel_values
    picture = (decoded + 1) / 2
    step.discriminator.eval()  # the power iteration of the step stands
    generator = (
        pixel_loss("l1", decoded, pixels)
        + steps.Blur()(picture, (pixels + 1) / 2).mean()
        + output.embedding_loss
        + 0.5 * hinge_generator_loss(step.discriminator(decoded))
    )
    expected = torch.autograd.grad(generator, _parameters(step.optimizer), retain_graph=True)
    # spectral norm iterated between the two passes: the model saw the weights before it
    for gradient, wanted in zip(kept["model"], expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0.2, atol=1e-3)
    real, fake = step.discriminator(pixels), step.discriminator(decoded.detach())
    regularizer = 0.1 * (real.square().mean() + fake.square().mean())  # LeCAM before its first average, which is 0
    assert step.recipe.discriminator.lecam == 0.1
    lecam = torch.relu(real).square().mean() + torch.relu(-fake).square().mean()
    critic = hinge_discriminator_loss(real, fake) + 0.1 * lecam
    assert regularizer >= 0.1 * lecam
    expected = torch.autograd.grad(critic, _parameters(step.discriminator_optimizer))
    for gradient, wanted in zip(kept["discriminator"], expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


ALONE: dict[str, Any] = {"train_only": "decoder", "start_from": "a folder", "quantizer": {"init_method": "keep"}}


@pytest.mark.parametrize(
    ("fields", "sections"),
    [
        ({}, {}),
        ({"code_dim": 4, "dead_code_threshold": 0.5}, {"discriminator": NO_GAN}),
        ({"quantizer": "vq", "codebook_update": "ema", "dead_code_threshold": 0.5}, {"optimizer": {"ema_decay": 0}}),
        ({"quantizer": "fsq", "levels": [8, 4], "code_dim": 2}, {"engine": {"gradient_checkpointing": True}}),
    ],
)
def test_a_decoder_that_learns_alone_leaves_the_tokens(sections: dict[str, Any], fields: dict[str, Any]) -> None:
    if "quantizer" in fields:  # LGQ's own settings have no meaning then
        fields = {"lambda_usage": 0.005, "lambda_peak": 0.005, "lambda_floor": 0.0, "min_perplexity": 0.0} | fields
    recipe = steps.changed(**sections, **ALONE, model=fields)
    results = []
    for size in (8, 4):
        step = steps.make(recipe, dtype=torch.float64)
        before = {name: tensor.clone() for name, tensor in step.model.state_dict().items()}
        step.model.train()  # as validation leaves a model that has no average
        rows = steps.run(step, steps.pictures(torch.float64), size)
        results.append((rows, steps.weights(step)))
        assert rows[-1]["loss"] < rows[0]["loss"]
        assert not {"embedding_loss", "usage_loss", "temperature"} & rows[0].keys()
        for model in (step.model, step.published):
            for name, tensor in model.state_dict().items():
                learns = name.startswith(("decoder.", "post_quant."))
                assert torch.equal(tensor, before[name]) != learns, name
    assert_same_rows(results[0][0], results[1][0], 1e-6)
    assert_same(results[0][1], results[1][1], 1e-6)


def test_a_decoder_that_learns_alone_learns_from_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = steps.changed(**ALONE, optimizer={"max_grad_norm": 1e9}, discriminator=NO_GAN)
    monkeypatch.setattr("training.optimization.step_unless", lambda skip, optimizer: None)  # gradients stay
    step = steps.make(recipe, dtype=torch.float64, perceptual=steps.Blur())
    pixels = steps.pictures(torch.float64)[0]
    step([pixels], 0, measure=True)
    decoded = step.model.decode(step.model.encode(pixels).image_tokens).decoded_pixel_values
    loss = pixel_loss("l1", decoded, pixels) + steps.Blur()((decoded + 1) / 2, (pixels + 1) / 2).mean()
    parameters = list(step.model.decoder.parameters())
    for parameter, wanted in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-9, atol=1e-12)
    assert all(parameter.grad is None for parameter in step.model.encoder.parameters())
    row = step.take_window()[0]
    assert row["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    assert "straight_through_gain" not in row


@pytest.mark.parametrize("fields", [{}, {"code_dim": 4, "dead_code_threshold": 0.5}])
def test_an_autoencoder_that_learns_alone_passes_the_codes_by(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = steps.changed(
        train_only="autoencoder", optimizer={"max_grad_norm": 1e9}, discriminator=NO_GAN, model=fields
    )
    step = steps.make(recipe, dtype=torch.float64)
    codes = {name: tensor.clone() for name, tensor in step.model.quantizer.state_dict().items()}
    rows = steps.run(step, steps.pictures(torch.float64), 4)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert not {"embedding_loss", "usage_loss", "temperature"} & rows[0].keys()
    for model in (step.model, step.published):
        assert all(torch.equal(tensor, codes[name]) for name, tensor in model.quantizer.state_dict().items())
        pixels = steps.pictures(torch.float64)[0]
        encoded = model.encode(pixels)  # what validation decodes
        assert torch.equal(encoded.quantized_last_hidden_state, encoded.last_hidden_state)
    monkeypatch.setattr("training.optimization.step_unless", lambda skip, optimizer: None)  # gradients stay
    step([pixels], len(rows), measure=True)
    decoded = step.model.decode_codes(step.model.latents(pixels)).decoded_pixel_values
    parameters = [*step.model.encoder.parameters(), *step.model.decoder.parameters()]
    wanted = torch.autograd.grad(pixel_loss("l1", decoded, pixels), parameters)
    for parameter, gradient in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
    assert "straight_through_gain" not in step.take_window()[0]


def test_without_power_iteration_the_model_gradient_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = steps.changed(
        optimizer={"max_grad_norm": 1e9},
        discriminator={"start": 0, "warmup": 0, "ramp": 0, "adaptive": False, "norm": "none"},
    )
    step = steps.make(recipe, dtype=torch.float64)
    pixels = steps.pictures(torch.float64)[0]
    kept = _keep_gradients(step, monkeypatch)
    step([pixels], 0)
    assert step.discriminator is not None
    output = step.model(pixels)
    adversarial = hinge_generator_loss(step.discriminator(output.decoded_pixel_values))
    loss = pixel_loss("l1", output.decoded_pixel_values, pixels) + output.embedding_loss + 0.5 * adversarial
    for gradient, wanted in zip(kept["model"], torch.autograd.grad(loss, _parameters(step.optimizer)), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


def test_adaptive_weight_balances_the_last_layer_with_the_step_before() -> None:
    recipe = steps.changed(discriminator={"start": 0, "warmup": 0, "ramp": 0})
    step = steps.make(recipe, dtype=torch.float64)
    pixels = steps.pictures(torch.float64)[0]
    before = {name: value.clone() for name, value in step.model.state_dict().items()}
    critic = {name: value.clone() for name, value in step.discriminator.state_dict().items()}  # type: ignore[union-attr]
    step([pixels], 0)
    assert step.take_window()[0]["gan_weight"] == 0  # nothing is known at the first step
    found = step.adaptive
    step.model.load_state_dict(before)
    step.discriminator.load_state_dict(critic)  # type: ignore[union-attr]
    step.discriminator.eval()  # type: ignore[union-attr]
    decoded = step.model(pixels).decoded_pixel_values
    last = step.model.decoder.out.weight
    norms = [
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        for loss in (pixel_loss("l1", decoded, pixels), hinge_generator_loss(step.discriminator(decoded)))  # type: ignore[misc]
    ]
    torch.testing.assert_close(found, norms[0] / (norms[1] + 1e-6), rtol=1e-5, atol=0)
    step([pixels], 1)
    assert step.take_window()[0]["gan_weight"] == pytest.approx(0.5 * float(found), rel=1e-6)


def test_cap_of_the_adaptive_weight() -> None:
    step = steps.make(steps.changed(discriminator={"start": 0, "warmup": 0, "ramp": 0, "adaptive_cap": 0.25}))
    rows = steps.run(step, steps.pictures(), 8)
    assert rows[1]["gan_weight"] == pytest.approx(0.125)


def test_the_discriminator_learns_before_the_model_hears_it() -> None:
    recipe = steps.changed(discriminator={"start": 2, "warmup": 2, "ramp": 2, "adaptive": False})
    with_gan, without = steps.make(recipe), steps.make(steps.changed(discriminator=NO_GAN))
    first = steps.weights(with_gan)
    rows = []
    for number, pixels in enumerate(steps.pictures(steps=7)):
        for step in (with_gan, without):
            step([pixels], number)
        rows.append(with_gan.take_window()[0])
        moved = any(
            not torch.equal(first[name], tensor)
            for name, tensor in steps.weights(with_gan).items()
            if name.startswith("discriminator")
        )
        assert moved == (number >= 2)
        same = all(
            torch.equal(a, b) for a, b in zip(with_gan.model.parameters(), without.model.parameters(), strict=True)
        )
        assert same == (number <= 4)  # step 4 hears it with weight 0, step 5 with half
    assert ["gan_weight" in row for row in rows] == [False] * 2 + [True] * 5
    assert [row.get("gan_weight", 0) for row in rows] == pytest.approx([0, 0, 0, 0, 0, 0.25, 0.5])


class CountWaits(TorchDispatchMode):
    """Counts where the host would wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal.", "aten.masked_select")
        self.count += str(func).startswith(names)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_step_never_waits_for_the_device(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = steps.make(steps.changed(engine={"mixed_precision": precision}))
    # these two look at values on a CPU alone
    monkeypatch.setattr(step.model, "_check_pixels", lambda pixels: None)
    monkeypatch.setattr(
        "training.optimization.count_tokens", lambda tokens, size: torch.zeros(size, dtype=torch.int64)
    )
    batches = steps.pictures()
    step([batches[0]], 0)
    with CountWaits() as waits:
        for number, batch in enumerate(batches[1:], 1):
            step(list(batch.split(4)), number)
    assert waits.count == 0
    with waits:
        step.failure()
    assert waits.count > 0


def test_compiled_parts_learn_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the graphs that torch.compile captures, run by torch's own kernels."""
    compile_function = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_function(function, backend="aot_eager"))
    results = []
    for compiled in (False, True):
        step = steps.make(steps.changed(engine={"compile": compiled}))
        results.append(steps.run(step, steps.pictures(), 4))
    assert_same_rows(*results, tolerance=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_fp32(precision: str) -> None:
    full, half = (steps.make(steps.changed(engine={"mixed_precision": p})) for p in ("no", precision))
    half.scaler = torch.amp.GradScaler("cpu", init_scale=256, enabled=precision == "fp16")  # none is skipped
    seen = []
    half.model.quantizer.register_forward_hook(lambda module, inputs, output: seen.append(output.codes.dtype))
    rows = [steps.run(step, steps.pictures(), 8)[-1] for step in (full, half)]
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=0.03)
    assert set(seen) == {torch.float32}
    assert all(p.dtype == torch.float32 for p in half.model.parameters())


def test_fp16_lowers_its_scale_and_goes_on() -> None:
    step = steps.make(steps.changed(engine={"mixed_precision": "fp16"}, discriminator=NO_GAN))
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    before = steps.weights(step)["model.encoder.stem.weight"]
    batches = steps.pictures()
    step([batches[0]], 0)
    assert torch.equal(steps.weights(step)["model.encoder.stem.weight"], before)
    for number in range(1, 16):
        step([batches[number % 6]], number)
    assert step.failure() is None and step.scaler.get_scale() < 2.0**20
    assert not torch.equal(steps.weights(step)["model.encoder.stem.weight"], before)


def test_a_step_that_is_not_finite_is_not_taken_and_none_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    step = steps.make(steps.changed())
    monkeypatch.setattr(step.model, "_check_pixels", lambda pixels: None)
    batches = steps.pictures()
    step([batches[0]], 0)
    step([batches[1]], 1)
    assert step.failure() is None
    before = steps.weights(step)
    del before["model.quantizer.temperature"], before["average.quantizer.temperature"]  # follows the schedule
    for name in [name for name in before if name.startswith("lecam") or name.endswith(("._u", "._v"))]:
        del before[name]  # averages of logits and the power iteration are no weights
    step([torch.full_like(batches[2], math.nan)], 2)
    step([batches[3]], 3)
    assert step.failure() == 2
    after = steps.weights(step)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


def test_an_overflow_leaves_the_averages_of_lecam(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = steps.changed(engine={"mixed_precision": "fp16"}, discriminator={"start": 0, "warmup": 100})
    step = steps.make(recipe)
    step.scaler = torch.amp.GradScaler("cpu", init_scale=256)
    batches = steps.pictures()
    step([batches[0]], 0)
    before = (step.lecam.real.clone(), step.lecam.fake.clone())
    assert step.discriminator is not None and before[0] != 0
    last = [module for module in step.discriminator.modules() if isinstance(module, nn.Conv2d)][-1]
    hook = last.register_forward_hook(lambda module, inputs, output: output + math.inf)
    step([batches[1]], 1)
    hook.remove()
    assert (step.lecam.real, step.lecam.fake) == before
    step([batches[2]], 2)
    assert step.lecam.real.isfinite() and step.lecam.real != before[0] and step.failure() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_step_never_waits_for_a_gpu(precision: str) -> None:
    step = steps.make(steps.changed(engine={"mixed_precision": precision}), cpu=False)
    batches = [batch.cuda() for batch in steps.pictures()]
    for number in range(3):
        step([batches[number]], number)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(3, 6):
            step(list(batches[number].split(4)), number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.failure() is None


def test_means_are_over_the_steps_that_have_the_term() -> None:
    step = steps.make(steps.changed(discriminator={"start": 3, "warmup": 0}))
    wanted = []
    for number, batch in enumerate(steps.pictures()):
        step([batch], number)
        wanted += [float(step.values[name]) for name in ("discriminator_loss",) if name in step.values]
    assert len(wanted) == 3
    assert step.take_window()[0]["discriminator_loss"] == pytest.approx(sum(wanted) / 3)


def test_the_gain_of_the_straight_through_estimators() -> None:
    gains = {}
    for estimator, temperature in (("identity", 1.0), ("soft", 1.0), ("soft", 0.001)):
        recipe = steps.changed(
            model={"straight_through": estimator},
            quantizer={"temperature_start": temperature, "temperature_schedule": "constant"},
        )
        step = steps.make(recipe)
        step([steps.pictures()[0]], 0, measure=True)
        gains[estimator, temperature] = step.take_window()[0]
    assert gains["identity", 1.0]["straight_through_gain"] == pytest.approx(1, abs=1e-5)
    assert gains["soft", 1.0]["straight_through_gain"] > 0.05
    assert gains["soft", 0.001]["straight_through_gain_median"] < 1e-3  # why the identity estimator exists


def test_overfits_eight_pictures() -> None:
    recipe = steps.changed(
        model={"straight_through": "identity", "codebook_size": 512, "lambda_floor": 0.0, "latent_channels": 16},
        discriminator=NO_GAN,
        optimizer={"learning_rate": 3e-3, "warmup_steps": 10, "schedule": "constant"},
        quantizer={"learning_rate_scale": 10, "temperature_start": 0.1},
    )
    step = steps.make(recipe)
    pixels = steps.pictures()[0]
    with torch.no_grad():
        step.model.quantizer.init_from(step.model.latents(pixels), "random", torch.Generator().manual_seed(0))
    losses = []
    for number in range(180):
        step([pixels], number)
        losses.append(step.take_window()[0]["l1_loss"])
    assert losses[0] > 0.3 and min(losses[-10:]) < 0.05


def test_golden_curve() -> None:
    """Losses of 20 steps on a CPU as they were recorded; a change here is a change of what runs compute."""
    rows, recorded = steps.golden_curve(), json.loads(steps.GOLDEN.read_text())
    assert len(recorded) == 20 and recorded[0].keys() == rows[0].keys()
    for number, (row, wanted) in enumerate(zip(rows, recorded, strict=True)):
        assert row == pytest.approx(wanted, rel=5e-3, abs=1e-4), number
