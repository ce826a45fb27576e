"""A hook of mkdocs: links to files outside docs/ (source, notebooks, the README).

The pages are read in the repository too, where such links work. On the site they go to the repository where `repo_url` in
mkdocs.yml names one, and are plain code where it does not.
"""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page, config, files) -> str:
    """The page with its links that leave docs/ replaced; mkdocs calls this for each page."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def replaced(found: re.Match) -> str:
        text, path, anchor = found.group(1), found.group(2), found.group(3) or ""
        target = (folder / path).resolve()
        if target.is_relative_to(ROOT / "docs") or not target.is_relative_to(ROOT):
            return found.group(0)
        name = target.relative_to(ROOT).as_posix()
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{name}{anchor})"
        return f"{text} (`{name}`)"

    return LINK.sub(replaced, markdown)
