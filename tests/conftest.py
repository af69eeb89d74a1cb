"""Fixtures of all tests: no network, and a throw-away project folder to plan in."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirai.experiments import plan
from mirai.experiments.scale import load_scale

ROOT = Path(__file__).parent.parent
LOOPBACK = ("localhost", "::1", "0.0.0.0", "", socket.gethostname())


def _is_local(host: object) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    return name is None or (isinstance(name, str) and (name in LOOPBACK or name.startswith("127.")))


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Names are not resolved and sockets not connected, except on this machine: a test that tries fails at once."""
    resolve = socket.getaddrinfo

    def local_getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if not _is_local(host):
            raise RuntimeError(f"tests have no network: looked up {host!r}")
        return resolve(host, *arguments, **options)

    def local_only(connect: Callable[[socket.socket, Any], Any]) -> Callable[[socket.socket, Any], Any]:
        def guarded(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
                raise RuntimeError(f"tests have no network: connected to {address!r}")
            return connect(self, address)

        return guarded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", local_getaddrinfo)
        patch.setattr(socket.socket, "connect", local_only(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", local_only(socket.socket.connect_ex))
        yield


@pytest.fixture
def fresh_plan() -> Iterator[None]:
    """A planner that remembers nothing of other tests, and leaves nothing to them."""

    def forget() -> None:
        plan.plan_grid.cache_clear()
        plan._planned.clear()
        plan._to_make.clear()
        plan._to_train.clear()
        load_scale.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_plan: None) -> Path:
    """A folder with the project's grids and scales and nothing else, as the working directory."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    monkeypatch.chdir(tmp_path)
    return tmp_path


WriteGrid = Callable[..., str]


@pytest.fixture
def write_grid(project: Path) -> WriteGrid:
    """Write a grid of the given rows (and other keys of a grid file) into the project -> its name.

    A row that neither says its arm nor has it from the grid's defaults is a baseline.
    """

    def write(*rows: dict[str, Any], name: str = "own", **keys: Any) -> str:
        labelled = [{"label": f"row {number}", **row} for number, row in enumerate(rows)]
        for row in labelled:
            axes = {*row, *row.get("vary", {}), *row.get("zip", {}), *keys.get("defaults", {})}
            if not axes & {"arm", "cited"}:
                row["arm"] = "baseline"
        content = {"title": "A test's grid", **keys, "rows": labelled}
        (project / "experiments" / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return name

    return write
