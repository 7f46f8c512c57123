// What happens to every number on its way into and out of a memory. Tensors of tokens have a head's width last, those
// of memories have tokens last; a tile of tokens is turned in the nearest cache.
#pragma once
#include "share.hpp"
#include "small.hpp"

namespace hope {

template <class T>
struct Bits;  // of a number: integers of its size, where its exponent begins, and a number whose last bit is worth 1
template <>
struct Bits<float> {
  typedef int32_t type __attribute__((vector_size(BYTES)));
  static constexpr int exponent = 23, terms = 7;
  static constexpr float one = 12582912.f, most = 87.f, high = 0.693359375f, low = -2.12194440e-4f;
};
template <>
struct Bits<double> {
  typedef int64_t type __attribute__((vector_size(BYTES)));
  static constexpr int exponent = 52, terms = 13;
  static constexpr double one = 6755399441055744., most = 707., high = 6.93145751953125e-1,
                          low = 1.42860682030941723e-6;
};

template <class T>
struct Series {  // of exp: 1 / k!
  T of[Bits<T>::terms + 1] = {1};
  constexpr Series() {
    for (int k = 1; k <= Bits<T>::terms; ++k) of[k] = of[k - 1] / k;
  }
};

// exp(x) = 2^n exp(r), |r| <= log(2) / 2, by its series; x is cut to +-most. The library's exp takes one number a time.
template <class T>
inline vec<T> exponential(vec<T> x) {
  using B = Bits<T>;
  using I = typename B::type;
  const vec<T> most = vec<T>{} + B::most, one = vec<T>{} + B::one;
  x = x > most ? most : x;
  x = x < -most ? -most : x;
  const vec<T> shifted = x * T(1.44269504088896340736) + one, n = shifted - one;
  const vec<T> r = (x - n * B::high) - n * B::low;
  constexpr Series<T> series;
  vec<T> sum = vec<T>{} + series.of[B::terms];
#pragma GCC unroll 16
  for (int k = B::terms - 1; k >= 0; --k) sum = series.of[k] + sum * r;
  return (vec<T>)((I)sum + (((I)shifted - (I)one) << B::exponent));
}

template <class T>
inline vec<T> sigmoid(vec<T> x) {
  return 1 / (1 + exponential<T>(-x));
}

// A number of half a float's bits. Its arithmetic is float's: tokens lie in it, nothing is added up in it.
struct bfloat16 {
  uint16_t bits;
};
static_assert(sizeof(bfloat16) == 2, "an array of them is torch's");

typedef uint16_t Halves __attribute__((vector_size(BYTES / 2)));
typedef uint32_t Words __attribute__((vector_size(BYTES)));

inline vec<float> widened(Halves h) { return (vec<float>)(__builtin_convertvector(h, Words) << 16); }

// To the nearest; of two, to the even one; what is not a number stays so.
inline Halves narrowed(vec<float> v) {
  const Words w = (Words)v, rounded = w + 0x7fff + (w >> 16 & 1), quiet = w | 0x400000;
  return __builtin_convertvector((v == v ? rounded : quiet) >> 16, Halves);
}

// Columns [c, c + n): a whole vector, or what is left of a row.
template <class T>
inline vec<T> in(const T* p, int n) {
  if (n == W<T>) return load(p);
  vec<T> v = {};
  std::memcpy(&v, p, sizeof(T) * n);
  return v;
}
template <class T>
inline void out(T* p, vec<T> v, int n) {
  if (n == W<T>) return store(p, v);
  std::memcpy(p, &v, sizeof(T) * n);
}
inline vec<float> in(const bfloat16* p, int n) {
  Halves h = {};
  std::memcpy(&h, p, n == W<float> ? sizeof h : sizeof(bfloat16) * n);
  return widened(h);
}
inline void out(bfloat16* p, vec<float> v, int n) {
  const Halves h = narrowed(v);
  std::memcpy(p, &h, n == W<float> ? sizeof h : sizeof(bfloat16) * n);
}
template <class T, class F>
inline void columns(int64_t D, F f) {
  int64_t c = 0;
  for (; c + W<T> <= D; c += W<T>) f(c, W<T>);
  if (c < D) f(c, int(D - c));
}

constexpr int TILE = 64;  // tokens

// f(t, n): tokens [t, t + n).
template <class F>
inline void tiles(int64_t T, F f) {
  for (int64_t t = 0; t < T; t += TILE) f(t, int(std::min<int64_t>(TILE, T - t)));
}

// n tokens of a [d, T] tensor, tokens first, and back; `turned` has room for [d, TILE].
template <class T>
inline void tokens_in(int n, int d, const T* from, int64_t length, T* turned, T* to, int ld) {
  for (int r = 0; r < d; ++r) std::memcpy(turned + r * TILE, from + r * length, sizeof(T) * n);
  transpose(d, n, turned, TILE, to, ld);
}
template <class T>
inline void tokens_out(int n, int d, const T* from, int ld, T* turned, int64_t length, T* to) {
  transpose(n, d, from, ld, turned, TILE);
  for (int r = 0; r < d; ++r) std::memcpy(to + r * length, turned + r * TILE, sizeof(T) * n);
}

}  // namespace hope
