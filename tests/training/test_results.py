"""The published folder: what is in it, and that others can load it."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from benchmarks import photographs
from lgq_hf import LGQImageProcessor, LGQModel, LGQTokenizer
from lgq_hf.hub.publishable import HERE, STATE_BOTH, STATE_PICTURES
from lgq_hf.provenance import provenance
from tests.training import steps
from training.losses import PatchDiscriminator
from training.output import CsvLog
from training.recipe import Recipe, read_recipe
from training.results import corpus_summary, portable_recipe, tokenizer_card, write_tokenizer

ROW = {
    "step": 20.0,
    "psnr": 21.0625,
    "ssim": 0.61234,
    "perceptual": 0.5,
    "frechet": 1234.5,
    "codebook_usage": 0.875,
    "perplexity": 24.04,
    "dead_codes": 4.0,
    "tokens": 4096.0,
    "pictures": 64.0,
}


def a_recipe(folder: Path, **changes: Any) -> Recipe:
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    data = {"path": str(folder / "corpus"), "max_broken": 1e-5, **changes.pop("data", {})}
    recipe = steps.changed(
        data=data,
        loss={"vgg_weights": str(folder / "vgg16.pth"), "lpips_heads": "heads.pth"},
        validation={"frechet": "efficientnet-lite0", "perceptual": "efficientnet-lite0"},
        processor={"image_mean": [0.4, 0.5, 0.6]},
        **changes,
    )
    recipe.output_dir, recipe.start_from = str(folder / "flowers"), str(folder / "first" / "final")
    return recipe


def results(recipe: Recipe, model: LGQModel, **changes: Any) -> dict[str, Any]:
    packages = {"debian-backgrounds": 1200, "mate": 34}
    data = {"kind": "corpus", "manifest_sha256": "0123456789abcdef", "files": 1234, "source_pictures": 567}
    return {
        **provenance(strict=False),
        "recipe": portable_recipe(recipe),
        "steps": 20,
        "hours": 0.125,
        "processes": 1,
        "model": {
            "codebook_size": model.config.codebook_size,
            "downsampling_factor": model.config.spatial_downsample_factor,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "data": {**data, "packages": packages},
        "validation": [{**ROW, "step": 10.0, "psnr": 22.5}, ROW],
        "best": {"metric": "psnr", "value": 22.5, "step": 10},
        "last_row": {"step": 20.0, "grad_norm": float("inf")},
        **changes,
    }


def publish(folder: Path, **changes: Any) -> tuple[Path, Recipe, LGQModel, PatchDiscriminator | None]:
    recipe = a_recipe(folder, **changes)
    step = steps.make(recipe)
    with torch.no_grad():  # a step, so that nothing stands where it began
        for network in (step.model, step.discriminator):
            for parameter in network.parameters() if network is not None else ():
                parameter.add_(0.01 * torch.randn_like(parameter))
    run = Path(recipe.output_dir)
    CsvLog(run / "training.csv", 0).write({"step": 20, "loss": 0.5})
    write_tokenizer(
        run / "final",
        model=step.model,
        processor=LGQImageProcessor(**recipe.processor, pad_to_multiple_of=2),
        discriminator=step.discriminator,
        recipe=recipe,
        results=results(recipe, step.model),
        logs=[run / "training.csv", run / "validation.csv"],
    )
    return run / "final", recipe, step.model, step.discriminator


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe, LGQModel, PatchDiscriminator | None]:
    steps.forget_processes()
    return publish(tmp_path_factory.mktemp("home-of-somebody"))


@pytest.fixture(scope="module")
def final(published: tuple[Path, Any, Any, Any]) -> Path:
    return published[0]


def test_what_is_published(final: Path) -> None:
    names = {path.name for path in final.iterdir() if path.suffix != ".py"}
    assert names == {
        "README.md",
        "config.json",
        "discriminator.safetensors",
        "model.safetensors",
        "preprocessor_config.json",
        "recipe.yaml",
        "results.json",
        "training.csv",
    }
    assert (final / "training.csv").read_text() == "step,loss\n20,0.5\n"


def test_model_and_processor_load(published: tuple[Path, Recipe, LGQModel, Any]) -> None:
    final, _, model, _ = published
    loaded, processor = LGQTokenizer.from_pretrained(final), LGQImageProcessor.from_pretrained(final)
    assert list(processor.image_mean) == [0.4, 0.5, 0.6]
    pixels = processor(photographs.load("chelsea.png", 32), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        assert torch.equal(loaded(pixels).decoded_pixel_values, model.eval()(pixels).decoded_pixel_values)


_ELSEWHERE = """
import importlib.abc, sys

class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lgq_hf", "training"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, NotInstalled())
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel
model = AutoModel.from_pretrained(".", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(".", trust_remote_code=True)
pixels = processor(Image.open(sys.argv[1]), return_tensors="pt")["pixel_values"]
with torch.no_grad():
    save_file({"pixels": pixels, "decoded": model(pixels).decoded_pixel_values}, sys.argv[2])
"""


def test_it_loads_without_the_package(published: tuple[Path, Recipe, LGQModel, Any], tmp_path: Path) -> None:
    final, _, model, _ = published
    photographs.load("coffee.png", 32).save(tmp_path / "picture.png")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _ELSEWHERE, str(tmp_path / "picture.png"), str(tmp_path / "out.safetensors")]
    subprocess.run(command, cwd=final, env=environment, check=True, timeout=120)
    found = load_file(tmp_path / "out.safetensors")
    with torch.no_grad():
        wanted = model.eval()(found["pixels"]).decoded_pixel_values
    torch.testing.assert_close(found["decoded"], wanted)


@pytest.mark.parametrize("norm", ["spectral", "group", "none"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_discriminator_goes_on(tmp_path: Path, norm: str, channels_last: bool) -> None:
    steps.forget_processes()
    gan = {"norm": norm, "base_channels": 16, "num_layers": 2}
    final, _, _, network = publish(tmp_path, discriminator=gan, engine={"channels_last": channels_last})
    assert network is not None
    settings = read_recipe(final / "recipe.yaml", []).discriminator
    loaded = PatchDiscriminator(settings.base_channels, settings.num_layers, settings.norm)
    loaded.load_state_dict(load_file(final / "discriminator.safetensors"))
    pixels = steps.pictures()[0]
    torch.testing.assert_close(loaded.eval()(pixels), network.eval()(pixels))
    whole = LGQTokenizer.from_pretrained(final)
    assert whole.encoder.stem.weight.is_contiguous()


def test_without_a_discriminator(tmp_path: Path) -> None:
    steps.forget_processes()
    final, _, _, _ = publish(tmp_path, discriminator={"weight": 0})
    assert not (final / "discriminator.safetensors").exists()
    assert "discriminator" not in (final / "README.md").read_text()


def test_the_recipe_reads_back(published: tuple[Path, Recipe, Any, Any]) -> None:
    final, recipe, _, _ = published
    found = read_recipe(final / "recipe.yaml", [])
    assert (found.output_dir, found.start_from, found.data.path) == ("flowers", "first/final", "corpus")
    assert (found.loss.vgg_weights, found.loss.lpips_heads) == ("vgg16.pth", "heads.pth")
    found.output_dir, found.start_from = recipe.output_dir, recipe.start_from
    found.data.path, found.loss.vgg_weights = recipe.data.path, recipe.loss.vgg_weights
    assert found == recipe and recipe.data.max_broken == 1e-5


def test_names_that_are_no_paths_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = a_recipe(
        tmp_path, data={"kind": "dataset", "path": "somebody/flowers", "validation_path": "nobody/other"}
    )
    recipe.output_dir = "."
    values = portable_recipe(recipe)
    assert (values["data"]["path"], values["data"]["validation_path"]) == ("somebody/flowers", "nobody/other")
    assert values["output_dir"] == tmp_path.name
    assert recipe.output_dir == "."


def test_nothing_tells_of_the_machine(final: Path) -> None:
    for path in final.iterdir():
        if path.suffix in (".json", ".md", ".yaml", ".csv"):
            text = path.read_text()
            assert "home-of-somebody" not in text and "/tmp" not in text and str(Path.home()) not in text, path.name


def test_results_are_json_as_others_read_it(final: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads((final / "results.json").read_text(), parse_constant=refuse)
    assert found["last_row"] == {"step": 20.0, "grad_norm": None} and found["validation"][1] == ROW
    assert re.fullmatch("[0-9a-f]{64}", found["weights_sha256"])


def test_the_card(final: Path) -> None:
    text = (final / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag, data.tags) == (
        "lgq_hf",
        "image-to-image",
        ["image-tokenizer", "lgq"],
    )
    assert data.datasets is None
    for line in (
        "# flowers",
        "| PSNR | 21.06 dB |",
        "| SSIM | 0.6123 |",
        "| perceptual distance (efficientnet-lite0) | 0.5000 |",
        "| codes used at least once by 4,096 tokens | 87.5% |",
        "| perplexity of the tokens | 24.0 codes |",
    ):
        assert f"\n{line}\n" in text
    assert re.search(
        r"\| Fréchet distance of efficientnet-lite0 features, 64 pictures; no FID.* \| 1,?234.50 \|", text
    )
    assert "rFID" not in text
    assert "best PSNR of the run was 22.50 dB, at step 10" in text and "7.5 minutes on 1 x " in text
    assert "1,234 files made of 567 source pictures, by package: debian-backgrounds (1,200), mate (34)." in text
    assert "`discriminator.safetensors` holds" in text and "averaged over training" in text
    assert "$" not in text and "{" not in text and "\n\n\n" not in text
    assert max(len(line) for line in text.splitlines() if "packages" not in line) < 250


def test_what_the_card_leaves_to_its_writer_is_found(
    published: tuple[Path, Recipe, LGQModel, Any], final: Path
) -> None:
    assert (final / "README.md").read_text().count(HERE) == 2
    assert STATE_BOTH in ModelCard.load(final / "README.md").text
    _, recipe, model, _ = published
    licensed = dataclasses.replace(recipe, report=dataclasses.replace(recipe.report, license="mit"))
    text = tokenizer_card(results(recipe, model), licensed, has_discriminator=True)
    assert f"These weights: mit. {STATE_PICTURES}" in text


def test_the_code_of_the_card_runs(final: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (final / "README.md").read_text(), re.DOTALL)
    photographs.load("rocket.jpg", 51).save(tmp_path / "picture.png")
    code = code.replace('"picture.png"', repr(str(tmp_path / "picture.png")))
    code += f"picture.save({str(tmp_path / 'decoded.png')!r})\n"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=final, env=environment, check=True, timeout=120)
    assert Image.open(tmp_path / "decoded.png").size == (51, 51)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"kind": "folder", "path": "imagenet"}, "Pictures: the folder `imagenet`, split `train`."),
        ({"kind": "parquet", "path": "*.parquet"}, "Pictures: the parquet files `*.parquet`, split `train`."),
        ({"kind": "dataset", "path": "flowers"}, "Pictures: the dataset `flowers`, split `train`."),
        (
            {"kind": "dataset", "path": "somebody/flowers", "name": "small", "revision": "v1"},
            "Pictures: the dataset [somebody/flowers](https://huggingface.co/datasets/somebody/flowers), "
            "configuration `small`, revision `v1`, split `train`.",
        ),
    ],
)
def test_the_card_names_other_pictures(
    data: dict[str, Any], words: str, published: tuple[Path, Recipe, LGQModel, Any]
) -> None:
    _, recipe, model, _ = published
    said = {"split": "train", "name": None, "revision": None, **data}
    best = {"metric": "frechet", "value": 1234.5, "step": 20}
    text = tokenizer_card(results(recipe, model, data=said, hours=26.04, best=best), recipe, has_discriminator=False)
    assert words in text and " 26.0 hours on " in text
    assert re.search(r"The best Fréchet distance of the run was 1,?234.50, at step 20: this is it\.", text)
    wanted = ["somebody/flowers"] if "revision" in data else None
    assert ModelCard(text).data.datasets == wanted


def test_the_card_of_a_repository(published: tuple[Path, Recipe, LGQModel, Any]) -> None:
    _, recipe, model, _ = published
    text = tokenizer_card(results(recipe, model), recipe, has_discriminator=True, repo_id="somebody/tokens")
    assert "\n# somebody/tokens\n" in text and 'LGQTokenizer.from_pretrained("somebody/tokens")' in text
    assert 'LGQImageProcessor.from_pretrained("somebody/tokens")' in text


def test_a_figure_that_is_not_finite(published: tuple[Path, Recipe, LGQModel, Any]) -> None:
    _, recipe, model, _ = published
    rows = [{**ROW, "psnr": None}]
    best = {"metric": "psnr", "value": None, "step": None}
    text = tokenizer_card(results(recipe, model, validation=rows, best=best), recipe, has_discriminator=True)
    assert "| PSNR | not finite |" in text and "The best" not in text


def test_summary_of_a_corpus(corpus: Path) -> None:
    summary = corpus_summary(corpus)
    assert summary["packages"] == {"photographs": 6} and summary["files"] == summary["source_pictures"] == 6
    assert re.fullmatch("[0-9a-f]{64}", summary["manifest_sha256"])
    assert corpus_summary(corpus, {"photographs": 3}) == summary | {"repeat": {"photographs": 3}}
    none = {"files": 0, "source_pictures": 0, "packages": {}, "repeat": {"photographs": 0}}
    assert corpus_summary(corpus, {"photographs": 0}) == summary | none
