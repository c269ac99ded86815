"""What holds for all tests."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more of what else the machine does than of the code.
settings.register_profile("loaded", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loaded")

# A shell's background jobs ignore these, and so would every program that a test starts and interrupts.
for number in (signal.SIGQUIT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
# Whoever ends the tests, so that they clear away what they have begun: gateways live on otherwise, and their proxies.
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.default_int_handler)


# A worker runs a module at a time: those that take a minute and more must not be what the others wait for at the end.
_LONG = ("live/test_tunnel.py", "live/test_tunnel_refusals.py", "live/test_web.py", "live/test_readme.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long modules."""
    items.sort(key=lambda item: not item.nodeid.split("::")[0].endswith(_LONG))


@pytest.fixture(scope="session")
def oidc() -> Iterator[Any]:
    """The shared `Provider`, with its settings as they are; a test that changes them runs its own."""
    from tests.support.provider import provider

    with provider() as running:
        yield running


@pytest.fixture(scope="session")
def docker() -> Iterator[Any]:
    """A `Daemon` of Docker, with our image."""
    from tests.support.containers import daemon, load

    with daemon("dockerd") as running:
        load(running)
        yield running
