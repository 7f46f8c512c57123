// Depthwise causal convolution: one pass over memory forward, one back; what J rows share stays in the nearest cache.
#include "elementwise.hpp"

using namespace hope;

struct Args {
  int64_t N, T, D, J;                                     // sequences, tokens, width, taps
  void *x, *weight, *y, *records, *g_y, *g_x, *g_weight;  // [N, T + J - 1, D], [1, J, D], [N, T, D]; g_weight [N, J, D]
};

namespace {

constexpr int MOST = 8;  // taps

// y_t = sum over j of weight_j x_{t+j}
template <class T, int J>
void forward(const Args& g, int64_t n) {
  const int64_t D = g.D;
  const T *x = static_cast<const T*>(g.x) + n * (g.T + J - 1) * D, *w = static_cast<const T*>(g.weight);
  T* y = static_cast<T*>(g.y) + n * g.T * D;
  for (int64_t t = 0; t < g.T; ++t)
    columns<T>(D, [&](int64_t c, int m) {
      vec<T> sum = in(w + c, m) * in(x + t * D + c, m);
      for (int j = 1; j < J; ++j) sum += in(w + j * D + c, m) * in(x + (t + j) * D + c, m);
      out(y + t * D + c, sum, m);
    });
}

template <class T, int J>
void backward(const Args& g, int64_t n) {
  const int64_t D = g.D, S = g.T + J - 1;
  const T *x = static_cast<const T*>(g.x) + n * S * D, *w = static_cast<const T*>(g.weight);
  const T* g_y = static_cast<const T*>(g.g_y) + n * g.T * D;
  T *g_x = static_cast<T*>(g.g_x) + n * S * D, *g_w = static_cast<T*>(g.g_weight) + n * J * D;
  std::memset(g_w, 0, sizeof(T) * J * D);
  for (int64_t s = 0; s < S; ++s) {
    const int first = int(std::max<int64_t>(0, s - g.T + 1)), last = int(std::min<int64_t>(J - 1, s));
    columns<T>(D, [&](int64_t c, int m) {
      const vec<T> here = in(x + s * D + c, m);
      vec<T> sum = {};
      for (int j = first; j <= last; ++j) {
        const vec<T> felt = in(g_y + (s - j) * D + c, m);
        sum += in(w + j * D + c, m) * felt;
        out(g_w + j * D + c, in(g_w + j * D + c, m) + here * felt, m);
      }
      out(g_x + s * D + c, sum, m);
    });
  }
}

template <class T, int J = 1>
void run(const Args& g, int64_t from, int64_t to, bool back) {
  if constexpr (J <= MOST) {
    if (g.J != J) return run<T, J + 1>(g, from, to, back);
    for (int64_t n = from; n < to; ++n) back ? backward<T, J>(g, n) : forward<T, J>(g, n);
  }
}

}  // namespace

extern "C" {
int64_t convolution_arguments() { return sizeof(Args); }
int64_t convolution_taps() { return MOST; }
void convolution_forward_f32(const Args* g, int64_t from, int64_t to) { run<float>(*g, from, to, false); }
void convolution_forward_f64(const Args* g, int64_t from, int64_t to) { run<double>(*g, from, to, false); }
void convolution_backward_f32(const Args* g, int64_t from, int64_t to) { run<float>(*g, from, to, true); }
void convolution_backward_f64(const Args* g, int64_t from, int64_t to) { run<double>(*g, from, to, true); }
}
