"""Which of several S2CS that share a store a node obeys: the one that began to lead last."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from scistream.errors import FailedPrecondition, Unavailable

TERM = "scistream-term"  # the metadata that tells it


class Terms:
    """Keep the latest term that was heard of, over restarts of the node: a number that grows with each leader.

    An S2CS that is alone has none, which is 0.
    """

    def __init__(self, file: Path) -> None:
        """Go on with what was noted in a file."""
        self._file = file
        self._latest = 0
        with suppress(OSError, ValueError):
            self._latest = int(file.read_text())

    def take(self, term: int, order: bool) -> None:
        """Hear of a term.

        Args:
            term: of who calls.
            order: whether the call is to change something.

        Raises:
            FailedPrecondition: it is an order of somebody who leads no longer.
            Unavailable: the term cannot be noted.
        """
        if term > self._latest:
            try:
                draft = self._file.with_name(f".{self._file.name}.new")
                draft.write_text(f"{term}\n")
                draft.replace(self._file)
            except OSError as error:
                raise Unavailable(f"{self._file} cannot be written: {error.strerror}; mend the node's disk") from None
            self._latest = term
        elif order and term < self._latest:
            raise FailedPrecondition(
                f"this node obeys an S2CS of term {self._latest}, and this one's is {term}: another one leads now; "
                f"if none does, and the store was made anew, remove {self._file} and start the node again"
            )
