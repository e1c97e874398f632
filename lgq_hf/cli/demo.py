"""`lgq demo`: a page that shows pictures, their tokens, and what becomes of them when they are changed."""

import argparse

from lgq_hf.checkpoint.loading import load_checkpoint
from lgq_hf.metrics.extras import import_extra


def run(args: argparse.Namespace) -> int:
    """Answers on `args.host` and `args.port` until it is stopped; returns 0.

    Raises:
        ModuleNotFoundError: gradio is not installed; names the extra.
        ValueError: `args.model` or `args.compare` cannot be loaded.
        OSError: the port is taken, or no share link could be had.
    """
    import_extra("gradio", "lgq demo", "demo")
    from lgq_hf.demo.page import Models, build_page, is_loopback, serve

    first = load_checkpoint(args.model, args.device)
    second = None if args.compare is None else load_checkpoint(args.compare, args.device)
    local = is_loopback(args.host) and not args.share
    page = build_page(Models(first, second, local=local, device=args.device))
    serve(page, args.host, args.port, share=args.share)
    return 0


__all__ = ["run"]
