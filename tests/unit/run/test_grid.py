"""Lists, ranges and the grid they span."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import ProfileError
from profiler.run.grid import MAX_CASES, counts, model_names, words


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["4096"], (4096,)),
        (["4k"], (4096,)),
        (["128K"], (131072,)),
        (["512,4k", "512", "1k"], (512, 4096, 1024)),
        ([" 1 , 2 ,, "], (1, 2)),
        (["1-8+1"], (1, 2, 3, 4, 5, 6, 7, 8)),
        (["1-8+3"], (1, 4, 7)),
        (["1k-8k*2"], (1024, 2048, 4096, 8192)),
        (["1k-7k*2"], (1024, 2048, 4096)),
        (["5-5+1"], (5,)),
        (["8,1-8*2"], (8, 1, 2, 4)),
    ],
)
def test_a_list_is_read_in_order_without_duplicates(typed: list[str], meant: tuple[int, ...]) -> None:
    assert counts("-c", typed) == meant


@pytest.mark.parametrize(
    "typed",
    [
        *("x", "0", "-5", "1.5", "4g", "1_0", "9" * 40, "", ",", "\x1b[31m4"),
        *("1-8", "8-1+1", "1-8*1", "1-8+0", "1-8*0", "0-8+1", "1-", "-", "1-8-9+1", "1-8^2", "1-999999999999+1"),
    ],
)
def test_an_invalid_list_is_one_clear_line_that_names_the_option(typed: str) -> None:
    with pytest.raises(ProfileError) as caught:
        counts("-c", [typed])
    assert caught.value.message.startswith("-c: ")
    assert "\n" not in caught.value.message
    assert "\x1b" not in caught.value.message
    assert caught.value.exit_code == 2


@given(first=st.integers(1, 10**6), span=st.integers(0, 10**6), by=st.integers(2, 64))
def test_a_multiplied_range_has_every_product_up_to_its_end(first: int, span: int, by: int) -> None:
    found = counts("-c", [f"{first}-{first + span}*{by}"])
    assert found[0] == first
    assert all(after == before * by for before, after in pairwise(found))
    assert found[-1] <= first + span < found[-1] * by


@pytest.mark.parametrize(
    "words",
    [
        ["1-100000+1,100001-200000+1"],
        ["1-60000+1", "2-60001+1"],
        [",".join(f"{n}-{n + 99_998}+1" for n in range(1, 10**9, 99_999))],
        ["1-999999999999+1"],
    ],
)
def test_a_list_is_counted_before_it_is_made(words: list[str]) -> None:
    start = time.process_time()
    with pytest.raises(ProfileError, match=f"more than {MAX_CASES:,} numbers"):
        counts("-c", words)
    assert time.process_time() - start < 1


def test_lists_are_separated_by_commas_or_repeated_options() -> None:
    assert words(["nf4,int8", "nf4", " bf16"]) == ("nf4", "int8", "bf16")


def test_the_grid_is_every_combination_with_models_outermost(make_tasks: Any) -> None:
    cases = [task.case for task in make_tasks("gemma-3-1b,qwen3-0.6b", "fp32,nf4", (128, 256), (1, 2), (4, 8))]
    assert len(cases) == len(set(cases)) == 32
    assert [case.model for case in cases] == ["gemma-3-1b"] * 16 + ["qwen3-0.6b"] * 16
    assert [case.quant for case in cases[:16]] == ["fp32"] * 8 + ["nf4"] * 8


def test_a_grid_that_is_too_large_is_refused(make_tasks: Any) -> None:
    with pytest.raises(ProfileError, match=f"more than {MAX_CASES:,}"):
        make_tasks("gemma-3-1b", "fp32", tuple(range(1, 1001)), tuple(range(1, 200)))


def test_a_quant_fixes_the_compute_dtype_or_takes_the_devices(make_tasks: Any, make_gpu: Any) -> None:
    dtypes = {task.case.quant: task.case.dtype for task in make_tasks("gemma-3-1b", "bf16,nf4")}
    assert dtypes == {"bf16": "bf16", "nf4": "fp32"}
    (task,) = make_tasks("gemma-3-1b", "nf4", device=make_gpu())
    assert (task.case.dtype, task.case.device) == ("bf16", "cuda:0")


def test_a_prefill_chunk_is_never_longer_than_the_context(make_tasks: Any) -> None:
    chunks = {task.case.context: task.case.ubatch for task in make_tasks("gemma-3-1b", contexts=(128, 4096))}
    assert chunks == {128: 128, 4096: 512}


def test_a_model_whose_path_contains_commas_is_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a,b/model", "a", "c,d,e", "c,d"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_names(["./a,b/model"]) == ("./a,b/model",)
    assert model_names(["x, ./a,b/model ,y", "x"]) == ("x", "./a,b/model", "y")
    assert model_names(["c,d,e"]) == ("c,d,e",)  # the longest that exists
    assert model_names(["c,d,y"]) == ("c,d", "y")
    assert model_names(["~/a,b/model,a"]) == ("~/a,b/model", "a")
    assert model_names(["x,,y, ", ","]) == ("x", "y")
    assert model_names([f"{'x' * 300},y\0"]) == ("x" * 300, "y\0")


def test_a_long_list_of_models_is_read_quickly() -> None:
    start = time.process_time()
    assert len(model_names([",".join(f"name{n}" for n in range(5000))])) == 5000
    assert time.process_time() - start < 2
