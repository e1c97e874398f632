"""Whether an exported encoder and decoder do what the model does, on random input.

Shapes: B images, H W pixels, h w token grid, N = B*h*w rows, C channels of a latent, K codes, G tokens per position.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lgq_hf import LGQModel

TOLERANCE = 1e-4
_CHECKED = ((1, (2, 3)), (3, (5, 4)))  # batch and grid: others than were traced


class ExportError(RuntimeError):
    """What was exported does not do what the model does."""


@torch.no_grad()
def check_parity(
    model: LGQModel, encode: Callable[[Tensor], tuple[Tensor, Tensor]], decode: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    """Compares an exported pair with the model, as `export_onnx` says.

    Args:
        model: what was exported.
        encode: `pixel_values` -> `image_tokens` and latents (N, C).
        decode: `image_tokens` -> `decoded_pixel_values`.

    Returns:
        Tokens compared and how many differ from the model's, the largest differences, and the shapes.

    Raises:
        ExportError: they do not agree, or tokens out of range are decoded.
    """
    config, generator = model.config, torch.Generator().manual_seed(0)
    factor, quantizer = config.spatial_downsample_factor, model.quantizer
    result: dict[str, Any] = {"tokens": 0, "differ": 0, "latents": 0.0, "pixels": 0.0, "shapes": []}
    for batch, grid in _CHECKED:
        shape = (batch, config.in_channels, grid[0] * factor, grid[1] * factor)
        pixels = torch.rand(shape, generator=generator) * 2 - 1
        encoded = model.encode(pixels)
        tokens, latents = encode(pixels)
        expected = quantizer.to_rows(encoded.last_hidden_state)
        result["latents"] = max(result["latents"], _compare("latents", latents, expected, expected.abs().max()))
        own = [quantizer.assign_rows(rows).reshape(encoded.image_tokens.shape) for rows in (latents, latents.double())]
        if tokens.shape != own[0].shape or (wrong := (tokens != own[0]) & (tokens != own[1])).any():
            count = f"{int(wrong.sum())} of {wrong.numel()}" if tokens.shape == own[0].shape else "shapes"
            raise ExportError(
                f"the exported encoder gives other tokens than the model ({count} differ, pixel_values of shape "
                f"{shape}): nothing was written. Export with the versions in constraints.txt, or report this model"
            )
        result["tokens"] += tokens.numel()
        result["differ"] += int((tokens != encoded.image_tokens).sum())
        tokens = torch.randint(config.codebook_size, tokens.shape, generator=generator)
        decoded = model.decode(tokens).decoded_pixel_values
        largest = decoded.abs().max().clamp(min=1)
        result["pixels"] = max(result["pixels"], _compare("decoded pixels", decode(tokens), decoded, largest))
        result["shapes"].append(list(shape))
    for outside in (-1, config.codebook_size):
        _expect_refusal(decode, tokens.index_fill(0, torch.tensor([0]), outside), outside)
    return result


def _compare(what: str, found: Tensor, expected: Tensor, scale: Tensor) -> float:
    """The largest difference, divided by `scale`; `ExportError` above the tolerance, and for NaN."""
    apart = float((found - expected).abs().max() / scale) if found.shape == expected.shape else float("inf")
    if not apart <= TOLERANCE:
        raise ExportError(
            f"the exported {what} of shape {tuple(found.shape)} differ by {apart:.2g} from the model's of shape "
            f"{tuple(expected.shape)}, allowed is {TOLERANCE:g}: nothing was written. Export with the versions in "
            "constraints.txt, or report this model"
        )
    return apart


def _expect_refusal(decode: Callable[[Tensor], Tensor], tokens: Tensor, outside: int) -> None:
    try:
        decode(tokens)
    except Exception:  # of another type in every runtime; valid tokens were decoded just before
        return
    raise ExportError(f"the exported decoder takes the token {outside}, which is none: nothing was written")


__all__ = ["TOLERANCE", "ExportError", "check_parity"]
