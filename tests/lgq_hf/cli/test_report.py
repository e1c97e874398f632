"""Lines for the user: which errors are a picture's own, and which end the work."""

import pytest

from lgq_hf.cli.report import Report, shown


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("too large\nin many ways"), "too large"),
        (MemoryError(), "not enough memory for an image of this size"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "not enough memory for an image of this size"),
    ],
)
def test_a_pictures_own_errors_are_noted(capsys: pytest.CaptureFixture[str], error: Exception, reason: str) -> None:
    report = Report()
    with report.one("x.png"):
        raise error
    with report.one("y.png"):
        pass
    assert report.failures == [("x.png", reason)]
    assert report.finish(done=1) == 1
    assert capsys.readouterr().err == (f"lgq: x.png: {reason}\n\nlgq: 1 of 2 images failed:\n  x.png: {reason}\n")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), TypeError(), BrokenPipeError(), KeyboardInterrupt()])
def test_other_errors_end_the_work(error: BaseException) -> None:
    report = Report()
    with pytest.raises(type(error)), report.one("x.png"):
        raise error
    assert report.failures == []
    assert report.finish(done=3) == 0


def test_names_cannot_command_the_terminal() -> None:
    assert shown("a b/ü猫.png") == "a b/ü猫.png"
    assert shown("\x1b[2J\n\udcff\u202e") == r"\x1b[2J\n\udcff\u202e"
