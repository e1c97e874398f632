"""One optimizer step of the tokenizer and its discriminator, and what is measured of it.

The model's graph is walked back once. Losses that look at the picture give their gradients with respect to the
*picture*, which are added up there; so they can be weighed against each other at the decoder's last layer without
keeping the graph, and none of them reaches the discriminator.

Results do not depend on how a step is shared: every mean is over all micro-batches and processes, the usage term
included (see `Quantizer.soft_usage`). Nothing here waits for the device but `take_window`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lgq_hf import LGQModel
from training.losses import (
    LeCam,
    PatchDiscriminator,
    adaptive_weight,
    conv_weight_gradient,
    hinge_discriminator_loss,
    hinge_generator_loss,
    pixel_loss,
)
from training.optimization import (
    BaseStep,
    TokenCounts,
    at_least_fp32,
    discriminator_optimizer,
    gradients_norm,
    model_optimizer,
    set_learning_rate,
)
from training.recipe import Recipe
from training.run_recipe import ramp, temperature_at


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, gradients pass through the module and reach none of its parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def train_decoder_alone(model: LGQModel) -> None:
    """Encoder and quantizer stop learning; the quantizer is as at inference, without a loss."""
    model.requires_grad_(False)
    model.decoder.requires_grad_(True)
    if model.config.code_dim is not None:
        model.post_quant.requires_grad_(True)
    model.quantizer.eval()


def train_autoencoder_alone(model: LGQModel) -> None:
    """The decoder gets latents as they are, here and in the model's copies; the quantizer stops learning."""
    model.quantizer.requires_grad_(False)
    model.quantizer.eval()
    model.quantizer.register_forward_hook(lambda quantizer, inputs, output: output._replace(codes=inputs[0]))


class TrainingStep(BaseStep):
    """The networks of a run, their optimizers, and `__call__`: one optimizer step.

    Args:
        accelerator: places and wraps the networks; its own mixed precision must be off.
        model: with its codebook placed, on the device; by `train_decoder_alone` or
            `train_autoencoder_alone`, where the recipe has `train_only`.
        perceptual: a frozen distance `(a, b) -> (B,)` of pictures in [0, 1], or `None`.
        discriminator: on the device, or `None` where the recipe has none.
        mean, std: of the processor, by which the model's pixels become pictures in [0, 1].
    """

    def __init__(
        self,
        accelerator: Accelerator,
        recipe: Recipe,
        model: LGQModel,
        perceptual: nn.Module | None,
        discriminator: PatchDiscriminator | None,
        mean: list[float],
        std: list[float],
    ) -> None:
        super().__init__(accelerator, recipe, model, model_optimizer(model, recipe))
        self.recipe, self.model, self.perceptual = recipe, model, perceptual
        self.memory_format = torch.channels_last if recipe.engine.channels_last else torch.contiguous_format
        self.mean, self.std = (torch.tensor(v, device=self.device).view(1, -1, 1, 1) for v in (mean, std))
        self.discriminator = discriminator
        self.lecam = LeCam().to(self.device, model.dtype)
        if discriminator is not None:
            self.wrapped_discriminator, optimizer = accelerator.prepare(
                discriminator, discriminator_optimizer(discriminator, recipe.discriminator)
            )
            self.discriminator_optimizer: torch.optim.AdamW = optimizer.optimizer
        self._compile()
        self.adaptive = torch.zeros((), device=self.device)
        self.tokens_learn = recipe.train_only is None
        self.token_counts = TokenCounts(model.config.codebook_size, self.device)
        model.quantizer.register_forward_hook(self._keep_latents)
        model.decoder.out.register_forward_pre_hook(self._keep_last_input)

    def _compile(self) -> None:
        if not self.recipe.engine.compile:
            return
        self.model.encoder.compile()
        self.model.decoder.features = torch.compile(self.model.decoder.features)  # type: ignore[method-assign]
        if self.discriminator is not None:
            self.discriminator.compile()

    def _keep_latents(self, quantizer: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
        self.latents, self.codes = inputs[0].detach(), output.codes

    def _keep_last_input(self, out: nn.Module, inputs: tuple[Tensor]) -> None:
        self.last_input = inputs[0].detach()

    def picture(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) as the model has them -> a picture in [0, 1], where the model keeps to it."""
        return pixel_values * self.std + self.mean

    def __call__(self, micro_batches: list[Tensor], step: int, *, measure: bool = False) -> None:
        """One optimizer step from equally large passes of `pixel_values` (B, 3, H, W), on the device.

        Args:
            step: optimizer steps done before.
            measure: also take the straight-through estimator's gain, at the price of one more pass of the quantizer.
        """
        recipe = self.recipe
        self.values = {}
        self.model.quantizer.train(self.tokens_learn)  # validation of the model itself leaves it in training mode
        factor = set_learning_rate(self.optimizer, recipe, step)
        settings = recipe.quantizer
        temperature = temperature_at(
            step,
            start=settings.temperature_start,
            end=settings.temperature_end,
            steps=settings.temperature_steps or recipe.max_steps,
            schedule=settings.temperature_schedule,
        )
        self.schedule = {"lr_factor": factor}
        if self.tokens_learn:
            self.model.quantizer.set_temperature(temperature)
            self.schedule["temperature"] = temperature
        gan = recipe.discriminator
        learning = self.discriminator is not None and step >= gan.start
        heard = learning and step >= gan.start + gan.warmup
        if learning:
            set_learning_rate(self.discriminator_optimizer, recipe, step)
            loudness = gan.weight * ramp(step, start=gan.start + gan.warmup, length=gan.ramp)
            self.gan_weight = loudness * (self.adaptive if gan.adaptive else torch.ones_like(self.adaptive))
            self.values["gan_weight"] = self.gan_weight
        count = len(micro_batches)
        self.last_layer: list[Tensor] = []
        self._foresee_usage(micro_batches)
        decoded = []
        for index, pixels in enumerate(micro_batches):
            last = index == count - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                decoded.append(self._model_pass(pixels, count, heard, measure and last))
        if learning:  # after all of the model's passes, which see one and the same discriminator
            for index, pair in enumerate(zip(micro_batches, decoded, strict=True)):
                last = index == count - 1
                with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped_discriminator):
                    self._discriminator_pass(*pair, count, first=index == 0)
        self._apply(step, learning)

    def _add(self, name: str, value: Tensor, count: int) -> None:
        share = value.detach().float() / count
        self.values[name] = self.values[name] + share if name in self.values else share

    def _foresee_usage(self, micro_batches: list[Tensor]) -> None:
        """Where a step has several passes, the usage over all of them, which no pass could know."""
        quantizer = self.model.quantizer
        quantizer.step_usage = None
        if len(micro_batches) == 1 or not quantizer.needs_usage or not self.tokens_learn:
            return
        passes = []
        with torch.no_grad(), self.autocast():
            for pixels in micro_batches:
                usages = quantizer.soft_usage(self.model.latents(pixels))
                passes.append(usages or [])
        quantizer.step_usage = [torch.stack(codebook).mean(0) for codebook in zip(*passes, strict=True)]

    def _model_pass(self, pixels: Tensor, count: int, heard: bool, measure: bool) -> Tensor:
        """Forward and backward of the model; returns what it decoded, without gradient."""
        loss_settings = self.recipe.loss
        with self.autocast():
            output = self.wrapped(pixels)
        self.token_counts.count(output.image_tokens)
        if self.tokens_learn:
            self.model.quantizer.observe(self.latents, output.image_tokens)
        decoded = at_least_fp32(output.decoded_pixel_values)
        seen = decoded.detach().requires_grad_()
        scale = self.scaler.scale(torch.ones((), device=self.device)) / count
        pixel = pixel_loss(loss_settings.pixel, seen, pixels)
        reconstruction = loss_settings.pixel_weight * pixel
        self._add(f"{loss_settings.pixel}_loss", pixel, count)
        if self.perceptual is not None:
            with self.autocast():
                perceptual = self.perceptual(self.picture(seen), self.picture(pixels)).mean()
            reconstruction = reconstruction + loss_settings.perceptual_weight * perceptual
            self._add("perceptual_loss", perceptual, count)
        (gradient,) = torch.autograd.grad(reconstruction * scale, seen)
        loss = reconstruction.detach()
        if heard:
            weighted, gan_gradient = self._adversarial(seen, gradient, scale, count)
            gradient, loss = gradient + gan_gradient, loss + weighted
        at_codes: list[Tensor] = []
        if self.tokens_learn:
            if measure:
                self.codes.register_hook(at_codes.append)
            torch.autograd.backward([decoded, output.embedding_loss], [gradient, scale])
            loss = loss + output.embedding_loss.detach()
            self._add("embedding_loss", output.embedding_loss, count)
        else:
            decoded.backward(gradient)
        for gradient in at_codes:
            self._measure_gain(gradient)
        self._add("loss", loss, count)
        for name, value in (output.statistics or {}).items():
            if name not in ("perplexity", "codebook_usage"):  # of one pass alone; the run counts over many
                self._add(name, value, count)
        return seen.detach()

    def _adversarial(self, seen: Tensor, reconstruction: Tensor, scale: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The weighted term and its gradient at the picture; remembers both gradients at the last layer."""
        discriminator = self.discriminator
        assert discriminator is not None
        with frozen(discriminator), self.autocast():
            discriminator.eval()
            adversarial = hinge_generator_loss(discriminator(2 * self.picture(seen) - 1))
            (gradient,) = torch.autograd.grad(adversarial * scale, seen)
        self._add("gan_loss", adversarial, count)
        if self.recipe.discriminator.adaptive:
            out = self.model.decoder.out
            pair = [conv_weight_gradient(self.last_input, g, out) for g in (reconstruction, gradient)]
            self.last_layer = [a + b for a, b in zip(self.last_layer, pair, strict=True)] if self.last_layer else pair
        return self.gan_weight * adversarial.detach(), self.gan_weight * gradient

    def _discriminator_pass(self, pixels: Tensor, decoded: Tensor, count: int, *, first: bool) -> None:
        """The discriminator on the same pictures; real and decoded go through it at once."""
        self.wrapped_discriminator.train(first)  # spectral norm iterates once a step
        both = 2 * self.picture(torch.cat([pixels, decoded])) - 1
        with self.autocast():
            logits = self.wrapped_discriminator(both.contiguous(memory_format=self.memory_format))
        real, fake = at_least_fp32(logits).chunk(2)
        loss = hinge_discriminator_loss(real, fake)
        self._add("discriminator_loss", loss, count)
        if self.recipe.discriminator.lecam:
            penalty = self.lecam.regularizer(real, fake)
            self._add("lecam_loss", penalty, count)
            loss = loss + self.recipe.discriminator.lecam * penalty
        (self.scaler.scale(loss) / count).backward()
        self._add("logits_real", real.mean(), count)
        self._add("logits_fake", fake.mean(), count)

    def _measure_gain(self, gradient: Tensor) -> None:
        """What the encoder gets of the decoder's gradient at the codes: ratio of norms, token by token."""
        latents = at_least_fp32(self.latents).requires_grad_()
        (passed,) = torch.autograd.grad(self.model.quantizer(latents).codes, latents, gradient)
        gain = passed.norm(dim=1) / gradient.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        self.window.last = {"straight_through_gain": gain.mean(), "straight_through_gain_median": gain.median()}

    def _apply(self, step: int, learning: bool) -> None:
        """Clips, decides on the device whether this step may be taken, and takes it or not."""
        max_norm = self.recipe.optimizer.max_grad_norm
        self.scaler.unscale_(self.optimizer)
        norm = gradients_norm(self.model.parameters(), max_norm)
        finite = norm.isfinite()
        self.values["grad_norm"] = norm
        if learning and self.discriminator is not None:
            self.scaler.unscale_(self.discriminator_optimizer)
            norm = gradients_norm(self.discriminator.parameters(), max_norm)
            finite = finite & norm.isfinite()
            self.values["discriminator_grad_norm"] = norm
        shared = self._share(learning)
        skip = self.judge(step, shared[0], finite)
        if learning and self.recipe.discriminator.lecam:
            self.lecam.update(shared[1], shared[2], keep=skip)
        if self.tokens_learn:
            self.model.quantizer.end_step(skip)
        self.advance(step, skip, *([self.discriminator_optimizer] if learning else []))

    def _share(self, learning: bool) -> Tensor:
        """What all processes must know of each other, in one message; returns mean loss and mean logits (3,)."""
        parts = [self.values["loss"].view(1)]
        if learning:
            parts += [self.values["logits_real"].view(1), self.values["logits_fake"].view(1)]
            parts += [gradient.flatten() for gradient in self.last_layer]
        together = self.accelerator.reduce(torch.cat(parts), reduction="mean")
        if self.last_layer:
            reconstruction, adversarial = together[3:].chunk(2)
            ratio = adaptive_weight(reconstruction, adversarial, cap=self.recipe.discriminator.adaptive_cap)
            self.adaptive = torch.where(ratio.isfinite(), ratio, self.adaptive)
        return together[:3]

    def take_window(self) -> tuple[dict[str, float], Tensor]:
        """As `take_values`, with the counts (K,) int64 of the tokens of all processes since the last call."""
        return self.take_values(), self.token_counts.take(self.accelerator)

    def state_dict(self) -> dict[str, Any]:
        """Everything but weights and moments, which the accelerator saves, and the window: take it before."""
        return {**super().state_dict(), "lecam": self.lecam.state_dict(), "adaptive": self.adaptive}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        super().load_state_dict(state)
        self.lecam.load_state_dict(state["lecam"])
        self.adaptive = state["adaptive"].to(self.device)
