// The inner gradient of a memory's hidden layer, clipped softly at norm 1; why: ../deep_memory/README.md.
#pragma once
#include "share.hpp"
#include "small.hpp"

namespace hope {

// The inner gradient y = r x, x = s phi' back, in place of back; r = (1 + ||x||^2)^-1/2 per column.
template <class T>
inline void soft_clip(int rows, int ld, T slope, T* back, int lda, const T* a, const T* s, T* r) {
  for (int c = 0; c < ld; c += W<T>) {
    vec<T> sum = {}, scale = load(s + c);
    for (int i = 0; i < rows; ++i) {
      T* p = back + std::ptrdiff_t(i) * ld + c;
      const vec<T> x = sloped<T>(load(p) * scale, load(a + std::ptrdiff_t(i) * lda + c), slope);
      store(p, x), sum += x * x;
    }
    for (int i = 0; i < W<T>; ++i) sum[i] = 1 / std::sqrt(1 + sum[i]);
    store(r + c, sum);
    for (int i = 0; i < rows; ++i) {
      T* p = back + std::ptrdiff_t(i) * ld + c;
      store(p, load(p) * sum);
    }
  }
}

// Gradients at back (in place), s and rate from the one at rate y.
template <class T>
inline void soft_clip_back(int rows, int ld, T slope, T* g, const T* y, int lda, const T* a, const T* s, const T* r,
                           const T* rate, T* g_s, T* g_rate) {
  for (int c = 0; c < ld; c += W<T>) {
    vec<T> felt = {};
    for (int i = 0; i < rows; ++i) felt += load(g + std::ptrdiff_t(i) * ld + c) * load(y + std::ptrdiff_t(i) * ld + c);
    const vec<T> scale = load(s + c), factor = load(r + c), strength = load(rate + c);
    for (int i = 0; i < rows; ++i) {
      const std::ptrdiff_t at = std::ptrdiff_t(i) * ld + c;
      const vec<T> x = (load(g + at) - load(y + at) * felt) * strength * factor * scale;
      store(g + at, sloped<T>(x, load(a + std::ptrdiff_t(i) * lda + c), slope));
    }
    store(g_s + c, strength * felt * factor * factor / scale), store(g_rate + c, felt);
  }
}

}  // namespace hope
