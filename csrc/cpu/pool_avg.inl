// Average pooling and its gradient: sums by pool_reduce.inl and pool_spread.inl, counts by the divisor rule.
//
// The forward pass divides, so that small integers come out exact; the gradient multiplies by one over the counts of
// the axes. PyTorch 2.13 moves 2-6 GB/s in NCHW on two cores, forward and backward.

template <class T>
struct AverageOf {
  typedef T Sum;
  static constexpr bool divides = true, lifts = false, reads_x = false;
  static T identity() { return 0; }
  template <class V>
  static V lift(V v) {
    return v;
  }
  template <class V>
  static V join(V a, V b) {
    return a + b;
  }
  template <class V>
  static V finish(V v) {
    return v;
  }
  template <class V>
  static V finish(V v, V) {
    return v;
  }
};

// Cells that output o of an axis counts; the product over the axes is the divisor.
struct AverageCount {
  const PoolShape& shape;
  int64_t divisor;  // of all windows, or 0
  bool include_pad;

  int64_t operator()(int axis, int64_t o) const {
    if (divisor) return axis == 2 ? divisor : 1;
    return shape.axis[axis].counted(o, include_pad);
  }
};

template <class T>
struct avg_pool_direct {
  typedef PoolReduce<T, AverageOf<T>> Reduce;

  static size_t workspace(const void* params, int threads) {
    const PoolShape shape(static_cast<const ck_pool*>(params));
    return Reduce(shape, {}, nullptr, threads).workspace_bytes();
  }
  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_pool>(params)) return CK_BAD_STRUCT;
    const ck_pool* p = static_cast<const ck_pool*>(params);
    const PoolShape shape(p);
    Reduce reduce(shape, {}, exec->workspace, exec->threads);
    if (exec->workspace_size < reduce.workspace_bytes()) return CK_SMALL_WORKSPACE;
    return reduce.run(tensors[0], tensors[1], exec, AverageCount{shape, p->divisor, p->count_include_pad != 0});
  }
  static const char* why_not(const void* params) { return pool_why_not(static_cast<const ck_pool*>(params)); }
};

template <class T>
struct avg_pool_grad_direct {
  typedef PoolSpread<T, T, AverageOf<T>> Spread;

  static size_t workspace(const void* params, int threads) {
    const PoolShape shape(static_cast<const ck_pool*>(params));
    return Spread(shape, {}, nullptr, threads).workspace_bytes();
  }
  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_pool>(params)) return CK_BAD_STRUCT;
    const ck_pool* p = static_cast<const ck_pool*>(params);
    const PoolShape shape(p);
    Spread spread(shape, {}, exec->workspace, exec->threads);
    if (exec->workspace_size < spread.workspace_bytes()) return CK_SMALL_WORKSPACE;
    return spread.run(tensors[0], {}, tensors[1], exec, AverageCount{shape, p->divisor, p->count_include_pad != 0});
  }
  static const char* why_not(const void* params) { return pool_why_not(static_cast<const ck_pool*>(params)); }
};
