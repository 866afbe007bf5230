// Vector functions beyond vec.h: strided access, widening to double, square root, exp, tanh and sigmoid.
//
// exp follows the usual reduction x = n ln2 + r, |r| <= ln2 / 2, and the Taylor series of exp(r) - 1, long enough that
// the first term left out is below a tenth of the last place. tanh is taken from exp(2|x|) - 1, so that small results
// keep their relative accuracy. Largest error of tanh and sigmoid in tests/test_pointwise_kernels.py: below 3 units in
// the last place (tanh 2.3).

// n <= lanes elements at distance `step`; the other lanes read as zero and are not written.
template <class T>
static inline Vec<T> load_at(const T* p, int64_t step, int n) {
  if (step == 1) return n == kLanes<T> ? load(p) : load_n(p, n);
  Vec<T> v{};
  for (int i = 0; i < n; i++) v[i] = p[i * step];
  return v;
}
template <class T>
static inline void store_at(T* p, int64_t step, Vec<T> v, int n) {
  if (step == 1) return n == kLanes<T> ? store(p, v) : store_n(p, v, n);
  for (int i = 0; i < n; i++) p[i * step] = v[i];
}

// Elements as doubles, for sums that must not lose float's last places.
constexpr int kWideLanes = kLanes<double>;
static inline Vec<double> load_wide(const double* p) { return load(p); }
static inline Vec<double> load_wide(const float* p) {
  typedef float Half __attribute__((vector_size(kVectorBytes / 2), aligned(4), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Half*>(p), Vec<double>);
}
template <class S>
static inline Vec<double> load_wide(const S* p) {  // of a storage type
  float lane[kLanes<float>];
  store(lane, load_n(p, kWideLanes));
  return load_wide(lane);
}
template <class S>
static inline Vec<double> load_wide_at(const S* p, int64_t step, int n) {
  if (step == 1 && n == kWideLanes) return load_wide(p);
  Wide<S> lane[kWideLanes] = {};
  for (int i = 0; i < n; i++) lane[i] = widen(p[i * step]);
  return load_wide(lane);
}

template <class T>
static inline T sum_of_lanes(Vec<T> v) {
  T sum = 0;
  for (int i = 0; i < kLanes<T>; i++) sum += v[i];
  return sum;
}

template <class T>
static inline Vec<T> sqrt_of(Vec<T> v) {
#if CK_VECTOR_BYTES == 64  // full masks, because GCC 12 warns about its own unmasked forms (its PR 105593)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_sqrt_ps(__mmask16(-1), (__m512)v);
  else return (Vec<T>)_mm512_maskz_sqrt_pd(__mmask8(-1), (__m512d)v);
#elif CK_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_sqrt_ps((__m256)v);
  else return (Vec<T>)_mm256_sqrt_pd((__m256d)v);
#elif defined(__SSE2__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm_sqrt_ps((__m128)v);
  else return (Vec<T>)_mm_sqrt_pd((__m128d)v);
#else
  for (int i = 0; i < kLanes<T>; i++) v[i] = T(__builtin_sqrt(double(v[i])));
  return v;
#endif
}

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  typedef int32_t Int;
  static constexpr int mantissa_bits = 23, exponent_bias = 127;
  static constexpr float round = 12582912.0f;              // 1.5 * 2^23: adding it leaves an integer in the low bits
  static constexpr float ln2_high = 0x1.62e4p-1f;          // few bits: its product with n is exact
  static constexpr float ln2_low = 1.428606820309417e-6f;  // ln2 - ln2_high
  static constexpr float zero_below = -104.0f;             // exp() rounds to 0 there
  static constexpr float tanh_is_one = 20.0f;              // 2|x| from which tanh rounds to 1
  static constexpr float series[] = {1 / 2.0f, 1 / 6.0f, 1 / 24.0f, 1 / 120.0f, 1 / 720.0f, 1 / 5040.0f, 1 / 40320.0f};
};
template <>
struct ExpConstants<double> {
  typedef int64_t Int;
  static constexpr int mantissa_bits = 52, exponent_bias = 1023;
  static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double ln2_high = 0x1.62e42feep-1;
  static constexpr double ln2_low = 1.9082149292705877e-10;
  static constexpr double zero_below = -746.0;
  static constexpr double tanh_is_one = 40.0;
  static constexpr double series[] = {
      1 / 2.0,      1 / 6.0,       1 / 24.0,       1 / 120.0,       1 / 720.0,        1 / 5040.0,       1 / 40320.0,
      1 / 362880.0, 1 / 3628800.0, 1 / 39916800.0, 1 / 479001600.0, 1 / 6227020800.0, 1 / 87178291200.0};
};

template <class T>
struct Exp {
  using C = ExpConstants<T>;
  using Int = typename C::Int;
  typedef Int Ints __attribute__((vector_size(kVectorBytes)));

  Vec<T> fraction;  // exp(x) = 2^exponent * (1 + fraction), |fraction| < 0.42
  Ints exponent;

  // |x| < 2^20; for NaN the fraction is NaN.
  explicit Exp(Vec<T> x) {
    const Vec<T> shifted = x * splat(T(1.4426950408889634)) + splat(C::round);
    const Vec<T> n = shifted - splat(C::round);
    const Vec<T> r = (x - n * splat(C::ln2_high)) - n * splat(C::ln2_low);
    constexpr int terms = int(sizeof C::series / sizeof(T));
    Vec<T> q = splat(C::series[terms - 1]);
#pragma GCC unroll 16
    for (int i = terms - 2; i >= 0; i--) q = q * r + splat(C::series[i]);
    fraction = r + r * r * q;
    exponent = (Ints)shifted - (Ints)splat(C::round);
  }

  // 2^n for n in the range of normal numbers.
  static Vec<T> power_of_two(Ints n) { return (Vec<T>)((n + C::exponent_bias) << C::mantissa_bits); }
};

// exp(x) for x <= 0, down to subnormal results. In two factors, because 2^n alone may be below the normal range.
template <class T>
static inline Vec<T> exp_of_nonpositive(Vec<T> x) {
  const Vec<T> lowest = splat(ExpConstants<T>::zero_below);
  const Exp<T> e(x < lowest ? lowest : x);
  const auto half = e.exponent >> 1;
  return (splat(T(1)) + e.fraction) * Exp<T>::power_of_two(half) * Exp<T>::power_of_two(e.exponent - half);
}

template <class T>
static inline Vec<T> abs_of(Vec<T> v) {
  return v < Vec<T>{} ? -v : v;
}

// tanh(a) = m / (m + 2) with m = exp(2a) - 1 = 2^n * fraction + (2^n - 1), a = |x|.
template <class T>
static inline Vec<T> tanh_of(Vec<T> x) {
  const Vec<T> one = splat(ExpConstants<T>::tanh_is_one);
  const Vec<T> twice = abs_of<T>(x) + abs_of<T>(x);
  const Exp<T> e(twice > one ? one : twice);
  const Vec<T> scale = Exp<T>::power_of_two(e.exponent);
  const Vec<T> m = scale * e.fraction + (scale - splat(T(1)));
  const Vec<T> y = m / (m + splat(T(2)));
  return x < Vec<T>{} ? -y : (x > Vec<T>{} ? y : x);  // zeros keep their sign, NaN its payload
}

// 1 / (1 + exp(-x)), for negative x as exp(x) / (1 + exp(x)): no overflow, no cancellation.
template <class T>
static inline Vec<T> sigmoid_of(Vec<T> x) {
  const Vec<T> one = splat(T(1));
  const Vec<T> e = exp_of_nonpositive<T>(-abs_of<T>(x));
  return (x < Vec<T>{} ? e : one) / (one + e);
}
