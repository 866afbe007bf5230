// Walking K tensors of one shape at once, whatever their strides.
//
// A Nest holds the axes of a shape, outermost first, with the stride of each tensor along them. Axes that continue one
// another in every tensor are merged, so contiguous maps become one long axis. A range of the flat index [0, elements)
// is handed out as runs along the innermost axis: finding a run costs a division per axis, an element of it nothing.

template <int K>
struct Nest {
  int axes = 0;  // 0: a single element
  int64_t size[5];
  int64_t stride[5][K];

  // The next inner axis; `step` has one stride per tensor.
  void add(int64_t extent, const int64_t (&step)[K]) {
    if (extent == 1) return;
    bool continues = axes > 0;
    for (int k = 0; k < K; k++) continues = continues && stride[axes - 1][k] == step[k] * extent;
    if (continues) axes--;
    size[axes] = continues ? size[axes] * extent : extent;
    for (int k = 0; k < K; k++) stride[axes][k] = step[k];
    axes++;
  }
  // Axis `axis` of ck_tensor::stride.
  void add(int64_t extent, const ck_tensor* const (&tensors)[K], int axis) {
    int64_t step[K];
    for (int k = 0; k < K; k++) step[k] = tensors[k]->stride[axis];
    add(extent, step);
  }

  int64_t elements() const {
    int64_t product = 1;
    for (int a = 0; a < axes; a++) product *= size[a];
    return product;
  }
  int64_t length() const { return axes ? size[axes - 1] : 1; }
  int64_t step(int k) const { return axes ? stride[axes - 1][k] : 1; }
  bool unit() const {  // neighbours along the innermost axis are neighbours in every tensor
    bool all = axes > 0;
    for (int k = 0; k < K; k++) all = all && step(k) == 1;
    return all;
  }

  // body(flat index of the first element, its offset in each tensor, number of elements)
  template <class Body>
  void runs(int64_t begin, int64_t end, const Body& body) const {
    const int64_t length = this->length();
    while (begin < end) {
      int64_t row = begin / length;
      const int64_t at = begin % length;
      const int64_t count = min_of(length - at, end - begin);
      int64_t offset[K];
      for (int k = 0; k < K; k++) offset[k] = at * step(k);
      for (int a = axes - 2; a >= 0; a--) {
        const int64_t index = row % size[a];
        row /= size[a];
        for (int k = 0; k < K; k++) offset[k] += index * stride[a][k];
      }
      body(begin, offset, count);
      begin += count;
    }
  }
};

// Moving a byte takes as long as about two of the operations that chunks_for() counts.
constexpr double kOpsPerByte = 2;

// body(begin, end, lane) for pieces of [0, items), `ops` operations each item.
template <class Body>
static ck_status parallel_pieces(const ck_exec* exec, int64_t items, double ops, const Body& body) {
  const int64_t chunks = chunks_for(items, ops, exec->threads);
  return parallel(exec, chunks, [&](int chunk, int lane) {
    const Range range = piece(items, chunks, chunk);
    body(range.begin, range.end, lane);
  });
}

// Cuts a workspace into arrays that begin on cache lines; without a workspace it only counts bytes.
struct Carver {
  char* base;
  size_t bytes = 0;
  explicit Carver(void* workspace) : base(static_cast<char*>(workspace)) {}
  template <class T>
  T* take(int64_t count) {
    T* array = base ? reinterpret_cast<T*>(base + bytes) : nullptr;
    bytes += size_t(round_up(count * int64_t(sizeof(T)), 64));
    return array;
  }
};
