"""The parts of a training step, each as a call that can be timed alone, on the tensors of one real step."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.assignment import PRODUCTS
from training.losses import pixel_loss
from training.optimization import set_learning_rate
from training.step import TrainingStep

PARTS = {
    "networks": "encoder and decoder, forward and backward, from pictures and from codes",
    "quantizer": "forward in training mode with the usage term, and backward",
    "losses": "pixel and perceptual distance, forward and backward to the picture",
    "discriminator": "the model's pass through it, forward and backward to the picture, and its own pass",
    "bookkeeping": "gradient norms and clipping, both AdamW steps, average of the weights, token counts, flags, "
    "schedules",
}


class StepParts:
    """What a step is made of, as `PARTS` tells; gradients are cleared before each part.

    Args:
        step: that has taken a step, so that moments exist; with a discriminator and a perceptual loss.
        pixels: (B, 3, H, W) of that step, on the device.
        number: of optimizer steps that were taken.
    """

    def __init__(self, step: TrainingStep, pixels: Tensor, number: int) -> None:
        self.step, self.pixels, self.number = step, pixels, number
        self.one = torch.ones((), device=step.device)
        self.values = dict(step.values)
        self._run_once()

    def calls(self) -> dict[str, Callable[[], None]]:
        """Each part by its name, in the order of PARTS."""
        return {name: getattr(self, name) for name in PARTS}

    def _run_once(self) -> None:
        """A pass without an optimizer step, for the tensors that go from part to part, and the gradients."""
        step = self.step
        with step.autocast():
            latents = step.model.latents(self.pixels)
            quantized = step.model.quantizer(latents)
            decoded = step.model.decode_codes(quantized.codes).decoded_pixel_values
        self.seen = decoded.detach().float().requires_grad_()
        self.losses()
        self.d_decoded = self.d_seen.to(decoded.dtype)
        latents.retain_grad()
        quantized.codes.retain_grad()
        torch.autograd.backward([decoded, quantized.loss], [self.d_decoded, self.one])
        self.d_codes, self.d_latents = quantized.codes.grad, latents.grad
        self.codes = quantized.codes.detach().requires_grad_()
        self.latents = latents.detach().requires_grad_()
        self.tokens = quantized.image_tokens
        learned: list[nn.Parameter] = list(step.model.parameters())
        assert step.discriminator is not None
        kept = [parameter.grad for parameter in learned]
        self.discriminator()
        learned += step.discriminator.parameters()
        kept += [parameter.grad for parameter in step.discriminator.parameters()]
        self.gradients = list(zip(learned, kept, strict=True))

    def _clear(self) -> None:
        """Frees gradients, as a step does; nothing is computed."""
        for module in (self.step.model, self.step.discriminator):
            if module is not None:
                module.zero_grad(set_to_none=True)

    def networks(self) -> None:
        """Encoder and decoder, forward and backward."""
        self._clear()
        with self.step.autocast():
            latents = self.step.model.latents(self.pixels)
            decoded = self.step.model.decode_codes(self.codes).decoded_pixel_values
        torch.autograd.backward([decoded, latents], [self.d_decoded, self.d_latents])
        self.codes.grad = None

    def quantizer(self) -> None:
        """The quantizer, forward and backward."""
        self._clear()
        quantized = self.step.model.quantizer(self.latents)
        torch.autograd.backward([quantized.codes, quantized.loss], [self.d_codes, self.one])
        self.latents.grad = None

    def losses(self) -> None:
        """Pixel and perceptual loss, and their gradient at the picture."""
        step, settings = self.step, self.step.recipe.loss
        loss = settings.pixel_weight * pixel_loss(settings.pixel, self.seen, self.pixels)
        assert step.perceptual is not None
        with step.autocast():
            distance = step.perceptual(step.picture(self.seen), step.picture(self.pixels)).mean()
        (self.d_seen,) = torch.autograd.grad(loss + settings.perceptual_weight * distance, self.seen)

    def discriminator(self) -> None:
        """The model's pass through the discriminator and the discriminator's own, up to its gradients."""
        self._clear()
        self.step.last_layer, self.step.values = [], {}
        self.step._adversarial(self.seen, self.d_seen, self.one, 1)
        self.step._discriminator_pass(self.pixels, self.seen.detach(), 1, first=True)

    def bookkeeping(self) -> None:
        """Everything that a step does besides, on the gradients of a real pass."""
        step = self.step
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        step.values = dict(self.values)
        for optimizer in (step.optimizer, step.discriminator_optimizer):
            set_learning_rate(optimizer, step.recipe, self.number)
        step.model.quantizer.set_temperature(step.recipe.quantizer.temperature_start)
        step.token_counts.count(self.tokens)
        step._apply(self.number, True)


def count_flop(call: Callable[[], None], step: TrainingStep, pixels: Tensor) -> dict[str, int]:
    """FLOP of a step: `networks` (whatever is no assignment), `quantizer` and `total`."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            attention: lambda q, k, v, *rest, out_shape=None, **options: sdpa_flop_count(q, k, v),
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
                lambda d_out, q, k, v, *rest, out_shape=None, **options: sdpa_backward_flop_count(d_out, q, k, v)
            ),
        },
    )
    with counter:
        call()
    config = step.model.config
    counted = counter.get_total_flops()
    rows = pixels.shape[0] * (pixels.shape[2] // config.spatial_downsample_factor) ** 2
    quantizer = PRODUCTS * 2 * rows * config.codebook_size * config.quantizer_dim
    return {"networks": counted, "quantizer": quantizer, "total": counted + quantizer}
