// A few tokens times a matrix so small that a library call takes longer to start than the matrix takes to read.
//
// Grid (rows / 4), block 128: each warp reads one row once for all TOKENS, a compile-time constant. With CHOSEN, the grid
// is (rows / 4, tokens), and each token uses its own matrix of `weight`.
#include "element.h"

constexpr int kWarps = 4, kStride = 32 * kVector, kUnroll = 4;

// x [TOKENS, columns], weight [rows, columns], bias [rows] or null, out [TOKENS, rows]; columns is a multiple of kVector.
// With CHOSEN: x [tokens, columns], weight [experts, rows, columns], ids [tokens], out [tokens, rows].
extern "C" __global__ void __launch_bounds__(32 * kWarps)
    matvec(const element* x, const element* weight, const element* bias, element* out, int rows, int columns,
           const long long* ids) {
  const int row = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
#ifdef CHOSEN
  x += (long long)blockIdx.y * columns;
  out += (long long)blockIdx.y * rows;
  weight += ids[blockIdx.y] * rows * columns;
#endif
  const element* const own = weight + (long long)row * columns;
  float sum[TOKENS] = {};
  for (int start = lane * kVector; start < columns; start += kStride * kUnroll) {
    uint4 bits[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int at = start + u * kStride;
      bits[u] = at < columns ? *reinterpret_cast<const uint4*>(own + at) : uint4{0, 0, 0, 0};
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int at = start + u * kStride;
      float w[kVector];
      unpack(bits[u], w);
#pragma unroll
      for (int token = 0; token < TOKENS; ++token) {
        float wide[kVector];
        unpack(at < columns ? *reinterpret_cast<const uint4*>(x + (long long)token * columns + at) : uint4{0, 0, 0, 0},
               wide);
#pragma unroll
        for (int i = 0; i < kVector; ++i) sum[token] += w[i] * wide[i];
      }
    }
  }
#pragma unroll
  for (int token = 0; token < TOKENS; ++token) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum[token] += __shfl_xor_sync(0xffffffffu, sum[token], step);
    if (lane == 0) out[(long long)token * rows + row] = narrowed(sum[token] + (bias ? widened(bias[row]) : 0.f));
  }
}
