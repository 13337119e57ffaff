"""A reader written from llama-bench's source, not from ours: types, relations, and what its compare script needs."""

from __future__ import annotations

import json
import re
import sqlite3
import statistics
from dataclasses import replace

import pytest

from profiler.show.writers import llama_bench

TYPES = {
    str: "build_commit cpu_info gpu_info backends model_filename model_type cpu_mask type_k type_v split_mode devices"
    " tensor_split tensor_buft_overrides load_mode test_time",
    int: "build_number n_batch n_ubatch n_threads poll n_gpu_layers n_cpu_moe main_gpu flash_attn no_op_offload"
    " fit_target fit_min_ctx n_prompt n_gen n_depth avg_ns stddev_ns",
    bool: "cpu_strict no_kv_offload embeddings no_host use_mmap",
    float: "avg_ts stddev_ts",
}
JOINED_ON = [  # by scripts/compare-llama-bench.py: null never equals null there
    *("cpu_info", "gpu_info", "backends", "n_gpu_layers", "tensor_buft_overrides", "model_filename", "model_type"),
    *("n_batch", "n_ubatch", "embeddings", "cpu_mask", "cpu_strict", "poll", "n_threads", "type_k", "type_v"),
    *("use_mmap", "no_kv_offload", "split_mode", "main_gpu", "tensor_split", "flash_attn"),
    *("n_prompt", "n_gen", "n_depth"),
]


def read(text: str) -> list[dict]:
    """Rows of llama-bench JSON; raises AssertionError where a type or a relation is not llama-bench's."""
    rows = json.loads(text)
    for row in rows:
        for kind, names in TYPES.items():
            for name in names.split():
                assert type(row[name]) is kind, f"{name} is {row[name]!r}"
        for name in ("model_size", "model_n_params"):
            assert row[name] is None or (type(row[name]) is int and row[name] > 0)
        assert row["n_prompt"] + row["n_gen"] > 0 and 0 in (row["n_prompt"], row["n_gen"])
        assert all(type(ns) is int and ns > 0 for ns in row["samples_ns"])
        tokens = row["n_prompt"] + row["n_gen"]
        assert row["samples_ts"] == pytest.approx([1e9 * tokens / ns for ns in row["samples_ns"]], rel=1e-12)
        assert row["avg_ts"] == pytest.approx(statistics.fmean(row["samples_ts"]), rel=1e-12)
        assert row["avg_ns"] == sum(row["samples_ns"]) // len(row["samples_ns"])
        many = len(row["samples_ts"]) > 1
        assert row["stddev_ts"] == pytest.approx(statistics.stdev(row["samples_ts"]) if many else 0.0)
        assert row["stddev_ns"] == pytest.approx(statistics.stdev(row["samples_ns"]) if many else 0, abs=1)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row["test_time"])
    return rows


def test_a_case_gives_a_prefill_row_and_a_decode_row_at_depth(measurements):
    rows = read(llama_bench.render("r", measurements[:1]))
    assert [(row["n_prompt"], row["n_gen"], row["n_depth"]) for row in rows] == [(128, 0, 0), (0, 16, 128)]
    assert [ns / 1e9 for ns in rows[0]["samples_ns"]] == pytest.approx([0.1041, 0.1043, 0.1040])


def test_a_synthetic_fill_gives_no_prefill_row(measurements):
    (row,) = read(llama_bench.render("r", measurements[3:4]))
    assert (row["n_gen"], row["n_depth"]) == (16, 131072)


def test_batches_and_failures_are_left_out_with_a_message(measurements):
    rows = read(llama_bench.render("r", measurements))
    assert len(rows) == 2 + 2 + 1
    said = llama_bench.left_out(measurements)
    assert "1 case of batch > 1" in said and "4 cases without a result" in said
    assert llama_bench.left_out(measurements[:1]) is None


def test_nothing_to_say_is_an_empty_array(measurements):
    assert read(llama_bench.render("r", measurements[4:])) == []


def test_a_gpu_row_says_which_gpu_and_that_all_layers_are_on_it(measurements):
    gpu = {"device": {"title": "NVIDIA GeForce RTX 4090"}, "cpu": {"title": "AMD EPYC 7763", "cores": 8}}
    case = replace(measurements[0].case, device="cuda:1", dtype="bf16")
    row, _ = read(llama_bench.render("r", [replace(measurements[0], case=case, environment=gpu)]))
    assert (row["backends"], row["gpu_info"], row["main_gpu"]) == ("CUDA", "NVIDIA GeForce RTX 4090", 1)
    assert (row["n_gpu_layers"], row["type_k"]) == (99, "bf16")


def test_two_runs_of_the_same_cases_join_in_the_compare_script(measurements):
    rows = read(llama_bench.render("r", measurements))
    database = sqlite3.connect(":memory:")
    database.execute(f"CREATE TABLE llama_bench (build, {', '.join(JOINED_ON)}, avg_ts)")
    for build in ("base", "new"):
        for row in rows:
            values = [build, *(row[name] for name in JOINED_ON), row["avg_ts"]]
            database.execute(f"INSERT INTO llama_bench VALUES ({', '.join('?' * len(values))})", values)
    equal = " AND ".join(f"a.{name} = b.{name}" for name in JOINED_ON)
    query = (
        f"SELECT count(*) FROM llama_bench a JOIN llama_bench b ON a.build = 'base' AND b.build = 'new' AND {equal}"
    )
    assert database.execute(query).fetchone() == (len(rows),)
    database.close()
