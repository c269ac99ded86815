"""Log-ins to the page: how long they last, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from s2cs.settings import WebSettings
from s2cs.web.logins import Login, Logins
from scistream.errors import ResourceExhausted


@dataclass
class Time:
    """A clock that is set by hand."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def logins(time: Time) -> Logins:
    return Logins(lambda: WebSettings(idle=10, life=100), time)


def found(logins: Logins, cookie: str) -> Login:
    login = logins.find(cookie)
    assert login is not None
    return login


def test_one_that_nobody_uses_ends(logins: Logins, time: Time) -> None:
    cookie = logins.open("token", "alice")
    time.now = 9
    found(logins, cookie)
    time.now = 18
    assert found(logins, cookie).token == "token"
    time.now = 29
    assert logins.find(cookie) is None
    assert len(logins) == 0


def test_an_open_page_uses_it_but_not_for_ever(logins: Logins, time: Time) -> None:
    cookie = logins.open("token", "alice")
    login = found(logins, cookie)
    logins.attach(login)
    time.now = 90
    assert logins.find(cookie) is login
    assert logins.lasts(login)
    time.now = 101
    assert not logins.lasts(login)
    assert logins.find(cookie) is None


def test_its_end_is_told_to_what_is_open(logins: Logins) -> None:
    cookie = logins.open("token", "alice")
    login = found(logins, cookie)
    logins.close(cookie)
    assert login.over.is_set()
    assert logins.find(cookie) is None
    logins.close(cookie)


def test_no_token_is_shown_and_no_cookie_kept(logins: Logins) -> None:
    cookie = logins.open("s2t_secret", "alice")
    assert "s2t_secret" not in repr(found(logins, cookie))
    assert cookie not in repr(vars(logins))


def test_all_together_are_bounded(logins: Logins) -> None:
    for n in range(256):
        logins.open("token", f"user {n}")
    with pytest.raises(ResourceExhausted, match="wait"):
        logins.open("token", "one more")


def test_a_few_users_do_not_keep_the_others_out(logins: Logins) -> None:
    first = logins.open("token", "user 0")
    for n in range(255):
        logins.open("token", f"user {n // 8}")
    own = logins.open("token", "one more")
    assert found(logins, own).owner == "one more"
    assert logins.find(first) is None
    assert len(logins) == 256


def test_those_of_a_user_who_has_gone_end(logins: Logins) -> None:
    gone, there = logins.open("token", "alice"), logins.open("token", "bob")
    login = found(logins, gone)
    logins.close_all(lambda owner: owner == "alice")
    assert login.over.is_set()
    assert logins.find(gone) is None
    assert logins.find(there) is not None


def test_streams_of_one_user_are_bounded(logins: Logins) -> None:
    each = [found(logins, logins.open("token", "alice")) for _ in range(3)]
    for login in each[:2]:
        for _ in range(4):
            logins.attach(login)
    with pytest.raises(ResourceExhausted, match="close one"):
        logins.attach(each[2])


def test_streams_of_all_together_are_bounded(logins: Logins) -> None:
    each = [found(logins, logins.open("token", f"user {n}")) for n in range(17)]
    for login in each[:16]:
        for _ in range(4):
            logins.attach(login)
    with pytest.raises(ResourceExhausted, match="close one"):
        logins.attach(each[16])
    logins.detach(each[0])
    logins.attach(each[16])
