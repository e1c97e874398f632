"""A checkpoint as commands and jobs use it: model, image processor, device and fingerprints."""

from .loading import Checkpoint, Reference, find_checkpoint, load_checkpoint

__all__ = ["Checkpoint", "Reference", "find_checkpoint", "load_checkpoint"]
