"""Decode paths beside the one transformers ships."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from profiler.case import Case
from profiler.results import row as results_row
from profiler.results.comparison import pair
from profiler.results.measurement import DecodePath, Measurement, Memory, Sample
from profiler.results.row import row as as_row
from profiler.results.store import Store
from profiler.show.columns import path_lines
from profiler.show.writers import md, table

CASE = Case("gemma", "id", "real", "fp32", "fp32", "cpu", "hf", "eager", context=512, batch=1, steps=16, ubatch=512)
NATIVE = DecodePath("graph", kernels="C++ (avx2)", graphs=1, prepare_s=12.0)


def timed(path: str, *tps: float, how: DecodePath | None = None) -> Measurement:
    return replace(row(path, tps[0], how), samples=tuple(Sample("decode", 16 / each, 16) for each in tps))


def row(path: str, tps: float, how: DecodePath | None = None, **memory: int) -> Measurement:
    samples = tuple(Sample("decode", 16 / tps, 16) for _ in range(5))
    return Measurement(replace(CASE, path=path), {}, "ok", samples=samples, decode_path=how, memory=Memory(**memory))


def test_two_paths_of_a_case_are_a_ratio() -> None:
    (line,) = path_lines([row("eager", 8.0), row("graph", 27.2, NATIVE)])
    assert line == (
        "gemma fp32 c=512 b=1 graph: decodes 3.400 × as fast as eager (3.400–3.400);"
        " 1 graph prepared in 12.0 s; matrix products by C++ (avx2)"
    )


def test_on_cuda_the_gap_is_the_share_of_launches() -> None:
    captured = DecodePath("graph", graphs=3, nodes_per_token=1234, prepare_s=2.0)
    (line,) = path_lines([row("eager", 20.0), row("graph", 50.0, captured, graph_pool_bytes=64 * 2**20)])
    assert "launch-bound share of eager 60% (60%–60%)" in line
    assert "3 graphs prepared in 2" in line and "1,234 nodes per token" in line and "pool of 64.0 MiB" in line


def test_a_ratio_has_the_interval_that_compare_gives_and_no_more_digits_than_it_supports() -> None:
    captured = DecodePath("graph", graphs=1, nodes_per_token=12, prepare_s=2.0)
    eager, graph = timed("eager", 20.0, 21.0, 19.0), timed("graph", 50.0, 53.0, 48.0, how=captured)
    found = pair(eager, graph).rates["decode"]
    assert found.low is not None and found.high is not None
    (line,) = path_lines([eager, graph])
    assert f"decodes 2.5 × as fast as eager ({found.low:.1f}–{found.high:.1f})" in line
    assert f"launch-bound share of eager 60% ({1 - 1 / found.low:.0%}–{1 - 1 / found.high:.0%})" in line


def test_a_row_that_cannot_be_compared_has_no_ratio() -> None:
    captured = DecodePath("graph", graphs=1, nodes_per_token=12, prepare_s=2.0)
    (line,) = path_lines([timed("eager", 1.0, 9.0, 0.01), timed("graph", 60.0, 61.0, 60.5, how=captured)])
    assert "no ratio to eager: the rates are too noisy" in line
    assert "as fast as" not in line and "launch-bound" not in line


def test_one_repetition_has_two_digits_and_says_so() -> None:
    (line,) = path_lines([timed("eager", 8.0), timed("graph", 27.2, how=NATIVE)])
    assert "decodes 3.4 × as fast as eager (measured once)" in line


def test_a_path_that_fell_back_claims_no_gain() -> None:
    fallen = DecodePath("static", reason="not compiled: no compiler")
    assert path_lines([row("eager", 8.0), row("graph", 9.0, fallen)]) == []


def test_without_the_shipped_path_there_is_no_ratio() -> None:
    (line,) = path_lines([row("graph", 27.2, NATIVE)])
    assert "as fast" not in line


@pytest.mark.parametrize("report", [table, md])
def test_a_table_ends_with_the_ratio(report: object) -> None:
    text = report.render("r", [row("eager", 8.0), row("graph", 27.2, NATIVE)])  # type: ignore[attr-defined]
    assert "3.400 × as fast as" in text.replace("\n    ", " ")


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
    assert "decodes 2.000 × as fast as eager (2.000–2.000); matrix products by C++ (avx2)" in line
