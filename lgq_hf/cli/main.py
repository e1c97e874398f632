"""Reads the arguments of `lgq` and runs one command; commands are imported when they are needed."""

import argparse
import contextlib
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from lgq_hf._version import __version__

from .arguments import add_device, add_drawing, add_evaluate, add_push, pixels

EXIT_UNUSABLE, EXIT_INTERRUPTED = 2, 128 + signal.SIGINT
EXIT_STATUS = "Exit status: 0 all done, 1 some pictures failed (listed at the end), 2 wrong usage or nothing to do."


def _rows(text: str) -> tuple[int, int]:
    start, colon, stop = text.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise argparse.ArgumentTypeError(f"expected two numbers A:B, A below B, got {text!r}")
    return int(start), int(stop)


def _port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"expected a port, 1 to 65535, got {text!r}")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `lgq`; the command's name is in `command`."""
    parser = argparse.ArgumentParser(
        prog="lgq", description="LGQ image tokenizer: pictures to tokens and back.", epilog=EXIT_STATUS
    )
    parser.add_argument("--version", action="version", version=f"lgq_hf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    pictures = argparse.ArgumentParser(add_help=False)
    pictures.add_argument("inputs", nargs="+", metavar="INPUT", help="picture, folder (searched recursively) or glob")
    pictures.add_argument(
        "--size", type=pixels, metavar="N", help="resize the shorter side to N pixels and crop the middle N x N"
    )
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument(
        "--model", metavar="PATH_OR_REPO", help="checkpoint folder or Hub repository (default: built in)"
    )
    add_device(model)

    encode = commands.add_parser(
        "encode", parents=[pictures, model], help="pictures to a token file", epilog=EXIT_STATUS
    )
    encode.add_argument("-o", "--output", required=True, metavar="FILE", help="token file: .safetensors or .npz")
    decode = commands.add_parser("decode", parents=[model], help="tokens to PNG pictures", epilog=EXIT_STATUS)
    decode.add_argument("tokens", metavar="TOKENS", help="token file of `lgq encode`, or folder of `lgq tokenize`")
    decode.add_argument("--rows", type=_rows, metavar="A:B", help="of a folder, rows A to B - 1 (all)")
    decode.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the pictures")
    reconstruct = commands.add_parser(
        "reconstruct",
        parents=[pictures, model],
        help="originals and reconstructions side by side, with PSNR",
        epilog=EXIT_STATUS,
    )
    reconstruct.add_argument("-o", "--output", required=True, metavar="FILE", help="picture to write: .png")
    _add_tokenize(commands, model)
    _add_generate(commands)
    add_evaluate(commands)
    add_push(commands)
    _add_export(commands)
    _add_demo(commands)
    info = commands.add_parser("info", help="what a checkpoint is and what its tokens cost", epilog=EXIT_STATUS)
    info.add_argument(
        "model", nargs="?", metavar="MODEL", help="checkpoint folder or Hub repository (default: built in)"
    )
    info.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_tokenize(commands: Any, model: argparse.ArgumentParser) -> None:
    """`lgq tokenize`."""
    parser = commands.add_parser(
        "tokenize",
        parents=[model],
        help="a whole folder or dataset to token shards that generators train on",
        description="Pictures to parquet shards that datasets.load_dataset reads, and manifest.json. Several "
        "processes (torchrun, accelerate launch, or --num-shards) share the work. A job that was killed goes on when "
        "it is given again.",
        epilog=EXIT_STATUS,
    )
    parser.add_argument(
        "source", nargs="?", metavar="SOURCE", help="folder of pictures, parquet, WebDataset tars, or a dataset"
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="folder, or hf://datasets/ORG/NAME of a dataset on the Hub"
    )
    parser.add_argument(
        "--verify", metavar="DIR", help="instead: read all shards in DIR and compare with the manifest"
    )
    parser.add_argument("--revision", metavar="REV", help="commit, branch or tag of the model's repository")
    data = parser.add_argument_group("source")
    data.add_argument(
        "--kind", choices=("folder", "dataset", "parquet", "webdataset"), help="default: by what is there"
    )
    data.add_argument("--split", default="train", metavar="NAME", help="split to read, and name of the files (train)")
    data.add_argument("--config", metavar="NAME", help="configuration of a dataset that has several")
    data.add_argument("--source-revision", metavar="REV", help="commit, branch or tag of a dataset on the Hub")
    data.add_argument("--image-column", metavar="COLUMN", help="default: the only one that holds pictures")
    data.add_argument("--label-column", metavar="COLUMN", help="class numbers; of a folder, the folders in it")
    data.add_argument(
        "--id-column", metavar="COLUMN", help="names of rows, all different (row numbers; __key__ of tars)"
    )
    data.add_argument("--keep", action="append", default=[], metavar="COLUMN", help="copy this column too; repeatable")
    data.add_argument(
        "--on-error", choices=("skip", "stop"), default="skip", help="pictures that cannot be read (skip)"
    )
    cut = parser.add_argument_group("pictures")
    cut.add_argument("--size", type=pixels, metavar="N", help="resize the shorter side to N pixels and crop N x N")
    cut.add_argument("--mixed-sizes", action="store_true", help="pictures keep their sizes, which may differ")
    cut.add_argument("--crops", type=int, choices=(1, 5), default=1, help="the middle, or corners and middle (1)")
    cut.add_argument(
        "--crop-scale", type=float, default=1.0, metavar="S", help="resize to N * S before cropping (1.0)"
    )
    cut.add_argument("--flip", action="store_true", help="add a mirrored copy of each crop")
    speed = parser.add_argument_group("engine")
    speed.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="pictures through the model at once (16)"
    )
    speed.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the encoder")
    speed.add_argument("--channels-last", action="store_true", help="memory format of the encoder")
    speed.add_argument("--compile", action="store_true", help="torch.compile the encoder")
    speed.add_argument(
        "--workers", type=int, metavar="N", help="processes that read ahead (0 on CPUs, up to 8 for a GPU)"
    )
    speed.add_argument("--pictures-per-file", type=int, metavar="N", help="default: about 64 files")
    speed.add_argument("--num-shards", type=int, metavar="N", help="processes that share the work (WORLD_SIZE)")
    speed.add_argument("--shard-index", type=int, metavar="I", help="number of this one, from 0 (RANK)")
    speed.add_argument("--engine", choices=("local", "ray"), default="local", help="ray: by actors of Ray")
    speed.add_argument("--ray-workers", type=int, default=1, metavar="N", help="actors (1)")
    speed.add_argument("--ray-cpus", type=float, default=1, metavar="X", help="cores of each (1)")
    speed.add_argument("--ray-gpus", type=float, default=0, metavar="X", help="GPUs of each (0)")


def _add_generate(commands: Any) -> None:
    """`lgq generate`."""
    parser = commands.add_parser(
        "generate",
        help="pictures from a generator, side by side",
        description="Pictures from a pipeline that training.train_generator made, masked or autoregressive.",
    )
    parser.add_argument("--pipeline", required=True, metavar="PATH_OR_REPO", help="folder or Hub repository")
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        metavar="CLASS",
        help="by number or name; repeatable, the pictures take turns (no class)",
    )
    parser.add_argument("--num", type=int, default=8, metavar="N", help="pictures to generate (8)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="picture to write: .png")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the networks (as saved)")
    add_drawing(parser, seed=None)


def _add_export(commands: Any) -> None:
    """`lgq export`."""
    parser = commands.add_parser(
        "export",
        help="encoder and decoder as ONNX, or as programs of torch.export",
        description="Writes encoder and decoder for batches and pictures of any size, with preprocessor_config.json "
        "and export.json, and checks them against the model. See docs/exporting.md.",
        epilog="Exit status: 0 written and checked, 2 refused or failed: then nothing is written.",
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="checkpoint folder or Hub repository (default: built in)"
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="DIR", help="folder to make; one that exists is empty"
    )
    parser.add_argument("--format", choices=("onnx", "pt2"), default="onnx", help="pt2: for torch.export.load (onnx)")


def _add_demo(commands: Any) -> None:
    """`lgq demo`."""
    parser = commands.add_parser(
        "demo",
        help="a page that shows pictures, their tokens, and what changing them does",
        description="A page for the browser: pictures, their tokens and reconstructions, what editing a token does, "
        "and where a code occurs. See docs/demo.md.",
        epilog="Exit status: 2 wrong usage, a model that cannot be loaded or a port that is taken.",
    )
    named = "checkpoint folder or Hub repository"
    parser.add_argument("--model", metavar="PATH_OR_REPO", help=f"{named} (default: built in)")
    parser.add_argument("--compare", metavar="PATH_OR_REPO", help=f"{named} to show beside it")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="H", help="address to answer on; 0.0.0.0 for all (127.0.0.1)"
    )
    parser.add_argument("--port", type=_port, default=7860, metavar="N", help="port to answer on (7860)")
    parser.add_argument("--share", action="store_true", help="a public link through gradio's servers, for a week")
    add_device(parser, default="cpu")


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

    0: all done. 1: some pictures failed. 2: wrong usage, nothing to do or a model that cannot be loaded. 130 and 143:
    stopped by Ctrl-C and by SIGTERM. Errors that a user can cause are printed as one line on stderr.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks must not end the work
            stream.reconfigure(errors="backslashreplace")
    try:
        args = build_parser().parse_args(argv)
        with _stop_on_sigterm():
            status = int(importlib.import_module(f"lgq_hf.cli.{args.command}").run(args))
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
