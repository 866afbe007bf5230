// Max pooling: values by pool_reduce.inl, values and indices by pool_scan.inl.
//
// PyTorch 2.13 moves 0.7-1.7 GB/s here in NCHW on two cores; a copy moves 15-59 (memory, third-level cache).

template <class T>
struct MaxOf {
  typedef T Sum;
  static constexpr bool divides = false, lifts = false;
  static T identity() { return -T(INFINITY); }
  template <class V>
  static V lift(V v) {
    return v;
  }
  template <class V>
  static V join(V a, V b) {
    return nan_max(a, b);
  }
  template <class V>
  static V finish(V v) {
    return v;
  }
};

static inline int64_t no_count(int, int64_t) { return 1; }

// A window of a row that this backend takes must hold a real element: there is nothing else to read.
static inline const char* pool_why_not(const ck_pool* p) {
  const PoolShape shape(p);
  for (const PoolAxis& axis : shape.axis)
    for (int64_t o = 0; o < axis.out; o++)
      if (axis.elements(o).count == 0) return "needs an element in every window, got a window of padding alone";
  return nullptr;
}

template <class T>
struct max_pool_direct {
  static size_t workspace(const void* params, int threads) {
    const ck_pool* p = static_cast<const ck_pool*>(params);
    const PoolShape shape(p);
    if (p->index == CK_INDEX_NONE) return PoolReduce<T, MaxOf<T>>(shape, {}, nullptr, threads).workspace_bytes();
    return PoolScan<T>(shape, p->index != CK_INDEX_I64, nullptr, threads).workspace_bytes();
  }

  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_pool>(params)) return CK_BAD_STRUCT;
    const ck_pool* p = static_cast<const ck_pool*>(params);
    if (exec->workspace_size < workspace(params, exec->threads)) return CK_SMALL_WORKSPACE;
    const ck_tensor &x = tensors[0], &out = tensors[1], &index = tensors[2];
    const PoolShape shape(p);
    if (p->index == CK_INDEX_NONE) {
      return PoolReduce<T, MaxOf<T>>(shape, {}, exec->workspace, exec->threads).run(x, out, exec, no_count);
    }
    PoolScan<T> scan(shape, p->index != CK_INDEX_I64, exec->workspace, exec->threads);
    if (p->index == CK_INDEX_U8) return scan.template run<uint8_t>(x, out, index, exec);
    if (p->index == CK_INDEX_U16) return scan.template run<uint16_t>(x, out, index, exec);
    return scan.template run<int64_t>(x, out, index, exec);
  }

  static const char* why_not(const void* params) {
    const ck_pool* p = static_cast<const ck_pool*>(params);
    const PoolShape shape(p);
    const char* sentence = pool_why_not(p);
    return sentence ? sentence : max_index_why_not(p->index, shape.cells(), shape.plane_in(), sizeof(T));
  }
};
