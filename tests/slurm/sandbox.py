"""A real Slurm on this machine: every node a host of its own (name, address, processes, network) in namespaces.

    with Sandbox(folder, nodes=3) as box:
        job = box.sbatch("--nodes=2", "launch/stage1_asr_tts.sh", "--device", "cpu")
        box.await_state(job, "COMPLETED")

The host `head` is the login node; `n1`, `n2`, ... have 16 CPUs and 8 GPUs each, whatever the machine has. Files are
shared by all, as on a cluster; the network is not the machine's. Everything is below `folder`, and all processes die
with this one. Timeouts are shorter than a cluster's, or a lost node would take five minutes to be noticed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter", "setpriv")
APT = "sudo apt install slurmctld slurmd slurm-client munge iproute2 util-linux shellcheck"
NODE_TIMEOUT_S = 10
GPUS = 8
_NET = "10.77.0"
_HERE = Path(__file__).resolve().parent
_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")


def why_not() -> str | None:
    """Why there can be no Slurm here, in words with what to do."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"needs {', '.join(missing)}: {APT}"
    if os.geteuid():
        return "needs root, to start slurmd and make namespaces: sudo make test-slurm"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--propagation", "slave", "--", "sh", "-c",
         "mount -t proc proc /proc && ip link add b0 type bridge && ip link add v0 type veth peer name v1"],
        capture_output=True, text=True,
    )  # fmt: skip
    if tried.returncode:
        return f"needs namespaces with networks, which this machine (or container) refuses: {tried.stderr.strip()}"
    return None


class Sandbox:
    """Started by entering the block, stopped by leaving it."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self.names = folder, [f"n{number}" for number in range(1, nodes + 1)]
        self.conf = folder / "etc" / "slurm.conf"
        self.env = {**os.environ, "SLURM_CONF": str(self.conf), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        self._processes: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Sandbox:
        for name in ("etc", "run", "log", "state", "dev", "spool"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "hosts").write_text(self._hosts())
        self.conf.write_text(self._conf())
        (self.folder / "etc" / "gres.conf").write_text(self._gres())
        key = self.folder / "etc" / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        try:
            self._start_host("head", f"{_NET}.1")
            run = self.folder / "run"
            self._start("munged", "munged", "--foreground", "--force", f"--key-file={key}",
                        f"--socket={run}/munge.socket", f"--pid-file={run}/munge.own",
                        f"--log-file={self.folder}/log/munged.log", f"--seed-file={run}/munge.seed")  # fmt: skip
            self.wait(lambda: (run / "munge.socket").exists(), 10, "munged's socket")
            self.start_controller()
            for name in self.names:
                self.start_node(name)
            self.wait(lambda: not self.not_ready(), 40, "nodes that take work")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for name in [*self.names, "slurmctld", "munged", "head"]:
            self.stop(name)

    # --- hosts ---

    def start_node(self, name: str) -> None:
        self._start_host(name, self.address(name), str(self.conf))
        cable = f"v{name}"
        self.on("head", "ip", "link", "del", cable, check=False)
        pid = (self.folder / "run" / name).read_text().strip()
        self.on("head", "ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", pid)
        self.on("head", "ip", "link", "set", cable, "master", "br0", "up")
        (self.folder / "run" / f"{name}.wired").touch()

    def start_controller(self) -> None:
        self._start("slurmctld", "slurmctld", "-D", "-f", str(self.conf))

    def stop(self, name: str) -> None:
        """At once. With a node's first process all others of it go."""
        process = self._processes.pop(name, None)
        if process is None:
            return
        if name in self.names or name == "head":
            pid = (self.folder / "run" / name).read_text().strip()
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)  # unshare ends with it, and only then all of the node's processes are gone
        process.kill()
        process.wait()

    def address(self, name: str) -> str:
        return f"{_NET}.{10 + int(name.removeprefix('n'))}"

    def on(self, host: str, *command: str, check: bool = True, **options: object) -> subprocess.CompletedProcess:
        """Run a command on a host, to its end."""
        settings = {"capture_output": True, "text": True, "env": self.env, "timeout": 120, **options}
        done = subprocess.run([*self.enter(host), *command], **settings)  # type: ignore[call-overload]
        if check and done.returncode:
            raise AssertionError(
                f"{host}: {' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}"
            )
        return done

    def is_up(self, host: str) -> bool:
        return host in self._processes

    def enter(self, host: str) -> list[str]:
        """What a command of the machine begins with, to be one of that host."""
        kinds = ["-m", "-n", "-u"] + ([] if host == "head" else ["-i", "-p"])
        pid = (self.folder / "run" / host).read_text().strip()
        # The mount namespace loses the working directory: it is gone back to.
        back = 'cd "$1" 2>/dev/null || cd /; shift; exec "$@"'
        return ["nsenter", "-t", pid, *kinds, "--", "/bin/bash", "-c", back, "_", os.getcwd()]

    def _start(self, name: str, *command: str) -> None:
        with open(self.folder / "log" / f"{name}.out", "a") as log:
            enter = [] if name in ("head", *self.names) else self.enter("head")
            self._processes[name] = subprocess.Popen(
                [*_DIES_WITH_US, *enter, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env
            )

    def _start_host(self, name: str, address: str, *conf: str) -> None:
        marks = [self.folder / "run" / name, self.folder / "run" / f"{name}.wired"]
        for mark in marks:
            mark.unlink(missing_ok=True)
        own = ["--ipc", "--pid", "--fork", "--kill-child"] if conf else []
        words = ["unshare", "--net", "--mount", "--uts", *own, "--propagation", "slave", "--"]
        self._start(name, *words, "bash", str(_HERE / "host.sh"), str(self.folder), name, address, *conf)
        self.wait(marks[0].exists, 10, f"host {name}")

    # --- Slurm ---

    def sbatch(self, *words: str, cwd: Path | None = None, **env: str) -> str:
        """Submit; the job's number."""
        done = self.on("head", "env", f"--chdir={cwd or self.folder}", *(f"{k}={v}" for k, v in env.items()), "sbatch",
                       "--parsable", *words)  # fmt: skip
        return done.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says; nothing of a job that is not known."""
        said = self.on("head", "scontrol", "show", "job", job, check=False).stdout
        return dict(word.split("=", 1) for word in said.split() if "=" in word)

    def state(self, job: str) -> str:
        return self.job(job).get("JobState", "UNKNOWN")

    def await_state(self, job: str, *states: str, seconds: float = 180) -> str:
        ends = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        found = ""

        def is_there() -> bool:
            nonlocal found
            found = self.state(job)
            assert found in states or found not in ends, f"job {job} is {found}, wanted {states}"
            return found in states

        self.wait(is_there, seconds, f"job {job} being one of {states}")
        return found

    def not_ready(self) -> list[str]:
        """Nodes that take no work now."""
        said = self.on("head", "sinfo", "-h", "-N", "-o", "%N %T", check=False).stdout.split("\n")
        good = {line.split()[0] for line in said if line.endswith((" idle", " mixed", " allocated", " completing"))}
        return [name for name in self.names if name not in good]

    @staticmethod
    def wait(is_so: Callable[[], object], seconds: float, what: str) -> None:
        until = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < until, f"waited {seconds:g} s in vain for {what}"
            time.sleep(0.2)

    # --- files ---

    def _hosts(self) -> str:
        lines = ["127.0.0.1 localhost", "::1 localhost", f"{_NET}.1 head"]
        for name in self.names:  # IPv6 sockets see IPv4 peers so: without the second line names are looked up in vain
            lines += [f"{self.address(name)} {name}", f"::ffff:{self.address(name)} {name}"]
        return "\n".join(lines) + "\n"

    def _gres(self) -> str:
        links = [self.folder / "dev" / f"nvidia{number}" for number in range(GPUS)]
        for link in links:
            link.symlink_to("/dev/null")
        return "AutoDetect=off\n" + "".join(f"Name=gpu File={link}\n" for link in links)

    def _conf(self) -> str:
        at = self.folder
        nodes = [f"NodeName={n} NodeHostname={n} NodeAddr={self.address(n)} CPUs=16 RealMemory=64000 Gres=gpu:{GPUS}"
                 for n in self.names]  # fmt: skip
        lines: Sequence[str] = [
            "ClusterName=sandbox", "SlurmctldHost=head(head)", "SlurmUser=root", "SlurmdUser=root",
            "AuthType=auth/munge", "CredType=cred/munge", f"AuthInfo=socket={at}/run/munge.socket,cred_expire=5",
            f"StateSaveLocation={at}/state", f"SlurmdSpoolDir={at}/spool/%n",
            f"SlurmctldPidFile={at}/run/slurmctld.own", f"SlurmdPidFile={at}/run/slurmd-%n.own",
            f"SlurmctldLogFile={at}/log/slurmctld.log", f"SlurmdLogFile={at}/log/slurmd-%n.log",
            "ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none", "MpiDefault=none", "SwitchType=switch/none",
            "SelectType=select/cons_tres", "SelectTypeParameters=CR_CPU_Memory", "DefMemPerCPU=4000",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=bf_interval=2,sched_interval=5,sched_min_interval=0,batch_sched_delay=0",
            "SlurmdParameters=config_overrides", f"SlurmdTimeout={NODE_TIMEOUT_S}", "TCPTimeout=2", "MessageTimeout=5",
            "KillWait=30", "ReturnToService=2", "JobRequeue=0", "AccountingStorageType=accounting_storage/none",
            # Large numbers as on a cluster in use, others at each start: files named by them are never mixed up.
            # Nor are processes of two sandboxes that run beside each other.
            f"FirstJobId={1000 * random.SystemRandom().randrange(1000, 60_000)}",
            "JobAcctGatherType=jobacct_gather/linux", "GresTypes=gpu", *nodes,
            "PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO",
        ]  # fmt: skip
        return "\n".join(lines) + "\n"
