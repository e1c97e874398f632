"""The command line of every trainer."""

import argparse
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

from transformers.utils import logging as transformers_logging

from training.published import push_final
from training.run import Run, Terminated

TERMINATED = 143  # 128 + SIGTERM, as a shell would say


def call(
    kind: type[Run[Any]],
    read: Callable[[str, list[str]], Any],
    description: str | None,
    arguments: list[str] | None,
) -> None:
    """Reads the command line and carries out what it asks for.

    Args:
        kind: of the run.
        read: makes its recipe of a file and overrides.
        description: for `--help`.
        arguments: `None`: those of the process.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="recipe, a YAML file")
    parser.add_argument(
        "--allow-change", nargs="+", default=[], metavar="NAME", help="fields in which a resumed run may differ"
    )
    parser.add_argument("--push_to_hub", metavar="REPO", help="short for report.push_to_hub=REPO")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a value of the recipe")
    parsed = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it tells of each file of each checkpoint
    transformers_logging.disable_progress_bar()  # one for each model that is saved
    # accelerate names it to DDP whatever it is
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    published_in = [f"report.push_to_hub={parsed.push_to_hub}"] if parsed.push_to_hub else []
    run = kind(read(parsed.config, [*parsed.overrides, *published_in]), allow_change=parsed.allow_change)
    try:
        final = run.train()
        run.accelerator.print(final)
        if run.recipe.report.push_to_hub and run.accelerator.is_main_process:
            push_final(final, run.recipe.report)  # the others have ended: none waits for an upload
    except Terminated:
        run.accelerator.print(f"stopped by SIGTERM at step {run.progress.step}; the same command goes on from there")
        sys.exit(TERMINATED)
