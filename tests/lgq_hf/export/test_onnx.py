"""Exported programs give the model's tokens and pixels, for batches and sizes that they were not traced with."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lgq_hf import LGQImageProcessor, LGQModel, default_checkpoint
from lgq_hf.checkpoint.loading import load_checkpoint, weights_fingerprint
from lgq_hf.cli.main import main
from lgq_hf.export import onnx as exporting
from lgq_hf.export import static_model
from lgq_hf.export.onnx import (
    ExportError,
    check_output,
    check_parity,
    export_onnx,
    export_programs,
    export_pt2,
    to_onnx,
)
from lgq_hf.export.static_model import NO_TOKEN, StaticEncoder
from lgq_hf.tokenizer.quantizer_base import Quantizer

Build = Callable[..., Any]
FILES = {"preprocessor_config.json", "export.json"}


def processor_of(model: LGQModel) -> LGQImageProcessor:
    return LGQImageProcessor(pad_to_multiple_of=model.config.spatial_downsample_factor)


def onnx_session(path: Path) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    return lambda tensor: [torch.from_numpy(array) for array in session.run(None, {name: tensor.numpy()})]


@torch.no_grad()
def assert_onnx_is_the_model(folder: Path, model: LGQModel, sizes: list[tuple[int, int, int]]) -> None:
    (encode, decode) = (onnx_session(folder / f"{name}.onnx") for name in ("encoder", "decoder"))
    generator = torch.Generator().manual_seed(5)
    for batch, height, width in sizes:
        pixels = torch.rand(batch, 3, height, width, generator=generator) * 2 - 1
        (tokens,) = encode(pixels)
        assert tokens.dtype == torch.int64
        assert torch.equal(tokens, model.encode(pixels).image_tokens)
        decoded = model.decode(tokens).decoded_pixel_values
        assert float((decode(tokens)[0] - decoded).abs().max()) <= 1e-4
    for outside in (NO_TOKEN, model.config.codebook_size, -model.config.codebook_size, 2**40):
        with pytest.raises(Exception, match="out of data bounds"):
            decode(tokens.index_fill(1, torch.tensor([1]), outside))
    pixels[0, 1, 2, 3] = torch.nan
    (tokens,) = encode(pixels)
    assert (tokens[0] == NO_TOKEN).all() and (tokens[1:] >= 0).all()


def assert_files_are_described(folder: Path) -> None:
    import onnx

    facts = json.loads((folder / "export.json").read_text())
    assert {file.name for file in folder.iterdir()} == FILES | {"encoder.onnx", "decoder.onnx"}
    assert (facts["format"], facts["opset"]) == ("onnx", 18)
    assert set(facts["packages"]) == {"onnx", "onnxscript", "onnxruntime"}
    for name in ("encoder", "decoder"):
        graph = onnx.load(folder / f"{name}.onnx")
        onnx.checker.check_model(graph, full_check=True)
        assert {opset.domain: opset.version for opset in graph.opset_import} == {"": 18}
        for value in (*graph.graph.input, *graph.graph.output):
            shape = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            assert shape == facts[name][value.name]["shape"]
        assert str(Path(exporting.__file__).parent).encode() not in (folder / f"{name}.onnx").read_bytes()


@pytest.mark.slow
def test_the_built_in_checkpoint_in_onnx_runtime(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "a" / "onnx"
    assert main(["export", "-o", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"{folder}: encoder.onnx and decoder.onnx of lgq-tiny\n")
    checkpoint = load_checkpoint(None, "cpu")
    assert_onnx_is_the_model(folder, checkpoint.model, [(1, 64, 64), (3, 64, 64), (3, 48, 80), (2, 16, 24)])
    assert_files_are_described(folder)
    facts = json.loads((folder / "export.json").read_text())
    assert facts["fingerprint"] == weights_fingerprint(default_checkpoint())
    assert facts["multiple_of"] == 8
    assert (facts["check"]["tokens"], facts["check"]["differ"]) == (66, 0)
    assert LGQImageProcessor.from_pretrained(folder).to_dict() == checkpoint.processor.to_dict()


# the other backbone, with norms that follow the codes, and rounding in place of a search
@pytest.mark.slow
def test_a_model_of_the_vqgan_family_in_onnx_runtime(build_model: Build, tmp_path: Path) -> None:
    rounding: dict[str, Any] = {"quantizer": "fsq", "levels": [4, 4, 2], "codebook_size": 32, "code_dim": 3}
    model = build_model("magvit2", channel_multiplier=[1, 2], num_mid_blocks=1, latent_channels=3, **rounding)
    export_onnx(model, processor_of(model), tmp_path / "onnx")
    assert_onnx_is_the_model(tmp_path / "onnx", model, [(1, 8, 10), (2, 20, 6)])
    assert_files_are_described(tmp_path / "onnx")


class SearchesAndLookups(torch.nn.Module):
    """Tokens and codes of several quantizers at once, as exporting takes seconds whatever the size."""

    def __init__(self, quantizers: list[Quantizer]) -> None:
        super().__init__()
        self.dims = [quantizer.code_dim for quantizer in quantizers]
        self.searches = torch.nn.ModuleList(static_model._search(quantizer) for quantizer in quantizers)
        self.lookups = torch.nn.ModuleList(static_model._Lookup(quantizer) for quantizer in quantizers)

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tokens = [search(rows[:, :dim]) for search, dim in zip(self.searches, self.dims, strict=True)]
        return (*tokens, *(lookup(each) for lookup, each in zip(self.lookups, tokens, strict=True)))


@pytest.mark.slow
@torch.no_grad()
def test_every_search_is_exact_in_onnx_runtime(build_model: Build, tmp_path: Path) -> None:
    names = ["l2_widths_f8", "vqgan_vq_cosine", "product", "wetok"]
    quantizers = [build_model(name).quantizer for name in names]
    for quantizer in (quantizers[0], quantizers[2]):  # codes that are the same, and neighbours
        quantizer.centers[1] = quantizer.centers[0]
        quantizer.centers[2] = torch.nextafter(quantizer.centers[0], torch.tensor(torch.inf))
    rows = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    table = quantizers[0].centers
    rows = torch.cat([rows, table, (table + table.roll(1, 0)) / 2, torch.zeros(1, 8)])
    axes = {0: torch.export.Dim("rows")}
    program = torch.export.export(SearchesAndLookups(quantizers), (rows[:7],), dynamic_shapes=(axes,))
    outputs = [f"{what}_{name}" for what in ("tokens", "codes") for name in names]
    to_onnx(program, outputs).save(tmp_path / "search.onnx")
    found = dict(zip(outputs, onnx_session(tmp_path / "search.onnx")(rows), strict=True))
    for name, quantizer in zip(names, quantizers, strict=True):
        tokens = quantizer.assign_rows(rows[:, : quantizer.code_dim])
        assert torch.equal(found[f"tokens_{name}"], tokens), name
        assert torch.equal(found[f"codes_{name}"], quantizer.lookup_rows(tokens)), name


@pytest.mark.slow
@torch.no_grad()
def test_group_norms_of_large_pictures_keep_their_digits(tmp_path: Path) -> None:
    norm = torch.nn.GroupNorm(2, 4)
    norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
    norm.bias.copy_(torch.arange(4.0))
    pictures = torch.randn(1, 4, 640, 640, generator=torch.Generator().manual_seed(0)) + 3
    axes = {2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    program = torch.export.export(norm, (torch.zeros(1, 4, 5, 7),), dynamic_shapes=(axes,))
    to_onnx(program, ["normed"]).save(tmp_path / "norm.onnx")
    (normed,) = onnx_session(tmp_path / "norm.onnx")(pictures)
    exact = norm.double()(pictures.double())
    assert float((normed - exact).abs().max()) < 5e-6  # 5e-5 where numbers are added up one after another


@torch.no_grad()
def test_programs_of_torch(build_model: Build, make_pixels: Build) -> None:
    model = build_model("vqgan_vq_cosine", channel_multiplier=[1, 2], attention_levels=[1])
    encoder, decoder = export_programs(model)
    operators = {str(node.target) for p in (encoder, decoder) for node in p.graph.nodes if node.op == "call_function"}
    assert all(name.startswith(("aten.", "<built-in function", "sym")) for name in operators), operators
    assert not any(name.startswith("network.decoder") for name in encoder.state_dict)
    encode, decode = encoder.module(), decoder.module()
    for batch, grid in ((1, (2, 7)), (3, (6, 4))):
        pixels = make_pixels(model, batch=batch, grid=grid)
        tokens = encode(pixels)
        assert torch.equal(tokens, model.encode(pixels).image_tokens)
        assert torch.equal(decode(tokens), model.decode(tokens).decoded_pixel_values)
    for outside in (-1, model.config.codebook_size):
        with pytest.raises(RuntimeError, match="image_tokens must lie in"):
            decode(tokens.index_fill(1, torch.tensor([1]), outside))
    for size in ((2, 8), (8, 7)):  # a grid with one row, and no multiple
        with pytest.raises(AssertionError, match="pixel_values"):
            encode(torch.zeros(1, 3, *size))


def test_what_cannot_be_exported_is_refused(
    build_model: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model("fsq")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for taken in ("full", "file"):
        with pytest.raises(ValueError, match=f"{taken} exists and is not an empty folder"):
            export_pt2(model, processor_of(model), tmp_path / taken)
    with pytest.raises(ValueError, match="pads to multiples of 2, the model needs multiples of 4"):
        export_onnx(model, LGQImageProcessor(pad_to_multiple_of=2), tmp_path / "a")
    for other, message in (
        (build_model("fsq").to(torch.bfloat16), "torch.bfloat16"),
        (build_model("fsq").train(), "evaluation mode"),
        (build_model("fsq").to("meta"), "meta"),
    ):
        with pytest.raises(ValueError, match=message):
            export_programs(other)
    with pytest.raises(TypeError, match="torch.nn.modules.linear.Linear"):
        export_programs(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match=r"onnxscript, .* '\.\[export\]'"):
        export_onnx(model, processor_of(model), tmp_path / "a")
    assert {path.name for path in tmp_path.rglob("*")} == {"full", "mine.txt", "file"}
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty")
    check_output(tmp_path / "new" / "deeper")
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ValueError, match="is the current directory"):
        check_output(Path())


def test_what_fails_the_check_is_not_written(
    build_model: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(StaticEncoder):
        def forward(self, pixel_values: torch.Tensor) -> Any:
            return super().forward(pixel_values) ^ 1

    model = build_model("fsq", channel_multiplier=[1, 1], bottleneck_attention=False)
    monkeypatch.setattr(exporting, "StaticEncoder", Wrong)
    with pytest.raises(ExportError, match="encoder gives other tokens than the model .*: nothing was written"):
        export_pt2(model, processor_of(model), tmp_path / "a")
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_the_check_finds_every_difference(build_model: Build) -> None:
    model = build_model("sq_l2")

    def encode(pixels: torch.Tensor, shift: float = 0.0, token: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        latents = model.quantizer.to_rows(model.latents(pixels)) + shift
        tokens = model.quantizer.assign_rows(latents).reshape(len(pixels), pixels.shape[2] // 4, -1)
        tokens[-1, -1, -1] = (tokens[-1, -1, -1] + token) % 32
        return tokens, latents

    def decode(tokens: torch.Tensor, factor: float = 1.0, shift: float = 0.0) -> torch.Tensor:
        return model.decode(tokens).decoded_pixel_values * factor + shift

    result = check_parity(model, encode, decode)
    assert (result["tokens"], result["differ"], result["latents"], result["pixels"]) == (66, 0, 0.0, 0.0)
    with pytest.raises(ExportError, match=r"other tokens than the model \(1 of 6 differ"):
        check_parity(model, lambda pixels: encode(pixels, token=1), decode)
    for shift in (0.1, np.nan):
        with pytest.raises(ExportError, match="exported latents .* allowed is 0.0001: nothing was written"):
            check_parity(model, lambda pixels, shift=shift: encode(pixels, shift=shift), decode)
        with pytest.raises(ExportError, match="exported decoded pixels .* allowed is 0.0001"):
            check_parity(model, encode, lambda tokens, shift=shift: decode(tokens, shift=shift))
    for outside, taken in ((-1, lambda tokens: tokens % 32), (32, lambda tokens: tokens.clamp(max=31))):
        with pytest.raises(ExportError, match=f"exported decoder takes the token {outside}, which is none"):
            check_parity(model, encode, lambda tokens, taken=taken: decode(taken(tokens)))
