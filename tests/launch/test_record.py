"""Job records: one for every state of a chain, and one submitter at a time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.launch import record
from mirai.launch.record import Job

pytestmark = pytest.mark.full

A, B, C = "a" * 16, "b" * 16, "c" * 16


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(identity: str, *chain: str, cluster: str = "slurm") -> Job:
    return record.new(identity, cluster, chain, Path("results/a.out"), Path("results/jobs"))


def test_every_state_of_the_chain_names_the_job() -> None:
    assert record.read(A) is None
    submitted = job("7", A, B)
    record.write(submitted)
    assert record.read(A) == record.read(B) == submitted
    assert submitted.user == record.user()
    assert submitted.host == socket.gethostname()
    assert submitted.submitted.startswith("20")


def test_a_job_is_listed_once_and_two_hosts_may_have_processes_of_one_number() -> None:
    record.write(job("7", A, B))
    local = job("7", C, cluster="local")
    record.write(local)
    assert [(one.id, one.cluster) for one in record.all_jobs()].count(("7", "slurm")) == 1
    assert len(record.all_jobs()) == 2


def test_a_new_job_remembers_those_that_were_lost() -> None:
    for identity in ("7", "8", "9"):
        record.write(job(identity, A))
    assert job("10", A).earlier == ("7", "8", "9")
    assert job("10", A, cluster="local").earlier == ()


def test_a_second_submitter_of_any_state_of_the_chain_waits_for_the_first(folder: Path) -> None:
    code = (
        f"from mirai.launch import record\nwith record.locked(({B!r}, {C!r})):\n    print('saw', record.read({B!r}))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(record.__file__).parents[2])}
    with record.locked((A, B)):
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1.5)
        record.write(job("7", A, B))
    printed, _ = other.communicate(timeout=30)
    assert "id='7'" in printed


@pytest.mark.parametrize("content", ['{"id": "7"', "[]", '{"id": "7"}'])
def test_a_damaged_record_is_named_and_hides_no_other(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    record.write(job("7", A))
    good = job("8", B)
    record.write(good)
    paths.job(A).write_text(content)
    with pytest.raises(UserError, match=rf"state/{A}/job\.json is damaged"):
        record.read(A)
    assert record.all_jobs() == [good]
    assert f"state/{A}/job.json is damaged" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told(folder: Path) -> None:
    paths.folder("state", A).mkdir(parents=True)
    paths.job(A).with_name(".job.lock").mkdir()  # as good as another user's: root may write everywhere
    with pytest.raises(UserError, match=r"cannot write .*\.job\.lock: Is a directory; all who share results must"):
        record.locked((A,)).__enter__()


def test_a_user_without_a_name_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record.getpass, "getuser", lambda: (_ for _ in ()).throw(KeyError("uid not found")))
    assert record.user() == str(os.getuid())


def test_records_lie_beside_the_states() -> None:
    record.write(job("7", A))
    assert (paths.folder("state", A) / "job.json").exists()
