"""The pages' own rules: what a block may be, and that no command goes unrun without a reason."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from s2cs.cli import cli as s2cs_cli
from s2cs.settings import Settings
from s2uc.cli import cli as s2uc_cli
from scistream.errors import ScistreamError
from tests.support.pages import DOCS, ROOT, blocks, guides
from tools import troubleshooting
from tools.sentences import Sentence, sentences

# Commands that no test runs, by page, each with its reason in the page. Run what can be run; then count it here.
NOT_RUN = {"docs/operator/audit.md": 2, "docs/user/workflows.md": 1}
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
            not_run += len(block.commands()) if block.language == "console" else 1
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


@pytest.mark.parametrize("example", sorted(ROOT.glob("examples/*.*")), ids=lambda example: example.name)
def test_examples_are_short_and_on_their_page(example: Path) -> None:
    assert f"examples/{example.name}" in (DOCS / "user/workflows.md").read_text()
    assert len(example.read_text().splitlines()) <= 60


# Troubleshooting


@pytest.fixture(scope="module")
def said() -> list[Sentence]:
    return sentences("scistream", "s2cs", "s2uc")


def test_troubleshooting_is_not_stale(capsys: pytest.CaptureFixture[str]) -> None:
    assert troubleshooting.main(["--check"]) == 0, capsys.readouterr().err


def test_every_error_has_what_mends_it(said: list[Sentence]) -> None:
    known = troubleshooting.mends(troubleshooting.MENDS.read_text())
    assert len(said) > 300
    for sentence in said:
        assert sentence.group in troubleshooting.GROUPS, sentence
        cause, mend = troubleshooting.entry(sentence, known)
        assert mend, f"{sentence.where}: say what mends it after a semicolon, or in tools/mends.toml: {sentence.text}"
        assert f"| {cause.replace('|', '&#124;')} | {mend} |" in troubleshooting.PAGE.read_text()


def test_every_mend_is_of_an_error(said: list[Sentence]) -> None:
    known = troubleshooting.mends(troubleshooting.MENDS.read_text())
    used = {next((mend for mend in known if mend.fits(sentence.text)), None) for sentence in said}
    assert [mend.pattern for mend in known if mend not in used] == []


def test_a_stale_page_of_errors_is_found_and_mended(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(troubleshooting.PAGE.read_text().replace("the token is empty", "the token is full"))
    assert troubleshooting.main(["--check"], page) == 1
    assert troubleshooting.main([], page) == 0
    assert page.read_text() == troubleshooting.PAGE.read_text()


@pytest.mark.parametrize(
    ("program", "line"),
    [
        (s2uc_cli, "--config {} release scan-7"),
        (s2uc_cli, "--config {} request --producer a --consumer b --rate much"),
        (s2uc_cli, "--config {} gateway add x 10.1.0.5"),
        (s2uc_cli, "--config {} outbound-request --gateway a --ticket {}/none"),
        (s2cs_cli, "check --config {}/none.toml"),
        (s2cs_cli, "init {} --lan nowhere"),
        (s2cs_cli, "audit show --config {}/s2cs.toml --since soon"),
    ],
)
def test_what_is_said_is_on_the_page(program: click.Group, line: str, said: list[Sentence], tmp_path: Path) -> None:
    CliRunner().invoke(s2cs_cli, ["init", str(tmp_path)])
    result = CliRunner().invoke(program, line.format(tmp_path, tmp_path).split())
    assert result.exit_code
    found = str(result.exception) if isinstance(result.exception, ScistreamError) else result.stderr
    patterns = [re.sub(r"\\{\w+\\}", ".*", re.escape(sentence.text)) for sentence in said]
    fitting = [pattern for pattern in patterns if re.search(pattern, found) and len(pattern) > 20]
    assert fitting, found
