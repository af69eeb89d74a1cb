"""A real SLURM cluster of two nodes on this machine: munge, MariaDB, slurmdbd, slurmctld and two slurmd, on loopback.

All it writes is in one folder. Its daemons are children of this process and end with it, also when it is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import string
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NODES = ("node1", "node2")
PROGRAMS = (
    *("munged", "munge", "mariadbd", "mariadb-install-db", "mariadb", "slurmdbd", "slurmctld", "slurmd"),
    *("sbatch", "srun", "squeue", "sacct", "sacctmgr", "scontrol", "scancel", "sinfo", "unshare", "setpriv"),
)
ACTIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED")
PATIENCE = 60.0  # seconds
TEMPLATES = Path(__file__).parent / "etc"

# What a node's daemon and its jobs see and nobody else does: the nodes' names, which torch's first rank is looked up
# by; /etc/slurm, because snakemake-executor-plugin-slurm-jobstep drops SLURM_CONF; and memory cgroups below our own.
NODE = """
mount --bind "$STATE/etc/hosts" /etc/hosts && mount --bind "$STATE/etc" /etc/slurm || exit
[ "$LIMITS_MEMORY" = no ] || mount -t cgroup -o memory none "$STATE/cgroup/memory" || exit
exec slurmd -D -N "$NODE"
"""


def lacking() -> str | None:
    """Why no cluster can be started here, or None."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"SLURM is not installed ({', '.join(missing)}); tests/slurm/install.sh does that"
    if os.geteuid() != 0:
        return "the cluster's daemons need root"
    if subprocess.run(("unshare", "--mount", "mount", "--bind", "/etc", "/etc"), check=False).returncode:
        return "mounts are not allowed here, not even private ones"
    return None


def until(reached: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Wait for a condition -> what it returned that was true."""
    deadline = time.monotonic() + patience
    while not (result := reached()):
        assert time.monotonic() < deadline, f"waited {patience:.0f} seconds in vain for {what}"
        time.sleep(0.05)
    return result


class Cluster:
    """The cluster, from start() to stop(). Account `lab`, partitions `gpu` and, preempted by it, `preempt`."""

    def __init__(self) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="mirai-slurm-"))  # a short path: sockets are in it
        self.limits_memory = _memory_cgroups(self.state / "cgroup/memory")
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What SLURM's commands need to find this cluster."""
        return {"SLURM_CONF": str(self.state / "etc/slurm.conf")}

    def start(self) -> None:
        """From nothing to two idle nodes (5 seconds)."""
        self._configure()
        self._start_munge()
        self._start_database()
        self._daemon("slurmdbd", "slurmdbd", "-D", MYSQL_UNIX_PORT=str(self.state / "mysql.socket"))
        until(lambda: self._answers("sacctmgr", "-nP", "list", "cluster"), "slurmdbd")
        self.run("sacctmgr", "-i", "add", "cluster", "lab")
        self.run("sacctmgr", "-i", "add", "account", "lab", "cluster=lab")
        self.run("sacctmgr", "-i", "add", "user", "root", "account=lab", "defaultaccount=lab")
        self._daemon("slurmctld", "slurmctld", "-D", "-i")
        for node in NODES:
            self.restart_node(node)
        self.wait_idle()

    def stop(self) -> None:
        """End all jobs, then all daemons, and remove all traces."""
        for node in NODES:
            self.kill_node(node)
        for name in reversed(self._daemons):
            self._daemons[name].terminate()
            try:
                self._daemons[name].wait(PATIENCE / 2)
            except subprocess.TimeoutExpired:
                self._daemons[name].kill()
        _remove_cgroups(self.state / "cgroup/memory")
        shutil.rmtree(self.state, ignore_errors=True)

    def run(self, *command: str, timeout: float = PATIENCE) -> str:
        """One of SLURM's commands -> its stdout."""
        environment = os.environ | self.environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=timeout)
        assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def wait_idle(self, *, cancel: bool = False) -> None:
        """Both nodes are up and no job is left."""

        def idle() -> bool:
            if cancel:
                self.run("scancel", "--user=root")
            nodes = self.run("sinfo", "-h", "-N", "-p", "gpu", "-o", "%T").split()
            return nodes == ["idle"] * len(NODES) and not self.run("squeue", "-h")

        until(idle, f"idle nodes; the logs are in {self.state}")

    def kill_node(self, node: str) -> None:
        """The crash of a node: its daemon, its step daemons and all processes of its jobs die without a word."""
        if node not in self._daemons:
            return
        inside = self.processes(node)
        # those first who could report the death of the others
        daemon = self._daemons.pop(node)
        for pid in (daemon.pid, *sorted(inside, key=lambda pid: _name(pid) != "slurmstepd")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        daemon.wait()

    def processes(self, node: str) -> list[int]:
        """Ids of all processes that a node's daemon has started: its mount namespace tells them apart."""
        daemon = self._daemons[node].pid
        namespace = _namespace(daemon)
        assert namespace not in (None, _namespace(os.getpid())), f"{node} has no processes of its own"
        found = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
        return [pid for pid in found if pid != daemon and _namespace(pid) == namespace]

    def restart_node(self, node: str) -> None:
        """Start a node's daemon, after a crash too."""
        cgroups = ("--cgroup",) if self.limits_memory else ()
        self._daemon(
            node,
            *("unshare", "--mount", "--propagation", "private", *cgroups, "sh", "-c", NODE),
            NODE=node,
            STATE=str(self.state),
            LIMITS_MEMORY="yes" if self.limits_memory else "no",
        )

    def submit(self, *options: str, command: str) -> str:
        """Submit a job -> its id."""
        return self.run("sbatch", "--parsable", "-A", "lab", "-o", "/dev/null", *options, "--wrap", command).strip()

    def jobs(self) -> dict[str, dict[str, Any]]:
        """All jobs that are queued or running, by id, as `squeue --json` has them."""
        listed: list[dict[str, Any]] = json.loads(self.run("squeue", "--json"))["jobs"]
        return {str(job["job_id"]): job for job in listed if job["job_state"] in ACTIVE}

    def history(self, job: str) -> list[str]:
        """The state of each of a job's runs, in order: a requeued job has several."""
        lines = self.run("sacct", "-nPXD", "-j", job, "-o", "state").splitlines()
        return [line.split()[0] for line in lines]

    def ended(self, job: str) -> list[str]:
        """The same once it has ended, of which the accounting hears seconds after the queue does."""

        def end() -> list[str] | None:
            history = self.history(job)
            return history if history and history[-1] not in ACTIVE else None

        found: list[str] = until(end, f"the end of job {job} in the accounting")
        return found

    def next_job(self) -> int:
        """The id of the next job to be submitted. The controller's own word: the accounting hears of a job seconds later."""
        (line,) = (
            line for line in self.run("scontrol", "show", "config").splitlines() if line.startswith("NEXT_JOB_ID")
        )
        return int(line.split("=")[1])

    def _configure(self) -> None:
        for name in ("etc", "controller", "spool", "mysql"):
            (self.state / name).mkdir()
        for path in (self.state, self.state / "etc"):
            path.chmod(0o755)
        names = ("controller_port", "database_port", "node1_port", "node2_port")
        values = {name: str(port) for name, port in zip(names, _free_ports(len(names)), strict=True)}
        values |= {
            "state": str(self.state),
            "host": socket.gethostname().split(".")[0],
            "task_plugin": "task/cgroup" if self.limits_memory else "task/none",
            "limits_memory": "yes" if self.limits_memory else "no",
            "first_job": str(100 * (10 + secrets.randbelow(10_000))),  # cgroups of two clusters are not to meet
        }
        for template in TEMPLATES.iterdir():
            text = string.Template(template.read_text()).substitute(values)
            (self.state / "etc" / template.name).write_text(text)
        (self.state / "etc/slurmdbd.conf").chmod(0o600)
        hosts = Path("/etc/hosts").read_text()
        (self.state / "etc/hosts").write_text(f"{hosts}\n127.0.0.1 {' '.join(NODES)}\n")
        for node in NODES:
            for gpu in range(2):
                os.mknod(self.state / f"{node}.gpu{gpu}", stat.S_IFCHR | 0o666, os.makedev(1, 3))

    def _start_munge(self) -> None:
        folder = self.state / "munge"
        folder.mkdir(mode=0o700)
        (folder / "key").write_bytes(secrets.token_bytes(128))
        (folder / "key").chmod(0o400)
        socket_path = self.state / "munge.socket"
        self._daemon(
            "munged",
            *("munged", "--foreground", "--num-threads=2", f"--socket={socket_path}", f"--key-file={folder / 'key'}"),
            *(f"--{name}-file={folder / name}" for name in ("seed", "log", "pid")),
        )
        until(lambda: self._answers("munge", "-n", "-S", str(socket_path)), "munge")

    def _start_database(self) -> None:
        folder, path = f"--datadir={self.state / 'mysql'}", self.state / "mysql.socket"
        create = ("mariadb-install-db", "--no-defaults", "--user=root", folder, "--skip-test-db")
        self.run(*create, "--auth-root-authentication-method=socket")
        self._daemon(
            "mariadbd",
            *("mariadbd", "--no-defaults", "--user=root", folder, f"--socket={path}", "--skip-networking"),
            *("--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M", "--innodb-lock-wait-timeout=900"),
        )
        grant = (
            "CREATE DATABASE accounting; CREATE USER 'slurm'@'localhost' IDENTIFIED BY 'slurm'; "
            "GRANT ALL ON accounting.* TO 'slurm'@'localhost';"
        )
        client = ("mariadb", "--no-defaults", f"--socket={path}", "--execute")
        until(lambda: self._answers(*client, "SELECT 1"), "MariaDB")
        self.run(*client, grant)

    def _daemon(self, name: str, *command: str, **environment: str) -> None:
        with (self.state / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                ("setpriv", "--pdeathsig", "TERM", *command),
                env=os.environ | self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C is for the tests, which then stop the cluster in order
            )

    def _answers(self, *command: str) -> bool:
        for name, daemon in self._daemons.items():
            assert daemon.poll() is None, f"{name} ended: {(self.state / f'{name}.out').read_text()[-2000:]}"
        done = subprocess.run(
            ("timeout", "10", *command), env=os.environ | self.environment, capture_output=True, check=False
        )
        return done.returncode == 0


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _memory_cgroups(mount_point: Path) -> bool:
    """Whether SLURM can limit memory here: its cgroups are mounted privately, below the one that the tests run in."""
    mount_point.mkdir(parents=True)
    mount = ("unshare", "--mount", "--cgroup", "mount", "-t", "cgroup", "-o", "memory", "none", str(mount_point))
    return subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode == 0


def _remove_cgroups(mount_point: Path) -> None:
    remove = 'mount -t cgroup -o memory none "$0" && find "$0"/slurm_node* -depth -type d -exec rmdir {} +'
    command = ("unshare", "--mount", "--cgroup", "sh", "-c", remove, str(mount_point))
    subprocess.run(command, stderr=subprocess.DEVNULL, check=False)


def _namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return None


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
