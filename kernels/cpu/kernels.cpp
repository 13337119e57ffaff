// The loops, written once with the compiler's vector types and compiled once per instruction set:
//   g++ -DISA=avx2 -DLANES=8 -mavx2 -mfma    g++ -DISA=avx512 -DLANES=16 -mavx512f    g++ -DISA=baseline -DLANES=4
// (4 lanes are SSE2 on x86 and NEON on ARM). Only widening loads use intrinsics: compilers make poor code of them.
#include "kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include <cmath>
#include <cstring>

namespace ISA {
namespace {

constexpr int64_t kLanes = LANES;
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));
typedef float LooseVec __attribute__((vector_size(4 * LANES), aligned(1), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }

// bf16 is the upper half of an fp32.
#if LANES == 16
inline Vec load(const uint16_t* p) {
  const auto half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
}
inline Vec load(const int8_t* p) {
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
#elif LANES == 8
inline Vec load(const uint16_t* p) {
  const auto half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
}
inline Vec load(const int8_t* p) {
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
#elif defined(__ARM_NEON)
inline Vec load(const uint16_t* p) { return (Vec)vshll_n_u16(vld1_u16(p), 16); }
inline Vec load(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  const int16x4_t wide = vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))));
  return (Vec)vcvtq_f32_s32(vmovl_s16(wide));
}
#else
inline Vec load(const uint16_t* p) { return (Vec)(IntVec{p[0], p[1], p[2], p[3]} << 16); }
inline Vec load(const int8_t* p) { return Vec{float(p[0]), float(p[1]), float(p[2]), float(p[3])}; }
#endif
inline void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }

inline float scalar(float value) { return value; }
inline float scalar(int8_t value) { return value; }
inline float scalar(uint16_t value) {
  uint32_t bits = uint32_t(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
inline uint16_t to_bf16(float value) {  // round to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return 0x7fc0;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline float total(Vec v) {
  float sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

// `R` rows of weights against `M` vectors: each weight is loaded once and used M times, from registers.
template <class W, int M, int R>
inline void dot_rows(const Matvec& job, int64_t row) {
  const W* w = static_cast<const W*>(job.w) + row * job.k;
  const int64_t k = job.k, whole = k - k % kLanes;
  Vec acc[M][R] = {};
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int r = 0; r < R; ++r) {
      const Vec weight = load(w + r * k + i);
      for (int m = 0; m < M; ++m) acc[m][r] += weight * load(job.x + m * k + i);
    }
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < R; ++r) {
      float sum = total(acc[m][r]);
      for (int64_t i = whole; i < k; ++i) sum += scalar(w[r * k + i]) * job.x[m * k + i];
      if (job.scale) sum *= job.scale[row + r];
      const int64_t at = m * job.n + row + r;
      if (job.y_bf16) static_cast<uint16_t*>(job.y)[at] = to_bf16(sum);
      else static_cast<float*>(job.y)[at] = sum;
    }
}

template <class W, int M, int R>
void matvec_rows(const Matvec& job, int64_t begin, int64_t end) {
  int64_t row = begin;
  for (; row + R <= end; row += R) dot_rows<W, M, R>(job, row);
  for (; row < end; ++row) dot_rows<W, M, 1>(job, row);
}

template <class W>
void matvec_typed(const Matvec& job, int64_t begin, int64_t end) {
  switch (job.m) {  // M × R sums and R weights stay in 16 registers
    case 1: return matvec_rows<W, 1, 4>(job, begin, end);
    case 2: return matvec_rows<W, 2, 4>(job, begin, end);
    case 3: return matvec_rows<W, 3, 2>(job, begin, end);
    case 4: return matvec_rows<W, 4, 2>(job, begin, end);
    case 5: return matvec_rows<W, 5, 2>(job, begin, end);
    case 6: return matvec_rows<W, 6, 2>(job, begin, end);
    case 7: return matvec_rows<W, 7, 1>(job, begin, end);
    default: return matvec_rows<W, 8, 1>(job, begin, end);
  }
}

void matvec(const Matvec& job, int64_t begin, int64_t end) {
  switch (job.type) {
    case Type::f32: return matvec_typed<float>(job, begin, end);
    case Type::bf16: return matvec_typed<uint16_t>(job, begin, end);
    case Type::i8: return matvec_typed<int8_t>(job, begin, end);
  }
}

constexpr int64_t kBlock = 64;  // slots whose scores are held at a time; a block that the mask empties is not read

template <class T>
inline float dot(const float* a, const T* b, int64_t n) {
  Vec acc[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    acc[0] += load(a + i) * load(b + i);
    acc[1] += load(a + i + kLanes) * load(b + i + kLanes);
  }
  float sum = total(acc[0] + acc[1]);
  for (; i < n; ++i) sum += a[i] * scalar(b[i]);
  return sum;
}

template <class T>
inline void add_scaled(float* out, const T* in, float factor, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(out + i) + load(in + i) * factor);
  for (; i < n; ++i) out[i] += scalar(in[i]) * factor;
}

// One block for one query head. The accumulator is rescaled when the maximum rises (Milakov, arXiv 1805.02867).
template <class T>
inline void attend_block(const Attention& job, int64_t head, const float* scores, int64_t begin, int64_t count) {
  float top = job.top[head];
  for (int64_t i = 0; i < count; ++i)
    if (job.mask[begin + i] && scores[i] > top) top = scores[i];
  float* acc = job.acc + head * job.dv;
  if (top > job.top[head]) {
    const float shrink = std::exp(job.top[head] - top);  // exp(-inf) = 0 the first time
    for (int64_t i = 0; i < job.dv; ++i) acc[i] *= shrink;
    job.sum[head] *= shrink;
    job.top[head] = top;
  }
  for (int64_t i = 0; i < count; ++i) {
    if (!job.mask[begin + i]) continue;
    const float weight = std::exp(scores[i] - top);
    job.sum[head] += weight;
    add_scaled(acc, static_cast<const T*>(job.values) + (begin + i) * job.value_stride, weight, job.dv);
  }
}

template <class T>
void attention_typed(const Attention& job, int64_t begin, int64_t end) {
  float scores[kBlock];
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t count = start + kBlock < end ? kBlock : end - start;
    if (!std::memchr(job.mask + start, 1, count)) continue;
    for (int64_t head = 0; head < job.group; ++head) {
      const T* keys = static_cast<const T*>(job.keys) + start * job.key_stride;
      for (int64_t i = 0; i < count; ++i)
        scores[i] = job.mask[start + i] ? job.scale * dot(job.q + head * job.d, keys + i * job.key_stride, job.d) : 0;
      attend_block<T>(job, head, scores, start, count);
    }
  }
}

void attention(const Attention& job, int64_t begin, int64_t end) {
  if (job.type == Type::bf16) attention_typed<uint16_t>(job, begin, end);
  else attention_typed<float>(job, begin, end);
}

// S ← decay·S;  S ← S + k ⊗ β(v − kᵀS);  out = qᵀS (Yang et al., arXiv 2412.06464). Columns of S are independent, so
// a strip of them is brought into the first cache level once and worked on there.
inline void delta_strip(const DeltaHead& head, int64_t column, int64_t width) {
  constexpr int64_t kWidest = 2 * kLanes;
  float memory[kWidest] = {}, out[kWidest] = {};
  for (int64_t row = 0; row < head.dk; ++row) {
    const float* s = head.state + row * head.dv + column;
    for (int64_t i = 0; i < width; ++i) memory[i] += s[i] * head.k[row];
  }
  float delta[kWidest];
  for (int64_t i = 0; i < width; ++i) delta[i] = (head.v[column + i] - head.decay * memory[i]) * head.beta;
  for (int64_t row = 0; row < head.dk; ++row) {
    float* s = head.state + row * head.dv + column;
    for (int64_t i = 0; i < width; ++i) {
      s[i] = s[i] * head.decay + head.k[row] * delta[i];
      out[i] += s[i] * head.q[row];
    }
  }
  for (int64_t i = 0; i < width; ++i) head.out[column + i] = out[i];
}

void delta(const DeltaHead& head) {
  constexpr int64_t kWidth = 2 * kLanes;
  int64_t column = 0;
  for (; column + kWidth <= head.dv; column += kWidth) delta_strip(head, column, kWidth);
  if (column < head.dv) delta_strip(head, column, head.dv - column);
}

}  // namespace

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
extern const Kernels kernels = {TEXT(ISA), matvec, attention, delta};

}  // namespace ISA
