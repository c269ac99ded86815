"""`s2uc test`: a real tunnel through two gateways, measured and given back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.user import Facilities, facilities


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facilities]:
    with facilities(tmp_path_factory.mktemp("trial")) as running:
        yield running


def test_a_trial_measures_and_leaves_nothing(both: Facilities) -> None:
    ways = ("--producer", "aps", "--consumer", "alcf", "--num-conn", "2", "--seconds", "0.5")
    found = both.user.json("test", *ways)
    assert (found["producer"], found["consumer"], found["num_conn"]) == ("aps", "alcf", 2)
    assert found["bytes"] > 0
    assert found["frames"] >= 2
    assert abs(found["gbit_per_s"] - found["bytes"] * 8e-9 / found["seconds"]) < 0.01
    trip = found["round_trip_ms"]
    assert 0 < trip["min"] <= trip["median"] <= trip["max"]
    assert all(found["backends"])
    assert both.left() == {}
    assert both.user.records() == []
    words = both.user.s2uc("test", *ways, "--backend", "stunnel").stdout
    assert "aps (stunnel) to alcf (stunnel)" in words


def test_a_forbidden_or_foreign_address_is_said(both: Facilities) -> None:
    ways = ("test", "--producer", "aps", "--consumer", "alcf", "--seconds", "0.5")
    assert "cannot listen on 192.0.2.7" in both.user.complaint(*ways, "--host", "192.0.2.7", expect=2)
    assert "does not forward to [::1]" in both.user.complaint(*ways, "--host", "::1", expect=3)
    assert both.left() == {}
