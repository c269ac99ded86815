"""Say which proxies there are: run in an image by a data server that makes containers of it.

python3 -m s2cs.s2ds.survey '{"nginx": "/opt/nginx"}'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.backends.base import Found


def survey(programs: Mapping[str, str]) -> str:
    """Look at the proxies here, and write down what was found.

    Args:
        programs: the operator's choice, by backend.
    """
    found = {}
    for name, backend in BACKENDS.items():
        each = asdict(backend.find(Path(programs[name]) if name in programs else None))
        found[name] = {**each, "options": sorted(each["options"])}
    return json.dumps(found, default=str)


def read(text: str) -> dict[str, Found]:
    """Read what was written down, by backend.

    Raises:
        ValueError: it is no such thing.
    """
    try:
        return {str(name): _found(each) for name, each in json.loads(text).items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no survey of proxies: {error}") from None


def _found(each: Mapping[str, Any]) -> Found:
    module = Path(each["module"]) if each["module"] else None
    texts = (str(each["version"]), str(each["reason"]), str(each["caution"]))
    return Found(Path(each["program"]), *texts, module, frozenset(map(str, each["options"])))


if __name__ == "__main__":
    print(survey(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}))  # noqa: T201 - its answer
