"""Pipelines for the commands."""

from typing import Any

import torch

from lgq_hf.checkpoint import quiet


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


__all__ = ["load_quietly"]
