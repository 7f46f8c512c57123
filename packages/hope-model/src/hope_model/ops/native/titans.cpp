// Titans' memory as a kernel: the backward of a chunk, the loops over chunks, and what Python calls.
#include "titans_memory.hpp"

namespace {

template <class T>
struct Back {
  Layer<T> layer2, layer1;  // gradients at S, P and, summed over chunks, O
  T *o, *q, *k, *v, *a_q, *a_k, *w2, *w1, *u, *z, *x, *y, *sent_S, *sent_P;
  T *start, *start_before, *gone, *gone_before, *end_u, *end_w, *push, *c, *share, *eta, *by, *g_s, *log_a, *log_theta;
  T *written, *written_before, *g_match, *row;
  Decays<T> decay, fade;
  Squares<T> squares;

  Back(const Work<T>& w, Scratch<T>& arena) : layer2(w.m, w.d, w.C, arena), layer1(w.d, w.m, w.C, arena) {
    const int Cp = w.Cp, most = std::max(w.d, w.m);
    for (T** p : {&o, &q, &k, &v, &w1, &u}) *p = arena.take(w.d * Cp);
    for (T** p : {&a_q, &a_k, &w2}) *p = arena.take(w.m * Cp);
    for (T** p : {&z, &x, &y, &sent_S, &sent_P}) *p = arena.take(most * Cp);
    for (T** p : {&start, &start_before, &gone, &gone_before, &end_u, &end_w, &push, &c, &share, &eta, &by, &g_s,
                  &log_a, &log_theta, &row, &decay.gamma, &decay.before, &fade.gamma, &fade.before})
      *p = arena.take(Cp);
    for (T** p : {&written, &written_before, &g_match, &decay.within, &decay.between, &fade.within, &fade.between,
                  &squares.match, &squares.g_match, &squares.turned})
      *p = arena.take(w.C * Cp);
  }
};

// x (*) s per column to `out`.
template <class T>
void scaled(int rows, int ld, const T* x, const T* s, T* out) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < ld; c += W<T>) store(out + r * ld + c, load(x + r * ld + c) * load(s + c));
}

// S and P at the chunk's end, backwards; sets the gradients at key and columns.
template <class T>
void advance_back(Work<T>& w, Back<T>& b, const Layer<T>& l, Layer<T>& g, const T* key, const T* written,
                  const T* erased, T* g_key, T* g_written, T* g_erased) {
  const int C = w.C, Cp = w.Cp;
  mm<false, SET>(l.V, Cp, l.K, g.S, l.Kp, key, Cp, b.x, Cp);
  mm<false, SET>(l.V, Cp, l.K, g.P, l.Kp, key, Cp, b.y, Cp);
  column_dots(l.V, Cp, b.x, written, b.end_w, ADD);
  column_dots(l.V, Cp, b.y, written, b.push, ADD);
  if (erased) column_dots(l.V, Cp, b.x, erased, b.end_u, ADD);
  for (int r = 0; r < l.V; ++r)
    for (int c = 0; c < Cp; c += W<T>) {
      const int i = r * Cp + c;
      store(g_written + i, load(b.x + i) * load(w.end_w + c) + load(b.y + i) * load(w.push + c));
      if (erased) store(g_erased + i, load(b.x + i) * load(w.end_u + c));
    }
  sent(w, l.V, written, erased);
  mm<true, SET>(l.K, Cp, l.V, g.S, l.Kp, w.x, Cp, g_key, Cp);
  mm<true, ADD>(l.K, Cp, l.V, g.P, l.Kp, w.y, Cp, g_key, Cp);
  const T gamma = w.gamma[C - 1], start = w.start[C - 1], keep = w.fade.gamma[C - 1];
  vec<T> by_gamma = {}, by_start = {}, by_keep = {};
  for (int64_t i = 0; i < l.size(); i += W<T>) {
    const vec<T> g_S = load(g.S + i), g_P = load(g.P + i), P = load(l.P + i);
    by_gamma += g_S * (load(l.S + i) - load(l.O + i)), by_start += g_S * P, by_keep += g_P * P;
    store(g.O + i, load(g.O + i) + (1 - gamma) * g_S);
    store(g.S + i, gamma * g_S), store(g.P + i, start * g_S + keep * g_P);
  }
  b.decay.gamma[C - 1] += total<T>(by_gamma), b.start[C - 1] += total<T>(by_start),
      b.fade.gamma[C - 1] += total<T>(by_keep);
}

// Reads of a layer, backwards: sets g_x; adds to the gradients at S, P, O, key, columns and shares.
template <class T>
void read_back(Work<T>& w, Back<T>& b, const Layer<T>& l, Layer<T>& g, const T* g_o, const T* x, const T* key,
               const T* written, const T* erased, T* g_x, T* g_key, T* g_written, T* g_erased) {
  const int C = w.C, Cp = w.Cp;
  const Squares<T> s = b.squares;
  T *by_S = g_x, *by_P = b.x, *by_O = b.y;
  mm<true, SET>(l.K, Cp, l.V, l.S, l.Kp, g_o, Cp, by_S, Cp);
  mm<true, SET>(l.K, Cp, l.V, l.P, l.Kp, g_o, Cp, by_P, Cp);
  mm<true, SET>(l.K, Cp, l.V, l.O, l.Kp, g_o, Cp, by_O, Cp);
  for (int c = 0; c < Cp; c += W<T>) {
    vec<T> of_gamma = {}, of_start = {};
    const vec<T> gamma = load(w.gamma + c), start = load(w.start + c), gone = load(w.gone + c);
    for (int r = 0; r < l.K; ++r) {
      const int i = r * Cp + c;
      const vec<T> here = load(x + i), S = load(by_S + i), P = load(by_P + i), O = load(by_O + i);
      of_gamma += here * (S - O), of_start += here * P;
      store(g_x + i, gamma * S + start * P + gone * O);
    }
    store(b.decay.gamma + c, load(b.decay.gamma + c) + of_gamma);
    store(b.start + c, load(b.start + c) + of_start);
  }
  transpose(l.K, C, x, Cp, g.key_T, l.Kp);
  const T* share[3] = {w.gamma, w.start, w.gone};
  T* at[3] = {g.S, g.P, g.O};
  for (int n = 0; n < 3; ++n) {
    scaled(l.V, Cp, g_o, share[n], b.x);
    mm<false, ADD>(l.V, l.K, C, b.x, Cp, g.key_T, l.Kp, at[n], l.Kp);
  }
  mm<true, SET>(C, Cp, l.K, key, Cp, x, Cp, s.match, Cp);
  std::memset(b.g_match, 0, sizeof(T) * C * Cp);
  auto column = [&](const T* columns, const T* reach, T* g_columns, T* g_reach) {
    mm<true, SET>(C, Cp, l.V, columns, Cp, g_o, Cp, s.g_match, Cp);
    each<T>(C, Cp, [&](std::ptrdiff_t i) {
      const vec<T> g_felt = load(s.g_match + i), felt = load(s.match + i), decay = load(reach + i);
      store(g_reach + i, load(g_reach + i) + g_felt * felt);
      store(b.g_match + i, load(b.g_match + i) + g_felt * decay), store(s.g_match + i, felt * decay);
    });
    transpose(C, C, s.g_match, Cp, s.turned, Cp);
    mm<false, ADD>(l.V, Cp, C, g_o, Cp, s.turned, Cp, g_columns, Cp);
  };
  column(written, w.written, g_written, b.written);
  if (erased) column(erased, w.decay.within, g_erased, b.decay.within);
  mm<false, ADD>(l.K, Cp, C, key, Cp, b.g_match, Cp, g_x, Cp);
  transpose(C, C, b.g_match, Cp, s.turned, Cp);
  mm<false, ADD>(l.K, Cp, C, x, Cp, s.turned, Cp, g_key, Cp);
}

// The chunk's writes, backwards, from the gradients at u, w1, w2 and a_k.
template <class T>
void write_back(Work<T>& w, Back<T>& b) {
  const int d = w.d, m = w.m, C = w.C, Cp = w.Cp, size = d * Cp;
  const Layer<T>&l2 = w.layer2, &l1 = w.layer1;
  Layer<T>&g2 = b.layer2, &g1 = b.layer1;
  const Squares<T> s = b.squares;
  T *g_right = b.z, *g_M = s.g_match, *g_S = b.sent_S, *g_back = b.w2;
  solve_back(C, Cp, d, m, w.gram, w.solved, w.decay.between, w.c, s, w.u, w.a_k, Cp, b.u, g_right, b.c, b.decay.between,
             b.a_k);
  // right = -(c held + w1 M), M = gram (*) written_before (*) c
  for (int i = 0; i < C; ++i)
    for (int c = 0; c < Cp; c += W<T>) {
      const int at = i * Cp + c;
      store(w.M + at, load(w.gram + at) * load(w.written_before + at) * load(w.c + c));
    }
  transpose(C, C, w.M, Cp, s.turned, Cp);
  mm<false, SUB>(d, Cp, C, g_right, Cp, s.turned, Cp, b.w1, Cp);
  mm<true, SET>(C, Cp, d, w.w1, Cp, g_right, Cp, g_M, Cp);  // minus the gradient at M
  for (int c = 0; c < Cp; c += W<T>) {
    vec<T> by_c = {}, strength = load(w.c + c);
    for (int i = 0; i < C; ++i) {
      const int at = i * Cp + c;
      const vec<T> g = load(g_M + at), felt = load(w.gram + at) * g, reach = load(w.written_before + at);
      by_c += felt * reach;
      store(b.written_before + at, load(b.written_before + at) - felt * strength),
          store(g_M + at, g * reach * strength);
    }
    vec<T> by_S = {}, by_P = {}, by_O = {}, by_aim = {};
    const vec<T> S = load(w.before + c), P = load(w.start_before + c), O = load(w.gone_before + c);
    const vec<T> written = load(w.strength + c);
    for (int r = 0; r < d; ++r) {
      const int i = r * Cp + c;
      const vec<T> h = load(g_right + i), scaled = -h * strength;
      by_S -= h * load(w.recalled + i), by_P -= h * load(w.recalled + size + i),
          by_O -= h * load(w.recalled + 2 * size + i);
      store(g_S + i, scaled * S), store(b.sent_P + i, scaled * P), store(b.x + i, scaled * O);
      by_aim += load(b.w1 + i) * load(w.aim + i);
      store(b.w1 + i, load(b.w1 + i) * written);  // now the gradient at aim
    }
    store(b.c + c, load(b.c + c) - by_c + S * by_S + P * by_P + O * by_O + load(w.share + c) * by_aim);
    store(b.decay.before + c, strength * (by_S - by_O)), store(b.start_before + c, strength * by_P);
    store(b.share + c, load(w.c + c) * by_aim);
  }
  transpose(C, C, g_M, Cp, s.turned, Cp);
  each<T>(C, Cp, [&](std::ptrdiff_t i) { store(g_M + i, load(g_M + i) + load(s.turned + i)); });
  mm<false, SUB>(m, Cp, C, w.a_k, Cp, g_M, Cp, b.a_k, Cp);
  // w2 = rate soft_clip(s slope S1^T error), rate = -share eta
  soft_clip_back(m, Cp, w.slope, g_back, w.inner, Cp, w.a_k, w.s_k, w.r_k, w.rate, b.g_s, b.by);
  for (int t = 0; t < C; ++t) b.share[t] -= w.eta[t] * b.by[t], b.eta[t] = -w.share[t] * b.by[t];
  mm<false, SET>(d, Cp, m, l1.S, l1.Kp, g_back, Cp, b.y, Cp);  // gradient at error = S1 a_k - aim
  for (int r = 0; r < d; ++r)
    for (int c = 0; c < Cp; c += W<T>) {
      const int i = r * Cp + c;
      const vec<T> g_error = load(b.y + i), g_aim = load(b.w1 + i) - g_error;
      store(g_S + i, load(g_S + i) + g_error), store(b.v + i, g_aim), store(b.k + i, load(b.k + i) - g_aim);
    }
  transpose(m, C, w.a_k, Cp, g1.key_T, l1.Kp);
  const T* by[3] = {g_S, b.sent_P, b.x};
  const T* weights[3] = {l1.S, l1.P, l1.O};
  T* g_weights[3] = {g1.S, g1.P, g1.O};
  for (int n = 0; n < 3; ++n) {
    mm<false, ADD>(d, m, C, by[n], Cp, g1.key_T, l1.Kp, g_weights[n], l1.Kp);
    mm<true, ADD>(m, Cp, d, weights[n], l1.Kp, by[n], Cp, b.a_k, Cp);
  }
  transpose(m, C, g_back, Cp, g1.key_T, l1.Kp);
  mm<false, ADD>(d, m, C, w.error, Cp, g1.key_T, l1.Kp, g1.S, l1.Kp);
  hidden_back(m, Cp, w.slope, b.a_k, w.a_k, w.s_k, b.g_s, Cp);
  transpose(d, C, w.k, Cp, g2.key_T, l2.Kp);
  mm<false, ADD>(m, d, C, b.a_k, Cp, g2.key_T, l2.Kp, g2.S, l2.Kp);
  mm<true, ADD>(d, Cp, m, l2.S, l2.Kp, b.a_k, Cp, b.k, Cp);
}

// All scalars, backwards: gradients at log a, log theta and (to b.end_u) the output strength.
template <class T>
void shares_back(Work<T>& w, Back<T>& b) {
  const Exact exact;
  const int C = w.C, Cp = w.Cp;
  for (int t = 0; t + 1 < C; ++t) {
    b.start[t] += b.start_before[t + 1];
    for (int i = 0; i < C; ++i) b.written[i * Cp + t] += b.written_before[i * Cp + t + 1];
  }
  for (int t = 0; t < C; ++t) {
    b.decay.within[t * Cp + C - 1] += b.end_u[t], b.written[t * Cp + C - 1] += b.end_w[t];
    b.fade.within[t * Cp + C - 1] += b.push[t];
  }
  // written = fade.within decay.within, start = fade.gamma decay.within
  transpose(C, C, w.decay.within, Cp, b.squares.turned, Cp);
  mm<false, ADD>(C, Cp, C, b.written, Cp, b.squares.turned, Cp, b.fade.within, Cp);
  mm<false, ADD>(1, Cp, C, b.start, Cp, b.squares.turned, Cp, b.fade.gamma, Cp);
  mm<true, ADD>(C, Cp, C, w.fade.within, Cp, b.written, Cp, b.decay.within, Cp);
  for (int i = 0; i < C; ++i)
    for (int c = 0; c < Cp; c += W<T>) {
      T* p = b.decay.within + i * Cp + c;
      store(p, load(p) + w.fade.gamma[i] * load(b.start + c));
    }
  for (int t = 0; t < C; ++t) {
    b.end_u[t] = b.c[t] * w.a[t];
    b.log_a[t] = b.c[t] * w.c[t], b.log_theta[t] = -b.share[t] * w.theta[t];
  }
  decays_back(C, Cp, w.decay, b.decay, b.log_a, b.row);
  decays_back(C, Cp, w.fade, b.fade, b.log_theta, b.row);
}

template <class T>
void chunk_back(Work<T>& w, Back<T>& b) {
  const int d = w.d, C = w.C, Cp = w.Cp;
  for (T* p : {b.start, b.start_before, b.end_u, b.end_w, b.push, b.c, b.decay.gamma, b.decay.before, b.fade.gamma,
               b.fade.before})
    std::memset(p, 0, sizeof(T) * Cp);
  for (T* p : {b.written, b.written_before, b.decay.within, b.decay.between, b.fade.within, b.fade.between})
    std::memset(p, 0, sizeof(T) * C * Cp);
  const T* none = nullptr;
  advance_back<T>(w, b, w.layer1, b.layer1, w.a_k, w.w1, w.u, b.a_k, b.w1, b.u);
  advance_back<T>(w, b, w.layer2, b.layer2, w.k, w.w2, none, b.k, b.w2, nullptr);
  read_back<T>(w, b, w.layer1, b.layer1, b.o, w.a_q, w.a_k, w.w1, w.u, b.a_q, b.a_k, b.w1, b.u);
  hidden_back(w.m, Cp, w.slope, b.a_q, w.a_q, w.s_q);
  read_back<T>(w, b, w.layer2, b.layer2, b.a_q, w.q, w.k, w.w2, none, b.q, b.k, b.w2, nullptr);
  each<T>(d, Cp, [&](std::ptrdiff_t i) { store(b.q + i, load(b.q + i) + load(b.o + i)); });
  write_back(w, b);
  shares_back(w, b);
}

template <class T>
void forward(const Args& g, int64_t from, int64_t to) {
  halved = g.half;
  Scratch<T> arena;
  Work<T> w(g, arena);
  const int64_t chunks = g.T / g.C, record = record_size<T>(g.d, g.m, g.C);
  for (int64_t n = from; n < to; ++n) {
    layer_in(w.layer2, g.S2, g.P2, g.O2, n, n % g.H);
    layer_in(w.layer1, g.S1, g.P1, g.O1, n, n % g.H);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      T* to_record = static_cast<T*>(g.records) + (n * chunks + chunk) * record;
      tokens_in(w, g, n, chunk * g.C);
      write(w);
      read(w);
      if (g.records)
        with_record(w, to_record,
                    [](T* there, const T* here, int64_t size) { std::memcpy(there, here, sizeof(T) * size); });
      rows_out<T>(w.d, w.C, w.Cp, w.o, g.T, static_cast<T*>(g.o) + n * g.d * g.T + chunk * g.C);
      advance<T>(w, w.layer2, w.k, w.w2, nullptr);
      advance<T>(w, w.layer1, w.a_k, w.w1, w.u);
    }
    weights_out(w.layer2, w.layer2.S, g.S2_end, n), weights_out(w.layer2, w.layer2.P, g.P2_end, n);
    weights_out(w.layer1, w.layer1.S, g.S1_end, n), weights_out(w.layer1, w.layer1.P, g.P1_end, n);
  }
}

template <class T>
void backward(const Args& g, int64_t from, int64_t to) {
  halved = g.half;
  Scratch<T> arena;
  Work<T> w(g, arena);
  Back<T> b(w, arena);
  const int64_t chunks = g.T / g.C, record = record_size<T>(g.d, g.m, g.C);
  for (int64_t n = from; n < to; ++n) {
    layer_in(w.layer2, g.S2, g.P2, g.O2, n, n % g.H);
    layer_in(w.layer1, g.S1, g.P1, g.O1, n, n % g.H);
    layer_in(b.layer2, g.g_S2_end, g.g_P2_end, nullptr, n, 0);
    layer_in(b.layer1, g.g_S1_end, g.g_P1_end, nullptr, n, 0);
    for (Layer<T>* l : {&b.layer2, &b.layer1}) std::memset(l->O, 0, sizeof(T) * l->size());
    for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
      const int64_t at = chunk * g.C, rows = n * g.d * g.T + at, one = n * g.T + at;
      T* from_record = static_cast<T*>(g.records) + (n * chunks + chunk) * record;
      tokens_in(w, g, n, at);
      with_record(w, from_record,
                  [](const T* there, T* here, int64_t size) { std::memcpy(here, there, sizeof(T) * size); });
      write(w);
      rows_in<T>(w.d, w.C, w.Cp, static_cast<const T*>(g.g_o) + rows, g.T, b.o);
      chunk_back(w, b);
      rows_out<T>(w.d, w.C, w.Cp, b.q, g.T, static_cast<T*>(g.g_q) + rows);
      rows_out<T>(w.d, w.C, w.Cp, b.k, g.T, static_cast<T*>(g.g_k) + rows);
      rows_out<T>(w.d, w.C, w.Cp, b.v, g.T, static_cast<T*>(g.g_v) + rows);
      void* to_gates[4] = {g.g_log_a, g.g_log_theta, g.g_output, g.g_eta};
      const T* gates[4] = {b.log_a, b.log_theta, b.end_u, b.eta};
      for (int i = 0; i < 4; ++i) std::memcpy(static_cast<T*>(to_gates[i]) + one, gates[i], sizeof(T) * w.C);
    }
    weights_out(b.layer2, b.layer2.S, g.g_S2, n), weights_out(b.layer2, b.layer2.P, g.g_P2, n);
    weights_out(b.layer1, b.layer1.S, g.g_S1, n), weights_out(b.layer1, b.layer1.P, g.g_P1, n);
    weights_out(b.layer2, b.layer2.O, g.g_O2, n), weights_out(b.layer1, b.layer1.O, g.g_O1, n);
  }
}

}  // namespace

extern "C" {
int64_t titans_arguments() { return sizeof(Args); }
int64_t titans_records(int64_t bytes, int64_t chunks, int64_t d, int64_t m, int64_t C) {
  return chunks * (bytes == 4 ? record_size<float>(d, m, C) : record_size<double>(d, m, C));
}
void titans_forward_f32(const Args* g, int64_t from, int64_t to) { forward<float>(*g, from, to); }
void titans_forward_f64(const Args* g, int64_t from, int64_t to) { forward<double>(*g, from, to); }
void titans_backward_f32(const Args* g, int64_t from, int64_t to) { backward<float>(*g, from, to); }
void titans_backward_f64(const Args* g, int64_t from, int64_t to) { backward<double>(*g, from, to); }
}
