// Threads that share one loop without a barrier. OpenMP waits for every thread of its team, so on a busy machine each of
// the hundred or so short loops of a step waits for a thread that is not scheduled. Here, a thread that comes late finds
// no work left, and the caller waits only for the threads that have started.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
inline void relax() { _mm_pause(); }
#elif defined(__aarch64__)
inline void relax() { asm volatile("yield"); }
#else
inline void relax() {}
#endif

class Pool {
 public:
  // Runs work(0) … work(chunks - 1) on up to `threads` threads, including the caller's. A second caller at the same time
  // does its work alone, and so does a child after fork, which has no helper threads.
  template <class Work>
  void run(int64_t chunks, int64_t threads, const Work& work) {
    std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
    if (!mine || threads < 2 || chunks < 2) {
      for (int64_t chunk = 0; chunk < chunks; ++chunk) work(chunk);
      return;
    }
    for (; helpers_ < threads - 1; ++helpers_) std::thread(&Pool::help, this, helpers_).detach();
    call_ = [](const void* of, int64_t chunk) { (*static_cast<const Work*>(of))(chunk); };
    work_ = &work;
    chunks_ = chunks;
    seats_ = threads - 1;
    next_.store(0);
    open_.store(true);
    turn_.fetch_add(1);
    if (sleeping_.load()) turn_.notify_all();
    take();
    open_.store(false);  // no helper enters after this: it increments inside_ before it checks open_
    while (inside_.load()) relax();
  }

 private:
  static constexpr int kSpins = 4000;  // about 50 to 100 µs, longer than the gaps between the loops of a step

  void take() {
    for (int64_t chunk; (chunk = next_.fetch_add(1)) < chunks_;) call_(work_, chunk);
  }

  void help(int64_t index) {
    for (uint32_t seen = turn_.load();;) {
      if (open_.load()) {
        inside_.fetch_add(1);
        if (open_.load() && index < seats_) take();
        inside_.fetch_sub(1);
      }
      for (int spin = 0; turn_.load() == seen && spin < kSpins; ++spin) relax();
      if (turn_.load() == seen) {
        sleeping_.fetch_add(1);
        turn_.wait(seen);
        sleeping_.fetch_sub(1);
      }
      seen = turn_.load();
    }
  }

  std::mutex busy_;
  int64_t helpers_ = 0;
  void (*call_)(const void*, int64_t) = nullptr;  // these four are written before open_ and read after it
  const void* work_ = nullptr;
  int64_t chunks_ = 0, seats_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<int32_t> inside_{0}, sleeping_{0};
  std::atomic<bool> open_{false};
  std::atomic<uint32_t> turn_{0};
};
