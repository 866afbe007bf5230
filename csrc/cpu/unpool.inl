// Max unpooling and its gradient (plane_scatter.inl).

template <class T>
struct max_unpool_direct {
  static size_t workspace(const void*, int) { return 0; }
  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_resize>(params)) return CK_BAD_STRUCT;
    const ck_resize* p = static_cast<const ck_resize*>(params);
    const IndexedPlanes planes(p->batch, p->channels, p->in, p->out);
    return PlaneScatter<T>(planes, tensors[0], tensors[1], tensors[2]).put(exec);
  }
  static const char* why_not(const void*) { return nullptr; }
};

template <class T>
struct max_unpool_grad_direct {
  static size_t workspace(const void* params, int threads) {
    const ck_resize* p = static_cast<const ck_resize*>(params);
    return PlaneScatter<T>::taken_bytes(p->out[0] * p->out[1] * p->out[2], threads);
  }
  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_resize>(params)) return CK_BAD_STRUCT;
    const ck_resize* p = static_cast<const ck_resize*>(params);
    if (exec->workspace_size < workspace(params, exec->threads)) return CK_SMALL_WORKSPACE;
    const IndexedPlanes planes(p->batch, p->channels, p->in, p->out);
    const ck_tensor &grad = tensors[0], &index = tensors[1], &grad_x = tensors[2];
    return PlaneScatter<T>(planes, grad_x, index, grad).get_last(static_cast<uint8_t*>(exec->workspace), exec);
  }
  static const char* why_not(const void*) { return nullptr; }
};
