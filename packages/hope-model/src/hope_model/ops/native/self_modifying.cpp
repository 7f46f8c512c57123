// Self-modifying Titans as a kernel: the backward of a chunk, the loops over chunks, and what Python calls.
#include "self_modifying.hpp"

namespace {

template <class T>
struct Back {
  Weights<T> bank, first, project;  // gradients, summed over chunks
  Decays<T> decay;
  T *x, *q, *kv, *k, *o, *a_q, *z, *a_k, *u2, *u1, *wide, *sent, *pair, *g_s, *eta, *beta, *log_a, *raw, *c, *row;
  Squares<T> squares;

  Back(const Work<T>& w, Scratch<T>& arena, bool own) {
    const int64_t square_size = int64_t(w.C) * w.Cp, most = std::max(w.d, w.m);
    auto weights = [&](int count) {
      return Weights<T>{arena.take(int64_t(count) * w.m * w.dp), arena.take(int64_t(count) * w.d * w.mp)};
    };
    bank = weights(w.R), first = weights(w.R), project = own ? bank : weights(w.F);
    decay = {arena.take(w.Cp), arena.take(w.Cp), arena.take(square_size), arena.take(square_size)};
    x = arena.take(w.d * w.Cp), q = arena.take(w.d * w.Cp), kv = arena.take(w.d * w.Q), k = arena.take(w.d * w.Cp);
    o = arena.take(w.d * w.Cp), a_q = arena.take(most * w.Cp), z = arena.take(PROJECT * most * w.Cp);
    a_k = arena.take(int64_t(w.R) * w.m * w.Cp);
    u2 = arena.take(int64_t(w.R) * w.m * w.Cp), u1 = arena.take(int64_t(w.R) * w.d * w.Cp);
    wide = arena.take(int64_t(w.Q) * std::max(w.dp, w.mp)), sent = arena.take((int64_t(w.R) * most + 1) * w.Cp);
    pair = arena.take(most * w.Q), g_s = arena.take(w.Q);
    eta = arena.take(w.R * w.Cp), beta = arena.take(w.R * w.Cp), log_a = arena.take(w.Cp), raw = arena.take(2 * w.Cp);
    c = arena.take(2 * w.mp), row = arena.take(2 * w.Cp);
    squares = {arena.take(square_size), arena.take(square_size), arena.take(square_size)};
  }
};

// out = gamma S x + (1 - gamma) O x, backwards: adds to the gradients at S, O and gamma; that at x to g_x.
template <class T>
void state_read_back(const Work<T>& w, Back<T>& b, int rows, int inner, const T* g, const T* x, const T* S, const T* O,
                     int ld, T* g_x, T* g_S, T* g_O) {
  const int Cp = w.Cp;
  T *by_state = b.pair, *g_state = b.sent, *x_T = b.wide;
  mm<true, SET>(inner, Cp, rows, O, ld, g, Cp, g_x, Cp);
  mm<true, SET>(inner, Cp, rows, S, ld, g, Cp, by_state, Cp);
  for (int c = 0; c < Cp; c += W<T>) {
    vec<T> sum = {}, gamma = load(w.decay.gamma + c);
    for (int i = 0; i < inner; ++i) {
      T* p = g_x + i * Cp + c;
      const vec<T> moved = load(by_state + i * Cp + c) - load(p);
      sum += moved * load(x + i * Cp + c);
      store(p, load(p) + gamma * moved);
    }
    store(b.decay.gamma + c, load(b.decay.gamma + c) + sum);
    for (int r = 0; r < rows; ++r) store(g_state + r * Cp + c, load(g + r * Cp + c) * gamma);
  }
  transpose(inner, w.C, x, Cp, x_T, ld);
  mm<false, ADD>(rows, inner, w.C, g_state, Cp, x_T, ld, g_S, ld);
  mm<false, ADD>(rows, inner, w.C, g, Cp, x_T, ld, g_O, ld);
  mm<false, SUB>(rows, inner, w.C, g_state, Cp, x_T, ld, g_O, ld);
}

// W' = keep W + (1 - keep) O + (u end) k^T of both layers; sets the gradients at u2, u1, k and a_k.
template <class T>
void advance_back(Work<T>& w, Back<T>& b) {
  const int d = w.d, m = w.m, C = w.C, Cp = w.Cp, mp = w.mp;
  T* g_end = b.row;
  mm<false, SET>(w.R * m, Cp, d, b.bank.W2, w.dp, w.kv, w.Q, b.u2, Cp);
  for (int r = 0; r < w.R; ++r)
    mm<false, SET>(d, Cp, m, b.bank.W1 + int64_t(r) * d * mp, mp, w.a + int64_t(r) * m * w.Q, w.Q,
                   b.u1 + int64_t(r) * d * Cp, Cp);
  column_dots(w.R * m, Cp, b.u2, w.u2, g_end);
  column_dots(w.R * d, Cp, b.u1, w.u1, g_end, ADD);
  sent(w, w.R * m, b.u2, b.sent);
  std::memcpy(b.u2, b.sent, sizeof(T) * w.R * m * Cp);
  sent(w, w.R * d, b.u1, b.sent);
  std::memcpy(b.u1, b.sent, sizeof(T) * w.R * d * Cp);
  sent(w, w.R * m, w.u2, b.sent);
  mm<true, SET>(d, Cp, w.R * m, b.bank.W2, w.dp, b.sent, Cp, b.k, Cp);
  sent(w, w.R * d, w.u1, b.sent);
  for (int r = 0; r < w.R; ++r)
    mm<true, SET>(m, Cp, d, b.bank.W1 + int64_t(r) * d * mp, mp, b.sent + int64_t(r) * d * Cp, Cp,
                  b.a_k + int64_t(r) * m * Cp, Cp);
  const T keep = w.decay.gamma[C - 1];
  vec<T> g_keep = {};
  auto pull = [&](int64_t rows, int ld, T* g, T* g_O, const T* S, const T* O) {
    for (int64_t i = 0; i < rows * ld; i += W<T>) {
      const vec<T> whole = load(g + i), kept = whole * keep;
      g_keep += whole * (load(S + i) - load(O + i));
      store(g_O + i, load(g_O + i) + (whole - kept)), store(g + i, kept);
    }
  };
  pull(int64_t(w.R) * m, w.dp, b.bank.W2, b.first.W2, w.bank.W2, w.first.W2);
  pull(int64_t(w.R) * d, mp, b.bank.W1, b.first.W1, w.bank.W1, w.first.W1);
  b.decay.gamma[C - 1] += total<T>(g_keep);
  for (int t = 0; t < C; ++t) b.decay.within[t * Cp + C - 1] += g_end[t];
}

template <class T>
void read_back(Work<T>& w, Back<T>& b) {
  const int d = w.d, m = w.m, Cp = w.Cp;
  const int64_t r = w.R - 1;
  Last<T> last(w);
  T *g_W2 = b.bank.W2 + r * m * w.dp, *g_W1 = b.bank.W1 + r * d * w.mp;
  T *g_O2 = b.first.W2 + r * m * w.dp, *g_O1 = b.first.W1 + r * d * w.mp;
  state_read_back(w, b, d, m, b.o, w.a_q, last.W1, last.O1, w.mp, b.a_q, g_W1, g_O1);
  match_back(w.C, Cp, d, m, w.decay.within, b.squares, b.o, last.u1, last.a, w.Q, w.a_q, b.decay.within, b.a_q,
             b.a_k + r * m * Cp, b.u1 + r * d * Cp);
  hidden_back(m, Cp, w.slope, b.a_q, w.a_q, w.s_q);
  state_read_back(w, b, m, d, b.a_q, w.q, last.W2, last.O2, w.dp, b.q, g_W2, g_O2);
  each<T>(d, Cp, [&](std::ptrdiff_t i) { store(b.q + i, load(b.q + i) + load(b.o + i)); });
  match_back(w.C, Cp, m, d, w.decay.within, b.squares, b.a_q, last.u2, w.kv, w.Q, w.q, b.decay.within, b.q, b.k,
             b.u2 + r * m * Cp);
}

// The writes of memory r, backwards, from the gradients at u2, u1 and a_k; adds to those at k, v, W and O.
template <class T>
void write_back(Work<T>& w, Back<T>& b, int r, T* g_z) {
  const int d = w.d, m = w.m, C = w.C, Cp = w.Cp, Q = w.Q, mp = w.mp;
  const int64_t at_a = int64_t(r) * m * Q, at_d = int64_t(r) * d * Cp, at_m = int64_t(r) * m * Cp,
                at_1 = int64_t(r) * d * mp;
  const int64_t at_C = int64_t(r) * C * Cp;
  const T *a = w.a + at_a, *s = w.s + r * Q, *beta = w.beta + r * Cp, *eta = w.eta + r * Cp, *W1 = w.bank.W1 + at_1;
  const T *error = w.error + at_d, *moved = w.moved + at_d, *gram = w.gram + at_C;
  T *g_u1 = b.u1 + at_d, *g_u2 = b.u2 + at_m, *g_a_k = b.a_k + at_m, *g_beta = b.beta + r * Cp, *g_eta = b.eta + r * Cp;
  T *g_r = w.right, *g_W1 = b.bank.W1 + at_1, *g_moved = b.sent, *g_y = b.pair, *a_T = b.wide;
  std::memset(g_beta, 0, sizeof(T) * Cp);
  solve_back(C, Cp, d, m, gram, w.solved + at_C, w.decay.between, beta, b.squares, w.u1 + at_d, a, Q, g_u1, g_r, g_beta,
             b.decay.between, g_a_k);
  for (int c = 0; c < Cp; c += W<T>) {
    // r = beta (-error + (1 - before) moved)
    const vec<T> gone = T(1) - load(w.decay.before + c), strength = load(beta + c);
    vec<T> by_moved = {}, by_error = {};
    for (int v = 0; v < d; ++v) {
      const int64_t at = v * Cp + c;
      const vec<T> g = load(g_r + at), scaled = g * strength;
      by_moved += g * load(moved + at), by_error += g * load(error + at);
      store(g_r + at, scaled), store(g_moved + at, scaled * gone);
    }
    store(g_beta + c, load(g_beta + c) + by_moved * gone - by_error);
    store(b.decay.before + c, load(b.decay.before + c) - strength * by_moved);
  }
  transpose(m, Q, a, Q, a_T, mp);  // keys' tokens, then values', from row Cp
  mm<false, SUB>(d, m, C, g_moved, Cp, a_T, mp, b.first.W1 + at_1, mp);
  mm<true, SUB>(m, Cp, d, w.first.W1 + at_1, mp, g_moved, Cp, g_a_k, Cp);
  // u2 = -eta soft_clip(s slope W1^T error)
  T* minus_eta = b.row;
  for (int c = 0; c < Cp; c += W<T>) store(minus_eta + c, -load(eta + c));
  soft_clip_back(m, Cp, w.slope, g_u2, w.inner + at_m, Q, a, s, w.r_inner + r * Cp, minus_eta, b.g_s, g_eta);
  for (int c = 0; c < Cp; c += W<T>) store(g_eta + c, -load(g_eta + c));
  mm<false, SUB>(d, Cp, m, W1, mp, g_u2, Cp, g_r, Cp);  // now minus the gradient at `error`
  // error = recalled - target + k; moved = recalled - O1 a_k; target = h inverse, h = v + W1 a_v
  for (int v = 0; v < d; ++v)
    for (int c = 0; c < Cp; c += W<T>) {
      const vec<T> g_aim = load(g_r + v * Cp + c);
      T* g_k = b.k + v * Cp + c;
      store(g_k, load(g_k) - g_aim), store(g_y + v * Q + c, load(g_moved + v * Cp + c) - g_aim);
    }
  normalise_back(d, Cp, g_r, Q, w.y + int64_t(r) * d * Q + Cp, w.target_inverse + r * Cp);
  for (int v = 0; v < d; ++v)
    for (int c = 0; c < Cp; c += W<T>) {
      const vec<T> g_h = load(g_r + v * Cp + c);
      T* g_v = b.kv + v * Q + Cp + c;
      store(g_y + v * Q + Cp + c, g_h), store(g_v, load(g_v) + g_h);
    }
  mm<false, ADD>(d, m, C, g_y, Q, a_T, mp, g_W1, mp);
  mm<false, ADD>(d, m, C, g_y + Cp, Q, a_T + int64_t(Cp) * mp, mp, g_W1, mp);
  mm<true, SET>(m, Q, d, W1, mp, g_y, Q, g_z, Q);
  transpose(m, C, g_u2, Cp, a_T, mp);
  mm<false, ADD>(d, m, C, error, Cp, a_T, mp, g_W1, mp);
  for (int i = 0; i < m; ++i)
    for (int c = 0; c < Cp; c += W<T>) store(g_z + i * Q + c, load(g_z + i * Q + c) + load(g_a_k + i * Cp + c));
  hidden_back(m, Q, w.slope, g_z, a, s, b.g_s, Cp);
}

template <class T>
struct Summed {  // gradients of one sequence's constants
  T *readers, *bias, *scale, *share;
  Summed(const Args& g, int64_t n)
      : readers(static_cast<T*>(g.g_readers) + n * 2 * g.d),
        bias(static_cast<T*>(g.g_bias) + n * 2),
        scale(static_cast<T*>(g.g_scale) + n * g.R),
        share(static_cast<T*>(g.g_share) + n * g.R) {}
};

// Gates backwards: sets the gradients at the raw gates; that at the output strength to g_output.
template <class T>
void gates_back(Work<T>& w, Back<T>& b, const Head<T>& head, T eta_max, Summed<T> g, T* g_output) {
  const int C = w.C, Cp = w.Cp;
  std::memset(b.log_a, 0, sizeof(T) * Cp);
  for (int t = 0; t < C; ++t) {
    T g_eta = 0, g_out = 0;
    for (int r = 0; r < w.R; ++r) {
      const T by_eta = b.eta[r * Cp + t], by_beta = b.beta[r * Cp + t] * w.alpha[t];
      g_eta += by_eta * head.scale[r], g.scale[r] += by_eta * eta_max * w.sigma[t];
      g_out += by_beta * head.share[r], g.share[r] += by_beta * w.output[t];
    }
    g_output[t] = g_out;
    b.log_a[t] = g_out * w.output[t];
    b.raw[t] = g_eta * eta_max * w.sigma[t] * (1 - w.sigma[t]);
  }
  decays_back(C, Cp, w.decay, b.decay, b.log_a, b.row);
  for (int t = 0; t < C; ++t) b.raw[Cp + t] = b.log_a[t] * (1 - w.alpha[t]);
  for (int n = 0; n < 2; ++n)
    for (int t = 0; t < C; ++t) g.bias[n] += b.raw[n * Cp + t];
}

// Keys, values and gates backwards, to x, the memories that project, and the readers.
template <class T>
void project_back(Work<T>& w, Back<T>& b, const Head<T>& head, Summed<T> g) {
  const int d = w.d, m = w.m, C = w.C, Cp = w.Cp, Q = w.Q, mp = w.mp;
  normalise_back(d, Q, b.kv, Q, w.kv, w.kv_inverse);
  for (int v = 0; v < d; ++v)
    for (int c = 0; c < Cp; c += W<T>)
      store(b.x + v * Cp + c, load(b.kv + v * Q + c) + load(b.kv + v * Q + Cp + c) + head.readers[v] * load(b.raw + c) +
                                  head.readers[d + v] * load(b.raw + Cp + c));
  for (int n = 0; n < 2; ++n) {
    const int64_t at = int64_t(n) * d * mp;
    mm<true, SET>(m, Cp, d, w.project.W1 + at, mp, b.kv + n * Cp, Q, b.z + n * m * Cp, Cp);
    transpose(m, C, w.a_x + n * m * Cp, Cp, b.wide, mp);
    mm<false, ADD>(d, m, C, b.kv + n * Cp, Q, b.wide, mp, b.project.W1 + at, mp);
  }
  for (int n = 0; n < 2; ++n) {
    const T *g_p = b.raw + n * Cp, *a = w.a_x + (2 + n) * m * Cp, *W1 = w.project.W1 + int64_t(2 + n) * d * mp;
    T *g_c = b.c + n * mp, *g_a = b.z + (2 + n) * m * Cp, *g_W1 = b.project.W1 + int64_t(2 + n) * d * mp;
    for (int i = 0; i < m; ++i) {
      vec<T> sum = {};
      for (int c = 0; c < Cp; c += W<T>) {
        sum += load(a + i * Cp + c) * load(g_p + c);
        store(g_a + i * Cp + c, w.c[n * mp + i] * load(g_p + c));
      }
      g_c[i] = total<T>(sum);
    }
    for (int v = 0; v < d; ++v) {
      vec<T> sum = {};
      for (int c = 0; c < mp; c += W<T>) {
        T* p = g_W1 + v * mp + c;
        sum += load(W1 + v * mp + c) * load(g_c + c);
        store(p, load(p) + head.readers[n * d + v] * load(g_c + c));
      }
      for (int c = 0; c < Cp; c += W<T>) sum += load(w.x + v * Cp + c) * load(g_p + c);
      g.readers[n * d + v] += total<T>(sum);
    }
  }
  for (int n = 0; n < PROJECT; ++n) hidden_back(m, Cp, w.slope, b.z + n * m * Cp, w.a_x + n * m * Cp, w.s_x + n * Cp);
  transpose(d, C, w.x, Cp, b.wide, w.dp);
  mm<false, ADD>(PROJECT * m, d, C, b.z, Cp, b.wide, w.dp, b.project.W2, w.dp);
  mm<true, ADD>(d, Cp, PROJECT * m, w.project.W2, w.dp, b.z, Cp, b.x, Cp);
}

template <class T>
void chunk_back(Work<T>& w, Back<T>& b, const Head<T>& head, T eta_max, Summed<T> g, T* g_output) {
  const int d = w.d, m = w.m, C = w.C, Cp = w.Cp, Q = w.Q;
  for (T* p : {b.decay.gamma, b.decay.before}) std::memset(p, 0, sizeof(T) * Cp);
  for (T* p : {b.decay.within, b.decay.between}) std::memset(p, 0, sizeof(T) * C * Cp);
  std::memset(b.kv, 0, sizeof(T) * d * Q);
  advance_back(w, b);
  read_back(w, b);
  transpose(d, Cp, w.kv + Cp, Q, w.wide, w.dp);
  for (int r = 0; r < w.R; ++r) {
    T *g_z = b.z, *g_W2 = b.bank.W2 + int64_t(r) * m * w.dp;
    write_back(w, b, r, g_z);
    mm<false, ADD>(m, d, C, g_z, Q, w.kT, w.dp, g_W2, w.dp);
    mm<false, ADD>(m, d, C, g_z + Cp, Q, w.wide, w.dp, g_W2, w.dp);
    mm<true, ADD>(d, Q, m, w.bank.W2 + int64_t(r) * m * w.dp, w.dp, g_z, Q, b.kv, Q);
  }
  for (int v = 0; v < d; ++v)
    for (int c = 0; c < Cp; c += W<T>) store(b.kv + v * Q + c, load(b.kv + v * Q + c) + load(b.k + v * Cp + c));
  gates_back(w, b, head, eta_max, g, g_output);
  project_back(w, b, head, g);
}

template <class T>
void forward(const Args& g, int64_t from, int64_t to) {
  halved = g.half;
  const Sizes s = sizes<T>(g.R, g.F, g.d, g.m, g.C);
  Scratch<T> arena;
  Work<T> w(s, arena, g);
  T* scratch = arena.take((int64_t(s.R) * std::max(s.d, s.m) + 1) * s.Cp);
  const int64_t chunks = g.T / g.C;
  for (int64_t n = from; n < to; ++n) {
    const Head<T> head(g, n);
    begin(w, g, n);
    weights_in<T>(s, s.R, g.W2, g.W1, n, w.bank);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      tokens_in(w, g, n, chunk);
      if (g.records && chunk && chunk % PAIR == 0)
        copy_weights(s, w.bank, Record<T>(s, g.records, n, chunks, chunk).bank);
      project(w, head, T(g.eta_max));
      write(w);
      read(w);
      if (g.records) keep_read(w, Record<T>(s, g.records, n, chunks, chunk).read);
      const int64_t at = chunk * g.C;
      rows_out<T>(s.d, s.C, s.Cp, w.z, g.T, static_cast<T*>(g.o) + n * g.d * g.T + at);
      for (int t = 0; t < s.C; ++t) {
        static_cast<T*>(g.eta)[n * g.T + at + t] = T(g.eta_max) * w.sigma[t];
        static_cast<T*>(g.alpha)[n * g.T + at + t] = w.alpha[t];
      }
      advance(w, w.bank, scratch);
    }
    weights_out<T>(s, s.R, w.bank, g.W2_end, g.W1_end, n);
  }
}

template <class T>
void backward(const Args& g, int64_t from, int64_t to) {
  halved = g.half;
  const Sizes s = sizes<T>(g.R, g.F, g.d, g.m, g.C);
  Scratch<T> arena;
  Work<T> even(s, arena, g), odd(s, arena, g);
  Back<T> b(even, arena, g.own);
  T* scratch = arena.take((int64_t(s.R) * std::max(s.d, s.m) + 1) * s.Cp);
  odd.first = even.first;
  if (!g.own) odd.project = even.project;
  const int64_t chunks = g.T / g.C;
  auto zero = [&](int count, Weights<T> x) {
    std::memset(x.W2, 0, sizeof(T) * count * s.m * s.dp), std::memset(x.W1, 0, sizeof(T) * count * s.d * s.mp);
  };
  for (int64_t n = from; n < to; ++n) {
    const Head<T> head(g, n);
    const Summed<T> summed(g, n);
    begin(even, g, n);
    zero(s.R, b.first);
    if (!g.own) zero(s.F, b.project);
    weights_in<T>(s, s.R, g.g_W2_end, g.g_W1_end, n, b.bank);
    auto redo = [&](Work<T>& w, int64_t chunk) {
      tokens_in(w, g, n, chunk);
      restore_read(w, Record<T>(s, g.records, n, chunks, chunk).read);
      project(w, head, T(g.eta_max));
      write(w);
    };
    auto back = [&](Work<T>& w, int64_t chunk) {
      const int64_t at = chunk * g.C, rows = n * g.d * g.T + at;
      rows_in<T>(s.d, s.C, s.Cp, static_cast<const T*>(g.g_o) + rows, g.T, b.o);
      chunk_back(w, b, head, T(g.eta_max), summed, static_cast<T*>(g.g_output) + n * g.T + at);
      rows_out<T>(s.d, s.C, s.Cp, b.x, g.T, static_cast<T*>(g.g_x) + rows);
      rows_out<T>(s.d, s.C, s.Cp, b.q, g.T, static_cast<T*>(g.g_q) + rows);
    };
    for (int64_t chunk = (chunks - 1) / PAIR * PAIR; chunk >= 0; chunk -= PAIR) {
      if (chunk)
        copy_weights(s, Record<T>(s, g.records, n, chunks, chunk).bank, even.bank);
      else
        weights_in<T>(s, s.R, g.W2, g.W1, n, even.bank);
      redo(even, chunk);
      if (chunk + 1 < chunks) {
        copy_weights(s, even.bank, odd.bank);
        advance(even, odd.bank, scratch);
        redo(odd, chunk + 1);
        back(odd, chunk + 1);
      }
      back(even, chunk);
    }
    weights_out<T>(s, s.R, b.bank, g.g_W2, g.g_W1, n);
    weights_out<T>(s, s.R, b.first, g.g_O2, g.g_O1, n);
    if (!g.own) weights_out<T>(s, s.F, b.project, g.g_F2, g.g_F1, n);
  }
}

}  // namespace

extern "C" {
int64_t self_modifying_arguments() { return sizeof(Args); }
int64_t self_modifying_records(int64_t bytes, int64_t chunks, int64_t R, int64_t d, int64_t m, int64_t C) {
  return (bytes == 4 ? sizes<float>(R, R, d, m, C) : sizes<double>(R, R, d, m, C)).records(chunks);
}
void self_modifying_forward_f32(const Args* g, int64_t from, int64_t to) { forward<float>(*g, from, to); }
void self_modifying_forward_f64(const Args* g, int64_t from, int64_t to) { forward<double>(*g, from, to); }
void self_modifying_backward_f32(const Args* g, int64_t from, int64_t to) { backward<float>(*g, from, to); }
void self_modifying_backward_f64(const Args* g, int64_t from, int64_t to) { backward<double>(*g, from, to); }
}
