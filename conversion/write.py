"""The folder that a conversion writes: model, processor, card and report, whole or not at all."""

import json
import os
import re
from pathlib import Path
from string import Template
from typing import Any

import torch

from conversion.formats import FORMATS
from conversion.plan import CheckpointError, Plan
from conversion.verify import TOLERANCE, fixed_input
from lgq_hf import LGQImageProcessor, LGQModel, __version__
from lgq_hf.files import atomic_folder

REPORT = "conversion.json"
_WRITTEN = re.compile(
    r"(config|preprocessor_config|conversion)\.json|README\.md|\w+\.py|__pycache__|model.*\.(safetensors|json)"
)
_LOOKUPS = {
    ("vq", "sq_l2"): "the nearest code",
    ("vq", "cosine"): "the code at the smallest angle; codes are decoded at length 1",
    ("ibq", "dot"): "the code with the largest scalar product",
    ("simvq", "sq_l2"): "the nearest of the projected codes",
    ("lfq", "sq_l2"): "the signs of the channels",
}
_WEIGHTS = {"ema": "the moving averages (EMA)", "raw": "those that were optimised"}


def check_output(output: Path, *, overwrite: bool, read: list[Path] | None = None) -> None:
    """Refuses a place that cannot be written, or where something stands that is no earlier conversion.

    Args:
        output: the folder to write.
        overwrite: whether an earlier conversion may be replaced, if it holds what a conversion writes and no more.
        read: files that the conversion reads, which must not lie in it.

    Raises:
        CheckpointError: with what stands there.
    """
    if inside := [str(path) for path in read or [] if output in path.resolve().parents]:
        raise CheckpointError(f"{output} would replace what is read from it: {', '.join(inside)}. Take another folder")
    parent = next(path for path in output.parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise CheckpointError(f"{output} cannot be written: {parent} is no folder that may be written to")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not output.is_dir():
        raise CheckpointError(f"expected a folder to write, and {output} is a file")
    if not overwrite:
        raise CheckpointError(f"{output} is not empty: take another folder, or --overwrite an earlier conversion")
    if not (output / REPORT).is_file():
        raise CheckpointError(f"{output} is not empty: --overwrite replaces conversions (with {REPORT}) only")
    if foreign := sorted(path.name for path in output.iterdir() if not _WRITTEN.fullmatch(path.name)):
        raise CheckpointError(
            f"{output} holds more than a conversion, and --overwrite would delete {', '.join(foreign)}"
        )


def write_folder(output: Path, model: LGQModel, plan: Plan, report: dict[str, Any]) -> None:
    """Writes everything beside `output`, reads it back, and only then lets it become `output`.

    Raises:
        CheckpointError: where what was read back gives other tokens or pixels; nothing is left then.
    """
    with atomic_folder(output) as folder:
        model.save_pretrained(folder)
        LGQImageProcessor(**plan.processor).save_pretrained(folder)
        (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n")
        (folder / "README.md").write_text(card(output.name, model, plan, report))
        _check_written(folder, model)


@torch.no_grad()
def _check_written(folder: Path, model: LGQModel) -> None:
    again = LGQModel.from_pretrained(folder)
    held, read = model.state_dict(), again.state_dict()
    same = held.keys() == read.keys() and all(torch.equal(tensor, read[name]) for name, tensor in held.items())
    pixels = fixed_input(model, 64, 96)
    latents = [one.encode(pixels).last_hidden_state for one in (model, again)]
    tokens = model.encode(pixels).image_tokens
    images = [one.decode(tokens).decoded_pixel_values for one in (model, again)]
    near = all(torch.allclose(one, two, rtol=0, atol=TOLERANCE) for one, two in (latents, images))
    if not (same and near):
        raise CheckpointError("the saved model, loaded again, gives other tokens or pixels than the converted one")


def card(name: str, model: LGQModel, plan: Plan, report: dict[str, Any]) -> str:
    """The README.md of a converted model."""
    config, source = model.config, report["source"]
    kind = FORMATS[plan.format]
    tokens = "" if config.tokens_per_position == 1 else f", {config.tokens_per_position}"
    notes = "".join(f"- {note}\n" for note in plan.notes)
    values = {
        "license": source["license"] or "other",
        "format": plan.format,
        "name": name,
        "project": kind.project,
        "url": kind.url,
        "version": __version__,
        "shape": f"(1, h, w{tokens})",
        "codebook_size": config.codebook_size,
        "factor": config.spatial_downsample_factor,
        "code_dim": config.quantizer_dim,
        "bits": f"{config.bits_per_pixel:.4g}",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "lookup": _LOOKUPS.get((config.quantizer, config.distance), f"{config.distance}, {config.codebook_mode}"),
        "pixels": _pixels(plan.processor),
        "weights": _WEIGHTS[plan.weights],
        "notes": notes,
        "files": "\n".join(f"| {file} | `{digest}` |" for file, digest in source["sha256"].items()),
        "licence_text": _licence(kind.project, kind.code_licence, source["license"]),
        "dropped": len(plan.dropped),
        "baked": "".join(f"; {ours} was computed as {how}" for ours, how in plan.baked.items()),
        "verified": _verified(report["verification"]),
    }
    return Template((Path(__file__).parent / "card.template.md").read_text()).substitute(values)


def _pixels(processor: dict[str, Any]) -> str:
    if not processor["do_normalize"]:
        return "[0, 1]"
    if processor["image_mean"] == [0.5] * 3 and processor["image_std"] == [0.5] * 3:
        return "[-1, 1]"
    return f"[0, 1], minus {processor['image_mean']}, over {processor['image_std']}"


def _licence(project: str, of_code: str, of_weights: str | None) -> str:
    code = f"the code of {project} is {of_code}"
    if of_weights:
        return f"{of_weights}, as stated at conversion; {code}."
    return (
        f"{code}. The licence of the weights was not stated at conversion: ask their publisher before passing them on."
    )


def _verified(verification: dict[str, Any]) -> str:
    lines = [
        f"On inputs of {' and '.join(str(tuple(shape)) for shape in verification['inputs'])}: all values finite, "
        "`decode(encode(x).image_tokens)` equal to `model(x)`, and the saved model, loaded again, equal to the "
        "converted one, both up to rounding."
    ]
    beside = verification["beside_diffusers"]
    if isinstance(beside, str):
        lines.append(f"Beside an independent implementation of the net: not compared, {beside}.")
    else:
        lines.append(
            f"Beside the same weights in diffusers {beside['diffusers']}: largest difference of latents "
            f"{beside['latents']:.1e}, of pixels {beside['pixels']:.1e} (fp32, relative to the largest value above 1)."
        )
    recorded = verification.get("recorded")
    if recorded is None:
        lines.append("Not compared with tensors recorded from the source's own code: none were given (`--expected`).")
    else:
        worst = {key: max(part[key] for part in recorded.values()) for key in ("latents", "pixels", "tokens_wrong")}
        tokens = sum(part["tokens"] for part in recorded.values())
        lines.append(
            f"Beside tensors recorded from the source's own code: latents within {worst['latents']:.1e}, pixels "
            f"within {worst['pixels']:.1e}, {worst['tokens_wrong']} of {tokens} tokens different."
        )
    return "\n\n".join(lines)


__all__ = ["REPORT", "card", "check_output", "write_folder"]
