"""What a converted model must pass before it is written, and how near it comes to its source."""

import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from conversion.export_diffusers import diffusers_net, unsupported
from conversion.plan import CheckpointError
from lgq_hf import LGQModel

TOLERANCE = 1e-4  # of latents and pixels in fp32
TIE = 1e-3  # tokens are compared where the best code is ahead by more
_SIZES = ((256, 256), (256, 384))


def fixed_input(model: LGQModel, height: int, width: int) -> Tensor:
    """Smooth colours with some noise, the same each time: (1, 3, H, W) in [-1, 1]; sides rounded up to the factor."""
    factor = model.config.spatial_downsample_factor
    height, width = (-(-side // factor) * factor for side in (height, width))
    generator = torch.Generator().manual_seed(height * width)
    coarse = torch.rand(1, model.config.in_channels, 5, 7, generator=generator) * 2 - 1
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    return (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(-1, 1)


def _sizes(model: LGQModel) -> list[tuple[int, int]]:
    """256 x 256 and 256 x 384, or less where attention would see more than 64 x 64 positions of the former."""
    config = model.config
    finest = min([*config.attention_levels, len(config.channel_multiplier) - 1])
    scale = min(1, 64 * 2**finest / 256) if config.backbone == "vqgan" else 1
    return [(int(height * scale), int(width * scale)) for height, width in _SIZES]


@torch.no_grad()
def check_model(model: LGQModel) -> dict[str, Any]:
    """Runs a model on a square and an oblong input, and compares it with diffusers' `VQModel` where that can hold it.

    Returns:
        What was found, for the report: inputs, tokens used, and the comparison, or the reason why there is none.

    Raises:
        CheckpointError: for values that are not finite, where `decode(encode(x).image_tokens)` is not `model(x)`, and
            where the comparison exceeds [`TOLERANCE`].
    """
    report: dict[str, Any] = {"inputs": [], "codes_used": []}
    table = getattr(model.quantizer, "codebook", None)
    if table is not None and len(table) > 1 and bool((table == table[0]).all()):
        raise CheckpointError("all codes of the table are equal: the codebook was never trained")
    for size in _sizes(model):
        pixels = fixed_input(model, *size)
        try:
            encoded = model.encode(pixels)
            decoded = model.decode(encoded.image_tokens).decoded_pixel_values
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"the converted model does not run: {error}") from error
        if not (torch.isfinite(encoded.last_hidden_state).all() and torch.isfinite(decoded).all()):
            raise CheckpointError("the converted model gives values that are not finite: its weights are broken")
        if not torch.allclose(decoded, model(pixels).decoded_pixel_values, rtol=0, atol=TOLERANCE):
            raise CheckpointError("decode(encode(x).image_tokens) differs from model(x)")
        report["inputs"].append(list(pixels.shape))
        report["codes_used"].append(int(encoded.image_tokens.unique().numel()))
    report["beside_diffusers"] = _beside_diffusers(model)
    return report


def _beside_diffusers(model: LGQModel) -> dict[str, Any] | str:
    if (field := unsupported(model.config)) is not None:
        return f"diffusers' VQModel has no such net ({field})"
    try:
        diffusers = importlib.import_module("diffusers")
    except ImportError:
        return "diffusers is not installed"
    settings, tensors = diffusers_net(model)
    with torch.device("meta"):
        other = diffusers.VQModel.from_config(settings)
    table = torch.zeros(model.config.codebook_size, model.config.quantizer_dim)  # latents pass it by below
    other.load_state_dict({**tensors, "quantize.embedding.weight": table}, assign=True)
    other.eval()
    found: dict[str, list[float]] = {"latents": [], "pixels": []}
    for size in _sizes(model):
        pixels = fixed_input(model, *size)
        encoded = model.encode(pixels)
        decoded = other.decode(encoded.quantized_last_hidden_state, force_not_quantize=True).sample
        pairs = {
            "latents": (other.encode(pixels).latents, encoded.last_hidden_state),
            "pixels": (decoded, model.decode(encoded.image_tokens).decoded_pixel_values),
        }
        for name, (theirs, ours) in pairs.items():
            found[name].append(float((theirs - ours).abs().max() / theirs.abs().max().clamp_min(1)))
    if not all(value <= TOLERANCE for values in found.values() for value in values):  # NaN is no agreement
        raise CheckpointError(f"the converted model differs from the same weights in diffusers' VQModel: {found}")
    worst = {name: max(values) for name, values in found.items()}
    return {"diffusers": importlib.metadata.version("diffusers"), **worst}


@torch.no_grad()
def compare_recorded(model: LGQModel, path: Path) -> dict[str, Any]:
    """Compares a model with tensors that its source project's own code gave.

    Args:
        model: in fp32, in evaluation mode.
        path: safetensors with `images` (B, 3, H, W) as the model takes them, `latent` (what is looked up), `indices`,
            `reconstruction`, and, if there is, `top2_gap`, how far the best code is ahead; for further images the same
            names with a suffix, such as `images_rect`.

    Returns:
        By suffix: largest difference of latents and of pixels, tokens that differ, and how many were compared.

    Raises:
        CheckpointError: where a difference exceeds [`TOLERANCE`] or a token differs whose code is ahead by more than
            [`TIE`], and for a file that is no such recording.
    """
    try:
        recorded = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"--expected {path} cannot be read as safetensors: {error}") from error
    suffixes = sorted(
        name.removeprefix("images") for name in recorded if name.startswith("images") and "uint8" not in name
    )
    if not suffixes:
        raise CheckpointError(f"{path} has no images: expected tensors images, latent, indices and reconstruction")
    report = {}
    for suffix in suffixes:
        wanted = [f"{name}{suffix}" for name in ("latent", "indices", "reconstruction")]
        if missing := [name for name in wanted if name not in recorded]:
            raise CheckpointError(f"{path} has images{suffix} and lacks {', '.join(missing)}")
        found = report[suffix.lstrip("_") or "square"] = _differences(model, recorded, suffix)
        near = all(found[name] <= TOLERANCE for name in ("latents", "pixels"))  # which NaN is not
        if not near or found["tokens_wrong"]:
            raise CheckpointError(
                f"the converted model differs from what its source recorded (images{suffix}): {found}; allowed are "
                f"{TOLERANCE} and no token"
            )
    return report


def _differences(model: LGQModel, recorded: dict[str, Tensor], suffix: str) -> dict[str, Any]:
    wanted = {name: recorded[name + suffix] for name in ("images", "latent", "indices", "reconstruction")}
    indices = wanted["indices"]
    try:
        encoded = model.encode(wanted["images"])
        pixels = model.decode(indices).decoded_pixel_values
    except ValueError as error:
        raise CheckpointError(f"the model does not take what was recorded for images{suffix}: {error}") from error
    tokens = encoded.image_tokens
    gap = recorded.get("top2_gap" + suffix, torch.full(indices.shape[:3], torch.inf))
    shapes = {
        "latent": (wanted["latent"], encoded.last_hidden_state),
        "indices": (indices, tokens),
        "reconstruction": (wanted["reconstruction"], pixels),
        "top2_gap": (gap, tokens[..., 0] if tokens.ndim == 4 else tokens),
    }
    for name, (theirs, ours) in shapes.items():
        if theirs.shape != ours.shape:
            raise CheckpointError(f"recorded {name}{suffix} is {tuple(theirs.shape)}, the model's {tuple(ours.shape)}")
    clear = ~(gap <= TIE)
    return {
        "latents": float((encoded.last_hidden_state - wanted["latent"]).abs().max()),
        "pixels": float((pixels - wanted["reconstruction"]).abs().max()),
        "tokens_wrong": int((tokens != indices)[clear].sum()),
        "tokens": int(indices[clear].numel()),
    }


__all__ = ["TIE", "TOLERANCE", "check_model", "compare_recorded", "fixed_input"]
