"""What the documentation's pages hold: fenced blocks, the commands in them, and links."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "model_cards"  # of checkpoints that are not in the package
_FENCE = re.compile(r"```\s*([\w+-]*).*")
_NOT_RUN = re.compile(r"<!--\s*not run\b:?(.*)-->")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SHELL = ("", "sh", "bash", "shell", "console")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: path from the repository's root.
        line: of its first line of code, from 1.
        language: as the fence says, "" where it does not.
        code: without the fences and their indentation.
        not_run: why it does not run; `None` where it does.
    """

    page: str
    line: int
    language: str
    code: str
    not_run: str | None = None


def pages() -> list[str]:
    """All pages, as paths from the repository's root."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    found += [*sorted((ROOT / "lgq_hf" / "pretrained").glob("*/README.md")), *sorted(CARDS.glob("*/README.md"))]
    found += [ROOT / "lgq_hf" / "kernels" / "README.md", ROOT / "conversion" / "README.md"]
    return [path.relative_to(ROOT).as_posix() for path in found]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(text: str, page: str = "page.md") -> list[Block]:
    """Fenced blocks in their order; `<!-- not run: REASON -->` before a Python block says why it cannot run."""
    blocks: list[Block] = []
    opened: tuple[int, str, int] | None = None
    code: list[str] = []
    not_run: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if opened is not None:
            if stripped == "```":
                first, language, indent = opened
                lines = "\n".join(one[indent:] if not one[:indent].strip() else one for one in code)
                blocks.append(Block(page, first + 1, language, lines + "\n", not_run))
                opened, not_run, code = None, None, []
            else:
                code.append(line)
        elif match := _FENCE.fullmatch(stripped):
            opened = number, match[1].lower(), len(line) - len(line.lstrip())
        elif match := _NOT_RUN.fullmatch(stripped):
            not_run = match[1].strip()
            assert not_run, f"{page}:{number}: expected a reason, <!-- not run: needs a GPU -->"
    assert opened is None, f"{page}: the last block is not closed"
    return blocks


def commands_of(block: Block) -> Iterator[list[str]]:
    """Words of the commands in a shell block, without comments; brackets of optional parts are taken off.

    Other blocks have none. A block without a language may be no shell block at all: what is no command has to be told
    by its first words.
    """
    if block.language not in _SHELL:
        return
    for line in block.code.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a lone apostrophe: a picture or a list of files
            continue
        words = [word.strip("[]") for word in words if word not in ("...", "[...]")]
        if words:
            yield words


def links_of(text: str) -> list[str]:
    """Targets of links and pictures outside of blocks and code spans."""
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return _LINK.findall(re.sub(r"`[^`\n]*`(?!\])", "", outside))


def anchors_of(text: str) -> set[str]:
    """Anchors that GitHub makes of headings."""
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found: dict[str, int] = {}
    anchors = set()
    for heading in re.findall(r"^#+ +(.+?)\s*$", outside, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        anchors.add(f"{slug}-{found[slug]}" if slug in found else slug)
        found[slug] = found.get(slug, 0) + 1
    return anchors
