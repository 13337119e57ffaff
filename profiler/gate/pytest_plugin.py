"""The pytest plugin: the fixture ``profile_case``, and verdicts on its measurements with ``--profile-gate BASELINE``.

    def test_decode(profile_case):
        profile_case(model="gemma-3-270m", context=64, steps=16)

    pytest --profile-gate baseline.json --profile-gate-accept     # once, and after every intended change
    pytest --profile-gate baseline.json

Cases are measured in our worker processes and appear in pytest-benchmark's table and JSON where that is installed.
Every pytest in an environment with llm-hwprofile loads this module, so it imports nothing else until a test needs a
case.

Exit status: pytest's own if that is not 0, otherwise 0 PASS, 1 FAIL, 4 incomparable. A stored time that is too noisy
for a decision is a warning; with ``--profile-gate-inconclusive fail`` it ends the session with 3.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from profiler.gate.suite import Replay, Suite

FIXTURE = "profile_case"
BENCHMARK = ("benchmark", "pytest_benchmark.plugin")  # the plugin's name when installed, and with -p
REPLAY: pytest.StashKey[Replay] = pytest.StashKey()
SUITE: pytest.StashKey[Suite] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("profile", "gates on model performance (llm-hwprofile)")
    group.addoption("--profile-gate", metavar="BASELINE", help="Compare what profile_case measures with this file.")
    group.addoption("--profile-gate-accept", action="store_true", help="Store the new measurements in the file.")
    group.addoption(
        "--profile-gate-delta",
        metavar="PERCENT",
        default="5%",
        help="The smallest slowdown that counts as a regression. Default: 5%%",
    )
    group.addoption(
        "--profile-gate-kinds",
        metavar="KINDS",
        default="workload,machine,time",
        help="What to compare: workload (bytes and tokens that follow from the case), machine (peak memory), time.",
    )
    group.addoption(
        "--profile-gate-inconclusive",
        choices=("fail", "warn"),
        default="warn",
        help="Whether a stored time too noisy for a decision fails the session. Default: warn",
    )


def pytest_configure(config: pytest.Config) -> None:
    tabled = _tabled(config)
    config.pluginmanager.register(Tabled() if tabled else Plain(), "llm-hwprofile-fixture")
    if config.getoption("profile_gate") is None:
        if config.getoption("profile_gate_accept"):
            raise pytest.UsageError("--profile-gate-accept needs --profile-gate, which names the file to write")
        return
    if not config.getoption("profile_gate"):  # such as an unset variable in a script, whose gate would always pass
        raise pytest.UsageError("--profile-gate needs the name of a file; its value is empty")
    if config.getoption("dist", "no") != "no" or os.environ.get("PYTEST_XDIST_WORKER"):
        raise pytest.UsageError("--profile-gate cannot measure in several processes at once: run pytest with -n 0")
    if tabled and (config.getoption("benchmark_disable") or _skipped(config)):
        raise pytest.UsageError(
            "--profile-gate cannot measure with --benchmark-disable or --benchmark-skip: remove that option"
        )
    from profiler.gate.suite import open_suite

    config.stash[SUITE] = open_suite(config)


def _tabled(config: pytest.Config) -> bool:
    return any(config.pluginmanager.has_plugin(name) for name in BENCHMARK)


def _skipped(config: pytest.Config) -> bool:
    return bool(config.getoption("benchmark_skip") and not config.getoption("benchmark_only"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: Iterable[pytest.Item]) -> None:
    """Set the ``timer`` of pytest-benchmark's marker to a clock that replays what the worker measured."""
    for item in items:
        if FIXTURE in getattr(item, "fixturenames", ()):
            from profiler.gate.suite import Replay

            item.stash[REPLAY] = replay = Replay()
            marker = item.get_closest_marker("benchmark")
            if not _tabled(config):  # the marker is not registered
                continue
            options = {**(marker.kwargs if marker else {}), "timer": replay.timer}
            item.add_marker(pytest.mark.benchmark(**options), append=False)


def _measure(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., Any]:
    """The function that a test gets. Its arguments are those of ``Suite.measure``."""
    config = request.config
    if SUITE not in config.stash:
        from profiler.gate.suite import open_suite

        config.stash[SUITE] = open_suite(config)
    return config.stash[SUITE].recorder(request.node, request.node.stash[REPLAY], benchmark)


class Plain:
    """Without pytest-benchmark: measured and gated, but in no table."""

    @pytest.fixture
    def profile_case(self, request: pytest.FixtureRequest) -> Callable[..., Any]:
        """``profile_case(model=…, quant=…, context=…, batch=…)`` measures one case and returns its measurement."""
        return _measure(request, None)


class Tabled:
    """With pytest-benchmark: also in its table and JSON."""

    @pytest.fixture
    def profile_case(self, request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., Any]:
        """``profile_case(model=…, quant=…, context=…, batch=…)`` measures one case and returns its measurement."""
        return _measure(request, benchmark)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Decide before anything is printed. Our exit status counts only if pytest's own is 0."""
    config = session.config
    if not config.getoption("profile_gate") or config.getoption("collectonly") or SUITE not in config.stash:
        return
    code = config.stash[SUITE].finish(int(exitstatus))
    if int(exitstatus) == 0:
        session.exitstatus = code


@pytest.hookimpl(trylast=True)  # below pytest-benchmark's table
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    lines = config.stash[SUITE].lines if SUITE in config.stash else []
    if lines:
        terminalreporter.section("profile gate")
        for line in lines:
            terminalreporter.write_line(line)
        for line in config.stash[SUITE].warnings:
            terminalreporter.write_line(line, yellow=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    if SUITE in config.stash:
        config.stash[SUITE].close()
