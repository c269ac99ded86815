"""The gateways that all attacks share, and the streams through them that no attack may disturb."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.siege import Siege, siege


@pytest.fixture(scope="package")
def _siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    with siege(tmp_path_factory.mktemp("siege")) as running:
        yield running


@pytest.fixture
def besieged(_siege: Siege) -> Iterator[Siege]:
    """Two gateways with a stream through each backend; after the attack every one of them still moves."""
    _siege.see_all_move()
    yield _siege
    _siege.see_all_move()
