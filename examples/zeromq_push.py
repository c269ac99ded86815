"""Push detector frames by ZeroMQ: the producer, started by `s2uc run --role producer`."""

import hashlib
import json
import os

import zmq

FRAMES, SHAPE = 100, (256, 512)

digest = hashlib.sha256()
with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
    socket.sndhwm = 16  # frames that may wait while the consumer is slower; then send() waits, and nothing is lost
    socket.bind(f"tcp://{os.environ['SCISTREAM_LISTENERS'].split(',')[0]}")
    for number in range(FRAMES):
        frame = os.urandom(SHAPE[0] * SHAPE[1])  # a detector stands here
        digest.update(frame)
        header = {"number": number, "shape": SHAPE, "dtype": "uint8"}
        socket.send_multipart([json.dumps(header).encode(), frame])
    socket.send_multipart([b'{"end": true}', b""])
# The end of the block waits until all is sent.
print(f"sent {FRAMES} frames, sha256 {digest.hexdigest()}")
