// The interface between the loops in kernels.cpp and the bindings: plain pointers and ranges of work, no torch, no threads.
#pragma once
#include <cstdint>
#include <cstring>

// bf16 is the upper half of an fp32. Internal linkage: the linker must not pick the AVX-512 copy for the baseline.
static inline float from_bf16(uint16_t value) {
  const uint32_t bits = uint32_t(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
static inline uint16_t to_bf16(float value) {  // round to nearest, ties to even
  if (value != value) return 0x7fc0;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

enum class Type : int32_t { f32, bf16, i8 };

// y[m][n] = sum_k x[m][k] * w[n][k] (* scale[n] for int8 rows), for rows n of [begin, end).
struct Matvec {
  const float* x;      // [m, k], always fp32
  const void* w;       // [n, k]
  Type type;           // of w
  const float* scale;  // [n], int8 rows only
  void* y;             // [m, n]
  bool y_bf16;         // else fp32
  int64_t m, n, k;
};

// One query token per sequence against cached keys and values; online softmax over slots [begin, end).
struct Attention {
  const float* q;                      // [group, d]: the query heads that share one key/value head
  const void *keys, *values;           // [slots, d], [slots, dv]
  const uint8_t* mask;                 // [slots], 0: skip the slot
  Type type;                           // of keys and values
  float scale;
  int64_t group, d, dv;
  int64_t key_stride, value_stride;    // elements from slot to slot
  float *top, *sum, *acc;              // out: [group], [group], [group, dv]: running maximum, sum of weights, weighted values
};

// One head of one token of the gated delta rule. Reads and writes the state [dk, dv] once.
struct DeltaHead {
  const float *q, *k, *v;  // [dk] (normalised, q scaled), [dk] (normalised), [dv]
  float decay, beta;       // exp(g), sigmoid(b)
  float *state, *out;      // [dk, dv], [dv]
  int64_t dk, dv;
};

struct Kernels {
  const char* name;
  void (*matvec)(const Matvec&, int64_t begin, int64_t end);
  void (*attention)(const Attention&, int64_t begin, int64_t end);
  void (*delta)(const DeltaHead&);
};
