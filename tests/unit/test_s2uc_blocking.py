"""The library without asyncio, where no gateway is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

_WAITS = """
import asyncio, signal, threading
from s2uc.blocking import wait_for

undone, end = [], threading.Event()

def elsewhere():
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    end.wait()

async def work():
    threading.Thread(target=elsewhere).start()
    try:
        await asyncio.sleep(60)
    finally:
        undone.append(True)
        end.set()

try:
    wait_for(work())
except KeyboardInterrupt:
    print("interrupted", undone)
"""


def test_an_interrupt_that_the_system_gives_to_another_thread_ends_the_wait() -> None:
    done = subprocess.run([sys.executable, "-c", _WAITS], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("interrupted [True]\n", "")


_INTERRUPTED_AT_ONCE = """
import asyncio
from s2uc import blocking

undone, submit = [], asyncio.run_coroutine_threadsafe

async def work():
    try:
        await asyncio.sleep(60)
    finally:
        undone.append(True)

def interrupted(coroutine, loop):
    submit(coroutine, loop)
    WAITS
    raise KeyboardInterrupt

asyncio.run_coroutine_threadsafe = interrupted
try:
    blocking.wait_for(work())
except KeyboardInterrupt:
    submit(asyncio.sleep(0), blocking._loop()).result()
    print("interrupted", undone)
"""


@pytest.mark.parametrize(("waits", "undone"), [("import time; time.sleep(0.2)", [True]), ("pass", None)])
def test_an_interrupt_while_the_work_is_handed_over_ends_it(waits: str, undone: list[bool] | None) -> None:
    program = _INTERRUPTED_AT_ONCE.replace("WAITS", waits)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    expected = [[], [True]] if undone is None else [undone]  # whether it had begun or not: it does not go on
    assert done.stdout in [f"interrupted {each}\n" for each in expected]
    assert done.stderr == ""
