"""What the pages show: their fenced blocks, and which of their commands are to be run here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# A comment before a block says how it is to be taken:
#   <!-- not run: WHY -->        it cannot be run by a test
#   <!-- run by: PATH -->        another test runs it, and names the page
#   <!-- exit 0 or 1: WHY -->    each command may end with either
_NOTE = r"<!-- (?P<note>not run|run by|exit 0 or 1): (?P<why>[^\n]*?) -->\n"
_BLOCK = re.compile(rf"^(?:{_NOTE})?(?P<indent> *)```(?P<language>[^\n]*)\n(?P<text>.*?)^ *```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    text: str
    note: str = ""
    why: str = ""

    def commands(self) -> list[tuple[str, str]]:
        r"""Give host and command of each line; one that ends with \ goes on in the next."""
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        pairs = [line.split("$ ", 1) for line in lines]
        assert all(len(pair) == 2 for pair in pairs), f"{self.page}: each line of a console is HOST$ COMMAND"
        return [(host, command) for host, command in pairs]


def blocks(path: Path, language: str = "") -> list[Block]:
    """Give a page's fenced blocks, of one language if it is named."""
    name = str(path.relative_to(ROOT))
    found = [
        Block(name, m["language"], _whole(m["text"]), m["note"] or "", m["why"] or "")
        for m in _BLOCK.finditer(path.read_text())
    ]
    return [block for block in found if language in ("", block.language)]


def _whole(text: str) -> str:
    """Put in the file that a block shows by its name."""
    shown = re.fullmatch(r"--8<--\n(.+)\n--8<--\n", text)
    return (ROOT / shown[1]).read_text() if shown else text


def section(title: str) -> list[Path]:
    """Give the pages of a section of the site, in its order."""

    class Loader(yaml.SafeLoader):
        """Reads what MkDocs adds to YAML as nothing."""

    Loader.add_multi_constructor("", lambda *_: None)
    nav: list[dict[str, Any]] = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"]
    (entries,) = (entry[title] for entry in nav if title in entry)
    return [DOCS / page for entry in entries for page in entry.values()]


def guides() -> list[Path]:
    """Give the pages whose commands are run: the front door, then both guides in their order."""
    return [ROOT / "README.md", DOCS / "getting-started.md", *section("User guide"), *section("Operator guide")]
