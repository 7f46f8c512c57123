// Products of operands rounded to bfloat16, summed in float32, where the processor has them; asked for by a call.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#include <immintrin.h>
#endif

namespace hope {

inline thread_local bool halved = false;  // whether products of this thread may be rounded

// Float32 within a scope: products of decays, whose errors would multiply.
struct Exact {
  const bool before = halved;
  Exact() { halved = false; }
  ~Exact() { halved = before; }
  Exact(const Exact&) = delete;
  Exact& operator=(const Exact&) = delete;
};

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
constexpr int FEWEST = 4;  // rows: below, packing costs more than is won

// A thread's packed operands.
struct Packed {
  uint32_t* pairs = nullptr;
  std::size_t room = 0;
  uint32_t* of(std::size_t n) {
    if (n > room) {
      std::free(pairs);
      room = (n + 1023) / 1024 * 1024;
      pairs = static_cast<uint32_t*>(std::aligned_alloc(64, room * sizeof(uint32_t)));
      if (!pairs) std::abort();
    }
    return pairs;
  }
  ~Packed() { std::free(pairs); }
};
inline thread_local Packed packed_left, packed_right;

inline __m512 masked(const float* p, int n) {
  return n >= 16 ? _mm512_loadu_ps(p) : n <= 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(__mmask16((1 << n) - 1), p);
}

// Rows 2k and 2k + 1 of X [K, N] side by side: [ceil(K / 2), N to whole vectors].
inline void pack_rows(int K, int N, const float* X, int ld, uint32_t* to, int to_ld) {
  alignas(64) static constexpr int16_t turns[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                    8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i turn = _mm512_load_si512(turns);
  for (int k = 0; k < K; k += 2)
    for (int c = 0; c < N; c += 16) {
      const float* p = X + std::ptrdiff_t(k) * ld + c;
      const __m512 low = masked(p, N - c), high = k + 1 < K ? masked(p + ld, N - c) : _mm512_setzero_ps();
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
      _mm512_store_si512(to + std::ptrdiff_t(k / 2) * to_ld + c, _mm512_permutexvar_epi16(turn, both));
    }
}

// Columns 2k and 2k + 1 of X [M, K] side by side: [M, to_ld], to_ld whole vectors.
inline void pack_columns(int M, int K, const float* X, int ld, uint32_t* to, int to_ld) {
  for (int r = 0; r < M; ++r)
    for (int k = 0; k < K; k += 32) {
      const float* p = X + std::ptrdiff_t(r) * ld + k;
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(masked(p + 16, K - k - 16), masked(p, K - k));
      _mm512_store_si512(to + std::ptrdiff_t(r) * to_ld + k / 2, both);
    }
}

template <int M, int V, bool TA, int INTO>
inline void half_tile(int pairs, const uint32_t* A, int lda, const uint32_t* B, int ldb, float* C, int ldc) {
  __m512 sum[M][V] = {};
  for (int k = 0; k < pairs; ++k) {
    __m512bh b[V];
    for (int v = 0; v < V; ++v) b[v] = (__m512bh)_mm512_load_si512(B + std::ptrdiff_t(k) * ldb + v * 16);
    for (int r = 0; r < M; ++r) {
      const uint32_t a = TA ? A[std::ptrdiff_t(k) * lda + r] : A[std::ptrdiff_t(r) * lda + k];
      const __m512bh all = (__m512bh)_mm512_set1_epi32(int(a));
      for (int v = 0; v < V; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], all, b[v]);
    }
  }
  for (int r = 0; r < M; ++r)
    for (int v = 0; v < V; ++v) {
      float* c = C + std::ptrdiff_t(r) * ldc + v * 16;
      const __m512 x = sum[r][v];
      _mm512_storeu_ps(c, INTO == 0 ? x : INTO == 1 ? _mm512_loadu_ps(c) + x : _mm512_loadu_ps(c) - x);
    }
}

template <int V, bool TA, int INTO>
inline void half_panel(int M, int pairs, const uint32_t* A, int lda, const uint32_t* B, int ldb, float* C, int ldc) {
  int r = 0;
  auto a = [&](int row) { return TA ? A + row : A + std::ptrdiff_t(row) * lda; };
  auto c = [&](int row) { return C + std::ptrdiff_t(row) * ldc; };
  for (; r + 8 <= M; r += 8) half_tile<8, V, TA, INTO>(pairs, a(r), lda, B, ldb, c(r), ldc);
  for (; r + 2 <= M; r += 2) half_tile<2, V, TA, INTO>(pairs, a(r), lda, B, ldb, c(r), ldc);
  for (; r < M; ++r) half_tile<1, V, TA, INTO>(pairs, a(r), lda, B, ldb, c(r), ldc);
}

// As `mm`; INTO 0, 1, 2: C =, += or -= A B.
template <bool TA, int INTO>
inline void half_mm(int M, int N, int K, const float* A, int lda, const float* B, int ldb, float* C, int ldc) {
  const int pairs = (K + 1) / 2, wide = (N + 15) / 16 * 16, left = ((TA ? M : pairs) + 15) / 16 * 16;
  uint32_t* right = packed_right.of(std::size_t(pairs) * wide);
  uint32_t* of_A = packed_left.of(std::size_t(TA ? pairs : M) * left);
  pack_rows(K, N, B, ldb, right, wide);
  TA ? pack_rows(K, M, A, lda, of_A, left) : pack_columns(M, K, A, lda, of_A, left);
  int n = 0;
  for (; n + 32 <= wide; n += 32) half_panel<2, TA, INTO>(M, pairs, of_A, left, right + n, wide, C + n, ldc);
  if (n < wide) half_panel<1, TA, INTO>(M, pairs, of_A, left, right + n, wide, C + n, ldc);
}
#endif

}  // namespace hope
