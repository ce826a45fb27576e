"""Every relative link of README, CONTRIBUTING, CHANGELOG and docs/ leads to a file, and to a heading where it names one."""

import pathlib
import re

import pytest

from tests.docs.pages import FENCE, PAGES, ROOT

LINKED = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "infer" / "demo_pair" / "README.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")
DOCS = ROOT / "docs"


def links_of(page: pathlib.Path) -> list[str]:
    """Where a page links to, but for addresses."""
    text = re.sub(r"<!--.*?-->", "", FENCE.sub("", page.read_text()), flags=re.S)
    return [link for link in LINK.findall(text) if not re.match(r"\w+:", link)]


def anchors_of(page: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(page: pathlib.Path) -> list[str]:
    """The links of a page that lead nowhere."""
    found = []
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target.parent == ROOT / "notebooks" and not target.parent.exists():
            continue
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert not broken_links(page)


def test_links_that_lead_nowhere_are_noticed(tmp_path):
    (tmp_path / "b.md").write_text("# A heading: here\n")
    page = tmp_path / "a.md"
    page.write_text("[x](b.md) [x](b.md#a-heading-here) [x](c.md) [x](b.md#elsewhere) [x](#nowhere) [x](https://a.b/c)\n")
    assert broken_links(page) == ["c.md", "b.md#elsewhere", "#nowhere"]


def test_every_page_picture_and_table_is_reached_from_the_readme_or_the_site():
    reached = {(page.parent / link.partition("#")[0]).resolve() for page in LINKED for link in links_of(page)}
    reached.add(DOCS / "index.md")
    kept = [file for kind in ("*.md", "*.csv", "*.svg", "*.png") for file in DOCS.rglob(kind)]
    assert not [str(file.relative_to(ROOT)) for file in kept if file not in reached]


def test_the_site_has_every_page():
    named = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert named == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


def test_files_that_the_source_names_are_there():
    """docs/... in comments, docstrings and messages."""
    sources = [file for folder in ("redrafter_jax", "infer", "train", "tests") for file in (ROOT / folder).rglob("*.py")]
    named = {name for file in sources for name in re.findall(r"docs/[\w/-]+\.(?:md|csv|svg|png|py)", file.read_text())}
    assert len(named) > 2 and not [name for name in named if not (ROOT / name).exists()]
