"""Encoder and decoder for `torch.export` and ONNX Runtime."""

from .onnx import check_output, export_onnx, export_programs, export_pt2

__all__ = ["check_output", "export_onnx", "export_programs", "export_pt2"]
