"""The page of `lgq demo`, made with gradio. What it shows comes from `drawing`, what a visitor does is in `view`."""

import ipaddress
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from lgq_hf.checkpoint import Checkpoint, load_checkpoint
from lgq_hf.files import one_line

from . import view as views
from .drawing import PICTURE_PARTS, TOKEN_PARTS, about, picture_contents, sample_buttons, token_contents
from .style import CSS, GRID_SCRIPT, SAMPLES_SCRIPT
from .view import MOST_BYTES, SIZE, SIZES, View, samples

# gradio's semibold file of this font has few letters; its bold one has all. None of it comes from another server.
_FONTS = (gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif")
Values = dict[Any, Any]  # of components
_LONGEST_TEXT = 300  # characters of an error that nobody foresaw
_LOG = logging.getLogger(__name__)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`, a name or an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name, which may be anyone's
        return False


class Models:
    """The checkpoints of one server; visitors share them, since nothing changes them.

    Args:
        first: the one that images are tokenized with.
        second: the one that they are compared with from the beginning, if any.
        local: only this machine reaches the server. If not, visitors name no checkpoints and see no paths.
        device: as of `load_checkpoint`, for named ones.
    """

    def __init__(
        self, first: Checkpoint, second: Checkpoint | None = None, *, local: bool, device: str = "cpu"
    ) -> None:
        self.first, self.second, self.local, self.device = first, second, local, device
        self._named: dict[str, Checkpoint] = {}  # the last one
        for checkpoint in (first, second):
            if checkpoint is not None and not local and Path(checkpoint.name).is_dir():
                checkpoint.name = Path(checkpoint.name).absolute().name

    def named(self, name: str, *, again: bool = False) -> Checkpoint:
        """The checkpoint that a visitor typed the name of, a folder or a repository.

        Args:
            name: of it.
            again: load it anew, because a folder may have changed.

        Raises:
            ValueError: it cannot be loaded, or others reach this server.
        """
        if self.second is not None and name == self.second.name:
            return self.second
        if not self.local:
            raise ValueError("this server compares with the checkpoint that it was started with, and no other")
        if again or name not in self._named:
            self._named = {name: load_checkpoint(str(Path(name).expanduser()), self.device)}
        return self._named[name]


def build_page(models: Models) -> gr.Blocks:
    """The page, for `serve`; each visitor's view is kept in their own session."""
    with gr.Blocks(title="LGQ tokens", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        _Page(page, models)
    page.queue(max_size=64)
    return page


def serve(page: gr.Blocks, host: str, port: int, *, share: bool = False) -> None:
    """Answers on `host` and `port` until the process is stopped; prints the address when it does.

    Raises:
        OSError: the port is taken, or no share link could be had.
    """
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        css=CSS,
        theme=gr.themes.Default(font=_FONTS),
        max_file_size=MOST_BYTES,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    if share and page.share_url is None:
        page.close()
        raise OSError("no share link could be had; see above, or leave --share out")
    print(f"lgq demo: {page.share_url or page.local_url}", flush=True)
    page.block_thread()


def _told(action: Callable[..., Values]) -> Callable[..., Values]:
    """Tells the visitor what could not be done, and leaves the page as it was: an error of gradio's would cover it.

    Errors that nobody foresaw go to the log. Their text, which may hold paths, is shown on a local server alone.
    """

    @wraps(action)
    def wrapper(self: "_Page", *arguments: Any) -> Values:
        try:
            return action(self, *arguments)
        except ValueError as error:
            text = str(error)
        except Exception as error:  # a visitor's checkpoint or picture can bring about any: no memory, no package
            _LOG.exception("%s failed", action.__name__)
            text = f"this could not be done ({type(error).__name__}); the server's log says why"
            if self.models.local:
                text = f"this could not be done: {one_line(error)[:_LONGEST_TEXT]}"
        gr.Warning(escape(text))
        return {self.loaded: None}

    return wrapper


class _Page:
    """Components and what happens in them; made within `gr.Blocks`."""

    def __init__(self, page: gr.Blocks, models: Models) -> None:
        self.models, self.checkpoint = models, models.first
        self.parts: dict[str, Any] = {}
        self.state = gr.State(None, time_to_live=3600)
        self.loaded = gr.State(None)  # name of a checkpoint that is ready to be compared with
        gr.HTML(f"<h2>Pictures as tokens</h2>{about(self.checkpoint)}", elem_classes="lgq-text")
        with gr.Row():
            with gr.Column(scale=1, min_width=250):
                self._sources()
            with gr.Column(scale=4):
                self._pictures()
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self._html("grid", js_on_load=GRID_SCRIPT)
            with gr.Column(scale=3, min_width=230):
                self._editing()
            with gr.Column(scale=5, min_width=300):
                self._html("highlighted")
                self._html("found")
        self._listen(page)

    def _html(self, name: str, **options: Any) -> None:
        """A part of the page that holds HTML."""
        self.parts[name] = gr.HTML(elem_id=f"lgq-{name}", elem_classes="lgq-text", **options)

    def _sources(self) -> None:
        gr.HTML(f"<p>A picture of up to {MOST_BYTES // 2**20} MB, or a sample:</p>", elem_classes="lgq-text")
        self.upload = gr.File(show_label=False, height=132, elem_id="lgq-upload")
        self.samples = gr.HTML(sample_buttons(samples()), js_on_load=SAMPLES_SCRIPT)
        self.size = gr.Dropdown(
            [(f"{size} pixels", size) for size in SIZES], value=SIZE, label="Shorter side", elem_id="lgq-size"
        )
        second, shown = "" if self.models.second is None else self.models.second.name, self.models.local
        named: dict[str, Any] = {"placeholder": "org/name, or a folder", "max_lines": 1, "elem_id": "lgq-name"}
        self.other_name = gr.Textbox(second, label="Compare with", visible=shown, **named)
        self.compare = gr.Button("Compare", size="sm", visible=shown, elem_id="lgq-compare")

    def _pictures(self) -> None:
        with gr.Row():
            for name in ("original", "reconstruction", "difference", "other"):
                self._html(name, min_width=150, visible=name != "other")
        self._html("note")
        self._html("numbers")

    def _editing(self) -> None:
        self._html("selection")
        label = f"Code, 0 to {self.checkpoint.config.codebook_size - 1}"
        self.parts["code"] = gr.Number(label=label, elem_id="lgq-code")
        self.put = gr.Button("Put it at the selected token", variant="primary", size="sm", elem_id="lgq-put")
        self.look = gr.Button("Show where it occurs", size="sm", elem_id="lgq-look")
        self.reset = gr.Button("Reset all tokens", size="sm", elem_id="lgq-reset")
        self._html("edits")
        self._html("alone")

    def _listen(self, page: gr.Blocks) -> None:
        tokens = [self.state, self.loaded, *(self.parts[name] for name in TOKEN_PARTS)]
        pictures = tokens + [self.parts[name] for name in PICTURE_PARTS]
        # The model works for one visitor at a time, and so a view is never written by two at once. A download keeps
        # nobody waiting: it does not touch the view.
        busy = [self.parts["note"], self.parts["selection"]]  # where it shows that work goes on
        work: dict[str, Any] = {"concurrency_id": "model", "api_visibility": "private", "show_progress_on": busy}
        state, size, code = self.state, self.size, self.parts["code"]
        page.load(self.on_begin, [state, size], pictures, **work)
        self.upload.upload(self.on_upload, [state, self.upload, size], pictures, **work)
        self.samples.click(self.on_sample, [state, size], [self.upload, *pictures], **work)
        size.input(self.on_size, [state, size], pictures, **work)
        self.parts["grid"].click(self.on_select, [state], tokens, **work)
        gr.on([self.look.click, code.submit], self.on_look, [state, code], tokens, **work)
        self.put.click(self.on_put, [state, code], pictures, **work)
        self.reset.click(self.on_reset, [state], pictures, **work)
        loading = gr.on(
            [self.compare.click, self.other_name.submit],
            self.on_load,
            [self.other_name],
            [self.loaded],
            **work | {"concurrency_id": "loading"},
        )
        loading.then(self.on_compare, [state, self.loaded], pictures, **work)

    def _tokens(self, view: View) -> Values:
        contents = token_contents(view, self.checkpoint)
        return {self.state: view, **{self.parts[name]: value for name, value in contents.items()}}

    def _all(self, view: View) -> Values:
        values = self._tokens(view) | {self.parts[name]: value for name, value in picture_contents(view).items()}
        other = self.parts["other"]
        return values | {other: gr.update(value=values[other], visible=view.other is not None)}

    def _open(self, before: View | None, source: Path | Image.Image, size: int) -> Values:
        """Another picture, or another size of it; what it is compared with stays."""
        view = views.open_view(self.checkpoint, source, size)
        second = "" if self.models.second is None else self.models.second.name
        if name := second if before is None else before.other_name:
            view = views.compare(view, self.models.named(name), name)
        return self._all(view)

    @_told
    def on_begin(self, view: View | None, size: int) -> Values:
        return self._open(view, samples()[0].picture, size)

    @_told
    def on_upload(self, view: View | None, file: str | None, size: int) -> Values:
        if file is None:
            raise ValueError("no file came: upload a picture, or take a sample")
        return self._open(view, Path(file), size)

    @_told
    def on_sample(self, view: View | None, size: int, event: gr.EventData) -> Values:
        number = event._data.get("sample") if isinstance(event._data, dict) else None  # the browser's: any JSON
        if type(number) is not int or not 0 <= number < len(samples()):
            raise ValueError(f"expected the number of a sample below {len(samples())}, got {str(number)[:40]}")
        return self._open(view, samples()[number].picture, size) | {self.upload: None}

    @_told
    def on_size(self, view: View | None, size: int) -> Values:
        return self._open(view, _begun(view).source, size)

    @_told
    def on_select(self, view: View | None, event: gr.EventData) -> Values:
        return self._tokens(views.select(_begun(view), event._data, self.checkpoint))

    @_told
    def on_look(self, view: View | None, code: float | None) -> Values:
        return self._tokens(views.look_at(_begun(view), code, self.checkpoint))

    @_told
    def on_put(self, view: View | None, code: float | None) -> Values:
        return self._all(views.put(_begun(view), code, self.checkpoint))

    @_told
    def on_reset(self, view: View | None) -> Values:
        return self._all(views.reset(_begun(view)))

    @_told
    def on_load(self, text: str | None) -> Values:
        name = (text or "").strip()
        if name:
            self.models.named(name, again=True)
        return {self.loaded: name}

    @_told
    def on_compare(self, view: View | None, name: str | None) -> Values:
        if name is None:  # it was told why
            return {self.loaded: None}
        if not name:
            return self._all(replace(_begun(view), other=None, other_name=""))
        return self._all(views.compare(_begun(view), self.models.named(name), name))


def _begun(view: View | None) -> View:
    if view is None:
        raise ValueError(
            "this page was left alone for so long that it was forgotten: upload a picture, or take a sample"
        )
    return view


__all__ = ["build_page", "serve"]
