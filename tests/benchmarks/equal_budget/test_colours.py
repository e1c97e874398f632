import json
from pathlib import Path

import pytest
import torch

from benchmarks.equal_budget import colours
from benchmarks.equal_budget.carry_out import make_start, prepare
from benchmarks.equal_budget.collect import COLOURS, collect
from benchmarks.equal_budget.colours import AXES, REST, measure, measure_runs, split
from benchmarks.equal_budget.crops import cut
from benchmarks.equal_budget.runs import COMPARE, TUNE, Run
from benchmarks.equal_budget.scales import SCALES
from lgq_hf import LGQImageProcessor, LGQModel
from lgq_hf.images.sources import open_source
from lgq_hf.metrics.reconstruction import psnr
from tests.benchmarks.equal_budget.made_result import run as made_run
from tests.benchmarks.equal_budget.test_crops import make_corpus

SCALE = SCALES["quick"]


def test_parts_add_up_to_the_squared_error() -> None:
    originals, others = torch.randint(0, 256, (2, 5, 3, 8, 6), generator=torch.Generator().manual_seed(0)).byte()
    parts = split(originals, others)
    error = 10 ** (-psnr(originals.double() / 255, others.double() / 255) / 10)
    torch.testing.assert_close(torch.stack(list(parts.values())).sum(0), error)
    assert list(parts) == [*AXES, REST] and all((part > 0).all() for part in parts.values())


@pytest.mark.parametrize(
    ("shift", "axis"), [((5, 5, 5), "grey"), ((5, -10, 5), "green_magenta"), ((5, 0, -5), "red_blue")]
)
def test_a_wrong_colour_is_all_of_its_axis(shift: tuple[int, int, int], axis: str) -> None:
    originals = torch.randint(20, 230, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    others = originals + torch.tensor(shift).view(3, 1, 1)
    parts = split(originals.byte(), others.byte())
    expected = sum(value**2 for value in shift) / 3 / 255**2
    torch.testing.assert_close(parts.pop(axis), torch.full((2,), expected, dtype=torch.float64))
    assert all(part.abs().max() < 1e-12 for part in parts.values())


def test_runs_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(tmp_path / "corpus", {"train": 1, "validation": 1, "test": 2})
    counts = {"train": 1, "validation": 1, "test": 3}
    cut(corpus, tmp_path / "crops", size=SCALE.image_size, counts=counts, seed=0)
    make_start(SCALE, tmp_path, 0)
    start = tmp_path / "start-seed0"
    processor = LGQImageProcessor(pad_to_multiple_of=4)
    processor.save_pretrained(start)
    found = measure(start, tmp_path / "crops")
    source = open_source(str(tmp_path / "crops"), kind="parquet", split="test", image_column="image", id_column="id")
    batch = processor([source.read(index) for index in range(3)], return_tensors="pt")
    with torch.inference_mode():
        decoded = LGQModel.from_pretrained(start)(batch["pixel_values"]).decoded_pixel_values
    errors = torch.stack(processor.postprocess(decoded, output_type="pt")) - batch["pixel_values"].add(1).div(2)
    within = (errors - errors.mean((2, 3), keepdim=True)).square().mean((1, 2, 3))
    assert found["psnr_matched"] == pytest.approx(float(-10 * within.log10().mean()), abs=0.02)  # without 8 bits
    assert found["shares"].keys() == AXES.keys() and 0 < sum(found["shares"].values()) < 1

    runs = [
        Run(SCALE, TUNE, "fsq", 0, 16, 100),
        Run(SCALE, COMPARE, "fsq", 0, 16, 0),
        Run(SCALE, COMPARE, "fsq", 0, 16, 1),
    ]
    for run in runs:
        prepare(run, tmp_path)
        task = json.loads((tmp_path / run.name / "task.json").read_text())
        numbers = {**made_run(run.stage, "fsq", 20.0, 9.0, 12), **task}
        for name in ("curve", "validation", "codebook_counts", "colours"):
            del numbers[name]
        if run.seed == 1:
            numbers["failed"] = "loss is not finite"
        (tmp_path / run.name / "result.json").write_text(json.dumps(numbers))
    (tmp_path / runs[1].name / "final").symlink_to(start)
    monkeypatch.setattr(colours, "finished_runs", lambda scale, place: runs)
    assert measure_runs(SCALE, tmp_path) == 1 and measure_runs(SCALE, tmp_path) == 0
    assert (tmp_path / runs[1].name / COLOURS).is_file()
    monkeypatch.setattr("benchmarks.equal_budget.collect.finished_runs", lambda scale, place: runs)
    kept = json.loads(collect(SCALE, tmp_path, tmp_path).read_text())["runs"]
    assert [one.get("colours", {}).get("psnr_matched") for one in kept] == [
        None,
        pytest.approx(found["psnr_matched"], rel=1e-5),
        None,
    ]
