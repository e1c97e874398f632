"""What a stranger's checkpoint may cost a public server: looked at before any tensor of it is made."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lgq_hf import LGQConfig, LGQModel
from lgq_hf.files import one_line

from .pictures import LONGEST, SIZES

FILES = ("config.json", "preprocessor_config.json", "model.safetensors")  # that are downloaded; nothing else is read
MOST_BYTES = 2 * 10**9  # of these files together
MOST_JSON_BYTES = 10**6  # of one of the first two
MOST_OPERATIONS = 20e12  # floating point, for the largest picture; the published model takes 7e12
_LEAST_BYTES = 2  # of a number in the weights: fp16
_MOST = {"num_res_blocks": 16, "num_mid_blocks": 16, "latent_channels": 512, "quantizer_dim": 512}
_MOST_STAGES = 8  # each token is 2 ** 7 pixels wide then, and the padding can be as much
# of transformers, beside the fields of LGQConfig; others have it look for packages, code or files elsewhere
_KEYS = {"_name_or_path", "architectures", "auto_map", "dtype", "model_type", "torch_dtype", "transformers_version"}


def check_affordable(folder: Path) -> None:
    """Refuses a checkpoint that would take memory or time out of proportion to its files.

    The model is made on the device "meta", where tensors have a shape and no memory.

    Args:
        folder: holds `FILES`.

    Raises:
        ValueError: config.json is none of an LGQ model, or has other keys; more numbers than the weights can hold; or
            more work for a picture than `MOST_OPERATIONS`. The message is one line without the path.
    """
    config = _config(folder / "config.json")
    if (stages := len(config.channel_multiplier)) > _MOST_STAGES:
        raise ValueError(f"expected at most {_MOST_STAGES} stages in channel_multiplier, got {stages}")
    for name, most in _MOST.items():
        if (value := getattr(config, name)) > most:
            raise ValueError(f"expected {name} of at most {most}, got {value}")
    if (blocks := max(config.decoder_num_res_blocks or [0])) > (most := _MOST["num_res_blocks"]):
        raise ValueError(f"expected decoder_num_res_blocks of at most {most}, got {blocks}")
    with torch.device("meta"):
        model = LGQModel(config).eval()
    count = sum(math.prod(tensor.shape) for tensor in (*model.parameters(), *model.buffers()))
    held = (folder / FILES[-1]).stat().st_size
    if count * _LEAST_BYTES > held:
        raise ValueError(
            f"the model of its config.json has {count:,} numbers, of at least {_LEAST_BYTES} bytes each, and its "
            f"weights have {held:,} bytes: take both from one save_pretrained"
        )
    if (operations := _operations(model)) > MOST_OPERATIONS:
        raise ValueError(
            f"a picture of {LONGEST} x {max(SIZES)} pixels takes {operations:.1e} floating point operations, expected "
            f"at most {MOST_OPERATIONS:.0e}: compare with a smaller model"
        )


def _config(path: Path) -> LGQConfig:
    """The configuration in a file; `ValueError` if it is none, or tells transformers more than a model's shape."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"expected JSON in config.json: {error}") from error
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind != LGQConfig.model_type:
        raise ValueError(f"config.json is of type {str(kind)[:40]!r}, expected {LGQConfig.model_type!r}")
    if unknown := sorted(content.keys() - LGQConfig.__annotations__.keys() - _KEYS):
        raise ValueError(f"config.json: expected fields of LGQConfig alone, got {str(unknown)[:200]}: take them out")
    try:
        return LGQConfig.from_dict(content)
    except StrictDataclassError as error:
        raise ValueError(f"config.json: {one_line(error)[:200]}") from error


class _Operations(TorchDispatchMode):
    """Counts the floating point operations of a block; torch's own counter sets hooks that other threads would run."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if counted := flop_registry.get(func._overloadpacket):
            self.count += counted(*args, **(kwargs or {}), out_val=result)
        return result


def _operations(model: LGQModel) -> int:
    """Floating point operations for a picture of the largest size, by the shapes of a model on "meta"."""
    pixels = torch.empty(1, model.config.in_channels, max(SIZES), LONGEST, device="meta")
    with torch.no_grad(), _Operations() as operations:
        model.decoder(model.encoder(pixels))
    positions = math.prod(pixels.shape[2:]) // model.config.spatial_downsample_factor**2
    codes = sum(math.prod(parameter.shape) for parameter in model.quantizer.parameters())
    return operations.count + 2 * positions * codes  # each position is compared with each code


__all__ = ["FILES", "MOST_BYTES", "MOST_JSON_BYTES", "MOST_OPERATIONS", "check_affordable"]
