"""A real SLURM of two nodes on loopback, from Debian's packages, in a folder of its own: no systemd, database, cgroups.

    python tests/cluster/slurm_harness.py bash      runs a command (here a shell) with the cluster up, then stops it

Only the installation (`apt-get install slurmctld slurmd slurm-client munge`) needs root.
"""

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol")
SBIN = "/usr/sbin:/usr/bin:/sbin:/bin"
START_SECONDS = 30


def missing():
    """Why SLURM cannot be started here, or None."""
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    absent = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if absent:
        return f"{', '.join(absent)} not found: as root, apt-get install {' '.join(PACKAGES)}"
    return None


class Slurm:
    """`with Slurm() as slurm:` is a running cluster; `slurm.environment` is what its users' programs need.

    nodes, cpus, mem_mb: how many nodes, and what each one is said to have. min_job_age: seconds that a finished job
    stays known, at least as long as the time between two polls. Memory is enforced by SLURM's own accounting, which
    samples every second and cancels a job that holds more than it asked for.
    """

    def __init__(self, nodes=2, cpus=2, mem_mb=16000, min_job_age=3600):
        self.nodes, self.cpus, self.mem_mb, self.min_job_age = nodes, cpus, mem_mb, min_job_age
        self.folder = None
        self.daemons = {}

    def __enter__(self):
        reason = missing()
        if reason:
            raise RuntimeError(reason)
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: sockets have at most 107 letters
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        """Stop jobs, then daemons, the last one first; nothing is left behind, also after Ctrl-C."""
        with _signals_wait():
            if "slurmctld" in self.daemons:
                with contextlib.suppress(subprocess.SubprocessError, OSError):
                    self.command("scancel", "--user", str(os.getuid()), timeout=10)
                    self._wait_until(lambda: not self.command("squeue", "-h", "-t", "R,CG", timeout=5).strip(), 5)
            for name in reversed(list(self.daemons)):
                self.stop(name)
            self._end_strays()
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def environment(self):
        """The environment of a program that uses this cluster."""
        path = f"{self.folder}/bin:{os.environ.get('PATH', '')}:{SBIN}"
        own = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN"))}
        return {**own, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def command(self, *words, timeout=30):
        """Run a program of SLURM and return what it prints; a failure raises CalledProcessError."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=timeout, check=True)
        return done.stdout

    def jobs(self, *options):
        """The jobs known, as dicts of id, state, node list, memory, time limit and name of the run."""
        names = ("id", "state", "node", "mem", "limit", "cpus", "name", "comment")
        rows = self.command("squeue", "-h", "--states=all", "-o", "%i|%T|%N|%m|%l|%C|%j|%k", *options).splitlines()
        return [dict(zip(names, row.split("|"), strict=True)) for row in rows]

    def start_node(self, name):
        """Start the slurmd of one node."""
        self._spawn(name, "slurmd", "-D", "-N", name)

    def kill_node(self, name):
        """A node that is suddenly gone: SIGKILL to its slurmd and to whatever runs on it, then tell the controller."""
        self.stop(name, signal.SIGKILL)
        self._end_strays(name)
        self.command("scontrol", "update", f"nodename={name}", "state=down", "reason=killed")

    def stop(self, name, how=signal.SIGTERM):
        """Stop one daemon and wait for its end."""
        process = self.daemons.pop(name, None)
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def _start(self):
        for name in ("state", "spool", "log", "run", "bin", "munge"):
            (self.folder / name).mkdir(mode=0o700)
        key = self.folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        ports = _free_ports(self.nodes + 1)
        (self.folder / "slurm.conf").write_text(self._configuration(ports))
        self._wrap_srun()
        self._spawn(
            "munged", "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/run/munge",
            f"--pid-file={self.folder}/run/munged.pid", f"--log-file={self.folder}/log/munged.log",
            f"--seed-file={self.folder}/munge/seed",
        )  # fmt: skip
        self._wait_until((self.folder / "run" / "munge").exists, 10)
        self._spawn("slurmctld", "slurmctld", "-D", "-i")
        for number in range(self.nodes):
            self.start_node(f"n{number + 1}")
        if not self._wait_until(self._is_up, START_SECONDS):
            logs = "\n".join(path.read_text()[-2000:] for path in sorted((self.folder / "log").iterdir()))
            raise RuntimeError(f"SLURM did not come up in {START_SECONDS} s\n{logs}")

    def _configuration(self, ports):
        host, user = socket.gethostname().split(".")[0], _user()
        lines = f"""
            ClusterName=toy
            SlurmctldHost={host}(127.0.0.1)
            SlurmctldPort={ports[0]}
            SlurmUser={user}
            SlurmdUser={user}
            AuthType=auth/munge
            AuthInfo=socket={self.folder}/run/munge
            CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
            StateSaveLocation={self.folder}/state
            SlurmdSpoolDir={self.folder}/spool/%n
            SlurmctldPidFile={self.folder}/run/slurmctld.pid
            SlurmdPidFile={self.folder}/run/slurmd.%n.pid
            SlurmctldLogFile={self.folder}/log/slurmctld.log
            SlurmdLogFile={self.folder}/log/slurmd.%n.log
            ProctrackType=proctrack/linuxproc
            TaskPlugin=task/none
            JobAcctGatherType=jobacct_gather/linux
            JobAcctGatherFrequency=task=1
            JobAcctGatherParams=OverMemoryKill
            AccountingStorageType=accounting_storage/none
            MpiDefault=none
            SelectType=select/cons_tres
            SelectTypeParameters=CR_CPU_Memory
            SlurmdParameters=config_overrides
            ReturnToService=2
            JobRequeue=0
            MinJobAge={self.min_job_age}
            SlurmdTimeout=30
            KillWait=2
            SchedulerParameters=sched_min_interval=100000
            PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE
        """
        found = [line.strip() for line in lines.strip().splitlines()]
        for number in range(self.nodes):
            found.insert(
                -1,
                f"NodeName=n{number + 1} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[number + 1]} "
                f"CPUs={self.cpus} RealMemory={self.mem_mb}",
            )
        return "\n".join(found) + "\n"

    def _wrap_srun(self):
        """Inside a job the executor plugin takes away SLURM_* before it calls srun, SLURM_CONF too."""
        wrapper = self.folder / "bin" / "srun"
        real = shutil.which("srun", path=SBIN)
        wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {real} "$@"\n')
        wrapper.chmod(0o755)

    def _spawn(self, name, *command):
        with (self.folder / "log" / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                command,
                env=self.environment,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def _is_up(self):
        for name, process in self.daemons.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with {process.returncode}, see {self.folder}/log")
        try:
            return len(set(self.command("sinfo", "-hN", "-t", "idle", "-o", "%N", timeout=5).split())) == self.nodes
        except subprocess.SubprocessError:
            return False

    @staticmethod
    def _wait_until(true, seconds):
        end = time.monotonic() + seconds
        while not (found := true()) and time.monotonic() < end:
            time.sleep(0.1)
        return found

    def _end_strays(self, node=None):
        """End steps' daemons and programs that still run in jobs of this cluster, or of one node of it."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        where = f"SLURMD_NODENAME={node}".encode()
        steps, programs = [], []
        for process in Path("/proc").iterdir():
            if not process.name.isdigit() or int(process.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                words = (process / "environ").read_bytes().split(b"\0")
                if mark not in words:
                    continue
                if (process / "comm").read_text().strip() == "slurmstepd":
                    if node is None or self._is_step_of(process, node):
                        steps.append(int(process.name))
                elif any(word.startswith(b"SLURM_JOB_ID=") for word in words) and (not node or where in words):
                    programs.append(int(process.name))
        for number in steps + programs:  # in this order, so that nobody is left to report the programs' end
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    @staticmethod
    def _is_step_of(process, node):
        return any(f"/{node}/" in str(file.readlink()) for file in (process / "fd").iterdir())


@contextlib.contextmanager
def _signals_wait():
    """Hold Ctrl-C and SIGTERM back until the cleaning up is done."""
    if sys.platform != "linux":
        yield
        return
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _end_with_parent():
    """Have the kernel end a daemon when this process is gone without a word."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _user():
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _free_ports(count):
    """Ports that are free now; held together while they are drawn, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def main():
    """Run a command with a cluster."""
    if reason := missing():
        sys.exit(reason)
    with Slurm() as slurm, contextlib.suppress(KeyboardInterrupt):
        sys.exit(subprocess.run(sys.argv[1:] or ["sinfo"], env=slurm.environment, check=False).returncode)


if __name__ == "__main__":
    main()
