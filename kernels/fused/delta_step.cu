// One token of the gated delta rule (Yang et al., arXiv 2412.06464) in one launch: transformers' own takes some seventy
// and moves the recurrent state fourteen times. Here the state is read once and written once.
//
// Grid (heads × batch, dv / columns); a block holds its strip of the state in shared memory. Threads are (column, part):
// each of the kParts threads of a column takes its share of the rows, and shares are added by shuffles.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "delta_math.h"

namespace {

constexpr int kColumns = 32;  // of the state, one a lane: reads of a row are 128 contiguous bytes
constexpr int kParts = 8;     // threads that share the rows of a column
constexpr int kLargestKey = 256;

__device__ float load(const float* p) { return *p; }
__device__ float load(const __nv_bfloat16* p) { return __bfloat162float(*p); }
__device__ void save(float* p, float v) { *p = v; }
__device__ void save(__nv_bfloat16* p, float v) { *p = __float2bfloat16(v); }

// Sum over the kParts threads of a column; every one of them gets it.
__device__ float over_parts(float value, float* shared, int column, int part) {
  shared[part * kColumns + column] = value;
  __syncthreads();
  float sum = 0.f;
  for (int i = 0; i < kParts; ++i) sum += shared[i * kColumns + column];
  __syncthreads();
  return sum;
}

// Euclidean norm of a head's key or query, computed by every block for itself: dk numbers, cheaper than a launch.
template <class T>
__device__ void normalised(const T* from, float* to, int dk, float factor, float* shared, int thread) {
  float square = 0.f;
  for (int i = thread; i < dk; i += kColumns * kParts) {
    const float value = load(from + i);
    to[i] = value;
    square += value * value;
  }
  shared[thread] = square;
  __syncthreads();
  float sum = 0.f;
  for (int i = 0; i < kColumns * kParts; ++i) sum += shared[i];
  const float scale = factor * rsqrtf(sum + 1e-6f);
  __syncthreads();
  for (int i = thread; i < dk; i += kColumns * kParts) to[i] *= scale;
  __syncthreads();
}

template <class T>
__global__ void delta_step(const T* q, const T* k, const T* v, const float* g, const T* beta, float* state, T* out,
                           int heads, int key_heads, int dk, int dv) {
  extern __shared__ float strip[];  // [dk, kColumns]
  __shared__ float unit_q[kLargestKey], unit_k[kLargestKey], shared[kColumns * kParts];
  const int column = threadIdx.x, part = threadIdx.y, thread = part * kColumns + column;
  const int head = blockIdx.x, batch = head / heads, at = blockIdx.y * kColumns + column;
  const int source = (batch * key_heads + head % heads / (heads / key_heads)) * dk;
  normalised(q + source, unit_q, dk, rsqrtf(float(dk)), shared, thread);
  normalised(k + source, unit_k, dk, 1.f, shared, thread);

  const int share = (dk + kParts - 1) / kParts, first = part * share, last = min(dk, first + share);
  const int rows = max(0, last - first);
  float* mine = strip + first * kColumns + column;
  float* global = state + (int64_t(head) * dk + first) * dv + at;
  const bool inside = at < dv;
  for (int row = 0; row < rows; ++row) mine[row * kColumns] = inside ? global[int64_t(row) * dv] : 0.f;

  const float decay = expf(g[head]);
  const float memory = over_parts(delta_memory(mine, unit_k + first, rows, kColumns), shared, column, part);
  const float value = inside ? load(v + int64_t(head) * dv + at) : 0.f;
  const float delta = delta_error(value, decay, memory, load(beta + head));
  const float own = delta_update(mine, unit_q + first, unit_k + first, decay, delta, rows, kColumns);
  const float sum = over_parts(own, shared, column, part);

  if (!inside) return;
  for (int row = 0; row < rows; ++row) global[int64_t(row) * dv] = mine[row * kColumns];
  if (part == 0) save(out + int64_t(head) * dv + at, sum);
}

template <class T>
int launch(const void* q, const void* k, const void* v, const void* g, const void* beta, void* state, void* out,
           int batch, int heads, int key_heads, int dk, int dv, void* stream) {
  if (dk > kLargestKey || heads % key_heads) return cudaErrorInvalidValue;
  const dim3 grid(batch * heads, (dv + kColumns - 1) / kColumns), block(kColumns, kParts);
  delta_step<T><<<grid, block, dk * kColumns * sizeof(float), static_cast<cudaStream_t>(stream)>>>(
      static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v), static_cast<const float*>(g),
      static_cast<const T*>(beta), static_cast<float*>(state), static_cast<T*>(out), heads, key_heads, dk, dv);
  return cudaGetLastError();
}

}  // namespace

// All pointers are on the device and contiguous: q, k [batch, key_heads, dk], v [batch, heads, dv], g [batch, heads] in
// fp32, beta [batch, heads], state [batch, heads, dk, dv] in fp32 (updated), out [batch, heads, dv]. The stream has no
// default, so that a capture cannot miss the launch. Returns a cudaError_t.
extern "C" int hwprofile_delta_step_f32(const void* q, const void* k, const void* v, const void* g, const void* beta,
                                        void* state, void* out, int batch, int heads, int key_heads, int dk, int dv,
                                        void* stream) {
  return launch<float>(q, k, v, g, beta, state, out, batch, heads, key_heads, dk, dv, stream);
}

extern "C" int hwprofile_delta_step_bf16(const void* q, const void* k, const void* v, const void* g, const void* beta,
                                         void* state, void* out, int batch, int heads, int key_heads, int dk, int dv,
                                         void* stream) {
  return launch<__nv_bfloat16>(q, k, v, g, beta, state, out, batch, heads, key_heads, dk, dv, stream);
}
