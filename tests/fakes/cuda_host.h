// Enough of CUDA to run a kernel's source on a CPU: every thread of a block is a fiber, and those of a warp meet at each
// shuffle, those of a block at each __syncthreads. Blocks run one after the other, so shared memory is static.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)
#define EXTERN_SHARED(name) float* const name = reinterpret_cast<float*>(host::dynamic_shared)

struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct Place { int x, y, z; };
inline Place threadIdx, blockIdx, gridDim;
using std::min;

inline float __uint_as_float(unsigned bits) { float value; std::memcpy(&value, &bits, 4); return value; }
inline unsigned __float_as_uint(float value) { unsigned bits; std::memcpy(&bits, &value, 4); return bits; }
inline float rsqrtf(float value) { return 1.f / std::sqrt(value); }

namespace host {

enum Waits { kRuns, kWarp, kBlock, kDone };
struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 17);
  Place index;
  Waits waits = kRuns;
  float given = 0.f;
};

alignas(16) inline char dynamic_shared[1 << 16];
inline std::vector<Fiber>* fibers;
inline ucontext_t scheduler;
inline int current;
inline std::function<void()>* body;

inline void wait(Waits what) {
  Fiber& own = (*fibers)[current];
  own.waits = what;
  swapcontext(&own.context, &scheduler);
}

inline void begin() {
  (*body)();
  (*fibers)[current].waits = kDone;
}

// Let go who waits at `what` if all threads from `first` to `last` do. A thread that has ended, or waits elsewhere, would
// hang a GPU: then nobody is let go, and the run below finds nothing to do.
inline bool release(Waits what, int first, int last) {
  for (int i = first; i < last; ++i)
    if ((*fibers)[i].waits != what) return false;
  for (int i = first; i < last; ++i) (*fibers)[i].waits = kRuns;
  return true;
}

// One block; false if threads wait for others that never come.
inline bool block(Place size, std::function<void()> run) {
  const int threads = size.x * size.y;
  std::vector<Fiber> own(threads);
  fibers = &own;
  body = &run;
  for (int i = 0; i < threads; ++i) {
    own[i].index = {i % size.x, i / size.x, 0};
    getcontext(&own[i].context);
    own[i].context.uc_stack.ss_sp = own[i].stack.data();
    own[i].context.uc_stack.ss_size = own[i].stack.size();
    own[i].context.uc_link = &scheduler;
    makecontext(&own[i].context, begin, 0);
  }
  for (bool moved = true; moved;) {
    moved = false;
    for (current = 0; current < threads; ++current)
      if (own[current].waits == kRuns) {
        threadIdx = own[current].index;
        swapcontext(&scheduler, &own[current].context);
        moved = true;
      }
    for (int first = 0; first < threads; first += 32) moved |= release(kWarp, first, std::min(first + 32, threads));
    moved |= release(kBlock, 0, threads);
  }
  return std::all_of(own.begin(), own.end(), [](const Fiber& fiber) { return fiber.waits == kDone; });
}

template <class Run>
bool grid(Place blocks, Place size, Run run) {
  gridDim = blocks;
  for (blockIdx.z = 0; blockIdx.z < blocks.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < blocks.x; ++blockIdx.x) {
        std::memset(dynamic_shared, 0xff, sizeof dynamic_shared);  // NaN: nothing may be read before it is written
        if (!block(size, run)) return false;
      }
  return true;
}

}  // namespace host

inline void __syncthreads() { const Place own = threadIdx; host::wait(host::kBlock); threadIdx = own; }

inline float __shfl_xor_sync(unsigned, float value, int step) {
  const Place own = threadIdx;
  const int lane = host::current;
  (*host::fibers)[lane].given = value;
  host::wait(host::kWarp);
  const float taken = (*host::fibers)[lane ^ step].given;
  host::wait(host::kWarp);
  threadIdx = own;
  return taken;
}

inline bool __any_sync(unsigned, bool value) {
  const Place own = threadIdx;
  const int first = host::current / 32 * 32;
  (*host::fibers)[host::current].given = value;
  host::wait(host::kWarp);
  bool any = false;
  for (int i = first; i < first + 32; ++i) any |= (*host::fibers)[i].given != 0.f;
  host::wait(host::kWarp);
  threadIdx = own;
  return any;
}
