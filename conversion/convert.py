"""Somebody's image tokenizer to a folder that `LGQTokenizer.from_pretrained` loads.

python -m conversion.convert vq_ds16_c2i.pt --output llamagen-16
python -m conversion.convert last.ckpt --output vqgan-f16          # with model.yaml beside it
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from conversion.configs import find_configs
from conversion.formats import FORMATS, check_choice, possible, recognise
from conversion.plan import CheckpointError, Plan, Weights
from conversion.read import own_tensors, read_weights, sha256_of, weight_files
from conversion.verify import check_model, compare_recorded
from conversion.write import check_output, write_folder
from lgq_hf import LGQModel
from lgq_hf.hub.publishable import LICENSE
from lgq_hf.provenance import provenance


def make_plan(
    source: Path,
    *,
    format: str = "auto",
    weights: Weights = "auto",
    config: Path | None = None,
    use_config: bool = True,
) -> tuple[Plan, list[Path]]:
    """Reads a checkpoint and decides what becomes of it; nothing is computed or written.

    Args:
        source: a file, or a folder with one checkpoint.
        format: one of [`FORMATS`], or `"auto"` to recognise it.
        weights: `"ema"`, `"raw"`, or `"auto"` for moving averages where there are any.
        config: the configuration that came along, where it does not stand beside the weights.
        use_config: whether to compare with a configuration at all.

    Returns:
        The plan, and the files that were read.

    Raises:
        CheckpointError: for everything that cannot be converted.
    """
    files = weight_files(source)
    content = read_weights(files)
    kind = FORMATS[possible(content)[0] if format == "auto" else format].config
    if config is not None and kind is None:
        raise CheckpointError(f"--config {config}: the format of this checkpoint has no configuration")
    configs = find_configs(files[0], config, kind) if use_config and kind else {}
    if format == "auto":
        format = recognise(content, configs)
    else:
        check_choice(format, configs)
    return FORMATS[format].plan(content, configs.get(kind) if kind else None, weights), files


def convert(
    source: Path,
    output: Path,
    *,
    format: str = "auto",
    weights: Weights = "auto",
    config: Path | None = None,
    use_config: bool = True,
    expected: Path | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Converts, verifies and writes; arguments as in [`make_plan`].

    Args:
        output: folder to write.
        expected: tensors recorded from the source's own code, see [`compare_recorded`].
        license: of the weights, for the card; an identifier of the Hub, such as `"mit"`.
        overwrite: whether to replace an earlier conversion.

    Returns:
        The report, which is also written to conversion.json.

    Raises:
        CheckpointError: for everything that cannot be converted or does not pass; nothing is written then.
    """
    if license is not None and not LICENSE.fullmatch(license):
        raise CheckpointError(
            "expected an identifier of the Hub as licence, in small letters, such as mit or cc-by-nc-4.0, got "
            f"{license!r}"
        )
    output = output.resolve()
    beside = [path for path in (config, expected) if path is not None]
    check_output(output, overwrite=overwrite, read=[*weight_files(source), *beside])
    plan, files = make_plan(source, format=format, weights=weights, config=config, use_config=use_config)
    # by the source's names, which are those that an error should say
    owned = own_tensors({plan.sources[ours]: tensor for ours, tensor in plan.tensors.items()})
    tensors = {ours: owned[plan.sources[ours]] for ours in plan.tensors}
    digests = sha256_of(files)
    plan.config.converted_from = {
        "format": plan.format,
        "project": FORMATS[plan.format].project,
        "file": ", ".join(digests),
        "sha256": ", ".join(digests.values()),
        "weights": plan.weights,
        "code_license": FORMATS[plan.format].code_licence,
        "license": license or "not stated",
    }
    with torch.device("meta"):
        model = LGQModel(plan.config).eval()
    model.load_state_dict(tensors, assign=True)
    verification = check_model(model)
    if expected is not None:
        verification["recorded"] = compare_recorded(model, expected)
    report = {
        **provenance(strict=False),
        "format": plan.format,
        "source": {"file": source.name, "sha256": digests, "weights": plan.weights, "license": license},
        "verification": verification,
        "notes": plan.notes,
        "baked": plan.baked,
        "mapping": {plan.sources[ours]: ours for ours in plan.tensors},
        "dropped": plan.dropped,
    }
    write_folder(output, model, plan, report)
    return report


def mapping_text(plan: Plan) -> Iterable[str]:
    """The plan as lines for a terminal."""
    config = plan.config
    yield f"format {plan.format}, weights {plan.weights}"
    yield f"config {json.dumps(config.to_diff_dict(), default=str)}"
    yield f"processor {json.dumps(plan.processor)}"
    for ours, tensor in plan.tensors.items():
        how = f"  ({plan.baked[ours]})" if ours in plan.baked else ""
        yield f"{plan.sources[ours]} -> {ours} {tuple(tensor.shape)}{how}"
    for key, reason in plan.dropped.items():
        yield f"{key} -> dropped: {reason}"
    yield f"{len(plan.tensors)} tensors, {len(plan.dropped)} keys dropped"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m conversion.convert", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="a checkpoint file, or a folder with one")
    parser.add_argument("--output", type=Path, help="folder to write")
    parser.add_argument("--format", choices=["auto", *FORMATS], default="auto")
    parser.add_argument(
        "--weights", choices=["auto", "ema", "raw"], default="auto", help="auto: EMA where there is one"
    )
    parser.add_argument(
        "--config", type=Path, help="the YAML or JSON that came along, if it is not beside the weights"
    )
    parser.add_argument("--no-config", action="store_true", help="convert by the tensors alone")
    parser.add_argument(
        "--expected", type=Path, help="safetensors recorded from the source's own code, to compare with"
    )
    parser.add_argument("--license", help="of the weights, for the card: an identifier of the Hub, such as mit")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier conversion")
    parser.add_argument("--dry-run", action="store_true", help="print what would become of each key, and stop")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; 0, or 1 with the reason on standard error."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.output is None and not options.dry_run:
        parser.error("--output is needed, unless it is a --dry-run")
    if options.config and options.no_config:
        parser.error("--config and --no-config exclude each other")
    reading = {
        "format": options.format,
        "weights": options.weights,
        "config": options.config,
        "use_config": not options.no_config,
    }
    logging.disable_progress_bar()
    try:
        if options.dry_run:
            print("\n".join(mapping_text(make_plan(options.source, **reading)[0])))
            return 0
        report = convert(
            options.source,
            options.output,
            **reading,
            expected=options.expected,
            license=options.license,
            overwrite=options.overwrite,
        )
    except (CheckpointError, OSError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        print(f"{options.source}: not converted, nothing was written: {reason}", file=sys.stderr)
        return 1
    used, dropped = len(report["mapping"]), len(report["dropped"])
    print(
        f"{options.output}: {report['format']}, {report['source']['weights']} weights, {used} tensors, {dropped} keys "
        f"dropped (named in conversion.json). LGQTokenizer.from_pretrained('{options.output}') loads it."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
