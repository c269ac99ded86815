"""The library without asyncio, where no gateway is needed."""

from __future__ import annotations

import subprocess
import sys

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
    done = subprocess.run([sys.executable, "-c", _WAITS], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("interrupted [True]\n", "")
