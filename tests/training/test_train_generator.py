"""The trainer of generators, run for real: killed, resumed, shared by processes, and asked for what it learned."""

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lgq_hf.generation import load_pipeline
from lgq_hf.tokens import MaskedCollator, TokenDataset
from tests.training import generators, launching
from tests.training.generators import KINDS
from tests.training.launching import TIMES, assert_same_run, finish, kill_when, rows, stop_after
from tests.training.steps import forget_processes
from training.output import newest_checkpoint, read_csv
from training.token_data import token_batches
from training.train_generator import GeneratorStep, main

WEIGHTS = "transformer/model.safetensors"
launch = partial(launching.launch, "train_generator")
Recipe = Callable[..., Path]


@pytest.fixture(autouse=True)
def _alone() -> None:
    forget_processes()


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_if_it_never_was(generator_recipe: Recipe, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    recipe = generator_recipe("masked", model={**generators.MODEL["masked"], "dropout": 0.1}, max_steps=10)
    main(["--config", str(recipe), f"output_dir={whole}"])
    killed = launch(recipe, "data.num_workers=1")
    kill_when(killed, lambda: (run / "checkpoint-00000004").exists())
    killed.communicate()
    assert newest_checkpoint(run)[1] >= 4 and not (run / "final").exists()
    forget_processes()
    main(["--config", str(recipe), "data.num_workers=1", "--allow-change", "data.num_workers"])
    assert_same_run(whole, run, WEIGHTS)
    assert [int(row["step"]) for row in rows(run / "training.csv")] == list(range(1, 11))
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-00000008", "checkpoint-00000010"]
    _check_the_finished_run(run)


def _check_the_finished_run(run: Path) -> None:
    folder = run / "final"
    state = torch.load(run / "checkpoint-00000010" / "custom_checkpoint_0.pkl", weights_only=True)
    average, weights = state["parts"]["step"]["average"], load_file(folder / WEIGHTS)
    assert weights and all(torch.equal(average[name], tensor) for name, tensor in weights.items())
    last = load_file(run / "checkpoint-00000010" / "model.safetensors")
    assert any(not torch.equal(tensor, last[name]) for name, tensor in weights.items())
    log = read_csv(run / "training.csv")
    assert log[0]["lr_factor"] < log[1]["lr_factor"] and log[0]["grad_norm"] > 0
    assert 0 < log[0]["masked_share"] <= 1
    results = json.loads((folder / "results.json").read_text())
    assert [row["step"] for row in results["validation"]] == [4, 8, 10] and results["validation"][0]["rows"] == 5
    assert results["model"]["classes"] == ["camera", "chelsea", "coffee"] and results["model"]["num_classes"] == 3
    best = min(results["validation"], key=lambda row: row["bits_per_token"])
    assert results["best"] == {"metric": "bits_per_token", "value": best["bits_per_token"], "step": best["step"]}
    assert results["data"]["train"]["rows"] == 24 and results["data"]["tokenizer"]["name"] == "tokenizer"
    pipeline = load_pipeline(folder, device="cpu")
    assert pipeline.id2label == {0: "camera", 1: "chelsea", 2: "coffee"}
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("chelsea").images[0].size == (generators.PIXELS,) * 2
    assert load_pipeline(run / "best", device="cpu").num_classes == 3
    with Image.open(folder / "samples.png") as grid, Image.open(run / "samples" / "step-00000010.png") as same:
        assert grid.width > 2 * generators.PIXELS and grid.tobytes() == same.tobytes()
    assert str(run.parent) not in "".join(path.read_text() for path in folder.rglob("*.[jy]*"))


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_and_the_run_goes_on_from_it(generator_recipe: Recipe, tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", generator_recipe("autoregressive")
    overrides = ("max_steps=2000", "report.checkpoint_every=4000", "validation.every=4000", "data.num_workers=1")
    stopped = launch(recipe, *overrides)
    kill_when(
        stopped, lambda: (run / "training.csv").exists() and len(read_csv(run / "training.csv")) > 1, signal.SIGTERM
    )
    output = finish(stopped, status=143)
    step = newest_checkpoint(run)[1]
    assert step > 0 and f"stopped by SIGTERM at step {step}; the same command goes on from there" in output
    forget_processes()
    main(["--config", str(recipe), *overrides, f"max_steps={step + 2}", "--allow-change", "max_steps"])
    assert read_csv(run / "training.csv")[-1]["step"] == step + 2


@pytest.mark.slow
def test_two_processes_train_as_one(generator_recipe: Recipe, tmp_path: Path) -> None:
    recipe = generator_recipe("masked", max_steps=6)
    finish(launch(recipe, processes=2))
    main(["--config", str(recipe), f"output_dir={tmp_path / 'one'}", "engine.micro_batch_size=0"])
    for log in ("training.csv", "validation.csv"):
        for a, b in zip(*(read_csv(tmp_path / name / log) for name in ("run", "one")), strict=True):
            assert a.keys() == b.keys()
            for name in set(a) - set(TIMES):
                assert a[name] == pytest.approx(b[name], rel=1e-3), name
    assert json.loads((tmp_path / "run" / "final" / "results.json").read_text())["processes"] == 2


@pytest.fixture(scope="session")
def eight(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of eight pictures, each a class of its own."""
    folder = tmp_path_factory.mktemp("eight")
    classes = {name.partition(".")[0]: generators.pieces(name, 6)[5:] for name in generators.NAMES}
    pictures = generators.save_pictures(folder / "pictures", classes)
    return generators.tokenize(pictures, folder / "tokens", tokens / "tokenizer", "--split", "train")


@pytest.mark.parametrize("kind", KINDS)
def test_eight_pictures_are_learned_by_heart_and_drawn_again(
    kind: str, eight: Path, generator_recipe: Recipe, tmp_path: Path
) -> None:
    model = {**generators.MODEL[kind], "hidden_size": 64}
    data = {"path": str(eight), "validation_path": str(eight), "label_dropout": 0.0}
    optimizer = {"learning_rate": 1e-2, "warmup_steps": 10, "weight_decay": 0.0, "ema_decay": 0.9}
    sparse = {"report": {"log_every": 50, "checkpoint_every": 400}, "engine": {"micro_batch_size": 0}}
    validation = {"every": 400, "rows": 8, "samples": 0}
    recipe = generator_recipe(
        kind, max_steps=200, model=model, data=data, optimizer=optimizer, validation=validation, **sparse
    )
    main(["--config", str(recipe)])
    last = read_csv(tmp_path / "run" / "validation.csv")[-1]
    assert last["bits_per_token"] < 0.05 and last["perplexity"] < 1.04
    dataset = TokenDataset(eight)
    grids = torch.stack([dataset[number]["image_tokens"] for number in range(8)])
    assert len({tuple(grid.flatten().tolist()) for grid in grids}) == 8 and len(grids.unique()) > 12
    pipeline = load_pipeline(tmp_path / "run" / "final", device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    names = dataset.manifest["features"]["label"]["names"]
    labels = [names[dataset[number]["label"]] for number in range(8)]
    greedy = {"choice_temperature": 0.0} if kind == "masked" else {}
    drawn = pipeline(labels, temperature=0.0, output_type="token", **greedy).images
    assert torch.equal(drawn, grids)


def test_rows_are_masked_and_labels_dropped_as_the_recipe_says(
    tokens: Path, generator_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    take = GeneratorStep._pass

    def look(step: GeneratorStep, batch: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        seen.append(batch)
        return take(step, batch, labels)

    monkeypatch.setattr(GeneratorStep, "_pass", look)
    data = {"label_dropout": 0.5, "mask_schedule": "square"}
    main(["--config", str(generator_recipe("masked", data=data, seed=7, max_steps=3, validation={"samples": 0}))])
    collator = MaskedCollator(generators.CODES, 3, schedule="square", label_dropout=0.5, seed=7)
    wanted = token_batches(TokenDataset(tokens / "train"), collator, batch_size=4, seed=7)
    assert len(seen) == 6 and len({*torch.cat([batch["class_labels"] for batch in seen]).tolist()}) == 4
    for batch, other in zip(seen, wanted, strict=False):
        assert all(torch.equal(batch[name], tensor) for name, tensor in other.tensors.items())


def test_without_classes(generator_recipe: Recipe, tmp_path: Path) -> None:
    data = {"use_labels": False}
    main(["--config", str(generator_recipe("masked", data=data, max_steps=2, optimizer={"ema_decay": 0}))])
    final = tmp_path / "run" / "final"
    pipeline = load_pipeline(final, device="cpu")
    assert pipeline.num_classes == 0 and pipeline.id2label == {}
    assert "It was trained without classes." in (final / "README.md").read_text()
    last = load_file(tmp_path / "run" / "checkpoint-00000002" / "model.safetensors")
    assert all(torch.equal(tensor, last[name]) for name, tensor in load_file(final / WEIGHTS).items())


@pytest.mark.parametrize(("kind", "precision"), [("masked", "bf16"), ("autoregressive", "fp16")])
def test_half_precision_and_checkpointing_go_on_as_if_they_had_not_stopped(
    kind: str, precision: str, generator_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = {"mixed_precision": precision, "gradient_checkpointing": True}
    recipe = generator_recipe(kind, engine=engine, max_steps=6, validation={"samples": 0, "every": 50})
    main(["--config", str(recipe), f"output_dir={tmp_path / 'whole'}"])
    forget_processes()
    with monkeypatch.context() as patched, pytest.raises(SystemExit, match="143"):
        stop_after(3, patched)
        main(["--config", str(recipe)])
    assert newest_checkpoint(tmp_path / "run")[1] == 3
    forget_processes()
    main(["--config", str(recipe)])
    assert_same_run(tmp_path / "whole", tmp_path / "run", WEIGHTS)
    assert not (tmp_path / "run" / "final" / "samples.png").exists()


def test_what_is_not_finite_stops_the_run_before_the_step(generator_recipe: Recipe, tmp_path: Path) -> None:
    optimizer = {"learning_rate": 1e30, "warmup_steps": 0, "max_grad_norm": 1e30}
    recipe = generator_recipe("masked", optimizer=optimizer, report={"log_every": 12})
    with pytest.raises(FloatingPointError, match="is not finite at step 1, which was not taken; its rows are listed"):
        main(["--config", str(recipe)])
    (dump,) = (tmp_path / "run").glob("not-finite-*.json")
    listed = json.loads(dump.read_text())
    assert listed["step"] == 1 and len(listed["rows"]) == 8 and all("@" in name for name in listed["rows"])


def test_other_rows_and_guidance_without_labels_are_refused(
    generator_recipe: Recipe, tokens: Path, eight: Path, tmp_path: Path
) -> None:
    recipe = generator_recipe("masked", max_steps=2, data={"use_labels": False}, validation={"samples": 0})
    arguments = ["--config", str(recipe)]
    main(arguments)
    forget_processes()
    other = [f"data.path={eight}", f"data.validation_path={eight}", "--allow-change", "data.path"]
    with pytest.raises(ValueError, match="the run began with 24 training rows, and there are 8"):
        main([*arguments, *other, "data.validation_path"])
    forget_processes()
    pictures = generators.save_pictures(tmp_path / "pictures", {"": generators.pieces("moon.png", 3)})
    plain = generators.tokenize(pictures, tmp_path / "plain", tokens / "tokenizer")
    places = [
        f"data.path={plain}",
        f"data.validation_path={plain}",
        f"output_dir={tmp_path / 'other'}",
        "data.use_labels=true",
    ]
    with pytest.raises(ValueError, match=r"validation\.guidance_scale=2 needs labels, and .*plain has none"):
        main([*arguments, *places, "validation.guidance_scale=2"])
