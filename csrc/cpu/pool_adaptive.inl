// Adaptive pooling: the loops of windowed pooling over windows that begin at floor(i in / out).
//
// Global pooling (out 1) of dense planes is one window over a row as long as the plane: axes are merged first. Only
// where lanes run along rows, because along channels a sum per row of the window keeps chains of additions short.

// How many axes of x can be merged into the last one: 0, 1 (height) or 2 (depth too).
static inline int axes_to_merge(const ck_resize* p, const ck_tensor& x) {
  if (p->channels > 1 && x.stride[1] == 1) return 0;
  if (p->out[1] != 1 || p->out[2] != 1 || x.stride[3] != x.stride[4] * p->in[2]) return 0;
  return p->out[0] == 1 && x.stride[2] == x.stride[3] * p->in[1] ? 2 : 1;
}
static inline PoolShape merged_shape(const ck_resize* p, int axes) {
  ck_resize merged = *p;
  for (int a = 1; a > 1 - axes; a--) {
    merged.in[2] *= merged.in[a];
    merged.in[a] = 1;
  }
  return PoolShape(&merged);
}

// Workspace is fixed before strides are known: enough for any merging.
template <class Bytes>
static size_t most_workspace(const void* params, const Bytes& bytes) {
  const ck_resize* p = static_cast<const ck_resize*>(params);
  size_t most = 0;
  for (int axes = 0; axes <= 2; axes++) most = max_of(most, bytes(merged_shape(p, axes)));
  return most;
}

template <class T>
struct adaptive_avg_pool_direct {
  typedef PoolReduce<T, AverageOf<T>> Reduce;

  static size_t workspace(const void* params, int threads) {
    return most_workspace(
        params, [&](const PoolShape& shape) { return Reduce(shape, {}, nullptr, threads).workspace_bytes(); });
  }
  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_resize>(params)) return CK_BAD_STRUCT;
    const ck_resize* p = static_cast<const ck_resize*>(params);
    if (exec->workspace_size < workspace(params, exec->threads)) return CK_SMALL_WORKSPACE;
    const PoolShape shape = merged_shape(p, axes_to_merge(p, tensors[0]));
    Reduce reduce(shape, {}, exec->workspace, exec->threads);
    return reduce.run(tensors[0], tensors[1], exec, AverageCount{shape, 0, false});
  }
  static const char* why_not(const void*) { return nullptr; }
};

template <class T>
struct adaptive_avg_pool_grad_direct {
  typedef PoolSpread<T, T, AverageOf<T>> Spread;

  static size_t workspace(const void* params, int threads) {
    return most_workspace(
        params, [&](const PoolShape& shape) { return Spread(shape, {}, nullptr, threads).workspace_bytes(); });
  }
  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_resize>(params)) return CK_BAD_STRUCT;
    const ck_resize* p = static_cast<const ck_resize*>(params);
    if (exec->workspace_size < workspace(params, exec->threads)) return CK_SMALL_WORKSPACE;
    const PoolShape shape = merged_shape(p, axes_to_merge(p, tensors[1]));
    Spread spread(shape, {}, exec->workspace, exec->threads);
    return spread.run(tensors[0], {}, tensors[1], exec, AverageCount{shape, 0, false});
  }
  static const char* why_not(const void*) { return nullptr; }
};

template <class T>
struct adaptive_max_pool_direct {
  typedef PoolReduce<T, MaxOf<T>> Reduce;

  static size_t workspace(const void* params, int threads) {
    const ck_resize* p = static_cast<const ck_resize*>(params);
    if (p->index != CK_INDEX_NONE) return PoolScan<T>(PoolShape(p), false, nullptr, threads).workspace_bytes();
    return most_workspace(
        params, [&](const PoolShape& shape) { return Reduce(shape, {}, nullptr, threads).workspace_bytes(); });
  }
  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_resize>(params)) return CK_BAD_STRUCT;
    const ck_resize* p = static_cast<const ck_resize*>(params);
    if (exec->workspace_size < workspace(params, exec->threads)) return CK_SMALL_WORKSPACE;
    const ck_tensor &x = tensors[0], &out = tensors[1], &index = tensors[2];
    if (p->index == CK_INDEX_NONE) {
      const PoolShape shape = merged_shape(p, axes_to_merge(p, x));
      return Reduce(shape, {}, exec->workspace, exec->threads).run(x, out, exec, no_count);
    }
    const PoolShape shape(p);
    return PoolScan<T>(shape, false, exec->workspace, exec->threads).template run<int64_t>(x, out, index, exec);
  }
  static const char* why_not(const void* params) {
    const ck_resize* p = static_cast<const ck_resize*>(params);
    return max_index_why_not(p->index, 0, p->in[0] * p->in[1] * p->in[2], sizeof(T));
  }
};

template <class T>
struct adaptive_max_pool_grad_direct {
  static size_t workspace(const void*, int) { return 0; }
  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_resize>(params)) return CK_BAD_STRUCT;
    const ck_resize* p = static_cast<const ck_resize*>(params);
    const IndexedPlanes planes(p->batch, p->channels, p->out, p->in);
    return PlaneScatter<T>(planes, tensors[0], tensors[1], tensors[2]).add(exec);
  }
  static const char* why_not(const void*) { return nullptr; }
};
