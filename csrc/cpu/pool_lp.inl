// Lp pooling, y = (sum |x|^p)^(1/p), and its gradient gy sign(x) (|x| / y)^(p-1).
//
// Sums are taken in double: p = 1, 2 and infinity on vectors, other powers lane by lane with pow(). For float and p <=
// 6 no power of a double over- or underflows. Otherwise results near the ends of the range are computed again, relative
// to the largest element. The gradient factors into gy y^(1-p), spread like an average's (pool_spread.inl), times
// sign(x) |x|^(p-1); where these factors may leave the range, and for p = infinity, windows are visited one by one.

template <class V>
static inline V magnitude(V v) {
  return v < V{} ? -v : v;  // NaN stays
}

static __attribute__((noinline)) Vec<double> pow_of(Vec<double> v, double p) {
  for (int i = 0; i < kLanes<double>; i++) v[i] = pow(v[i], p);
  return v;
}

// One Op for all powers: the kind is looked at per vector, which costs little beside the widening to double, and saves
// four copies of all loops.
struct NormOf {
  typedef double Sum;
  static constexpr bool divides = false, lifts = true;
  double p;
  bool sums, squares, powers;

  explicit NormOf(double p_)
      : p(p_), sums(!__builtin_isinf(p_)), squares(p_ == 2), powers(p_ != 1 && p_ != 2 && !__builtin_isinf(p_)) {}
  static double identity() { return 0; }
  Vec<double> lift(Vec<double> v) const {
    if (squares) return v * v;
    return powers ? pow_of(magnitude(v), p) : magnitude(v);
  }
  template <class V>
  V join(V a, V b) const {
    return sums ? a + b : nan_max(a, b);
  }
  Vec<double> finish(Vec<double> sum) const {
    if (squares) return sqrt_of<double>(sum);
    return powers ? pow_of(sum, 1 / p) : sum;
  }
};

// The exact way: relative to the largest element. Reads x at the window of one output.
template <class T>
static double norm_of_window(const T* x, const ck_tensor& t, const PoolShape& shape, const Span (&span)[CK_AXES],
                             double p) {
  auto each = [&](const auto& body) {
    for (int64_t a = 0; a < span[0].count; a++)
      for (int64_t r = 0; r < span[1].count; r++)
        for (int64_t j = 0; j < span[2].count; j++)
          body(double(x[(span[0].first + a * shape.axis[0].dilation) * t.stride[2] +
                        (span[1].first + r * shape.axis[1].dilation) * t.stride[3] +
                        (span[2].first + j * shape.axis[2].dilation) * t.stride[4]]));
  };
  double largest = 0, sum = 0;
  each([&](double v) { largest = nan_max(largest, __builtin_fabs(v)); });
  if (largest == 0 || __builtin_isinf(largest)) return largest;
  each([&](double v) { sum += pow(__builtin_fabs(v) / largest, p); });
  return largest * pow(sum, 1 / p);
}

template <class T>
struct LpNorm {
  const PoolShape& shape;
  double p;

  // Can |x|^p of an element leave the range of double?
  bool may_overflow() const { return !__builtin_isinf(p) && (sizeof(T) == 8 ? p != 1 : p > 6); }

  size_t workspace_bytes(int threads) const {
    return PoolReduce<T, NormOf>(shape, NormOf(p), nullptr, threads).workspace_bytes();
  }

  // y = norms of x; Y is T, or double for the gradient.
  template <class Y>
  ck_status run(const ck_tensor& x, const ck_tensor& y, void* workspace, const ck_exec* exec) const {
    const ck_status status =
        PoolReduce<T, NormOf, Y>(shape, NormOf(p), workspace, exec->threads).run(x, y, exec, no_count);
    return status == CK_OK && may_overflow() ? rescue<Y>(x, y, exec) : status;
  }

 private:
  // Norms whose sums came near the ends of double's range, again.
  template <class Y>
  ck_status rescue(const ck_tensor& x, const ck_tensor& y, const ck_exec* exec) const {
    const double low = pow(1e-280, 1 / p), high = pow(1e300, 1 / p);
    const int64_t rows = shape.batch * shape.channels * shape.axis[0].out * shape.axis[1].out;
    return parallel_pieces(exec, rows, double(shape.axis[2].out) * 4, [&](int64_t begin, int64_t end, int) {
      RowPlace at(begin, shape.channels, shape.axis[0].out, shape.axis[1].out);
      for (int64_t row = begin; row < end; row++, at.next()) {
        Y* const to = static_cast<Y*>(y.data) + at.offset(y);
        const T* const plane = static_cast<const T*>(x.data) + at.n * x.stride[0] + at.c * x.stride[1];
        for (int64_t o = 0; o < shape.axis[2].out; o++) {
          Y& norm = to[o * y.stride[4]];
          if (double(norm) > low && double(norm) < high) continue;
          const Span span[CK_AXES] = {shape.axis[0].elements(at.d), shape.axis[1].elements(at.h),
                                      shape.axis[2].elements(o)};
          norm = Y(norm_of_window(plane, x, shape, span, p));
        }
      }
    });
  }
};

template <class T>
struct lp_pool_direct {
  static size_t workspace(const void* params, int threads) {
    const ck_pool* p = static_cast<const ck_pool*>(params);
    const PoolShape shape(p);
    return LpNorm<T>{shape, p->norm_type}.workspace_bytes(threads);
  }
  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_pool>(params)) return CK_BAD_STRUCT;
    const ck_pool* p = static_cast<const ck_pool*>(params);
    if (exec->workspace_size < workspace(params, exec->threads)) return CK_SMALL_WORKSPACE;
    const PoolShape shape(p);
    return LpNorm<T>{shape, p->norm_type}.template run<T>(tensors[0], tensors[1], exec->workspace, exec);
  }
  static const char* why_not(const void* params) { return pool_why_not(static_cast<const ck_pool*>(params)); }
};
