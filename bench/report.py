"""From a result to the documentation: the tables of docs/benchmarks.md, and the plots beside it.

The page is written by hand around pairs of markers; what stands between a pair is made here, from
docs/benchmarks.json, which keeps the last result of each part.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bench import sizing
from bench.tables import TABLES, runs

DOCS = Path(__file__).parents[1] / "docs"
KEPT = "benchmarks.json"
PAGE = "benchmarks.md"
SIZES = "sizing.md"
_SIZED_BY = {"datapath", "density", "control"}
IMAGES = "img"


def publish(result: dict[str, Any], docs: Path = DOCS) -> list[Path]:
    """Merge a result into what is kept, and write page and plots anew; the files."""
    kept_file = docs / KEPT
    kept = json.loads(kept_file.read_text()) if kept_file.exists() else {"parts": {}}
    merge(kept, result)
    kept_file.write_text(json.dumps(kept, indent=1) + "\n")
    from bench import plots  # noqa: PLC0415 - only drawing needs the extra

    images = docs / IMAGES
    images.mkdir(exist_ok=True)
    drawn = [images / name for name in plots.draw(kept["parts"], images)]
    pages = [docs / PAGE, docs / SIZES]
    pages[0].write_text(filled(pages[0].read_text(), kept["parts"]))
    pages[1].write_text(sized(pages[1].read_text(), kept["parts"]))
    return [kept_file, *pages, *drawn]


def merge(kept: dict[str, Any], result: dict[str, Any]) -> None:
    """Put the parts of a result in place of those that are kept; one that found nothing takes nobody's place."""
    for name, part in result["parts"].items():
        if part.get("rows") == [] and name in kept["parts"]:
            print(f"{name}: nothing was measured ({part.get('missing')}); what is there stays")
            continue
        kept["parts"][name] = _slim(part) | {"machine": result["machine"], "quick": result["quick"]}


def filled(text: str, parts: dict[str, Any]) -> str:
    """Put tables between a page's markers; those of parts that were not measured stay as they are.

    Raises:
        ValueError: a table has no place in the page.
    """
    for name, (part, make) in TABLES.items():
        if part not in parts:
            continue
        text = _between(text, name, make(parts[part]))
    return _between(text, "runs", runs(parts))


def sized(text: str, parts: dict[str, Any]) -> str:
    """Put measured inputs and what follows from them into the page of sizes."""
    if not set(parts) >= _SIZED_BY:
        return text
    text = _between(text, "inputs", sizing.inputs_table(parts))
    return _between(text, "facility", sizing.facility_table(parts))


def _between(text: str, name: str, body: str) -> str:
    pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"a page has no markers for {name}")
    return pattern.sub(lambda match: f"{match[1]}\n{body}\n\n{match[2]}", text)


def _slim(part: dict[str, Any]) -> dict[str, Any]:
    """Leave single samples out of what is kept: the figures made of them are there."""
    return {
        key: [{k: v for k, v in row.items() if k != "samples"} for row in value] if key == "rows" else value
        for key, value in part.items()
    }
