// Depthwise causal convolution: one pass over memory forward, one back; what J rows share stays in the nearest cache.
#include "elementwise.hpp"

using namespace hope;

struct Args {
  int64_t N, T, D, J;         // sequences, tokens, width, taps
  void *x, *tail, *weight;    // [N, T, D], the J - 1 inputs before them, [1, J, D]
  void *y, *after, *records;  // [N, T, D], the last J - 1 inputs
  void *g_y, *g_after, *g_x, *g_tail, *g_weight;  // g_weight [N, J, D]
};

namespace {

constexpr int MOST = 8;  // taps

// Row s of the tail's J - 1 rows and the T of x behind them.
template <class X>
struct Rows {
  X *tail, *x;
  int64_t D, before;
  Rows(void* tail, void* x, const Args& g, int64_t n)
      : tail(static_cast<X*>(tail) + n * (g.J - 1) * g.D), x(static_cast<X*>(x) + n * g.T * g.D), D(g.D), before(g.J - 1) {}
  X* operator()(int64_t s) const { return s < before ? tail + s * D : x + (s - before) * D; }
};

// y_t = sum over j of weight_j row_{t+j}
template <class T, class X, int J>
void forward(const Args& g, int64_t n) {
  const int64_t D = g.D;
  const T* w = static_cast<const T*>(g.weight);
  const Rows<X> row(g.tail, g.x, g, n);
  X* y = static_cast<X*>(g.y) + n * g.T * D;
  for (int64_t t = 0; t < g.T; ++t) {
    const X* rows[J];
    for (int j = 0; j < J; ++j) rows[j] = row(t + j);
    columns<T>(D, [&](int64_t c, int m) {
      vec<T> sum = in(w + c, m) * in(rows[0] + c, m);
      for (int j = 1; j < J; ++j) sum += in(w + j * D + c, m) * in(rows[j] + c, m);
      out(y + t * D + c, sum, m);
    });
  }
  X* after = static_cast<X*>(g.after) + n * (J - 1) * D;
  for (int j = 0; j < J - 1; ++j) std::memcpy(after + j * D, row(g.T + j), sizeof(X) * D);
}

template <class T, class X, int J>
void backward(const Args& g, int64_t n) {
  const int64_t D = g.D, S = g.T + J - 1;
  const T* w = static_cast<const T*>(g.weight);
  const Rows<X> row(g.tail, g.x, g, n), g_row(g.g_tail, g.g_x, g, n);
  const X *g_y = static_cast<const X*>(g.g_y) + n * g.T * D, *g_after = static_cast<const X*>(g.g_after) + n * (J - 1) * D;
  T* g_w = static_cast<T*>(g.g_weight) + n * J * D;
  std::memset(g_w, 0, sizeof(T) * J * D);
  for (int64_t s = 0; s < S; ++s) {
    const int first = int(std::max<int64_t>(0, s - g.T + 1)), last = int(std::min<int64_t>(J - 1, s));
    const X* here_row = row(s);
    X* to = g_row(s);
    columns<T>(D, [&](int64_t c, int m) {
      const vec<T> here = in(here_row + c, m);
      vec<T> sum = {};
      if (s >= g.T) sum = in(g_after + (s - g.T) * D + c, m);
      for (int j = first; j <= last; ++j) {
        const vec<T> felt = in(g_y + (s - j) * D + c, m);
        sum += in(w + j * D + c, m) * felt;
        out(g_w + j * D + c, in(g_w + j * D + c, m) + here * felt, m);
      }
      out(to + c, sum, m);
    });
  }
}

template <class T, class X, int J = 1>
void run(const Args& g, int64_t from, int64_t to, bool back) {
  if constexpr (J <= MOST) {
    if (g.J != J) return run<T, X, J + 1>(g, from, to, back);
    for (int64_t n = from; n < to; ++n) back ? backward<T, X, J>(g, n) : forward<T, X, J>(g, n);
  }
}

}  // namespace

extern "C" {
int64_t convolution_arguments() { return sizeof(Args); }
int64_t convolution_taps() { return MOST; }
void convolution_forward_f32(const Args* g, int64_t from, int64_t to) { run<float, float>(*g, from, to, false); }
void convolution_forward_f64(const Args* g, int64_t from, int64_t to) { run<double, double>(*g, from, to, false); }
void convolution_forward_bf16(const Args* g, int64_t from, int64_t to) { run<float, bfloat16>(*g, from, to, false); }
void convolution_backward_f32(const Args* g, int64_t from, int64_t to) { run<float, float>(*g, from, to, true); }
void convolution_backward_f64(const Args* g, int64_t from, int64_t to) { run<double, double>(*g, from, to, true); }
void convolution_backward_bf16(const Args* g, int64_t from, int64_t to) { run<float, bfloat16>(*g, from, to, true); }
}
