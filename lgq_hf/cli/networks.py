"""The networks that measure, as the arguments of `lgq evaluate` name them."""

import argparse
from typing import Any

from lgq_hf.metrics.extractors import build_extractor
from lgq_hf.metrics.inception import INCEPTION_FILE
from lgq_hf.metrics.perceptual import LPIPS


def check_networks(args: argparse.Namespace) -> None:
    """Refuses files that are missing or that nothing would read (`ValueError`), before anything is loaded."""
    if args.extractor == "inception-2015" and args.inception_weights is None:
        raise ValueError(
            f"--extractor inception-2015 needs --inception-weights FILE, {INCEPTION_FILE}; nothing is downloaded"
        )
    if args.extractor != "inception-2015" and args.inception_weights is not None:
        raise ValueError(f"--inception-weights is for --extractor inception-2015, got {args.extractor}: leave it out")
    if (args.lpips_vgg is None) != (args.lpips_heads is None):
        raise ValueError("--lpips-vgg and --lpips-heads belong together: LPIPS needs both files, or leave both out")


def extractor_of(args: argparse.Namespace) -> Any:
    """The extractor of the features; errors as `check_networks`, and those of the network."""
    check_networks(args)
    return build_extractor(args.extractor, args.inception_weights)


def lpips_of(args: argparse.Namespace) -> LPIPS | None:
    """LPIPS, if its files are given, checked by `check_networks`; errors are those of the network."""
    return None if args.lpips_vgg is None else LPIPS(args.lpips_vgg, args.lpips_heads)


__all__ = ["check_networks", "extractor_of", "lpips_of"]
