"""Converts every recorded miniature, measures how near it comes, and renders the table of conversion/README.md.

python -m conversion.parity            # writes parity.json and the table
python -m conversion.parity --check    # fails where the table is not that of parity.json
"""

import argparse
import json
import math
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE
from transformers.utils import logging

from conversion.convert import convert
from conversion.formats import FORMATS
from lgq_hf.files import atomic_file
from lgq_hf.provenance import provenance

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "tests" / "fixtures" / "vqgan_family"
RESULT, PAGE = HERE / "parity.json", HERE / "README.md"
# what stands in a miniature's folder, as a user of the project has it
SOURCES = {
    "taming_a": ["checkpoint.ckpt"],
    "llamagen_a": ["checkpoint.pt", "checkpoint_release.pt"],
    "ibq_a": ["checkpoint.ckpt"],
    "magvit2_a": ["checkpoint.ckpt"],
    "simvq_a": ["checkpoint.ckpt"],
    "wetok_a": ["checkpoint.ckpt"],
    "maskgit_a": ["checkpoint.bin"],
    "diffusers_a": ["checkpoint", "checkpoint_legacy"],
    "amused_a": ["checkpoint"],
}


def measure(fixtures: Path = FIXTURES) -> dict[str, Any]:
    """The result: by file, its format, weights, dropped keys by reason, what was baked, and the differences."""
    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        sources = {
            f"{folder}/{name}": (fixtures / folder / name, fixtures / folder / "expected.safetensors")
            for folder, names in SOURCES.items()
            for name in names
        }
        for mode in sorted((fixtures.parent / "lgq_official").glob("lgq_*")):
            sources[f"{mode.name}/best_model.pt"] = official_source(mode, Path(temporary) / mode.name)
        sources["JanusVQVAE"] = janus_source(Path(temporary) / "janus")
        for number, (name, (source, expected)) in enumerate(sources.items()):
            report = convert(source, Path(temporary) / f"out{number}", expected=expected)
            rows[name] = {
                "format": report["format"],
                "weights": report["source"]["weights"],
                "dropped": _by_reason(report["dropped"]),
                "baked": report["baked"],
                "recorded": report["verification"]["recorded"],
                "beside_diffusers": report["verification"]["beside_diffusers"],
            }
    protocol = "fp32, random-weight miniatures, square and oblong input (official LGQ and Janus: square)"
    return {**provenance(), "protocol": protocol, "files": rows}


def official_source(mode: Path, folder: Path) -> tuple[Path, Path]:
    """A recorded mode of the official LGQ code as its trainer's file, and the recording by the names compared here."""
    folder.mkdir()
    config = json.loads((mode / "official_config.json").read_text())
    checkpoint = {"model_state_dict": load_file(mode / "official_model.safetensors"), "config": config, "epoch": 0}
    torch.save(checkpoint, folder / "best_model.pt")
    recorded = load_file(mode / "expected.safetensors")
    latent, indices = recorded["latent"], recorded["indices"].long()
    side = math.isqrt(latent.shape[2])
    if "levels" in mode.name:  # one index per channel there, one token for all of them here
        strides = [math.prod(config["lmb_levels"][i + 1 :]) for i in range(len(config["lmb_levels"]))]
        indices = (indices * torch.tensor(strides)).sum(2)
    expected = {
        "images": recorded["images"],
        "latent": latent.unflatten(2, (side, side)),
        "indices": indices.unflatten(1, (side, side)),
        "reconstruction": recorded["reconstruction"],
    }
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, folder / "expected.safetensors")
    return folder / "best_model.pt", folder / "expected.safetensors"


@torch.no_grad()
def janus_source(folder: Path) -> tuple[Path, Path]:
    """A small random `JanusVQVAE` of transformers, saved, and what it gives.

    Its codes have length 1 and its latents are normalised for it: that class leaves it out.
    """
    torch.manual_seed(0)
    fields: dict[str, Any] = {"base_channels": 32, "channel_multiplier": [1, 1, 2], "latent_channels": 16}
    model = JanusVQVAE(
        JanusVQVAEConfig(**fields, num_res_blocks=1, embed_dim=4, num_embeddings=64, num_patches=16)
    ).eval()
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    model.quantize.embedding.weight.copy_(F.normalize(torch.randn(64, 4), dim=1))
    model.save_pretrained(folder)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    latent = model.quant_conv(model.encoder(images))
    indices = model.quantize(F.normalize(latent, dim=1))[2].reshape(2, 16, 16)
    expected = {
        "images": images,
        "latent": latent,
        "indices": indices,
        "reconstruction": model.decode(indices.flatten(1)),
    }
    save_file(expected, folder.with_suffix(".expected.safetensors"))
    return folder, folder.with_suffix(".expected.safetensors")


def _by_reason(dropped: dict[str, str]) -> dict[str, int]:
    """How many keys each kind of reason took: what stands before the colon."""
    return dict(Counter(reason.partition(":")[0] for reason in dropped.values()))


def table(result: dict[str, Any]) -> str:
    """Markdown rows, one per file, and where they were measured."""
    head = "| format | project, licence of its code | file | dropped | baked | latents | pixels | tokens wrong |"
    lines = [head, "|--|--|--|--|--|--|--|--|"]
    for name, row in result["files"].items():
        kind = FORMATS[row["format"]]
        parts = row["recorded"].values()
        dropped = ", ".join(f"{reason} ({count})" for reason, count in row["dropped"].items()) or "nothing"
        baked = "; ".join(f"{ours}: {how}" for ours, how in row["baked"].items()) or "nothing"
        worst = [f"{max(part[key] for part in parts):.1e}" for key in ("latents", "pixels")]
        tokens = f"{sum(part['tokens_wrong'] for part in parts)} of {sum(part['tokens'] for part in parts)}"
        project = f"[{kind.project}]({kind.url}), {kind.code_licence}"
        file = f"{name} ({row['weights']})"
        lines.append(
            f"| `{row['format']}` | {project} | {file} | {dropped} | {baked} | {' | '.join(worst)} | {tokens} |"
        )
    versions = ", ".join(f"{name} {result['versions'][name]}" for name in ("python", "torch", "transformers"))
    lines += ["", f"{result['protocol']}. Measured at commit `{result['commit'][:12]}` with {versions}."]
    return "\n".join(lines)


def render(page: str, result: dict[str, Any]) -> str:
    """The page with the text between its markers replaced."""
    found = re.subn(
        r"(<!-- rendered: parity -->\n).*?(<!-- end -->)",
        lambda m: f"{m[1]}{table(result)}\n{m[2]}",
        page,
        flags=re.DOTALL,
    )
    if found[1] != 1:
        raise ValueError(f"expected one part <!-- rendered: parity --> ... <!-- end -->, found {found[1]}")
    return found[0]


def main(arguments: list[str] | None = None) -> int:
    """The command; 0, or 1 where --check finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m conversion.parity", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="measure nothing, compare the page with parity.json")
    if parser.parse_args(arguments).check:
        same = render(PAGE.read_text(), json.loads(RESULT.read_text())) == PAGE.read_text()
        print(
            "conversion/README.md is that of parity.json" if same else "conversion/README.md differs: render it anew"
        )
        return 0 if same else 1
    logging.disable_progress_bar()
    result = measure()
    with atomic_file(RESULT) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    with atomic_file(PAGE) as temporary:
        temporary.write_text(render(PAGE.read_text(), result))
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
