import itertools
import json
from pathlib import Path

import pytest

from training.run_recipe import learning_rate_factor, ramp, temperature_at

RECORDED = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "lgq_official" / "schedules" / "expected.json").read_text()
)


@pytest.mark.parametrize(("ours", "theirs"), [("linear", "linear"), ("cosine", "cosine"), ("constant", "const")])
@pytest.mark.parametrize("count", [1, 10])
def test_temperatures_of_the_official_code(ours: str, theirs: str, count: int) -> None:
    """Recorded per epoch; with one step per epoch ours are the same."""
    wanted = RECORDED[f"tau.{theirs}.epochs{count}"]
    if count == 1 and ours != "constant":
        wanted = [0.1]  # a single step is the last one: the checkpoint's temperature is the final one
    found = [temperature_at(step, start=1.0, end=0.1, steps=count, schedule=ours) for step in range(count)]
    assert found == pytest.approx(wanted)


def test_temperature_stays_at_its_end() -> None:
    assert temperature_at(50, start=1.0, end=0.2, steps=10, schedule="linear") == pytest.approx(0.2)


def test_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="constant, linear, cosine or exponential, got 'step'"):
        temperature_at(0, start=1, end=1, steps=2, schedule="step")


def test_learning_rate_warms_up_and_falls_to_its_end() -> None:
    factors = [learning_rate_factor(step, warmup_steps=10, max_steps=110) for step in range(111)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1 and factors[60] == pytest.approx(0.5) and factors[110] == pytest.approx(0)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))


def test_exponential_temperature() -> None:
    found = [temperature_at(step, start=1.0, end=0.01, steps=5, schedule="exponential") for step in range(7)]
    assert found[0] == 1 and found[4:] == [0.01] * 3
    assert found[2] == pytest.approx(0.1)
    assert [b / a for a, b in itertools.pairwise(found[:5])] == pytest.approx([0.01**0.25] * 4)
    assert temperature_at(0, start=0.7, end=0.3, steps=9, schedule="exponential") == 0.7
    with pytest.raises(ValueError, match="exponential schedule needs a positive start and end, got 1.0 and 0.0"):
        temperature_at(0, start=1.0, end=0.0, steps=9, schedule="exponential")


def test_learning_rate_falls_to_a_share() -> None:
    found = {step: learning_rate_factor(step, warmup_steps=10, max_steps=110, end_factor=0.2) for step in range(130)}
    assert found[9] == 1 and found[10] == 1 and found[60] == pytest.approx(0.6)
    assert found[110] == found[129] == pytest.approx(0.2)
    assert found[0] == pytest.approx(0.1)  # the warm-up begins below the share


def test_constant_learning_rate() -> None:
    found = [learning_rate_factor(step, warmup_steps=4, max_steps=10, schedule="constant") for step in range(20)]
    assert found == [0.25, 0.5, 0.75] + [1] * 17
    assert learning_rate_factor(0, warmup_steps=0, max_steps=10, schedule="constant") == 1


def test_learning_rates_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match=r"end_factor must lie in \[0, 1\], got 1.5"):
        learning_rate_factor(0, warmup_steps=0, max_steps=1, end_factor=1.5)
    with pytest.raises(ValueError, match="learning rate schedule must be cosine or constant, got 'linear'"):
        learning_rate_factor(0, warmup_steps=0, max_steps=1, schedule="linear")
    with pytest.raises(ValueError, match="constant learning rate has no end: leave end_factor at 0, got 0.1"):
        learning_rate_factor(0, warmup_steps=0, max_steps=1, end_factor=0.1, schedule="constant")


def test_ramp() -> None:
    assert [ramp(step, start=3, length=4) for step in range(10)] == [0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [ramp(step, start=2, length=0) for step in range(5)] == [0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="ramp's length must be at least 0, got -1"):
        ramp(0, start=0, length=-1)
