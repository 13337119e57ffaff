"""The pytest plugin: the fixture ``profile_case``, and verdicts on what it measured by ``--profile-gate BASELINE``.

    def test_decode(profile_case):
        profile_case(model="gemma-3-270m", context=64, steps=16)

    pytest --profile-gate baseline.json --profile-gate-accept     # once, and whenever a change is meant
    pytest --profile-gate baseline.json

Measured in our worker, shown in pytest-benchmark's own table and JSON where that is installed. It is loaded into
every pytest of an environment that has llm-hwprofile, so it imports nothing else until a test asks for a case.

Exit status: pytest's own if that is not 0; else 0 PASS, 1 FAIL, 4 incomparable. A stored time that is too noisy to
settle anything is a warning; with ``--profile-gate-inconclusive fail`` it ends the session with 3.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from profiler.gate.suite import Replay, Suite

FIXTURE = "profile_case"
BENCHMARK = ("benchmark", "pytest_benchmark.plugin")  # the name it has as installed, and by -p
REPLAY: pytest.StashKey[Replay] = pytest.StashKey()
SUITE: pytest.StashKey[Suite] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("profile", "gates on model performance (llm-hwprofile)")
    group.addoption("--profile-gate", metavar="BASELINE", help="Compare what profile_case measures with this file.")
    group.addoption("--profile-gate-accept", action="store_true", help="Write what is measured now into the file.")
    group.addoption(
        "--profile-gate-delta", metavar="PERCENT", default="5%", help="Slowdown that is a regression. Default: 5%%"
    )
    group.addoption(
        "--profile-gate-kinds",
        metavar="KINDS",
        default="workload,machine,time",
        help="What is gated: workload (bytes and tokens that follow from the case), machine (peak memory), time.",
    )
    group.addoption(
        "--profile-gate-inconclusive",
        choices=("fail", "warn"),
        default="warn",
        help="Whether the session fails if a stored time is too noisy to settle anything. Default: warn",
    )


def pytest_configure(config: pytest.Config) -> None:
    tabled = _tabled(config)
    config.pluginmanager.register(Tabled() if tabled else Plain(), "llm-hwprofile-fixture")
    if config.getoption("profile_gate") is None:
        if config.getoption("profile_gate_accept"):
            raise pytest.UsageError("--profile-gate-accept writes the file of --profile-gate, which is not given")
        return
    if not config.getoption("profile_gate"):  # the variable of a script that is not set: no gate would always pass
        raise pytest.UsageError("--profile-gate has no file: its value is an empty text")
    if config.getoption("dist", "no") != "no" or os.environ.get("PYTEST_XDIST_WORKER"):
        raise pytest.UsageError("--profile-gate measures, which several processes at once cannot: run it with -n 0")
    if tabled and (config.getoption("benchmark_disable") or _skipped(config)):
        raise pytest.UsageError("--profile-gate measures, which --benchmark-disable and --benchmark-skip prevent")
    from profiler.gate.suite import open_suite

    config.stash[SUITE] = open_suite(config)


def _tabled(config: pytest.Config) -> bool:
    return any(config.pluginmanager.has_plugin(name) for name in BENCHMARK)


def _skipped(config: pytest.Config) -> bool:
    return bool(config.getoption("benchmark_skip") and not config.getoption("benchmark_only"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: Iterable[pytest.Item]) -> None:
    """Give pytest-benchmark a clock that plays back what was measured: the ``timer`` of its own marker."""
    for item in items:
        if FIXTURE in getattr(item, "fixturenames", ()):
            from profiler.gate.suite import Replay

            item.stash[REPLAY] = replay = Replay()
            marker = item.get_closest_marker("benchmark")
            if not _tabled(config):  # then nobody has registered that marker
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
    """Without pytest-benchmark: measured, gated, in no table."""

    @pytest.fixture
    def profile_case(self, request: pytest.FixtureRequest) -> Callable[..., Any]:
        """``profile_case(model=…, quant=…, context=…, batch=…)`` measures one case and returns its measurement."""
        return _measure(request, None)


class Tabled:
    """With pytest-benchmark: in its table and its JSON too."""

    @pytest.fixture
    def profile_case(self, request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., Any]:
        """``profile_case(model=…, quant=…, context=…, batch=…)`` measures one case and returns its measurement."""
        return _measure(request, benchmark)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """The verdicts, before anybody prints. They end with a status of their own only where pytest's says fine."""
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
