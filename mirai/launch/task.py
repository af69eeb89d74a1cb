"""What runs inside a job: one process a rank, each of which trains the states of a chain one after the other.

A job may be started again at any moment, after a signal or without one. It always begins at the newest state on disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mirai.errors import Interrupted, UserError
from mirai.experiments import paths, plan
from mirai.launch import record
from mirai.launch.progress import saved
from mirai.launch.queue import AWAY, PATIENCE
from mirai.launch.ranks import is_rank, run_ranks
from mirai.launch.resources import ranks_of_kind
from mirai.launch.slots import held_for
from mirai.states import is_published, read_json, write_json

RECORD_LATE = 120.0  # seconds for the record of a new job to appear, which its submitter writes last
CAUSE_LATE = 10.0  # seconds for the rank that failed to say so, before the others take it for dead
SUBMITIT = "submitit.core._submit"  # what submitit runs as a task, and so all ranks of a local job
QUEUED_AGAIN = 144  # exit code by which submitit's local executor starts the same job again
STAY = 3600.0  # seconds; whoever waits to be ended is not left for longer
FRUITLESS = 10  # runs of a job, one after the other, that saved nothing: more of them would be for ever


def run(chain: Sequence[str], cluster: str, *, restore: bool, save_every_steps: int | None) -> None:
    """Train the states of `chain` while the allocation lasts. Ends the process where there is nothing more to do."""
    if not restore and all(is_published(paths.manifest("state", key)) for key in chain):
        return
    os.environ.setdefault("TQDM_MININTERVAL", "10")  # seconds; a log file is no terminal
    place = Place(cluster, chain)
    if cluster != "debug":
        place.listen()
    ranks = ranks_of_kind("state") if cluster == "local" and not is_rank() else 1  # that this process stands for
    try:
        with held_for("state", plan.lookup(chain[0]).scale, ranks) as inherited:
            if ranks > 1:
                numbered = ("SUBMITIT_LOCAL_GLOBALID",)
                code = run_ranks([str(place.folder)], ranks, inherited, program=SUBMITIT, numbered=numbered)
                sys.exit(1 if code == QUEUED_AGAIN and place.hopeless() else code)
            _train(place, chain, restore, save_every_steps)
    except Interrupted as interruption:
        print(interruption, flush=True)
        place.leave(interruption.signals)
    except Exception as error:
        place.tell(error)
        raise


def _train(place: Place, chain: Sequence[str], restore: bool, save_every_steps: int | None) -> None:
    for number, key in enumerate(chain):
        if number > 0 and not plan.ready(key):
            print(f"state {key} needs what is not made yet: another job trains it", flush=True)
            return
        if not place.owns(key, patience=0.0 if number else RECORD_LATE):
            print(f"another job trains state {key}", flush=True)
            return
        place.meet(number)
        from mirai.make import make  # torch: only now, because a job may have nothing to do

        make(plan.lookup(key), restore=restore, save_every_steps=save_every_steps)


def error_file(folder: Path, identity: str) -> Path:
    """Where the first rank that fails says why."""
    return folder / f"{identity}_error.json"


def told(folder: Path, identity: str) -> dict[str, Any] | None:
    """What it said; None if no rank has failed, or if nothing can be read of it."""
    try:
        said: dict[str, Any] = json.loads(error_file(folder, identity).read_text())
        return said
    except (OSError, json.JSONDecodeError):
        return None


class Place:
    """This process in its job, and how much of the chain there was when it began."""

    def __init__(self, cluster: str, chain: Sequence[str]) -> None:
        import submitit

        environment = submitit.JobEnvironment()
        self.cluster, self.chain, self.found = cluster, chain, saved(chain)
        self.job = environment.job_id
        self.folder = Path(os.environ.get("SUBMITIT_FOLDER", "."))
        if cluster == "local":  # one task of submitit, which starts the ranks
            self.rank, self.ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
            self.local_rank = self.rank
        else:
            self.rank, self.ranks = environment.global_rank, environment.num_tasks
            self.local_rank = environment.local_rank
        self.first_node = environment.hostnames[0] if cluster == "slurm" else "127.0.0.1"
        self.attempt = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        # What tells this run from the one before it was queued again, to all its ranks; `local` numbers none.
        self.run = str(self.attempt) if cluster == "slurm" else str(os.getppid() if is_rank() else os.getpid())
        if self.rank == 0 and not is_rank():
            self._forget_earlier_error()

    def listen(self, heed: bool = True) -> None:
        """Obey USR2 and TERM at once while no training does; it saves first. Nothing else is half done then."""

        def end(number: int, _: object) -> None:
            self.leave((number,))

        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, end if heed else signal.SIG_IGN)

    def owns(self, key: str, patience: float) -> bool:
        """Whether the record of a state names this job. Its submitter writes it last; if it died before, nobody waits."""
        deadline = time.monotonic() + patience
        while self.cluster != "debug" and ((job := record.read(key)) is None or job.id != self.job):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.5)
        return True

    def meet(self, number: int) -> None:
        """Say in the environment where the ranks meet for the chain's state of this number: each time somewhere else,
        below the ports that outgoing connections are given."""
        if self.cluster == "debug":
            return
        digits = int(self.job)
        os.environ |= {
            "MASTER_ADDR": self.first_node,
            "MASTER_PORT": str(15000 + (131 * digits + 17 * self.attempt + number) % 15000),
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.ranks),
            "LOCAL_RANK": str(self.local_rank),  # all GPUs of the node are visible to all its ranks
        }

    def leave(self, signals: Sequence[int]) -> None:
        """End this run after a signal. USR2: the job is queued again, by its first rank or else by any other that is left.

        After TERM SLURM does itself what it has decided, which an exit would turn into a failure.
        """
        if self.cluster == "local":
            if signal.SIGUSR2 in signals:
                os._exit(1 if not is_rank() and self.hopeless() else QUEUED_AGAIN)
            self.say(mistake=True, text="cancelled; the same command goes on from what is saved")
            os._exit(130)
        if self.cluster == "debug":
            raise Interrupted("stopped, saved; the same command goes on from there")
        if signal.SIGUSR2 in signals:
            self.queue_again()
        self.listen(heed=False)
        time.sleep(STAY)
        os._exit(1)

    def queue_again(self) -> None:
        """Queue this job again, unless that is hopeless, and wait to be ended."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(min(self.rank, 1) * CAUSE_LATE)
        if not self.hopeless():
            deadline = time.monotonic() + STAY
            while (trouble := _requeue(self.job)) is not None and time.monotonic() < deadline:
                print(f"not queued again: {trouble}", flush=True)
                time.sleep(CAUSE_LATE)
                if not any(sign in trouble for sign in AWAY):  # refused: whoever waits submits another job
                    os._exit(1)
            if trouble is None:
                print("queued again: the same job goes on from what is saved", flush=True)
                time.sleep(STAY)
        os._exit(1)

    def hopeless(self) -> bool:
        """Count this run, which is to be followed by another, if it saved nothing -> whether there were too many of those.

        Then it is said: a job that can never start, ranks that never meet, would take its GPUs again for ever.
        """
        file = self.folder / f"{self.job}_fruitless.json"
        before: dict[str, Any] = read_json(file) if file.exists() else {"run": None, "runs": 0}
        if saved(self.chain) != self.found:
            runs = 0
        else:  # each of its ranks may come here
            runs = before["runs"] + int(before["run"] != self.run)
        write_json(file, {"run": self.run, "runs": runs})
        if runs >= FRUITLESS:
            self.say(
                mistake=True, text=f"{runs} runs of this job ended before anything was saved, and no other is started"
            )
        return runs >= FRUITLESS

    def tell(self, error: Exception) -> None:
        """Leave the reason of a failure for those who wait. The first rank that fails is the one to be heard."""
        from mirai.ranks import lost_a_peer

        mistake = isinstance(error, UserError)
        if lost_a_peer(error):
            deadline = time.monotonic() + CAUSE_LATE
            while not self._was_told():
                if time.monotonic() > deadline:
                    print(f"another rank is gone: {traceback.format_exc()}", file=sys.stderr, flush=True)
                    self.leave((signal.SIGUSR2,))
                time.sleep(0.2)
            return
        self.say(mistake, str(error) if mistake else traceback.format_exc())

    def say(self, mistake: bool, text: str) -> None:
        """Leave a sentence or a traceback, unless another rank was earlier."""
        content = {"mistake": mistake, "text": text, "rank": self.rank, "host": socket.gethostname(), "run": self.run}
        if self.cluster == "slurm":  # where the first rank may not have come to it yet
            self._forget_earlier_error()
        with contextlib.suppress(FileExistsError), error_file(self.folder, self.job).open("x") as file:
            file.write(json.dumps(content))

    def _was_told(self) -> bool:
        """Whether a rank of this run has said why it failed."""
        return (told(self.folder, self.job) or {}).get("run") == self.run

    def _forget_earlier_error(self) -> None:
        """What was told before this job was queued again is no more; another rank of this run may have failed already."""
        if not self._was_told():
            error_file(self.folder, self.job).unlink(missing_ok=True)


def _requeue(job: str) -> str | None:
    """Ask SLURM to queue a job again -> None if it will, else what it says."""
    command = ("scontrol", "requeue", job)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.strip()
