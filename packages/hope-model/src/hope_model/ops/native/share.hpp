// Sequences shared out among threads: torch's own where they can be had, since its others would spin beside ours.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace hope {

struct Shares {
  void (*function)(const void* arguments, int64_t from, int64_t to);
  const void* arguments;
  int64_t items;
  int threads;
  std::atomic<int> next;
};

// One thread's work: shares that nobody has begun, however few threads there are.
inline void work(void* of) {
  auto& s = *static_cast<Shares*>(of);
  for (int n; (n = s.next++) < s.threads;)
    s.function(s.arguments, n * s.items / s.threads, (n + 1) * s.items / s.threads);
}

}  // namespace hope

extern "C" {
// `parallel`: GOMP_parallel of the OpenMP that torch runs on, or null.
void share(void (*function)(const void*, int64_t, int64_t), const void* arguments, int64_t items, int64_t threads,
           void (*parallel)(void (*)(void*), void*, unsigned, unsigned)) {
  hope::Shares shares{function, arguments, items, int(threads), {0}};
  if (parallel) return parallel(hope::work, &shares, unsigned(threads), 0);
  std::vector<std::thread> others;
  for (int64_t n = 1; n < threads; ++n) others.emplace_back(hope::work, &shares);
  hope::work(&shares);
  for (auto& thread : others) thread.join();
}
}
