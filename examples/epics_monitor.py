"""Follow an EPICS pvAccess channel: the consumer, started by `s2uc run --role consumer`.

Usage: epics_monitor.py PV [PORT]. Two things make pvAccess go through a gateway. Channels are searched by TCP, at a
name server, not by UDP broadcast; and the server's answer names its own port, so that port, on this host, is made to
lead to the session's listener.
"""

import asyncio
import os
import queue
import sys
import threading
import time

from p4p.client.thread import Context

IMAGES, PATIENCE_S, HERE = 50, 60, "127.0.0.1"


async def pump(reader, writer):
    """Pass bytes on, in one direction."""
    while data := await reader.read(1 << 18):
        writer.write(data)
        await writer.drain()
    writer.close()


async def lead(port, listener):
    """Lead connections to the server's port here to the session's listener."""
    host, _, number = listener.rpartition(":")

    async def passed_on(reader, writer):
        far_reader, far_writer = await asyncio.open_connection(host.strip("[]"), int(number))
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    await (await asyncio.start_server(passed_on, HERE, port)).serve_forever()


pv, port = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5075
listener = os.environ["SCISTREAM_LISTENERS"].split(",")[0]
threading.Thread(target=asyncio.run, args=(lead(port, listener),), daemon=True).start()

conf = {"EPICS_PVA_NAME_SERVERS": f"{HERE}:{port}", "EPICS_PVA_ADDR_LIST": "", "EPICS_PVA_AUTO_ADDR_LIST": "NO"}
images, begin, last = queue.Queue(), time.monotonic(), -1
with Context("pva", conf=conf, useenv=False) as context, context.monitor(pv, images.put):
    for _ in range(IMAGES):
        image = images.get(timeout=PATIENCE_S)
        number = int(image[0, 0])
        assert (image == number).all(), f"image {number} is damaged"
        assert number > last, f"image {number} came after {last}"  # a monitor skips what nobody took in time
        last = number
print(f"received {IMAGES} whole images of {pv}, {IMAGES / (time.monotonic() - begin):.0f}/s")
