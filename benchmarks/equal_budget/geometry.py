"""Where the codes of a tokenizer lie among the latents of pictures that it was not trained on.

    python -m benchmarks.equal_budget.geometry SCALE [--work FOLDER] [--limit N] [--results FOLDER] [--images FOLDER]

Takes the first run of each method from the stage `compare`, and its test crops. Everything is taken in the space in
which a quantizer compares latents with codes, see `Quantizer.comparable`, in float64.

Shapes: N latents, C channels, K codes; letters as in geometry_measures.py.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.equal_budget.carry_out import read_result
from benchmarks.equal_budget.crops import read_manifest
from benchmarks.equal_budget.geometry_measures import NEIGHBOURS, Geometry, Sample
from benchmarks.equal_budget.methods import METHODS
from benchmarks.equal_budget.runs import COMPARE, Run
from benchmarks.equal_budget.scales import SCALES, Scale
from benchmarks.markdown import cell, digits
from benchmarks.results_file import RESULTS, write_result
from lgq_hf.checkpoint.loading import Checkpoint, load_checkpoint
from lgq_hf.images.sources import ImageSource, open_source
from lgq_hf.images.views import Preprocessing, cut_views
from lgq_hf.tokenizer.quantizer_base import Quantizer
from lgq_hf.tokens.encoding import Encoder, Encoding

SEED = 0
PICTURE = "comparison_geometry.png"
_BATCH = 64  # pictures
_IMAGES = Path(__file__).parents[2] / "docs" / "images"

# what stands under the table, in the order of its columns; the keys are those of `Geometry.numbers`
DEFINITIONS = {
    "orphan_share": (
        "orphans",
        "share of the K codes that stand for no latent, n_k = 0; in [0, 1), and it falls as N grows.",
    ),
    "gini": (
        "Gini",
        "of the occupancy, sum_k (2 k - K - 1) n_k / (K N) with n_k rising: 0 where all codes are used equally often, "
        "1 - 1/K where one has all latents. Of all codes / of those in use.",
    ),
    "spearman": (
        "Spearman",
        "rank correlation, in [-1, 1], of the occupancy of a code with the density of latents at the code, by the "
        "distance to the last of its {neighbours} nearest latents. Of all codes / of those in use / of all codes with "
        "the occupancy from every second picture and the density from the others (mean of both ways), which takes out "
        "what they have in common by chance. It describes and does not judge: it is high where cells are equally big, "
        "as in a lattice, and 0 where they are used equally often.",
    ),
    "relative_quantization_error": (
        "relative error",
        "mean |x - c_k(n)|^2 / R^2, at least 0: 0 where nothing is lost, 1 for a single code at the mean.",
    ),
    "within_cell_variance": (
        "WCSS/TSS",
        "mean |x - m_k(n)|^2 / R^2, in [0, 1]: what the relative error would be with every code at the mean of its "
        "cell, and never above it.",
    ),
    "code_to_latent": (
        "code to latent",
        "distance of a code to its nearest latent, in units of R, at least 0. Median of all codes / of those without "
        "a latent.",
    ),
    "latent_to_code": (
        "latent to code",
        "|x - c_k(n)| in units of R, at least 0: the median of all latents.",
    ),
    "effective_dimension": (
        "dimension",
        "participation ratio of the latents, (sum_i v_i)^2 / sum_i v_i^2 with v_i the eigenvalues of their "
        "covariance, in [1, C], of C channels.",
    ),
}


def codes_of(quantizer: Quantizer) -> Tensor:
    """All codes (K,C), float64, in the space of `Quantizer.comparable`.

    Raises:
        ValueError: a position of this quantizer has several tokens, so that no token has a code of its own.
    """
    if quantizer.tokens_per_position != 1:
        raise ValueError(
            f"expected a quantizer with one token for each position, got {quantizer.tokens_per_position}: the code of "
            "one token is then no point among the latents"
        )
    device = next(iter(quantizer.state_dict().values()), torch.empty(0)).device
    with torch.inference_mode():
        tokens = torch.arange(quantizer.codebook_size, device=device)
        codes_KC = quantizer.codes_from_tokens(tokens[None, None])[0, :, 0].T.double()
    return quantizer.comparable_codes(codes_KC)


def batches(
    checkpoint: Checkpoint, source: ImageSource, limit: int | None, preprocessing: Preprocessing
) -> Iterator[tuple[list[int], Tensor]]:
    """Numbers of pictures, and their bytes (n,3,H,W); neighbours of one size come together."""
    count = len(source) if limit is None else limit
    if not 1 < count <= len(source):
        raise ValueError(f"expected from 2 to {len(source)} pictures of {source.name}, got {count}")
    views = (
        (number, cut_views(source.read(number * len(source) // count), checkpoint.processor, preprocessing)[0])
        for number in range(count)
    )
    for _, same in groupby(views, key=lambda view: view[1].shape):
        while batch := list(islice(same, _BATCH)):
            yield [number for number, _ in batch], torch.cat([torch.from_numpy(pixels) for _, pixels in batch])


def gather(
    checkpoint: Checkpoint,
    source: ImageSource,
    limit: int | None = None,
    preprocessing: Preprocessing = Preprocessing(),  # noqa: B008  # frozen
) -> Sample:
    """Encodes pictures.

    Args:
        checkpoint: the tokenizer.
        source: pictures that it was not trained on.
        limit: how many of them are taken, evenly spread; `None`: all.
        preprocessing: what is cut out of each, one view of it.

    Raises:
        ValueError: fewer pictures than that; one that cannot be read; as `codes_of` and [`Sample`].
    """
    if len(preprocessing.views()) != 1:
        raise ValueError(f"expected one view of each picture, got {preprocessing.views()}")
    quantizer = checkpoint.model.quantizer
    codes_KC = codes_of(quantizer).cpu()
    encoder = Encoder(checkpoint, Encoding())
    latents, tokens, second = [], [], []
    pictures = 0
    for numbers, pixels in batches(checkpoint, source, limit, preprocessing):
        with torch.inference_mode():
            encoded = checkpoint.model.encode(encoder.pixel_values(pixels))
            latents.append(quantizer.comparable(quantizer.to_rows(encoded.last_hidden_state).double()).cpu())
        tokens.append(encoded.image_tokens.flatten().cpu())
        per_picture = encoded.image_tokens[0].numel()
        second.append(torch.tensor([number % 2 == 1 for number in numbers]).repeat_interleave(per_picture))
        pictures += len(numbers)
    return Sample(torch.cat(latents), torch.cat(tokens), codes_KC, torch.cat(second), pictures)


def measure(checkpoint: Checkpoint, source: ImageSource, limit: int | None = None) -> dict[str, Any]:
    """[`Geometry.numbers`] of a tokenizer on pictures; arguments and errors as [`gather`]."""
    return Geometry(gather(checkpoint, source, limit)).numbers()


def measure_runs(scale: Scale, place: Path, limit: int | None = None) -> tuple[dict[str, Any], dict[str, Geometry]]:
    """What is written, and what is drawn, of the first run of each method.

    Args:
        scale: of the comparison.
        place: folder of the scale, with crops and runs.
        limit: how many test crops are taken, evenly spread; `None`: all.

    Returns:
        A result, in which a method whose run failed has `failed` and one without a run is missing; and geometries by
        the methods' labels.

    Raises:
        FileNotFoundError: no crops, or no method has a finished run.
        ValueError: as [`gather`], with the name of the run.
    """
    size = read_manifest(place / "crops")["settings"]["size"]
    source = open_source(str(place / "crops"), kind="parquet", split="test", image_column="image", id_column="id")
    rows: dict[str, Any] = {}
    geometries: dict[str, Geometry] = {}
    for name, method in METHODS.items():
        run = Run(scale, COMPARE, name, 0, scale.codes, SEED)  # of any setting: its folder does not tell
        found = read_result(run, place)
        if found is None:
            continue
        told = ("setting", "chosen", "crops", "commit")
        rows[name] = {"label": method.label, **{key: found[key] for key in told}}
        if "failed" in found:
            rows[name]["failed"] = found["failed"]
            continue
        checkpoint = load_checkpoint(str(place / run.name / "final"))
        try:
            geometry = Geometry(gather(checkpoint, source, limit, Preprocessing(size=size)))
        except ValueError as error:
            raise ValueError(f"{run.name}: {error}") from error
        numbers = geometry.numbers()
        rows[name] |= {"weights_sha256": checkpoint.fingerprint, **numbers}
        geometries[method.label] = geometry
        print(f"{name}: Spearman {numbers['spearman']}, WCSS/TSS {numbers['within_cell_variance']:.3f}", flush=True)
    if not geometries:
        raise FileNotFoundError(f"no finished run of the stage 'compare' in {place}: run that first")
    protocol = {"split": "test", "neighbours": NEIGHBOURS, "codes": scale.codes, "steps": scale.steps}
    return {"scale": scale.name, "seed": SEED, "protocol": protocol, "methods": rows}, geometries


def _row(row: dict[str, Any]) -> list[str]:
    if "failed" in row:
        return [cell(f"failed: {row['failed']}"), *[""] * len(DEFINITIONS)]
    orphans = row["orphan_to_latent"]
    return [
        f"{row['codes_used']:,} of {row['codebook_size']:,}",
        f"{row['orphan_share']:.1%}",
        _several(row["gini"], row["gini_used"]),
        _several(row["spearman"], row["spearman_used"], row["spearman_halves"]),
        digits(row["relative_quantization_error"]),
        digits(row["within_cell_variance"]),
        _several(row["code_to_latent"]["median"], None if orphans is None else orphans["median"]),
        _several(row["latent_to_code"]["median"]),
        f"{row['effective_dimension']:.1f} of {row['channels']}",
    ]


def _several(*values: float | None) -> str:
    """Numbers with two decimals; a dash for what is not defined."""
    return " / ".join("–" if value is None else f"{value:.2f}".replace("-", "−") for value in values)  # noqa: RUF001


def render_geometry(result: dict[str, Any]) -> str:
    """Markdown of a result: a row for each method, and what the columns mean."""
    heads = ["method", "codes in use", *(head for head, _ in DEFINITIONS.values())]
    lines = ["| " + " | ".join(heads) + " |", "|" + "--|" * len(heads)]
    lines += ["| " + " | ".join([cell(row["label"]), *_row(row)]) + " |" for row in result["methods"].values()]
    lines.append("")
    for head, meaning in DEFINITIONS.values():
        lines.append(f"- {head}: {meaning.format(neighbours=result['protocol']['neighbours'])}")
    some = next(row for row in result["methods"].values() if "failed" not in row)
    lines += [
        "",
        f"N = {some['latents']:,} latents x of {some['pictures']:,} test crops, K = {result['protocol']['codes']:,} "
        "codes c, k(n) the code that stands for x_n, n_k how many latents code k stands for, m_k their mean, m the "
        "mean of all, R^2 = mean |x - m|^2; in the space in which a quantizer compares latents with codes. Models of "
        f"seed {result['seed']}; measured at commit `{result['commit'][:12]}`.",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 where there is nothing to measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scale", choices=SCALES)
    parser.add_argument("--work", type=Path, default=Path("runs/equal_budget"), help="where crops and runs lie")
    parser.add_argument("--limit", type=int, help="test crops to take, evenly spread (all)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the result is written")
    parser.add_argument("--images", type=Path, default=_IMAGES, help="where the picture is written")
    chosen = parser.parse_args(arguments)
    from benchmarks.equal_budget.geometry_plots import draw  # matplotlib is not needed for tables

    scale = SCALES[chosen.scale]
    try:
        result, geometries = measure_runs(scale, chosen.work / scale.name, chosen.limit)
    except (ValueError, FileNotFoundError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(write_result(f"equal_budget_geometry_{scale.name}", result, chosen.results))
    latents = sum(len(geometry.sample.tokens_N) for geometry in geometries.values()) // len(geometries)
    title = f"Codes among {latents:,} latents of test crops: scale {scale.name}, K = {scale.codes:,}, seed {SEED}"
    draw(geometries, chosen.images / PICTURE, title)
    print(chosen.images / PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
