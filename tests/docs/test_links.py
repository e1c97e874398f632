"""Links between pages lead somewhere."""

import os
from pathlib import PurePosixPath

import pytest

from tests.docs.pages import ROOT, anchors_of, links_of, pages, read


def broken_links(page: str, text: str) -> list[str]:
    """Links of a page to files or headings that are not there."""
    wrong = []
    for link in links_of(text):
        place, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = os.path.normpath(PurePosixPath(page).parent / place) if place else page
        there = target == page or (ROOT / target).exists()
        if not there or (anchor and anchor not in anchors_of(text if target == page else read(target))):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    assert broken_links(page, read(page)) == []


def test_the_index_names_every_page_of_docs() -> None:
    named = {link.partition("#")[0] for link in links_of(read("docs/index.md"))}
    docs = {path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".ipynb")} - {"index.md"}
    assert docs <= named
