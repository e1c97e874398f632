"""A program of torch.export as ONNX, and ONNX Runtime: what `lgq_hf.export.onnx` needs of both."""

import importlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

OPSET = 18  # what torch's own translations are written in


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


def name_axes(model: Any, tokens: Any, axes: Sequence[str]) -> None:
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


def session(runtime: Any, path: Path) -> Callable[[Tensor], list[Tensor]]:
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


__all__ = ["OPSET", "name_axes", "session", "to_onnx"]
