"""What every test stands on: no hub, no cache and no store of the person who runs them, no skip without a reason."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from profiler import folders
from profiler.run import ceilings

# By pytest, by the first command that looks for GPUs, and by the first compilation with torch's inductor.
SET_ONCE = {
    "PYTEST_CURRENT_TEST", "CUDA_DEVICE_ORDER", "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR", "TORCHINDUCTOR_CACHE_DIR",
}  # fmt: skip
NOWHERE = "http://127.0.0.1:9"  # the discard port, where nothing listens

# huggingface_hub and transformers read these once, when they are imported; workers of ours inherit them.
_hub = tempfile.TemporaryDirectory(prefix="profile-tests-hub-")
os.environ.update(
    HF_HOME=_hub.name, HF_ENDPOINT=NOWHERE, HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false"
)
for _name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
    os.environ.pop(_name, None)


def pytest_unconfigure() -> None:
    _hub.cleanup()


@pytest.fixture(autouse=True)
def _environment_untouched() -> Iterator[None]:
    """No test, and no command that it runs, leaves a variable behind that a later test would see."""
    before = dict(os.environ)
    yield
    changed = sorted(n for n in {*before, *os.environ} - SET_ONCE if before.get(n) != os.environ.get(n))
    assert not changed, f"the environment changed: {', '.join(changed)}"


@pytest.fixture(autouse=True)
def _own_store(
    _environment_untouched: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results of a test go to a file of its own, never to the user's store; what is noted of folders goes with it. No
    file of the user's settings is read.
    """
    monkeypatch.setenv("PROFILER_SETTINGS", "")
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path_factory.mktemp("store") / "store.sqlite"))
    monkeypatch.setattr(folders, "_notes", [])
    monkeypatch.setattr(ceilings, "ensure", lambda device, say: None)  # it takes seconds; test_ceilings.py tests it


@pytest.fixture(scope="session", autouse=True)
def _user_store_untouched() -> Iterator[None]:
    """Nor does anything else reach the user's own results."""
    import platformdirs

    folder = Path(platformdirs.user_data_dir("profile"))
    before = _state(folder)
    yield
    assert _state(folder) == before, f"a test wrote to {folder}"


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file()) if folder.exists() else ()
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``: neighboring tests share a process with its models, and a process that is done takes more."""
    if config.option.dist != "load":  # the default of -n
        return None
    from xdist.scheduler.worksteal import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test that did not run says why: a skip without words is a failure."""
    if report.skipped and not hasattr(report, "wasxfail"):
        path, line, reason = report.longrepr if isinstance(report.longrepr, tuple) else ("", 0, str(report.longrepr))
        if reason.strip() in ("", "Skipped", "Skipped:", "Skipped: ", "Skipped: unconditional skip"):
            report.outcome = "failed"
            report.longrepr = f"{path}:{line}: skipped without a reason"
