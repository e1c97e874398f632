from collections.abc import Iterator

import pytest
import torch

from lgq_hf import runtime
from lgq_hf.runtime import Clock


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second, two seconds, four seconds, ... go by between two looks at the time."""

    def passing() -> Iterator[float]:
        now, step = 0.0, 1.0
        while True:
            yield now
            now, step = now + step, 2 * step

    times = passing()
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: next(times))


@pytest.mark.usefixtures("ticks")
def test_the_first_batch_is_left_out_where_others_follow() -> None:
    clock = Clock(torch.device("cpu"))
    with clock.around(4):
        pass
    assert (clock.cost()["seconds_per_picture"], clock.cost()["timed_pictures"]) == (1 / 4, 4)
    for pictures in (3, 2):
        with clock.around(pictures):
            pass
    assert (clock.cost()["seconds_per_picture"], clock.cost()["timed_pictures"]) == ((4 + 16) / 5, 5)


def test_a_process_is_more_than_16_mebibytes() -> None:
    clock = Clock(torch.device("cpu"))
    with clock.around(1):
        pass
    assert clock.cost()["peak_memory_of"] == "process" and clock.cost()["peak_memory_bytes"] > 2**24


def test_nothing_timed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected at least one batch to be timed, got none: use around\(\) first"):
        Clock(torch.device("cpu")).cost()
