"""The training loop, run for real: killed, resumed and compared bit for bit with a run that was left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file

from lgq_hf import LGQConfig, LGQImageProcessor, LGQModel, LGQTokenizer
from training.run_state import Log, newest_checkpoint
from training.summary import summary
from training.train_tokenizer import parameter_groups, read_recipe, take_over

ROOT = Path(__file__).parents[2]
MODEL = {
    "base_channels": 8,
    "channel_multiplier": [1, 2, 2],
    "num_res_blocks": 1,
    "bottleneck_attention": False,
    "latent_channels": 4,
    "codebook_size": 32,
    "straight_through": "identity",
}


@pytest.fixture
def recipe(corpus: Path, tmp_path: Path) -> Path:
    values = {
        "corpus": str(corpus),
        "output_dir": str(tmp_path / "run"),
        "max_steps": 12,
        "batch_size": 4,
        "crop": 32,
        "model": MODEL,
        "warmup_steps": 3,
        "init_pictures": 8,
        "validation_pictures": 4,
        "log_every": 2,
        "checkpoint_every": 4,
        "num_workers": 1,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def launch(recipe: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    command += [
        "--num_cpu_threads_per_process",
        "1",
        "-m",
        "training.train_tokenizer",
        "--config",
        str(recipe),
        *overrides,
    ]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output.decode()[-3000:]
    return output.decode()


def test_a_killed_run_resumes_to_the_same_weights(recipe: Path, tmp_path: Path) -> None:
    finish(launch(recipe, f"output_dir={tmp_path / 'whole'}"))
    killed = launch(recipe)
    deadline = time.monotonic() + 240
    while not (tmp_path / "run" / "checkpoint-00000004").exists():
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "run" / "final").exists()
    finish(launch(recipe))
    whole, resumed = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "run"))
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (tmp_path / name / "log.jsonl").open()
        ]
        for name in ("whole", "run")
    ]
    assert logs[0] == logs[1] and [row["step"] for row in logs[0]] == [2, 4, 6, 8, 10, 12]
    assert logs[0][0]["temperature"] > logs[0][-1]["temperature"] == pytest.approx(0.1)
    assert "validation_psnr" in logs[0][1] and "validation_psnr" not in logs[0][0]
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == [
        "checkpoint-00000008",
        "checkpoint-00000012",
    ]
    _check_the_finished_model(tmp_path / "run" / "final", whole)
    _check_the_summary(recipe, tmp_path / "run")
    other = launch(recipe, "learning_rate=2.0e-3")
    output, _ = other.communicate(timeout=300)
    assert other.returncode != 0
    assert b"was started with other values of ['learning_rate']: give another output_dir" in output


def _check_the_finished_model(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    model = LGQTokenizer.from_pretrained(folder)
    processor = LGQImageProcessor.from_pretrained(folder)
    assert processor.pad_to_multiple_of == model.config.spatial_downsample_factor == 4
    assert model.quantizer.temperature == pytest.approx(0.1)
    torch.manual_seed(0)
    start = LGQModel(LGQConfig(**MODEL)).state_dict()
    moved = [name for name in weights if not torch.equal(weights[name], start[name])]
    assert set(moved) == set(weights)


def _check_the_summary(recipe: Path, run: Path) -> None:
    result = summary(run, read_recipe(recipe, []), "a test")
    assert result["steps"] == 12 and result["note"] == "a test" and result["hours"] >= 0
    assert result["corpus"]["packages"] == {"photographs": 6}
    assert "output_dir" not in result["recipe"] and list(result["validation_psnr"]) == [4, 8, 12]
    assert result["corpus"]["files"] == result["corpus"]["source_pictures"] == 6
    with pytest.raises(ValueError, match="is not finished: step 12 of 20"):
        summary(run, read_recipe(recipe, ["max_steps=20"]), "")


def test_a_log_forgets_what_is_redone_and_what_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [
        '{"step": 2, "seconds": 5.0}',
        '{"step": 4, "seconds": 9.0}',
        '{"step": 6, "seconds": 11.0}',
        '{"step": 8, "s',
    ]
    path.write_text("\n".join(rows))
    log = Log(path, 4)
    log.write({"step": 6}, seconds=3.0)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [{"step": 2, "seconds": 5.0}, {"step": 4, "seconds": 9.0}, {"step": 6, "seconds": 12.0}]


def test_taking_over_copies_what_fits(tmp_path: Path) -> None:
    source = LGQModel(LGQConfig(**MODEL))
    source.save_pretrained(tmp_path)
    wider = LGQModel(LGQConfig(**MODEL | {"latent_channels": 8, "code_dim": 4}))
    assert take_over(wider, str(tmp_path)).startswith("took over ")
    assert torch.equal(wider.encoder.stem.weight, source.encoder.stem.weight)
    assert torch.equal(wider.quantizer.centers, source.quantizer.centers)
    assert wider.encoder.to_emb.weight.shape != source.encoder.to_emb.weight.shape


def test_newest_checkpoint_goes_by_number(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) == (None, 0)
    for step in (900, 1000, 20):
        (tmp_path / f"checkpoint-{step:08d}").mkdir()
    (tmp_path / ".checkpoint-00002000.tmp").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_checkpoint(tmp_path) == (tmp_path / "checkpoint-00001000", 1000)


def test_quantizer_learns_faster_and_nothing_flat_decays(recipe: Path) -> None:
    model = LGQModel(LGQConfig(**MODEL))
    rest, flat, quantizer = parameter_groups(model, read_recipe(recipe, ["learning_rate=2.0e-3"]))
    assert quantizer["params"] == [model.quantizer.centers] or quantizer["params"][0] is model.quantizer.centers
    assert (rest["base_lr"], quantizer["base_lr"]) == (pytest.approx(2e-3), pytest.approx(2e-2))
    assert rest["weight_decay"] == 0.01 and flat["weight_decay"] == quantizer["weight_decay"] == 0
    assert all(p.ndim == 1 for p in flat["params"]) and all(p.ndim > 1 for p in rest["params"])
    assert sum(len(group["params"]) for group in (rest, flat, quantizer)) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["steps=3"], r"unknown keys \['steps'\]"),
        (["max_steps=many"], "'max_steps' expected int, got str"),
        (["compile=1"], "'compile' expected bool, got int"),
        (["mixed_precision=fp8"], "mixed_precision"),
        (["max_steps=0"], "max_steps must be at least 1, got 0"),
        (["max_scale=0.5"], "max_scale must be at least 1, got 0.5"),
        (["crop"], "expected key=value, got 'crop'"),
    ],
)
def test_recipe_errors(recipe: Path, overrides: list[str], message: str) -> None:
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        read_recipe(recipe, overrides)


def test_recipe_lacks_a_key(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("corpus: x\n")
    with pytest.raises(ValueError, match=r"lacks \['batch_size', 'crop', 'max_steps', 'output_dir'\]"):
        read_recipe(tmp_path / "empty.yaml", [])


def test_nested_override_reaches_the_model(recipe: Path) -> None:
    assert read_recipe(recipe, ["model.codebook_size=64"]).model["codebook_size"] == 64


@pytest.mark.parametrize("path", sorted((ROOT / "training" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_published_recipes_build(path: Path) -> None:
    published = read_recipe(path, [])
    with torch.device("meta"):
        model = LGQModel(LGQConfig(**published.model))
    assert published.crop % model.config.spatial_downsample_factor == 0


def test_a_loss_that_is_not_finite_stops_the_run(recipe: Path, tmp_path: Path) -> None:
    process = launch(recipe, "learning_rate=1.0e+30", "warmup_steps=1", "max_grad_norm=1.0e+30", "log_every=12")
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0 and b"FloatingPointError: loss is " in output
    assert list((tmp_path / "run").glob("checkpoint-*")) == []  # step 4 is no log step, and was not saved either
    assert not (tmp_path / "run" / "final").exists()
