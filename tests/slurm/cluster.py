"""A real SLURM cluster on this machine: its own daemons, on loopback, in a temporary folder.

    python tests/slurm/cluster.py COMMAND ...       run a command inside a new cluster

Needs root, slurm-wlm and munge (Debian). Nothing of a SLURM that the machine may have is touched.
Nodes n1 and n2 make the partition "cpu" (the default one), g1 with two stand-in GPUs the partition
"gpu"; jobs in "urgent" take n1 and n2 away from those in "cpu", which are requeued.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = (
    "setpriv",
    "munged",
    "slurmctld",
    "slurmd",
    "scontrol",
    "squeue",
    "sbatch",
    "srun",
    "scancel",
)
CPUS, MEMORY_MB = 4, 8000

_CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={root}/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
AccountingStorageType=accounting_storage/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1,bf_resolution=1
SlurmdParameters=config_overrides
SlurmdTimeout=10
EnforcePartLimits=ALL
MinJobAge=3600
ReturnToService=2
KillWait=3
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
DefMemPerCPU=200
NodeName=DEFAULT CPUs={cpus} RealMemory={memory}
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname={host} Port={n1}
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname={host} Port={n2}
NodeName=g1 NodeAddr=127.0.0.1 NodeHostname={host} Port={g1} Gres=gpu:2
PartitionName=cpu Nodes=n1,n2 Default=YES MaxTime=1440 DefaultTime=5 PriorityTier=1
PartitionName=urgent Nodes=n1,n2 MaxTime=1440 DefaultTime=5 PriorityTier=9 PreemptMode=OFF
PartitionName=gpu Nodes=g1 MaxTime=1440 DefaultTime=5 PriorityTier=1
"""


def missing() -> str | None:
    """Say in one line why there can be no cluster here; None if there can."""
    if os.geteuid() != 0:
        return "a cluster for tests needs root, which starts its daemons"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not found; on Debian: apt-get install slurm-wlm munge"
    return None


def wait_until(holds: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for something to hold.

    Raises
    ------
    TimeoutError
        If it does not in time.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)


# Below the ports of connections, which begin at 32768.
_PORTS = range(10_000, 32_000)


def _free_ports(count: int) -> list[int]:
    """Find ports that nobody has, of those that the system gives to no connection by itself.

    One of these others may be gone by the time that a daemon asks for it.
    """
    free: set[int] = set()
    while len(free) < count:
        port = secrets.choice(_PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            free.add(port)
    return list(free)


class Cluster:
    """Running daemons, and what one asks and does to them.

    Attributes
    ----------
    root : Path
        Folder of configuration, keys, state and logs.
    environment, environment_changes : dict of str to str
        Of processes that shall see this cluster, and what is special in it.
    start_seconds : float
        From the first daemon's start until every node was idle.
    """

    nodes = ("n1", "n2", "g1")

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment_changes = {
            "SLURM_CONF": str(root / "slurm.conf"),
            # First in the PATH: the srun inside a job, from whose environment SLURM_CONF is gone.
            "PATH": os.pathsep.join([str(root / "bin"), os.environ["PATH"]]),
        }
        self.environment = {**os.environ, **self.environment_changes}
        self.start_seconds = float("nan")
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    # --- daemons ----------------------------------------------------------------------------------

    def start(self) -> None:
        started = time.monotonic()
        self._write_files()
        munge = {
            "key-file": "munge.key",
            "socket": "munge.socket",
            "pid-file": "munge.pid",
            "log-file": "munge.log",
            "seed-file": "munge.seed",
        }
        options = [f"--{name}={self.root / file}" for name, file in munge.items()]
        self._spawn("munged", "munged", "--foreground", *options)
        wait_until(self._munge_is_there, 10, "munged")
        self._spawn("slurmctld", "slurmctld", "-c", "-D")
        for node in self.nodes:
            self.start_node(node)
        wait_until(self._all_idle, 30, "slurmctld and slurmd")
        self.start_seconds = time.monotonic() - started

    def stop(self) -> None:
        """Stop what was started, and nothing else: daemons by their process id, and their jobs."""
        with suppress(subprocess.SubprocessError):
            self.run("scancel", "--user=root", timeout=10)
            wait_until(lambda: not self.run("squeue", "--noheader"), 10, "jobs that are cancelled")
        for name in reversed(list(self._daemons)):
            self._end(name, signal.SIGTERM)
        for process in self._processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def start_node(self, name: str) -> None:
        self._spawn(name, "slurmd", "-N", name, "-D")

    def restore(self) -> None:
        """Start nodes that were killed, and wait until all are there."""
        for node in self.nodes:
            if node not in self._daemons:
                self.start_node(node)
        wait_until(self._all_idle, 90, "all nodes")

    def kill_node(self, name: str) -> None:
        """End a node as a power cut does: its daemon and all that runs there, by SIGKILL."""
        self._end(name, signal.SIGKILL)
        mark = f"SLURMD_NODENAME={name}"
        on_node = [p for p in self._processes() if mark in _environment(p)]
        # Who watches over a job goes first, so that nobody is left to report its end.
        for process in (*{*filter(_is_stepd, map(_parent, on_node))}, *on_node):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _spawn(self, name: str, *command: str) -> None:
        with (self.root / f"{name}.out").open("ab") as output:
            # A daemon ends with this process, even if that is killed.
            self._daemons[name] = subprocess.Popen(
                ("setpriv", "--pdeathsig", "TERM", *command), env=self.environment, cwd=self.root,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def _end(self, name: str, number: signal.Signals) -> None:
        daemon = self._daemons.pop(name)
        daemon.send_signal(number)
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _check_daemons(self) -> None:
        for name, daemon in self._daemons.items():
            if daemon.poll() is not None:
                output = (self.root / f"{name}.out").read_text(errors="replace")
                raise RuntimeError(f"{name} ended with {daemon.returncode}: {output}")

    def _munge_is_there(self) -> bool:
        self._check_daemons()
        return (self.root / "munge.socket").exists()

    def _all_idle(self) -> bool:
        self._check_daemons()
        with suppress(subprocess.SubprocessError):
            states = self.run("sinfo", "--Node", "--noheader", "--format=%N %t").split("\n")
            return {f"{name} idle" for name in self.nodes} <= set(states)
        return False

    def _write_files(self) -> None:
        # munged refuses a socket that others could not reach.
        self.root.chmod(0o755)
        for folder in ("state", "bin", "dev", *(f"spool.{name}" for name in self.nodes)):
            (self.root / folder).mkdir()
        key = self.root / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        ports = dict(zip(("controller", *self.nodes), _free_ports(4), strict=True))
        (self.root / "slurm.conf").write_text(
            _CONFIGURATION.format(
                root=self.root, host=socket.gethostname().partition(".")[0], cpus=CPUS,
                memory=MEMORY_MB, **ports,
            )
        )  # fmt: skip
        for number in range(2):
            device = self.root / "dev" / f"nvidia{number}"
            # Numbers of /dev/null.
            os.mknod(device, 0o20666, os.makedev(1, 3))
        (self.root / "gres.conf").write_text(
            f"NodeName=g1 Name=gpu File={self.root}/dev/nvidia[0-1]\n"
        )
        wrapper = self.root / "bin" / "srun"
        wrapper.write_text(
            f'#!/bin/sh\nSLURM_CONF={self.root}/slurm.conf exec {shutil.which("srun")} "$@"\n'
        )
        wrapper.chmod(0o755)

    def _processes(self) -> list[int]:
        """Everything that was started from this cluster's configuration, daemons aside."""
        mark = f"SLURM_CONF={self.root}/slurm.conf"
        found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        daemons = {daemon.pid for daemon in self._daemons.values()}
        # Who watches over a job writes its title over its environment.
        return [
            process
            for process in found
            if process not in daemons
            and (mark in _environment(process) or (_is_stepd(process) and self._is_ours(process)))
        ]

    def _is_ours(self, process: int) -> bool:
        try:
            return Path(f"/proc/{process}/cwd").resolve() == self.root.resolve()
        except OSError:
            return False

    # --- what one asks ----------------------------------------------------------------------------

    def run(self, *command: str, timeout: float = 30) -> str:
        """Run a command inside the cluster and give what it prints.

        Raises
        ------
        subprocess.CalledProcessError
            If it fails.
        """
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout,
            check=True,
        ).stdout.strip()  # fmt: skip

    def jobs(self) -> list[dict[str, str]]:
        """Give all jobs of this cluster's life, each as ``scontrol`` describes it."""
        text = self.run("scontrol", "--oneliner", "show", "jobs")
        jobs = [dict(re.findall(r"(\w[\w:/]*)=(\S*)", line)) for line in text.splitlines()]
        return [job for job in jobs if "JobId" in job]

    def jobs_of(self, folder: Path, name: str = "") -> list[dict[str, str]]:
        """Give the jobs submitted from a folder for rules whose names begin so, oldest first."""
        found = [
            job
            for job in self.jobs()
            if job["WorkDir"] == str(folder)
            and job.get("Comment", "").removeprefix("rule_").startswith(name)
        ]
        return sorted(found, key=lambda job: int(job["JobId"]))

    def begin_now(self, job: Mapping[str, str]) -> None:
        """Let a requeued job go; SLURM holds it for two minutes."""
        self.run("scontrol", "update", f"JobId={job['JobId']}", "StartTime=now")


def _environment(process: int) -> list[str]:
    try:
        content = Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return []
    return content.decode(errors="replace").split("\0")


def _parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _is_stepd(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/comm").read_text().startswith("slurmstepd")
    except OSError:
        return False


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start a cluster, and stop it at the end, whatever happens.

    Raises
    ------
    RuntimeError
        If there can be none here, or a daemon ends at once.
    """
    reason = missing()
    if reason is not None:
        raise RuntimeError(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        made = Cluster(Path(folder))
        try:
            made.start()
            yield made
        finally:
            made.stop()


def main(command: list[str]) -> int:
    if not command:
        print(__doc__, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with cluster() as made:
            return subprocess.run(command, env=made.environment, check=False).returncode
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
