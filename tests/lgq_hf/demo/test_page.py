"""The command, and what the page tells its visitors when something cannot be done, and what it does not tell them."""

import importlib
import json
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest

from lgq_hf.checkpoint.loading import Checkpoint, load_checkpoint
from lgq_hf.cli.main import main
from lgq_hf.demo import page
from lgq_hf.demo.page import Models, is_loopback
from lgq_hf.demo.view import MOST_BYTES

pytest.importorskip("gradio", reason="needs gradio: pip install '.[demo]' in a checkout of lgq_hf")


Tiny = Callable[..., Checkpoint]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What visitors are told."""
    texts: list[str] = []
    monkeypatch.setattr(page.gr, "Warning", texts.append)
    return texts


def _page(models: Models) -> Any:
    with gr.Blocks() as blocks:
        return page._Page(blocks, models)


def test_errors_that_nobody_foresaw_are_logged_and_told_to_others_without_their_text(
    tiny: Tiny, told: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise MemoryError("/home/me/models needs 3 GB")

    monkeypatch.setattr(page.views, "open_view", full)
    for local in (True, False):
        shown = _page(Models(tiny("sq_l2"), local=local))
        with caplog.at_level(logging.ERROR):
            assert shown.on_begin(None, 256) == {shown.loaded: None}
    assert told == [
        "this could not be done: /home/me/models needs 3 GB",
        "this could not be done (MemoryError); the server&#x27;s log says why",
    ]
    assert [record.message for record in caplog.records] == ["on_begin failed"] * 2
    assert caplog.text.count("MemoryError: /home/me/models needs 3 GB") == 2


def test_a_public_page_holds_no_paths(model_folder: Path, other_model_folder: Path) -> None:
    first, second = (load_checkpoint(str(folder), "cpu") for folder in (model_folder, other_model_folder))
    for local in (True, False):
        content = json.dumps(page.build_page(Models(first, second, local=local)).get_config_file(), default=str)
        assert (str(model_folder) in content, str(other_model_folder) in content) == (local, local)
    assert "tiny: a token for each 8 x 8 pixels" in content and '"value": "other"' in content


@pytest.fixture
def address(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where a page is answered by threads of this process."""
    monkeypatch.setattr(gr.Blocks, "block_thread", lambda _: None)
    built = page.build_page(Models(tiny("sq_l2"), local=True))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page.serve(built, "127.0.0.1", port)
    yield str(built.local_url)
    built.close()


def test_too_large_an_upload_is_refused_before_it_is_opened(address: str) -> None:
    for size, status in ((MOST_BYTES + 1, 413), (MOST_BYTES, 200)):
        answer = httpx.post(f"{address}gradio_api/upload", files={"files": ("photo.png", bytes(size))}, timeout=120)
        assert answer.status_code == status


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("example.org", False), ("", False)],
)
def test_loopback_addresses(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_a_local_server_loads_what_is_named_and_a_public_one_nothing(
    tiny: Tiny, told: list[str], model_folder: Path, tmp_path: Path
) -> None:
    models = Models(tiny("sq_l2"), local=True)
    loaded = models.named(str(model_folder))
    assert models.named(str(model_folder)) is loaded and models.named(str(model_folder), again=True) is not loaded
    for local, text in ((True, "no such folder"), (False, "and no other")):
        shown = _page(Models(tiny("sq_l2"), local=local))
        assert shown.on_load(str(tmp_path / "nothing")) == {shown.loaded: None}
        assert text in told[-1]
        assert shown.other_name.visible is local


pytest.importorskip("gradio", reason="needs gradio: pip install '.[demo]' in a checkout of lgq_hf")


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
    said = capsys.readouterr().err
    assert said.startswith("lgq: lgq demo needs the package gradio") and "pip install '.[demo]'" in said


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
