"""Writes docs/api.md from the docstrings of the public modules.

    python docs/make_api.py [--check]

`--check` changes nothing and fails where the page differs from the docstrings. Signatures are taken from the source,
so they read as they are written there.
"""

import argparse
import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
METRICS = ("reconstruction", "perceptual", "frechet", "precision_recall", "agreement", "codebook", "code_distances")
# headings, the modules below each, and of a module that has more than users need, which names
GROUPS: dict[str, dict[str, tuple[str, ...] | None]] = {
    "Tokenizer": {
        "lgq_hf": None,
        "lgq_hf.checkpoint.loading": ("load_checkpoint", "Checkpoint", "find_checkpoint", "Reference"),
    },
    "Tokens": {"lgq_hf.tokens": None},
    "Generation": {"lgq_hf.generation": None},
    "Evaluation": {"lgq_hf.evaluation": None},
    "Metrics": {f"lgq_hf.metrics.{name}": None for name in (*METRICS, "extractors", "efficientnet", "inception")},
    "Assignment ops": {"lgq_hf.tokenizer.assignment": None},
    "Export": {"lgq_hf.export.onnx": ("export_onnx", "export_pt2", "export_programs")},
    "Publishing": {
        "lgq_hf.hub.publishable": ("check_publishable", "Publication"),
        "lgq_hf.hub.push": ("push", "Pushed"),
    },
}
INTRODUCTION = """# API reference

<!-- written by docs/make_api.py from the docstrings: change those, then run `python docs/make_api.py` -->

What is imported by users, with the docstrings of the code. Classes list their own public methods and those of bases in
this package; what comes from transformers, diffusers and torch is described there. Shape letters: B pictures, H W
pixels, h w token grid, C channels, K codes, N rows.
"""
_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields):")
_ENTRY = re.compile(r"(\*{0,2}[A-Za-z_]\w*(?:, \*{0,2}\w+)*)( \(.*\))?:(?: (.*))?")
_STAR = re.compile(r"(^\s*\* |(?<![\w*])\*\w+\*(?![\w*]))|\*")  # a bullet or emphasis, or else an asterisk
_LONG = 100


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def prose(text: str, names: set[str]) -> str:
    """Text of a docstring as Markdown: names of this page become links, and what Markdown would swallow is escaped."""
    text = re.sub(r"\[(`[^`]+`)\]", r"\1", text)
    parts = re.split(r"(`[^`]*`)", text)
    for number, part in enumerate(parts):
        if number % 2:
            name = part.strip("`")
            parts[number] = f"[{part}](#{slug(name)})" if name in names else part
        else:
            parts[number] = _STAR.sub(lambda star: star[0] if star[1] else r"\*", part).replace("<", "&lt;")
    return "".join(parts)


def paragraphs(lines: list[str], names: set[str]) -> Iterator[str]:
    """Lines outside of sections; what is indented behind an empty line is code."""
    code = False
    for number, line in enumerate(lines):
        indented = line.startswith("    ")
        code = (indented and (code or not number or not lines[number - 1].strip())) or (code and not line.strip())
        yield line if code else prose(line, names)


def entries(lines: list[str], names: set[str]) -> Iterator[str]:
    """The lines of a section: a list of its entries, and paragraphs of what are none."""
    found: list[list[str]] = []
    for line in textwrap.dedent("\n".join(lines)).strip().splitlines():
        match = _ENTRY.fullmatch(line)
        if match:
            told = ", ".join(f"`{name}`" for name in match[1].split(", "))
            found.append([f"- {told}{prose(match[2] or '', names)}: {prose(match[3] or '', names)}".rstrip()])
        elif not line or not found:
            found.append([prose(line, names)])
        else:
            found[-1].append(prose(line.strip(), names))
    yield from (" ".join(filter(None, words)) if any(words) else "" for words in found)


def docstring(thing: Any, names: set[str]) -> list[str]:
    """A docstring as lines of Markdown.

    Raises:
        ValueError: there is none.
    """
    text = inspect.cleandoc(thing.__doc__ or "")
    if not text:
        raise ValueError(f"{thing} is public and has no docstring")
    parts: list[tuple[str, list[str]]] = [("", [])]
    for line in text.splitlines():
        match = _SECTION.fullmatch(line)
        if match:
            parts.append((match[1], []))
        elif parts[-1][0] and line and not line.startswith(" "):
            parts.append(("", [line]))
        else:
            parts[-1][1].append(line)
    made: list[str] = []
    for title, lines in parts:
        made += [f"**{title}**", "", *entries(lines, names)] if title else paragraphs(lines, names)
        made.append("")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(made)).strip().splitlines()


def node_of(thing: Any) -> Any:
    """The syntax tree of a class or function."""
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing)))).body[0]


def arguments(function: Any, skip_first: bool) -> list[str]:
    """Parameters as they are written, without `self`."""
    args = node_of(function).args
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + args.defaults
    several = [*zip(positional, defaults, strict=True)][skip_first:]
    parts = [_written(one, default) for one, default in several]
    if args.vararg or args.kwonlyargs:
        parts.append("*" + (ast.unparse(args.vararg) if args.vararg else ""))
    parts += [_written(one, default) for one, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    return parts + (["**" + ast.unparse(args.kwarg)] if args.kwarg else [])


def _written(one: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(one) + ("" if default is None else f" = {ast.unparse(default)}")


def fields(cls: type) -> list[str]:
    """Fields of a dataclass, named tuple or configuration, as they are written."""
    return [ast.unparse(node) for node in node_of(cls).body if isinstance(node, ast.AnnAssign)]


def is_ours(function: Any) -> bool:
    """Whether a function was written in this package, and not made by a decorator."""
    return Path(inspect.unwrap(function).__code__.co_filename).is_relative_to(ROOT / "lgq_hf")


def own_bases(cls: type) -> list[type]:
    """The class and its bases in this package."""
    return [base for base in cls.__mro__ if base.__module__.startswith("lgq_hf")]


def fenced(name: str, parts: list[str] | None, returns: str = "") -> list[str]:
    """A signature; one parameter a line where it is long."""
    if parts is None:
        return ["```", name, "```", ""]
    line = f"{name}({', '.join(parts)}){returns}"
    if len(line) > _LONG:
        line = "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){returns}"])
    return ["```", line, "```", ""]


def function_entry(name: str, function: Any, names: set[str], method: bool = False) -> list[str]:
    """Signature and docstring of a function or method."""
    returned = node_of(function).returns
    returns = "" if returned is None else f" -> {ast.unparse(returned)}"
    return [*fenced(name, arguments(function, method), returns), *docstring(function, names), ""]


def class_entry(name: str, cls: type, names: set[str]) -> list[str]:
    """Signature, docstring, then those of bases that are not on this page, and public methods."""
    bases = own_bases(cls)
    maker: Any = cls.__init__  # type: ignore[misc]
    written = inspect.isfunction(maker) and is_ours(maker)
    made = fenced(f"class {name}", arguments(maker, True) if written else fields(cls) or None)
    made += [*docstring(cls, names), ""]
    for base in bases[1:]:
        if base.__name__ not in names and base.__name__.startswith("_"):
            made += [f"From its base `{base.__name__}`:", "", *docstring(base, names), ""]
    members = {key: value for base in reversed(bases) for key, value in base.__dict__.items()}
    properties = []
    for key in sorted(members, key=lambda key: (key != "__call__", key.startswith("validate_"))):
        value = members[key]
        if key.startswith("_") and key != "__call__":
            continue
        if isinstance(value, property) and value.fget is not None:
            properties.append(f"- `{key}`: {' '.join(docstring(value.fget, names))}")
        elif inspect.isfunction(function := getattr(value, "__func__", value)) and is_ours(function):
            static = isinstance(value, staticmethod)
            title = f"{name}.{key}"
            made += [f"#### `{title}`", "", *function_entry(title, function, names, method=not static)]
    return made + (["**Properties**", "", *properties, ""] if properties else [])


def entry(module: Any, name: str, names: set[str]) -> list[str]:
    """One name of a module."""
    thing = getattr(module, name)
    made = [f"### `{name}`", ""]
    if inspect.isclass(thing) or inspect.isfunction(thing):
        if thing.__name__ != name:
            return [*made, f"Another name of [`{thing.__name__}`](#{slug(thing.__name__)}).", ""]
        source = Path(inspect.getsourcefile(thing) or "").relative_to(ROOT).as_posix()
        made += [f"[{source}](../{source})", ""]
        return made + (
            class_entry(name, thing, names) if inspect.isclass(thing) else function_entry(name, thing, names)
        )
    shown = re.sub(r"typing\.", "", repr(thing))
    return [*made, *fenced(f"{name} = {shown}", None)]


def render() -> str:
    """The page.

    Raises:
        ValueError: a public class, function or method without a docstring.
    """
    modules = {name: importlib.import_module(name) for group in GROUPS.values() for name in group}
    listed = {place: chosen or modules[place].__all__ for group in GROUPS.values() for place, chosen in group.items()}
    names = {name for several in listed.values() for name in several}
    contents, body = [], []
    for title, group in GROUPS.items():
        contents += [f"**[{title}](#{slug(title)})**", ""]
        body += [f"## {title}", ""]
        for place in group:
            links = ", ".join(f"[`{name}`](#{slug(name)})" for name in listed[place])
            contents += [f"- `{place}`: {links}"]
            body += [f"Module `{place}`.", "", *docstring(modules[place], names), ""]
            for name in listed[place]:
                body += entry(modules[place], name, names)
        contents.append("")
    text = "\n".join([INTRODUCTION, *contents, *body])
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def main(argv: list[str] | None = None) -> int:
    """Writes the page, or compares; returns 1 where `--check` finds a difference."""
    parser = argparse.ArgumentParser(description="docs/api.md from the docstrings")
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the page is out of date")
    check, text = parser.parse_args(argv).check, render()
    if check and (not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text):
        print(f"{PAGE.relative_to(ROOT)} differs from the docstrings: run python docs/make_api.py", file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
