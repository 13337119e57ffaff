// The loops, written once with the compiler's vector extensions and compiled once per instruction set:
//   g++ -DISA=avx2 -DLANES=8 -mavx2 -mfma    g++ -DISA=avx512 -DLANES=16 -mavx512f    g++ -DISA=baseline -DLANES=4
// (4 lanes are SSE2 on x86 and NEON on ARM). Only widening loads use intrinsics, for which compilers generate poor code.
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
inline float scalar(uint16_t value) { return from_bf16(value); }
inline float total(Vec v) {  // four independent sums, which do not wait for each other
  float sum[4] = {};
  for (int64_t i = 0; i < kLanes; ++i) sum[i % 4] += v[i];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// `R` rows of weights, `apart` rows from each other, times `M` vectors: each weight is loaded once and used M times.
template <class W, int M, int R>
inline void dot_rows(const Matvec& job, int64_t row, int64_t apart) {
  const W* w = static_cast<const W*>(job.w) + row * job.k;
  const int64_t k = job.k, whole = k - k % kLanes;
  Vec acc[M][R] = {};
  for (int64_t i = 0; i < whole; i += kLanes) {
    Vec weight[R];
    for (int r = 0; r < R; ++r) weight[r] = load(w + r * apart * k + i);
    for (int m = 0; m < M; ++m) {
      const Vec x = load(job.x + m * k + i);
      for (int r = 0; r < R; ++r) acc[m][r] += weight[r] * x;
    }
  }
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < R; ++r) {
      float sum = total(acc[m][r]);
      for (int64_t i = whole; i < k; ++i) sum += scalar(w[r * apart * k + i]) * job.x[m * k + i];
      if (job.scale) sum *= job.scale[row + r * apart];
      const int64_t at = m * job.n + row + r * apart;
      if (job.y_bf16) static_cast<uint16_t*>(job.y)[at] = to_bf16(sum);
      else static_cast<float*>(job.y)[at] = sum;
    }
}

// Rows that are read at the same time are far apart, so that each is a separate stream for the prefetchers. Neighbouring
// rows of 640 elements would be one stream with jumps, which is 30 to 40 % slower.
template <class W, int M, int R>
void matvec_rows(const Matvec& job, int64_t begin, int64_t end) {
  const int64_t apart = (end - begin) / R;
  for (int64_t row = begin; row < begin + apart; ++row) dot_rows<W, M, R>(job, row, apart);
  for (int64_t row = begin + R * apart; row < end; ++row) dot_rows<W, M, 1>(job, row, 1);
}

// Rows at once for `m` vectors. The m × rows sums, as many weights and one x must fit into the registers: 32 with
// AVX-512, otherwise 16 (NEON has 32 of four lanes).
constexpr int at_once(int m) {
  return LANES == 16 ? (m < 3 ? 8 : m < 5 ? 6 : m < 7 ? 4 : 3) : m == 1 ? 8 : m == 2 ? 4 : m == 3 ? 3 : m < 7 ? 2 : 1;
}

template <class W>
void matvec_typed(const Matvec& job, int64_t begin, int64_t end) {
  switch (job.m) {
    case 1: return matvec_rows<W, 1, at_once(1)>(job, begin, end);
    case 2: return matvec_rows<W, 2, at_once(2)>(job, begin, end);
    case 3: return matvec_rows<W, 3, at_once(3)>(job, begin, end);
    case 4: return matvec_rows<W, 4, at_once(4)>(job, begin, end);
    case 5: return matvec_rows<W, 5, at_once(5)>(job, begin, end);
    case 6: return matvec_rows<W, 6, at_once(6)>(job, begin, end);
    case 7: return matvec_rows<W, 7, at_once(7)>(job, begin, end);
    default: return matvec_rows<W, 8, at_once(8)>(job, begin, end);
  }
}

void matvec(const Matvec& job, int64_t begin, int64_t end) {
  switch (job.type) {
    case Type::f32: return matvec_typed<float>(job, begin, end);
    case Type::bf16: return matvec_typed<uint16_t>(job, begin, end);
    case Type::i8: return matvec_typed<int8_t>(job, begin, end);
  }
}

constexpr int64_t kBlock = 64;  // slots whose scores are held at a time; fully masked blocks are skipped

// Rows of keys or values that are read at the same time. They are far apart, as in matvec_rows.
constexpr int kStreams = LANES == 16 ? 4 : 2;

// Scores of `H` query heads at slots[first], slots[first + apart], …: each key is loaded once and used H times.
template <class T, int H, int N>
inline void score(const float* q, const Attention& job, const int64_t* slots, float (*out)[kBlock], int64_t first,
                  int64_t apart) {
  const T* keys[N];
  for (int n = 0; n < N; ++n) keys[n] = static_cast<const T*>(job.keys) + slots[first + n * apart] * job.key_stride;
  Vec acc[H][N] = {};
  int64_t i = 0;
  for (; i + kLanes <= job.d; i += kLanes) {
    Vec key[N];
    for (int n = 0; n < N; ++n) key[n] = load(keys[n] + i);
    for (int h = 0; h < H; ++h) {
      const Vec query = load(q + h * job.d + i);
      for (int n = 0; n < N; ++n) acc[h][n] += key[n] * query;
    }
  }
  for (int h = 0; h < H; ++h)
    for (int n = 0; n < N; ++n) {
      float sum = total(acc[h][n]);
      for (int64_t j = i; j < job.d; ++j) sum += q[h * job.d + j] * scalar(keys[n][j]);
      out[h][first + n * apart] = job.scale * sum;
    }
}

// acc[h] += sum of weight[h][i] * value[slot[i]] for i = first, first + apart, …; the sums stay in the L1 cache.
template <class T, int H, int N>
inline void add_values(const Attention& job, const int64_t* slots, const float (*weight)[kBlock], int64_t first,
                       int64_t apart, float* acc) {
  const T* values[N];
  for (int n = 0; n < N; ++n)
    values[n] = static_cast<const T*>(job.values) + slots[first + n * apart] * job.value_stride;
  int64_t column = 0;
  for (; column + kLanes <= job.dv; column += kLanes) {
    Vec value[N];
    for (int n = 0; n < N; ++n) value[n] = load(values[n] + column);
    for (int h = 0; h < H; ++h) {
      Vec sum = load(acc + h * job.dv + column);
      for (int n = 0; n < N; ++n) sum += value[n] * weight[h][first + n * apart];
      store(acc + h * job.dv + column, sum);
    }
  }
  for (; column < job.dv; ++column)
    for (int n = 0; n < N; ++n)
      for (int h = 0; h < H; ++h)
        acc[h * job.dv + column] += weight[h][first + n * apart] * scalar(values[n][column]);
}

// One block for `H` query heads, starting at `head`. Sums are rescaled when the maximum rises (Milakov, arXiv 1805.02867).
template <class T, int H>
void attend_block(const Attention& job, int64_t head, int64_t begin, int64_t count) {
  const float* q = job.q + head * job.d;
  float *acc = job.acc + head * job.dv, weight[H][kBlock];
  int64_t slots[kBlock], filled = 0;
  for (int64_t slot = begin; slot < begin + count; ++slot)
    if (job.mask[slot]) slots[filled++] = slot;
  const int64_t apart = filled / kStreams, whole = apart * kStreams;
  for (int64_t i = 0; i < apart; ++i) score<T, H, kStreams>(q, job, slots, weight, i, apart);
  for (int64_t i = whole; i < filled; ++i) score<T, H, 1>(q, job, slots, weight, i, 1);
  for (int h = 0; h < H; ++h) {
    float top = job.top[head + h];
    for (int64_t i = 0; i < filled; ++i)
      if (weight[h][i] > top) top = weight[h][i];
    const float shrink = std::exp(job.top[head + h] - top);  // exp(-inf) = 0 the first time
    job.top[head + h] = top;
    job.sum[head + h] *= shrink;
    for (int64_t i = 0; i < job.dv; ++i) acc[h * job.dv + i] *= shrink;
    for (int64_t i = 0; i < filled; ++i) job.sum[head + h] += weight[h][i] = std::exp(weight[h][i] - top);
  }
  for (int64_t i = 0; i < apart; ++i) add_values<T, H, kStreams>(job, slots, weight, i, apart, acc);
  for (int64_t i = whole; i < filled; ++i) add_values<T, H, 1>(job, slots, weight, i, 1, acc);
}

template <class T>
void attention_typed(const Attention& job, int64_t begin, int64_t end) {
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t count = start + kBlock < end ? kBlock : end - start;
    if (!std::memchr(job.mask + start, 1, count)) continue;
    int64_t head = 0;
    for (; head + 4 <= job.group; head += 4) attend_block<T, 4>(job, head, start, count);
    for (; head + 2 <= job.group; head += 2) attend_block<T, 2>(job, head, start, count);
    for (; head < job.group; ++head) attend_block<T, 1>(job, head, start, count);
  }
}

void attention(const Attention& job, int64_t begin, int64_t end) {
  if (job.type == Type::bf16) attention_typed<uint16_t>(job, begin, end);
  else attention_typed<float>(job, begin, end);
}

// S ← decay·S;  S ← S + k ⊗ β(v − kᵀS);  out = qᵀS (Yang et al., arXiv 2412.06464). Columns of S are independent, so
// a strip of them is loaded into the L1 cache once and updated there.
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
