"""Stream between two functions that an executor runs at two facilities, inside one `with` block.

The executors are process pools of this computer, so that the file runs anywhere; parsl_workflow.py has others. What
is imported is imported inside the functions, because such engines may send a function without its module.
"""

from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context

import s2uc


def take(key, host, frames=100):
    """Run where the data is taken: listen, say so with the key, stream. Gives the data's SHA-256."""
    import hashlib
    import os
    import socket

    sent = hashlib.sha256()
    with socket.create_server((host, 0)) as server:
        server.settimeout(60)  # whoever should connect may have failed
        key.wait([f"{host}:{server.getsockname()[1]}"], timeout=60)  # Hello; returns when the way is open
        connection, _ = server.accept()
        with connection:
            for _ in range(frames):
                frame = os.urandom(1 << 16)  # a detector stands here
                connection.sendall(frame)
                sent.update(frame)
    return sent.hexdigest()


def analyse(key):
    """Run where the data is needed: wait for the way, connect, read to the end. Gives the SHA-256 of what came."""
    import hashlib
    import socket

    address = key.wait(timeout=60).listeners[0]
    received = hashlib.sha256()
    with socket.create_connection((address.host, address.port), timeout=60) as connection:
        while data := connection.recv(1 << 20):
            received.update(data)
    return received.hexdigest()


def stream(instrument: Executor, compute: Executor, host: str) -> str:
    """Run both with a way between them; the end of the block releases it, also after a failure."""
    with s2uc.reserve(s2uc.known_gateway("aps"), s2uc.known_gateway("alcf"), lease_s=3600) as session:
        taken = instrument.submit(take, session.producer_key, host)
        found = compute.submit(analyse, session.consumer_key)
        session.open(hello_timeout=120)  # how long the instrument's queue may be
        assert found.result() == taken.result(), "what came is not what was sent"
        return found.result()


if __name__ == "__main__":
    fresh = get_context("spawn")  # a process that is forked from one that uses gRPC cannot use it
    with ProcessPoolExecutor(1, fresh) as instrument, ProcessPoolExecutor(1, fresh) as compute:
        print("received", stream(instrument, compute, "10.1.0.99"))  # this computer, in the instrument's network
