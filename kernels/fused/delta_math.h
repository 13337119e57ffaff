// The arithmetic of one column of the gated delta rule, for the device and for the host alike.
#pragma once

#ifdef __CUDACC__
#define BOTH __host__ __device__ __forceinline__
#else
#define BOTH inline
#endif

// What the state's column remembers of the key: Σ_r S[r]·k[r], before decay. `rows` of stride `stride`.
BOTH float delta_memory(const float* column, const float* k, int rows, int stride) {
  float sum = 0.f;
  for (int row = 0; row < rows; ++row) sum += column[row * stride] * k[row];
  return sum;
}

// S ← decay·S + k·δ, and the column's share of the output Σ_r S[r]·q[r].
BOTH float delta_update(float* column, const float* q, const float* k, float decay, float delta, int rows, int stride) {
  float out = 0.f;
  for (int row = 0; row < rows; ++row) {
    const float value = column[row * stride] * decay + k[row] * delta;
    column[row * stride] = value;
    out += value * q[row];
  }
  return out;
}

// The correction that is written: β·(v − decay·memory).
BOTH float delta_error(float v, float decay, float memory, float beta) { return beta * (v - decay * memory); }
