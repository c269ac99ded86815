"""A decision explained: what was asked, what the answer is, and which line of the settings says so."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from s2cs.policy.decision import Datagrams, Decision, Forward, Open, Place, Trust, decide, rule_of
from s2cs.policy.resolver import Resolver
from s2cs.policy.sessions import ours
from s2cs.settings import Settings
from s2cs.settings_file import SEARCHED
from scistream.machine import Owner
from scistream.vocabulary import Endpoint, Role, duration

_HEADER = re.compile(r"\s*(\[\[?)\s*([A-Za-z0-9_.\s-]+?)\s*\]\]?\s*(?:#.*)?")


@dataclass(frozen=True, slots=True)
class Answer:
    """One thing that was asked, and what the policy says to it."""

    asked: str
    decision: Decision
    source: str  # file and line, or the variable of the environment; empty where no setting says it


class Explainer:
    """Judge for a user, and find where the settings say so."""

    def __init__(self, settings: Settings, file: Path | None, environ: Mapping[str, str] = os.environ) -> None:
        """Prepare to explain settings that were read from a file; None is where they are looked for."""
        self._settings = settings
        self._file = file or next(path for path in SEARCHED if path.exists())
        self._lines = self._file.read_text(encoding="utf-8").splitlines()
        self._environ = environ

    def rule(self, user: Owner) -> str:
        """Say which rule is a user's."""
        number, rule = rule_of(self._settings.policy, user)
        if rule is None:
            return "no rule names them: what [policy] and [limits] say for all"
        name = f' "{rule.name}"' if rule.name else ""
        return f"[[policy.rules]] {number}{name}, {self.source(Place('policy.rules', '', number))}"

    def opening(self, user: Owner, asked: Open) -> Answer:
        """Judge a request for a session."""
        words = [f"{asked.num_conn} connection{'' if asked.num_conn == 1 else 's'}", f"rate {asked.rate}"]
        words += [f"lease {duration(asked.lease_s)}"] if asked.lease_s else []
        words += [f"backend {asked.backend}"] if asked.backend else []
        return self._answer("a session: " + ", ".join(words), decide(self._settings, user, asked))

    def datagrams(self, user: Owner, asked: Open) -> list[Answer]:
        """Judge a request for UDP, for either side."""
        sides = ((Role.PROD, "producer's"), (Role.CONS, "consumer's"))
        return [
            self._answer(f"udp in plain, {side} side", decide(self._settings, user, Datagrams(role, asked.rate)))
            for role, side in sides
        ]

    async def leading(self, user: Owner, role: Role, endpoints: Iterable[Endpoint], udp: bool = False) -> list[Answer]:
        """Judge where a session is to lead, names looked up as the gateway does; for UDP, whether a peer is trusted.

        Raises:
            InvalidArgument: a name does not resolve here.
            DeadlineExceeded: the resolver does not answer.
        """
        resolver, own, answers = Resolver(), ours(self._settings), []
        for endpoint in endpoints:
            addresses = await resolver.addresses(endpoint)
            decisions = [
                decide(self._settings, user, Forward(role, address, endpoint.port, endpoint.host, own))
                for address in addresses
            ]
            number = next((i for i, each in enumerate(decisions) if each.allowed), 0)
            answers.append(self._answer(f"{'target' if role is Role.PROD else 'peer'} {endpoint}", decisions[number]))
            if udp and role is Role.CONS:
                trusted = decide(self._settings, user, Trust(addresses[number], endpoint.host))
                answers.append(self._answer(f"udp to and from peer {endpoint}", trusted))
        return answers

    def _answer(self, asked: str, decision: Decision) -> Answer:
        return Answer(asked, decision, self.source(decision.rule))

    def source(self, place: Place) -> str:
        """Say where a setting is: file and line, or the variable that overrides it."""
        if not place.table:
            return ""
        top, _, array = place.table.partition(".")
        variable = f"SCISTREAM_{top}__{array or place.key}".upper()
        if variable in self._environ:
            return f"variable {variable}"
        line = self._line(place)
        return f"{self._file} line {line}" if line else f"{self._file} leaves it out"

    def _line(self, place: Place) -> int:
        """Find the line of a key, or of its table where there is no key; 0 where it is not written."""
        table, number, found = "", 0, 0
        for count, text in enumerate(self._lines, 1):
            if header := _HEADER.fullmatch(text):
                table = re.sub(r"\s", "", header[2])
                number += table == "policy.rules" and header[1] == "[["
                if (table, number if place.rule else 0) == (place.table, place.rule) and not place.key:
                    return count
            elif (
                table == place.table
                and (not place.rule or number == place.rule)
                and re.match(rf"\s*{re.escape(place.key)}\s*=", text)
            ):
                found = count
        return found
