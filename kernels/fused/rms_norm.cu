// RMS norm of rows in one launch, where transformers needs eight: out = x / rms(x) · (offset + weight), with GATED times
// silu(gate). Computed in fp32; only the result is rounded.
//
// Grid (rows), block 256.
#include "element.h"

constexpr int kThreads = 256, kWarps = kThreads / 32;

// x, gate and out are [rows, width]; weight is [width], or null for ones.
extern "C" __global__ void __launch_bounds__(kThreads)
    rms_norm(const element* x, const element* weight, const element* gate, element* out, int width, float offset,
             float eps) {
  __shared__ float squares[kWarps];
  const long long row = (long long)blockIdx.x * width;
  float square = 0.f;
  for (int i = threadIdx.x; i < width; i += kThreads) {
    const float value = widened(x[row + i]);
    square += value * value;
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) square += __shfl_xor_sync(0xffffffffu, square, step);
  if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = square;
  __syncthreads();
  square = 0.f;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) square += squares[i];
  const float scale = rsqrtf(square / float(width) + eps);
  for (int i = threadIdx.x; i < width; i += kThreads) {
    float value = widened(x[row + i]) * scale * (weight ? offset + widened(weight[i]) : 1.f);
#ifdef GATED
    const float through = widened(gate[row + i]);
    value *= through / (1.f + expf(-through));
#endif
    out[row + i] = narrowed(value);
  }
}
