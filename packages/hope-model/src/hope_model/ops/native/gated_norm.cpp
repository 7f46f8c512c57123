// What a memory's reads return to the stream: RMSNorm of every head, times SiLU of a gate; tokens last to width last.
#include "elementwise.hpp"

using namespace hope;

struct Args {
  int64_t N, T, H, d;                     // sequences, tokens, heads, head width
  void *o, *gate, *weight, *y, *records;  // [N, H, d, T], [N, T, H d], [1, d], [N, T, H d]
  void *g_y, *g_o, *g_gate, *g_weight;    // g_weight [N, d]
};

namespace {

// 1 / root mean square.
template <class T>
inline T inverse_rms(vec<T> squares, int d) {
  return 1 / std::sqrt(total<T>(squares) / d + T(NORM_EPS));
}

template <class T, class X>
void forward(const Args& g, int64_t n) {
  const int64_t D = g.H * g.d, first = n * D * g.T;
  const int d = int(g.d), ld = padded<T>(d);
  const T *o = static_cast<const T*>(g.o) + first, *weight = static_cast<const T*>(g.weight);
  const X* gate = static_cast<const X*>(g.gate) + first;
  X* y = static_cast<X*>(g.y) + first;
  Scratch<T> scratch;
  T *rows = scratch.take(TILE * ld), *turned = scratch.take(d * TILE);
  for (int64_t c0 = 0; c0 < D; c0 += d) tiles(g.T, [&](int64_t t, int tokens) {
    tokens_in(tokens, d, o + c0 * g.T + t, g.T, turned, rows, ld);
    for (int i = 0; i < tokens; ++i) {
      const T* row = rows + i * ld;
      const int64_t at = (t + i) * D + c0;
      vec<T> squares = {};
      for (int c = 0; c < ld; c += W<T>) squares += load(row + c) * load(row + c);
      const T scale = inverse_rms<T>(squares, d);
      columns<T>(d, [&](int64_t c, int m) {
        const vec<T> x = in(gate + at + c, m);
        out(y + at + c, load(row + c) * scale * in(weight + c, m) * (x * sigmoid<T>(x)), m);
      });
    }
  });
}

template <class T, class X>
void backward(const Args& g, int64_t n) {
  const int64_t D = g.H * g.d, first = n * D * g.T;
  const int d = int(g.d), ld = padded<T>(d);
  const T *o = static_cast<const T*>(g.o) + first, *weight = static_cast<const T*>(g.weight);
  const X *gate = static_cast<const X*>(g.gate) + first, *g_y = static_cast<const X*>(g.g_y) + first;
  T* g_o = static_cast<T*>(g.g_o) + first;
  X* g_gate = static_cast<X*>(g.g_gate) + first;
  Scratch<T> scratch;
  T *rows = scratch.take(TILE * ld), *g_rows = scratch.take(TILE * ld), *turned = scratch.take(d * TILE);
  T* g_weight = scratch.take(ld);
  for (int64_t c0 = 0; c0 < D; c0 += d) tiles(g.T, [&](int64_t t, int tokens) {
    tokens_in(tokens, d, o + c0 * g.T + t, g.T, turned, rows, ld);
    for (int i = 0; i < tokens; ++i) {
      T *row = rows + i * ld, *g_row = g_rows + i * ld;
      const int64_t at = (t + i) * D + c0;
      vec<T> squares = {}, felt = {};
      for (int c = 0; c < ld; c += W<T>) squares += load(row + c) * load(row + c);
      const T scale = inverse_rms<T>(squares, d);
      columns<T>(d, [&](int64_t c, int m) {  // y = weight unit silu(x), unit = scale o
        const vec<T> x = in(gate + at + c, m), s = sigmoid<T>(x), silu = x * s;
        const vec<T> unit = load(row + c) * scale, g_here = in(g_y + at + c, m), w = in(weight + c, m);
        out(g_gate + at + c, g_here * w * unit * (s + silu * (1 - s)), m);
        store(g_weight + c, load(g_weight + c) + g_here * unit * silu);
        const vec<T> g_unit = g_here * w * silu;
        felt += g_unit * unit;
        store(row + c, unit), store(g_row + c, g_unit);
      });
      const T pull = total<T>(felt) / d;
      for (int c = 0; c < ld; c += W<T>) store(g_row + c, (load(g_row + c) - load(row + c) * pull) * scale);
    }
    tokens_out(tokens, d, g_rows, ld, turned, g.T, g_o + c0 * g.T + t);
  });
  std::memcpy(static_cast<T*>(g.g_weight) + n * d, g_weight, sizeof(T) * d);
}

}  // namespace

extern "C" {
int64_t gated_norm_arguments() { return sizeof(Args); }
void gated_norm_forward_f32(const Args* g, int64_t from, int64_t to) {
  for (int64_t n = from; n < to; ++n) forward<float, float>(*g, n);
}
void gated_norm_forward_f64(const Args* g, int64_t from, int64_t to) {
  for (int64_t n = from; n < to; ++n) forward<double, double>(*g, n);
}
void gated_norm_forward_bf16(const Args* g, int64_t from, int64_t to) {
  for (int64_t n = from; n < to; ++n) forward<float, bfloat16>(*g, n);
}
void gated_norm_backward_f32(const Args* g, int64_t from, int64_t to) {
  for (int64_t n = from; n < to; ++n) backward<float, float>(*g, n);
}
void gated_norm_backward_f64(const Args* g, int64_t from, int64_t to) {
  for (int64_t n = from; n < to; ++n) backward<double, double>(*g, n);
}
void gated_norm_backward_bf16(const Args* g, int64_t from, int64_t to) {
  for (int64_t n = from; n < to; ++n) backward<float, bfloat16>(*g, n);
}
}
