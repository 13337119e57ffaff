"""The C++ loops agree with torch, in every shape they are used in, and a machine without a compiler still decodes."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fakes.architectures import CONFIGS, prompt
from transformers import PreTrainedModel
from transformers.models.qwen3_5.modeling_qwen3_5 import causal_conv1d_update, torch_recurrent_gated_delta_rule

from profiler import decode_path, folders
from profiler.kernels import native
from profiler.kernels.patches import Patches, _convolution
from profiler.kernels.runner import EagerRunner, StaticRunner

Tiny = Callable[[str], PreTrainedModel]


@pytest.fixture(scope="module")
def ops() -> torch._ops._OpNamespace:
    reason = native.missing()
    if reason:
        pytest.skip(reason)
    return torch.ops.hwprofile


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 11])
@pytest.mark.parametrize("n, k", [(1, 1), (7, 13), (33, 640), (1030, 65)])
def test_matvec_is_the_matrix_product(ops, dtype: torch.dtype, rows: int, n: int, k: int) -> None:
    x, w = torch.randn(rows, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
    expected = F.linear(x.double(), w.double()).to(dtype)
    torch.testing.assert_close(ops.matvec(x, w), expected, atol=1e-4 if dtype == torch.float32 else 1e-2, rtol=1e-2)


@pytest.mark.parametrize("rows", [1, 4])
def test_int8_rows_are_scaled(ops, rows: int) -> None:
    x, scale = torch.randn(rows, 77), torch.rand(50) + 0.1
    w = torch.randint(-127, 128, (50, 77), dtype=torch.int8)
    torch.testing.assert_close(ops.matvec(x, w, scale), x @ (w.float() * scale[:, None]).T, atol=1e-3, rtol=1e-4)


def test_several_threads_give_what_one_gives(ops) -> None:
    x, w = torch.randn(2, 512), torch.randn(4099, 512)
    torch.set_num_threads(1)
    alone = ops.matvec(x, w)
    torch.set_num_threads(3)
    for _ in range(200):
        assert torch.equal(ops.matvec(x, w), alone)


def test_wrong_shapes_are_refused(ops) -> None:
    with pytest.raises(RuntimeError, match="contiguous weights"):
        ops.matvec(torch.randn(1, 8), torch.randn(4, 9))
    with pytest.raises(RuntimeError, match="no such expert"):
        ops.expert_matvec(torch.randn(1, 8), torch.randn(2, 4, 8), torch.tensor([2]))
    with pytest.raises(RuntimeError, match="int8 rows need their scales"):
        ops.matvec(torch.randn(1, 8), torch.zeros(4, 8, dtype=torch.int8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("heads, kv_heads, slots", [(4, 1, 40), (4, 2, 3000), (8, 8, 65)])
def test_attention_reads_only_what_the_mask_allows(ops, dtype, heads: int, kv_heads: int, slots: int) -> None:
    query = torch.randn(2, heads, 1, 24, dtype=dtype)
    keys = torch.randn(2, kv_heads, slots + 9, 24, dtype=dtype)[:, :, :slots]
    values = torch.randn(2, kv_heads, slots + 9, 20, dtype=dtype)[:, :, :slots]
    mask = (torch.rand(slots) < 0.7).view(1, 1, 1, slots)
    mask[..., 64:200] = False
    mask[..., 0] = True
    keys[:, :, ~mask.view(-1)] = torch.nan  # never touched, so it cannot spread
    clean = keys.nan_to_num(0)
    expected = F.scaled_dot_product_attention(
        query.float(), clean.float(), values.float(), attn_mask=mask, scale=0.3, enable_gqa=True
    )
    given = ops.decode_attention(query, keys, values, mask, 0.3)
    torch.testing.assert_close(given.float(), expected.transpose(1, 2), atol=1e-5 if dtype == torch.float32 else 1e-2,
                               rtol=1e-2)  # fmt: skip


@pytest.mark.parametrize("key_heads, heads, dk, dv", [(2, 4, 16, 24), (4, 4, 128, 128), (1, 3, 8, 5)])
def test_the_delta_step_is_the_recurrent_rule(ops, key_heads: int, heads: int, dk: int, dv: int) -> None:
    state = torch.randn(2, heads, dk, dv)
    reference = state.clone()
    for _ in range(16):
        query, key = torch.randn(2, 1, key_heads, dk), torch.randn(2, 1, key_heads, dk)
        value, g, beta = torch.randn(2, 1, heads, dv), -torch.rand(2, 1, heads), torch.rand(2, 1, heads)
        expected, reference = torch_recurrent_gated_delta_rule(
            query, key, value, g, beta, initial_state=reference, output_final_state=True, use_qk_l2norm_in_kernel=True
        )
        given = ops.gated_delta_step(query, key, value, g, beta, state)
        torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, reference, atol=1e-5, rtol=1e-5)


def test_experts_are_read_by_number(ops) -> None:
    x, w, ids = torch.randn(6, 32), torch.randn(5, 48, 32), torch.tensor([4, 0, 0, 2, 1, 4])
    torch.testing.assert_close(ops.expert_matvec(x, w, ids), torch.einsum("sk,snk->sn", x, w[ids]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["gemma3", "gemma4_26b_a4b", "qwen3_5_moe"])
def test_bf16_tokens_stay_close_to_transformers(tiny: Tiny, name: str, ops) -> None:
    from fakes.architectures import build

    model, ids = build(name, torch.bfloat16), prompt(1, 21)
    eager, static = EagerRunner(model), StaticRunner(model)
    for runner in (eager, static):
        runner.prefill(ids)
        runner.prepare(1)
    eager.enqueue(1)
    with Patches(model):
        given = static.advance()
    largest = float(eager.logits.abs().max())
    torch.testing.assert_close(given.float(), eager.logits.float(), atol=0.05 * largest, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state", [3, 4])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("n", [6, 7001])  # 7,001 channels are taken in parts
def test_the_convolution_of_one_token_is_the_shipped_one(
    dtype: torch.dtype, state: int, biased: bool, n: int
) -> None:
    random = torch.Generator().manual_seed(0)
    token, weight = torch.randn(2, n, 1, generator=random).to(dtype), torch.randn(n, 4, generator=random).to(dtype)
    bias = torch.randn(n, generator=random).to(dtype) if biased else None
    before = torch.randn(2, n, state, generator=random).to(dtype)
    ours, shipped = before.clone(), before.clone()
    given = _convolution(causal_conv1d_update)(token, ours, weight, bias, "silu")
    expected = causal_conv1d_update(token, shipped, weight, bias, "silu")
    assert torch.equal(ours, shipped)
    torch.testing.assert_close(given, expected)


def test_the_model_is_as_before_when_a_step_is_over(tiny: Tiny) -> None:
    for name in CONFIGS:
        model = tiny(name)
        config = model.config.get_text_config()
        before = (config._attn_implementation, config._experts_implementation)
        with Patches(model):
            pass
        assert (config._attn_implementation, config._experts_implementation) == before
        assert not [module for module in model.modules() if "forward" in module.__dict__]


def test_a_second_build_comes_from_the_cache(tmp_path: Path, ops) -> None:
    first = native.built(tmp_path)
    made = first.stat().st_mtime_ns
    assert native.built(tmp_path) == first
    assert first.stat().st_mtime_ns == made
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


PLANTED = """
#include <stdio.h>
__attribute__((constructor)) static void ran(void) { fputs("PLANTED RAN\\n", stderr); }
"""


def plant(library: Path) -> None:
    compiler = decode_path.compiler()
    assert compiler is not None
    command = [compiler, "-x", "c", "-shared", "-fPIC", "-", "-o", str(library)]
    subprocess.run(command, input=PLANTED.encode(), check=True)


LOAD = "from profiler.kernels import native; print(native.missing() or native.load())"


def load_with(cache: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LOAD],
        env={**os.environ, "PROFILER_CACHE": str(cache), **environ},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize("how", ["belongs to another user", "is writable by other users", "is a symbolic link"])
def test_a_library_that_others_may_have_written_is_rebuilt(
    tmp_path: Path, ops: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "belongs to another user" and os.geteuid() != 0:
        pytest.skip("only root can plant a file of another user")
    real = native.built()
    (tmp_path / "native").mkdir(mode=0o700)
    planted = tmp_path / "native" / real.name
    if how == "is a symbolic link":
        plant(tmp_path / "theirs.so")
        planted.symlink_to(tmp_path / "theirs.so")
    else:
        plant(planted)
        planted.chmod(0o777 if how == "is writable by other users" else 0o755)
        if how == "belongs to another user":
            os.chown(planted, 65534, 65534)
    monkeypatch.setattr(native, "_build", lambda compiler, work: Path(shutil.copy(real, work / "decode.so")))
    monkeypatch.setenv("PROFILER_CACHE", str(tmp_path))
    monkeypatch.setattr(folders, "_notes", [])
    assert native.built() == planted
    assert planted.read_bytes() == real.read_bytes() and stat.S_IMODE(planted.lstat().st_mode) == 0o700
    assert [how in text and "rebuilding our kernels" in text for text in folders.notes()] == [True]
    loaded = load_with(tmp_path)
    assert loaded.stdout.strip() == native.load() and "PLANTED" not in loaded.stderr


def test_a_library_that_was_replaced_after_the_check_is_not_loaded(tmp_path: Path) -> None:
    plant(tmp_path / "decode.so")
    (tmp_path / "decode.so").chmod(0o777)
    (tmp_path / "link.so").symlink_to("decode.so")
    for name in ("decode.so", "link.so"):
        with pytest.raises(native.FolderFailed):
            native._opened(tmp_path / name)


class Library:
    """A stand-in for the library: loading it twice in one process would register its operators twice."""

    class hwprofile_instruction_set:
        def __new__(cls) -> Any:
            return b"stand-in"


def test_a_library_in_a_cache_mounted_noexec_is_loaded_from_a_copy(
    tmp_path: Path, ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "decode.so").write_bytes(b"library")
    tried = []

    def loads(path: str) -> Any:
        tried.append(path)
        if path.startswith("/proc/self/fd/"):
            raise OSError(f"{path}: failed to map segment from shared object")
        assert Path(path).read_bytes() == b"library"
        return Library

    monkeypatch.setattr(native.ctypes, "CDLL", loads)
    assert native._opened(tmp_path / "decode.so") is Library
    assert len(tried) == 2 and not Path(tried[1]).exists()


def test_if_no_folder_allows_loading_the_reason_names_both_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "decode.so").touch(0o700)

    def refused(path: str) -> Any:
        raise OSError(f"{path}: failed to map segment from shared object")

    monkeypatch.setattr(native.ctypes, "CDLL", refused)
    with pytest.raises(native.BuildFailed) as caught:
        native._opened(tmp_path / "decode.so")
    words = str(caught.value)
    assert words.startswith(f"{tmp_path} and ") and "mounted noexec" in words
    assert words.endswith("set PROFILER_CACHE=FOLDER to use another folder")


def test_with_a_full_cache_the_loops_are_built_elsewhere(
    tmp_path: Path, ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = native.built()

    def build(compiler: str, work: Path) -> Path:
        if work.is_relative_to(tmp_path):
            raise OSError(28, "No space left on device")
        return Path(shutil.copy(real, work / "decode.so"))

    monkeypatch.setenv("PROFILER_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "_build", build)
    monkeypatch.setattr(native, "_opened", lambda path: Library)
    monkeypatch.setattr(native, "_register_shapes", lambda: None)
    assert native.load.__wrapped__() == "stand-in"
    assert list((tmp_path / "native").iterdir()) == []


def test_no_compiler_is_a_reason_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(native.BuildFailed, match=r"no C\+\+ compiler found"):
        native.built(tmp_path / "cache")


def test_a_compiler_that_fails_is_quoted_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'x.cpp:1: fatal error: no such header' >&2\necho more >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(native.BuildFailed, match=r"^c\+\+ failed: x\.cpp:1: fatal error: no such header$"):
        native.built(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_without_the_loops_tokens_are_the_same(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "missing", lambda: "no C++ compiler found")
    for name in ("gemma3", "qwen3_5_moe"):
        runners = EagerRunner(tiny(name)), StaticRunner(tiny(name))
        for runner in runners:
            runner.prefill(prompt(2, 11))
            runner.prepare(60)
            runner.enqueue(60)
        assert runners[0].read() == runners[1].read()
        assert runners[1].stats().kernels == "plain torch: no C++ compiler found"
        assert runners[1].state.bucket < runners[1].state.capacity or runners[1].state.capacity <= 256


def test_all_kinds_of_work_share_one_pool_of_threads() -> None:
    """Threads of a second pool would spin on the cores that those of the first need."""
    script = """
import os, torch
from profiler.kernels import native
native.load()
torch.set_num_threads(2)
ops, threads = torch.ops.hwprofile, lambda: len(os.listdir("/proc/self/task"))
ops.matvec(torch.ones(1, 1024), torch.ones(1024, 1024), None)
once = threads()
cache = torch.ones(1, 2, 8192, 64)
ops.decode_attention(torch.ones(1, 2, 1, 64), cache, cache, torch.ones(8192, dtype=torch.bool), 1.0)
heads = [torch.ones(1, 1, 32, 128) for _ in range(3)]
ops.gated_delta_step(*heads, torch.zeros(1, 1, 32), torch.ones(1, 1, 32), torch.ones(1, 32, 128, 128))
print(threads() - once)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "0", done.stderr
