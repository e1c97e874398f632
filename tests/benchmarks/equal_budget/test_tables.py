import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import tables
from benchmarks.equal_budget import page
from benchmarks.equal_budget.comparison import clearly_best, judge, paired
from benchmarks.equal_budget.plots import draw
from benchmarks.equal_budget.table import TABLES, differences_table, quality_table, targets_table
from benchmarks.results_file import RESULTS
from tests.benchmarks.equal_budget.made_result import result, run


def _row(table: str, first: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {first} |")]
    return [text.strip() for text in line.strip("|").split("|")]


def test_paired_differences_by_hand() -> None:
    found = paired(result(), "lgq", "fsq", "psnr")  # 1.0, 0.8, 1.2
    assert found is not None and found.count == 3
    assert found.mean == pytest.approx(1.0) and found.std == pytest.approx(0.2)
    found = paired(result(), "lgq", "fsq", "frechet_distance", relative=True)  # -10, -8, -20 per cent
    assert found is not None and found.mean == pytest.approx(-38 / 3) and found.std == pytest.approx(6.42910)
    found = paired(result(), "lgq", "simvq", "psnr")  # the two seeds that both have: 0.5, 0.5
    assert found is not None and found.count == 2 and found.std == pytest.approx(0.0)
    assert paired(result(), "lgq", "lfq", "psnr") is None
    row = _row(differences_table(result()), "FSQ")
    assert row == ["FSQ", "3", "+1.00 ± 0.20", "-12.7 ± 6.4", "-12.7 ± 6.4", "-20.0 ± 0.0"]


def test_the_best_is_bold_only_where_it_is_clearly_so() -> None:
    assert clearly_best(result(), "psnr") == "lgq"
    assert _row(quality_table(result()), "LGQ")[3] == "**25.20 ± 0.20**"
    close = result()
    close["runs"] += [
        run("compare", "vq", psnr, 100.0, 900, seed=seed) for seed, psnr in enumerate((25.3, 24.9, 25.3))
    ]
    assert clearly_best(close, "psnr") is None  # differs by -0.3, 0.3, 0.1
    assert "**25" not in quality_table(close)
    single = result()
    single["runs"].append(run("compare", "bsq", 24.9, 100.0, 900))
    assert clearly_best(single, "psnr") is None  # 0.1 below at one seed, where others deviate by up to 0.2
    single["runs"][-1] = run("compare", "bsq", 26.0, 100.0, 900)
    assert clearly_best(single, "psnr") is None  # the best, of which one seed alone is known


def test_targets_are_asked_of_one_setting() -> None:
    judged = {one.label: one for one in judge(result())}
    best = judged["lambda_peak as tuned: lambda_usage 0.05"]
    assert best.values == pytest.approx((-12.0, -12.0, 50.0, 1.1, 0.6)) and best.met == 5
    tuned = judged["LGQ, tuned"]  # of all seeds that both have
    assert tuned.values == pytest.approx((-38 / 3, -9.0, 80.0, 1.0, 0.5)) and tuned.runs == 3
    assert tuned.shortfalls == pytest.approx((0, 0, 30.0, 0, 0)) and tuned.met == 4
    assert judged["LGQ, tuned, K = 256"].met == 1 and "codes begin by: random" not in judged
    assert "codes begin by: kmeans" in judged
    other = result()
    next(run for run in other["runs"] if run["name"] == "ablate-init_kmeans")["overrides"] = {"batch_size": 16}
    assert "codes begin by: kmeans" not in {one.label for one in judge(other)}  # more steps are another budget
    text = targets_table(result())
    assert text.startswith("All targets are met by one setting: lambda_peak as tuned: lambda_usage 0.05.")
    assert "| 80.00 (misses by 30.00) |" in text and "| **-12.67** |" in text


def test_tables_of_a_comparison_that_has_only_begun() -> None:
    begun = {**result(), "runs": [], "arms": []}
    for table in TABLES.values():
        assert table(begun)


def test_parts_of_a_page_are_rendered(tmp_path: Path) -> None:
    text = "a\n<!-- rendered: equal_budget:cpu:quality -->\nold\n<!-- end -->\nb\n"
    missing = tables.render(text, tmp_path)
    assert "\nNot measured yet: `python -m benchmarks.equal_budget cpu all`.\n" in missing
    (tmp_path / "equal_budget_cpu.json").write_text(json.dumps(result()))
    rendered = tables.render(text, tmp_path)
    assert rendered.startswith("a\n<!--") and rendered.endswith("<!-- end -->\nb\n") and "old" not in rendered
    assert quality_table(result()) in rendered and tables.render(rendered, tmp_path) == rendered
    assert "32 latent channels; 400,000 parameters" in page.part("cpu", "protocol", tmp_path)
    assert page.part("cpu", "provenance", tmp_path).startswith(
        "19 runs (2 failed) on a CPU, at commits `0123456789ab`;"
    )
    assert page.part("cpu", "rate", tmp_path) == "![rate and distortion](images/comparison_rate.png)"
    assert "equal_budget.geometry cpu`" in page.part("cpu", "geometry", tmp_path)
    with pytest.raises(
        ValueError, match="no part 'colour' of equal_budget, there are ablation, claims, codes, colours"
    ):
        page.part("cpu", "colour", tmp_path)
    with pytest.raises(ValueError, match="expected one '<!-- rendered: equal_budget:cpu:quality -->'"):
        page.render_equal_budget(text + text, tmp_path)


def test_docs_comparison_equals_the_numbers() -> None:
    text = page.PAGE.read_text()
    assert page.PAGE in tables.FILES and tables.render(text) == text
    for plot in page.PLOTS:
        if (RESULTS / "equal_budget_cpu.json").is_file():
            assert (page.IMAGES / page.file_of(plot, "cpu")).is_file()


@pytest.mark.slow
def test_plots_are_small_and_the_same_each_time(tmp_path: Path) -> None:
    one = result()
    paths = draw(one, tmp_path / "one")
    assert [path.name for path in paths] == ["comparison_rate.png", "comparison_usage.png", "comparison_curves.png"]
    for path, again in zip(paths, draw(one, tmp_path / "two"), strict=True):
        assert path.read_bytes() == again.read_bytes() and path.stat().st_size < 150_000
        assert Image.open(path).width > 800
    assert page.file_of("rate", "gpu") == "comparison_rate_gpu.png"
