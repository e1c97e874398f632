"""Measures one thing, and writes benchmarks/results/<thing>_<device>.json.

    python -m benchmarks.run assignment [--device cpu|cuda] [--quick] [--only CASE ...] [--provider PROVIDER ...]
    python -m benchmarks.run training_step [--device cpu|cuda] [--quick] [--variant VARIANT ...]
    python -m benchmarks.run tokenize [--device cpu|cuda] [--quick]
    python -m benchmarks.run generate [--device cpu|cuda] [--quick] [--variant VARIANT ...]

assignment: the assignment op against what it replaces. training_step: an optimizer step of the trainer, where its time
goes, and what the loader delivers. tokenize: JPEGs to token shards, against the encoder and the JPEG decoder alone,
one process against two, memory, and bytes a token. generate: images by token after token against transformers'
`generate()`, and in masked steps. Exits with status 1 where something was refused: its results are wrong, and it is
not timed.
"""

import argparse
import secrets
import sys
from pathlib import Path

from benchmarks import assignment, generate, tokenizing, training_step
from benchmarks.results_file import RESULTS


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    common.add_argument("--quick", action="store_true", help="small shapes, to see that everything works")
    common.add_argument("--threads", type=int, help="of the CPU; one is measurable on a busy machine too (torch's)")
    common.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="of the inputs; drawn if not given")
    common.add_argument("--memory-gib", type=float, help="for a process to grow by, on the CPU (3/4 of what is free)")
    common.add_argument("--output", type=Path, default=RESULTS, help="folder for the result")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    things = parser.add_subparsers(required=True)
    op = things.add_parser("assignment", parents=[common], help="the assignment op")
    op.add_argument("--only", nargs="+", metavar="CASE", help="these cases; the file then holds no others")
    providers = sorted({name for some in assignment.PROVIDERS.values() for name in some})
    op.add_argument("--provider", nargs="+", choices=providers, help="these providers alone")
    op.set_defaults(run=assignment.run)
    step = things.add_parser("training_step", parents=[common], help="an optimizer step of the trainer")
    step.add_argument("--variant", nargs="+", choices=list(training_step.VARIANTS), help="these beside 'step' alone")
    step.set_defaults(run=training_step.run)
    whole = things.add_parser("tokenize", parents=[common], help="JPEGs to token shards")
    whole.set_defaults(run=tokenizing.run)
    made = things.add_parser("generate", parents=[common], help="generators: images a second")
    made.add_argument("--variant", nargs="+", choices=list(generate.VARIANTS), help="these beside 'generate' alone")
    made.set_defaults(run=generate.run)
    chosen = parser.parse_args(arguments)
    return int(chosen.run(chosen))


if __name__ == "__main__":
    sys.exit(main())
