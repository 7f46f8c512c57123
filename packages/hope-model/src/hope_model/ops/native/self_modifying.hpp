// Self-modifying Titans as a kernel, a chunk forward: R stable (leaky) ReLU memories that make their own keys, values and
// gates.
//
// The same as written_projection.py and written_step.py, one sequence and head at a time, so that weights and a chunk's
// matrices stay in the nearest caches; derivation in ../deep_memory/README.md. The backward keeps the first weights of
// every second chunk, and redoes two chunks at a time. g_x is the gradient at x; matrices are [rows, columns], tokens are columns.
#pragma once
#include "soft_clip.hpp"

using namespace hope;

struct Args {
  // F memories that project (at least 4; where own, the R that are written); half: products may be rounded to bfloat16
  int64_t N, H, R, F, d, m, T, C, own, half;
  double eta_max, slope;  // slope: of the activation below zero
  void *x, *q, *output, *W2, *W1, *O2, *O1, *F2, *F1, *readers, *bias, *scale, *share;
  void *o, *W2_end, *W1_end, *eta, *alpha, *records;
  void *g_o, *g_W2_end, *g_W1_end;
  void *g_x, *g_q, *g_output, *g_W2, *g_W1, *g_O2, *g_O1, *g_F2, *g_F1, *g_readers, *g_bias, *g_scale, *g_share;
};

namespace {

constexpr int PROJECT = 4;  // k, v, eta, alpha: the first memories of BANK
constexpr int PAIR = 2;     // chunks that share a record

struct Sizes {
  int R, F, d, m, C, Cp, Q, dp, mp;  // padded widths; Q: keys and values side by side
  int64_t bank, reads;  // numbers of a record's two parts
  int64_t records(int64_t chunks) const { return (chunks - 1) / PAIR * bank + chunks * reads; }
};

template <class T>
Sizes sizes(int64_t R, int64_t F, int64_t d, int64_t m, int64_t C) {
  Sizes s{int(R),
          int(F),
          int(d),
          int(m),
          int(C),
          padded<T>(int(C)),
          2 * padded<T>(int(C)),
          padded<T>(int(d)),
          padded<T>(int(m)),
          0,
          0};
  s.bank = int64_t(R) * (m * s.dp + d * s.mp), s.reads = (m + 1) * s.Cp;
  return s;
}

template <class T>
struct Weights {
  T *W2, *W1;  // [R m, dp], [R d, mp]
};

template <class T>
struct Work : Sizes {
  T slope;
  Weights<T> bank, first, project;
  T *x, *q, *kT;                             // [d, Cp], [d, Cp], [C, dp]
  T *a_x, *s_x, *kv, *kv_inverse, *c, *raw;  // projection
  T *sigma, *eta, *alpha, *output, *beta;    // gates: [C], [R, Cp], [C], [C], [R, Cp]
  Decays<T> decay;
  T *a, *s, *y, *target_inverse, *moved, *error, *inner, *r_inner;  // hidden
  T *u2, *u1, *gram, *solved, *a_q, *s_q;                // writes, reads
  T *right, *square, *z, *z2, *wide;                     // scratch

  Work(const Sizes& from, Scratch<T>& arena, const Args& g) : Sizes(from), slope(T(g.slope)) {
    const int64_t square_size = int64_t(C) * Cp, most = std::max(std::max(d, m), C);
    bank = weights(arena, R);
    first = weights(arena, R);
    project = g.own ? bank : weights(arena, F);
    x = arena.take(d * Cp), q = arena.take(d * Cp), kT = arena.take(int64_t(C) * dp);
    a_x = arena.take(PROJECT * m * Cp), s_x = arena.take(PROJECT * Cp), kv = arena.take(d * Q),
    kv_inverse = arena.take(Q);
    c = arena.take(2 * mp), raw = arena.take(2 * Cp);
    sigma = arena.take(Cp), eta = arena.take(R * Cp), alpha = arena.take(Cp), output = arena.take(Cp);
    beta = arena.take(R * Cp);
    decay = {arena.take(Cp), arena.take(Cp), arena.take(square_size), arena.take(square_size)};
    a = arena.take(int64_t(R) * m * Q), s = arena.take(R * Q), y = arena.take(int64_t(R) * d * Q);
    target_inverse = arena.take(R * Cp), moved = arena.take(int64_t(R) * d * Cp),
    error = arena.take(int64_t(R) * d * Cp);
    inner = arena.take(int64_t(R) * m * Cp), r_inner = arena.take(R * Cp);
    u2 = arena.take(int64_t(R) * m * Cp), u1 = arena.take(int64_t(R) * d * Cp);
    gram = arena.take(R * square_size), solved = arena.take(R * square_size);
    a_q = arena.take(m * Cp), s_q = arena.take(Cp);
    right = arena.take(d * Cp), square = arena.take(square_size);
    z = arena.take(most * std::max(Cp, std::max(dp, mp))), z2 = arena.take(most * std::max(Cp, std::max(dp, mp)));
    wide = arena.take(int64_t(2) * Cp * std::max(dp, mp));
  }
  Weights<T> weights(Scratch<T>& arena, int count) {
    return {arena.take(int64_t(count) * m * dp), arena.take(int64_t(count) * d * mp)};
  }
};

template <class T>
void weights_in(const Sizes& s, int count, const void* W2, const void* W1, int64_t n, Weights<T> to) {
  const int64_t size = int64_t(count) * s.m * s.d;
  rows_in<T>(int64_t(count) * s.m, s.d, s.dp, static_cast<const T*>(W2) + n * size, s.d, to.W2);
  rows_in<T>(int64_t(count) * s.d, s.m, s.mp, static_cast<const T*>(W1) + n * size, s.m, to.W1);
}
template <class T>
void weights_out(const Sizes& s, int count, Weights<T> from, void* W2, void* W1, int64_t n) {
  const int64_t size = int64_t(count) * s.m * s.d;
  rows_out<T>(int64_t(count) * s.m, s.d, s.dp, from.W2, s.d, static_cast<T*>(W2) + n * size);
  rows_out<T>(int64_t(count) * s.d, s.m, s.mp, from.W1, s.m, static_cast<T*>(W1) + n * size);
}

// Constants of one head.
template <class T>
struct Head {
  const T *readers, *bias, *scale, *share;
  Head(const Args& g, int64_t n)
      : readers(static_cast<const T*>(g.readers) + n % g.H * 2 * g.d),
        bias(static_cast<const T*>(g.bias) + n % g.H * 2),
        scale(static_cast<const T*>(g.scale) + n % g.H * g.R),
        share(static_cast<const T*>(g.share) + n % g.H * g.R) {}
};

// Keys, values and gates that the memories make of x.
template <class T>
void project(Work<T>& w, const Head<T>& head, T eta_max) {
  const int d = w.d, m = w.m, C = w.C, Cp = w.Cp, Q = w.Q, mp = w.mp;
  mm<false, SET>(PROJECT * m, Cp, d, w.project.W2, w.dp, w.x, Cp, w.a_x, Cp);
  for (int n = 0; n < PROJECT; ++n) shrink(m, Cp, Cp, w.slope, w.a_x + n * m * Cp, w.s_x + n * Cp);
  for (int n = 0; n < 2; ++n) {
    for (int v = 0; v < d; ++v) std::memcpy(w.kv + v * Q + n * Cp, w.x + v * Cp, sizeof(T) * Cp);
    mm<false, ADD>(d, Cp, m, w.project.W1 + int64_t(n) * d * mp, mp, w.a_x + n * m * Cp, Cp, w.kv + n * Cp, Q);
  }
  normalise(d, Q, Q, w.kv, w.kv_inverse);
  transpose(d, C, w.kv, Q, w.kT, w.dp);
  for (int n = 0; n < 2; ++n) {
    T *c = w.c + n * mp, *raw = w.raw + n * Cp;
    mm<false, SET>(1, mp, d, head.readers + n * d, d, w.project.W1 + int64_t(2 + n) * d * mp, mp, c, mp);
    mm<false, SET>(1, Cp, d, head.readers + n * d, d, w.x, Cp, raw, Cp);
    mm<false, ADD>(1, Cp, m, c, mp, w.a_x + (2 + n) * m * Cp, Cp, raw, Cp);
  }
  for (int t = 0; t < C; ++t) {
    w.sigma[t] = sigmoid(w.raw[t] + head.bias[0]);
    w.alpha[t] = sigmoid(w.raw[Cp + t] + head.bias[1]);
    for (int r = 0; r < w.R; ++r) {
      w.eta[r * Cp + t] = head.scale[r] * eta_max * w.sigma[t];
      w.beta[r * Cp + t] = w.alpha[t] * w.output[t] * head.share[r];
    }
  }
  decays(C, Cp, w.alpha, w.decay);
}

// What the chunk's writes are: u2, u1 and all that leads to them.
template <class T>
void write(Work<T>& w) {
  const int d = w.d, m = w.m, C = w.C, Cp = w.Cp, Q = w.Q, mp = w.mp;
  mm<false, SET>(w.R * m, Q, d, w.bank.W2, w.dp, w.kv, Q, w.a, Q);
  for (int r = 0; r < w.R; ++r) {
    T *a = w.a + int64_t(r) * m * Q, *s = w.s + r * Q, *y = w.y + int64_t(r) * d * Q;
    T *moved = w.moved + int64_t(r) * d * Cp, *error = w.error + int64_t(r) * d * Cp;
    T *inner = w.inner + int64_t(r) * m * Cp, *u2 = w.u2 + int64_t(r) * m * Cp;
    T *gram = w.gram + int64_t(r) * C * Cp, *solved = w.solved + int64_t(r) * C * Cp;
    const T *W1 = w.bank.W1 + int64_t(r) * d * mp, *O1 = w.first.W1 + int64_t(r) * d * mp;
    const T *eta = w.eta + r * Cp, *beta = w.beta + r * Cp, *before = w.decay.before;
    shrink(m, Q, Q, w.slope, a, s);
    mm<false, SET>(d, Q, m, W1, mp, a, Q, y, Q);
    mm<false, SET>(d, Cp, m, O1, mp, a, Q, moved, Cp);
    for (int c = 0; c < Cp; c += W<T>) {  // targets M(v) / ||M(v)||, error M(k) - target, r1
      vec<T> sum = {};
      for (int v = 0; v < d; ++v) {
        T* h = y + v * Q + Cp + c;
        const vec<T> x = load(h) + load(w.kv + v * Q + Cp + c);
        store(h, x), sum += x * x;
      }
      for (int i = 0; i < W<T>; ++i) sum[i] = 1 / std::sqrt(T(NORM_EPS) + sum[i]);
      store(w.target_inverse + r * Cp + c, sum);
      const vec<T> strength = load(beta + c), gone = T(1) - load(before + c);
      for (int v = 0; v < d; ++v) {
        const vec<T> target = load(y + v * Q + Cp + c) * sum, recalled = load(y + v * Q + c);
        const vec<T> e = recalled - target + load(w.kv + v * Q + c), o = recalled - load(moved + v * Cp + c);
        store(y + v * Q + Cp + c, target), store(error + v * Cp + c, e), store(moved + v * Cp + c, o);
        store(w.right + v * Cp + c, strength * (gone * o - e));
      }
    }
    mm<true, SET>(m, Cp, d, W1, mp, error, Cp, inner, Cp);
    soft_clip(m, Cp, w.slope, inner, Q, a, s, w.r_inner + r * Cp);
    for (int i = 0; i < m; ++i)
      for (int c = 0; c < Cp; c += W<T>) store(u2 + i * Cp + c, -load(eta + c) * load(inner + i * Cp + c));
    mm<true, SET>(C, Cp, m, a, Q, a, Q, gram, Cp);
    solve(C, Cp, gram, w.decay.between, beta, w.square, solved);
    mm<false, SET>(d, Cp, C, w.right, Cp, solved, Cp, w.u1 + int64_t(r) * d * Cp, Cp);
  }
}

// gamma W x + (1 - gamma) O x to `out`.
template <class T>
void state_read(const Work<T>& w, int rows, int inner, const T* S, const T* O, int ld, const T* x, T* out, T* scratch) {
  mm<false, SET>(rows, w.Cp, inner, O, ld, x, w.Cp, out, w.Cp);
  mm<false, SET>(rows, w.Cp, inner, S, ld, x, w.Cp, scratch, w.Cp);
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < w.Cp; c += W<T>) {
      T* p = out + r * w.Cp + c;
      store(p, load(p) + load(w.decay.gamma + c) * (load(scratch + r * w.Cp + c) - load(p)));
    }
}

template <class T>
struct Last {  // of the memory that is read
  T *W2, *W1, *O2, *O1, *a, *u2, *u1;
  explicit Last(Work<T>& w) {
    const int64_t r = w.R - 1;
    W2 = w.bank.W2 + r * w.m * w.dp, W1 = w.bank.W1 + r * w.d * w.mp;
    O2 = w.first.W2 + r * w.m * w.dp, O1 = w.first.W1 + r * w.d * w.mp;
    a = w.a + r * w.m * w.Q, u2 = w.u2 + r * w.m * w.Cp, u1 = w.u1 + r * w.d * w.Cp;
  }
};

// Token-exact reads of the last memory: [d, Cp] to w.z.
template <class T>
void read(Work<T>& w) {
  const int d = w.d, m = w.m, C = w.C, Cp = w.Cp;
  Last<T> last(w);
  state_read(w, m, d, last.W2, last.O2, w.dp, w.q, w.a_q, w.z2);
  mm<true, SET>(C, Cp, d, w.kv, w.Q, w.q, Cp, w.square, Cp);
  times(C, Cp, w.square, w.decay.within);
  mm<false, ADD>(m, Cp, C, last.u2, Cp, w.square, Cp, w.a_q, Cp);
  shrink(m, Cp, Cp, w.slope, w.a_q, w.s_q);
  state_read(w, d, m, last.W1, last.O1, w.mp, w.a_q, w.z, w.z2);
  mm<true, SET>(C, Cp, m, last.a, w.Q, w.a_q, Cp, w.square, Cp);
  times(C, Cp, w.square, w.decay.within);
  mm<false, ADD>(d, Cp, C, last.u1, Cp, w.square, Cp, w.z, Cp);
  each<T>(d, Cp, [&](std::ptrdiff_t i) { store(w.z + i, load(w.z + i) + load(w.q + i)); });
}

// u times each token's share at the chunk's end.
template <class T>
void sent(const Work<T>& w, int rows, const T* u, T* out) {
  T* end = out + int64_t(rows) * w.Cp;  // a row behind
  std::memset(end, 0, sizeof(T) * w.Cp);
  for (int t = 0; t < w.C; ++t) end[t] = w.decay.within[t * w.Cp + w.C - 1];
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < w.Cp; c += W<T>) store(out + r * w.Cp + c, load(u + r * w.Cp + c) * load(end + c));
}

// bank = keep bank + (1 - keep) O + (u end) k^T, from w's chunk.
template <class T>
void advance(Work<T>& w, Weights<T> bank, T* scratch) {
  const T keep = w.decay.gamma[w.C - 1];
  auto pull = [&](int64_t rows, int ld, T* S, const T* O) {
    for (int64_t i = 0; i < rows * ld; i += W<T>) store(S + i, load(O + i) + keep * (load(S + i) - load(O + i)));
  };
  pull(int64_t(w.R) * w.m, w.dp, bank.W2, w.first.W2);
  pull(int64_t(w.R) * w.d, w.mp, bank.W1, w.first.W1);
  sent(w, w.R * w.m, w.u2, scratch);
  mm<false, ADD>(w.R * w.m, w.d, w.C, scratch, w.Cp, w.kT, w.dp, bank.W2, w.dp);
  sent(w, w.R * w.d, w.u1, scratch);
  for (int r = 0; r < w.R; ++r) {
    transpose(w.m, w.C, w.a + int64_t(r) * w.m * w.Q, w.Q, w.wide, w.mp);
    mm<false, ADD>(w.d, w.m, w.C, scratch + int64_t(r) * w.d * w.Cp, w.Cp, w.wide, w.mp,
                   bank.W1 + int64_t(r) * w.d * w.mp, w.mp);
  }
}

template <class T>
void copy_weights(const Sizes& s, Weights<T> from, Weights<T> to) {
  std::memcpy(to.W2, from.W2, sizeof(T) * s.R * s.m * s.dp), std::memcpy(to.W1, from.W1, sizeof(T) * s.R * s.d * s.mp);
}

// A record for the backward: what the last memory was read with in a chunk, and weights at the start of a pair of chunks.
// Of the first pair those are an input, which is there anyway.
template <class T>
struct Record {
  Weights<T> bank;
  T* read;
  Record(const Sizes& s, void* records, int64_t n, int64_t chunks, int64_t chunk) {
    T* own = static_cast<T*>(records) + n * s.records(chunks);
    read = own + chunk * s.reads;
    bank.W2 = own + chunks * s.reads + (chunk / PAIR - 1) * s.bank;  // none of chunk 0
    bank.W1 = bank.W2 + int64_t(s.R) * s.m * s.dp;
  }
};
template <class T>
void keep_read(const Work<T>& w, T* to) {
  std::memcpy(to, w.a_q, sizeof(T) * w.m * w.Cp), std::memcpy(to + w.m * w.Cp, w.s_q, sizeof(T) * w.Cp);
}
template <class T>
void restore_read(Work<T>& w, const T* from) {
  std::memcpy(w.a_q, from, sizeof(T) * w.m * w.Cp), std::memcpy(w.s_q, from + w.m * w.Cp, sizeof(T) * w.Cp);
}

// First weights, and those that project where they are others.
template <class T>
void begin(Work<T>& w, const Args& g, int64_t n) {
  weights_in<T>(w, w.R, g.O2, g.O1, n % g.H, w.first);
  if (!g.own) weights_in<T>(w, w.F, g.F2, g.F1, n, w.project);
}

// x, q and the output strength of a chunk.
template <class T>
void tokens_in(Work<T>& w, const Args& g, int64_t n, int64_t chunk) {
  const int64_t at = n * g.d * g.T + chunk * g.C;
  rows_in<T>(w.d, w.C, w.Cp, static_cast<const T*>(g.x) + at, g.T, w.x);
  rows_in<T>(w.d, w.C, w.Cp, static_cast<const T*>(g.q) + at, g.T, w.q);
  std::memcpy(w.output, static_cast<const T*>(g.output) + n * g.T + chunk * g.C, sizeof(T) * w.C);
}

}  // namespace
