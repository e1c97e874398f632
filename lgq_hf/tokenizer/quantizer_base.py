"""What every quantizer promises: one contract, one result type, and the pieces that more than one of them needs.

Shapes: B images, C channels of a latent, h w grid, N = B*h*w rows, K codes, G tokens per grid position.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class QuantizerOutput(NamedTuple):
    """Result of a quantizer's forward pass.

    Attributes:
        codes: (B, C, h, w) fp32, the codes that the tokens stand for; in training with a straight-through gradient.
        image_tokens: (B, h, w) int64 in [0, K), or (B, h, w, G) where a grid position has G > 1 tokens.
        loss: scalar in training, `None` in evaluation.
        statistics: detached scalars of the training step by name; empty in evaluation.
    """

    codes: Tensor
    image_tokens: Tensor
    loss: Tensor | None
    statistics: dict[str, Tensor]


class RowsOutput(NamedTuple):
    """As [`QuantizerOutput`], for a list of rows: codes (N, C), tokens (N,) or (N, G)."""

    codes_NC: Tensor
    tokens_N: Tensor
    loss: Tensor
    statistics: dict[str, Tensor]


def run_offload_hook(method: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a method other than `forward` run on a module that accelerate's `device_map` offloads.

    accelerate moves a module's weights in a hook around `forward` alone (diffusers: `apply_forward_hook`).
    """

    @wraps(method)
    def with_hook(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        hook = getattr(self, "_hf_hook", None)
        if hook is None:
            return method(self, *args, **kwargs)
        args, kwargs = hook.pre_forward(self, *args, **kwargs)
        return hook.post_forward(self, method(self, *args, **kwargs))

    return with_hook


class Quantizer(nn.Module):
    """Maps latents to tokens and tokens to codes.

    A subclass sets `code_dim` (C), `codebook_size` (K) and `tokens_per_position` (G), and defines `assign_rows`,
    `lookup_rows`, `train_rows` and `init_from`. Arithmetic is fp32 (fp64 for fp64 latents) whatever autocast says,
    and parameters stay fp32 through `.half()` and `.to(torch.bfloat16)`, so that a cast model keeps its codebook.
    """

    code_dim: int
    codebook_size: int
    tokens_per_position: int = 1
    step_usage: list[Tensor] | None = None  # see `soft_usage`; set by a trainer, not saved

    def freeze(self) -> None:
        """Takes the gradient from parameters that none is to move, again after loading; by default there are none."""

    @property
    def needs_usage(self) -> bool:
        """Whether the loss has terms that are no means over rows, see `soft_usage`."""
        return False

    def init_weights(self) -> None:
        """Initial values of parameters and buffers, by `transformers.initialization`; nothing where there are none."""

    def assign_rows(self, x_NC: Tensor) -> Tensor:
        """(N, C) latents -> tokens (N,) int64, or (N, G)."""
        raise NotImplementedError

    def lookup_rows(self, tokens_N: Tensor) -> Tensor:
        """Tokens (N,) or (N, G) -> codes (N, C)."""
        raise NotImplementedError

    def train_rows(self, x_NC: Tensor) -> RowsOutput:
        """As `assign_rows` and `lookup_rows`, with loss, statistics and straight-through gradient."""
        raise NotImplementedError

    def comparable(self, x_NC: Tensor) -> Tensor:
        """(N, C) latents in the space where they are compared with codes; by default as they are."""
        return x_NC

    def comparable_codes(self, codes_NC: Tensor) -> Tensor:
        """(N, C) codes, as `lookup_rows` gives them, in that space."""
        return codes_NC

    def init_from(self, latents: Tensor, method: str = "random", generator: torch.Generator | None = None) -> None:
        """Places the codes according to latents (B, C, h, w); a quantizer with nothing to place does nothing."""
        raise NotImplementedError

    def set_temperature(self, temperature: float) -> None:
        """Sets the softmax temperature of training; a quantizer without one has nothing to set."""

    @torch.no_grad()
    def soft_usage(self, latents: Tensor) -> list[Tensor] | None:
        """Each code's mean probability over latents (B, C, h, w) of all processes, one tensor per codebook.

        For terms of the loss that are no means over rows. A step that is made of several passes sets `step_usage` to
        the mean of their soft usages beforehand: each pass then has the loss of the whole step, and its share of the
        gradient. `None`: every term is a mean over rows, and nothing has to be known beforehand.
        """
        if not self.needs_usage:
            return None
        with torch.autocast(latents.device.type, enabled=False):
            return self._over_ranks(self.usages(self.comparable(self.to_rows(latents))))

    def usages(self, x_NC: Tensor) -> list[Tensor]:
        """What `soft_usage` averages over processes: mean probabilities over comparable rows (N, C) of this one."""
        raise NotImplementedError

    def over_step(self, usages: list[Tensor]) -> list[Tensor]:
        """Usage over all rows of the optimizer step, with the gradient of this pass's rows."""
        usages = self._over_ranks(usages)
        if self.step_usage is None:
            return usages
        pairs = zip(self.step_usage, usages, strict=True)
        return [whole + (usage - usage.detach()) for whole, usage in pairs]

    @staticmethod
    def _over_ranks(usages: list[Tensor]) -> list[Tensor]:
        return list(mean_over_ranks(torch.cat(usages)).split([usage.shape[0] for usage in usages]))

    def observe(self, latents: Tensor, image_tokens: Tensor) -> None:
        """Takes in what a pass of training saw, for what `end_step` does; by default nothing is kept.

        Args:
            latents: (B, C, h, w), as the quantizer received them.
            image_tokens: (B, h, w) or (B, h, w, G), what it made of them.
        """

    def end_step(self, skip: Tensor) -> None:
        """Changes that no gradient makes, once an optimizer step, from what `observe` took in; by default none.

        Args:
            skip: 0-dim bool on the device: where it is true the step is called off, and nothing changes.
        """

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Quantizes latents (B, C, h, w) of any float dtype.

        Raises:
            ValueError: for another rank or number of channels, or latents that are not floating point.
        """
        x_NC = self.to_rows(latents)
        batch, _, height, width = latents.shape
        with torch.autocast(latents.device.type, enabled=False):
            if self.training:
                codes_NC, tokens, loss, statistics = self.train_rows(x_NC)
            else:
                tokens = self.assign_rows(x_NC)
                codes_NC, loss, statistics = self.lookup_rows(tokens), None, {}
        codes = codes_NC.reshape(batch, height, width, self.code_dim).permute(0, 3, 1, 2).contiguous()
        return QuantizerOutput(codes, tokens.reshape(batch, height, width, *tokens.shape[1:]), loss, statistics)

    @run_offload_hook
    def codes_from_tokens(self, image_tokens: Tensor) -> Tensor:
        """Codes (B, C, h, w) fp32 of `image_tokens` (B, h, w) or (B, h, w, G): bit for bit those of `forward`.

        Raises:
            ValueError: for a wrong rank, a dtype that is not integer, or tokens outside [0, K).
        """
        self.check_tokens(image_tokens)
        batch, height, width = image_tokens.shape[:3]
        with torch.autocast(image_tokens.device.type, enabled=False):
            codes_NC = self.lookup_rows(image_tokens.long().flatten(0, 2))
        return codes_NC.reshape(batch, height, width, self.code_dim).permute(0, 3, 1, 2).contiguous()

    def to_rows(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> (B*h*w, C) in fp32 (fp64 stays), row-major over the grid."""
        if latents.ndim != 4 or latents.shape[1] != self.code_dim:
            raise ValueError(f"expected latents (B, {self.code_dim}, h, w), got shape {tuple(latents.shape)}")
        if not latents.is_floating_point():
            raise ValueError(f"expected floating point latents, got {latents.dtype}")
        rows = latents.permute(0, 2, 3, 1).reshape(-1, self.code_dim)
        return rows if rows.dtype == torch.float64 else rows.float()

    def check_tokens(self, image_tokens: Tensor) -> None:
        """Refuses tokens that this quantizer cannot have made (`ValueError`); nothing is clipped."""
        if not isinstance(image_tokens, Tensor):
            raise TypeError(f"expected image_tokens as a tensor, got {type(image_tokens).__name__}: use torch.tensor")
        groups = () if self.tokens_per_position == 1 else (self.tokens_per_position,)
        if image_tokens.ndim != 3 + len(groups) or tuple(image_tokens.shape[3:]) != groups:
            expected = ", ".join(["B", "h", "w", *map(str, groups)])
            raise ValueError(f"expected image_tokens ({expected}), got shape {tuple(image_tokens.shape)}")
        if image_tokens.is_floating_point() or image_tokens.is_complex() or image_tokens.dtype == torch.bool:
            raise ValueError(f"expected integer image_tokens, got {image_tokens.dtype}")
        if torch.compiler.is_compiling():  # a graph cannot branch on values: it stops instead, with a RuntimeError
            inside = (image_tokens >= 0) & (image_tokens.long() < self.codebook_size)
            torch._assert_async(inside.all(), f"image_tokens must lie in [0, {self.codebook_size})")
            return
        if image_tokens.numel() == 0:
            return
        low, high = (int(v) for v in image_tokens.long().aminmax())
        if low < 0 or high >= self.codebook_size:
            raise ValueError(
                f"image_tokens must lie in [0, {self.codebook_size}), got values from {low} to {high}: they come from "
                "another tokenizer, or hold mask or class ids"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def keep_precision(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if applied.dtype in (torch.float16, torch.bfloat16) and applied.dtype != tensor.dtype:
                return tensor.to(applied.device)
            return applied

        return super()._apply(keep_precision, recurse)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, carrier: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


def straight_through(value: Tensor, carrier: Tensor) -> Tensor:
    """`value` exactly, with the gradient of `carrier`.

    The usual `carrier + (value - carrier).detach()` is off by a rounding error, so that training and evaluation
    would see different codes.
    """
    return _StraightThrough.apply(value.detach(), carrier)


def mean_or_zero(tensor: Tensor) -> Tensor:
    """Mean of all entries; 0 where there are none (an empty batch), and not NaN."""
    return tensor.sum() / max(tensor.numel(), 1)


class _MeanOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        mean = tensor.clone()
        dist.all_reduce(mean)
        return mean / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        mean = grad.clone()
        dist.all_reduce(mean)
        return mean / dist.get_world_size()


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Average over all processes, with gradient; the tensor itself where there is one process.

    Each rank's loss counts all ranks' rows, so with gradients averaged over ranks (DDP) the result is the gradient of
    the loss over the whole batch. Ranks must hold equally many rows.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return _MeanOverRanks.apply(tensor)
    return tensor


def entropy(usage: Tensor) -> Tensor:
    """Entropy over the last dimension in nats: 0 where one code has all the usage, log K where it is even."""
    usage = usage.clamp_min(1e-12)
    return -(usage * usage.log()).sum(-1)


def entropy_perplexity(usage: Tensor) -> Tensor:
    """exp of the entropy over the last dimension, in codes: 1 where one code has all the usage, K where it is even."""
    return torch.exp(entropy(usage))


def token_statistics(tokens: Tensor, codebook_size: int) -> dict[str, Tensor]:
    """Perplexity and share of codes in use of one training step's tokens, (N,) or (N, G), over all ranks."""
    hard_K = hard_usage(tokens.flatten(), codebook_size)
    return {"perplexity": entropy_perplexity(hard_K), "codebook_usage": (hard_K > 0).float().mean()}


def hard_usage(tokens_N: Tensor, codebook_size: int) -> Tensor:
    """Share of the rows that each code holds, (K,), over all ranks."""
    counts = torch.zeros(codebook_size, device=tokens_N.device)
    counts.scatter_add_(0, tokens_N, torch.ones_like(tokens_N, dtype=counts.dtype))
    return mean_over_ranks(counts / max(tokens_N.shape[0], 1))


__all__ = ["Quantizer", "QuantizerOutput", "RowsOutput"]
