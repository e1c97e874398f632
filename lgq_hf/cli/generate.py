"""`lgq generate`: pictures from a generator, side by side in one picture."""

import argparse
import secrets
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from lgq_hf.files import atomic_file
from lgq_hf.images.sheet import draw_grid

from .output import check_output_file
from .pipeline import draw_of, load_quietly
from .report import shown


def run(args: argparse.Namespace) -> int:
    """Generates `args.num` pictures, of the classes that are named in turn, and draws them into `args.output`.

    Raises:
        ValueError: no pipeline, a class or option that it does not have, or one out of range.
        OSError: the output cannot be written.
        ModuleNotFoundError: without diffusers, naming the extra.
    """
    from lgq_hf.cost import Clock
    from lgq_hf.generation.draw import draw_pictures

    output = Path(args.output)
    if output.suffix.lower() != ".png":
        raise ValueError(f"{output}: the pictures are written side by side as PNG, expected a name that ends in .png")
    check_output_file(output)
    if args.num < 1:
        raise ValueError(f"--num: expected at least 1 picture, got {args.num}")
    draw = draw_of(args, secrets.randbelow(2**31) if args.seed is None else args.seed)
    pipe = load_quietly(args.pipeline, args.device, args.dtype)
    named: list[int | None] = [_class(pipe, text) for text in args.classes or ()] or [None]
    classes = [named[number % len(named)] for number in range(args.num)]
    pictures: list[Image.Image] = []
    with tqdm(total=args.num, desc="generating", unit="picture", disable=None, dynamic_ncols=True) as bar:
        for _, batch in draw_pictures(pipe, classes, draw, Clock(pipe.device)):
            pictures += [Image.fromarray(picture) for picture in batch.permute(0, 2, 3, 1).cpu().numpy()]
            bar.update(len(batch))
    captions = ["" if number is None else pipe.id2label.get(number, str(number)) for number in classes]
    with atomic_file(output) as temporary:
        draw_grid(pictures, captions).save(temporary, "PNG")
    height, width = pipe.picture_size
    what = f"{len(pictures)} pictures" if len(pictures) > 1 else "1 picture"
    print(f"{shown(str(output))}: {what} of {height} x {width} pixels (height x width), --seed {draw.seed}")
    return 0


def _class(pipe: Any, text: str) -> int:
    """The number of a class that is given by name or number."""
    label = int(text) if text.isdecimal() and text not in pipe.id2label.values() else text
    number: int = pipe.class_numbers(label)[0]
    return number
