"""Encode and decode as programs without Python: `torch.export`, and ONNX, for batches and pictures of any size.

What is written is checked before it is there: the files are loaded again and run on random input of two sizes and
batch sizes. Shapes: B images, H W pixels, f downsampling factor, h = H / f and w = W / f, N = B*h*w, K codes,
C channels of a latent, G tokens per position.
"""

import importlib
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from lgq_hf import LGQImageProcessor, LGQModel
from lgq_hf.checkpoint.loading import fingerprint
from lgq_hf.export.static_model import StaticDecoder, StaticEncoder
from lgq_hf.files import atomic_folder
from lgq_hf.metrics.extras import import_extra
from lgq_hf.provenance import versions

FACTS = "export.json"
OPSET = 18  # what torch's own translations are written in
AXES = ("batch", "grid_height", "grid_width")
SMALLEST_GRID = 2  # torch.export assumes that a size that may change is not 1
TOLERANCE = 1e-4
_CHECKED = ((1, (2, 3)), (3, (5, 4)))  # batch and grid: others than were traced
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class ExportError(RuntimeError):
    """What was exported does not do what the model does."""


def export_programs(model: LGQModel) -> tuple[ExportedProgram, ExportedProgram]:
    """Encoder and decoder as [`StaticEncoder`] and [`StaticDecoder`] have them, of torch's own operators.

    Batch, H and W are dynamic: B at least 1, H and W multiples of f and at least 2 f. The weights are shared.

    Args:
        model: on the CPU, in evaluation mode, with float32 weights.

    Returns:
        `pixel_values` (B, 3, H, W) fp32 -> `image_tokens` (B, h, w) int64, or (B, h, w, G); and `image_tokens` ->
        `decoded_pixel_values` (B, 3, H, W) fp32.

    Raises:
        ValueError: for a model in another state, or a quantizer that has no static form.
        TypeError: for a model of another class, such as one of code that came with a checkpoint.
    """
    return _trace_encoder(model), _trace_decoder(model)


def export_onnx(model: LGQModel, processor: LGQImageProcessor, folder: str | Path) -> dict[str, Any]:
    """Writes `encoder.onnx` and `decoder.onnx`, `preprocessor_config.json` and `export.json`, all or nothing.

    Checked with ONNX Runtime: for random pictures the graph's latents are the model's to within 1e-4 of the largest,
    and its tokens are exactly those that the model's quantizer gives for the graph's latents (in fp32 or float64:
    FSQ's rounding can tell them apart). So a token differs from the model's only where the network's rounding moved a
    latent over a border. Decoded pixels of random tokens are those of the model to within 1e-4, times the largest
    where that is above 1, and tokens -1 and K are refused.

    Args:
        model: as in `export_programs`.
        processor: its image processor.
        folder: is made, or is empty, and then no mount point and not the current directory.

    Returns:
        What `export.json` says: versions, the weights' fingerprint, axes, and the figures of the check.

    Raises:
        ValueError: as in `export_programs`; a folder as above; a processor that pads to another multiple.
        ExportError: what was exported failed the check; nothing is written.
        OSError: the folder cannot be written, or got files in the meantime, which stay.
        ModuleNotFoundError: without onnx, onnxscript and onnxruntime, naming the extra.
    """
    _, _, runtime = (import_extra(package, "export to ONNX", "export") for package in _PACKAGES)

    def write(target: Path) -> tuple[Callable[..., Any], Callable[..., Any]]:
        encoder = to_onnx(_trace_encoder(model, with_rows=True), ["image_tokens", "latents"])
        decoder = to_onnx(_trace_decoder(model), ["decoded_pixel_values"])
        _name_axes(encoder.model, encoder.model.graph.outputs[0], AXES)
        _name_axes(decoder.model, decoder.model.graph.inputs[0], AXES)
        with TemporaryDirectory() as probe:
            encoder.save(Path(probe) / "encoder.onnx")
            latents_of = _session(runtime, Path(probe) / "encoder.onnx")
        encoder.model.graph.outputs.pop()  # the check alone looks at the latents
        encoder.save(target / "encoder.onnx")
        decoder.save(target / "decoder.onnx")
        tokens_of, decode = (_session(runtime, target / f"{name}.onnx") for name in ("encoder", "decoder"))
        return lambda pixels: (tokens_of(pixels)[0], latents_of(pixels)[1]), lambda tokens: decode(tokens)[0]

    about = {"opset": OPSET, "packages": {package: metadata.version(package) for package in _PACKAGES}}
    return _write(model, processor, Path(folder), "onnx", about, write)


def export_pt2(model: LGQModel, processor: LGQImageProcessor, folder: str | Path) -> dict[str, Any]:
    """As `export_onnx`, with `encoder.pt2` and `decoder.pt2` for `torch.export.load`; torch alone is needed.

    The check takes the model's own latents, so tokens must be equal, but for what FSQ rounds in float64 here.
    """

    def write(target: Path) -> tuple[Callable[..., Any], Callable[..., Any]]:
        for name, program in zip(("encoder", "decoder"), export_programs(model), strict=True):
            torch.export.save(program, target / f"{name}.pt2")
        encode, decode = (torch.export.load(target / f"{name}.pt2").module() for name in ("encoder", "decoder"))
        return lambda pixels: (encode(pixels), model.quantizer.to_rows(model.latents(pixels))), decode

    return _write(model, processor, Path(folder), "pt2", {}, write)


def check_output(folder: Path) -> None:
    """Refuses what is neither new nor an empty folder that another can take the place of (`ValueError`)."""
    if not folder.exists():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is not an empty folder: take another name, nothing is replaced")
    if folder.samefile(".") or os.path.ismount(folder.resolve()):
        raise ValueError(f"{folder} is the current directory or a mount point: name a folder inside it")


def _trace_encoder(model: LGQModel, *, with_rows: bool = False) -> ExportedProgram:
    factor = _check_model(model)
    batch, height, width = _axes()
    example = torch.zeros(2, model.config.in_channels, 3 * factor, 5 * factor)
    return _trace(
        StaticEncoder(model, with_rows=with_rows), example, {0: batch, 2: factor * height, 3: factor * width}
    )


def _trace_decoder(model: LGQModel) -> ExportedProgram:
    _check_model(model)
    groups = model.config.tokens_per_position
    example = torch.zeros(2, 3, 5, *([groups] if groups > 1 else []), dtype=torch.int64)
    return _trace(StaticDecoder(model), example, dict(enumerate(_axes())))


def _axes() -> list[Any]:
    return [Dim(name, min=least) for name, least in zip(AXES, (1, SMALLEST_GRID, SMALLEST_GRID), strict=True)]


@torch.no_grad()
def _trace(module: torch.nn.Module, example: Tensor, axes: dict[int, Any]) -> ExportedProgram:
    program = torch.export.export(module, (example,), dynamic_shapes=(axes,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths on this machine
    return program


def _check_model(model: LGQModel) -> int:
    """The model's downsampling factor; `ValueError` for what would be traced wrongly."""
    if not isinstance(model, LGQModel):
        found = f"{type(model).__module__}.{type(model).__name__}"
        raise TypeError(f"expected a model of lgq_hf, got {found}: load it with lgq_hf.LGQModel.from_pretrained")
    dtypes, devices = ({str(getattr(v, of)) for v in model.parameters()} for of in ("dtype", "device"))
    if dtypes != {"torch.float32"}:
        raise ValueError(f"expected float32 weights, got {sorted(dtypes)}: load the model with dtype=torch.float32")
    if devices != {"cpu"}:
        raise ValueError(f"expected a model on the CPU, got {sorted(devices)}: move it with model.to('cpu')")
    if model.training:
        raise ValueError("expected a model in evaluation mode, got one in training mode: call model.eval()")
    return int(model.config.spatial_downsample_factor)


def _write(
    model: LGQModel, processor: LGQImageProcessor, folder: Path, kind: str, about: dict[str, Any], write: Callable
) -> dict[str, Any]:
    """Writes the folder by `write`, which returns encode and decode as the files have them, and checks these."""
    config, factor = model.config, _check_model(model)
    check_output(folder)
    if processor.pad_to_multiple_of % factor:
        raise ValueError(
            f"the image processor pads to multiples of {processor.pad_to_multiple_of}, the model needs multiples of "
            f"{factor}: take the processor of this model, or set pad_to_multiple_of"
        )
    groups = [config.tokens_per_position] if config.tokens_per_position > 1 else []
    batch, height, width = AXES
    pixels = {"dtype": "float32", "shape": [batch, config.in_channels, f"{factor}*{height}", f"{factor}*{width}"]}
    tokens = {"dtype": "int64", "shape": [batch, height, width, *groups], "below": config.codebook_size}
    with atomic_folder(folder, new=True) as target:
        encode, decode = write(target)
        facts = {
            "format": kind,
            "encoder": {"file": f"encoder.{kind}", "pixel_values": pixels, "image_tokens": tokens},
            "decoder": {"file": f"decoder.{kind}", "image_tokens": tokens, "decoded_pixel_values": pixels},
            "dynamic_axes": list(AXES),
            "multiple_of": factor,
            "smallest_grid": [SMALLEST_GRID] * 2,
            "fingerprint": fingerprint(sorted(model.state_dict().items())),
            **about,
            "versions": versions(),
            "check": check_parity(model, encode, decode),
        }
        processor.to_json_file(target / "preprocessor_config.json")
        (target / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


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
        try:
            decode(tokens.index_fill(0, torch.tensor([0]), outside))
        except Exception:  # of another type in every runtime; valid tokens were decoded just before
            continue
        raise ExportError(f"the exported decoder takes the token {outside}, which is none: nothing was written")
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


def to_onnx(program: ExportedProgram, outputs: list[str]) -> Any:
    """A program of one input as a `torch.onnx.ONNXProgram`, whose outputs have these names."""
    table = _translations()
    with torch.no_grad(), _quiet():
        return torch.onnx.export(
            program, (), verbose=False, opset_version=OPSET, output_names=outputs, custom_translation_table=table
        )


def _translations() -> dict[Any, Callable]:
    """ONNX for operators that the exporter does not know, or knows in a form that is not exact enough."""
    op = importlib.import_module("onnxscript").opset18

    def mean(x: Any, groups: int) -> Any:
        """(B, D, H, W) -> (B, D, 1, 1): means of groups of channels."""
        channels = op.ReduceMean(op.ReduceMean(x, [3], keepdims=1), [2], keepdims=1)
        grouped = op.Reshape(channels, [0, groups, -1])
        return op.Reshape(op.Expand(op.ReduceMean(grouped, [2], keepdims=1), op.Shape(grouped)), op.Shape(channels))

    # By means over rows, columns and channels: ONNX Runtime's own norm (1.32) adds up all of a group in fp32, one
    # after another, and with a picture of a megapixel two tokens of a thousand change.
    def group_norm(
        x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enabled: bool = True
    ) -> Any:
        centred = op.Sub(x, mean(x, groups))
        scale = op.Reciprocal(op.Sqrt(op.Add(mean(op.Mul(centred, centred), groups), eps)))
        if weight is None or bias is None:
            return op.Mul(centred, scale)
        weight, bias = (op.Reshape(v, [-1, 1, 1]) for v in (weight, bias))
        return op.Add(op.Mul(centred, op.Mul(scale, weight)), bias)

    aten = torch.ops.aten
    return {
        aten.group_norm.default: group_norm,
        aten.__lshift__.Tensor: lambda number, bits: op.Mul(number, op.Pow(2, bits)),
        # tokens are not negative
        aten.__rshift__.Tensor: lambda number, bits: op.Div(number, op.Pow(2, bits)),
    }


def _name_axes(model: Any, tokens: Any, axes: Sequence[str]) -> None:
    """Gives the dimensions of `tokens` (B, h, w, ...), an input or output, these names wherever they occur.

    Also drops what the exporter notes of each node, such as paths on this machine.
    """
    names = {str(dim.value): axis for dim, axis in zip(tokens.shape, axes, strict=False)}
    symbols = re.compile(rf"\b({'|'.join(names)})\b")
    for node in model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        for place, dim in enumerate(value.shape or ()):
            if isinstance(getattr(dim, "value", None), str):
                value.shape[place] = symbols.sub(lambda found: names[found[0]], dim.value)


def _session(runtime: Any, path: Path) -> Callable[[Tensor], list[Tensor]]:
    """A function of the input's tensor that runs a file with `runtime`, the module onnxruntime, on a CPU."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4  # small inputs, and errors are asked for
    loaded = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in loaded.get_inputs())
    return lambda tensor: [torch.from_numpy(array) for array in loaded.run(None, {name: tensor.numpy()})]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's remarks on packages that are not installed, and on itself, off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


__all__ = [
    "AXES",
    "FACTS",
    "SMALLEST_GRID",
    "ExportError",
    "check_output",
    "export_onnx",
    "export_programs",
    "export_pt2",
]
