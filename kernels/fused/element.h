// The type of activations: float, or bf16 as its bits. Includes no CUDA header, so NVRTC compiles it anywhere.
#pragma once

#ifdef BF16
typedef unsigned short element;
__device__ inline float widened(element value) { return __uint_as_float((unsigned)value << 16); }
__device__ inline element narrowed(float value) {
  const unsigned bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;           // NaN
  return (element)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);  // to nearest, ties to even
}
#else
typedef float element;
__device__ inline float widened(element value) { return value; }
__device__ inline element narrowed(float value) { return value; }
#endif

constexpr int kVector = 16 / sizeof(element);  // elements per load of 16 bytes, the widest load

__device__ inline void unpack(const uint4& bits, float* out) {
  const element* each = reinterpret_cast<const element*>(&bits);
#pragma unroll
  for (int i = 0; i < kVector; ++i) out[i] = widened(each[i]);
}
