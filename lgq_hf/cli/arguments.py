"""The arguments of every command of `lgq`. Nothing heavy is imported here."""

import argparse
from typing import Any

from lgq_hf._version import __version__

EXIT_STATUS = "Exit status: 0 all done, 1 some images failed (listed at the end), 2 wrong usage or nothing to do."
_CHECKPOINT = "checkpoint folder or Hub repository"
_DTYPES = ("float32", "bfloat16", "float16")


def build_parser() -> argparse.ArgumentParser:
    """The parser of `lgq`; the command's name is in `command`."""
    parser = argparse.ArgumentParser(
        prog="lgq", description="LGQ image tokenizer: images to tokens and back.", epilog=EXIT_STATUS
    )
    parser.add_argument("--version", action="version", version=f"lgq_hf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_encode_decode_reconstruct(commands)
    _add_tokenize(commands)
    _add_generate(commands)
    _add_evaluate(commands)
    _add_evaluate_generator(commands)
    _add_push(commands)
    _add_export(commands)
    _add_demo(commands)
    info = commands.add_parser("info", help="what a checkpoint is and what its tokens cost", epilog=EXIT_STATUS)
    info.add_argument("model", nargs="?", metavar="MODEL", help=f"{_CHECKPOINT} (default: built in)")
    info.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _pixels(text: str) -> int:
    size = int(text) if text.isdecimal() else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected a number of pixels, 1 or more, got {text!r}")
    return size


def _rows(text: str) -> tuple[int, int]:
    start, colon, stop = text.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise argparse.ArgumentTypeError(f"expected two numbers A:B, A below B, got {text!r}")
    return int(start), int(stop)


def _port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"expected a port, 1 to 65535, got {text!r}")
    return int(text)


def _add_model(parser: Any) -> None:
    parser.add_argument("--model", metavar="PATH_OR_REPO", help=f"{_CHECKPOINT} (default: built in)")
    _add_device(parser)


def _add_device(parser: Any, default: str = "auto") -> None:
    told = f"auto: a GPU if there is one ({default})"
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default=default, help=told)


def _add_size(parser: Any) -> None:
    told = "resize the shorter side to N pixels and crop the middle N x N"
    parser.add_argument("--size", type=_pixels, metavar="N", help=told)


def _add_encode_decode_reconstruct(commands: Any) -> None:
    encode = commands.add_parser("encode", help="images to a token file", epilog=EXIT_STATUS)
    told = "originals and reconstructions side by side, with PSNR"
    reconstruct = commands.add_parser("reconstruct", help=told, epilog=EXIT_STATUS)
    for parser in (encode, reconstruct):
        parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, folder (searched recursively) or glob")
        _add_size(parser)
        _add_model(parser)
    encode.add_argument("-o", "--output", required=True, metavar="FILE", help="token file: .safetensors or .npz")
    reconstruct.add_argument("-o", "--output", required=True, metavar="FILE", help="image to write: .png")
    decode = commands.add_parser("decode", help="tokens to PNG images", epilog=EXIT_STATUS)
    _add_model(decode)
    decode.add_argument("tokens", metavar="TOKENS", help="token file of `lgq encode`, or folder of `lgq tokenize`")
    decode.add_argument("--rows", type=_rows, metavar="A:B", help="of a folder, rows A to B - 1 (all)")
    decode.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the images")


def _add_source(data: Any, *, on_error: str) -> None:
    """Where images come from, and how they are cut, of `lgq tokenize` and `lgq evaluate`."""
    told = "default: by what is there"
    data.add_argument("--kind", choices=("folder", "dataset", "parquet", "webdataset"), help=told)
    data.add_argument("--split", default="train", metavar="NAME", help="split to read (train)")
    data.add_argument("--config", metavar="NAME", help="configuration of a dataset that has several")
    data.add_argument("--source-revision", metavar="REV", help="commit, branch or tag of a dataset on the Hub")
    data.add_argument("--image-column", metavar="COLUMN", help="default: the only one that holds images")
    told = "names of rows, all different (row numbers; __key__ of tars)"
    data.add_argument("--id-column", metavar="COLUMN", help=told)
    told = f"images that cannot be read; skip: list them ({on_error})"
    data.add_argument("--on-error", choices=("skip", "stop"), default=on_error, help=told)
    told = "processes that read ahead (0 on CPUs, up to 8 for a GPU)"
    data.add_argument("--workers", type=int, metavar="N", help=told)
    _add_size(data)
    data.add_argument("--crops", type=int, choices=(1, 5), default=1, help="the middle, or corners and middle (1)")
    told = "resize to N * S before cropping (1.0)"
    data.add_argument("--crop-scale", type=float, default=1.0, metavar="S", help=told)


def _add_tokenize(commands: Any) -> None:
    parser = commands.add_parser(
        "tokenize",
        help="a whole folder or dataset to token shards that generators train on",
        description="Images to parquet shards that datasets.load_dataset reads, and manifest.json. Several "
        "processes (torchrun, accelerate launch, or --num-shards) share the work. A job that was killed goes on when "
        "it is given again.",
        epilog=EXIT_STATUS,
    )
    told = "folder of images, parquet, WebDataset tars, or a dataset"
    parser.add_argument("source", nargs="?", metavar="SOURCE", help=told)
    told = "folder, or hf://datasets/ORG/NAME of a dataset on the Hub"
    parser.add_argument("-o", "--output", metavar="DIR", help=told)
    told = "instead: read all shards in DIR and compare with the manifest"
    parser.add_argument("--verify", metavar="DIR", help=told)
    _add_model(parser)
    parser.add_argument("--revision", metavar="REV", help="commit, branch or tag of the model's repository")
    data = parser.add_argument_group("source")
    _add_source(data, on_error="skip")
    data.add_argument("--label-column", metavar="COLUMN", help="class numbers; of a folder, the folders in it")
    data.add_argument("--keep", action="append", default=[], metavar="COLUMN", help="copy this column too; repeatable")
    data.add_argument("--mixed-sizes", action="store_true", help="images keep their sizes, which may differ")
    data.add_argument("--flip", action="store_true", help="add a mirrored copy of each crop")
    speed = parser.add_argument_group("engine")
    told = "images through the model at once (16)"
    speed.add_argument("--batch-size", type=int, default=16, metavar="N", help=told)
    speed.add_argument("--dtype", choices=_DTYPES, default="float32", help="of the encoder (float32)")
    speed.add_argument("--channels-last", action="store_true", help="memory format of the encoder")
    speed.add_argument("--compile", action="store_true", help="torch.compile the encoder")
    speed.add_argument("--pictures-per-file", type=int, metavar="N", help="default: about 64 files")
    speed.add_argument("--num-shards", type=int, metavar="N", help="processes that share the work (WORLD_SIZE)")
    speed.add_argument("--shard-index", type=int, metavar="I", help="number of this one, from 0 (RANK)")
    speed.add_argument("--engine", choices=("local", "ray"), default="local", help="ray: by actors of Ray")
    speed.add_argument("--ray-workers", type=int, default=1, metavar="N", help="actors (1)")
    speed.add_argument("--ray-cpus", type=float, default=1, metavar="X", help="cores of each (1)")
    speed.add_argument("--ray-gpus", type=float, default=0, metavar="X", help="GPUs of each (0)")


def _add_drawing(parser: Any, seed: int | None) -> None:
    """How images are drawn from a generator; a seed of `None` is drawn itself."""
    drawn = parser.add_argument_group("how images are drawn")
    drawn.add_argument("--guidance", type=float, default=1.0, metavar="S", help="guidance scale (1: none)")
    drawn.add_argument("--steps", type=int, metavar="N", help="of a masked generator (12)")
    drawn.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of each token (1.0)")
    drawn.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest codes (all)")
    drawn.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest codes that sum to P (all)")
    told = "drawn if not given, and printed" if seed is None else str(seed)
    drawn.add_argument("--seed", type=int, default=seed, metavar="N", help=f"of the random numbers ({told})")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at once (16)")
    _add_device(parser)


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="images from a generator, side by side",
        description="Images from a pipeline that training.train_generator made, masked or autoregressive.",
    )
    parser.add_argument("--pipeline", required=True, metavar="PATH_OR_REPO", help="folder or Hub repository")
    told = "by number or name; repeatable, the images take turns (no class)"
    parser.add_argument("--class", dest="classes", action="append", metavar="CLASS", help=told)
    parser.add_argument("--num", type=int, default=8, metavar="N", help="images to generate (8)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="image to write: .png")
    parser.add_argument("--dtype", choices=_DTYPES, help="of the networks (as saved)")
    _add_drawing(parser, seed=None)


def _add_results(parser: Any, grid: str) -> None:
    """What is written, and the network of the features, of both evaluations."""
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="results to write: .json")
    parser.add_argument("--grid", metavar="FILE", help=f"image to write, .png: {grid}")
    names, default = ("efficientnet-lite0", "inception-2015"), "efficientnet-lite0"
    parser.add_argument("--extractor", choices=names, default=default, help=f"network of the features ({default})")
    parser.add_argument("--inception-weights", metavar="FILE", help="of inception-2015; nothing is downloaded")


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="how good a tokenizer is, in numbers",
        description="Images beside their reconstructions in PSNR, SSIM and distances of features, the use of the "
        "codebook, bits, and speed; several processes (torchrun, accelerate launch) share the images.",
        epilog="Exit status: 0 done, 1 some images were passed over (listed at the end), 2 wrong usage.",
    )
    parser.add_argument("model", metavar="MODEL", help=f"{_CHECKPOINT}; lgq-tiny: the built-in one")
    told = "folder of images, parquet, WebDataset tars, or a dataset"
    parser.add_argument("data", metavar="DATA", help=told)
    _add_results(parser, "the best and worst")
    data = parser.add_argument_group("images, as `lgq tokenize` takes them")
    _add_source(data, on_error="stop")
    data.add_argument("--limit", type=int, metavar="N", help="take N images, drawn by --seed (all)")
    data.add_argument("--seed", type=int, default=0, metavar="N", help="of the random numbers (0)")
    model = parser.add_argument_group("model and metrics")
    _add_device(model)
    model.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at once (16)")
    model.add_argument("--revision", metavar="REV", help="commit, branch or tag of the model's repository")
    model.add_argument("--dtype", choices=_DTYPES, default="float32", help="of the model (float32)")
    told = "is it a moving average? (by results.json beside it)"
    model.add_argument("--ema", choices=("yes", "no", "unknown"), help=told)
    model.add_argument("--lpips-vgg", metavar="FILE", help="weights of VGG16, for LPIPS; with --lpips-heads")
    model.add_argument("--lpips-heads", metavar="FILE", help="heads of the lpips project, for LPIPS")


def _add_evaluate_generator(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate-generator",
        help="how good a generator is, in numbers",
        description="Features of a generator's images compared with those of real ones by Fréchet distance (of the "
        "extractor that is named), precision and recall; the distance of the tokenizer's reconstructions, below which "
        "no generator on these tokens gets; and bits per token of tokens held out.",
        epilog="Exit status: 0 done, 2 wrong usage.",
    )
    parser.add_argument("--pipeline", required=True, metavar="PATH_OR_REPO", help="folder or Hub repository")
    told = "real images; folders in it are classes, in their shares"
    parser.add_argument("--pictures", required=True, metavar="FOLDER", help=told)
    parser.add_argument("--num", required=True, type=int, metavar="N", help="images to generate")
    parser.add_argument("--tokens", metavar="DIR", help="token shards held out from training, of `lgq tokenize`")
    _add_results(parser, "some of those generated")
    _add_drawing(parser, seed=0)


def _add_push(commands: Any) -> None:
    parser = commands.add_parser(
        "push",
        help="publish a checkpoint or a pipeline on the Hub",
        description="Checks a folder (it loads and works, has a card with a licence, and results of its weights), "
        "uploads what belongs to it as one commit, and compares what arrived. See docs/publishing.md.",
        epilog="Exit status: 0 published and compared, 2 refused or failed.",
    )
    parser.add_argument("folder", metavar="DIR", help="of a tokenizer or pipeline, such as `final` of a run")
    parser.add_argument("repository", metavar="ORG/NAME", help="model repository; made if it is not there")
    parser.add_argument("--dry-run", action="store_true", help="list what would go; nothing is sent, no token needed")
    parser.add_argument("--private", action="store_true", help="make the repository private; one that exists must be")
    parser.add_argument("--revision", metavar="BRANCH", help="commit to this branch, made if it is not there (main)")
    parser.add_argument("--tag", metavar="TAG", help="give this name, which must be new, to the commit")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="encoder and decoder as ONNX, or as programs of torch.export",
        description="Writes encoder and decoder for batches and images of any size, with preprocessor_config.json "
        "and export.json, and checks them against the model. See docs/exporting.md.",
        epilog="Exit status: 0 written and checked, 2 refused or failed: then nothing is written.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help=f"{_CHECKPOINT} (default: built in)")
    told = "folder to make; one that exists is empty"
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help=told)
    parser.add_argument("--format", choices=("onnx", "pt2"), default="onnx", help="pt2: for torch.export.load (onnx)")


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="a page that shows images, their tokens, and what changing them does",
        description="A page for the browser: images, their tokens and reconstructions, what editing a token does, "
        "and where a code occurs. See docs/demo.md.",
        epilog="Exit status: 2 wrong usage, a model that cannot be loaded or a port that is taken.",
    )
    parser.add_argument("--model", metavar="PATH_OR_REPO", help=f"{_CHECKPOINT} (default: built in)")
    parser.add_argument("--compare", metavar="PATH_OR_REPO", help=f"{_CHECKPOINT} to show beside it")
    told = "address to answer on; 0.0.0.0 for all (127.0.0.1)"
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help=told)
    parser.add_argument("--port", type=_port, default=7860, metavar="N", help="port to answer on (7860)")
    parser.add_argument("--share", action="store_true", help="a public link through gradio's servers, for a week")
    _add_device(parser, default="cpu")


__all__ = ["build_parser"]
