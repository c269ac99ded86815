"""Pull detector frames by ZeroMQ: the consumer, started by `s2uc run --role consumer`."""

import hashlib
import json
import os

import zmq

PATIENCE_MS = 60_000

addresses = os.environ["SCISTREAM_LISTENERS"].split(",")
# Of many tasks of one job, each takes a connection of its own.
address = addresses[int(os.environ.get("SLURM_PROCID", "0")) % len(addresses)]

digest, frames = hashlib.sha256(), 0
with zmq.Context() as context, context.socket(zmq.PULL) as socket:
    socket.rcvtimeo = PATIENCE_MS  # a producer that has gone says nothing; then this raises zmq.Again
    socket.connect(f"tcp://{address}")  # tries again by itself until the producer is there
    while True:
        header, frame = socket.recv_multipart()
        meta = json.loads(header)
        if "end" in meta:
            break
        assert meta["number"] == frames, f"frame {meta['number']} came where {frames} was due"
        digest.update(frame)  # the analysis stands here
        frames += 1
print(f"received {frames} frames, sha256 {digest.hexdigest()}")
