"""The trainer, run for real: killed at any moment, resumed, shared by processes, and compared bit for bit."""

import json
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors.torch import load_file

from lgq_hf import LGQImageProcessor, LGQModel, LGQTokenizer
from tests.training import launching
from tests.training.launching import ROOT, TIMES, assert_same_run, finish, kill_when, rows, stop_after
from tests.training.steps import forget_processes
from training.output import newest_checkpoint, read_csv
from training.recipe import read_recipe
from training.train_tokenizer import TokenizerRun, main

WEIGHTS = ("model.safetensors", "discriminator.safetensors")
launch = partial(launching.launch, "train_tokenizer")


@pytest.fixture(autouse=True)
def _alone() -> None:
    forget_processes()


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(recipe: Path, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    main(["--config", str(recipe), f"output_dir={whole}", "report.checkpoint_every=2"])
    overrides = ("report.checkpoint_every=2", "data.num_workers=1")
    moments = random.Random(time.time_ns())
    killed = launch(recipe, *overrides)
    kill_when(killed, lambda: (run / "checkpoint-00000004").exists())
    killed.communicate()
    before = newest_checkpoint(run)[1]
    killed = launch(recipe, *overrides)
    kill_when(killed, lambda: any(run.glob(f".checkpoint-{before + 2:08d}.tmp/*")))  # a checkpoint is being written
    killed.communicate()
    assert newest_checkpoint(run)[1] in (before, before + 2) and not (run / "final").exists()
    before = newest_checkpoint(run)[1]
    killed = launch(recipe, *overrides)
    kill_when(killed, lambda: len(read_csv(run / "training.csv")) > before // 2)
    time.sleep(moments.random() / 10)
    killed.communicate()
    forget_processes()
    main(["--config", str(recipe), *overrides])
    assert_same_run(whole, run, *WEIGHTS)
    assert [int(row["step"]) for row in rows(run / "training.csv")] == [2, 4, 6, 8, 10, 12]
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-00000010", "checkpoint-00000012"]
    _check_the_finished_run(run)


def _check_the_finished_run(run: Path) -> None:
    folder = run / "final"
    model, processor = LGQTokenizer.from_pretrained(folder), LGQImageProcessor.from_pretrained(folder)
    assert processor.pad_to_multiple_of == model.config.spatial_downsample_factor == 4
    assert model.quantizer.temperature == pytest.approx(0.1)
    state = torch.load(run / "checkpoint-00000012" / "custom_checkpoint_0.pkl", weights_only=True)
    average = state["parts"]["step"]["average"]
    weights = load_file(folder / "model.safetensors")
    assert all(torch.equal(average[name], tensor) for name, tensor in weights.items())  # the average is published
    assert any(
        not torch.equal(tensor, weights[n])
        for n, tensor in load_file(run / "checkpoint-00000012" / "model.safetensors").items()
    )
    results = json.loads((folder / "results.json").read_text())
    assert results["steps"] == 12 and results["data"]["packages"] == {"photographs": 6}
    assert [row["step"] for row in results["validation"]] == [6, 12]
    log = read_csv(run / "training.csv")
    assert log[0]["temperature"] > log[-1]["temperature"] and log[-1]["gan_weight"] > 0
    assert "discriminator_loss" not in log[0] and {"codebook_usage", "perplexity", "dead_codes"} <= log[0].keys()
    assert log[0]["straight_through_gain"] > 0 and log[0]["grad_norm"] > 0
    assert LGQTokenizer.from_pretrained(run / "before-gan") and LGQTokenizer.from_pretrained(run / "best")
    with Image.open(run / "samples" / "step-00000012.png") as sheet:
        assert sheet.width > 64 and sheet.height > 3 * 32


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_and_the_run_goes_on_from_it(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = ("max_steps=400", "report.checkpoint_every=1000", "validation.every=1000", "data.num_workers=1")
    stopped = launch(recipe, *overrides)
    kill_when(
        stopped, lambda: (run / "training.csv").exists() and len(read_csv(run / "training.csv")) > 1, signal.SIGTERM
    )
    output = finish(stopped, status=143)
    step = newest_checkpoint(run)[1]
    assert step > 0 and f"stopped by SIGTERM at step {step}; the same command goes on from there" in output
    forget_processes()
    arguments = ["--config", str(recipe), *overrides, f"max_steps={step + 2}", "--allow-change", "max_steps"]
    main(arguments)
    assert read_csv(run / "training.csv")[-1]["step"] == step + 2


@pytest.mark.slow
def test_two_processes_train_as_one_and_stop_together(recipe: Path, tmp_path: Path) -> None:
    overrides = ("max_steps=6", "quantizer.init_method=random")
    finish(launch(recipe, *overrides, "engine.micro_batch_size=0", processes=2))
    main(["--config", str(recipe), *overrides, f"output_dir={tmp_path / 'one'}"])
    two, one = (read_csv(tmp_path / name / "training.csv") for name in ("run", "one"))
    for a, b in zip(two, one, strict=True):
        for name in set(a) - set(TIMES) - {"straight_through_gain", "straight_through_gain_median"}:
            assert a[name] == pytest.approx(b[name], rel=2e-3, abs=2e-4), name
    results = json.loads((tmp_path / "run" / "final" / "results.json").read_text())
    assert results["processes"] == 2 and results["validation"][-1]["pictures"] == 2
    more = ("max_steps=500", "--allow-change", "max_steps", "engine.micro_batch_size")
    stopped = launch(recipe, *overrides, *more, processes=2)
    kill_when(stopped, lambda: len(read_csv(tmp_path / "run" / "training.csv")) > 3, signal.SIGTERM)
    output, _ = stopped.communicate(timeout=120)
    assert newest_checkpoint(tmp_path / "run")[1] > 6, output.decode()[-2000:]


def test_another_recipe_is_refused_unless_the_change_is_named(recipe: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(recipe), "max_steps=2", "validation.every=100"]
    main(arguments)
    forget_processes()
    with pytest.raises(
        ValueError, match=r"learning_rate was 0\.001, is 0\.002.*--allow-change optimizer\.learning_rate"
    ):
        main([*arguments, "optimizer.learning_rate=2e-3"])
    forget_processes()
    main([*arguments, "optimizer.learning_rate=2e-3", "--allow-change", "optimizer.learning_rate"])


def test_what_is_not_finite_stops_the_run_before_the_step(recipe: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(recipe), "discriminator.weight=0", "optimizer.learning_rate=1e30"]
    with pytest.raises(FloatingPointError, match="is not finite at step 1, which was not taken; its pictures are"):
        main([*arguments, "optimizer.warmup_steps=0", "optimizer.max_grad_norm=1e30", "report.log_every=12"])
    (dump,) = (tmp_path / "run").glob("not-finite-*.json")
    listed = json.loads(dump.read_text())
    assert listed["step"] == 1 and len(listed["pictures"]) == 4 and all("@" in name for name in listed["pictures"])
    assert newest_checkpoint(tmp_path / "run")[0] is None and not (tmp_path / "run" / "final").exists()


def test_broken_pictures_are_counted_and_too_many_stop_the_run(recipe: Path, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for number, file in enumerate(sorted((corpus / "images").iterdir())):
        for split in ("train", "validation"):
            (folder / split).mkdir(parents=True, exist_ok=True)
            (folder / split / file.name).write_bytes(file.read_bytes()[: 200 if number == 2 else None])
    arguments = ["--config", str(recipe), "data.kind=folder", f"data.path={folder}", "max_steps=4"]
    main([*arguments, "data.crop=resized"])
    run = tmp_path / "run"
    assert json.loads((run / "final" / "results.json").read_text())["broken_pictures"] == 1
    assert len((run / "broken.jsonl").read_text().splitlines()) == 1
    for number in range(12):
        (folder / "train" / f"broken-{number}.png").write_bytes(b"no picture")
    forget_processes()
    with pytest.raises(ValueError, match="unreadable images among .* samples"):
        main([*arguments, "data.max_broken=0.1", "max_steps=20", f"output_dir={tmp_path / 'other'}"])


def shards(corpus: Path, folder: Path) -> None:
    """The corpus as parquet, six pictures to train on and two to validate."""
    files = sorted((corpus / "images").iterdir())
    for split, some in (("train", files[:6]), ("validation", files[6:])):
        rows = {"image": [{"bytes": file.read_bytes(), "path": file.name} for file in some]}
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def test_a_package_that_comes_again_is_told_of_and_validation_stays(recipe: Path, tmp_path: Path) -> None:
    main(["--config", str(recipe), "max_steps=2", "discriminator.weight=0", "data.repeat={photographs: 2}"])
    results = json.loads((tmp_path / "run" / "final" / "results.json").read_text())
    assert results["data"]["repeat"] == {"photographs": 2} and results["data"]["packages"] == {"photographs": 6}
    assert [row["pictures"] for row in results["validation"]] == [2]
    assert "photographs (6, each 2 times)" in (tmp_path / "run" / "final" / "README.md").read_text()


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_trains_on_parquet(streaming: str, recipe: Path, corpus: Path, tmp_path: Path) -> None:
    shards(corpus, tmp_path / "shards")
    arguments = ["data.kind=parquet", f"data.path={tmp_path / 'shards'}", f"data.streaming={streaming}", "max_steps=3"]
    main(["--config", str(recipe), *arguments, "discriminator.weight=0"])
    assert read_csv(tmp_path / "run" / "training.csv")[-1]["step"] == 3


@pytest.mark.slow
def test_the_tiny_recipe_with_everything_on(corpus: Path, tmp_path: Path) -> None:
    recipe = ROOT / "training" / "recipes" / "tiny_cpu.yaml"
    changes = (
        "max_steps=6",
        "discriminator.start=1",
        "discriminator.warmup=1",
        "discriminator.ramp=1",
        "batch_size=4",
    )
    small = ("validation.every=3", "validation.pictures=3", "report.log_every=1", "quantizer.init_pictures=8")
    main(["--config", str(recipe), f"data.path={corpus}", f"output_dir={tmp_path / 'run'}", *changes, *small])
    last = read_csv(tmp_path / "run" / "validation.csv")[-1]
    assert last["perceptual"] > 0 and last["frechet"] > 0 and last["pictures"] == 2
    protocol = json.loads((tmp_path / "run" / "final" / "results.json").read_text())["protocol"]
    assert protocol["frechet"]["network"] == "efficientnet-lite0" and len(protocol["frechet"]["weights_sha256"]) == 64
    log = read_csv(tmp_path / "run" / "training.csv")
    assert log[-1]["perceptual_loss"] > 0 and log[-1]["gan_weight"] > 0
    assert LGQTokenizer.from_pretrained(tmp_path / "run" / "final").config.codebook_size == 512


def test_a_run_goes_on_from_what_another_published(recipe: Path, tmp_path: Path) -> None:
    main(["--config", str(recipe)])
    forget_processes()
    first = tmp_path / "run" / "final"
    more = ("quantizer.init_method=keep", "optimizer.learning_rate=1e-12", "discriminator.learning_rate=1e-12")
    arguments = ["--config", str(recipe), f"start_from={first}", f"output_dir={tmp_path / 'more'}", "max_steps=5"]
    main([*arguments, *more, "optimizer.ema_decay=0", "quantizer.learning_rate_scale=0"])
    for name, parts in (("model", ("encoder.", "quantizer.centers")), ("discriminator", ("layers.0.bias",))):
        a, b = (load_file(folder / f"{name}.safetensors") for folder in (first, tmp_path / "more" / "final"))
        chosen = [key for key in a if key.startswith(parts)]
        assert chosen
        for key in chosen:
            torch.testing.assert_close(a[key], b[key], rtol=1e-6, atol=1e-9)


def test_a_decoder_learns_alone_and_goes_on(recipe: Path, tmp_path: Path) -> None:
    """Deeper than before, stopped and resumed: each picture keeps its tokens."""
    first = tmp_path / "first"
    source = LGQModel(read_recipe(recipe, []).config()).eval()
    source.save_pretrained(first)
    arguments = ["--config", str(recipe), f"start_from={first}", "train_only=decoder", "quantizer.init_method=keep"]
    arguments += ["model.decoder_num_res_blocks=[1, 1, 3]", "report.checkpoint_every=3"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    main([*arguments, f"output_dir={whole}"])
    forget_processes()
    main(arguments)
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoint-00000012")
    forget_processes()
    main(arguments)
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    ends = [LGQTokenizer.from_pretrained(folder / "final") for folder in (whole, run)]
    for end in ends:
        assert torch.equal(end.encode(pictures).image_tokens, source.encode(pictures).image_tokens)
        assert end.quantizer.temperature == source.quantizer.temperature
    tensors = [end.state_dict() for end in ends]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert not torch.equal(ends[0].decoder.out.weight, source.decoder.out.weight)
    assert ends[0].decoder.stages[0][2].conv2.weight.any()  # type: ignore[index]
    results = json.loads((run / "final" / "results.json").read_text())
    assert results["recipe"]["train_only"] == "decoder"
    told = f"The decoder alone was trained, and tokens are those of `{tmp_path.name}/first`."
    assert told in (run / "final" / "README.md").read_text()
    ends[0].save_pretrained(first)
    LGQImageProcessor(pad_to_multiple_of=4).save_pretrained(first)
    changes = {
        "model.distance=cosine": "of start_from, and this model has others: give `model` the fields of its c",
        "model.channel_multiplier=[1, 2, 3]": "of start_from, and this model has others: give",
        "processor.image_mean=[0, 0, 0]": r"of start_from, whose processor has image_mean=.*0\.5.*, and this run's",
    }
    for change, message in changes.items():
        forget_processes()
        with pytest.raises(ValueError, match=f"train_only=decoder keeps the tokens {message}"):
            main([*arguments, f"output_dir={tmp_path / 'other'}", change])


def test_an_autoencoder_learns_without_its_codes_and_gets_them_in_the_next_run(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped and resumed, and then quantized by another recipe."""
    monkeypatch.setattr(TokenizerRun, "_place_codebook", None)  # nothing of it is called
    projected = ["model.code_dim=4", "discriminator.weight=0", "model.latent_group_norm=false"]
    common = ["--config", str(recipe), *projected, "report.checkpoint_every=3"]
    alone = [*common, "train_only=autoencoder", "quantizer.align_latents=true", "quantizer.least_energy=0.05"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    main([*alone, f"output_dir={whole}"])
    assert capsys.readouterr().out.count("of what changes the picture, the latents' axes had ") == 1
    forget_processes()
    main(alone)
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoint-00000012")
    forget_processes()
    main(alone)
    assert_same_run(whole, run, "model.safetensors")
    model = LGQTokenizer.from_pretrained(run / "final")
    steps = [load_file(run / f"checkpoint-{step:08d}" / "model.safetensors") for step in (9, 12)]
    assert torch.equal(*(weights["quantizer.centers"] for weights in steps))
    assert torch.equal(steps[0]["quantizer.centers"], model.quantizer.centers)
    results = json.loads((run / "final" / "results.json").read_text())
    assert not {"codebook_usage", "perplexity", "tokens"} & results["validation"][-1].keys()
    assert not {"codebook_usage", "dead_codes", "embedding_loss"} & read_csv(run / "training.csv")[-1].keys()
    card = (run / "final" / "README.md").read_text()
    kept = (run / "best" / "README.md").read_text()
    assert all("its tokens mean nothing before another run" in text for text in (card, kept))
    assert "codes used" not in card
    forget_processes()
    monkeypatch.undo()
    capsys.readouterr()
    quantized = tmp_path / "quantized"
    more = [f"start_from={run / 'final'}", f"output_dir={quantized}", "optimizer.learning_rate=1e-12"]
    main([*common, *more, "quantizer.align_latents=true", "quantizer.learning_rate_scale=0", "optimizer.ema_decay=0"])
    assert "the latents' axes had " in capsys.readouterr().out
    end = LGQTokenizer.from_pretrained(quantized / "final")
    pictures = torch.rand(4, 3, 32, 32) * 2 - 1
    latents = [one.latents(pictures) for one in (model, end)]
    decoded = [one.decode_codes(z).decoded_pixel_values for one, z in zip((model, end), latents, strict=True)]
    torch.testing.assert_close(*decoded, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(*latents, rtol=0.1, atol=0.1)
    error = (end.quantizer(latents[1]).codes - latents[1]).square().mean()
    assert error < 0.2 * latents[1].var()  # the codes lie where the latents are


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ["quantizer.align_latents=true", "model.distance=cosine"],
            "quantizer.align_latents is for one codebook of vectors with model.code_dim",
        ),
        (
            ["quantizer.align_latents=true", "quantizer.init_method=keep", "start_from=a/folder"],
            "quantizer.align_latents changes the latents, so codes cannot stay: set another init_method",
        ),
        (
            [
                "train_only=decoder",
                "quantizer.align_latents=true",
                "quantizer.init_method=keep",
                "start_from=a/folder",
            ],
            "train_only=decoder keeps tokens, and quantizer.align_latents changes them",
        ),
        (
            ["quantizer.least_energy=0.1"],
            "quantizer.least_energy must lie in .0, 1. and needs quantizer.align_latents",
        ),
        (
            ["train_only=autoencoder", "model.distance=cosine"],
            "train_only=autoencoder is for one codebook of vectors with model.code_dim",
        ),
        (
            ["train_only=autoencoder", "report.push_to_hub=org/name", "report.license=mit"],
            "train_only=autoencoder makes no tokenizer",
        ),
    ],
)
def test_what_does_not_go_with_latents_that_change(recipe: Path, change: list[str], message: str) -> None:
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        main(["--config", str(recipe), *change])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_stream_in_half_precision_goes_on_as_if_it_had_not_stopped(
    precision: str, recipe: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards(corpus, tmp_path / "shards")
    source = ["data.kind=parquet", f"data.path={tmp_path / 'shards'}", "data.streaming=true", "max_steps=9"]
    arguments = ["--config", str(recipe), *source, f"engine.mixed_precision={precision}", "report.log_every=1"]
    arguments.append("image_size=16")  # convolutions in fp16 are slow on a CPU
    main([*arguments, f"output_dir={tmp_path / 'whole'}"])
    forget_processes()
    with monkeypatch.context() as patched, pytest.raises(SystemExit, match="143"):
        stop_after(5, patched)
        main(arguments)
    assert newest_checkpoint(tmp_path / "run")[1] == 5
    forget_processes()
    main(arguments)
    assert_same_run(tmp_path / "whole", tmp_path / "run", *WEIGHTS)


def test_a_failure_is_not_hidden_by_sigterm(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(1, monkeypatch)
    monkeypatch.setattr("training.step.TrainingStep.failure", lambda step: 0)
    with pytest.raises(FloatingPointError, match="is not finite at step 0, which was not taken"):
        main(["--config", str(recipe)])
    assert newest_checkpoint(tmp_path / "run")[0] is None


def test_a_validation_that_fails_costs_no_work(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(validator: Any, model: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("training.validation.Validator.__call__", fail)
    with pytest.raises(MemoryError, match="no room"):
        main(["--config", str(recipe), "report.checkpoint_every=6"])
    assert newest_checkpoint(tmp_path / "run")[1] == 6


def test_lpips_from_weight_files(recipe: Path, tmp_path: Path) -> None:
    widths = [(0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256), (14, 256, 256)]
    widths += [(17, 256, 512), *((number, 512, 512) for number in (19, 21, 24, 26, 28))]
    weights = {f"features.{n}.weight": torch.randn(o, i, 3, 3) * (2 / (9 * i)) ** 0.5 for n, i, o in widths}
    torch.save(weights | {f"features.{n}.bias": torch.zeros(o) for n, _, o in widths}, tmp_path / "vgg16.pth")
    heads = {f"lin{n}.model.1.weight": torch.rand(1, c, 1, 1) for n, c in enumerate((64, 128, 256, 512, 512))}
    torch.save(heads, tmp_path / "heads.pth")
    files = [f"loss.vgg_weights={tmp_path / 'vgg16.pth'}", f"loss.lpips_heads={tmp_path / 'heads.pth'}"]
    lpips = ["loss.perceptual=lpips-vgg16", "validation.perceptual=lpips-vgg16", "validation.best=perceptual"]
    main(["--config", str(recipe), *files, *lpips, "max_steps=2", "discriminator.weight=0"])
    assert read_csv(tmp_path / "run" / "training.csv")[-1]["perceptual_loss"] > 0
    results = json.loads((tmp_path / "run" / "final" / "results.json").read_text())
    assert results["protocol"]["perceptual"]["network"] == "lpips-vgg16" and results["best"]["metric"] == "perceptual"


def test_a_collapsing_codebook_is_told_of(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def collapse(run: TokenizerRun, model: LGQModel) -> None:
        model.quantizer.centers.fill_(100)
        model.quantizer.centers[:2] = torch.tensor([[0.0], [0.1]])

    monkeypatch.setattr(TokenizerRun, "_place_codebook", torch.no_grad()(collapse))
    main(["--config", str(recipe), "max_steps=2", "discriminator.weight=0", "report.log_every=1"])
    told = "".join(capsys.readouterr())
    assert "warning: the codebook is collapsing: 256 tokens used " in told and "see docs/training.md" in told


def test_a_damaged_checkpoint_and_other_pictures_are_refused(recipe: Path, corpus: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(recipe), "max_steps=4", "validation.every=100"]
    main(arguments)
    forget_processes()
    other = tmp_path / "corpus"
    shutil.copytree(corpus, other)
    lines = (other / "manifest.jsonl").read_text().splitlines(keepends=True)
    (other / "manifest.jsonl").write_text("".join(lines[1:]))
    changed = [f"data.path={other}", "--allow-change", "data.path"]
    with pytest.raises(ValueError, match="the run began with 6 training pictures, and there are 5"):
        main([*arguments, *changed])
    forget_processes()
    with pytest.raises(ValueError, match="the run began with 6 training pictures, and there are 12"):
        main([*arguments, "data.repeat={photographs: 2}", "--allow-change", "data.repeat", "data.path"])
    forget_processes()
    (tmp_path / "run" / "checkpoint-00000004" / "optimizer.bin").unlink()
    with pytest.raises(RuntimeError, match="checkpoint-00000004 cannot be loaded; remove it to go on from the one"):
        main(arguments)  # a change that was allowed and then failed is not the run's recipe
