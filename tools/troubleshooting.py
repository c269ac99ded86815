"""Write the page of all error texts from the source, each with what mends it.

A sentence says what is wrong, and mostly, after a semicolon, what mends it. What mends the others is in `mends.toml`.
`python -m tools.troubleshooting` writes `docs/troubleshooting.md`, and `--check` says whether that page is stale.
"""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tools.sentences import AS_CAUSE, BACKEND, CHECK, REASON, ROOT, SETTINGS, USAGE, Sentence, sentences

PAGE = ROOT / "docs/troubleshooting.md"
MENDS = ROOT / "tools/mends.toml"
_BEGIN, _END = "<!-- sentences: begin, made by tools.troubleshooting -->", "<!-- sentences: end -->"
GROUPS = {
    USAGE: ("The command is not used as it can be", "Exit status 2. `--help` has an example of each command."),
    "INVALID_ARGUMENT": ("A value that cannot be right", "Exit status 2. Nothing was asked for or changed."),
    "UNAUTHENTICATED": ("Who are you?", "Exit status 3. `s2uc check-auth` says who you are to each gateway."),
    "PERMISSION_DENIED": (
        "Not allowed",
        "Exit status 3. `s2cs policy test` tells the operator the rule and its line.",
    ),
    "UNAVAILABLE": (
        "Not there, or not able to now",
        "Exit status 4. Try again; `s2uc ping` says how a gateway is.",
    ),
    "DEADLINE_EXCEEDED": ("Too late", "Exit status 4. What was begun is undone, or `s2uc status` knows it."),
    "NOT_FOUND": ("No such thing", "Exit status 5. Other users' sessions look as if there were none."),
    "RESOURCE_EXHAUSTED": ("No capacity", "Exit status 6. Nothing was taken."),
    "ALREADY_EXISTS": ("There is one already", "Exit status 1. What there is was left as it is."),
    "FAILED_PRECONDITION": (
        "Not now, or not here",
        "Exit status 1. Something else has to be first.",
    ),
    "INTERNAL": ("Failed", "Exit status 1."),
    AS_CAUSE: ("With what caused it", "The exit status is that of the cause, which is part of the sentence."),
    REASON: ("Why a session ended", "`s2uc status` and `s2uc watch` give it as the reason."),
    SETTINGS: (
        "In the settings",
        "Exit status 1, a line for each fault: `FILE: [TABLE] KEY: found VALUE; ...`.",
    ),
    CHECK: ("`s2cs check`", "Exit status 1, after everything was looked at."),
    BACKEND: ("Proxies that cannot be used", "`s2cs check` and `s2uc ping` say it."),
}


@dataclass(frozen=True)
class Mend:
    """What mends the sentences that a pattern fits; * is any text."""

    pattern: str
    text: str

    def fits(self, sentence: str) -> bool:
        """Tell whether it is about a sentence: of one with a semicolon, only if the pattern has it, too."""
        pattern = re.escape(self.pattern).replace(r"\*", ".*")
        return ("; " in self.pattern) >= ("; " in sentence) and bool(re.fullmatch(pattern, sentence))


def mends(text: str) -> list[Mend]:
    """Read them, the first that fits first."""
    return [Mend(pattern, mend) for pattern, mend in tomllib.loads(text).items()]


def entry(sentence: Sentence, known: list[Mend]) -> tuple[str, str]:
    """Give a sentence in two: what is wrong, and what mends it; that is empty where nobody has said it.

    The halves that are the product's own words are in code.
    """
    for mend in known:
        if mend.fits(sentence.text):
            return f"`{sentence.text}`", mend.text
    cause, _, rest = sentence.text.partition("; ")
    return (f"`{cause};`", f"`{rest}`") if rest else (f"`{sentence.text}`", "")


def section(found: list[Sentence], known: list[Mend]) -> str:
    """Write the groups with their tables."""
    parts = []
    for group, (title, words) in GROUPS.items():
        rows = sorted({entry(sentence, known) for sentence in found if sentence.group == group})
        table = "\n".join(f"| {cause.replace('|', '&#124;')} | {mend} |" for cause, mend in rows)
        parts.append(f"## {title}\n\n{words}\n\n| it says | what mends it |\n|---|---|\n{table}")
    return f"{_BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{_END}"


def renewed(page: str) -> str:
    """Put the present sentences between the page's markers."""
    text = section(sentences("scistream", "s2cs", "s2uc"), mends(MENDS.read_text()))
    before, _, rest = page.partition(_BEGIN)
    return before + text + rest.partition(_END)[2]


def main(arguments: list[str], page: Path = PAGE) -> int:
    """Write the page, or check it; give the exit status."""
    old = page.read_text()
    new = renewed(old)
    if arguments == ["--check"]:
        if new != old:
            sys.stderr.write(f"{page} is stale; run: make docs\n")
        return int(new != old)
    page.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
