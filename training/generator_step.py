"""One optimizer step of a generator, masked or autoregressive: both are trained to tell the tokens at some places.

The loss is the mean cross entropy over all labels of the step, not a mean of means: passes and processes differ in how
many tokens are masked. So results do not depend on how a step is shared.
"""

import contextlib
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from lgq_hf.evaluation.likelihood import LABELS, code_logits
from lgq_hf.tokens.collators import IGNORED
from training.base_step import BaseStep, at_least_fp32
from training.generator_recipe import GeneratorRecipe
from training.optimizers import adamw, decayed_groups, gradients_norm, set_learning_rate

TokenPass = dict[str, Tensor]


class GeneratorStep(BaseStep):
    """A generator, its optimizer, and `__call__`: one optimizer step.

    Args:
        accelerator: places and wraps the model; its own mixed precision must be off.
        model: `LGQMaskedTransformer` or `LlamaForCausalLM`, on the device.
        codebook_size: K.
    """

    def __init__(
        self, accelerator: Accelerator, recipe: GeneratorRecipe, model: nn.Module, codebook_size: int
    ) -> None:
        optimizer = adamw(decayed_groups(model.parameters(), recipe.optimizer), recipe.optimizer)
        super().__init__(accelerator, recipe, model, optimizer)
        self.recipe, self.model, self.codebook_size = recipe, model, codebook_size
        if recipe.engine.compile:
            model.compile()  # after the average was copied, which is run with other shapes

    def __call__(self, micro_batches: list[TokenPass], step: int, *, measure: bool = False) -> None:
        """One optimizer step from passes of what a collator makes, on the device."""
        self.schedule = {"lr_factor": set_learning_rate(self.optimizer, self.recipe, step)}
        counts = torch.stack([(batch[LABELS] != IGNORED).sum() for batch in micro_batches]).sum()
        labels = self._sum(counts)
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                total = total + self._pass(batch, labels)
        self.scaler.unscale_(self.optimizer)
        norm = gradients_norm(self.model.parameters(), float(self.recipe.optimizer.max_grad_norm))
        loss = self._sum(total) / labels
        self.values = {"loss": loss, "grad_norm": norm}
        if self.recipe.kind == "masked":
            places = self.accelerator.num_processes * sum(batch[LABELS].numel() for batch in micro_batches)
            self.values["masked_share"] = labels / places
        self.advance(step, self.judge(step, loss, norm.isfinite()))

    def _pass(self, batch: TokenPass, labels: Tensor) -> Tensor:
        """Forward and backward; returns the summed cross entropy of the pass's labels, of `labels` in the step."""
        with self.autocast():
            logits = code_logits(self.wrapped, batch, self.codebook_size)
        logits = at_least_fp32(logits).flatten(0, 1)
        nats = F.cross_entropy(logits, batch[LABELS].flatten(), ignore_index=IGNORED, reduction="sum")
        # gradients of processes are averaged, and what is wanted is their sum
        self.scaler.scale(nats * self.accelerator.num_processes / labels).backward()
        return nats.detach()

    def _sum(self, value: Tensor) -> Any:
        """Over processes."""
        return self.accelerator.reduce(value.clone(), reduction="sum")
