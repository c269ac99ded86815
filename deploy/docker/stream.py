"""A session between the two facilities of compose.yaml, and 200 MiB through it."""

import hashlib
import json
import os
import socket
import subprocess
import threading


def main() -> None:
    """Open it, stream, compare, release."""
    for name, address in (("producer", "127.0.1.1:5000"), ("consumer", "127.0.2.1:5010")):
        known = ["--ca", f"{name}/certs/ca.crt", "--token-file", f"{name}/token"]
        subprocess.run(["s2uc", "gateway", "add", name, address, *known], check=True)
    data = os.urandom(2**20) * 200
    listener = socket.create_server(("127.0.1.1", 0))

    def produce() -> None:
        with listener.accept()[0] as connection:
            connection.sendall(data)

    threading.Thread(target=produce, daemon=True).start()
    request = ["s2uc", "request", "--json", "--producer", "producer", "--consumer", "consumer", "--prod-listeners"]
    answer = subprocess.run(
        [*request, f"127.0.1.1:{listener.getsockname()[1]}"], stdout=subprocess.PIPE, check=True
    ).stdout
    session = json.loads(answer)
    host, _, port = session["consumer"]["listeners"][0].rpartition(":")
    received, count = hashlib.sha256(), 0
    with socket.create_connection((host, int(port))) as connection:
        while part := connection.recv(2**20):
            received.update(part)
            count += len(part)
    subprocess.run(["s2uc", "release", session["uid"]], check=True)
    equal = received.digest() == hashlib.sha256(data).digest()
    print(f"{count} bytes came, {'equal' if equal else 'NOT equal'} to what was sent")  # noqa: T201 - its answer
    raise SystemExit(not equal)


if __name__ == "__main__":
    main()
