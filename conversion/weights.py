"""The dictionary in a training program's file, and which of its sets of weights to take."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from conversion.family import shorten
from conversion.plan import CheckpointError, Weights

_EMA = "model_ema."
# what Lightning and the projects' own trainers keep beside the weights
_BOOKKEEPING = {
    "optimizer_states": "trainer: optimizer",
    "lr_schedulers": "trainer: learning rate schedule",
    "callbacks": "trainer: callbacks' state",
    "loops": "trainer: progress of the run",
    "epoch": "trainer: progress of the run",
    "global_step": "trainer: progress of the run",
    "steps": "trainer: progress of the run",
    "pytorch-lightning_version": "trainer: version of the trainer",
    "hparams_name": "trainer: hyperparameters",
    "hyper_parameters": "trainer: hyperparameters",
    "datamodule_hparams_name": "trainer: hyperparameters",
    "datamodule_hyper_parameters": "trainer: hyperparameters",
    "args": "trainer: hyperparameters",
    "MixedPrecision": "trainer: loss scale",
    "native_amp_scaling_state": "trainer: loss scale",
    "amp_scaling_state": "trainer: loss scale",
    "scaler": "trainer: loss scale",
    "optimizer": "trainer: optimizer",
    "optimizer_disc": "trainer: optimizer of the discriminator",
    "discriminator": "trainer: discriminator",
}


@dataclass
class Chosen:
    """One set of weights by the source's names, and what was left.

    Attributes:
        tensors: the weights.
        origin: by the same names, the key in the file.
        dropped: keys of the file that are not used, with the reason.
        weights: which set it is.
    """

    tensors: dict[str, Tensor]
    origin: dict[str, str]
    dropped: dict[str, str]
    weights: Literal["ema", "raw"]


def is_state_dict(content: Any) -> bool:
    """Whether it is a dictionary of tensors by name."""
    if not isinstance(content, Mapping) or not content:
        return False
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())


def bookkeeping(content: Mapping[str, Any], weights_at: set[str]) -> dict[str, str]:
    """Reasons for leaving out what stands beside the weights in a trainer's file.

    Raises:
        CheckpointError: for an entry that no known trainer writes: there could be weights in it.
    """
    others = set(content) - weights_at
    if unknown := sorted(others - set(_BOOKKEEPING)):
        raise CheckpointError(
            f"expected beside the weights what the known trainers write, got {shorten(unknown)}: take the weights out "
            "of the file, and convert those"
        )
    return {name: _BOOKKEEPING[name] for name in sorted(others)}


def strip_wrappers(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Key in the file by key without what DataParallel (`module.`) and torch.compile (`_orig_mod.`) put before it."""
    names = {key: key for key in state}
    for prefix in ("module.", "_orig_mod.", "module."):
        if names and all(name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): key for name, key in names.items()}
    return names


def choose_lightning(content: Mapping[str, Any], weights: Weights, frozen: frozenset[str] = frozenset()) -> Chosen:
    """Weights of a Lightning checkpoint, or of a bare state dict: the moving averages where there are any.

    LitEma keeps `model_ema.` and the name without its dots, for each parameter that is trained.

    Args:
        content: the file.
        weights: `"ema"`, `"raw"`, or `"auto"` for the averages where the file has them.
        frozen: names that have no average because nothing trains them.

    Raises:
        CheckpointError: where the set that was asked for is not there or is not whole.
    """
    state: Mapping[str, Any] = content
    dropped: dict[str, str] = {}
    if "state_dict" in content:
        state = content["state_dict"]
        dropped = bookkeeping(content, {"state_dict"})
    if not is_state_dict(state):
        raise CheckpointError("expected a dictionary of tensors, or one under 'state_dict'")
    names = strip_wrappers(state)
    averages = {name: key for name, key in names.items() if name.startswith(_EMA)}
    model = {name: key for name, key in names.items() if name not in averages}
    for name in [name for name in model if name.startswith(("loss.", "discriminator."))]:
        dropped[model.pop(name)] = "loss: discriminator and perceptual network"
    if weights == "ema" and not averages:
        raise CheckpointError("--weights ema: the file has no moving averages (no key begins with 'model_ema.')")
    if weights == "raw" or not averages:
        dropped |= dict.fromkeys(averages.values(), "moving average: the optimised weights were asked for")
        return Chosen({name: state[key] for name, key in model.items()}, model, dropped, "raw")
    origin = {}
    for name, key in model.items():
        average = averages.pop(_EMA + name.replace(".", ""), None)
        if average is None and name not in frozen:
            raise CheckpointError(f"the file has moving averages, but none for {name}: --weights raw takes the others")
        origin[name] = key if average is None else average
        if average is not None:
            dropped[key] = "optimised weights: their moving average is used"
    for name, key in averages.items():
        if name.removeprefix(_EMA) in ("decay", "num_updates"):
            dropped[key] = "moving average: its progress"
        elif name.startswith((_EMA + "loss", _EMA + "discriminator")):
            dropped[key] = "loss: discriminator and perceptual network"
        else:
            raise CheckpointError(f"a moving average of nothing in the file: {key}")
    return Chosen({name: state[key] for name, key in origin.items()}, origin, dropped, "ema")


def choose_entry(content: Mapping[str, Any], weights: Weights) -> Chosen:
    """Weights of a file that keeps them under `model`, and their moving averages, if any, under `ema`.

    Raises:
        CheckpointError: where the set that was asked for is not there.
    """
    content = {entry: value for entry, value in content.items() if value is not None}
    if is_state_dict(content.get("state_dict")):
        content = content["state_dict"]
    if is_state_dict(content):
        if weights == "ema":
            raise CheckpointError("--weights ema: the file is one state dict, without moving averages")
        names = strip_wrappers(content)
        return Chosen({name: content[key] for name, key in names.items()}, names, {}, "raw")
    entry = {"ema": "ema", "raw": "model", "auto": "ema" if "ema" in content else "model"}[weights]
    if not isinstance(content.get(entry), Mapping) or not is_state_dict(content[entry]):
        raise CheckpointError(f"expected weights under '{entry}', the file has {shorten(sorted(content))}")
    dropped = bookkeeping(content, {"ema", "model"})
    if entry == "ema" and "model" in content:
        dropped["model"] = "optimised weights: their moving average is used"
    if entry == "model" and "ema" in content:
        dropped["ema"] = "moving average: the optimised weights were asked for"
    names = strip_wrappers(content[entry])
    origin = {name: f"{entry}.{key}" for name, key in names.items()}
    chosen: Literal["ema", "raw"] = "ema" if entry == "ema" else "raw"
    return Chosen({name: content[entry][key] for name, key in names.items()}, origin, dropped, chosen)


__all__ = ["Chosen", "bookkeeping", "choose_entry", "choose_lightning", "is_state_dict", "strip_wrappers"]
