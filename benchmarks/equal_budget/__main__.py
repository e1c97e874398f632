"""Trains every method with one budget, and compares them.

    python -m benchmarks.equal_budget SCALE STAGE [--jobs N] [--only NAME ...] [--work FOLDER] [--corpus FOLDER]
                                                  [--results FOLDER] [--images FOLDER]

SCALE is cpu, gpu or quick. STAGE: `crops` cuts the pictures; `tune` tries four settings of each method; `compare`
runs each method at its best setting; `trend` does so for other codebook sizes; `tradeoff` and `ablate` vary LGQ;
`all` does all of that, and then `colours` (what of each error is a wrong mean colour), `collect` (one result file of
all runs) and `page` (tables and plots of docs/comparison.md). A run that is finished is not done again, one that was
stopped goes on. --only takes methods, arms, or names of runs.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.equal_budget import crops
from benchmarks.equal_budget.carry_out import Interrupted, carry_out, finished_result
from benchmarks.equal_budget.collect import collect
from benchmarks.equal_budget.colours import measure_runs
from benchmarks.equal_budget.methods import METHODS
from benchmarks.equal_budget.page import IMAGES, make_page
from benchmarks.equal_budget.plan import named, runs_of
from benchmarks.equal_budget.runs import ABLATE, STAGES, TRADEOFF
from benchmarks.equal_budget.scales import SCALES, Scale
from benchmarks.results_file import RESULTS

CROPS, ALL, COLOURS, COLLECT, PAGE = "crops", "all", "colours", "collect", "page"
CROPS_SEED = 0


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 where a run has no result, or failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scale", choices=SCALES)
    parser.add_argument("stage", choices=[CROPS, *STAGES, ALL, COLOURS, COLLECT, PAGE])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; they share the cores")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="methods, arms or runs")
    parser.add_argument("--work", type=Path, default=Path("runs/equal_budget"), help="where crops and runs lie")
    parser.add_argument("--corpus", type=Path, default=Path("corpus"), help="built by training.corpus")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where `collect` writes and `page` reads")
    parser.add_argument("--images", type=Path, default=IMAGES, help="where `page` puts its plots")
    chosen = parser.parse_args(arguments)
    if chosen.jobs < 1:
        parser.error(f"--jobs: expected at least 1, got {chosen.jobs}")
    scale, place = SCALES[chosen.scale], chosen.work.resolve() / chosen.scale
    stages = [CROPS, *STAGES, COLOURS, COLLECT, PAGE] if chosen.stage == ALL else [chosen.stage]
    if not scale.measured:
        print(f"scale {scale.name}: its values are a proposal, nothing was run with them yet")
    status = 0
    try:
        for stage in stages:
            if stage == CROPS:
                cut(scale, chosen.corpus, place)
            elif stage == COLOURS:
                print(f"{stage}: {measure_runs(scale, place)} runs")
            elif stage == COLLECT:
                print(collect(scale, place, chosen.results))
            elif stage == PAGE:
                make_page(scale, chosen.results, chosen.images)
            else:
                status |= run_stage(scale, stage, place, chosen.jobs, chosen.only)
    except (ValueError, FileNotFoundError, Interrupted) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return status


def cut(scale: Scale, corpus: Path, place: Path) -> None:
    """Cuts the crops, unless they are there."""
    manifest = crops.cut(corpus, place / "crops", size=scale.image_size, counts=scale.crops, seed=CROPS_SEED)
    print(f"crops: {manifest['settings']['counts']}")


def run_stage(scale: Scale, stage: str, place: Path, jobs: int, only: list[str]) -> int:
    """Carries out the runs of a stage that have no result; 1 where some failed."""
    of_lgq = stage in (ABLATE, TRADEOFF)
    methods = [name for name in METHODS if of_lgq or not only or any(_means(name, one) for one in only)]
    runs = named(only, runs_of(scale, stage, methods, lambda run: finished_result(run, place)))
    failed = carry_out(runs, place, jobs)
    print(f"{stage}: {len(runs)} runs" + (f", failed: {', '.join(failed)}" if failed else ""))
    return int(bool(failed))


def _means(method: str, name: str) -> bool:
    """Whether `name`, of a method or a run, is of this method: then its tuning is needed."""
    return name == method or name.split("-")[1:2] == [method]


if __name__ == "__main__":
    sys.exit(main())
