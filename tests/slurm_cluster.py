"""A real SLURM on this machine, for tests: its daemons, with a configuration and folders of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CORES = 2


def why_not() -> str | None:
    """Why there can be no cluster here; None: there can."""
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    missing = [name for name in (*DAEMONS, "sbatch") if not shutil.which(name)]
    return f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge" if missing else None


class Cluster:
    """Two cores, one partition, no accounting. Its commands find it by ``environ``."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environ = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._running: list[subprocess.Popen] = []
        self.host = socket.gethostname().split(".")[0]

    def start(self) -> None:
        host = self.host
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={_free_port()}
SlurmdPort={_free_port()}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge.socket
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1
JobRequeue=1
KillWait=60
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={CORES} RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
""")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        # as root and with a key of its own: munged of the system, where one runs, is left alone
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket",
                     f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
                     f"--seed-file={self.folder}/munged.seed")
        self.wait_for(lambda: (self.folder / "munge.socket").exists(), 20, "munged")
        self._daemon("slurmctld", "-D")
        self._daemon("slurmd", "-D")
        self.wait_for(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%T", check=False), 60, "the node")

    def _daemon(self, *command: str) -> None:
        log = open(self.folder / f"{command[0]}.out", "w")
        self._running.append(subprocess.Popen(command, env=self.environ, stdout=log, stderr=subprocess.STDOUT))

    def stop(self) -> None:
        self.run("scancel", "--user=root", check=False)
        for daemon in reversed(self._running):
            daemon.terminate()
        for daemon in self._running:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def run(self, *command: str, check: bool = True, **more) -> str:
        """⇒ what it printed."""
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=120, **more)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def takes(self, *command: str) -> bool:
        """Whether SLURM does as it is told; a job can't be altered in the moment of its end."""
        return subprocess.run(command, env=self.environ, capture_output=True, timeout=120).returncode == 0

    def state(self, job: str) -> str:
        """Of a job or task, by scontrol, which forgets jobs minutes after their end."""
        told = self.run("scontrol", "--oneliner", "show", "job", job, check=False)
        return told.partition("JobState=")[2].split(" ")[0] or "GONE"

    def lose_node(self) -> None:
        """The machine goes away with all that runs on it, and comes back."""
        daemon = self._running.pop()
        assert daemon.args[0] == "slurmd"
        daemon.kill()
        daemon.wait()
        own = os.fsencode(f"SLURM_CONF={self.environ['SLURM_CONF']}")
        kept = {process.pid for process in self._running}
        for folder in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                if int(folder.name) not in kept and own in (folder / "environ").read_bytes().split(b"\0"):
                    os.kill(int(folder.name), signal.SIGKILL)
        # SLURM itself notices after SlurmdTimeout, 300 s
        self.run("scontrol", "update", f"NodeName={self.host}", "State=DOWN", "Reason=gone")
        self._daemon("slurmd", "-D")
        self.wait_for(self._is_back, 60, "the node again")

    def _is_back(self) -> bool:
        self.run("scontrol", "update", f"NodeName={self.host}", "State=RESUME", check=False)
        return self.run("sinfo", "--noheader", "--format=%T", check=False).strip() in ("idle", "mixed", "allocated")

    def start_soon(self, job: str) -> None:
        """A job that went back into the queue would wait for a minute or two.

        Not at once: slurmd, still ending the job, would take the new start for one that was killed, and the job would
        fail. A bare job that was requeued failed so in 19 of 25 starts at once, in none of 25 after five seconds.
        """
        self.wait_for(lambda: self.state(job) == "PENDING", 90, f"job {job} in the queue again")
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now+5")

    def restarts(self, job: str) -> int:
        told = self.run("scontrol", "--oneliner", "show", "job", job, check=False)
        return int(told.partition("Restarts=")[2].split(" ")[0] or 0)

    def ended(self, job: str, restarts: int) -> None:
        """A running job was ended by force or by itself: where SLURM put it back into the queue, it starts soon.

        restarts: of the job, before it was ended.
        """
        self.wait_for(lambda: self.state(job) not in ("RUNNING", "COMPLETING") or self.restarts(job) > restarts, 120,
                      f"the end of {job}")
        if self.state(job) == "PENDING":
            self.start_soon(job)

    def wait_for(self, happened: Callable[[], bool], limit_s: float, what: str) -> None:
        end = time.monotonic() + limit_s
        while not happened():
            if time.monotonic() > end:
                raise AssertionError(f"{what}: not within {limit_s:g} s\n{self.run('squeue', check=False)}")
            time.sleep(0.2)

    def finished(self, *jobs: str, limit_s: float = 600) -> None:
        """Wait until jobs have ended well."""
        for job in jobs:
            self.wait_for(lambda: self.state(job) not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"), limit_s,
                          f"the end of job {job}")
            assert self.state(job) == "COMPLETED", f"job {job}: {self.state(job)}"


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
