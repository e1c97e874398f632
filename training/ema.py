"""A moving average of a model's weights, kept beside the model in training and used in its place afterwards."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class ExponentialAverage:
    """A copy of a model whose parameters follow the model's at a distance (Polyak & Juditsky 1992).

    Parameters of floating point that learn are averaged, those that are shared once; buffers and all other parameters
    are copies of the model's last ones. So a codebook that is a moving average itself, and whose dead codes jump, is
    not averaged a second time over where they were. (Of one that learns by gradient, a code that was moved less than
    about 1 / (1 - decay) steps ago lies between its places.)

    Args:
        model: as it is trained, with float32 (or float64) parameters: what an average adds is lost in fewer digits.
            Not a wrapper, so that names and the saved state are the model's.
        decay: share of itself that the average keeps in an update; between 0 and 1.
        warmup: begin with less, min(decay, (1 + step) / (10 + step)), so that the average forgets where the model
            began.

    Attributes:
        average: the copy, in eval mode, without gradients.

    Raises:
        ValueError: for a decay out of range, or parameters in half precision.
    """

    def __init__(self, model: nn.Module, decay: float, *, warmup: bool = True) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, got {decay}")
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and parameter.dtype.itemsize < 4:
                raise ValueError(
                    f"averages need parameters in float32, got {name} in {parameter.dtype}: keep the model in float32 "
                    "and let autocast compute in half precision"
                )
        self.decay = decay
        self.warmup = warmup
        learning = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
        self._learning = frozenset(learning)
        self.average = copy.deepcopy(model).eval().requires_grad_(False)

    def decay_at(self, step: int) -> float:
        """The decay of the update that follows optimizer step `step`, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, keep: Tensor | None = None) -> None:
        """average += (1 - decay) · (model - average), on the device and without waiting for it.

        Args:
            model: the one given at first, after its optimizer step.
            step: that step's number, counted from 0.
            keep: 0-dim bool or float on the model's device; where it is true, the average stays as it is. For a step
                that was not applied, whose parameters are therefore finite.

        Raises:
            ValueError: for a model with other parameters or buffers, or a `keep` that is not 0-dim.
        """
        if keep is not None and keep.ndim:
            raise ValueError(f"keep must be a 0-dim tensor, got shape {tuple(keep.shape)}")
        averaged, copied = self._split(self.average)
        sources, originals = self._split(model)
        for mine, others in ((averaged, sources), (copied, originals)):
            if mine.keys() != others.keys():
                raise ValueError(
                    f"expected the model that the average was made from, got one that differs in "
                    f"{sorted(mine.keys() ^ others.keys())}"
                )
        share: float | Tensor = 1 - self.decay_at(step)
        if keep is not None:
            stays = keep.bool()
            share = share * (~stays).float()
            originals = {name: torch.where(stays, copied[name], value) for name, value in originals.items()}
        if averaged:
            difference = torch._foreach_sub(list(sources.values()), list(averaged.values()))
            torch._foreach_mul_(difference, share)
            torch._foreach_add_(list(averaged.values()), difference)
        if copied:
            torch._foreach_copy_(list(copied.values()), list(originals.values()))

    def state_dict(self) -> dict[str, Any]:
        """The averaged model's state, by the model's own names."""
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state that `state_dict` gave; `RuntimeError` that names what is missing or too much."""
        self.average.load_state_dict(state, strict=True)

    def _split(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Tensors to average and tensors to copy, by name; shared ones once, under their first name."""
        averaged: dict[str, Tensor] = {}
        copied: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            follows = parameter.is_floating_point() and name in self._learning
            (averaged if follows else copied)[name] = parameter
        return averaged, copied | dict(model.named_buffers())
