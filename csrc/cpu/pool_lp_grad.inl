// Gradient of Lp pooling; the formulas are at the head of pool_lp.inl.
//
// First the norms are computed again, in double, into the workspace: 8 bytes per output. Then they are replaced by the
// factors gy y^(1-p), 0 where y = 0, and spread.

// finish: times sign(x) |x|^(p-1), 0 where x = 0.
template <class T>
struct LpSlope {
  typedef double Sum;
  static constexpr bool divides = false, reads_x = true;
  double p;

  Vec<double> finish(Vec<double> sum, Vec<double> x) const {
    Vec<double> slope = x;
    if (p == 1) {
      const Vec<double> one = splat(1.0);
      slope = x > Vec<double>{} ? one : (x < Vec<double>{} ? -one : x);  // NaN stays
    } else if (p != 2) {
      for (int i = 0; i < kLanes<double>; i++) slope[i] = __builtin_copysign(pow(__builtin_fabs(x[i]), p - 1), x[i]);
    }
    return x == Vec<double>{} ? Vec<double>{} : slope * sum;
  }
};

template <class T>
class LpGrad {
  typedef PoolSpread<T, double, LpSlope<T>> Spread;

 public:
  LpGrad(const PoolShape& shape, double p, void* workspace, int threads) : shape_(shape), norm_{shape, p}, p_(p) {
    one_by_one_ = __builtin_isinf(p) || (p != 2 && norm_.may_overflow());
    Carver carver(workspace);
    const int64_t outputs = shape.batch * shape.channels * shape.plane_out();
    norms_ = carver.take<double>(outputs);
    if (one_by_one_) shares_ = carver.take<double>(outputs);
    const size_t loops =
        max_of(norm_.workspace_bytes(threads), Spread(shape, LpSlope<T>{p}, nullptr, threads).workspace_bytes());
    loops_ = carver.take<char>(int64_t(loops));
    bytes_ = carver.bytes;
  }
  size_t workspace_bytes() const { return bytes_; }

  ck_status run(const ck_tensor& grad, const ck_tensor& x, const ck_tensor& grad_x, const ck_exec* exec) const {
    const ck_tensor norms = dense(norms_, x), shares = dense(shares_, x);
    ck_status status = norm_.template run<double>(x, norms, loops_, exec);
    if (status != CK_OK) return status;
    if (!one_by_one_) {
      status = each_output(exec, [&](const RowPlace& at, int64_t o) {
        double& y = place<double>(norms, at, o);
        const double g = double(place<T>(grad, at, o));
        y = y == 0 ? 0 : p_ == 2 ? g / y : g * pow(y, 1 - p_);
      });
      if (status != CK_OK) return status;
      return Spread(shape_, LpSlope<T>{p_}, loops_, exec->threads).run(norms, x, grad_x, exec, no_count);
    }
    status = each_output(exec, [&](const RowPlace& at, int64_t o) {
      place<double>(shares, at, o) = double(place<T>(grad, at, o)) /
                                     (__builtin_isinf(p_) ? equal_elements(x, at, o, place<double>(norms, at, o)) : 1);
    });
    if (status != CK_OK) return status;
    const int64_t rows = shape_.batch * shape_.channels * shape_.axis[0].in * shape_.axis[1].in;
    return parallel_pieces(exec, rows, double(shape_.axis[2].in) * 100, [&](int64_t begin, int64_t end, int) {
      RowPlace at(begin, shape_.channels, shape_.axis[0].in, shape_.axis[1].in);
      for (int64_t row = begin; row < end; row++, at.next())
        for (int64_t i = 0; i < shape_.axis[2].in; i++)
          place<T>(grad_x, at, i) = T(gradient(double(place<T>(x, at, i)), norms, shares, at, i));
    });
  }

 private:
  // A dense map of the output's shape, channels where x has them.
  ck_tensor dense(double* data, const ck_tensor& x) const {
    const int64_t c = shape_.channels, d = shape_.axis[0].out, h = shape_.axis[1].out, w = shape_.axis[2].out;
    if (shape_.channels_inner(&x)) return {data, {d * h * w * c, 1, h * w * c, w * c, c}};
    return {data, {c * d * h * w, d * h * w, h * w, w, 1}};
  }

  template <class E>
  static E& place(const ck_tensor& t, const RowPlace& at, int64_t column) {
    return static_cast<E*>(t.data)[at.offset(t) + column * t.stride[4]];
  }

  template <class Body>
  ck_status each_output(const ck_exec* exec, const Body& body) const {
    const int64_t rows = shape_.batch * shape_.channels * shape_.axis[0].out * shape_.axis[1].out;
    return parallel_pieces(exec, rows, double(shape_.axis[2].out) * 16, [&](int64_t begin, int64_t end, int) {
      RowPlace at(begin, shape_.channels, shape_.axis[0].out, shape_.axis[1].out);
      for (int64_t row = begin; row < end; row++, at.next())
        for (int64_t o = 0; o < shape_.axis[2].out; o++) body(at, o);
    });
  }

  // Elements of a window that are as large as its norm: they share the gradient for p = infinity.
  double equal_elements(const ck_tensor& x, const RowPlace& at, int64_t o, double norm) const {
    const Span depth = shape_.axis[0].elements(at.d), height = shape_.axis[1].elements(at.h),
               width = shape_.axis[2].elements(o);
    double count = 0;
    for (int64_t a = 0; a < depth.count; a++)
      for (int64_t r = 0; r < height.count; r++) {
        const RowPlace row =
            at.moved(depth.first + a * shape_.axis[0].dilation, height.first + r * shape_.axis[1].dilation);
        for (int64_t j = 0; j < width.count; j++)
          count += __builtin_fabs(double(place<T>(x, row, width.first + j * shape_.axis[2].dilation))) == norm;
      }
    return count;
  }

  double gradient(double x, const ck_tensor& norms, const ck_tensor& shares, const RowPlace& at, int64_t i) const {
    if (x == 0) return 0;
    const Span depth = shape_.axis[0].outputs(at.d), height = shape_.axis[1].outputs(at.h),
               width = shape_.axis[2].outputs(i);
    double sum = 0;
    for (int64_t a = 0; a < depth.count; a++)
      for (int64_t r = 0; r < height.count; r++) {
        const RowPlace row =
            at.moved(depth.first + a * shape_.axis[0].out_step, height.first + r * shape_.axis[1].out_step);
        for (int64_t j = 0; j < width.count; j++) {
          const int64_t o = width.first + j * shape_.axis[2].out_step;
          const double y = place<double>(norms, row, o);
          if (y == 0) continue;
          const double ratio = __builtin_fabs(x) / y;
          const double slope = !__builtin_isinf(p_) ? pow(ratio, p_ - 1) : ratio != ratio ? ratio : double(ratio == 1);
          sum += slope * place<double>(shares, row, o);
        }
      }
    return x > 0 ? sum : x < 0 ? -sum : x;
  }

  const PoolShape& shape_;
  const LpNorm<T> norm_;
  const double p_;
  bool one_by_one_;
  double *norms_, *shares_ = nullptr;
  char* loops_;
  size_t bytes_;
};

template <class T>
struct lp_pool_grad_direct {
  static size_t workspace(const void* params, int threads) {
    const ck_pool* p = static_cast<const ck_pool*>(params);
    const PoolShape shape(p);
    return LpGrad<T>(shape, p->norm_type, nullptr, threads).workspace_bytes();
  }
  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_pool>(params)) return CK_BAD_STRUCT;
    const ck_pool* p = static_cast<const ck_pool*>(params);
    const PoolShape shape(p);
    const LpGrad<T> grad(shape, p->norm_type, exec->workspace, exec->threads);
    if (exec->workspace_size < grad.workspace_bytes()) return CK_SMALL_WORKSPACE;
    return grad.run(tensors[0], tensors[1], tensors[2], exec);
  }
  static const char* why_not(const void* params) { return pool_why_not(static_cast<const ck_pool*>(params)); }
};
