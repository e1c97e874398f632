import copy
from pathlib import Path
from typing import Any

import pytest

from benchmarks.equal_budget.ablations import ARMS, TRADEOFF
from benchmarks.equal_budget.methods import METHODS, SETTINGS, describe
from benchmarks.equal_budget.plan import NotTuned, arms_of, chosen_setting, named, runs_of
from benchmarks.equal_budget.runs import COMPARE, TREND, TUNE, Run, changed, identity
from benchmarks.equal_budget.scales import SCALES, TUNING_SEED, Scale

PLACE = Path("work")
# the fields of LGQConfig that a method may set
OF_QUANTIZER = {
    *("quantizer", "code_dim", "codebook_size", "levels", "distance", "straight_through", "commitment_weight"),
    *("lambda_peak", "lambda_usage", "codebook_update", "codebook_decay", "dead_code_threshold", "rotation_trick"),
    *("fsq_bound", "learn_projection", "entropy_weight", "entropy_temperature"),
}


def rest(run: Run) -> dict[str, Any]:
    """A run's recipe without what is the quantizer's, and without its folder."""
    values = copy.deepcopy(run.recipe(PLACE))
    for name in OF_QUANTIZER:
        values["model"].pop(name, None)
    for name in (
        "init_method",
        "learning_rate_scale",
        *(f"temperature_{part}" for part in ("start", "end", "schedule")),
    ):
        values["quantizer"].pop(name, None)
    del values["output_dir"]
    return values


@pytest.mark.parametrize(
    "scale", [SCALES["cpu"], pytest.param(SCALES["gpu"], marks=pytest.mark.slow)], ids=["cpu", "gpu"]
)
def test_methods_differ_in_nothing_but_the_quantizer(scale: Scale) -> None:
    for stage in (TUNE, COMPARE):
        runs = [
            Run(scale, stage, method, setting, codes, 0)
            for method in METHODS
            for codes in (scale.codes, *scale.trend)
            for setting in range(SETTINGS)
        ]
        first = rest(runs[0])
        for run in runs:
            found = rest(run)
            assert found["model"].pop("latent_group_norm", True) == METHODS[run.method].norm
            assert found == first, run.name
            whole = identity(run.recipe(PLACE))  # valid, as are the model's fields
            assert whole["model"]["codebook_size"] == run.codes // (4 if run.method == "lgq_quarter" else 1)
        assert first["max_steps"] == (scale.tuning_steps if stage == TUNE else scale.steps)


def test_methods_without_the_norm_differ_in_that_alone() -> None:
    bare = [method for method in METHODS.values() if not method.norm]
    names = ["lgq_bare", "vq_bare", "vq_ema_bare", "vq_rotation_bare", "fsq_bare", "simvq_bare", "lgq_quarter"]
    assert [method.name for method in bare] == names
    quarter = METHODS["lgq_bare"].overrides(1024, 3) | {"model.codebook_size": 256}
    assert bare.pop().overrides(1024, 3) == quarter
    for method in bare:
        whole = METHODS[method.name.removesuffix("_bare")]
        assert method.overrides(1024, 3) == {**whole.overrides(1024, 3), "model.latent_group_norm": False}
        assert method.seeds == whole.seeds


def test_every_method_has_as_many_settings_and_no_two_alike() -> None:
    for scale in SCALES.values():
        for method in METHODS.values():
            for codes in (scale.codes, *scale.trend):
                settings = [method.overrides(codes, setting) for setting in range(SETTINGS)]
                assert len(method.settings(codes)) == SETTINGS
                assert all(settings.count(one) == 1 for one in settings), method.name
                assert len({describe(setting) for setting in method.settings(codes)}) == SETTINGS


def test_tuning_has_a_seed_and_crops_of_its_own() -> None:
    runs = runs_of(SCALES["cpu"], TUNE, list(METHODS), lambda run: None)
    assert len(runs) == SETTINGS * len(METHODS) == len({run.name for run in runs})
    assert {run.seed for run in runs} == {TUNING_SEED}
    assert TUNING_SEED not in {seed for method in METHODS.values() for seed in range(method.seeds)}


def _found(scores: dict[str, float | None]) -> Any:
    def found(run: Run) -> dict[str, Any] | None:
        if run.name not in scores:
            return None
        score = scores[run.name]
        return {"failed": "diverged"} if score is None else {"metrics": {"psnr": score}}

    return found


def test_the_setting_with_the_highest_psnr_is_chosen() -> None:
    scale = SCALES["quick"]
    scores: dict[str, float | None] = {"tune-fsq-0": 20.0, "tune-fsq-1": None, "tune-fsq-2": 22.0, "tune-fsq-3": 22.0}
    assert chosen_setting(scale, "fsq", _found(scores)) == 2  # the first of equal ones
    runs = runs_of(scale, COMPARE, ["fsq"], _found(scores))
    assert [(run.setting, run.seed, run.codes) for run in runs] == [(2, 0, 16), (2, 1, 16)]
    runs = runs_of(scale, TREND, ["fsq"], _found(scores))
    assert [(run.setting, run.seed, run.codes) for run in runs] == [(2, 0, 64)]
    other = {name.replace("fsq", "ifsq"): score for name, score in scores.items()}
    assert runs_of(scale, TREND, ["ifsq"], _found(other)) == []  # of the main methods alone
    assert runs_of(scale, COMPARE, ["fsq"], _found(dict.fromkeys(scores))) == []  # all failed
    del scores["tune-fsq-1"]
    with pytest.raises(NotTuned, match="fsq is not tuned yet, tune-fsq-1 have no result: run the stage 'tune'"):
        runs_of(scale, COMPARE, ["fsq"], _found(scores))


@pytest.mark.parametrize(
    "scale", [SCALES["cpu"], pytest.param(SCALES["gpu"], marks=pytest.mark.slow)], ids=["cpu", "gpu"]
)
def test_arms_are_recipes_and_those_that_change_nothing_are_the_base(scale: Scale) -> None:
    for stage, arms in (("ablate", ARMS), ("tradeoff", TRADEOFF)):
        assert len({arm.name for arm in arms}) == len(arms)
        for setting in (0, SETTINGS - 1):
            pairs = arms_of(scale, stage, setting)
            names = [run.name for _, run in pairs if run.stage == stage]
            assert len(set(names)) == len(names)  # each with a folder of its own
            assert [arm for arm, _ in pairs] == list(arms)
    base = {arm.name for arm, run in arms_of(scale, "ablate", 0) if run.stage == COMPARE}
    always = {"soft", "temperature_end_0.1", "init_random", "code_dim_8", "distance_sq_l2", "rate_10"}
    assert always <= base <= {*always, "batch_32"}


def test_another_batch_size_sees_as_many_pictures() -> None:
    values = SCALES["cpu"].recipe
    for arm in (arm for arm in ARMS if arm.name.startswith("batch_")):
        new = changed(values, arm.overrides(values))
        assert new["batch_size"] * new["max_steps"] == values["batch_size"] * values["max_steps"]
        assert new["max_steps"] % new["report"]["log_every"] < new["report"]["log_every"]


def test_runs_are_named_by_method_arm_or_name() -> None:
    scale = SCALES["quick"]
    runs = runs_of(scale, TUNE, ["lgq", "fsq"], lambda run: None)
    assert named([], runs) == runs
    assert [run.name for run in named(["fsq"], runs)] == [f"tune-fsq-{setting}" for setting in range(4)]
    assert [run.name for run in named(["tune-lgq-2"], runs)] == ["tune-lgq-2"]
    assert named(["widths"], runs) == []
    with pytest.raises(ValueError, match="--only vqq: expected methods, arms or runs, of batch_16, "):
        named(["vqq"], runs)
