"""Reads the arguments of `lgq` and runs one command; commands are imported when they are needed."""

import contextlib
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from .arguments import build_parser

EXIT_UNUSABLE, EXIT_INTERRUPTED = 2, 128 + signal.SIGINT


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the block by SystemExit, so that temporary files are removed on the way out."""

    def stop(signum: int, _: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `lgq` with arguments `argv` (default: the process's own) and returns its exit status.

    0: all done. 1: some images failed. 2: wrong usage, nothing to do or a model that cannot be loaded. 130 and 143:
    stopped by Ctrl-C and by SIGTERM. Errors that a user can cause are printed as one line on stderr.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks must not end the work
            stream.reconfigure(errors="backslashreplace")
    try:
        words = list(sys.argv[1:] if argv is None else argv)
        if words[:1] == ["evaluate"] and any(word.split("=")[0] == "--pipeline" for word in words):
            words[0] = "evaluate-generator"  # which once was a form of `lgq evaluate`
        args = build_parser().parse_args(words)
        with _stop_on_sigterm():
            status = int(importlib.import_module(f"lgq_hf.cli.{args.command.replace('-', '_')}").run(args))
            sys.stdout.flush()  # here, where an error is caught, and not at exit
            return status
    except SystemExit as stop:
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("lgq: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `lgq info | head`: nobody reads on; Python would complain once more when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_UNUSABLE
    except (ValueError, OSError, ModuleNotFoundError) as error:  # the last one names the extra to install
        print(f"lgq: {error}", file=sys.stderr)
        return EXIT_UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
