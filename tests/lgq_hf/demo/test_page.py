"""What the page tells its visitors when something cannot be done, and what it does not tell them."""

import json
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'lgq_hf[demo]'")
import gradio as gr
import httpx

from lgq_hf.checkpoint.loading import Checkpoint, load_checkpoint
from lgq_hf.demo import page
from lgq_hf.demo.named import Models
from lgq_hf.demo.pictures import MOST_BYTES

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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("~nosuchuser/x", "this could not be done: Could not determine home directory."),
        ("a" * 5000, "this could not be done: [Errno 36] File name too long: &#x27;aaa"),
    ],
)
def test_a_name_that_python_refuses_is_told(tiny: Tiny, told: list[str], name: str, text: str) -> None:
    shown = _page(Models(tiny("sq_l2"), local=True))
    assert shown.on_load(name) == {shown.loaded: None}
    assert len(told) == 1 and told[0].startswith(text) and len(told[0]) < 400


def test_a_checkpoint_that_needs_a_package_is_told(
    tiny: Tiny, told: list[str], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "quantized")
    config = json.loads((folder / "config.json").read_text())
    quantization = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    (folder / "config.json").write_text(json.dumps(config | quantization))
    shown = _page(Models(tiny("sq_l2"), local=True))
    assert shown.on_load(str(folder)) == {shown.loaded: None}
    assert len(told) == 1 and "bitsandbytes" in told[0]


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
