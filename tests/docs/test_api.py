"""docs/api.md says what the docstrings say."""

import importlib
import importlib.util
import re
from types import ModuleType

import pytest

from tests.docs.pages import ROOT, anchors_of, links_of, read


@pytest.fixture(scope="module")
def make_api() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(make_api: ModuleType) -> None:
    assert make_api.render() == read("docs/api.md"), "run python docs/make_api.py"


def test_a_changed_docstring_changes_the_page(
    make_api: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lgq_hf.metrics import reconstruction

    before = read("docs/api.md")
    monkeypatch.setattr(reconstruction.psnr, "__doc__", "Another text.")
    assert make_api.main(["--check"]) == 1
    assert "differs from the docstrings" in capsys.readouterr().err
    assert read("docs/api.md") == before
    monkeypatch.setattr(reconstruction.psnr, "__doc__", None)
    with pytest.raises(ValueError, match="psnr.* is public and has no docstring"):
        make_api.render()


def test_every_public_name_has_its_entry_and_every_link_an_anchor(make_api: ModuleType) -> None:
    text = read("docs/api.md")
    headings = re.findall(r"^### `(\w+)`$", text, flags=re.MULTILINE)
    assert len(headings) == len(set(headings))  # anchors of equal headings would get numbers
    listed = [name for group in make_api.GROUPS.values() for place in group for name in names_of(make_api, place)]
    assert sorted(headings) == sorted(listed)
    local = {link[1:] for link in links_of(text) if link.startswith("#")}
    assert local and local <= anchors_of(text)


def names_of(make_api: ModuleType, place: str) -> list[str]:
    chosen = next(group[place] for group in make_api.GROUPS.values() if place in group)
    return chosen or importlib.import_module(place).__all__


DOCSTRING = """First line with `h` * `w`, h*f, w*f and *this*.

      * a bullet with [`Known`] and [`Unknown`], <x>

        kept = "h*f"  # code

    Args:
        one, two: of both,
            on two lines.
        **rest (`int`, optional):
            Behind a colon.

    Returns:
        (N,) of
        those.

    Raises:
        ValueError: never.

    The end.
    """


def test_docstrings_as_markdown(make_api: ModuleType) -> None:
    def function() -> None: ...

    function.__doc__ = DOCSTRING
    assert make_api.docstring(function, {"Known"}) == [
        r"First line with `h` * `w`, h\*f, w\*f and *this*.",
        "",
        "  * a bullet with [`Known`](#known) and `Unknown`, &lt;x>",
        "",
        '    kept = "h*f"  # code',
        "",
        "**Args**",
        "",
        "- `one`, `two`: of both, on two lines.",
        "- `**rest` (`int`, optional): Behind a colon.",
        "",
        "**Returns**",
        "",
        "(N,) of those.",
        "",
        "**Raises**",
        "",
        "- `ValueError`: never.",
        "",
        "The end.",
    ]


def test_signatures_are_those_of_the_source(make_api: ModuleType) -> None:
    def function(a: int, /, b: str = "x", *rest: int, c: bool = False, **more: int) -> None: ...

    assert make_api.arguments(function, False) == [
        "a: int",
        "b: str = 'x'",
        "*rest: int",
        "c: bool = False",
        "**more: int",
    ]
    long = make_api.fenced("name", [f"argument_{number}: int" for number in range(8)], " -> None")
    assert long[1].startswith("name(\n    argument_0: int,\n") and long[1].endswith(",\n) -> None")
