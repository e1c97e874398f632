"""`lgq export`: encoder and decoder as ONNX, or as programs of torch.export."""

import argparse
from pathlib import Path

from lgq_hf.checkpoint.loading import SHORT, load_checkpoint

from .output import check_output_folder
from .report import shown


def run(args: argparse.Namespace) -> int:
    """Exports `args.model` into `args.output` and says what the check found; returns 0.

    Raises:
        ValueError: the model cannot be loaded or exported, or failed the check, or the output is not empty.
        OSError: the output cannot be written.
        ModuleNotFoundError: without the packages for ONNX, naming the extra.
    """
    from lgq_hf.export.onnx import ExportError, check_output, export_onnx, export_pt2

    output = Path(args.output)
    check_output_folder(output)
    check_output(output)
    checkpoint = load_checkpoint(args.model, "cpu")
    export = export_onnx if args.format == "onnx" else export_pt2
    try:
        facts = export(checkpoint.model, checkpoint.processor, output)
    except ExportError as error:
        raise ValueError(f"{checkpoint.name}: {error}") from error
    check = facts["check"]
    print(f"{shown(str(output))}: encoder.{args.format} and decoder.{args.format} of {shown(checkpoint.name)}")
    print(f"weights {facts['fingerprint'][:SHORT]}, height and width multiples of {facts['multiple_of']}")
    print(
        f"{check['differ']} of {check['tokens']} random tokens differ from the model's, pixels by up to "
        f"{check['pixels']:.1g}"
    )
    return 0
