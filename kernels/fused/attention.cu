// Attention of one query token over a cache of fixed size. It reads only filled slots, so one captured graph serves every
// length, and many blocks share one sequence, as in flash decoding (Dao et al. 2023).
//
// attention_part: grid (chunks, heads / GROUP, batch), block 128. Each block processes a chunk of slots for GROUP query
// heads that share keys and values, and writes sums, the largest score and the total weight to `parts`.
// attention_join: grid (heads, batch), block 512. Combines the chunks.
//
// Compile-time constants: WIDTH, the head size, a power of two from 16 to 512; GROUP.
#include "element.h"

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kLanes = WIDTH / kVector < 32 ? WIDTH / kVector : 32;      // lanes that share a slot
constexpr int kSlots = 32 / kLanes;                                      // slots that a warp processes at once
constexpr int kTakers = kWarps * kSlots;                                 // slots that a block processes at once
constexpr int kEach = WIDTH / kLanes;                                    // elements per lane
constexpr int kLoads = kEach / kVector;
constexpr int kUnroll = kLoads < 4 ? 4 : 2;  // slots whose loads are in flight together
constexpr int kPart = WIDTH + 4;  // sums, largest score, total weight; a multiple of 16 bytes
constexpr int kJoiners = 512, kMostChunks = kJoiners;
constexpr float kNone = -1e30f;  // less than any score; with infinity, differences would be NaN

// The elements of a lane are spread out, so that neighbouring lanes read neighbouring bytes.
__device__ inline int place(int load, int lane) { return (load * kLanes + lane) * kVector; }

// q [batch, heads, WIDTH], keys and values [batch, kv_heads, slots, WIDTH], mask [slots]: 1 where a slot may be read.
// parts [batch, heads, chunks, WIDTH + 4] in fp32. `scale` includes the factor log2(e).
extern "C" __global__ void __launch_bounds__(kThreads)
    attention_part(const element* q, const element* keys, const element* values, const unsigned char* mask,
                   float* parts, int heads, int kv_heads, int slots, int chunk, float scale) {
  __shared__ float shared_most[GROUP][kTakers], shared_total[GROUP][kTakers], sums[kTakers][WIDTH];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, own = lane % kLanes;
  const int taker = warp * kSlots + lane / kLanes;
  const int head = blockIdx.y * GROUP, kv = head / (heads / kv_heads), batch = blockIdx.z;
  const int start = blockIdx.x * chunk, end = min(start + chunk, slots);

  float query[GROUP][kEach], sum[GROUP][kEach], most[GROUP], total[GROUP];
#pragma unroll
  for (int g = 0; g < GROUP; ++g) {
    most[g] = kNone;
    total[g] = 0.f;
#pragma unroll
    for (int load = 0; load < kLoads; ++load)
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const int at = load * kVector + i;
        query[g][at] = scale * widened(q[(long long)(batch * heads + head + g) * WIDTH + place(load, own) + i]);
        sum[g][at] = 0.f;
      }
  }

  const long long base = (long long)(batch * kv_heads + kv) * slots * WIDTH;
  for (int first = start; first < end; first += kTakers * kUnroll) {
    uint4 key[kUnroll][kLoads], value[kUnroll][kLoads];
    bool reads[kUnroll], any = false;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int slot = first + u * kTakers + taker;
      reads[u] = slot < end && mask[slot];
      any = any || reads[u];
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        const long long at = base + (long long)slot * WIDTH + place(load, own);
        key[u][load] = reads[u] ? *reinterpret_cast<const uint4*>(keys + at) : uint4{0, 0, 0, 0};
        value[u][load] = reads[u] ? *reinterpret_cast<const uint4*>(values + at) : uint4{0, 0, 0, 0};
      }
    }
    if (!__any_sync(0xffffffffu, any)) continue;
#pragma unroll
    for (int g = 0; g < GROUP; ++g) {
      float score[kUnroll], larger = most[g];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        score[u] = 0.f;
#pragma unroll
        for (int load = 0; load < kLoads; ++load) {
          float wide[kVector];
          unpack(key[u][load], wide);
#pragma unroll
          for (int i = 0; i < kVector; ++i) score[u] += query[g][load * kVector + i] * wide[i];
        }
#pragma unroll
        for (int step = kLanes / 2; step > 0; step /= 2) score[u] += __shfl_xor_sync(0xffffffffu, score[u], step);
        if (reads[u]) larger = fmaxf(larger, score[u]);
      }
      const float shrink = exp2f(most[g] - larger);
      most[g] = larger;
      total[g] *= shrink;
#pragma unroll
      for (int at = 0; at < kEach; ++at) sum[g][at] *= shrink;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const float weight = reads[u] ? exp2f(score[u] - larger) : 0.f;
        total[g] += weight;
#pragma unroll
        for (int load = 0; load < kLoads; ++load) {
          float wide[kVector];
          unpack(value[u][load], wide);
#pragma unroll
          for (int i = 0; i < kVector; ++i) sum[g][load * kVector + i] += weight * wide[i];
        }
      }
    }
  }

#pragma unroll
  for (int g = 0; g < GROUP; ++g)
    if (own == 0) {
      shared_most[g][taker] = most[g];
      shared_total[g][taker] = total[g];
    }
  __syncthreads();
#pragma unroll
  for (int g = 0; g < GROUP; ++g) {
    float largest = kNone, weight = 0.f;
    for (int i = 0; i < kTakers; ++i) largest = fmaxf(largest, shared_most[g][i]);
    for (int i = 0; i < kTakers; ++i) weight += shared_total[g][i] * exp2f(shared_most[g][i] - largest);
    const float shrink = exp2f(most[g] - largest);
#pragma unroll
    for (int load = 0; load < kLoads; ++load)
#pragma unroll
      for (int i = 0; i < kVector; ++i)
        sums[taker][place(load, own) + i] = sum[g][load * kVector + i] * shrink;
    __syncthreads();
    float* const part = parts + ((long long)(batch * heads + head + g) * gridDim.x + blockIdx.x) * kPart;
    for (int at = threadIdx.x; at < WIDTH; at += kThreads) {
      float over = 0.f;
      for (int i = 0; i < kTakers; ++i) over += sums[i][at];
      part[at] = over;
    }
    if (threadIdx.x == 0) {
      part[WIDTH] = largest;
      part[WIDTH + 1] = weight;
    }
    __syncthreads();
  }
}

// out [batch, heads, WIDTH]. A thread sums four neighbouring columns over its share of the chunks.
extern "C" __global__ void __launch_bounds__(kJoiners)
    attention_join(const float* parts, element* out, int heads, int chunks) {
  constexpr int kGroups = kJoiners / (WIDTH / 4);
  __shared__ float shrink[kMostChunks], largest_of[kJoiners / 32], weight_of[kJoiners / 32];
  __shared__ float4 sums[kGroups][WIDTH / 4];
  const long long head = blockIdx.y * heads + blockIdx.x;
  const float* const mine = parts + head * chunks * kPart;
  const int warp = threadIdx.x / 32, column = threadIdx.x % (WIDTH / 4), group = threadIdx.x / (WIDTH / 4);

  const bool has = threadIdx.x < chunks;
  const float own = has ? mine[threadIdx.x * kPart + WIDTH] : kNone;
  float largest = own;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  if (threadIdx.x % 32 == 0) largest_of[warp] = largest;
  __syncthreads();
  for (int i = 0; i < kJoiners / 32; ++i) largest = fmaxf(largest, largest_of[i]);
  const float factor = exp2f(own - largest);
  float weight = has ? factor * mine[threadIdx.x * kPart + WIDTH + 1] : 0.f;
  if (has) shrink[threadIdx.x] = factor;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) weight += __shfl_xor_sync(0xffffffffu, weight, step);
  if (threadIdx.x % 32 == 0) weight_of[warp] = weight;
  __syncthreads();
  weight = 0.f;
  for (int i = 0; i < kJoiners / 32; ++i) weight += weight_of[i];

  float4 sum = {0.f, 0.f, 0.f, 0.f};
#pragma unroll 4
  for (int i = group; i < chunks; i += kGroups) {
    const float4 part = *reinterpret_cast<const float4*>(mine + i * kPart + 4 * column);
    sum.x += shrink[i] * part.x;
    sum.y += shrink[i] * part.y;
    sum.z += shrink[i] * part.z;
    sum.w += shrink[i] * part.w;
  }
  sums[group][column] = sum;
  __syncthreads();
  const float* const each = reinterpret_cast<const float*>(sums);
  for (int at = threadIdx.x; at < WIDTH; at += kJoiners) {
    float over = 0.f;
#pragma unroll 8
    for (int i = 0; i < kGroups; ++i) over += each[i * WIDTH + at];
    out[head * WIDTH + at] = narrowed(over / weight);
  }
}
