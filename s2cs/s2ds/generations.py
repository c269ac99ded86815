"""The generations of a tunnel's files: each new configuration beside the one in force, with its own credentials.

The proxy is told of one path. What is there is a link to the configuration of the generation in force, which
names that generation's files: so all of them change at once, or none does.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Self

from s2cs.s2ds.confinement import RUN, Confinement
from s2cs.s2ds.credentials import ANCHORS, LEAF, PEERS, PSK
from s2cs.s2ds.files import make, room, show, write
from scistream.errors import Unavailable
from scistream.x509 import Certificate

_NEXT = "next"  # a configuration that is being judged


def entrust(directory: Path, confinement: Confinement) -> None:
    """Let a tunnel's proxies read what is for them in its directory, and write to one place in it.

    All else there stays this user's own: so nothing that is done here by name can be led elsewhere by them.
    """
    (directory / RUN).mkdir(mode=0o700, exist_ok=True)
    confinement.give(directory / RUN)
    show(directory, confinement.reader)
    for path in directory.iterdir():
        if path.name.isdigit():
            show(path, confinement.reader)
            for file in path.iterdir():
                show(file, confinement.reader)


class Generations:
    """Files of a tunnel, in numbered directories."""

    def __init__(self, directory: Path, config: str, confinement: Confinement) -> None:
        """Keep generations in a directory, whose configuration has that file name, for proxies to read."""
        self.config = directory / config
        self.in_force = 0  # the one that the proxy has; 0 is none
        self._directory = directory
        self._written = 0
        self._reader = confinement.reader

    @classmethod
    def regain(cls, directory: Path, config: str, confinement: Confinement) -> Self:
        """Find what an earlier server wrote, and clear away what it did not put in force."""
        found = cls(directory, config, confinement)
        numbers = found._numbers
        found._written = max(numbers, default=0)
        for number in numbers:
            with suppress(FileNotFoundError):  # none is in force, or it was killed before it had written this one
                if found.config.samefile(directory / str(number) / config):
                    found.in_force = number
        for number in numbers:
            if number > found.in_force:
                found.discard(number)
        return found

    @property
    def next(self) -> int:
        """The number of the one that will be written next."""
        return self._written + 1

    def write(self, config: str, credentials: Mapping[str, bytes]) -> int:
        """Write a generation beside the one in force, with its credentials by file name; give its number.

        A pre-shared key stays that of the one in force: the other gateway has it, whatever it would come from now.

        Raises:
            ResourceExhausted: there is no room.
        """
        if PSK in credentials:
            with suppress(FileNotFoundError):
                credentials = {**credentials, PSK: (self._directory / str(self.in_force) / PSK).read_bytes()}
        self._written += 1
        directory = self._directory / str(self._written)
        try:
            with room(directory):
                make(directory, self._reader)
                for name, content in {self.config.name: config.encode(), **credentials}.items():
                    write(directory / name, content, self._reader)
        except BaseException:
            self.discard(self._written)
            raise
        return self._written

    def anchors(self) -> tuple[Certificate, ...]:
        """Read what a peer's certificate may be from, of the generation in force.

        Raises:
            OSError: there is none.
            InvalidArgument: it cannot be read.
        """
        return Certificate.all_from_pem((self._directory / str(self.in_force) / ANCHORS).read_bytes())

    def peers(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """Read whose datagrams are taken, of the generation in force.

        Raises:
            Unavailable: they cannot be read.
        """
        file = self._directory / str(self.in_force) / PEERS
        try:
            return tuple(map(ip_address, file.read_text().split()))
        except (OSError, ValueError) as error:
            raise Unavailable(f"{file} cannot be read ({error}); release the session, and request another") from None

    @property
    def credentials(self) -> tuple[Path, Path]:
        """The files in force: leaf with key, and anchors; PEM."""
        directory = self._directory / str(self.in_force)
        return directory / LEAF, directory / ANCHORS

    def stage(self, number: int) -> Path:
        """Put a generation's configuration where the proxy finds the files that it names."""
        staged = self._directory / _NEXT
        with room(staged):
            staged.unlink(missing_ok=True)
            staged.hardlink_to(self._directory / str(number) / self.config.name)
        return staged

    def switch(self, number: int) -> None:
        """Put a generation in force, at once and whole."""
        self.stage(number).replace(self.config)
        self.in_force = number

    def alike(self, number: int) -> bool:
        """Tell whether a generation says what the one in force says, which the proxy is known to have."""
        if min(self._numbers) < self.in_force:
            return False  # an earlier server put it in force, and has perhaps not told the proxy
        one, other = (
            {path.name: path.read_bytes() for path in (self._directory / str(each)).iterdir()}
            for each in (self.in_force, number)
        )
        return one == other

    def settle(self) -> None:
        """Remove all but the one in force, which the proxy has now."""
        for number in self._numbers:
            if number != self.in_force:
                self.discard(number)

    @property
    def _numbers(self) -> list[int]:
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdigit())

    def discard(self, number: int) -> None:
        """Remove a generation."""
        shutil.rmtree(self._directory / str(number), ignore_errors=True)
