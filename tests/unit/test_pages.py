"""The pages' own rules: what a block may be, and that no command goes unrun without a reason."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest
import yaml

from s2cs.settings import Settings
from tests.support.pages import DOCS, ROOT, blocks, guides

# Commands that no test runs, by page, each with its reason in the page. Run what can be run; then count it here.
NOT_RUN = {"docs/operator/audit.md": 2}
LANGUAGES = {"console", "python", "toml", "yaml", "json", "text", "ini"}
PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]


@pytest.mark.parametrize("page", guides(), ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_the_guides(page: Path) -> None:
    not_run = 0
    for block in blocks(page):
        assert block.language in LANGUAGES or (page.name == "README.md" and block.language in ("sh", "")), block
        if block.language == "console":
            assert block.commands()
        if block.note == "not run":
            not_run += len(block.commands())
            assert len(block.why.split()) > 3, f"{page}: say why it is not run"
        if block.note == "run by":
            assert (ROOT / block.why).is_file(), f"{page}: there is no {block.why}"
    assert not_run == NOT_RUN.get(str(page.relative_to(ROOT)), 0)


@pytest.mark.parametrize("page", guides(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_in_fences(page: Path) -> None:
    """What is indented only would be seen by nobody who runs the pages."""
    inside = False
    for line in page.read_text().splitlines():
        inside ^= line.lstrip().startswith("```")
        assert inside or not line.startswith(("    s2", "    $ ", "    sudo", "    curl")), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_can_be_read(page: Path) -> None:
    for block in blocks(page):
        if block.language == "toml":
            settings = tomllib.loads(block.text)
            if set(settings) & set(Settings.model_fields):
                Settings.model_validate(settings, context={"base": ROOT})
        if block.language == "yaml":
            assert yaml.safe_load(block.text)
        if block.language == "python":
            ast.parse(block.text)
