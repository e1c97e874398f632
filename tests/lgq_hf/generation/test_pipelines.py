"""What both pipelines promise."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from PIL import Image

from lgq_hf import LGQImageProcessor, LGQModel, LGQTokenizer
from lgq_hf.checkpoint.loading import find_checkpoint
from lgq_hf.generation import LGQAutoregressivePipeline, LGQMaskedPipeline, load_pipeline
from tests.lgq_hf.generation.pipelines import CODES, SIDE, small_pipeline, tokenizer

NAMES = {0: "cats", 1: "people", 2: "fruit"}
KINDS = {"masked": LGQMaskedPipeline, "autoregressive": LGQAutoregressivePipeline}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def pipe(kind: str) -> Any:
    """Of three classes, in float64: no two results then differ by rounding."""
    pipe = small_pipeline(kind, id2label=NAMES)
    pipe.transformer.double()
    with torch.no_grad():  # weights at their first values hardly tell one class from another
        for parameter in pipe.transformer.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    return pipe


def test_pictures_in_every_form(pipe: Any) -> None:
    made = {form: pipe([1, 2], generator=generator(0), output_type=form) for form in ("pil", "np", "pt", "token")}
    tokens = made["token"].images
    assert (
        tokens.shape == (2, SIDE, SIDE) and tokens.dtype == torch.int64 and 0 <= tokens.min() <= tokens.max() < CODES
    )
    assert all(torch.equal(one.image_tokens, tokens) for one in made.values())
    assert made["pt"].images.shape == (2, 3, 32, 32) and made["np"].images.shape == (2, 32, 32, 3)
    assert np.array_equal(made["pt"].images.permute(0, 2, 3, 1).numpy(), made["np"].images)
    for picture, array in zip(made["pil"].images, made["np"].images, strict=True):
        assert isinstance(picture, Image.Image) and np.array_equal(np.asarray(picture), np.round(array * 255))
    expected = pipe.image_processor.postprocess(pipe.vqvae.decode(tokens).decoded_pixel_values)
    assert np.array_equal(np.asarray(expected[1]), np.asarray(made["pil"].images[1]))
    (alone,) = pipe([1, 2], generator=generator(0), output_type="token", return_dict=False)
    assert torch.equal(alone, tokens)


def test_a_picture_depends_on_its_class_and_generator_alone(pipe: Any) -> None:
    classes, seeds = [2, None, 0, 2, "people"], [7, 8, 9, 10, 7]
    options = {"guidance_scale": 1.7, "top_k": 20, "temperature": 1.2, "output_type": "token"}
    together = pipe(classes, generator=[generator(seed) for seed in seeds], **options).images
    for label, seed, tokens in zip(classes, seeds, together, strict=True):
        scale = 1.0 if label is None else 1.7
        alone = pipe(label, generator=generator(seed), **{**options, "guidance_scale": scale}).images
        assert torch.equal(alone[0], tokens)
    assert not torch.equal(together[0], together[3])  # another seed
    assert not torch.equal(together[0], together[4])  # another class
    again = pipe(classes, generator=[generator(seed) for seed in seeds], **options).images
    assert torch.equal(together, again)


def test_one_generator_serves_all_pictures_in_turn(pipe: Any) -> None:
    several = pipe(1, num_images_per_label=3, generator=generator(3), output_type="token").images
    alone = pipe(1, generator=generator(3), output_type="token").images
    assert several.shape[0] == 3 and torch.equal(several[:1], alone) and not torch.equal(several[0], several[1])
    torch.manual_seed(5)
    first = pipe(1, output_type="token").images
    torch.manual_seed(5)
    assert torch.equal(pipe(1, output_type="token").images, first)


def test_guidance_of_zero_is_no_class_and_of_one_the_class(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        scale: pipe([0, 2], guidance_scale=scale, generator=generator(1), output_type="token").images
        for scale in (0.0, 1e-9, 1.0, 1 + 1e-9, 3.0)
    }
    none = pipe([None, None], generator=generator(1), output_type="token").images
    assert torch.equal(made[0.0], none) and torch.equal(made[1e-9], none)
    assert torch.equal(made[1.0], made[1 + 1e-9])  # the one without, the other with a doubled batch
    assert not torch.equal(made[1.0], none) and not torch.equal(made[1.0], made[3.0])


@pytest.mark.parametrize("label", [3, -1, "dogs", [], 1.7, torch.tensor([1.0]), [True]])
def test_classes_that_there_are_not(pipe: Any, label: Any) -> None:
    named = re.escape(str(label)) if isinstance(label, int | str | float) else r"class_labels|1\.0|True"
    with pytest.raises((ValueError, TypeError), match=named):
        pipe(label)


def test_classes_in_every_form(pipe: Any) -> None:
    for labels in (2, np.int64(2), "fruit", [2], (2,), np.array([2]), torch.tensor([2]), torch.tensor(2)):
        assert pipe.class_numbers(labels) == [2]
    assert pipe.class_numbers(range(3), 2) == [0, 0, 1, 1, 2, 2] and pipe.class_numbers(["cats", None]) == [0, 3]


@pytest.mark.parametrize("name", ["transformer", "vqvae"])
def test_networks_in_training_mode_are_refused(pipe: Any, name: str) -> None:
    getattr(pipe, name).train()
    with pytest.raises(ValueError, match=f"{name} is in training mode"):
        pipe(0)


def test_a_generator_without_classes(kind: str) -> None:
    pipe = small_pipeline(kind, num_classes=0)
    assert pipe(output_type="token").images.shape == (1, SIDE, SIDE)
    for label in (0, "cats"):
        with pytest.raises(ValueError, match=str(label)):
            pipe(label)


_OTHERS = '{"_class_name": "StableDiffusionPipeline"}'
_GRID = torch.zeros(SIDE, SIDE, dtype=torch.int64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_type": "latent"}, "output_type.*'latent'"),
        ({"temperature": float("nan")}, "temperature.*nan"),
        ({"top_k": 0}, "top_k.*0"),
        ({"top_p": 0.0}, "top_p.*0.0"),
        ({"guidance_scale": -1.0}, "guidance_scale.*-1.0"),
        ({"class_labels": None, "guidance_scale": 2.0}, "guidance_scale=2.0"),
        ({"num_images_per_label": 0}, "num_images_per_label.*0"),
        ({"generator": [generator(0)] * 2}, "1 pictures, got 2"),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, "'latents'"),
        ({"image_tokens": _GRID[None, :4, :4]}, r"\(1, 4, 4\)"),
        ({"image_tokens": _GRID + CODES}, "32 to 32"),
        ({"image_tokens": _GRID.repeat(3, 1, 1)}, "got 3"),
        ({"image": Image.new("RGB", (32, 24))}, "24 x 32"),
        ({"image": Image.new("RGB", (32, 32)), "image_tokens": _GRID}, "image and image_tokens"),
    ],
)
def test_options_out_of_range(pipe: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(**{"class_labels": 1, **options})


def test_saved_loaded_and_found_again(kind: str, tmp_path: Path) -> None:
    pipe = small_pipeline(kind, id2label=NAMES)
    pipe.save_pretrained(tmp_path)
    expected = pipe("fruit", generator=generator(0), guidance_scale=2.0)
    for loaded in (KINDS[kind].from_pretrained(tmp_path), load_pipeline(tmp_path), load_pipeline(str(tmp_path))):
        assert type(loaded) is KINDS[kind] and loaded.id2label == NAMES and loaded.grid == (SIDE, SIDE)
        made = loaded("fruit", generator=generator(0), guidance_scale=2.0)
        assert torch.equal(made.image_tokens, expected.image_tokens)
        assert np.array_equal(np.asarray(made.images[0]), np.asarray(expected.images[0]))
    other = next(cls for cls in KINDS.values() if cls is not KINDS[kind])
    with pytest.raises(ValueError, match=f"{KINDS[kind].__name__}.*{other.__name__}"):
        other.from_pretrained(tmp_path)


def test_the_tokenizer_in_a_pipeline_is_a_checkpoint(kind: str, tmp_path: Path) -> None:
    pipe = small_pipeline(kind)
    pipe.save_pretrained(tmp_path)
    model = LGQTokenizer.from_pretrained(tmp_path, subfolder="vqvae")
    assert isinstance(model, LGQModel)
    assert LGQImageProcessor.from_pretrained(tmp_path, subfolder="vqvae").pad_to_multiple_of == 4
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), pipe.vqvae.parameters(), strict=True))
    assert find_checkpoint(str(tmp_path / "vqvae")).weights


def test_what_is_no_pipeline(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (KINDS[kind].from_pretrained, load_pipeline):
        with pytest.raises(ValueError, match="model_index.json"):
            load(tmp_path)
        with pytest.raises(ValueError, match="/nothing"):
            load(tmp_path / "nothing")
        with pytest.raises(ValueError, match="revision"):
            load(tmp_path, revision="main")
        with pytest.raises(ValueError, match="'runs/typo'"):
            load("runs/typo", cache_dir=tmp_path)
    for content, message in (("{}", "holds a None"), ("{", "Expecting"), (_OTHERS, "StableDiffusion")):
        (tmp_path / "model_index.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            load_pipeline(tmp_path)


def rebuilt(pipe: Any, **changes: Any) -> Any:
    parts = {**pipe.components, **pipe.parameters, **changes}
    return type(pipe)(**parts)


def test_the_tokenizer_of_other_tokens_is_refused(kind: str, tmp_path: Path) -> None:
    pipe = small_pipeline(kind)
    pipe.vqvae.save_pretrained(tmp_path / "tokenizer")
    pipe.image_processor.save_pretrained(tmp_path / "tokenizer")
    reference = find_checkpoint(str(tmp_path / "tokenizer"))
    hashes = {"weights_sha256": reference.weights, "codebook_sha256": reference.codebook}
    made_by = {"name": "org/tiny", "codebook_size": CODES, **hashes}
    rebuilt(pipe, tokens_made_by=made_by).save_pretrained(tmp_path / "pipeline")
    for dtype in (None, torch.bfloat16):  # the codebook keeps its precision
        loaded = load_pipeline(tmp_path / "pipeline", dtype=dtype)
        assert loaded.config.tokens_made_by == made_by
    finetuned = tokenizer()
    with torch.no_grad():
        finetuned.decoder.out.bias.add_(1)
    rebuilt(pipe, tokens_made_by=made_by, vqvae=finetuned)  # tokens mean what they meant
    with torch.no_grad():
        finetuned.quantizer.centers[3].add_(1)
    with pytest.raises(ValueError, match="'org/tiny'"):
        rebuilt(pipe, tokens_made_by=made_by, vqvae=finetuned)
    finetuned.save_pretrained(tmp_path / "pipeline" / "vqvae")
    with pytest.raises(ValueError, match="'org/tiny'"):
        load_pipeline(tmp_path / "pipeline")


def test_parts_that_do_not_belong_together(kind: str, build_model: Any) -> None:
    pipe = small_pipeline(kind)
    for parts, message in (
        ({"vqvae": build_model("per_channel", codebook_size=CODES)}, "one token per position, got 8"),
        ({"id2label": {3: "dogs"}}, r"\[3\]"),
        ({"vqvae": build_model("sq_l2", codebook_size=64)}, "64"),
        ({"grid_height": 5}, "grid_height=5|5 x 8"),
    ):
        with pytest.raises(ValueError, match=message):
            rebuilt(pipe, **parts)


def test_half_precision(kind: str, tmp_path: Path) -> None:
    small_pipeline(kind).save_pretrained(tmp_path)
    pipe = load_pipeline(tmp_path, dtype=torch.bfloat16)
    assert pipe.transformer.dtype == torch.bfloat16 and pipe.vqvae.dtype == torch.bfloat16
    assert pipe.vqvae.quantizer.centers.dtype == torch.float32
    made = pipe([0, 1], guidance_scale=2.0, generator=generator(0), output_type="pt").images
    assert made.dtype == torch.float32 and made.isfinite().all()
    cast = load_pipeline(tmp_path).to(torch.bfloat16)
    assert cast.vqvae.quantizer.centers.dtype == torch.float32
    again = cast([0, 1], guidance_scale=2.0, generator=generator(0), output_type="pt").images
    assert torch.equal(made, again)


@pytest.mark.parametrize(("temperature", "value"), [(0.0, float("inf")), (1.0, float("nan"))])
def test_logits_that_are_not_finite_make_no_picture(pipe: Any, temperature: float, value: float) -> None:
    with torch.no_grad():
        [*pipe.transformer.parameters()][-1].view(-1)[0] = value
    with pytest.raises(FloatingPointError, match="torch.float64"):
        pipe(0, temperature=temperature, generator=generator(0), output_type="token")


class Recorder(ModelHook):
    """What accelerate's offloading puts on a module: it must be asked before anything of the module is used."""

    def __init__(self) -> None:
        self.calls = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.calls += 1
        return args, kwargs


def test_hooks_of_offloading_are_called(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pipe.model_cpu_offload_seq == "transformer->vqvae"
    hooks = {name: Recorder() for name in ("transformer", "vqvae")}
    for name, hook in hooks.items():
        add_hook_to_module(getattr(pipe, name), hook)
    pipe(1, generator=generator(0))
    assert hooks["transformer"].calls > 0 and hooks["vqvae"].calls > 0
    before = hooks["vqvae"].calls
    pipe.encode_images(Image.new("RGB", (32, 32)))
    assert hooks["vqvae"].calls > before
    released: list[bool] = []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: released.append(True))
    pipe(1)
    assert released == [True]


def test_weights_may_be_elsewhere_until_they_are_used(pipe: Any) -> None:
    """What `enable_sequential_cpu_offload` does, with the CPU in place of the accelerator."""
    expected = pipe([0, 1], generator=generator(0), guidance_scale=2.0, output_type="pt").images
    for name in ("transformer", "vqvae"):
        cpu_offload(getattr(pipe, name), torch.device("cpu"), offload_buffers=True)
    assert {parameter.device.type for parameter in pipe.transformer.parameters()} == {"meta"}
    made = pipe([0, 1], generator=generator(0), guidance_scale=2.0, output_type="pt").images
    assert torch.equal(made, expected)


def test_a_callback_that_answers_wrongly(pipe: Any) -> None:
    with pytest.raises(ValueError, match=r"\(1, 8, 8\)"):
        pipe(0, callback_on_step_end=lambda *given: {"image_tokens": given[3]["image_tokens"].flatten(1)})
    with pytest.raises(ValueError, match="callback_on_step_end"):
        pipe(0, callback_on_step_end=lambda *given: {"image_tokens": given[3]["image_tokens"] * 0 + CODES})


def test_a_picture_is_taken_as_it_is_whatever_the_processor_would_do(pipe: Any) -> None:
    pipe.image_processor.do_resize, pipe.image_processor.size = True, {"shortest_edge": 64}
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    assert pipe.encode_images(picture).shape == (1, SIDE, SIDE)


def test_the_callback_sees_every_step_and_may_change_tokens(pipe: Any) -> None:
    seen: list[tuple[int, int, int]] = []

    def watch(given: Any, step: int, left: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert given is pipe and tensors["image_tokens"].shape == (2, SIDE, SIDE)
        seen.append((step, left, int((tensors["image_tokens"] == CODES).sum(dim=(1, 2)).max())))
        return {}

    pipe([0, 1], generator=generator(0), output_type="token", callback_on_step_end=watch)
    assert [step for step, _, _ in seen] == list(range(len(seen)))
    assert all(left == masked for _, left, masked in seen) and seen[-1][1] == 0
    assert [left for _, left, _ in seen] == sorted((left for _, left, _ in seen), reverse=True)

    def all_fives(given: Any, step: int, left: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tokens = tensors["image_tokens"]
        return {"image_tokens": tokens.masked_fill(tokens != CODES, 5)}

    made = pipe(0, output_type="token", callback_on_step_end=all_fives).images
    assert (made == 5).all()
    nothing = {"callback_on_step_end": lambda *given: assert_empty(given[3]), "callback_on_step_end_tensor_inputs": ()}
    pipe(0, output_type="token", **nothing)


def assert_empty(given: dict[str, Any]) -> None:
    assert given == {}


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "diffusers"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("pipeline_masked", "pipeline_autoregressive", "pipeline_base", "loading"):
        monkeypatch.delitem(sys.modules, f"lgq_hf.generation.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    import lgq_hf.generation

    for name in ("LGQMaskedPipeline", "load_pipeline"):
        with pytest.raises(ModuleNotFoundError, match=rf"{name} needs the package diffusers: .*\.\[gen"):
            getattr(lgq_hf.generation, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        lgq_hf.generation.nothing  # noqa: B018
