"""The same question to several gateways at once: the answer of each, or why there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from s2uc.commands.common import Settings, chosen, perform
from s2uc.config import KnownGateway
from scistream.errors import ScistreamError

if TYPE_CHECKING:
    from s2uc.gateway import Gateway


class _Answer(Protocol):
    def as_dict(self) -> dict[str, Any]:
        """Give what `--json` prints."""


_A = TypeVar("_A", bound=_Answer)


def ask_each(
    settings: Settings,
    names: tuple[str, ...],
    ask: Callable[[Gateway], Awaitable[_A]],
    show: Callable[[str, _A | ScistreamError], str],
) -> None:
    """Ask the named gateways, or all that are known, and print what they say; end as the first that fails.

    Args:
        settings: the command's.
        names: the user's words for them; empty is all.
        ask: asks one.
        show: words for one, by its name and its answer.

    Raises:
        InvalidArgument: none are known.
    """
    known = chosen(settings, names)

    async def one(gateway: KnownGateway) -> _A | ScistreamError:
        try:
            return await ask(gateway.live())
        except ScistreamError as error:
            return error

    async def all_of_them() -> list[_A | ScistreamError]:
        return await asyncio.gather(*map(one, known))

    answers = [(gateway.name, answer) for gateway, answer in zip(known, perform(all_of_them()), strict=True)]
    content = [
        {"gateway": name, **({"error": str(answer)} if isinstance(answer, ScistreamError) else answer.as_dict())}
        for name, answer in answers
    ]
    settings.emit({"gateways": content}, "\n".join(show(name, answer) for name, answer in answers))
    if failed := next((answer for _, answer in answers if isinstance(answer, ScistreamError)), None):
        click.get_current_context().exit(failed.exit_status)
