// The loops of kernels.cpp as torch operators. Uses only torch's stable ABI headers, so the library builds in seconds.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace baseline { extern const Kernels kernels; }
#if defined(__x86_64__)
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
#endif

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const Kernels& kernels() {
#if defined(__x86_64__)
  static const Kernels& best = __builtin_cpu_supports("avx512f") ? avx512::kernels
                               : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? avx2::kernels
                                                                                                  : baseline::kernels;
  return best;
#else
  return baseline::kernels;
#endif
}

constexpr int64_t kMaxVectors = 8;           // vectors that one pass over the weights serves
constexpr int64_t kChunkBytes = 64 << 10;    // minimum weight bytes per chunk
constexpr int64_t kMostChunkBytes = 256 << 10;
constexpr int64_t kChunks = 16;              // per matrix, within these limits: a late thread delays only one of them
constexpr int64_t kSerialBytes = 128 << 10;  // for less work, waking a thread costs more than it saves

// One pool for all kinds of work: the threads of a second one would spin on the cores that the first one needs.
Pool& pool() {
  static Pool& only = *new Pool;  // never destroyed: its threads outlive main
  return only;
}

// Threads take chunks from a counter, so a thread that is descheduled delays one chunk and not half of the work.
template <class Work>
void share(int64_t chunks, int64_t bytes, const Work& work) {
  pool().run(chunks, bytes < kSerialBytes ? 1 : torch::stable::get_num_threads(), work);
}

Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Type::f32;
    case ScalarType::BFloat16: return Type::bf16;
    case ScalarType::Char: return Type::i8;
    default: STD_TORCH_CHECK(false, "hwprofile: fp32, bf16 and int8 only"); return Type::f32;
  }
}

int64_t bytes_of(Type type) { return type == Type::f32 ? 4 : type == Type::bf16 ? 2 : 1; }

// The values as fp32: the tensor's own data, or converted into `copy`.
const float* floats(const Tensor& tensor, std::vector<float>& copy) {
  STD_TORCH_CHECK(tensor.is_contiguous(), "hwprofile: contiguous activations only");
  if (type_of(tensor) == Type::f32) return static_cast<const float*>(tensor.data_ptr());
  STD_TORCH_CHECK(type_of(tensor) == Type::bf16, "hwprofile: activations in fp32 or bf16 only");
  const auto* from = static_cast<const uint16_t*>(tensor.data_ptr());
  copy.resize(tensor.numel());
  for (size_t i = 0; i < copy.size(); ++i) copy[i] = from_bf16(from[i]);
  return copy.data();
}

void run_matvec(Matvec job) {
  const int64_t row_bytes = job.k * bytes_of(job.type);
  const int64_t bytes = std::clamp(job.n * row_bytes / kChunks, kChunkBytes, kMostChunkBytes);
  const int64_t rows = std::max<int64_t>(8, bytes / std::max<int64_t>(1, row_bytes) / 8 * 8);
  const int64_t total = job.m, size = job.y_bf16 ? 2 : 4;
  for (int64_t done = 0; done < total; done += kMaxVectors) {
    Matvec part = job;
    part.m = std::min(kMaxVectors, total - done);
    part.x = job.x + done * job.k;
    part.y = static_cast<char*>(job.y) + done * job.n * size;
    share((job.n + rows - 1) / rows, job.n * row_bytes, [&](int64_t chunk) {
      kernels().matvec(part, chunk * rows, std::min(job.n, (chunk + 1) * rows));
    });
  }
}

// x [m, k] · w [n, k]ᵀ → [m, n]; int8 rows are multiplied by scale [n] (fp32).
Tensor matvec(Tensor x, Tensor w, std::optional<Tensor> scale) {
  const int64_t m = x.size(0), k = x.size(1), n = w.size(0);
  STD_TORCH_CHECK(w.size(1) == k && w.is_contiguous(), "hwprofile::matvec: contiguous weights [n, k] for x [m, k]");
  STD_TORCH_CHECK((type_of(w) == Type::i8) == scale.has_value(), "hwprofile::matvec: int8 rows need their scales");
  Tensor y = torch::stable::new_empty(x, {m, n});
  std::vector<float> copy;
  run_matvec({floats(x, copy), w.data_ptr(), type_of(w), scale ? static_cast<const float*>(scale->data_ptr()) : nullptr,
              y.data_ptr(), type_of(x) == Type::bf16, m, n, k});
  return y;
}

// x [s, k] · w [experts, n, k]ᵀ → [s, n], row s with the weights of expert ids [s]: only chosen experts are read.
Tensor expert_matvec(Tensor x, Tensor w, Tensor ids) {
  const int64_t s = x.size(0), k = x.size(1), experts = w.size(0), n = w.size(1);
  STD_TORCH_CHECK(w.size(2) == k && w.is_contiguous(), "hwprofile::expert_matvec: contiguous weights [e, n, k]");
  STD_TORCH_CHECK(ids.scalar_type() == ScalarType::Long && ids.is_contiguous() && ids.size(0) == s,
                  "hwprofile::expert_matvec: ids [s], int64");
  Tensor y = torch::stable::new_empty(x, {s, n});
  std::vector<float> copy;
  const float* from = floats(x, copy);
  const auto* chosen = static_cast<const int64_t*>(ids.data_ptr());
  const int64_t step = n * k * bytes_of(type_of(w)), out_step = n * bytes_of(type_of(x));
  for (int64_t i = 0; i < s; ++i) {
    STD_TORCH_CHECK(chosen[i] >= 0 && chosen[i] < experts, "hwprofile::expert_matvec: no such expert");
    run_matvec({from + i * k, static_cast<const char*>(w.data_ptr()) + chosen[i] * step, type_of(w), nullptr,
                static_cast<char*>(y.data_ptr()) + i * out_step, type_of(x) == Type::bf16, 1, n, k});
  }
  return y;
}

// query [b, heads, 1, d], keys [b, kv_heads, slots, d], values [b, kv_heads, slots, dv], mask [1, 1, 1, slots] of bool
// → [b, 1, heads, dv]. Slots are split into parts, so that one sequence with one key/value head still uses all threads.
Tensor decode_attention(Tensor query, Tensor keys, Tensor values, Tensor mask, double scale) {
  const int64_t batch = query.size(0), heads = query.size(1), d = query.size(3);
  const int64_t kv_heads = keys.size(1), slots = keys.size(2), dv = values.size(3), group = heads / kv_heads;
  STD_TORCH_CHECK(query.size(2) == 1 && heads % kv_heads == 0 && keys.size(3) == d && values.size(2) == slots,
                  "hwprofile::decode_attention: shapes do not match");
  STD_TORCH_CHECK(keys.stride(3) == 1 && values.stride(3) == 1 && type_of(keys) == type_of(values),
                  "hwprofile::decode_attention: contiguous heads of one type");
  STD_TORCH_CHECK(mask.numel() == slots && mask.is_contiguous() && mask.scalar_type() == ScalarType::Bool,
                  "hwprofile::decode_attention: one mask byte a slot");
  Tensor out = torch::stable::new_empty(query, {batch, 1, heads, dv});
  std::vector<float> copy;
  const float* q = floats(query, copy);
  const int64_t size = bytes_of(type_of(keys)), row = (d + dv) * size;
  const int64_t part = std::max<int64_t>(64, 4 * kChunkBytes / row / 64 * 64), parts = (slots + part - 1) / part;
  const int64_t width = group * (dv + 2), jobs = batch * kv_heads;
  std::vector<float> partial(jobs * parts * width);
  share(jobs * parts, jobs * slots * row, [&](int64_t chunk) {
    const int64_t job = chunk / parts, b = job / kv_heads, h = job % kv_heads, begin = chunk % parts * part;
    float* own = partial.data() + chunk * width;
    std::fill_n(own, group, -std::numeric_limits<float>::infinity());
    const char* k = static_cast<const char*>(keys.data_ptr()) + (b * keys.stride(0) + h * keys.stride(1)) * size;
    const char* v = static_cast<const char*>(values.data_ptr()) + (b * values.stride(0) + h * values.stride(1)) * size;
    kernels().attention({q + (b * heads + h * group) * d, k, v, static_cast<const uint8_t*>(mask.data_ptr()),
                         type_of(keys), float(scale), group, d, dv, keys.stride(2), values.stride(2), own, own + group,
                         own + 2 * group},
                        begin, std::min(slots, begin + part));
  });
  // Read the data pointer and type once: each call into torch takes as long as ten elements.
  void* const to = out.data_ptr();
  const bool to_f32 = type_of(query) == Type::f32;
  std::vector<float> sum(dv);
  for (int64_t head = 0; head < batch * heads; ++head) {
    const int64_t job = head / group, in = head % group;
    float top = -std::numeric_limits<float>::infinity(), weights = 0;
    for (int64_t p = 0; p < parts; ++p) top = std::max(top, partial[(job * parts + p) * width + in]);
    std::fill(sum.begin(), sum.end(), 0.f);
    for (int64_t p = 0; p < parts; ++p) {
      const float* own = partial.data() + (job * parts + p) * width;
      if (own[group + in] == 0) continue;  // all slots of this part were masked
      const float factor = std::exp(own[in] - top);
      weights += own[group + in] * factor;
      for (int64_t i = 0; i < dv; ++i) sum[i] += own[2 * group + in * dv + i] * factor;
    }
    for (int64_t i = 0; i < dv; ++i) {
      const float value = sum[i] / weights;
      if (to_f32) static_cast<float*>(to)[head * dv + i] = value;
      else static_cast<uint16_t*>(to)[head * dv + i] = to_bf16(value);
    }
  }
  return out;
}

void normalise(const float* from, float* to, int64_t n, float factor) {
  float square = 0;
  for (int64_t i = 0; i < n; ++i) square += from[i] * from[i];
  factor /= std::sqrt(square + 1e-6f);
  for (int64_t i = 0; i < n; ++i) to[i] = from[i] * factor;
}

// One token of the gated delta rule. query, key [b, 1, key_heads, dk], value [b, 1, heads, dv], g, beta [b, 1, heads],
// all fp32 but for value's dtype; state [b, heads, dk, dv] fp32 is updated in place → [b, 1, heads, dv].
Tensor gated_delta_step(Tensor query, Tensor key, Tensor value, Tensor g, Tensor beta, Tensor state) {
  const int64_t batch = value.size(0), heads = value.size(2), dv = value.size(3), dk = key.size(3);
  const int64_t key_heads = key.size(2), shared = heads / key_heads;
  STD_TORCH_CHECK(value.size(1) == 1 && heads % key_heads == 0 && state.numel() == batch * heads * dk * dv &&
                      state.is_contiguous() && type_of(state) == Type::f32 && g.numel() == batch * heads &&
                      beta.numel() == batch * heads,
                  "hwprofile::gated_delta_step: shapes do not match");
  std::vector<float> copies[5];
  const float *q = floats(query, copies[0]), *k = floats(key, copies[1]), *v = floats(value, copies[2]);
  const float *decay = floats(g, copies[3]), *b = floats(beta, copies[4]);
  Tensor out = torch::stable::new_empty(state, {batch, 1, heads, dv});
  auto* to = static_cast<float*>(out.data_ptr());
  auto* s = static_cast<float*>(state.data_ptr());
  share(batch * heads, state.numel() * 8, [&](int64_t head) {
    const int64_t source = (head / heads * key_heads + head % heads / shared) * dk;
    std::vector<float> unit(2 * dk);
    normalise(q + source, unit.data(), dk, 1 / std::sqrt(float(dk)));
    normalise(k + source, unit.data() + dk, dk, 1);
    kernels().delta({unit.data(), unit.data() + dk, v + head * dv, std::exp(decay[head]), b[head], s + head * dk * dv,
                     to + head * dv, dk, dv});
  });
  return out;
}

}  // namespace

extern "C" const char* hwprofile_instruction_set() { return kernels().name; }

// Not "profiler": torch has a library of that name.
STABLE_TORCH_LIBRARY(hwprofile, m) {
  m.def("matvec(Tensor x, Tensor w, Tensor? scale=None) -> Tensor");
  m.def("expert_matvec(Tensor x, Tensor w, Tensor ids) -> Tensor");
  m.def("decode_attention(Tensor query, Tensor keys, Tensor values, Tensor mask, float scale) -> Tensor");
  m.def("gated_delta_step(Tensor query, Tensor key, Tensor value, Tensor g, Tensor beta, Tensor(a!) state) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(hwprofile, CPU, m) {
  m.impl("matvec", TORCH_BOX(&matvec));
  m.impl("expert_matvec", TORCH_BOX(&expert_matvec));
  m.impl("decode_attention", TORCH_BOX(&decode_attention));
  m.impl("gated_delta_step", TORCH_BOX(&gated_delta_step));
}