import json

import pytest

from benchmarks import straight_through_gain
from benchmarks.results_file import RESULTS
from lgq_hf.tokenizer import quantizer_lgq


def test_docstring_states_the_recorded_gain() -> None:
    gain = {
        row["temperature"]: row["median"]
        for row in json.loads((RESULTS / "straight_through_gain.json").read_text())["gain"]
    }
    text = " ".join((quantizer_lgq.__doc__ or "").split())
    assert (
        f"passes on {gain[1.0]:.2g} times the decoder's gradient at tau = 1 and {gain[0.1]:.1g} times at tau = 0.1"
        in text
    )


def test_gain_vanishes_as_the_assignment_hardens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(straight_through_gain, "ROWS", 64)
    monkeypatch.setattr(straight_through_gain, "CODES", 512)
    warm, cold = (float(straight_through_gain.gains(tau).median()) for tau in (64.0, 0.1))
    assert 0.01 < warm < 1  # nearly uniform p: 2/tau times the spread of the codes
    assert cold < 1e-6
