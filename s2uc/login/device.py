"""A login that is finished on another device: a code is shown here and typed there (RFC 8628)."""

from __future__ import annotations

import asyncio

from s2uc.login.grant import Grant, Terms, check_url
from s2uc.login.issuer import Issuer, refusal
from s2uc.login.prompt import Prompt, Show
from scistream.errors import DeadlineExceeded, InvalidArgument, Unavailable
from scistream.vocabulary import printable

_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_INTERVAL_S = 5.0  # where the issuer names none
_SLOWER_S = 5.0


async def by_device(issuer: Issuer, terms: Terms, show: Show, timeout: float) -> Grant:
    """Log in by a code.

    Args:
        issuer: where.
        terms: what for.
        show: is called once, with the page to open and the code to type there.
        timeout: seconds that the person has; the issuer may give less.

    Raises:
        PermissionDenied: the person refused, or the issuer.
        DeadlineExceeded: nobody came.
    """
    begun = await issuer.post("device_authorization", {**terms.form(), "scope": " ".join(terms.scopes)})
    if "error" in begun:
        raise refusal(issuer.url, begun)
    clock = asyncio.get_running_loop().time
    try:
        code, page = str(begun["device_code"]), check_url(str(begun["verification_uri"]), "the issuer's page")
        complete = begun.get("verification_uri_complete")
        life = float(begun["expires_in"])
        pause = float(begun.get("interval", _INTERVAL_S))
        prompt = Prompt(
            page,
            printable(str(begun["user_code"])),
            check_url(str(complete), "the issuer's page") if complete else "",
            min(life, timeout),
        )
    except (KeyError, ValueError, TypeError, InvalidArgument):
        raise Unavailable(f"issuer {issuer.url} gives no code as RFC 8628 has it; use another way to log in") from None
    end = clock() + prompt.seconds
    show(prompt)
    form = {"grant_type": _GRANT, "device_code": code}
    while clock() + pause < end:
        await asyncio.sleep(pause)
        try:
            answer = await issuer.token(terms, form)
        except Unavailable:  # an issuer that is away for a moment: the code goes on
            pause *= 2
            continue
        if answer.grant is not None:
            return answer.grant
        if answer.said["error"] == "slow_down":
            pause += _SLOWER_S
        elif answer.said["error"] != "authorization_pending":
            raise refusal(issuer.url, answer.said)
    raise DeadlineExceeded(f"issuer {issuer.url}: nobody logged in within {prompt.seconds:g} s; run the login again")
