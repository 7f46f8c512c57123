// Titans' memory as a kernel, a chunk forward: one stable ReLU memory with momentum; O: where retention pulls to.
//
// The same as written_span.py and written_momentum.py, one sequence and head at a time; derivation in
// ../deep_memory/README.md. Both layers are one recurrence of S, its momentum P and O; what is written (w) decays by
// `written`, what is erased (u, output layer only) by `within`. The backward redoes each chunk from its first weights.
#pragma once
#include "soft_clip.hpp"

using namespace hope;

struct Args {
  int64_t N, H, d, m, T, C, half;  // half: products may be rounded to bfloat16
  double slope;  // of the activation below zero
  void *q, *k, *v, *log_a, *log_theta, *output, *eta, *S2, *S1, *P2, *P1, *O2, *O1;
  void *o, *S2_end, *S1_end, *P2_end, *P1_end, *records;
  void *g_o, *g_S2_end, *g_S1_end, *g_P2_end, *g_P1_end;
  void *g_q, *g_k, *g_v, *g_log_a, *g_log_theta, *g_output, *g_eta, *g_S2, *g_S1, *g_P2, *g_P1, *g_O2, *g_O1;
};

namespace {

template <class T>
struct Layer {  // V x K weights, rows of Kp
  int V, K, Kp;
  T *S, *P, *O, *key_T;  // key_T: [C, Kp], for products that sum over tokens
  int64_t size() const { return int64_t(V) * Kp; }
  Layer(int V, int K, int C, Scratch<T>& arena) : V(V), K(K), Kp(padded<T>(K)) {
    for (T** p : {&S, &P, &O}) *p = arena.take(size());
    key_T = arena.take(C * Kp);
  }
};

template <class T>
struct Work {
  int d, m, C, Cp;
  T slope;
  Layer<T> layer2, layer1;
  T *q, *k, *v, *a, *theta, *output, *eta, *c, *share, *rate;
  T *gamma, *start, *gone, *before, *start_before, *gone_before, *end_u, *end_w,
      *push;              // shares of S, P, O; at the end
  Decays<T> decay, fade;  // of retention, of momentum
  T *written, *written_before, *strength;
  T *a_k, *s_k, *r_k, *recalled, *aim, *error, *inner, *w2, *w1, *u, *gram, *solved, *M, *a_q, *s_q, *o, *x, *y;

  Work(const Args& g, Scratch<T>& arena)
      : d(int(g.d)),
        m(int(g.m)),
        C(int(g.C)),
        Cp(padded<T>(C)),
        slope(T(g.slope)),
        layer2(m, d, C, arena),
        layer1(d, m, C, arena) {
    for (T** p : {&q, &k, &v, &aim, &error, &w1, &u, &o}) *p = arena.take(d * Cp);
    for (T** p : {&a_k, &inner, &w2, &a_q}) *p = arena.take(m * Cp);
    for (T** p : {&a,     &theta, &output,   &eta,          &c,           &share, &rate,  &gamma,
                  &start, &gone,  &before,   &start_before, &gone_before, &end_u, &end_w, &push,
                  &s_k,   &r_k,   &s_q,   &strength, &fade.gamma,   &fade.before})
      *p = arena.take(Cp);
    for (T** p :
         {&decay.within, &decay.between, &fade.within, &fade.between, &written, &written_before, &gram, &solved, &M})
      *p = arena.take(C * Cp);
    decay.gamma = gamma, decay.before = before;
    recalled = arena.take(3 * d * Cp), x = arena.take(std::max(d, m) * Cp), y = arena.take(std::max(d, m) * Cp);
  }
};

template <class T>
void layer_in(Layer<T>& l, const void* S, const void* P, const void* O, int64_t n, int64_t head) {
  const int64_t size = int64_t(l.V) * l.K;
  rows_in<T>(l.V, l.K, l.Kp, static_cast<const T*>(S) + n * size, l.K, l.S);
  rows_in<T>(l.V, l.K, l.Kp, static_cast<const T*>(P) + n * size, l.K, l.P);
  if (O) rows_in<T>(l.V, l.K, l.Kp, static_cast<const T*>(O) + head * size, l.K, l.O);
}
template <class T>
void weights_out(const Layer<T>& l, const T* from, void* to, int64_t n) {
  rows_out<T>(l.V, l.K, l.Kp, from, l.K, static_cast<T*>(to) + n * l.V * l.K);
}

template <class T>
void tokens_in(Work<T>& w, const Args& g, int64_t n, int64_t at) {
  const int64_t rows = n * g.d * g.T + at, one = n * g.T + at;
  rows_in<T>(w.d, w.C, w.Cp, static_cast<const T*>(g.q) + rows, g.T, w.q);
  rows_in<T>(w.d, w.C, w.Cp, static_cast<const T*>(g.k) + rows, g.T, w.k);
  rows_in<T>(w.d, w.C, w.Cp, static_cast<const T*>(g.v) + rows, g.T, w.v);
  std::memcpy(w.output, static_cast<const T*>(g.output) + one, sizeof(T) * w.C);
  std::memcpy(w.eta, static_cast<const T*>(g.eta) + one, sizeof(T) * w.C);
  for (int t = 0; t < w.C; ++t) {
    w.a[t] = std::exp(static_cast<const T*>(g.log_a)[one + t]);
    const T log_theta = static_cast<const T*>(g.log_theta)[one + t];
    w.theta[t] = std::exp(log_theta);
    w.share[t] = -std::expm1(log_theta);
    w.c[t] = w.a[t] * w.output[t];
    w.rate[t] = -w.share[t] * w.eta[t], w.strength[t] = w.share[t] * w.c[t];
  }
}

// All scalars of the chunk: what of S, P, O, u and w is left when.
template <class T>
void shares(Work<T>& w) {
  const Exact exact;
  const int C = w.C, Cp = w.Cp;
  decays(C, Cp, w.a, w.decay);
  decays(C, Cp, w.theta, w.fade);
  mm<false, SET>(C, Cp, C, w.fade.within, Cp, w.decay.within, Cp, w.written, Cp);
  mm<false, SET>(1, Cp, C, w.fade.gamma, Cp, w.decay.within, Cp, w.start, Cp);
  for (int i = 0; i < C; ++i)
    for (int t = C - 1; t >= 0; --t) w.written_before[i * Cp + t] = t ? w.written[i * Cp + t - 1] : T(0);
  for (int t = 0; t < C; ++t) {
    w.gone[t] = 1 - w.gamma[t], w.gone_before[t] = 1 - w.before[t];
    w.start_before[t] = t ? w.start[t - 1] : T(0);
    w.end_u[t] = w.decay.within[t * Cp + C - 1], w.end_w[t] = w.written[t * Cp + C - 1];
    w.push[t] = w.fade.within[t * Cp + C - 1];
  }
}

// gamma S x + start P x + (1 - gamma) O x to `out`.
template <class T>
void state_read(const Work<T>& w, const Layer<T>& l, const T* x, T* out, T* scratch) {
  const int Cp = w.Cp;
  mm<false, SET>(l.V, Cp, l.K, l.S, l.Kp, x, Cp, out, Cp);
  scale_columns(l.V, Cp, out, w.gamma);
  const T* rest[2][2] = {{l.P, w.start}, {l.O, w.gone}};
  for (auto& [weights, share] : rest) {
    mm<false, SET>(l.V, Cp, l.K, weights, l.Kp, x, Cp, scratch, Cp);
    for (int r = 0; r < l.V; ++r)
      for (int c = 0; c < Cp; c += W<T>) {
        T* p = out + r * Cp + c;
        store(p, load(p) + load(share + c) * load(scratch + r * Cp + c));
      }
  }
}

// The chunk's writes: w2, w1, u and all that leads to them.
template <class T>
void write(Work<T>& w) {
  const int d = w.d, m = w.m, C = w.C, Cp = w.Cp, size = d * Cp;
  const Layer<T>&l2 = w.layer2, &l1 = w.layer1;
  shares(w);
  mm<false, SET>(m, Cp, d, l2.S, l2.Kp, w.k, Cp, w.a_k, Cp);
  shrink(m, Cp, Cp, w.slope, w.a_k, w.s_k);
  int kind = 0;
  for (const T* weights : {l1.S, l1.P, l1.O})
    mm<false, SET>(d, Cp, m, weights, l1.Kp, w.a_k, Cp, w.recalled + size * kind++, Cp);
  for (int r = 0; r < d; ++r)
    for (int c = 0; c < Cp; c += W<T>) {
      const int i = r * Cp + c;
      const vec<T> aim = load(w.v + i) - load(w.k + i), S = load(w.recalled + i);
      const vec<T> held = load(w.before + c) * S + load(w.start_before + c) * load(w.recalled + size + i) +
                          load(w.gone_before + c) * load(w.recalled + 2 * size + i);
      store(w.aim + i, aim), store(w.error + i, S - aim), store(w.w1 + i, load(w.strength + c) * aim);
      store(w.x + i, -load(w.c + c) * held);
    }
  mm<true, SET>(m, Cp, d, l1.S, l1.Kp, w.error, Cp, w.inner, Cp);
  soft_clip(m, Cp, w.slope, w.inner, Cp, w.a_k, w.s_k, w.r_k);
  for (int r = 0; r < m; ++r)
    for (int c = 0; c < Cp; c += W<T>) store(w.w2 + r * Cp + c, load(w.inner + r * Cp + c) * load(w.rate + c));
  mm<true, SET>(C, Cp, m, w.a_k, Cp, w.a_k, Cp, w.gram, Cp);
  for (int i = 0; i < C; ++i)
    for (int c = 0; c < Cp; c += W<T>)
      store(w.M + i * Cp + c, load(w.gram + i * Cp + c) * load(w.written_before + i * Cp + c) * load(w.c + c));
  mm<false, SUB>(d, Cp, C, w.w1, Cp, w.M, Cp, w.x, Cp);
  solve(C, Cp, w.gram, w.decay.between, w.c, w.M, w.solved);
  mm<false, SET>(d, Cp, C, w.x, Cp, w.solved, Cp, w.u, Cp);
}

template <class T>
void read(Work<T>& w) {
  const int d = w.d, m = w.m, C = w.C, Cp = w.Cp;
  state_read(w, w.layer2, w.q, w.a_q, w.y);
  mm<true, SET>(C, Cp, d, w.k, Cp, w.q, Cp, w.gram, Cp);
  times(C, Cp, w.gram, w.written);
  mm<false, ADD>(m, Cp, C, w.w2, Cp, w.gram, Cp, w.a_q, Cp);
  shrink(m, Cp, Cp, w.slope, w.a_q, w.s_q);
  state_read(w, w.layer1, w.a_q, w.o, w.y);
  mm<true, SET>(C, Cp, m, w.a_k, Cp, w.a_q, Cp, w.gram, Cp);
  each<T>(C, Cp, [&](std::ptrdiff_t i) {
    const vec<T> match = load(w.gram + i);
    store(w.gram + i, match * load(w.decay.within + i)), store(w.M + i, match * load(w.written + i));
  });
  mm<false, ADD>(d, Cp, C, w.u, Cp, w.gram, Cp, w.o, Cp);
  mm<false, ADD>(d, Cp, C, w.w1, Cp, w.M, Cp, w.o, Cp);
  each<T>(d, Cp, [&](std::ptrdiff_t i) { store(w.o + i, load(w.o + i) + load(w.q + i)); });
}

// What a layer's columns send to S (to w.x) and to P (to w.y) at the chunk's end.
template <class T>
void sent(Work<T>& w, int rows, const T* written, const T* erased) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < w.Cp; c += W<T>) {
      const int i = r * w.Cp + c;
      vec<T> to_S = load(written + i) * load(w.end_w + c);
      if (erased) to_S += load(erased + i) * load(w.end_u + c);
      store(w.x + i, to_S), store(w.y + i, load(written + i) * load(w.push + c));
    }
}

template <class T>
void advance(Work<T>& w, Layer<T>& l, const T* key, const T* written, const T* erased) {
  const T gamma = w.gamma[w.C - 1], start = w.start[w.C - 1], keep = w.fade.gamma[w.C - 1];
  for (int64_t i = 0; i < l.size(); i += W<T>) {
    const vec<T> O = load(l.O + i), P = load(l.P + i);
    store(l.S + i, O + gamma * (load(l.S + i) - O) + start * P), store(l.P + i, keep * P);
  }
  sent(w, l.V, written, erased);
  transpose(l.K, w.C, key, w.Cp, l.key_T, l.Kp);
  mm<false, ADD>(l.V, l.K, w.C, w.x, w.Cp, l.key_T, l.Kp, l.S, l.Kp);
  mm<false, ADD>(l.V, l.K, w.C, w.y, w.Cp, l.key_T, l.Kp, l.P, l.Kp);
}

template <class T>
int64_t record_size(int64_t d, int64_t m, int64_t C) {
  return 2 * (m * padded<T>(int(d)) + d * padded<T>(int(m))) + (m + 1) * padded<T>(int(C));
}

// A chunk's first weights and what the output layer was read with, to a record or back.
template <class T, class F>
void with_record(Work<T>& w, T* record, F move) {
  for (Layer<T>* l : {&w.layer2, &w.layer1})
    for (T* weights : {l->S, l->P}) move(record, weights, l->size()), record += l->size();
  move(record, w.a_q, w.m * w.Cp);
  move(record + w.m * w.Cp, w.s_q, w.Cp);
}

}  // namespace
