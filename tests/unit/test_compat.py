"""The key of old clients' WAN legs: what it comes from, and what is refused as its secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2cs.compat import Compat, derived
from s2cs.settings_file import SettingsError, load
from scistream.errors import FailedPrecondition
from scistream.vocabulary import Uid

SECRET = b"0123456789abcdef"


def test_the_key_is_of_the_uid_and_the_secret_and_is_not_shown() -> None:
    keys = [derived(Uid(uid), secret).key for uid in ("a", "b") for secret in (b"", SECRET, SECRET + b"x")]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {32}
    assert derived(Uid("a"), SECRET) == derived(Uid("a"), SECRET)
    # RFC 5869 with the label; a change of it would part gateways of different versions.
    assert keys[0].hex() == "1bdaf27ee57232a1ee16e6c301402e716c8f6b6adbdf95392376dfbc276258d9"
    assert keys[0].hex() not in repr(derived(Uid("a"), b""))


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (SECRET, 0o644, "can be read by others"),
        (SECRET[1:], 0o600, "has 15 bytes"),
        (b"\n", 0o600, "has 0 bytes"),
        (None, 0, "cannot be read: No such file"),
    ],
)
def test_a_secret_that_cannot_be_used(tmp_path: Path, content: bytes | None, mode: int, says: str) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
        file.chmod(mode)
    with pytest.raises(FailedPrecondition, match=says):
        Compat(psk=True, psk_secret_file=file).secret()


def test_a_secret_is_read_without_its_line_end(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(SECRET + b"\r\n")
    file.chmod(0o600)
    assert Compat(psk_secret_file=file).secret() == SECRET
    assert Compat().secret() == b""


def test_suites_that_no_key_fits(tmp_path: Path) -> None:
    file = tmp_path / "s2cs.toml"
    file.write_text("[s2ds]\nciphers = ['TLS_AES_256_GCM_SHA384']\n[compat]\npsk = true\n")
    with pytest.raises(SettingsError, match="psk fits none of"):
        load(file, {})
