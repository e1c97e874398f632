"""Pipelines for the commands."""

import argparse
from typing import TYPE_CHECKING, Any

import torch

from lgq_hf.checkpoint.loading import quiet

if TYPE_CHECKING:  # diffusers takes seconds to import
    from lgq_hf.generation.draw import Draw


def load_quietly(place: str, device: str, dtype: str | None = None) -> Any:
    """A pipeline without bars and warnings on the terminal, neither now nor while it works; a download shows its own.

    Raises:
        ValueError: as `load_pipeline`.
        ModuleNotFoundError: without diffusers, naming the extra.
    """
    from lgq_hf.generation import load_pipeline  # takes seconds to import, and says what is missing

    # isort: split
    from diffusers.utils import logging as diffusers_logging

    shown, verbosity = diffusers_logging.is_progress_bar_enabled(), diffusers_logging.get_verbosity()
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    try:
        with quiet():
            pipe = load_pipeline(place, device=device, dtype=None if dtype is None else getattr(torch, dtype))
    finally:
        diffusers_logging.set_verbosity(verbosity)
        if shown:
            diffusers_logging.enable_progress_bar()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_of(args: argparse.Namespace, seed: int) -> "Draw":
    """How the arguments say that pictures are drawn; `ValueError` for a seed or batch size out of range."""
    from lgq_hf.generation.draw import Draw

    return Draw(
        guidance_scale=args.guidance,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        num_inference_steps=args.steps,
        seed=seed,
        batch_size=args.batch_size,
    )


__all__ = ["draw_of", "load_quietly"]
