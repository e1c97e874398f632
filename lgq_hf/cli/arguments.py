"""Arguments that several commands have, and the long ones of `lgq evaluate`. Nothing heavy is imported here."""

import argparse
from typing import Any

# options of `lgq evaluate` that belong to one of its two forms; left out, they are `None`
FOR_TOKENIZERS: dict[str, Any] = {
    "revision": None,
    "kind": None,
    "split": "train",
    "config": None,
    "source_revision": None,
    "image_column": None,
    "id_column": None,
    "limit": None,
    "size": None,
    "crops": 1,
    "crop_scale": 1.0,
    "on_error": "stop",
    "dtype": "float32",
    "workers": None,
    "ema": None,
    "lpips_vgg": None,
    "lpips_heads": None,
}
FOR_GENERATORS: dict[str, Any] = {
    "pictures": None,
    "tokens": None,
    "num": None,
    "guidance": 1.0,
    "steps": None,
    "temperature": 1.0,
    "top_k": None,
    "top_p": None,
}


def pixels(text: str) -> int:
    """A number of pixels, 1 or more."""
    size = int(text) if text.isdecimal() else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected a number of pixels, 1 or more, got {text!r}")
    return size


def add_device(parser: Any, default: str = "auto") -> None:
    """--device."""
    told = "default: a GPU if there is one" if default == "auto" else f"auto: a GPU if there is one ({default})"
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default=default, help=told)


def add_drawing(parser: Any, seed: int | None) -> None:
    """How pictures are drawn from a generator; a seed of `None` is drawn itself."""
    drawn = parser.add_argument_group("how pictures are drawn")
    drawn.add_argument("--guidance", type=float, default=1.0, metavar="S", help="guidance scale (1: none)")
    drawn.add_argument("--steps", type=int, metavar="N", help="of a masked generator (12)")
    drawn.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of each token (1.0)")
    drawn.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest codes (all)")
    drawn.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest codes that sum to P (all)")
    told = "drawn if not given, and printed" if seed is None else str(seed)
    drawn.add_argument("--seed", type=int, default=seed, metavar="N", help=f"of the random numbers ({told})")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="pictures at once (16)")
    add_device(parser)


def add_evaluate(commands: Any) -> None:
    """`lgq evaluate`."""
    parser = commands.add_parser(
        "evaluate",
        usage="lgq evaluate MODEL DATA -o FILE [options]\n       lgq evaluate --pipeline PATH_OR_REPO --pictures "
        "FOLDER --num N -o FILE [options]",
        help="how good a tokenizer or a generator is, in numbers",
        description="A tokenizer (MODEL DATA): pictures beside their reconstructions in PSNR, SSIM and distances of "
        "features, the use of the codebook, bits, and speed; several processes (torchrun, accelerate launch) share "
        "the pictures. A generator (--pipeline): features of its pictures compared with those of real ones by "
        "Fréchet distance (of the extractor that is named), precision and recall; the distance of the tokenizer's "
        "reconstructions, below which no generator on these tokens gets; and bits per token of tokens held out.",
        epilog="Exit status: 0 done, 1 some pictures were passed over (listed at the end), 2 wrong usage.",
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="checkpoint folder or Hub repository; lgq-tiny: the built-in one"
    )
    parser.add_argument(
        "data", nargs="?", metavar="DATA", help="folder of pictures, parquet, WebDataset tars, or a dataset"
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="results to write: .json")
    parser.add_argument(
        "--grid", metavar="FILE", help="picture to write, .png: the best and worst, or some of those generated"
    )
    parser.add_argument(
        "--extractor",
        choices=("efficientnet-lite0", "inception-2015"),
        default="efficientnet-lite0",
        help="network of the features (efficientnet-lite0)",
    )
    parser.add_argument("--inception-weights", metavar="FILE", help="of inception-2015; nothing is downloaded")
    _add_tokenizer(parser)
    generator = parser.add_argument_group("generators")
    generator.add_argument("--pipeline", metavar="PATH_OR_REPO", help="folder or Hub repository")
    generator.add_argument(
        "--pictures", metavar="FOLDER", help="real pictures; folders in it are classes, in their shares"
    )
    generator.add_argument("--tokens", metavar="DIR", help="token shards held out from training, of `lgq tokenize`")
    generator.add_argument("--num", type=int, metavar="N", help="pictures to generate")
    add_drawing(parser, seed=0)
    parser.set_defaults(**dict.fromkeys([*FOR_TOKENIZERS, *FOR_GENERATORS]))


def _add_tokenizer(parser: Any) -> None:
    """What only tokenizers have in `lgq evaluate`."""
    data = parser.add_argument_group("tokenizers: pictures, as `lgq tokenize` takes them")
    data.add_argument(
        "--kind", choices=("folder", "dataset", "parquet", "webdataset"), help="default: by what is there"
    )
    data.add_argument("--split", metavar="NAME", help="split to read (train)")
    data.add_argument("--config", metavar="NAME", help="configuration of a dataset that has several")
    data.add_argument("--source-revision", metavar="REV", help="commit, branch or tag of a dataset on the Hub")
    data.add_argument("--image-column", metavar="COLUMN", help="default: the only one that holds pictures")
    data.add_argument("--id-column", metavar="COLUMN", help="names of rows (row numbers; __key__ of tars)")
    data.add_argument("--limit", type=int, metavar="N", help="take N pictures, drawn by --seed (all)")
    data.add_argument("--size", type=pixels, metavar="N", help="resize the shorter side to N pixels and crop N x N")
    data.add_argument("--crops", type=int, choices=(1, 5), help="the middle, or corners and middle (1)")
    data.add_argument("--crop-scale", type=float, metavar="S", help="resize to N * S before cropping (1.0)")
    data.add_argument(
        "--on-error", choices=("skip", "stop"), help="pictures that cannot be read; skip: list them (stop)"
    )
    data.add_argument("--workers", type=int, metavar="N", help="processes that read ahead (0 on CPUs, up to 8)")
    model = parser.add_argument_group("tokenizers: model and metrics")
    model.add_argument("--revision", metavar="REV", help="commit, branch or tag of the model's repository")
    model.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the model (float32)")
    model.add_argument(
        "--ema",
        choices=("yes", "no", "unknown"),
        help="is it a moving average? (by results.json beside it)",
    )
    model.add_argument("--lpips-vgg", metavar="FILE", help="weights of VGG16, for LPIPS; with --lpips-heads")
    model.add_argument("--lpips-heads", metavar="FILE", help="heads of the lpips project, for LPIPS")


def add_push(commands: Any) -> None:
    """`lgq push`."""
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


__all__ = ["FOR_GENERATORS", "FOR_TOKENIZERS", "add_device", "add_drawing", "add_evaluate", "add_push", "pixels"]
