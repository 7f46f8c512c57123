// Products and elementwise work on matrices small enough for the nearest caches.
//
// A matrix is a pointer and a row length ("ld"), a multiple of the vector width W; what lies beyond its last column is
// zero and stays so. Tokens are columns, so that sums over a head's width run down vectors, not across them.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "half.hpp"

namespace hope {

#if defined(__AVX512F__)
constexpr int BYTES = 64, ROWS = 8;  // 8 x 2 sums of the product's tile, of 32 registers
#elif defined(__AVX__)
constexpr int BYTES = 32, ROWS = 6;  // 6 x 2, of 16
#elif defined(__aarch64__)
constexpr int BYTES = 16, ROWS = 8;  // of 32
#else
constexpr int BYTES = 16, ROWS = 4;
#endif

template <class T>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(BYTES)));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(BYTES)));
};
template <class T>
using vec = typename Vector<T>::type;
template <class T>
constexpr int W = BYTES / int(sizeof(T));

template <class T>
inline vec<T> load(const T* p) {
  vec<T> v;
  std::memcpy(&v, p, BYTES);
  return v;
}
template <class T>
inline void store(T* p, vec<T> v) {
  std::memcpy(p, &v, BYTES);
}
template <class T>
inline int padded(int n) {
  return (n + W<T> - 1) / W<T> * W<T>;
}

enum Into { SET, ADD, SUB };

template <class T, int M, int V, bool TA, Into INTO>
inline void tile(int K, const T* __restrict A, int lda, const T* __restrict B, int ldb, T* __restrict C, int ldc) {
  vec<T> sum[M][V] = {};
  for (int k = 0; k < K; ++k) {
    vec<T> b[V];
    for (int v = 0; v < V; ++v) b[v] = load(B + std::ptrdiff_t(k) * ldb + v * W<T>);
    for (int r = 0; r < M; ++r) {
      const T a = TA ? A[std::ptrdiff_t(k) * lda + r] : A[std::ptrdiff_t(r) * lda + k];
      for (int v = 0; v < V; ++v) sum[r][v] += a * b[v];
    }
  }
  for (int r = 0; r < M; ++r)
    for (int v = 0; v < V; ++v) {
      T* c = C + std::ptrdiff_t(r) * ldc + v * W<T>;
      if (INTO == SET) store(c, sum[r][v]);
      if (INTO == ADD) store(c, load(c) + sum[r][v]);
      if (INTO == SUB) store(c, load(c) - sum[r][v]);
    }
}

template <class T, int V, bool TA, Into INTO>
inline void panel(int M, int K, const T* A, int lda, const T* B, int ldb, T* C, int ldc) {
  int r = 0;
  auto a = [&](int row) { return TA ? A + row : A + std::ptrdiff_t(row) * lda; };
  auto c = [&](int row) { return C + std::ptrdiff_t(row) * ldc; };
  for (; r + ROWS <= M; r += ROWS) tile<T, ROWS, V, TA, INTO>(K, a(r), lda, B, ldb, c(r), ldc);
  if (ROWS > 4 && r + 4 <= M) tile<T, 4, V, TA, INTO>(K, a(r), lda, B, ldb, c(r), ldc), r += 4;
  for (; r + 2 <= M; r += 2) tile<T, 2, V, TA, INTO>(K, a(r), lda, B, ldb, c(r), ldc);
  for (; r < M; ++r) tile<T, 1, V, TA, INTO>(K, a(r), lda, B, ldb, c(r), ldc);
}

// C [M, N] (=, += or -=) A B with B [K, N]; A is [M, K], or [K, M] and transposed.
template <bool TA, Into INTO, class T>
inline void mm(int M, int N, int K, const T* A, int lda, const T* B, int ldb, T* C, int ldc) {
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
  if constexpr (sizeof(T) == 4)
    if (halved && M >= FEWEST) return half_mm<TA, int(INTO)>(M, N, K, A, lda, B, ldb, C, ldc);
#endif
  int n = 0;
  for (; n + 2 * W<T> <= padded<T>(N); n += 2 * W<T>) panel<T, 2, TA, INTO>(M, K, A, lda, B + n, ldb, C + n, ldc);
  for (; n < N; n += W<T>) panel<T, 1, TA, INTO>(M, K, A, lda, B + n, ldb, C + n, ldc);
}

// B [n, m] = A^T, A [m, n]; B's columns from m to the next whole vector are zero then.
template <class T>
inline void transpose(int m, int n, const T* __restrict A, int lda, T* __restrict B, int ldb) {
  constexpr int S = 8;
  if (m % W<T>)
    for (int j = 0; j < n; ++j) std::memset(B + std::ptrdiff_t(j) * ldb + m, 0, sizeof(T) * (padded<T>(m) - m));
  int i = 0;
  for (; i + S <= m; i += S) {
    int j = 0;
    for (; j + S <= n; j += S) {
      T block[S][S];
      for (int a = 0; a < S; ++a)
        for (int b = 0; b < S; ++b) block[b][a] = A[std::ptrdiff_t(i + a) * lda + j + b];
      for (int b = 0; b < S; ++b) std::memcpy(B + std::ptrdiff_t(j + b) * ldb + i, block[b], sizeof block[b]);
    }
    for (; j < n; ++j)
      for (int a = 0; a < S; ++a) B[std::ptrdiff_t(j) * ldb + i + a] = A[std::ptrdiff_t(i + a) * lda + j];
  }
  for (; i < m; ++i)
    for (int j = 0; j < n; ++j) B[std::ptrdiff_t(j) * ldb + i] = A[std::ptrdiff_t(i) * lda + j];
}

// f(offset) for every vector of a [rows, ld] matrix.
template <class T, class F>
inline void each(int rows, int ld, F f) {
  for (std::ptrdiff_t i = 0; i < std::ptrdiff_t(rows) * ld; i += W<T>) f(i);
}

// Sums down the rows of x (*) y, for every column.
template <class T>
inline void column_dots(int rows, int ld, const T* x, const T* y, T* out, Into into = SET) {
  for (int c = 0; c < ld; c += W<T>) {
    vec<T> sum = {};
    for (int r = 0; r < rows; ++r) sum += load(x + std::ptrdiff_t(r) * ld + c) * load(y + std::ptrdiff_t(r) * ld + c);
    store(out + c, into == SET ? sum : into == ADD ? load(out + c) + sum : load(out + c) - sum);
  }
}

template <class T>
inline T total(vec<T> v) {
  T sums[W<T>];
  store(sums, v);
#pragma GCC unroll 4
  for (int n = W<T> / 2; n; n /= 2)  // by halves: additions one after the other would wait for each other
    for (int i = 0; i < n; ++i) sums[i] += sums[i + n];
  return sums[0];
}

// x times the slope of (leaky) ReLU where its value is `at`; `slope`: below zero.
template <class T>
inline vec<T> sloped(vec<T> x, vec<T> at, T slope) {
  return at > 0 ? x : slope * x;
}

// out[c] = (eps + sum of squares down column c)^-1/2, for C columns; 0 beyond.
template <class T>
inline void inverse_norms(int rows, int ld, int C, const T* x, T eps, T* out) {
  column_dots(rows, ld, x, x, out);
  for (int c = 0; c < C; ++c) out[c] = 1 / std::sqrt(eps + out[c]);
  for (int c = C; c < ld; ++c) out[c] = 0;
}

template <class T>
inline void scale_columns(int rows, int ld, T* x, const T* s) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < ld; c += W<T>) {
      T* p = x + std::ptrdiff_t(r) * ld + c;
      store(p, load(p) * load(s + c));
    }
}

constexpr double SOFTENING = 0.01;  // as in ops/activations.py
constexpr double NORM_EPS = 1e-6;

// a = s phi(z), in place; phi has `slope` below zero; s = (SOFTENING + ||phi(z)||^2)^-1/2 per column.
template <class T>
inline void shrink(int rows, int ld, int C, T slope, T* z, T* s) {
  each<T>(rows, ld, [&](std::ptrdiff_t i) {
    const vec<T> x = load(z + i);
    store(z + i, x <= 0 ? slope * x : x);  // what is not a number stays so
  });
  inverse_norms<T>(rows, ld, C, z, T(SOFTENING), s);
  scale_columns(rows, ld, z, s);
}

// x / ||x|| per column, in place; the inverse norms to `inverse`.
template <class T>
inline void normalise(int rows, int ld, int C, T* x, T* inverse) {
  inverse_norms<T>(rows, ld, C, x, T(NORM_EPS), inverse);
  scale_columns(rows, ld, x, inverse);
}

// Gradient at z from those at a (in place) and at s (null: none; `s_columns` of it count).
template <class T>
inline void hidden_back(int rows, int ld, T slope, T* g, const T* a, const T* s, const T* g_s = nullptr,
                        int s_columns = 0) {
  for (int c = 0; c < ld; c += W<T>) {
    vec<T> pull = {}, scale = load(s + c);
    for (int r = 0; r < rows; ++r) pull += load(g + std::ptrdiff_t(r) * ld + c) * load(a + std::ptrdiff_t(r) * ld + c);
    if (g_s && c < s_columns) pull += scale * load(g_s + c);
    for (int r = 0; r < rows; ++r) {
      const std::ptrdiff_t i = std::ptrdiff_t(r) * ld + c;
      store(g + i, sloped<T>((load(g + i) - load(a + i) * pull) * scale, load(a + i), slope));
    }
  }
}

// Gradient at x from the one at unit = x / ||x||, in place.
template <class T>
inline void normalise_back(int rows, int ld, T* g, int ldu, const T* unit, const T* inverse) {
  for (int c = 0; c < ld; c += W<T>) {
    vec<T> pull = {}, scale = load(inverse + c);
    for (int r = 0; r < rows; ++r)
      pull += load(g + std::ptrdiff_t(r) * ld + c) * load(unit + std::ptrdiff_t(r) * ldu + c);
    for (int r = 0; r < rows; ++r) {
      T* p = g + std::ptrdiff_t(r) * ld + c;
      store(p, (load(p) - load(unit + std::ptrdiff_t(r) * ldu + c) * pull) * scale);
    }
  }
}

// X = (I + L)^-1 of strictly upper triangular L [C, C]; columns beyond C are zero.
template <class T>
inline void inverse(int C, int ld, const T* __restrict L, T* __restrict X) {
  for (int i = C - 1; i >= 0; --i) {  // row i: X_i = e_i - sum over j > i of L_ij X_j
    T* row = X + std::ptrdiff_t(i) * ld;
    const T* l = L + std::ptrdiff_t(i) * ld;
    for (int c = i / W<T> * W<T>; c < ld; c += W<T>) {
      vec<T> sum = {};
      for (int j = i + 1; j < C; ++j) sum -= l[j] * load(X + std::ptrdiff_t(j) * ld + c);
      store(row + c, sum);
    }
    for (int c = 0; c < i / W<T> * W<T>; ++c) row[c] = 0;
    row[i] = 1;
  }
}

// Products of retentions a_t = exp(log a_t) inside a chunk; see `gated_delta.chunk.Decays`.
template <class T>
struct Decays {
  T *gamma, *before, *within, *between;  // [C], [C], [C, C], [C, C]
};

template <class T>
inline void decays(int C, int ld, const T* a, Decays<T> d) {
  T product = 1;
  for (int t = 0; t < C; ++t) {
    d.before[t] = product;
    d.gamma[t] = product *= a[t];
  }
  for (int i = C - 1; i >= 0; --i) {  // a_{i+1} ... a_t = a_{i+1} (a_{i+2} ... a_t)
    T *row = d.within + std::ptrdiff_t(i) * ld, *between = d.between + std::ptrdiff_t(i) * ld;
    std::memset(row, 0, sizeof(T) * ld);
    std::memset(between, 0, sizeof(T) * ld);
    if (i + 1 < C) {
      const T next = a[i + 1];
      for (int t = i + 1; t < C; ++t) row[t] = next * row[ld + t];
    }
    row[i] = 1;
    for (int t = i + 1; t < C; ++t) between[t] = row[t - 1];
  }
}

// Adds to the gradient at log a what comes from the four products; `within` and `between` of the gradient are consumed.
template <class T>
inline void decays_back(int C, int ld, Decays<T> d, Decays<T> g, T* g_log_a, T* scratch) {
  T* sum = scratch;  // gradient at log a_1 + ... + log a_t
  for (int t = 0; t < C; ++t) {
    const T before = g.before[t] * d.before[t];
    sum[t] = g.gamma[t] * d.gamma[t] + before;
    g_log_a[t] -= before;
  }
  for (int i = 0; i < C; ++i) {
    T from = 0;
    for (int t = i; t < C; ++t) {
      const std::ptrdiff_t at = std::ptrdiff_t(i) * ld + t;
      const T w = g.within[at] * d.within[at], b = g.between[at] * d.between[at];
      sum[t] += w + b;
      g_log_a[t] -= b;
      from += w + b;
    }
    sum[i] -= from;
  }
  T after = 0;
  for (int t = C - 1; t >= 0; --t) g_log_a[t] += after += sum[t];
}

// Working matrices [C, Cp] of the two functions below.
template <class T>
struct Squares {
  T *match, *g_match, *turned;
};

// u (key^T x (*) within), backwards: adds to the gradients at `within`, x [inner, Cp], key [inner, Cp] and u [rows,
// Cp].
template <class T>
inline void match_back(int C, int Cp, int rows, int inner, const T* within, Squares<T> s, const T* g, const T* u,
                       const T* key, int ld, const T* x, T* g_within, T* g_x, T* g_key, T* g_u) {
  mm<true, SET>(C, Cp, inner, key, ld, x, Cp, s.match, Cp);
  mm<true, SET>(C, Cp, rows, u, Cp, g, Cp, s.g_match, Cp);
  each<T>(C, Cp, [&](std::ptrdiff_t i) {
    const vec<T> g_felt = load(s.g_match + i), felt = load(s.match + i), decay = load(within + i);
    store(g_within + i, load(g_within + i) + g_felt * felt);
    store(s.g_match + i, g_felt * decay), store(s.match + i, felt * decay);
  });
  mm<false, ADD>(inner, Cp, C, key, ld, s.g_match, Cp, g_x, Cp);
  transpose(C, C, s.g_match, Cp, s.turned, Cp);
  mm<false, ADD>(inner, Cp, C, x, Cp, s.turned, Cp, g_key, Cp);
  transpose(C, C, s.match, Cp, s.turned, Cp);
  mm<false, ADD>(rows, Cp, C, g, Cp, s.turned, Cp, g_u, Cp);
}

// (I + L)^-1, L = gram (*) between (*) b: the writes' triangular system; `L` is left in `scratch`.
template <class T>
inline void solve(int C, int Cp, const T* gram, const T* between, const T* b, T* scratch, T* solved) {
  for (int i = 0; i < C; ++i)
    for (int c = 0; c < Cp; c += W<T>)
      store(scratch + i * Cp + c, load(gram + i * Cp + c) * load(between + i * Cp + c) * load(b + c));
  inverse(C, Cp, scratch, solved);
}

// u (I + L) = r, backwards: g_r from the gradient at u; adds to those at b, `between` and key [inner, Cp].
template <class T>
inline void solve_back(int C, int Cp, int rows, int inner, const T* gram, const T* solved, const T* between, const T* b,
                       Squares<T> s, const T* u, const T* key, int ld, const T* g_u, T* g_r, T* g_b, T* g_between,
                       T* g_key) {
  transpose(C, C, solved, Cp, s.turned, Cp);
  mm<false, SET>(rows, Cp, C, g_u, Cp, s.turned, Cp, g_r, Cp);
  mm<true, SET>(C, Cp, rows, u, Cp, g_r, Cp, s.g_match, Cp);  // minus the gradient at L
  for (int c = 0; c < Cp; c += W<T>) {
    vec<T> by_b = {}, strength = load(b + c);
    for (int i = 0; i < C; ++i) {
      const int at = i * Cp + c;
      const vec<T> g = load(s.g_match + at), felt = load(gram + at) * g, decay = load(between + at);
      by_b += felt * decay;
      store(g_between + at, load(g_between + at) - felt * strength);
      store(s.g_match + at, g * decay * strength);
    }
    store(g_b + c, load(g_b + c) - by_b);
  }
  transpose(C, C, s.g_match, Cp, s.turned, Cp);
  each<T>(C, Cp, [&](std::ptrdiff_t i) { store(s.g_match + i, load(s.g_match + i) + load(s.turned + i)); });
  mm<false, SUB>(inner, Cp, C, key, ld, s.g_match, Cp, g_key, Cp);
}

// Between a tensor's rows and padded ones, whose pads another sequence may have left spoilt (0 times infinity).
template <class T>
inline void rows_in(int64_t rows, int n, int ld, const T* from, int64_t stride, T* to) {
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(to + r * ld, from + r * stride, sizeof(T) * n);
    if (n < ld) std::memset(to + r * ld + n, 0, sizeof(T) * (ld - n));
  }
}
template <class T>
inline void rows_out(int64_t rows, int n, int ld, const T* from, int64_t stride, T* to) {
  for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * stride, from + r * ld, sizeof(T) * n);
}

// x (*) y, in place.
template <class T>
inline void times(int rows, int ld, T* x, const T* y) {
  each<T>(rows, ld, [&](std::ptrdiff_t i) { store(x + i, load(x + i) * load(y + i)); });
}

template <class T>
inline T sigmoid(T x) {
  return 1 / (1 + std::exp(-x));
}

// A thread's working memory: pieces of zeros, freed together.
template <class T>
struct Scratch {
  std::vector<std::unique_ptr<T, decltype(&std::free)>> pieces;
  T* take(std::ptrdiff_t n) {
    const std::size_t bytes = (std::size_t(n) * sizeof(T) + 63) / 64 * 64;
    T* p = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (!p) std::abort();
    std::memset(p, 0, bytes);
    pieces.emplace_back(p, &std::free);
    return p;
  }
};

}  // namespace hope
