import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import tables
from benchmarks.equal_budget import page
from benchmarks.equal_budget.comparison import TARGETS, Spread, clearly_best, judge, paired, spread
from benchmarks.equal_budget.plots import draw
from benchmarks.equal_budget.table import TABLES, differences_table, quality_table, targets_table, with_spread
from benchmarks.results_file import RESULTS
from tests.benchmarks.equal_budget.made_result import result, run


def _row(table: str, first: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {first} |")]
    return [text.strip() for text in line.strip("|").split("|")]


def test_spread_by_hand() -> None:
    assert spread([1.0, 2.0, 3.0]) == Spread(2.0, 1.0, 3) and spread([4.0]) == Spread(4.0, None, 1)
    assert spread([]) is None
    assert with_spread(Spread(2.0, 1.0, 3), 1) == "2.0 ± 1.0" and with_spread(Spread(4.0, None, 1), 2) == "4.00"


def test_means_and_deviations_over_seeds() -> None:
    row = _row(quality_table(result()), "FSQ")
    assert row[:4] == ["FSQ", "setting 2 of fsq", "3", "24.20 ± 0.20"]
    assert row[6] == "103.3 ± 5.8"  # of 100, 100, 110
    assert _row(quality_table(result()), "IBQ")[3] == "24.00"
    assert _row(quality_table(result()), "LFQ")[2:] == ["1, 1 failed", "", "", "", "", ""]


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


def test_no_setting_that_meets_all_is_said() -> None:
    one = result()
    one["runs"] = [run for run in one["runs"] if run["name"] != "tradeoff-usage_0.05"]
    text = targets_table(one)
    assert text.startswith(f"No setting meets all targets. The nearest is LGQ, tuned: it meets 4 of {len(TARGETS)}.")
    assert _row(text, "LGQ, tuned")[-1] == "4 of 5"


def test_claims_beside_what_was_measured() -> None:
    one = result()
    one["arms"].append({**one["arms"][-1], "name": "usage_0", "run": "tradeoff-usage_0"})
    one["arms"].append({**one["arms"][-1], "name": "usage_0_peak_0", "run": "none", "group": "lambda_peak 0"})
    one["runs"].append(run("tradeoff", "lgq", 24.1, 95.0, 250, name="tradeoff-usage_0"))
    rows = TABLES["claims"](one).splitlines()
    assert rows[0] == "|  | claimed | LGQ, tuned | lambda_usage 0 |"
    assert rows[2].endswith("against FSQ | -11.88 % | -12.7 ± 6.4 % | -5.0 % |")
    assert rows[3] == "| active codes against FSQ | -49.96 % | -20.0 ± 0.0 % | -75.0 % |"
    assert rows[5] == "| active codes against SimVQ | -49.45 % | -21.9 ± 0.0 % | -75.6 % |"


def test_the_other_tables() -> None:
    made = {name: table(result()) for name, table in TABLES.items()}
    assert _row(made["codes"], "LGQ")[1:3] == ["800 ± 0", "400 ± 0"] and "| 8,192 |" in made["codes"]
    assert "| FSQ | setting 2 of fsq | **25.00** | 0.6250 | 502 | 251 |" in made["tuning"]
    assert "| FSQ | setting 3 of fsq | failed: loss or gradient is not finite at step 7, which" in made["tuning"]
    assert _row(made["trend"], "FSQ")[1:7] == ["21.00", "160.0", "256", "24.00", "100.0", "1000"]
    assert _row(made["trend"], "FSQ")[7:] == ["", "", ""]
    assert "IBQ" in made["quality"] and "IBQ" not in made["trend"]  # which is run at one K
    assert "| codes begin by | random | 25.00 | base | 26.00 | base | 90.0 | base | 800 | 0.4000 |" in made["ablation"]
    assert (
        "| codes begin by | kmeans | 24.50 | -0.50 | 25.50 | -0.50 | 99.0 | +10.0 | 790 | 0.3950 |" in made["ablation"]
    )
    assert "| widths | learned | not run yet | " in made["ablation"]
    colours = [_row(made["colours"], name) for name in ("LGQ", "IBQ")]
    assert colours[0][1:] == ["25.00, 25.20, 25.40", "1%, 1%, 1%", "25%, 25%, 25%", "2%, 2%, 2%", "26.20 ± 0.20"]
    assert colours[1][1:] == ["24.00", "1%", "25%", "2%", "25.00"]
    without = result()
    for one in without["runs"]:
        one.pop("colours", None)
    text = TABLES["ablation"](without)
    assert "| codes begin by | kmeans | 24.50 | -0.50 |  |  | 99.0 | +10.0 | 790 | 0.3950 |" in text
    assert TABLES["colours"](without).startswith("Not measured yet")
    assert (
        "| lambda_peak as tuned | lambda_usage 0.5 | 24.00 | -1.00 | 25.00 | -1.00 | 95.0 | +5.6 | 1024 |"
        in made["tradeoff"]
    )


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
    assert page.PAGE in tables.rendered_files() and tables.render(text) == text
    for plot in page.PLOTS:
        if (RESULTS / "equal_budget_cpu.json").is_file():
            assert (page.IMAGES / page.file_of(plot, "cpu")).is_file()


def test_plots_are_small_and_the_same_each_time(tmp_path: Path) -> None:
    one = result()
    paths = draw(one, tmp_path / "one")
    assert [path.name for path in paths] == ["comparison_rate.png", "comparison_usage.png", "comparison_curves.png"]
    for path, again in zip(paths, draw(one, tmp_path / "two"), strict=True):
        assert path.read_bytes() == again.read_bytes() and path.stat().st_size < 150_000
        assert Image.open(path).width > 800
    assert page.file_of("rate", "gpu") == "comparison_rate_gpu.png"
