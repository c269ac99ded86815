"""Serve a detector's images by EPICS pvAccess; stands in for an IOC.

Usage: epics_detector.py ADDRESS PORT. Each image is full of its own number, so that the other side can check it.
"""

import itertools
import sys
import time

import numpy as np
from p4p.nt import NTNDArray
from p4p.server import Server
from p4p.server.thread import SharedPV

SHAPE, PERIOD_S = (512, 512), 0.02

address, port = sys.argv[1:]
image = SharedPV(nt=NTNDArray(), initial=np.zeros(SHAPE, np.uint16))
conf = {
    "EPICS_PVAS_INTF_ADDR_LIST": address,
    "EPICS_PVAS_SERVER_PORT": port,
    "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
}
with Server(providers=[{"det:image": image}], conf=conf, useenv=False):
    for number in itertools.count(1):
        image.post(np.full(SHAPE, number % 65536, np.uint16))
        time.sleep(PERIOD_S)
