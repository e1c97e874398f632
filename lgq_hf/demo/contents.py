"""What the page's parts hold for a view, by name, as HTML. `page` puts them where they belong."""

import math
from html import escape
from typing import Any

from lgq_hf.checkpoint.loading import Checkpoint

from .drawing import GAIN, changed_pixels, difference, figure, grid_html, highlight, occurrences
from .measures import table
from .view import View, alone, check_editable

PICTURE_PARTS = ("original", "reconstruction", "difference", "other", "note", "numbers")
TOKEN_PARTS = ("grid", "selection", "edits", "code", "highlighted", "found", "alone")
_LONGEST_NAME = 28


def picture_contents(view: View) -> dict[str, str]:
    """`PICTURE_PARTS`: pictures under captions, what was done to the original, and a table; `other` may be empty."""
    original, now, other = view.plain.original, view.now, view.other
    edited = " (edited)" if view.edited else ""
    lines = [(shortened(now.name) + edited, now.measures)]
    lines += [] if other is None else [(shortened(other.name), other.measures)]
    return {
        "original": figure(original, "Original"),
        "reconstruction": figure(now.picture, f"Reconstruction{edited}"),
        "difference": figure(difference(original, now.picture), f"Difference, {GAIN} times"),
        "other": "" if other is None else figure(other.picture, f"By {shortened(other.name)}"),
        "note": _paragraph(view.note),
        "numbers": table(lines),
    }


def token_contents(view: View, checkpoint: Checkpoint) -> dict[str, Any]:
    """`TOKEN_PARTS`: `code` a number or `None`, the rest HTML.

    Where a position has several tokens, `grid` says that there is none, and the rest is empty.
    """
    try:
        check_editable(checkpoint)
    except ValueError as error:
        return dict.fromkeys(TOKEN_PARTS, "") | {"grid": _paragraph(f"No grid here: {error}."), "code": None}
    tokens, own, code = view.now.tokens, view.plain.tokens, view.code
    selection = "No token selected."
    if view.selected is not None:
        (row, column), held = view.selected, int(tokens[view.selected])
        was = "" if held == own[view.selected] else f" (was {int(own[view.selected])})"
        selection = f"Selected: row {row}, column {column}, code {held}{was}."
    edits, pixels = len(view.edited), math.prod(view.now.picture.size)
    changed = changed_pixels(view.plain.picture, view.now.picture) if edits else 0
    text = f"{edits} of {tokens.size:,} tokens edited; {changed:,} of {pixels:,} pixels of the reconstruction changed."
    parts = {
        "grid": grid_html(tokens, view.selected, view.edited),
        "selection": _paragraph(selection),
        "edits": _paragraph(text),
        "code": code,
    }
    if code is None:
        empty = {"highlighted": figure(None, "Where the code occurs"), "alone": figure(None, "The code alone")}
        return parts | empty | {"found": _paragraph("Select a token, or choose a code.")}
    count = len(occurrences(tokens, code))
    times = {0: "nowhere", 1: "once"}.get(count, f"{count:,} times")
    marked = highlight(view.now.picture, tokens, code, checkpoint.config.spatial_downsample_factor)
    return parts | {
        "highlighted": figure(marked, f"Where code {code} occurs"),
        "found": _paragraph(f"Code {code} occurs {times} among {tokens.size:,} tokens."),
        "alone": figure(alone(checkpoint, code), f"Code {code} alone"),
    }


def shortened(name: str) -> str:
    """The end of a long name, which tells folders apart best."""
    return name if len(name) <= _LONGEST_NAME else f"...{name[3 - _LONGEST_NAME :]}"


def about(checkpoint: Checkpoint) -> str:
    """One line of HTML about a checkpoint: name, tokens, codes, bits."""
    config = checkpoint.config
    count, factor = config.tokens_per_position, config.spatial_downsample_factor
    tokens = "a token" if count == 1 else f"{count} tokens"
    bits = f"{math.log2(config.codebook_size):.4g} bits a token, {config.bits_per_pixel:.4g} bits a pixel"
    codes = f"one of {config.codebook_size:,} codes ({config.quantizer})"
    return _paragraph(f"{checkpoint.name}: {tokens} for each {factor} x {factor} pixels, {codes}, {bits}.")


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


__all__ = ["PICTURE_PARTS", "TOKEN_PARTS", "about", "picture_contents", "shortened", "token_contents"]
