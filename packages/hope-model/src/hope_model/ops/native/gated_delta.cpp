// The gated delta rule as a kernel: gated_delta/chunk.py without momentum, one sequence and head at a time, so that the
// state and a chunk's matrices stay in the nearest caches. The backward redoes each chunk from its first state.
#include "share.hpp"
#include "small.hpp"

using namespace hope;

struct Args {
  int64_t N, K, V, T, C, half;  // half: products may be rounded to bfloat16
  void *q, *k, *w, *log_a, *b, *S;  // [N, K, T], [N, K, T], [N, V, T], [N, T], [N, T], [N, V, K]
  void *o, *S_end, *records;
  void *g_o, *g_S_end;
  void *g_q, *g_k, *g_w, *g_log_a, *g_b, *g_S;
};

namespace {

template <class T>
struct Work {
  int K, V, C, Cp, Kp;
  T *S, *q, *k, *w, *a, *b, *recalled, *right, *u, *gram, *solved, *square, *turned, *o, *k_T, *sent, *end;
  Decays<T> decay;

  Work(const Args& g, Scratch<T>& arena) : K(int(g.K)), V(int(g.V)), C(int(g.C)), Cp(padded<T>(C)), Kp(padded<T>(K)) {
    S = arena.take(V * Kp), q = arena.take(K * Cp), k = arena.take(K * Cp), w = arena.take(V * Cp);
    a = arena.take(Cp), b = arena.take(Cp), recalled = arena.take(V * Cp), right = arena.take(V * Cp);
    u = arena.take(V * Cp), o = arena.take(V * Cp), k_T = arena.take(C * Kp), sent = arena.take(V * Cp),
    end = arena.take(Cp);
    for (T** p : {&gram, &solved, &square, &turned, &decay.within, &decay.between}) *p = arena.take(C * Cp);
    decay.gamma = arena.take(Cp), decay.before = arena.take(Cp);
  }
};

template <class T>
void tokens_in(Work<T>& w, const Args& g, int64_t n, int64_t at) {
  rows_in<T>(w.K, w.C, w.Cp, static_cast<const T*>(g.q) + n * g.K * g.T + at, g.T, w.q);
  rows_in<T>(w.K, w.C, w.Cp, static_cast<const T*>(g.k) + n * g.K * g.T + at, g.T, w.k);
  rows_in<T>(w.V, w.C, w.Cp, static_cast<const T*>(g.w) + n * g.V * g.T + at, g.T, w.w);
  std::memcpy(w.b, static_cast<const T*>(g.b) + n * g.T + at, sizeof(T) * w.C);
  for (int t = 0; t < w.C; ++t) w.a[t] = std::exp(static_cast<const T*>(g.log_a)[n * g.T + at + t]);
}

// u (I + L) = w - b before (S k); and u times each token's share at the chunk's end.
template <class T>
void write(Work<T>& w) {
  const int Cp = w.Cp;
  decays(w.C, Cp, w.a, w.decay);
  mm<false, SET>(w.V, Cp, w.K, w.S, w.Kp, w.k, Cp, w.recalled, Cp);
  mm<true, SET>(w.C, Cp, w.K, w.k, Cp, w.k, Cp, w.gram, Cp);
  solve(w.C, Cp, w.gram, w.decay.between, w.b, w.square, w.solved);
  for (int v = 0; v < w.V; ++v)
    for (int c = 0; c < Cp; c += W<T>) {
      const int at = v * Cp + c;
      store(w.right + at, load(w.w + at) - load(w.b + c) * load(w.decay.before + c) * load(w.recalled + at));
    }
  mm<false, SET>(w.V, Cp, w.C, w.right, Cp, w.solved, Cp, w.u, Cp);
  for (int t = 0; t < w.C; ++t) w.end[t] = w.decay.within[t * Cp + w.C - 1];
  for (int v = 0; v < w.V; ++v)
    for (int c = 0; c < Cp; c += W<T>) store(w.sent + v * Cp + c, load(w.u + v * Cp + c) * load(w.end + c));
}

template <class T>
void forward(const Args& g, int64_t from, int64_t to) {
  halved = g.half;
  Scratch<T> arena;
  Work<T> w(g, arena);
  const int64_t chunks = g.T / g.C, state = g.V * g.K, record = int64_t(w.V) * w.Kp;
  for (int64_t n = from; n < to; ++n) {
    rows_in<T>(w.V, w.K, w.Kp, static_cast<const T*>(g.S) + n * state, g.K, w.S);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t at = chunk * g.C;
      tokens_in(w, g, n, at);
      if (g.records) std::memcpy(static_cast<T*>(g.records) + (n * chunks + chunk) * record, w.S, sizeof(T) * record);
      write(w);
      mm<false, SET>(w.V, w.Cp, w.K, w.S, w.Kp, w.q, w.Cp, w.o, w.Cp);
      scale_columns(w.V, w.Cp, w.o, w.decay.gamma);
      mm<true, SET>(w.C, w.Cp, w.K, w.k, w.Cp, w.q, w.Cp, w.square, w.Cp);
      times(w.C, w.Cp, w.square, w.decay.within);
      mm<false, ADD>(w.V, w.Cp, w.C, w.u, w.Cp, w.square, w.Cp, w.o, w.Cp);
      rows_out<T>(w.V, w.C, w.Cp, w.o, g.T, static_cast<T*>(g.o) + n * g.V * g.T + at);
      const T keep = w.decay.gamma[w.C - 1];
      each<T>(w.V, w.Kp, [&](std::ptrdiff_t i) { store(w.S + i, keep * load(w.S + i)); });
      transpose(w.K, w.C, w.k, w.Cp, w.k_T, w.Kp);
      mm<false, ADD>(w.V, w.K, w.C, w.sent, w.Cp, w.k_T, w.Kp, w.S, w.Kp);
    }
    rows_out<T>(w.V, w.K, w.Kp, w.S, g.K, static_cast<T*>(g.S_end) + n * state);
  }
}

template <class T>
struct Back {
  T *S, *q, *k, *o, *u, *r, *b, *log_a, *felt, *row, *T_x;
  Decays<T> decay;
  Squares<T> squares;

  Back(const Work<T>& w, Scratch<T>& arena) {
    S = arena.take(w.V * w.Kp), q = arena.take(w.K * w.Cp), k = arena.take(w.K * w.Cp), o = arena.take(w.V * w.Cp);
    u = arena.take(w.V * w.Cp), r = arena.take(w.V * w.Cp), felt = arena.take(std::max(w.K, w.V) * w.Cp);
    b = arena.take(w.Cp), log_a = arena.take(w.Cp), row = arena.take(w.Cp), T_x = arena.take(w.C * w.Kp);
    decay = {arena.take(w.Cp), arena.take(w.Cp), arena.take(w.C * w.Cp), arena.take(w.C * w.Cp)};
    squares = {arena.take(w.C * w.Cp), arena.take(w.C * w.Cp), arena.take(w.C * w.Cp)};
  }
};

// x (*) s per column to `out`.
template <class T>
void scaled(int rows, int ld, const T* x, const T* s, T* out) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < ld; c += W<T>) store(out + r * ld + c, load(x + r * ld + c) * load(s + c));
}

template <class T>
void chunk_back(Work<T>& w, Back<T>& b) {
  const int K = w.K, V = w.V, C = w.C, Cp = w.Cp, Kp = w.Kp;
  for (T* p : {b.decay.before, b.b, b.log_a}) std::memset(p, 0, sizeof(T) * Cp);
  for (T* p : {b.decay.within, b.decay.between}) std::memset(p, 0, sizeof(T) * C * Cp);
  // S' = gamma S + (u end) k^T
  mm<false, SET>(V, Cp, K, b.S, Kp, w.k, Cp, b.u, Cp);
  column_dots(V, Cp, b.u, w.u, b.row);
  for (int t = 0; t < C; ++t) b.decay.within[t * Cp + C - 1] = b.row[t];
  scale_columns(V, Cp, b.u, w.end);
  mm<true, SET>(K, Cp, V, b.S, Kp, w.sent, Cp, b.k, Cp);
  const T keep = w.decay.gamma[C - 1];
  vec<T> g_keep = {};
  each<T>(V, Kp, [&](std::ptrdiff_t i) {
    g_keep += load(b.S + i) * load(w.S + i);
    store(b.S + i, keep * load(b.S + i));
  });
  // o = gamma S q + u (k^T q (*) within)
  mm<true, SET>(K, Cp, V, w.S, Kp, b.o, Cp, b.q, Cp);
  column_dots(K, Cp, b.q, w.q, b.decay.gamma);
  b.decay.gamma[C - 1] += total<T>(g_keep);
  scale_columns(K, Cp, b.q, w.decay.gamma);
  scaled(V, Cp, b.o, w.decay.gamma, b.felt);
  transpose(K, C, w.q, Cp, b.T_x, Kp);
  mm<false, ADD>(V, K, C, b.felt, Cp, b.T_x, Kp, b.S, Kp);
  match_back(C, Cp, V, K, w.decay.within, b.squares, b.o, w.u, w.k, Cp, w.q, b.decay.within, b.q, b.k, b.u);
  // u (I + L) = w - b before S k
  solve_back(C, Cp, V, K, w.gram, w.solved, w.decay.between, w.b, b.squares, w.u, w.k, Cp, b.u, b.r, b.b,
             b.decay.between, b.k);
  column_dots(V, Cp, b.r, w.recalled, b.row);
  for (int t = 0; t < C; ++t) {
    b.b[t] -= w.decay.before[t] * b.row[t], b.decay.before[t] = -w.b[t] * b.row[t];
    b.row[t] = w.b[t] * w.decay.before[t];
  }
  scaled(V, Cp, b.r, b.row, b.felt);
  mm<true, SUB>(K, Cp, V, w.S, Kp, b.felt, Cp, b.k, Cp);
  transpose(K, C, w.k, Cp, b.T_x, Kp);
  mm<false, SUB>(V, K, C, b.felt, Cp, b.T_x, Kp, b.S, Kp);
  decays_back(C, Cp, w.decay, b.decay, b.log_a, b.row);
}

template <class T>
void backward(const Args& g, int64_t from, int64_t to) {
  halved = g.half;
  Scratch<T> arena;
  Work<T> w(g, arena);
  Back<T> b(w, arena);
  const int64_t chunks = g.T / g.C, state = g.V * g.K, record = int64_t(w.V) * w.Kp;
  for (int64_t n = from; n < to; ++n) {
    rows_in<T>(w.V, w.K, w.Kp, static_cast<const T*>(g.g_S_end) + n * state, g.K, b.S);
    for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
      const int64_t at = chunk * g.C, of_K = n * g.K * g.T + at, of_V = n * g.V * g.T + at, of_1 = n * g.T + at;
      tokens_in(w, g, n, at);
      std::memcpy(w.S, static_cast<const T*>(g.records) + (n * chunks + chunk) * record, sizeof(T) * record);
      write(w);
      rows_in<T>(w.V, w.C, w.Cp, static_cast<const T*>(g.g_o) + of_V, g.T, b.o);
      chunk_back(w, b);
      rows_out<T>(w.K, w.C, w.Cp, b.q, g.T, static_cast<T*>(g.g_q) + of_K);
      rows_out<T>(w.K, w.C, w.Cp, b.k, g.T, static_cast<T*>(g.g_k) + of_K);
      rows_out<T>(w.V, w.C, w.Cp, b.r, g.T, static_cast<T*>(g.g_w) + of_V);
      std::memcpy(static_cast<T*>(g.g_log_a) + of_1, b.log_a, sizeof(T) * w.C);
      std::memcpy(static_cast<T*>(g.g_b) + of_1, b.b, sizeof(T) * w.C);
    }
    rows_out<T>(w.V, w.K, w.Kp, b.S, g.K, static_cast<T*>(g.g_S) + n * state);
  }
}

}  // namespace

extern "C" {
int64_t gated_delta_arguments() { return sizeof(Args); }
int64_t gated_delta_records(int64_t bytes, int64_t chunks, int64_t V, int64_t K) {
  return chunks * V * (bytes == 4 ? padded<float>(int(K)) : padded<double>(int(K)));
}
void gated_delta_forward_f32(const Args* g, int64_t from, int64_t to) { forward<float>(*g, from, to); }
void gated_delta_forward_f64(const Args* g, int64_t from, int64_t to) { forward<double>(*g, from, to); }
void gated_delta_backward_f32(const Args* g, int64_t from, int64_t to) { backward<float>(*g, from, to); }
void gated_delta_backward_f64(const Args* g, int64_t from, int64_t to) { backward<double>(*g, from, to); }
}
