"""The benchmarks' own arithmetic, and that their page says what was measured."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from bench import delayline, report
from bench.sizing import Gateway, Inputs
from bench.stats import line, paired, quantile, summary
from bench.tables import TABLES, runs

DOCS = Path(__file__).parents[2] / "docs"


def test_quantiles_lie_between_the_values() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert quantile(values, 0) == 1
    assert quantile(values, 0.5) == 2.5
    assert quantile(values, 1) == 4
    assert quantile([7.0], 0.99) == 7
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_a_summary_has_all_that_the_tables_show() -> None:
    assert summary([1.0, 2.0, 3.0]) == {"n": 3, "min": 1, "p50": 2, "p95": 2.9, "p99": 2.98, "max": 3}


def test_what_slows_both_of_a_pair_leaves_their_ratio() -> None:
    found = paired([2.0, 4.0, 20.0], [1.0, 2.0, 10.0])
    assert found == {"n": 3, "ratio": 2, "low": 2, "high": 2}
    with pytest.raises(ValueError, match="zip"):
        paired([1.0], [1.0, 2.0])


def test_a_line_through_points() -> None:
    assert line([0, 1, 2], [1, 3, 5]) == {"slope": 2, "intercept": 1}


def test_the_page_has_a_place_for_every_table_and_is_not_stale() -> None:
    page, kept = (DOCS / report.PAGE).read_text(), json.loads((DOCS / report.KEPT).read_text())
    for name in TABLES:
        assert f"<!-- begin {name} -->" in page
        assert f"<!-- end {name} -->" in page
    assert report.filled(page, kept["parts"]) == page
    sizes = (DOCS / report.SIZES).read_text()
    assert report.sized(sizes, kept["parts"]) == sizes


def test_a_page_without_a_place_is_said() -> None:
    with pytest.raises(ValueError, match="no markers for"):
        report.filled("nothing", json.loads((DOCS / report.KEPT).read_text())["parts"])


def test_a_part_that_found_nothing_takes_nobodys_place(capsys: pytest.CaptureFixture[str]) -> None:
    kept = json.loads((DOCS / report.KEPT).read_text())
    wan, machine = kept["parts"]["wan"], {"date": "now", "commit": "abc"}
    found = {"rows": [{"sessions": 1, "samples": [1]}], "load_before": 0.0, "took_s": 1.0}
    parts = {"wan": {"rows": [], "missing": {"wan": "needs root"}}, "control": found}
    report.merge(kept, {"parts": parts, "machine": machine, "quick": True})
    assert kept["parts"]["wan"] is wan
    assert "needs root" in capsys.readouterr().out
    assert kept["parts"]["control"] == found | {"rows": [{"sessions": 1}], "machine": machine, "quick": True}
    assert "| control | now | abc | 0.0 | 1 s | `--quick`: more noise |" in runs(kept["parts"])


def test_the_sizes_of_a_gateway_follow_from_what_was_measured() -> None:
    inputs = Inputs(cpu_s_per_gb=0.8, proxy_mb=2, s2cs_mb=60, s2cs_kb=20, descriptors=3, set_ups_per_s=100)
    each = Gateway(inputs, sessions=1000, num_conn=4, rtt_s=0.1)
    assert each.cores == 15  # 0.8 x 12.5 x 1.5
    assert each.bdp_mb == pytest.approx(1250)
    assert each.memory_gb == pytest.approx((1000 * 2.02 + 60 + 2500) / 1000)
    assert each.buffer_mb == pytest.approx(625)
    assert (each.ports, each.descriptors) == (4000, 6064)


# The wire


def frame(payload: bytes, size: int) -> bytes:
    """Make an offload frame of TCP over IPv4 as a TUN device gives it: the checksum is the pseudo header's."""
    ip = bytearray(
        struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + len(payload), 7, 0, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    )
    struct.pack_into("!H", ip, 10, 0xFFFF - delayline._sum(bytes(ip)))
    pseudo = delayline._sum(bytes(ip[12:20]) + struct.pack("!HH", 6, 20 + len(payload)))
    tcp = struct.pack("!HHIIBBHHH", 1000, 2000, 0xFFFFFFF0, 5, 0x50, 0x19, 100, pseudo, 0)
    return delayline._VNET.pack(1, 1, 40, size, 20, 16) + bytes(ip) + tcp + payload


def test_a_lost_packet_is_cut_out_of_its_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = bytes(range(250)) * 2
    whole = frame(payload, 100)
    luck = iter([1.0, 1.0, 0.0, 1.0, 1.0])
    monkeypatch.setattr(delayline.random, "random", lambda: next(luck))
    way = delayline.Direction(out=-1, delay_s=0, loss=0.5, bytes_per_s=0)
    way.take(whole, 0.0)
    parts = [part for _, part in way.queue]
    assert way.lost == 1
    assert [part[50:] for part in parts] == [payload[:200], payload[300:]]
    for part, sequence, flags in zip(parts, (0xFFFFFFF0, (0xFFFFFFF0 + 300) % 2**32), (0x10, 0x19), strict=True):
        ip, tcp = part[10:30], part[30:50]
        assert delayline._sum(ip) == 0xFFFF
        assert struct.unpack_from("!H", ip, 2)[0] == len(part) - 10
        assert struct.unpack_from("!I", tcp, 4)[0] == sequence
        assert tcp[13] == flags
        pseudo = delayline._sum(ip[12:20] + struct.pack("!HH", 6, len(part) - 30))
        assert struct.unpack_from("!H", tcp, 16)[0] == pseudo


def test_a_frame_that_nothing_is_lost_of_is_cut_into_itself() -> None:
    whole = frame(bytes(300), 100)
    assert delayline.part_of(whole, 0, 3) == whole
