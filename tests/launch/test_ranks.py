"""Starting ranks: what each is told, and how they end when one of them does."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from mirai.launch import ranks as launch

pytestmark = pytest.mark.full


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which `python -m mirai` runs what is written to `mirai.py`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(launch, "GRACE", 0.5)
    return tmp_path


def test_every_rank_is_told_its_place_and_the_command(ranks: Path) -> None:
    (ranks / "mirai.py").write_text(
        "import os, sys\n"
        "names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR')\n"
        "open('rank' + os.environ['RANK'], 'w').write(' '.join([*map(os.environ.get, names), *sys.argv[1:]]))\n"
    )
    assert launch.run_ranks(["codes", "abc"], 2) == 0
    assert (ranks / "rank0").read_text() == "0 0 2 127.0.0.1 codes abc"
    assert (ranks / "rank1").read_text() == "1 1 2 127.0.0.1 codes abc"


@pytest.mark.parametrize(("end", "code"), [("sys.exit(2)", 2), ("os.kill(os.getpid(), 9)", 137)])
def test_a_rank_that_fails_ends_those_that_wait_for_it_and_its_code_is_returned(
    end: str, code: int, ranks: Path
) -> None:
    (ranks / "mirai.py").write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"if os.environ['RANK'] == '1': {end}\n"
        "time.sleep(600)\n"
    )
    assert launch.run_ranks([], 3) == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_ranks_that_were_asked_to_stop_are_given_the_time_to_save(number: int, ranks: Path) -> None:
    (ranks / "mirai.py").write_text(
        "import os, pathlib, signal, sys, time\n"
        "def stop(*_):\n"
        "    time.sleep(2.0 * (os.environ['RANK'] == '0'))\n"
        "    pathlib.Path('saved' + os.environ['RANK']).touch()\n"
        "    sys.exit(130)\n"
        f"signal.signal({number}, stop)\n"
        "pathlib.Path('ready' + os.environ['RANK']).touch()\n"
        "time.sleep(600)\n"
    )

    def ask() -> None:
        while len(list(ranks.glob("ready?"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=ask, daemon=True).start()
    assert launch.run_ranks([], 2) == 130
    assert len(list(ranks.glob("saved?"))) == 2
    assert signal.getsignal(number) is signal.SIG_DFL
