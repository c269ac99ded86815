"""What ends the demonstration's gateways when the demonstration itself can not: killed, it leaves nothing either."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

# Reads process ids until its input ends, which is when who wrote them has; "done" dismisses it.
_SCRIPT = """
pids=
while read -r word; do
  [ "$word" = done ] && exit
  pids="$pids $word"
done
[ -n "$pids" ] && kill $pids
for pid in $pids; do
  tries=0
  while kill -0 "$pid" && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
done
rm -rf -- "$1"
"""


class Keeper:
    """Watch over a directory and the processes that work in it, from outside of this program."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "sh", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            text=True,
            start_new_session=True,  # Ctrl-C is not for it
        )

    def watch(self, pid: int) -> None:
        """End this process, too, should it come to that."""
        self._write(str(pid))

    def dismiss(self) -> None:
        """Tell it that all is done, and wait until it has gone."""
        self._write("done")
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def _write(self, word: str) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
