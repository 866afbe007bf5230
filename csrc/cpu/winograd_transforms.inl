// The one-dimensional transforms of Winograd convolution F(m, r): m outputs of an r-tap filter from m + r - 1 products,
//     y = A^T [(G g) * (B^T d)].
//
// Six products, F(4,3) and F(2,5), interpolate at 0, +-2/3, +-3/2 and infinity. The points decide the error: against a
// sequential float32 sum these give 1.6-3.0 times the rms error from 72 products on, the usual 0, +-1, +-2
// give 3.7-5.5. As 2/3 * 3/2 = 1 the outer coefficients of B^T are one. Four products, F(2,3), interpolate at 0, +-1
// and infinity: 0.5-0.9 times, exact on small integers, and an output sees no input outside its own window.
//
// Points and error after: Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution for deep
// neural networks", ACM TOMS 46 (2020); the algorithm: Lavin and Gray, CVPR 2016.

struct WinogradSix {
  static constexpr int size = 6;
  static constexpr double a = 2.0 / 3, b = 1.5, a2 = a * a, b2 = b * b, s = a2 + b2;

  template <class V, class T>
  static inline void input_of(const V (&d)[6], V (&v)[6], T) {
    const V even_a = d[4] - T(b2) * d[2], odd_a = T(a) * d[3] - T(b) * d[1];
    const V even_b = d[4] - T(a2) * d[2], odd_b = T(b) * d[3] - T(a) * d[1];
    v[0] = (d[0] + d[4]) - T(s) * d[2];
    v[1] = even_a + odd_a, v[2] = even_a - odd_a;
    v[3] = even_b + odd_b, v[4] = even_b - odd_b;
    v[5] = (d[1] + d[5]) - T(s) * d[3];
  }
  // g0 + g2 p^2 + ... and g1 p + ... of the two points of a pair, over the pair's norm.
  static constexpr double norm_a = 2 * a2 * (a2 - b2), norm_b = 2 * b2 * (b2 - a2);
};

template <class T>
struct WinogradF43 : WinogradSix {
  static constexpr int outputs = 4, taps = 3;
  typedef Vec<T> V;

  static inline void input(const V (&d)[6], V (&v)[6]) { input_of(d, v, T(0)); }
  static inline void weight(const V (&g)[3], V (&u)[6]) {
    const V even_a = T(1 / norm_a) * g[0] + T(a2 / norm_a) * g[2], odd_a = T(a / norm_a) * g[1];
    const V even_b = T(1 / norm_b) * g[0] + T(b2 / norm_b) * g[2], odd_b = T(b / norm_b) * g[1];
    u[0] = g[0];
    u[1] = even_a + odd_a, u[2] = even_a - odd_a;
    u[3] = even_b + odd_b, u[4] = even_b - odd_b;
    u[5] = g[2];
  }
  static inline void output(const V (&m)[6], V (&y)[4]) {
    const V sum_a = m[1] + m[2], difference_a = m[1] - m[2];
    const V sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    y[0] = (m[0] + sum_a) + sum_b;
    y[1] = T(a) * difference_a + T(b) * difference_b;
    y[2] = T(a2) * sum_a + T(b2) * sum_b;
    y[3] = T(a * a2) * difference_a + (T(b * b2) * difference_b + m[5]);
  }
  // Of the weight gradient, F(3,4): gy is the filter, the taps are the outputs.
  static inline void gradient(const V (&g)[4], V (&u)[6]) {
    const V even_a = T(1 / norm_a) * g[0] + T(a2 / norm_a) * g[2];
    const V even_b = T(1 / norm_b) * g[0] + T(b2 / norm_b) * g[2];
    const V odd_a = T(a / norm_a) * g[1] + T(a * a2 / norm_a) * g[3];
    const V odd_b = T(b / norm_b) * g[1] + T(b * b2 / norm_b) * g[3];
    u[0] = g[0];
    u[1] = even_a + odd_a, u[2] = even_a - odd_a;
    u[3] = even_b + odd_b, u[4] = even_b - odd_b;
    u[5] = g[3];
  }
  static inline void gradient_taps(const V (&m)[6], V (&y)[3]) {
    const V sum_a = m[1] + m[2], sum_b = m[3] + m[4];
    y[0] = (m[0] + sum_a) + sum_b;
    y[1] = T(a) * (m[1] - m[2]) + T(b) * (m[3] - m[4]);
    y[2] = T(a2) * sum_a + (T(b2) * sum_b + m[5]);
  }
};

template <class T>
struct WinogradF25 : WinogradSix {
  static constexpr int outputs = 2, taps = 5;
  typedef Vec<T> V;

  static inline void input(const V (&d)[6], V (&v)[6]) { input_of(d, v, T(0)); }
  static inline void weight(const V (&g)[5], V (&u)[6]) {
    const V even_a = T(1 / norm_a) * g[0] + (T(a2 / norm_a) * g[2] + T(a2 * a2 / norm_a) * g[4]);
    const V even_b = T(1 / norm_b) * g[0] + (T(b2 / norm_b) * g[2] + T(b2 * b2 / norm_b) * g[4]);
    const V odd_a = T(a / norm_a) * g[1] + T(a * a2 / norm_a) * g[3];
    const V odd_b = T(b / norm_b) * g[1] + T(b * b2 / norm_b) * g[3];
    u[0] = g[0];
    u[1] = even_a + odd_a, u[2] = even_a - odd_a;
    u[3] = even_b + odd_b, u[4] = even_b - odd_b;
    u[5] = g[4];
  }
  static inline void output(const V (&m)[6], V (&y)[2]) {
    y[0] = (m[0] + (m[1] + m[2])) + (m[3] + m[4]);
    y[1] = T(a) * (m[1] - m[2]) + (T(b) * (m[3] - m[4]) + m[5]);
  }
  // Of the weight gradient, F(5,2).
  static inline void gradient(const V (&g)[2], V (&u)[6]) {
    const V even_a = T(1 / norm_a) * g[0], odd_a = T(a / norm_a) * g[1];
    const V even_b = T(1 / norm_b) * g[0], odd_b = T(b / norm_b) * g[1];
    u[0] = g[0];
    u[1] = even_a + odd_a, u[2] = even_a - odd_a;
    u[3] = even_b + odd_b, u[4] = even_b - odd_b;
    u[5] = g[1];
  }
  static inline void gradient_taps(const V (&m)[6], V (&y)[5]) {
    const V sum_a = m[1] + m[2], difference_a = m[1] - m[2];
    const V sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    y[0] = (m[0] + sum_a) + sum_b;
    y[1] = T(a) * difference_a + T(b) * difference_b;
    y[2] = T(a2) * sum_a + T(b2) * sum_b;
    y[3] = T(a * a2) * difference_a + T(b * b2) * difference_b;
    y[4] = T(a2 * a2) * sum_a + (T(b2 * b2) * sum_b + m[5]);
  }
};

template <class T>
struct WinogradF23 {
  static constexpr int size = 4, outputs = 2, taps = 3;
  typedef Vec<T> V;

  static inline void input(const V (&d)[4], V (&v)[4]) {
    v[0] = d[0] - d[2], v[1] = d[1] + d[2], v[2] = d[2] - d[1], v[3] = d[3] - d[1];
  }
  static inline void weight(const V (&g)[3], V (&u)[4]) {
    const V half = T(0.5) * (g[0] + g[2]), odd = T(0.5) * g[1];
    u[0] = g[0], u[1] = half + odd, u[2] = half - odd, u[3] = g[2];
  }
  static inline void output(const V (&m)[4], V (&y)[2]) {
    y[0] = (m[0] + m[1]) + m[2];
    y[1] = (m[1] - m[2]) + m[3];
  }
};
