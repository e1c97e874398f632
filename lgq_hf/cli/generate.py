"""`lgq generate`: images from a generator, side by side in one image; and pipelines for the commands."""

import argparse
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from lgq_hf.checkpoint.loading import quiet
from lgq_hf.images.sheet import draw_grid

from .output import check_output_file, write_png
from .report import progress_bar, shown

if TYPE_CHECKING:  # diffusers takes seconds to import
    from lgq_hf.generation.draw import Draw


def run(args: argparse.Namespace) -> int:
    """Generates `args.num` images, of the classes that are named in turn, and draws them into `args.output`.

    Raises:
        ValueError: no pipeline, a class or option that it does not have, or one out of range.
        OSError: the output cannot be written.
        ModuleNotFoundError: without diffusers, naming the extra.
    """
    from lgq_hf.generation.draw import draw_pictures
    from lgq_hf.runtime import Clock

    output = Path(args.output)
    check_output_file(output, ".png")
    if args.num < 1:
        raise ValueError(f"--num: expected at least 1 image, got {args.num}")
    draw = draw_of(args, secrets.randbelow(2**31) if args.seed is None else args.seed)
    pipe = load_quietly(args.pipeline, args.device, args.dtype)
    named: list[int | None] = [_class(pipe, text) for text in args.classes or ()] or [None]
    classes = [named[number % len(named)] for number in range(args.num)]
    images: list[Image.Image] = []
    with progress_bar("generating") as update:
        for _, batch in draw_pictures(pipe, classes, draw, Clock(pipe.device)):
            images += [Image.fromarray(image) for image in batch.permute(0, 2, 3, 1).cpu().numpy()]
            update(len(images), args.num)
    captions = ["" if number is None else pipe.id2label.get(number, str(number)) for number in classes]
    write_png(output, draw_grid(images, captions))
    height, width = pipe.picture_size
    what = f"{len(images)} images" if len(images) > 1 else "1 image"
    print(f"{shown(str(output))}: {what} of {height} x {width} pixels (height x width), --seed {draw.seed}")
    return 0


def _class(pipe: Any, text: str) -> int:
    """The number of a class that is given by name or number."""
    label = int(text) if text.isdecimal() and text not in pipe.id2label.values() else text
    number: int = pipe.class_numbers(label)[0]
    return number


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
    """How the arguments say that images are drawn; `ValueError` for a seed or batch size out of range."""
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


__all__ = ["draw_of", "load_quietly", "run"]
