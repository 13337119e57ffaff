// One token of the gated delta rule (Yang et al., arXiv 2412.06464) in one launch. transformers' own code launches about
// seventy kernels and moves the recurrent state fourteen times; this one reads and writes the state once.
//
// Grid (heads × batch, dv / 32), block (32, 8). Threads are (column, part): the 8 threads of a column share the rows of
// the block's strip of the state, which is held in shared memory [dk, 32].
#include "element.h"

constexpr int kColumns = 32;  // columns of the state, one per lane: a row is read as 128 contiguous bytes
constexpr int kParts = 8;     // threads that share the rows of a column
constexpr int kLargestKey = 256;

// Sum over the threads of a column, returned to each of them.
__device__ float over_parts(float value, float* shared, int column, int part) {
  shared[part * kColumns + column] = value;
  __syncthreads();
  float sum = 0.f;
  for (int i = 0; i < kParts; ++i) sum += shared[i * kColumns + column];
  __syncthreads();
  return sum;
}

// A head's key or query, divided by its Euclidean norm. Every block computes it anew, which is cheaper than a launch.
__device__ void normalised(const element* from, float* to, int dk, float factor, float* shared, int thread) {
  float square = 0.f;
  for (int i = thread; i < dk; i += kColumns * kParts) {
    const float value = widened(from[i]);
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

// All tensors are contiguous: q, k [batch, key_heads, dk], v, out [batch, heads, dv], g [batch, heads] in fp32, beta
// [batch, heads], state [batch, heads, dk, dv] in fp32, updated in place.
extern "C" __global__ void delta_step(const element* q, const element* k, const element* v, const float* g,
                                      const element* beta, float* state, element* out, int heads, int key_heads,
                                      int dk, int dv) {
  extern __shared__ float strip[];
  __shared__ float unit_q[kLargestKey], unit_k[kLargestKey], shared[kColumns * kParts];
  const int column = threadIdx.x, part = threadIdx.y, thread = part * kColumns + column;
  const int head = blockIdx.x, batch = head / heads, at = blockIdx.y * kColumns + column;
  const int source = (batch * key_heads + head % heads / (heads / key_heads)) * dk;
  normalised(q + source, unit_q, dk, rsqrtf(float(dk)), shared, thread);
  normalised(k + source, unit_k, dk, 1.f, shared, thread);

  const int share = (dk + kParts - 1) / kParts, first = part * share, last = min(dk, first + share);
  float* const mine = strip + column;
  float* const global = state + (long long)head * dk * dv + at;
  const bool inside = at < dv;
  const float decay = expf(g[head]);
  float memory = 0.f;  // the value that the state's column holds for the key, before the update
  for (int row = first; row < last; ++row) {
    const float value = inside ? decay * global[(long long)row * dv] : 0.f;
    mine[row * kColumns] = value;
    memory += value * unit_k[row];
  }
  memory = over_parts(memory, shared, column, part);
  const float delta = widened(beta[head]) * ((inside ? widened(v[(long long)head * dv + at]) : 0.f) - memory);
  float sum = 0.f;
  for (int row = first; row < last; ++row) {
    const float value = mine[row * kColumns] + unit_k[row] * delta;
    if (inside) global[(long long)row * dv] = value;
    sum += value * unit_q[row];
  }
  sum = over_parts(sum, shared, column, part);
  if (inside && part == 0) out[(long long)head * dv + at] = narrowed(sum);
}
