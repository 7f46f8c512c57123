// Heads of a projection as memories read them: SiLU (if asked for), norm 1 (of the first `unit` parts), tokens last.
#include "elementwise.hpp"

using namespace hope;

struct Args {
  int64_t N, T, H, d, parts, unit, silu;  // sequences, tokens, heads, head width; at most three parts
  void *x, *q, *k, *v, *records;          // [N, T, parts H d]; each part [N, H, d, T]
  void *g_q, *g_k, *g_v, *g_x;
};

namespace {

template <class T>
inline T inverse_norm(vec<T> squares) {
  return 1 / std::sqrt(total<T>(squares) + T(NORM_EPS));
}

template <class T, class X>
void forward(const Args& g, int64_t item) {
  const int64_t D = g.H * g.d, E = g.parts * D, n = item / g.H, c0 = item % g.H * g.d;
  const int d = int(g.d), ld = padded<T>(d);
  Scratch<T> scratch;
  T *rows = scratch.take(TILE * ld), *turned = scratch.take(d * TILE);
  for (int64_t p = 0; p < g.parts; ++p) {
    const X* x = static_cast<const X*>(g.x) + n * g.T * E + p * D;
    T* y = static_cast<T*>(p == 0 ? g.q : p == 1 ? g.k : g.v) + n * D * g.T;
    tiles(g.T, [&](int64_t t, int tokens) {
      for (int i = 0; i < tokens; ++i) {
        T* row = rows + i * ld;
        vec<T> squares = {};
        columns<T>(d, [&](int64_t c, int m) {
          vec<T> a = in(x + (t + i) * E + c0 + c, m);
          if (g.silu) a *= sigmoid<T>(a);
          squares += a * a;
          store(row + c, a);
        });
        if (p >= g.unit) continue;
        const T scale = inverse_norm<T>(squares);
        for (int c = 0; c < ld; c += W<T>) store(row + c, load(row + c) * scale);
      }
      tokens_out(tokens, d, rows, ld, turned, g.T, y + c0 * g.T + t);
    });
  }
}

template <class T, class X>
void backward(const Args& g, int64_t item) {
  const int64_t D = g.H * g.d, E = g.parts * D, n = item / g.H, c0 = item % g.H * g.d;
  const int d = int(g.d), ld = padded<T>(d);
  Scratch<T> scratch;
  T *rows = scratch.take(TILE * ld), *a_row = scratch.take(ld), *s_row = scratch.take(ld),
    *turned = scratch.take(d * TILE);
  for (int64_t p = 0; p < g.parts; ++p) {
    const X* x = static_cast<const X*>(g.x) + n * g.T * E + p * D;
    X* g_x = static_cast<X*>(g.g_x) + n * g.T * E + p * D;
    const T* g_y = static_cast<const T*>(p == 0 ? g.g_q : p == 1 ? g.g_k : g.g_v) + n * D * g.T;
    tiles(g.T, [&](int64_t t, int tokens) {
      tokens_in(tokens, d, g_y + c0 * g.T + t, g.T, turned, rows, ld);
      for (int i = 0; i < tokens; ++i) {
        const T* row = rows + i * ld;
        const X* x_row = x + (t + i) * E + c0;
        X* g_row = g_x + (t + i) * E + c0;
        vec<T> squares = {}, felt = {};
        columns<T>(d, [&](int64_t c, int m) {
          vec<T> a = in(x_row + c, m);
          if (g.silu) {
            const vec<T> s = sigmoid<T>(a);
            store(s_row + c, s), a *= s;
          }
          squares += a * a, felt += a * load(row + c);
          store(a_row + c, a);
        });
        // unit = s a: the gradient at a is s (g - unit (unit . g)).
        const bool unit = p < g.unit;
        const T scale = unit ? inverse_norm<T>(squares) : T(1), pull = unit ? scale * scale * total<T>(felt) : T(0);
        columns<T>(d, [&](int64_t c, int m) {
          const vec<T> a = load(a_row + c);
          vec<T> g_a = (load(row + c) - a * pull) * scale;
          if (g.silu) {
            const vec<T> s = load(s_row + c);
            g_a *= s + a * (1 - s);
          }
          out(g_row + c, g_a, m);
        });
      }
    });
  }
}

}  // namespace

extern "C" {
int64_t split_heads_arguments() { return sizeof(Args); }
void split_heads_forward_f32(const Args* g, int64_t from, int64_t to) {
  for (int64_t n = from; n < to; ++n) forward<float, float>(*g, n);
}
void split_heads_forward_f64(const Args* g, int64_t from, int64_t to) {
  for (int64_t n = from; n < to; ++n) forward<double, double>(*g, n);
}
void split_heads_forward_bf16(const Args* g, int64_t from, int64_t to) {
  for (int64_t n = from; n < to; ++n) forward<float, bfloat16>(*g, n);
}
void split_heads_backward_f32(const Args* g, int64_t from, int64_t to) {
  for (int64_t n = from; n < to; ++n) backward<float, float>(*g, n);
}
void split_heads_backward_f64(const Args* g, int64_t from, int64_t to) {
  for (int64_t n = from; n < to; ++n) backward<double, double>(*g, n);
}
void split_heads_backward_bf16(const Args* g, int64_t from, int64_t to) {
  for (int64_t n = from; n < to; ++n) backward<float, bfloat16>(*g, n);
}
}
