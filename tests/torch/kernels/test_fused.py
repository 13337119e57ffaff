"""The CUDA kernels without a GPU: nvcc and NVRTC take them, and run on a CPU they compute what torch computes.

``fakes/cuda_host.h`` runs the sources as they are, thread by thread; it knows shuffles and barriers, no memory model.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fakes
import pytest
import torch
from fakes.architectures import CONFIGS, build
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_recurrent_gated_delta_rule

from profiler.cost import rates
from profiler.kernels import cuda, patches
from profiler.kernels.patches import NormForward

DELTA = """
extern "C" bool run(const element* q, const element* k, const element* v, const float* g, const element* beta,
                    float* state, element* out, int batch, int heads, int key_heads, int dk, int dv) {
  return host::grid({batch * heads, (dv + 31) / 32, 1}, {32, 8, 1},
                    [=] { delta_step(q, k, v, g, beta, state, out, heads, key_heads, dk, dv); });
}
"""
ATTENTION = """
extern "C" bool run(const element* q, const element* keys, const element* values, const unsigned char* mask,
                    float* parts, element* out, int batch, int heads, int kv_heads, int slots, int chunk,
                    float scale) {
  const int chunks = (slots + chunk - 1) / chunk;
  return host::grid({chunks, heads / GROUP, batch}, {128, 1, 1},
                    [=] { attention_part(q, keys, values, mask, parts, heads, kv_heads, slots, chunk, scale); }) &&
         host::grid({heads, batch, 1}, {512, 1, 1}, [=] { attention_join(parts, out, heads, chunks); });
}
"""


NORM = """
extern "C" bool run(const element* x, const element* weight, const element* gate, element* out, int rows, int width,
                    float offset, float eps) {
  return host::grid({rows, 1, 1}, {256, 1, 1}, [=] { rms_norm(x, weight, gate, out, width, offset, eps); });
}
"""


MATVEC = """
extern "C" bool run(const element* x, const element* weight, const element* bias, element* out, int rows,
                    int columns) {
  return host::grid({(rows + 3) / 4, 1, 1}, {128, 1, 1}, [=] { matvec(x, weight, bias, out, rows, columns, 0); });
}
"""
EXPERTS = """
extern "C" bool run(const element* x, const element* weight, const long long* ids, element* out, int tokens, int rows,
                    int columns) {
  return host::grid({(rows + 3) / 4, tokens, 1}, {128, 1, 1},
                    [=] { matvec(x, weight, 0, out, rows, columns, ids); });
}
"""


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Callable[..., bool]]:
    """Compiles a kernel for the CPU; gives its ``run``, which is false where threads wait for ever."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("host")
    include = ["-I", str(Path(fakes.__file__).parent), "-I", str(cuda.SOURCES)]

    def build(source: str, entry: str, defines: cuda.Defines) -> Callable[..., bool]:
        text = (cuda.SOURCES / f"{source}.cu").read_text(encoding="utf-8")
        text = re.sub(r"extern __shared__ float (\w+)\[\];", r"EXTERN_SHARED(\1);", text)
        name = f"{source}{len(list(folder.iterdir()))}"
        (folder / f"{name}.cpp").write_text(f'#include "cuda_host.h"\n{text}{entry}')
        made = folder / f"{name}.so"
        flags = ["-O1", "-std=c++17", "-shared", "-fPIC", "-w", *defines, *include]
        subprocess.run([compiler, *flags, str(folder / f"{name}.cpp"), "-o", str(made)], check=True)
        run = ctypes.CDLL(str(made)).run
        run.restype = ctypes.c_bool

        def call(*values: torch.Tensor | float | None) -> bool:
            kinds = {float: ctypes.c_float, int: ctypes.c_int, type(None): ctypes.c_void_p}
            pointers = (
                ctypes.c_void_p(v.data_ptr()) if isinstance(v, torch.Tensor) else kinds[type(v)](v) for v in values
            )
            return bool(run(*pointers))

        return call

    return build


@pytest.mark.parametrize("dtype", cuda.DTYPES)
def test_the_delta_step_is_the_recurrent_rule(
    on_host: Callable[..., Callable[..., bool]], dtype: torch.dtype
) -> None:
    run = on_host("delta_step", DELTA, cuda.DTYPES[dtype])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    batch, heads, key_heads, dk, dv = 2, 4, 2, 24, 40
    state = torch.randn(batch, heads, dk, dv)
    mine, out = state.clone(), torch.empty(batch, 1, heads, dv, dtype=dtype)
    for _ in range(4):
        q, k = (torch.randn(batch, 1, key_heads, dk).to(dtype) for _ in range(2))
        v = torch.randn(batch, 1, heads, dv).to(dtype)
        g, beta = -torch.rand(batch, 1, heads), torch.rand(batch, 1, heads).to(dtype)
        wide = (each.repeat_interleave(heads // key_heads, dim=2) for each in (q, k))
        expected, state = torch_recurrent_gated_delta_rule(
            *wide, v, g, beta, state, True, use_qk_l2norm_in_kernel=True
        )
        assert run(q, k, v, g, beta, mine, out, batch, heads, key_heads, dk, dv)
        torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(mine, state, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", cuda.DTYPES)
@pytest.mark.parametrize(("width", "heads", "kv_heads"), [(16, 4, 2), (64, 8, 2), (256, 4, 1), (512, 2, 2)])
def test_attention_is_that_of_torch_over_the_filled_slots(
    on_host: Callable[..., Callable[..., bool]], dtype: torch.dtype, width: int, heads: int, kv_heads: int
) -> None:
    defines, _ = cuda.attention_defines(dtype, width, heads // kv_heads)
    run = on_host("attention", ATTENTION, defines)
    batch, slots, chunk = 2, 200, 64
    q = torch.randn(batch, heads, 1, width).to(dtype)
    keys, values = (torch.randn(batch, kv_heads, slots, width).to(dtype) for _ in range(2))
    parts = torch.full((batch, heads, -(-slots // chunk), width + cuda.MORE), torch.nan)
    for filled in (1, 70, 199, 200):
        mask = torch.arange(slots) < filled
        keys[:, :, filled:], values[:, :, filled:] = torch.nan, torch.nan  # empty slots are not read
        expected = scaled_dot_product_attention(
            q.float(), keys[:, :, :filled].float(), values[:, :, :filled].float(), scale=0.3, enable_gqa=True
        )
        out = torch.empty(batch, heads, width, dtype=dtype)
        assert run(q, keys, values, mask, parts, out, batch, heads, kv_heads, slots, chunk, 0.3 * 1.4426950408889634)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(out.float(), expected[:, :, 0], atol=tolerance, rtol=tolerance)
        keys, values = torch.randn_like(keys), torch.randn_like(values)


@pytest.mark.parametrize("dtype", cuda.DTYPES)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("width", [24, 256, 640])
def test_the_norm_is_that_of_its_formula(
    on_host: Callable[..., Callable[..., bool]], dtype: torch.dtype, gated: bool, width: int
) -> None:
    run = on_host("rms_norm", NORM, (*cuda.DTYPES[dtype], *(("-DGATED",) if gated else ())))
    x, gate = (torch.randn(3, width).to(dtype) for _ in range(2))
    weight = torch.randn(width).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for scale, offset in ((weight, 0.0), (weight, 1.0), (None, 0.0)):
        out = torch.full_like(x, torch.nan)
        assert run(x, scale, gate if gated else None, out, 3, width, offset, 1e-6)
        expected = torch.ops.hwprofile_cuda.rms_norm(x, scale, gate if gated else None, offset, 1e-6)
        torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", cuda.DTYPES)
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize(("rows", "columns"), [(5, 64), (8, 2056), (3, 1024)])
def test_small_products_are_those_of_torch(
    on_host: Callable[..., Callable[..., bool]], dtype: torch.dtype, tokens: int, rows: int, columns: int
) -> None:
    run = on_host("matvec", MATVEC, (*cuda.DTYPES[dtype], f"-DTOKENS={tokens}"))
    x, weight, bias = (torch.randn(shape).to(dtype) for shape in ((tokens, columns), (rows, columns), (rows,)))
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    for added in (bias, None):
        out = torch.full((tokens, rows), torch.nan, dtype=dtype)
        assert run(x, weight, added, out, rows, columns)
        expected = torch.nn.functional.linear(x, weight, added)
        torch.testing.assert_close(out, expected, atol=tolerance * columns**0.5, rtol=tolerance)


@pytest.mark.parametrize("dtype", cuda.DTYPES)
def test_each_token_is_multiplied_with_its_own_expert(
    on_host: Callable[..., Callable[..., bool]], dtype: torch.dtype
) -> None:
    run = on_host("matvec", EXPERTS, (*cuda.DTYPES[dtype], "-DTOKENS=1", "-DCHOSEN"))
    x, weight = torch.randn(5, 264).to(dtype), torch.randn(3, 6, 264).to(dtype)
    ids, out = torch.tensor([2, 0, 0, 1, 2]), torch.full((5, 6), torch.nan, dtype=dtype)
    assert cuda.serves_experts(x, weight)
    assert run(x, weight, ids, out, 5, 6, 264)
    expected = torch.ops.hwprofile_cuda.expert_matvec(x, weight, ids)
    torch.testing.assert_close(out, expected, atol=1e-3 if dtype == torch.float32 else 0.5, rtol=2e-2)


@pytest.mark.parametrize("dtype", cuda.DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_norms_of_every_family_are_replaced(name: str, dtype: torch.dtype) -> None:
    make, found = NormForward(), 0
    for module in build(name, dtype).modules():
        if "RMSNorm" not in type(module).__name__:
            continue
        for parameter in module.parameters():
            parameter.data.add_(torch.randn_like(parameter))
        forward = make(module)
        assert forward is not None, type(module)
        width = module.weight.shape[0] if getattr(module, "weight", None) is not None else 32
        x = torch.randn(2, 3, width).to(dtype)
        inputs = (x, torch.randn_like(x)) if type(module).__name__.endswith("Gated") else (x,)
        tolerance = 1e-5 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(forward(*inputs), module(*inputs), atol=tolerance, rtol=tolerance)
        found += 1
    assert found > 3


def test_a_norm_that_computes_something_else_is_left_alone() -> None:
    class OddRMSNorm(torch.nn.Module):
        eps = 1e-6

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight

    assert NormForward()(OddRMSNorm()) is None


def test_a_barrier_that_some_threads_do_not_reach_is_detected(
    on_host: Callable[..., Callable[..., bool]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "hangs.cu").write_text(
        '#include "element.h"\nextern "C" __global__ void hangs() { if (threadIdx.x) __syncthreads(); }\n'
    )
    (tmp_path / "element.h").write_text((cuda.SOURCES / "element.h").read_text())
    monkeypatch.setattr(cuda, "SOURCES", tmp_path)
    entry = 'extern "C" bool run() { return host::grid({1, 1, 1}, {64, 1, 1}, [] { hangs(); }); }\n'
    assert not on_host("hangs", entry, ())()


@pytest.mark.parametrize("dtype", cuda.DTYPES)
def test_nvcc_compiles_the_kernels_without_spills(dtype: torch.dtype, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    widest, _ = cuda.attention_defines(dtype, 512, 8)
    for source, defines in (
        ("delta_step", cuda.DTYPES[dtype]),
        ("rms_norm", cuda.DTYPES[dtype]),
        ("matvec", (*cuda.DTYPES[dtype], "-DTOKENS=4")),
        ("matvec", (*cuda.DTYPES[dtype], "-DTOKENS=1", "-DCHOSEN")),
        ("attention", widest),
    ):
        for architecture in (80, 90, 120):  # the rest have the registers of the 80: NVRTC takes all, see below
            files = (str(cuda.SOURCES / f"{source}.cu"), "-o", str(tmp_path / "made.cubin"))
            compiler = (nvcc, "-O3", "-std=c++17", "-cubin", f"-arch=sm_{architecture}", "-Xptxas", "-v")
            done = subprocess.run([*compiler, *defines, *files], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            found = re.findall(r"(\d+) bytes spill stores.*?Used (\d+) registers", done.stderr, re.S)
            for spills, registers in found:
                print(f"{source} {dtype} sm_{architecture}: {registers} registers, {spills} bytes spilled")
            assert found
            assert {spills for spills, _ in found} == {"0"}


def test_nvrtc_compiles_for_every_architecture() -> None:
    reason = cuda.missing()
    if reason is not None:
        pytest.skip(reason)
    for architecture in cuda.ARCHITECTURES:
        for dtype, defines in cuda.DTYPES.items():
            assert b"delta_step" in cuda.compiled("delta_step", architecture, defines)
            assert b"attention_part" in cuda.compiled(
                "attention", architecture, cuda.attention_defines(dtype, 128, 4)[0]
            )


def test_an_error_of_nvrtc_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if cuda.missing() is not None:
        pytest.skip(str(cuda.missing()))
    (tmp_path / "element.h").write_text("")
    (tmp_path / "wrong.cu").write_text("this is no C++;")
    monkeypatch.setattr(cuda, "SOURCES", tmp_path)
    with pytest.raises(cuda.KernelFailed, match=r"NVRTC failed: .*error"):
        cuda.compiled("wrong", 90, ())


def test_without_the_bindings_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    cuda.missing.cache_clear()
    try:
        assert cuda.missing() == "the Python package cuda-bindings is not installed"
    finally:
        cuda.missing.cache_clear()


def test_chunks_keep_all_multiprocessors_busy_and_are_never_too_many() -> None:
    assert cuda.chunk_slots(512, 8, 132) == 64
    assert cuda.chunk_slots(131072, 2, 132) == 256
    assert cuda.chunk_slots(131072, 64, 132) == 8192
    for slots in (1, 65, 545, 4096, 1_000_000):
        for rows in (1, 7, 4096):
            assert -(-slots // cuda.chunk_slots(slots, rows, 132)) <= cuda.MAX_CHUNKS


def test_predictions_and_kernels_agree_on_which_products_we_support() -> None:
    """Two places, since predictions import no torch."""
    assert rates.OWN_ROWS["other"] == (cuda.MAX_TOKENS, cuda.MAX_WEIGHT_BYTES)
    assert rates.OWN_ROWS["CPU"][0] == patches.MAX_ROWS
