"""The card of a released checkpoint: `card.template.md`, filled from the results of commands and `<name>.yaml`.

The YAML file holds the words that no measurement makes: what the checkpoint is for, its limits, how to make it again.
Its `result` and `stages` name files in benchmarks/results. Optional are `notes` (of stages, instead of seed and
commit), `baselines` (names of results by what the table calls them) and `baselines_budget` (what they share).
"""

import json
import math
from pathlib import Path
from string import Template
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from training.corpus import PACKAGES

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = ROOT / "benchmarks" / "results"
PICTURE = "reconstruction.jpg"
SETS = {
    "photographs": "scikit-image: astronaut, camera, chelsea, coffee, rocket",
    "all_photographs": "scikit-image: these five and nine more pictures",
    "corpus_test": "test packages of the corpus",
    "stamps": "stamps of the corpus's validation split",
}
METRICS = {
    "psnr": "PSNR, dB, mean over pictures",
    "ssim": "SSIM, mean over pictures",
    "perceptual": "perceptual distance of EfficientNet-Lite0, mean over pictures",
    "top1_agreement": "share of pictures with the same first class of EfficientNet-Lite0",
}
QUALITY = "PSNR, dB | SSIM | perceptual distance | same top class"
QUALITY_HEAD = f"test set (256 px) | pictures | {QUALITY} | codes used | of tokens | entropy, bits |"
BUDGET = "The same recipe, start, crops and steps with another quantizer, one seed each:"
CITATION = """@article{altun2026lgq,
  title   = {{LGQ}: Learning Discretization Geometry for Scalable and Stable Image Tokenization},
  author  = {Altun, Idil Bilge and Cakiroglu, Mert Onur and Buxton, Elham and Dalkilic, Mehmet and Kurban, Hasan},
  journal = {arXiv preprint arXiv:2602.16086},
  year    = {2026}
}"""


def load(name: str) -> dict[str, Any]:
    """A result by the name of its file."""
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return result


def released() -> list[str]:
    """Names of the checkpoints that have a card."""
    return sorted(path.stem for path in HERE.glob("*.yaml"))


def words_of(name: str) -> dict[str, Any]:
    """What the YAML file of a checkpoint says.

    Raises:
        ValueError: there is none.
    """
    path = HERE / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"no model_cards/{name}.yaml; there are cards of {', '.join(released())}")
    words: dict[str, Any] = yaml.safe_load(path.read_text())
    return words


def quality_table(result: dict[str, Any]) -> str:
    """A row per test set: pictures, what was lost, and how the codes were used."""
    return "\n".join([f"| {QUALITY_HEAD}", "|" + "--|" * 9, *(f"| {row}" for row in quality_rows(result))])


def quality_rows(result: dict[str, Any]) -> list[str]:
    """What stands below `QUALITY_HEAD`, a row per test set."""
    return [
        f"{name} | {row['pictures']} | {_quality(row)} | {row['codes_used']} of {result['codebook_size']} | "
        f"{row['tokens']} | {row['entropy_bits']:.2f} |"
        for key, name in SETS.items()
        for row in [result[key]]
    ]


def _quality(row: dict[str, Any]) -> str:
    return f"{row['psnr']:.2f} | {row['ssim']:.3f} | {row['perceptual']:.3f} | {row['top1_agreement']:.2f}"


def baselines_part(result: dict[str, Any], baselines: dict[str, str], budget: str = BUDGET) -> str:
    """The checkpoint beside others that the same recipe and budget made: a row per test set and method; or nothing.

    Args:
        result: of the checkpoint.
        baselines: names of results by what the table calls them.
        budget: what they have in common, and what they have not.
    """
    if not baselines:
        return ""
    results = {"this checkpoint": result, **{label: load(name) for label, name in baselines.items()}}
    lines = [
        f"| test set | quantizer | {QUALITY} | codes used | entropy, bits |",
        "|" + "--|" * 8,
    ]
    for key, name in SETS.items():
        for label, one in results.items():
            row = one[key]
            codes = f"{row['codes_used']} of {one['codebook_size']}"
            lines.append(f"| {name} | {label} | {_quality(row)} | {codes} | {row['entropy_bits']:.2f} |")
    return "\n".join(["## Beside other quantizers", "", budget.strip(), "", *lines, "", frechet_line(results), "", ""])


def frechet_line(results: dict[str, dict[str, Any]]) -> str:
    """Fréchet distances on the corpus's test pictures, by what each checkpoint is called; "" for one alone."""
    first = next(iter(results.values()))
    distances = ", ".join(
        f"{one['corpus_test']['frechet_distance']:.1f}" + (f" ({label})" if label else "")
        for label, one in results.items()
    )
    features = f"Fréchet distance of {first['protocol']['network']} features"
    return f"{features} on the {first['corpus_test']['pictures']} pictures of the test packages (no FID): {distances}."


def packages_table(packages: dict[str, int], repeat: dict[str, int]) -> str:
    """A row per package of the corpus: files it gave, how often the last stage had each in an epoch, licences."""
    lines = ["| package | files | licences |", "|--|--|--|"]
    for name, count in sorted(packages.items()):
        times = f" (each {repeat[name]} times in the last stage)" if repeat.get(name, 1) > 1 else ""
        lines.append(f"| {name} | {count}{times} | {PACKAGES[name].licence} |")
    return "\n".join(lines)


def codebook_table(result: dict[str, Any]) -> str:
    """A row per test set: share of the codes in use, perplexity, and entropy against even use."""
    codes = result["codebook_size"]
    lines = ["| test set | codes in use | perplexity | entropy, of even use | tokens a code |", "|" + "--|" * 5]
    for key, name in SETS.items():
        row = result[key]
        lines.append(
            f"| {name} | {row['codes_used'] / codes:.1%} | {row['perplexity']:.0f} | "
            f"{row['entropy_bits'] / math.log2(codes):.1%} | {row['tokens'] / codes:.1f} |"
        )
    return "\n".join(lines)


def axes_line(result: dict[str, Any]) -> str:
    """How much of what changes the photographs each axis of the latents has; "" where it was not measured."""
    shares = result.get("latent_axes")
    if not shares:
        return ""
    told = ", ".join(f"{share:.1%}" if share >= 0.0005 else f"{100 * share:.0e} %" for share in shares)
    return (
        f"The latents' {len(shares)} axes: of what changes the photographs, to first order, they have {told} "
        "before quantization (training/latent_axes.py). Codes cannot say more than what is there.\n\n"
    )


def speed_line(result: dict[str, Any]) -> str:
    """Pictures a second, with the hardware."""
    speed, hardware = result["speed"], result["hardware"]
    return (
        f"256 px pictures a second, one at a time in fp32: encode {speed['encode_pictures_per_second']:.1f}, "
        f"decode {speed['decode_pictures_per_second']:.1f} ({hardware['cpu']}, {hardware['threads']} threads)."
    )


def short(commit: str | None) -> str:
    """A commit in twelve digits; of a tree with changes it says so."""
    digits, *changes = (commit or "unknown").split("+")
    return "+".join([digits[:12], *changes])


def provenance_line(result: dict[str, Any]) -> str:
    """Commit and versions of a measurement."""
    versions = ", ".join(
        f"{name} {version}" for name, version in result["versions"].items() if version and name != "lgq_hf"
    )
    weights = result["weights_sha256"][:12]
    return f"Measured at commit `{short(result['commit'])}` with {versions}; weights sha256 `{weights}`."


def stage_of(training: dict[str, Any]) -> dict[str, Any]:
    """What a card says of a stage, of the trainer's results.json or of the form that it had before."""
    recipe, hardware = training["recipe"], training["hardware"]
    if isinstance(hardware, dict):
        hardware = hardware["gpu"] or f"{hardware['threads']} threads of {hardware['cpu']}"
    return {
        "steps": training["steps"],
        "batch_size": recipe["batch_size"],
        "side": recipe.get("image_size", recipe.get("crop")),
        "of": f" of the {recipe['train_only']} alone" if recipe.get("train_only") else "",
        "hours": training["hours"],
        "hardware": hardware,
        "corpus": training.get("data", training.get("corpus")),
        "note": training.get("note", f"Seed {recipe.get('seed')}, commit `{short(training.get('commit'))}`."),
    }


def stage_line(stage: dict[str, Any]) -> str:
    """One stage of training: steps, crops, hours, hardware, and what was out of the ordinary."""
    return (
        f"{stage['steps']:,} optimizer steps{stage['of']} of {stage['batch_size']} crops of {stage['side']} px, "
        f"{stage['hours']:.1f} hours on {stage['hardware']}. {stage['note']}"
    )


def cost_line(stages: list[dict[str, Any]]) -> str:
    """Hours of all stages and what they ran on; energy is not made up."""
    hours = sum(stage["hours"] for stage in stages)
    machines = ", ".join(sorted({stage["hardware"] for stage in stages}))
    return (
        f"{hours:.1f} hours on {machines} for these weights, without earlier trials. Energy was not metered, so "
        "neither it nor an emission is stated."
    )


def metadata(name: str) -> str:
    """The card's YAML, with the results as the Hub's `model-index`, each with its protocol."""
    words = words_of(name)
    result = load(words["result"])
    protocol = {key: value for key, value in result["protocol"].items() if key not in METRICS}
    found = [
        EvalResult(
            task_type="image-reconstruction",
            dataset_type=f"lgq_hf-{key}",  # results of one type would be merged
            dataset_name=f"{set_name}, {protocol['size']} px",
            metric_type=metric,
            metric_name=metric_name,
            metric_value=round(result[key][metric], 4),
            metric_args={**protocol, "pictures": result[key]["pictures"]},
        )
        for key, set_name in SETS.items()
        for metric, metric_name in METRICS.items()
    ]
    data = ModelCardData(
        model_name=name,
        license=words["license"],
        library_name="transformers",
        pipeline_tag="image-to-image",
        tags=["image-tokenizer", "vector-quantization", "lgq"],
        metrics=list(METRICS),
        eval_results=found,
    )
    return f"{data.to_yaml()}\n"


def render_card(name: str) -> str:
    """The whole card; errors as [`words_of`]."""
    words = words_of(name)
    result = load(words["result"])
    notes = words.get("notes", {})
    stages = [stage_of(load(stage) | ({"note": notes[stage]} if stage in notes else {})) for stage in words["stages"]]
    corpus = stages[-1]["corpus"]
    source = words["source"]
    template = Template((HERE / "card.template.md").read_text())
    return template.substitute(
        metadata=metadata(name),
        name=name,
        **{key: words[key] for key in ("summary", "dtype", "quantizer", "commands", "limits")},
        source=source,
        import_more=", default_checkpoint" if source == "default_checkpoint()" else "",
        quality=quality_table(result),
        baselines=baselines_part(result, words.get("baselines", {}), words.get("baselines_budget", BUDGET)),
        frechet=frechet_line({"": result}),
        codebook=codebook_table(result),
        axes=axes_line(result),
        speed=speed_line(result),
        provenance=provenance_line(result),
        size=result["protocol"]["size"],
        parameters=f"{result['parameters']:,}",
        codebook_size=result["codebook_size"],
        code_dim=result["code_dim"],
        code_bits=f"{math.log2(result['codebook_size']):g}",
        factor=result["downsampling_factor"],
        bits=f"{result['bits_per_pixel']:.4f}",
        packages=packages_table(corpus["packages"], corpus.get("repeat", {})),
        files=corpus["files"],
        pictures=corpus["source_pictures"],
        manifest=corpus["manifest_sha256"][:12],
        stages="\n".join(f"{number}. {stage_line(stage)}" for number, stage in enumerate(stages, 1)),
        cost=cost_line(stages),
        citation=CITATION,
    )


def place_of(name: str) -> Path:
    """Where the card of a checkpoint lies."""
    return ROOT / words_of(name)["folder"] / "README.md"
