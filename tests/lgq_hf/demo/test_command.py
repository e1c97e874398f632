"""`lgq demo` up to where the page is answered."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'lgq_hf[demo]'")
from lgq_hf.cli.main import main
from lgq_hf.demo import page


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What `serve` is called with, and the models of the page."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(page, "build_page", lambda models: models)
    monkeypatch.setattr(page, "serve", lambda models, host, port, *, share: calls.append((models, host, port, share)))
    return calls


def test_by_default_it_is_local_and_shows_the_embedded_checkpoint(served: list[tuple[Any, ...]]) -> None:
    assert main(["demo"]) == 0
    ((models, *rest),) = served
    assert rest == ["127.0.0.1", 7860, False]
    assert (models.first.name, models.second, models.local) == ("lgq-tiny", None, True)
    assert (models.first.device.type, models.device) == ("cpu", "cpu")


@pytest.mark.parametrize("arguments", [["--host", "0.0.0.0"], ["--share"], ["--host", "myhost"]])
def test_what_others_reach_is_not_local(
    served: list[tuple[Any, ...]], model_folder: Path, other_model_folder: Path, arguments: list[str]
) -> None:
    named = ["--model", str(model_folder), "--compare", str(other_model_folder), "--port", "8000"]
    assert main(["demo", *named, *arguments]) == 0
    ((models, _, port, share),) = served
    assert models.local is False and (port, share) == (8000, "--share" in arguments)
    assert (models.first.name, models.second.name) == (model_folder.name, other_model_folder.name)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
def test_ports_are_checked(served: list[tuple[Any, ...]], port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--port", port]) == 2
    assert f"argument --port: expected a port, 1 to 65535, got '{port}'" in capsys.readouterr().err and not served


def test_a_model_that_is_not_there_is_told(
    served: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--compare", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err == f"lgq: no model at '{tmp_path / 'nothing'}': no such folder\n" and not served


def test_without_gradio_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real: Callable[..., Any] = importlib.import_module

    def missing(name: str, *rest: Any) -> Any:
        if name == "gradio":
            raise ModuleNotFoundError("No module named 'gradio'", name="gradio")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert main(["demo"]) == 2
    expected = "lgq: lgq demo needs the package gradio, which is not installed: pip install 'lgq_hf[demo]'\n"
    assert capsys.readouterr().err == expected


def test_no_share_link_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Page:
        share_url, closed = None, False

        def launch(self, **_: Any) -> None: ...

        def close(self) -> None:
            self.closed = True

    there: Any = Page()
    with pytest.raises(OSError, match="^no share link could be had; see above, or leave --share out$"):
        page.serve(there, "127.0.0.1", 7860, share=True)
    assert there.closed
