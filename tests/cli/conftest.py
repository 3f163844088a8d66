"""Fixtures: the command line in this process, a small study, its server."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedseg.cli import main
from fedseg.rpc.certificates import certificate_request, new_protocol_key, new_site_key, protocol_public_key
from fedseg.runtime import pinning, site_folder
from fedseg.runtime.serve import serve
from fedseg.runtime.site_folder import SiteFolder
from fedseg.runtime.study import StudyFolder
from tests.system.world import free_port, until

PLAN = """
name: small
privacy: {mode: local, epsilon: 8, delta: 1e-5, reserve_rounds: 1}
image: {spacing_mm: 0.8, patch: [16, 16, 16]}
network: {preset: small}
training: {steps: 1, threads: 1}
schedule: {rounds: 2, deadline_s: 20, absent_after_s: 2}
sites: {a: {}, b: {}, c: {}}
"""


@dataclass(frozen=True)
class Answer:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    def says(self, code: int, *parts: str) -> None:
        """Check exit code and message: all parts stand in the error, which has no traceback."""
        assert self.code == code, self.err or self.out
        assert "Traceback" not in self.err
        for part in parts:
            assert part in self.err, self.err


Command = Callable[..., Answer]


def enrol(study: StudyFolder, *sites: str) -> None:
    """Enrol sites that have no client; again, with another key, where they had enrolled: as a coordinator could."""
    for site in sites:
        invite = study.invite(site, now=time.time(), hours=1)
        key = protocol_public_key(new_protocol_key())
        study.enrol(invite.identifier, certificate_request(new_site_key(), site), key, now=time.time())


def enrol_at_desk(study: StudyFolder, site: str, folder: SiteFolder, *, data: Path, ledger: Path) -> SiteFolder:
    """Enrol a site with all that it keeps, while no server runs."""
    invite = study.invite(site, now=time.time(), hours=1)

    class Desk:
        def enrol(self, request: bytes, key: bytes) -> bytes:
            return study.enrol(invite.identifier, request, key, now=time.time())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site_folder, "RemoteStudy", lambda *_: contextlib.nullcontext(Desk()))
        folder.enrol(invite, data=data, labels=None, ledger=ledger, policy=None, now=time.time())
    return folder


@contextlib.contextmanager
def meanwhile(log: Path, sign: str, act: Callable[[], object]) -> Iterator[None]:
    """Do something as soon as a sign is in a log, while the block runs."""

    def watch() -> None:
        until(lambda: log.is_file() and sign in log.read_text(), sign)
        act()

    thread = threading.Thread(target=watch, name="meanwhile")
    thread.start()
    yield
    thread.join(timeout=60)
    assert not thread.is_alive()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a roster asks again at once."""
    monkeypatch.setattr(pinning, "POLL_S", 0.05)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ledgers that nobody named a place for stay out of the home of whoever runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def fedseg(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """Run `fedseg` with words in this process."""

    def call(*words: str | Path) -> Answer:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["fedseg", *map(str, words)])
        code: object = 0
        try:
            main.run()
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        assert code is None or isinstance(code, int)
        return Answer(code or 0, said.out, said.err)

    yield call
    for logger in [logging.getLogger("fedseg"), *map(logging.getLogger, _screens())]:
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()


def _screens() -> list[str]:
    return [name for name in logging.root.manager.loggerDict if name.startswith("fedseg.screen.")]


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    """The plan of the small study."""
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


@pytest.fixture(scope="session")
def study_master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study as `fedseg study create` makes it; copied, never used."""
    folder = tmp_path_factory.mktemp("master")
    (folder / "plan.yaml").write_text(PLAN)
    words = ["study", "create", folder / "study", "--plan", folder / "plan.yaml", "--address", "localhost:8443"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fedseg", *map(str, words)])
        with contextlib.suppress(SystemExit):
            main.run()
    return folder / "study"


@pytest.fixture
def study(study_master: Path, tmp_path: Path) -> StudyFolder:
    """A study of its own, on a free port."""
    shutil.copytree(study_master, tmp_path / "study")
    (tmp_path / "study" / "address").write_text(f"localhost:{free_port()}")
    return StudyFolder.open(tmp_path / "study")


@pytest.fixture
def invite(study: StudyFolder) -> Callable[..., str]:
    """`invite(site, hours=1, age_h=0)`: an invite's line."""

    def make(site: str = "a", *, hours: int = 1, age_h: float = 0) -> str:
        return study.invite(site, now=time.time() - 3600 * age_h, hours=hours).encode()

    return make


@pytest.fixture
def server(study: StudyFolder) -> Iterator[None]:
    """The study's server, in a thread."""
    stop, up = threading.Event(), threading.Event()
    port = study.address.rpartition(":")[2]
    thread = threading.Thread(
        target=lambda: serve(study, f"127.0.0.1:{port}", notify=lambda _: up.set(), stop=stop), name="server"
    )
    thread.start()
    assert up.wait(timeout=20)
    yield
    stop.set()
    thread.join(timeout=20)
    assert not thread.is_alive()


@pytest.fixture
def data(make_bids: Callable[..., Path]) -> Path:
    """A site's scans."""
    return make_bids(2)


@pytest.fixture
def join(fedseg: Command, data: Path, tmp_path: Path) -> Command:
    """`client join` with this data, the state folder `state` and a ledger folder of its own."""

    def call(*words: str | Path, state: str = "state") -> Answer:
        options = ("--data", data, "--state", tmp_path / state, "--ledger", tmp_path / "ledger")
        return fedseg("client", "join", *words, *options)

    return call
