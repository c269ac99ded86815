"""The Slurm example: a real slurmctld, slurmd and munged on this host, and a job that consumes through a session."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.pages import DOCS, ROOT, blocks
from tests.support.ports import port_block
from tests.support.user import Facilities, facilities

_DAEMONS = ("munged", "slurmctld", "slurmd")
pytestmark = [
    pytest.mark.skipif(
        not all(map(shutil.which, (*_DAEMONS, "sbatch", "srun"))),
        reason="there is no Slurm here: apt-get install slurm-wlm munge",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root runs slurmd"),
]
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={directory}/munge
SlurmctldPort={port}
SlurmdPort={next_port}
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MailProg=/bin/true
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


class Cluster:
    """A cluster of one node."""

    def __init__(self, directory: Path, facilities: Facilities) -> None:
        self.directory = directory
        self.facilities = facilities
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
            "SLURM_CONF": str(directory / "slurm.conf"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }

    def run(self, *command: str) -> str:
        """Run a command of a user; what it prints."""
        run = subprocess.run(
            command, cwd=self.directory, env=self.environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert run.returncode == 0, run.stdout + run.stderr + self.output()
        return run.stdout

    def output(self) -> str:
        """What the jobs have printed."""
        return "".join(path.read_text() for path in sorted(self.directory.glob("slurm-*.out")))

    def state(self, job: str) -> str:
        """The state of a job, as Slurm says it."""
        found = re.search(r"JobState=(\w+)", self.run("scontrol", "show", "job", job))
        assert found
        return found[1]

    def wait(self, job: str, *states: str) -> None:
        """Wait until a job is in one of the states."""
        deadline = time.monotonic() + 60
        while self.state(job) not in states:
            assert time.monotonic() < deadline, (self.state(job), self.output())
            time.sleep(0.2)

    @contextmanager
    def request(self, uid: str, *more: str) -> Iterator[subprocess.Popen[str]]:
        """Ask for a session whose producer is still to come; its keys are where jobs are submitted."""
        asking = self.facilities.user.start(
            "request", "--uid", uid, "--producer", "aps", "--consumer", "alcf", "--key-dir", str(self.directory), *more
        )
        deadline = time.monotonic() + 20
        while not (self.directory / f"{uid}.consumer.key").exists():
            assert asking.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        try:
            yield asking
        finally:
            if asking.poll() is None:
                asking.send_signal(signal.SIGINT)
            asking.communicate(timeout=30)
            subprocess.run(
                [sys.executable, "-m", "s2uc", "--quiet", "release", uid],
                env={**os.environ, "SCISTREAM_CONFIG_DIR": str(self.facilities.user.config)},
                stderr=subprocess.DEVNULL,
                check=False,
            )
            assert self.facilities.left() == {}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("slurm")
    with ExitStack() as stack:
        cluster = Cluster(directory, stack.enter_context(facilities(tmp_path_factory.mktemp("facilities"))))
        for name in ("state", "spool"):
            (directory / name).mkdir()
        (directory / "key").write_bytes(os.urandom(128))
        (directory / "key").chmod(0o600)
        port, host = port_block(), socket.gethostname().partition(".")[0]
        conf = _CONF.format(directory=directory, host=host, port=port, next_port=port + 1, cpus=os.cpu_count())
        (directory / "slurm.conf").write_text(conf)
        (directory / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        files = {"key-file": "key", "socket": "munge", "pid-file": "munged.pid", "log-file": "munged.log"}
        files["seed-file"] = "seed"
        munged = [
            "munged",
            "--foreground",
            "--force",
            *(f"--{name}={directory / file}" for name, file in files.items()),
        ]
        for command in (munged, ["slurmctld", "-D", "-i"], ["slurmd", "-D"]):
            log = stack.enter_context((directory / f"{command[0]}.out").open("wb"))
            process = subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log)
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
        deadline = time.monotonic() + 30
        while "idle" not in _node_states(cluster):
            assert time.monotonic() < deadline, (directory / "slurmctld.out").read_text()
            time.sleep(0.2)
        for name in ("slurm_job.sh", "zeromq_pull.py"):
            shutil.copy(ROOT / "examples" / name, directory)
        yield cluster


def _node_states(cluster: Cluster) -> str:
    command = ["sinfo", "--noheader", "--format=%T"]
    return subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False).stdout


def test_the_job_of_the_page(cluster: Cluster) -> None:
    """It waits for its producer, receives all, and ends well."""
    (command,) = [
        command
        for block in blocks(DOCS / "user/workflows.md", "console")
        for _, command in block.commands()
        if command.startswith("sbatch")
    ]
    with cluster.request("scan-23") as asking:
        job = cluster.run(*command.split()).split()[-1]
        cluster.wait(job, "RUNNING")
        push = ("python3", str(ROOT / "examples/zeromq_push.py"))
        key = ("--key-file", str(cluster.directory / "scan-23.producer.key"))
        listeners = f"127.0.0.1:{port_block()}"
        producer = cluster.facilities.user.s2uc(
            "run", "--role", "producer", "--listeners", listeners, *key, "scan-23", "--", *push,
            PATH=cluster.environment["PATH"],
        )  # fmt: skip
        cluster.wait(job, "COMPLETED", "FAILED")
        assert asking.wait(30) == 0
        sent = re.fullmatch(r"sent 100 frames, sha256 ([0-9a-f]{64})\n", producer.stdout)
        assert sent
        assert f"received 100 frames, sha256 {sent[1]}" in cluster.output()
        assert cluster.state(job) == "COMPLETED"


def test_a_job_that_waits_ends_with_its_session(cluster: Cluster) -> None:
    with cluster.request("scan-24") as asking:
        job = cluster.run("sbatch", "slurm_job.sh", "scan-24", "true").split()[-1]
        cluster.wait(job, "RUNNING")
        asking.send_signal(signal.SIGINT)
        cluster.wait(job, "FAILED")
    assert "scan-24" in cluster.output()


def test_slurms_signal_reaches_the_program(cluster: Cluster) -> None:
    """As `--signal` of the script has it: to the tasks, while s2uc run and srun go on."""
    program = cluster.directory / "wait.py"
    program.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(0)))\n"
        "print('working', flush=True)\n"
        "time.sleep(60)\n"
    )
    with cluster.request("scan-25", "--prod-listeners", f"127.0.0.1:{port_block()}") as asking:
        assert asking.wait(30) == 0
        job = cluster.run("sbatch", "slurm_job.sh", "scan-25", "python3", "wait.py").split()[-1]
        deadline = time.monotonic() + 40
        while "working" not in cluster.output():
            assert time.monotonic() < deadline, cluster.output()
            time.sleep(0.2)
        cluster.run("scancel", "--signal=TERM", job)
        cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED")
        assert "saved" in cluster.output()
