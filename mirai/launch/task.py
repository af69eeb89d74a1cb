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

from mirai.errors import Interrupted, UserError
from mirai.experiments import paths, plan
from mirai.launch import record
from mirai.launch.ranks import is_rank, run_ranks
from mirai.launch.resources import ranks_of_kind
from mirai.launch.slots import held_for
from mirai.states import is_published

RECORD_LATE = 120.0  # seconds for the record of a new job to appear, which its submitter writes last
CAUSE_LATE = 10.0  # seconds for the rank that failed to say so, before the others take it for dead
SUBMITIT = "submitit.core._submit"  # what submitit runs as a task, and so all ranks of a local job
QUEUED_AGAIN = 144  # exit code by which submitit's local executor starts the same job again
STAY = 3600.0  # seconds; whoever waits to be ended is not left for longer


def run(chain: Sequence[str], cluster: str, *, restore: bool, save_every_steps: int | None) -> None:
    """Train the states of `chain` while the allocation lasts. Ends the process where there is nothing more to do."""
    if not restore and all(is_published(paths.manifest("state", key)) for key in chain):
        return
    os.environ.setdefault("TQDM_MININTERVAL", "10")  # seconds; a log file is no terminal
    place = Place(cluster)
    if cluster != "debug":
        place.listen()
    ranks = ranks_of_kind("state") if cluster == "local" and not is_rank() else 1  # that this process stands for
    try:
        with held_for("state", plan.lookup(chain[0]).scale, ranks) as inherited:
            if ranks > 1:
                numbered = ("SUBMITIT_LOCAL_GLOBALID",)
                sys.exit(run_ranks([str(place.folder)], ranks, inherited, program=SUBMITIT, numbered=numbered))
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


class Place:
    """This process in its job."""

    def __init__(self, cluster: str) -> None:
        import submitit

        environment = submitit.JobEnvironment()
        self.cluster = cluster
        self.job = environment.job_id
        self.folder = Path(os.environ.get("SUBMITIT_FOLDER", "."))
        if cluster == "local":  # one task of submitit, which starts the ranks
            self.rank, self.ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
            self.local_rank = self.rank
        else:
            self.rank, self.ranks = environment.global_rank, environment.num_tasks
            self.local_rank = environment.local_rank
        self.first_node = environment.hostnames[0] if cluster == "slurm" else "127.0.0.1"
        if self.rank == 0:
            error_file(self.folder, self.job).unlink(missing_ok=True)  # of a run before it was queued again

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
        attempt, digits = int(os.environ.get("SLURM_RESTART_COUNT", 0)), int(self.job)
        os.environ |= {
            "MASTER_ADDR": self.first_node,
            "MASTER_PORT": str(15000 + (131 * digits + 17 * attempt + number) % 15000),
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
                os._exit(QUEUED_AGAIN)
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
        """Queue this job again, and wait to be ended."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(min(self.rank, 1) * CAUSE_LATE)
        done = subprocess.run(("scontrol", "requeue", self.job), capture_output=True, text=True, check=False)
        print(f"queued again: {done.stderr.strip() or 'the same job goes on from what is saved'}", flush=True)
        time.sleep(STAY if done.returncode == 0 else CAUSE_LATE)
        os._exit(1)

    def tell(self, error: Exception) -> None:
        """Leave the reason of a failure for those who wait. The first rank that fails is the one to be heard."""
        from mirai.ranks import lost_a_peer

        mistake = isinstance(error, UserError)
        if lost_a_peer(error):
            deadline = time.monotonic() + CAUSE_LATE
            while not error_file(self.folder, self.job).exists():
                if time.monotonic() > deadline:
                    print(f"another rank is gone: {error}", file=sys.stderr, flush=True)
                    self.leave((signal.SIGUSR2,))
                time.sleep(0.2)
            return
        self.say(mistake, str(error) if mistake else traceback.format_exc())

    def say(self, mistake: bool, text: str) -> None:
        """Leave a sentence or a traceback, unless another rank was earlier."""
        content = {"mistake": mistake, "text": text, "rank": self.rank, "host": socket.gethostname()}
        with contextlib.suppress(FileExistsError), error_file(self.folder, self.job).open("x") as file:
            file.write(json.dumps(content))
