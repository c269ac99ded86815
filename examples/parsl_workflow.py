"""The functions of remote_functions.py as Parsl apps, one executor a facility.

Usage: parsl_workflow.py ADDRESS, of the instrument. Both executors start their workers here; with another provider
than LocalProvider they start them at the facilities. scistream has to be installed where the workers run.
"""

import sys

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from remote_functions import analyse, take

import s2uc


def executor(label):
    """Have one worker, started here."""
    return HighThroughputExecutor(
        label=label, address="127.0.0.1", max_workers_per_node=1, provider=LocalProvider(max_blocks=1)
    )


def main(host):
    """Run both with a way between them."""
    taking = parsl.python_app(take, executors=["instrument"])
    analysing = parsl.python_app(analyse, executors=["compute"])
    # The session is the inner block: it is released before Parsl waits for its apps, and what waits for the way ends.
    with (
        parsl.load(Config(executors=[executor("instrument"), executor("compute")])),
        s2uc.reserve(s2uc.known_gateway("aps"), s2uc.known_gateway("alcf")) as session,
    ):
        taken = taking(session.producer_key, host)
        found = analysing(session.consumer_key)
        session.open(hello_timeout=300)
        assert found.result() == taken.result(), "what came is not what was sent"
        print("received", found.result())


if __name__ == "__main__":
    main(sys.argv[1])
