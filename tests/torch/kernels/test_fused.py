"""The fused CUDA step without a GPU: nvcc takes it for every architecture, and its arithmetic is that of the rule."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_recurrent_gated_delta_rule

from profiler.kernels import delta_cuda

HOST = """
#include <cmath>
#include "delta_math.h"
extern "C" void host_step(const float* q, const float* k, const float* v, float g, float beta, float* state,
                          float* out, int dk, int dv) {
  const float decay = std::exp(g);
  for (int column = 0; column < dv; ++column) {
    const float memory = delta_memory(state + column, k, dk, dv);
    const float delta = delta_error(v[column], decay, memory, beta);
    out[column] = delta_update(state + column, q, k, decay, delta, dk, dv);
  }
}
"""


def test_nvcc_takes_every_architecture_without_spills(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    made = tmp_path / "delta.so"
    done = subprocess.run(delta_cuda.command(nvcc, made), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    compiled = re.findall(r"for 'sm_(\d+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", done.stderr, re.S)
    for architecture, spills, registers in compiled:
        print(f"sm_{architecture}: {registers} registers, {spills} bytes spilled")
    assert {int(found[0]) for found in compiled} == set(delta_cuda.ARCHITECTURES)
    assert {found[1] for found in compiled} == {"0"}
    library = ctypes.CDLL(str(made)) if shutil.which("nvidia-smi") else made.read_bytes()
    for name in delta_cuda.FUNCTIONS.values():
        assert hasattr(library, name) if isinstance(library, ctypes.CDLL) else name.encode() in library


def test_the_host_twin_is_the_recurrent_rule(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "host.cpp").write_text(HOST)
    made = tmp_path / "host.so"
    include = ["-I", str(delta_cuda.SOURCES)]
    subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", *include, str(tmp_path / "host.cpp"), "-o", str(made)], check=True
    )
    host = ctypes.CDLL(str(made)).host_step
    state = torch.randn(1, 1, 32, 24)
    mine = state.clone()
    for _ in range(16):
        q, k, v = torch.randn(1, 1, 1, 32), torch.randn(1, 1, 1, 32), torch.randn(1, 1, 1, 24)
        g, beta = -torch.rand(1, 1, 1), torch.rand(1, 1, 1)
        expected, state = torch_recurrent_gated_delta_rule(
            q, k, v, g, beta, state, True, use_qk_l2norm_in_kernel=True
        )
        unit_q, unit_k = (t * torch.rsqrt((t * t).sum() + 1e-6) for t in (q, k))
        unit_q, out = unit_q / 32**0.5, torch.empty(24)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (unit_q, unit_k, v)]
        scalars = ctypes.c_float(float(g)), ctypes.c_float(float(beta))
        host(*pointers, *scalars, ctypes.c_void_p(mine.data_ptr()), ctypes.c_void_p(out.data_ptr()), 32, 24)
        torch.testing.assert_close(out, expected.view(-1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mine, state, atol=1e-6, rtol=1e-5)


def test_without_nvcc_there_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(delta_cuda.BuildFailed, match="nvcc is not installed"):
        delta_cuda.built(90)
