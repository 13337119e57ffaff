"""Decode paths beside the one transformers ships."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from profiler.case import Case
from profiler.results import row as results_row
from profiler.results.measurement import DecodePath, Measurement, Memory, Sample
from profiler.results.row import row as as_row
from profiler.results.store import Store
from profiler.show.columns import path_lines
from profiler.show.writers import md, table

CASE = Case("gemma", "id", "real", "fp32", "fp32", "cpu", "hf", "eager", context=512, batch=1, steps=16, ubatch=512)
NATIVE = DecodePath("graph", kernels="C++ (avx2)", graphs=1, prepare_s=12.0)


def row(path: str, tps: float, how: DecodePath | None = None, **memory: int) -> Measurement:
    samples = tuple(Sample("decode", 16 / tps, 16) for _ in range(5))
    return Measurement(replace(CASE, path=path), {}, "ok", samples=samples, decode_path=how, memory=Memory(**memory))


def test_two_paths_of_a_case_are_a_ratio() -> None:
    (line,) = path_lines([row("eager", 8.0), row("graph", 27.2, NATIVE)])
    assert line == (
        "gemma fp32 c=512 b=1 graph: decodes 3.40 × as fast as eager;"
        " 1 graph prepared in 12.0 s; matrix products by C++ (avx2)"
    )


def test_on_cuda_the_gap_is_the_share_of_launches() -> None:
    captured = DecodePath("graph", graphs=3, nodes_per_token=1234, prepare_s=2.0)
    (line,) = path_lines([row("eager", 20.0), row("graph", 50.0, captured, graph_pool_bytes=64 * 2**20)])
    assert "launch-bound share of eager 60%" in line
    assert "3 graphs prepared in 2" in line and "1,234 nodes per token" in line and "pool of 64.0 MiB" in line


def test_a_path_that_fell_back_claims_no_gain() -> None:
    fallen = DecodePath("static", reason="not compiled: no compiler")
    assert path_lines([row("eager", 8.0), row("graph", 9.0, fallen)]) == []


def test_without_the_shipped_path_there_is_no_ratio() -> None:
    (line,) = path_lines([row("graph", 27.2, NATIVE)])
    assert "as fast" not in line


@pytest.mark.parametrize("report", [table, md])
def test_a_table_ends_with_the_ratio(report: object) -> None:
    text = report.render("r", [row("eager", 8.0), row("graph", 27.2, NATIVE)])  # type: ignore[attr-defined]
    assert "3.40 × as fast as" in text.replace("\n    ", " ")


def test_the_path_that_ran_is_stored_in_the_row() -> None:
    measured = row("graph", 27.2, NATIVE)
    assert Measurement.from_json(measured.to_json()) == measured


def test_the_path_that_ran_survives_the_store_and_a_file(tmp_path: Path) -> None:
    measured = row("graph", 27.2, NATIVE)
    with Store.open(tmp_path / "s.sqlite") as store:
        store.append(store.start_run(["sweep"], {}), measured)
        assert [found.decode_path for found in store.newest_per_environment()] == [NATIVE]
    assert results_row.from_row(as_row(None, measured)).decode_path == NATIVE


def test_a_table_describes_the_default_step_only_if_something_is_noteworthy() -> None:
    usual = DecodePath("static", kernels="C++ (avx2)", cache_needed_bytes=2**20, cache_read_bytes=2**20)
    assert path_lines([row("static", 27.2, usual)], brief=True) == []
    (line,) = path_lines([row("static", 27.2, usual)])
    assert "1.00 × what attention needs; matrix products by C++ (avx2)" in line
    padded = replace(usual, cache_read_bytes=3 * 2**19)
    (line,) = path_lines([row("static", 27.2, padded)], brief=True)
    assert "1.50 × what attention needs; matrix products by C++ (avx2)" in line
    (line,) = path_lines([row("eager", 8.0), row("static", 16.0, usual)], brief=True)
    assert "decodes 2.00 × as fast as eager; matrix products by C++ (avx2)" in line
