"""Renders model cards, and the tables of the README, from benchmarks/results/*.json.

    python -m model_cards.render [--check]

Cards are those of model_cards/card.py; in README.md and pages of docs/ the parts between `<!-- rendered: KEY -->` and
`<!-- end -->` are replaced. `--check` changes nothing and fails where a text differs from its numbers.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lgq_hf import default_checkpoint
from model_cards.card import (
    QUALITY_HEAD,
    ROOT,
    load,
    place_of,
    provenance_line,
    quality_rows,
    released,
    render_card,
    speed_line,
    words_of,
)


def tiny_cpu_table(result: dict[str, Any]) -> str:
    """Validations of the smallest recipe's run, and where it ran."""
    names = ("psnr", "ssim", "perceptual", "frechet", "codebook_usage", "perplexity")
    lines = [f"| step | {' | '.join(names)} |", "|--" * (len(names) + 1) + "|"]
    for row in result["validation"]:
        lines.append(f"| {row['step']:.0f} | " + " | ".join(f"{row[name]:.4g}" for name in names) + " |")
    first, hardware = result["validation"][0], result["hardware"]
    text = (
        f"Validations of one run, seed {result['recipe']['seed']}: {first['pictures']:.0f} pictures of "
        f"{result['recipe']['image_size']} px, {first['tokens']:.0f} tokens; perceptual and Fréchet distance with "
        f"EfficientNet-Lite0 (neither LPIPS nor rFID). {60 * result['hours']:.1f} minutes on {hardware['threads']} "
        f"thread(s) of {hardware['cpu']}, commit `{(result['commit'] or 'unknown')[:12]}`."
    )
    return "\n".join([*lines, "", text])


GENERATORS = ("tiny_masked_cpu", "tiny_ar_cpu", "debian_masked_cpu", "debian_ar_cpu")


def generators_table(runs: dict[str, dict[str, Any]], evaluations: dict[str, dict[str, Any]]) -> str:
    """Held-out bits on the way of each run of a generator, and what `lgq evaluate` found of its last pipeline."""
    lines = ["| run | tokens | parameters | minutes | held-out bits a token, by step | a pixel |", "|" + "--|" * 6]
    for name, run in runs.items():
        height, width = run["model"]["grid"]
        bound = "at most " if run["model"]["kind"] == "masked" else ""
        bits = ", ".join(f"{row['step']:.0f}: {row['bits_per_token']:.2f}" for row in run["validation"])
        pixel = run["validation"][-1]["bits_per_pixel"]
        parameters = f"{run['model']['parameters'] / 1e6:.1f} M"
        lines.append(
            f"| `{name}.yaml` | {height} x {width} | {parameters} | {60 * run['hours']:.0f} | {bound}{bits} | "
            f"{bound}{pixel:.3f} |"
        )
    first = next(iter(runs.values()))
    codes, rows = first["model"]["codebook_size"], first["validation"][-1]["rows"]
    tokenizer = first["data"]["tokenizer"]
    lines += [
        "",
        f"Single runs, seed {first['recipe']['seed']}, {rows:.0f} validation pictures with their classes; "
        f"log2({codes}) = {math.log2(codes):.0f} bits. Tokens of `{tokenizer['name']}`, weights sha256 "
        f"`{tokenizer['weights_sha256'][:12]}`. {_where(*runs.values())}",
        "",
    ]
    return "\n".join([*lines, *_evaluation_lines(evaluations)])


def _evaluation_lines(evaluations: dict[str, dict[str, Any]]) -> list[str]:
    head = "Fréchet distance | of reconstructions | precision | recall | s a picture"
    lines = [f"| pipeline | guidance | {head} |", "|" + "--|" * 7]
    for name, found in evaluations.items():
        metrics, protocol = found["metrics"], found["protocol"]
        lines.append(
            f"| `{name}` | {protocol['guidance_scale']:g} | {metrics['frechet_distance']:.1f} | "
            f"{metrics['frechet_distance_of_reconstructions']:.1f} | {metrics['precision']:.3f} | "
            f"{metrics['recall']:.3f} | {found['cost']['seconds_per_picture']:.3f} |"
        )
    protocol = next(iter(evaluations.values()))["protocol"]
    return [
        *lines,
        "",
        f"{protocol['generated_pictures']} generated and {protocol['real_pictures']} real pictures, features of "
        f"{protocol['extractor']} (so no FID), classes {protocol['classes']}; k = {protocol['neighbours']}, seed "
        f"{protocol['seed']}, batches of {protocol['batch_size']}. So few pictures make a Fréchet distance large: "
        f"compare within the table only. {_where(*evaluations.values())}",
    ]


def _where(*results: dict[str, Any]) -> str:
    """The machines and commits of several results."""
    machines = {
        f"{one['hardware']['gpu'] or one['hardware']['cpu']}, {one['hardware']['threads']} threads" for one in results
    }
    commits = {f"`{(one['commit'] or 'unknown')[:12]}`" for one in results}
    return f"{'; '.join(sorted(machines))}; commit {', '.join(sorted(commits))}."


def render_generating(text: str) -> str:
    """docs/generating.md with the runs on a CPU."""
    runs = {name: load(f"generator_{name}") for name in GENERATORS}
    evaluations = {name: load(f"generator_{name}_evaluation") for name in GENERATORS}
    return render_parts(text, "docs/generating.md", {"generators": lambda: generators_table(runs, evaluations)})


def render_parts(text: str, name: str, parts: dict[str, Callable[[], str]]) -> str:
    """A page with the text between `<!-- rendered: KEY -->` and `<!-- end -->` replaced, for each key.

    Raises:
        ValueError: unless the page has each part exactly once.
    """
    for key, make in parts.items():
        pattern = rf"(<!-- rendered: {key} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, lambda m, make=make: f"{m[1]}{make()}\n{m[2]}", text, flags=re.DOTALL)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"{name} needs exactly one part '<!-- rendered: {key} -->', found {count}")
    return text


def released_table(results: dict[str, dict[str, Any]]) -> str:
    """Every checkpoint on every test set; then the speed and the origin of each."""
    lines = [f"| checkpoint | {QUALITY_HEAD}", "|" + "--|" * 10]
    for name, result in results.items():
        label = f"{name} (f{result['downsampling_factor']}, {result['parameters'] / 1e6:.1f} M)"
        lines += [f"| {label} | {row}" for row in quality_rows(result)]
    notes = [f"- `{name}`: {speed_line(result)} {provenance_line(result)}" for name, result in results.items()]
    return "\n".join([*lines, "", *notes])


def render_readme(text: str) -> str:
    """README.md with its rendered parts replaced; the built-in checkpoint comes first."""
    names = sorted(released(), key=lambda name: (name != default_checkpoint().name, name))
    results = {name: load(words_of(name)["result"]) for name in names}
    return render_parts(text, "README.md", {"quality": lambda: released_table(results)})


def render_training(text: str) -> str:
    """docs/training.md with the run of the smallest recipe."""
    return render_parts(text, "docs/training.md", {"tiny_cpu": lambda: tiny_cpu_table(load("tiny_cpu"))})


def render_all() -> dict[Path, str]:
    """Every rendered file and what it should hold."""
    readme, training, generating = ROOT / "README.md", ROOT / "docs" / "training.md", ROOT / "docs" / "generating.md"
    return {
        **{place_of(name): render_card(name) for name in released()},
        readme: render_readme(readme.read_text()),
        training: render_training(training.read_text()),
        generating: render_generating(generating.read_text()),
    }


def main() -> int:
    """Command line; returns 1 where `--check` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail on a difference")
    check = parser.parse_args().check
    stale = [(path, text) for path, text in render_all().items() if not path.exists() or path.read_text() != text]
    for path, text in stale:
        print(f"{'differs' if check else 'rendered'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(text)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
