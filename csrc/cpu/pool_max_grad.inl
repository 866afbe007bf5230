// Gradient of max pooling.
//
// Window indices: grad_x is gathered. An element looks at the windows that hold it and takes the gradients of those
// whose index names its own cell; at most 4 of them for 3x3 windows with stride 2. Without overlap that is one masked
// stream. Rows (NCHW) spread as in pool_spread.inl, but by tap, because each tap compares with its own cell; channels
// (NHWC) as there. Every element is written once; additions run in an order that follows from the shape. Offsets in the
// plane are added where they point, plane by plane (plane_scatter.inl). Bound by memory; the index costs 1 byte per
// output instead of 8.

template <class T, class Index>
class MaxGradGather {
  using Code = IntOf<T>;
  static constexpr int L = kLanes<T>;

  // A row of grad_output and of its indices, widened to lanes, with zeros on both sides.
  struct Source {
    const T* grad;
    const Code* index;
    Code cell;  // of tap 0 in this row of the window
  };

 public:
  MaxGradGather(const PoolShape& shape, void* workspace, int threads)
      : shape_(shape), split_(shape.axis[2]), carver_(workspace) {
    source_ = round_up(split_.source_size<T>(), L);
    merged_ = round_up(split_.merged_size<T>(), L);
    auto longest = [](const PoolAxis& axis) { return max_of<int64_t>(1, min_of(axis.kernel, axis.out)); };
    auto reach = [&](const PoolAxis& axis) {  // outputs from the first to the last that see an element
      return max_of<int64_t>(1, min_of(axis.out, (longest(axis) - 1) * axis.out_step + 1));
    };
    most_rows_ = longest(shape.axis[0]) * longest(shape.axis[1]);
    ring_ = {reach(shape.axis[0]), reach(shape.axis[1])};
    spans_.take_outputs(carver_, shape);
    shift_ = carver_.take<int64_t>(split_.taps);
    lane_elements_ = merged_ + ring_.places() * source_;
    lanes_ = carver_.take<T>(lane_elements_ * threads);
    indices_ = carver_.take<Code>(ring_.places() * source_ * threads);
    kept_ = carver_.take<int64_t>(ring_.places() * threads);
    sources_ = carver_.take<Source>(most_rows_ * threads);
  }
  size_t workspace_bytes() const { return carver_.bytes; }

  ck_status run(const ck_tensor& grad, const ck_tensor& index, const ck_tensor& grad_x, const ck_exec* exec) {
    grad_ = grad, index_ = index, grad_x_ = grad_x;
    spans_.fill_outputs(shape_);
    for (int64_t j = 0; j < split_.taps; j++) shift_[j] = split_.shift(j);
    const int64_t planes = shape_.batch * shape_.channels;
    const double bytes = double(planes * shape_.plane_in()) * sizeof(T) +
                         double(planes * shape_.plane_out()) * (sizeof(T) + sizeof(Index));
    const double ops = 2 * bytes * kOpsPerByte;
    if (shape_.channels_inner(&grad, &index, &grad_x)) {
      const int64_t units =
          shape_.batch * shape_.axis[0].in * shape_.axis[1].in * PixelRowPlace::parts(shape_.channels);
      return parallel_pieces(exec, units, ops / double(max_of<int64_t>(units, 1)),
                             [&](int64_t begin, int64_t end, int) {
                               for (int64_t unit = begin; unit < end; unit++) pixel_row(unit);
                             });
    }
    const int64_t rows = planes * shape_.axis[0].in * shape_.axis[1].in;
    return parallel_pieces(exec, rows, ops / double(max_of<int64_t>(rows, 1)),
                           [&](int64_t begin, int64_t end, int lane) { rows_of_planes(begin, end, lane); });
  }

 private:
  Code cell(int64_t tap_d, int64_t tap_h, int64_t tap_w) const {
    return Code((tap_d * shape_.axis[1].kernel + tap_h) * shape_.axis[2].kernel + tap_w);
  }

  void rows_of_planes(int64_t begin, int64_t end, int lane) const {
    T* const merged = lanes_ + lane * lane_elements_;
    T* const grads = merged + merged_;
    Code* const indices = indices_ + lane * ring_.places() * source_;
    int64_t* const kept = kept_ + lane * ring_.places();
    Source* const sources = sources_ + lane * most_rows_;
    memset(merged, 0, size_t(lane_elements_) * sizeof(T));
    memset(indices, 0, size_t(ring_.places() * source_) * sizeof(Code));
    for (int64_t i = 0; i < ring_.places(); i++) kept[i] = -1;
    RowPlace at(begin, shape_.channels, shape_.axis[0].in, shape_.axis[1].in);
    for (int64_t row = begin; row < end; row++, at.next()) {
      const int64_t count = read_rows(at, grads, indices, kept, sources);
      split_.merge(merged, [&](auto vectors, int64_t t, int64_t q, Vec<T>* sum) {
        gather<decltype(vectors)::value>(sources, count, t, q, sum);
      });
      write_row(at, merged + split_.pad);
    }
  }

  // The rows whose windows hold this one; those of the row before are still there.
  int64_t read_rows(const RowPlace& at, T* grads, Code* indices, int64_t* kept, Source* sources) const {
    const PoolAxis &axis_d = shape_.axis[0], &axis_h = shape_.axis[1];
    const Span depth = spans_.axis[0][at.d], height = spans_.axis[1][at.h];
    const int64_t lead = split_.most_shift();
    int64_t count = 0;
    for (int64_t a = 0; a < depth.count; a++)
      for (int64_t r = 0; r < height.count; r++) {
        const RowPlace from = at.moved(depth.first + a * axis_d.out_step, height.first + r * axis_h.out_step);
        const int64_t row = ((at.n * shape_.channels + at.c) * axis_d.out + from.d) * axis_h.out + from.h;
        const int64_t place = ring_.place(from.d, from.h);
        T* const grad = grads + place * source_ + lead;
        Code* const index = indices + place * source_ + lead;
        if (kept[place] != row) {
          kept[place] = row;
          read_row(static_cast<const T*>(grad_.data) + from.offset(grad_),
                   static_cast<const Index*>(index_.data) + from.offset(index_), grad, index);
        }
        sources[count++] = {grad, index, cell(depth.tap - a * axis_d.tap_step, height.tap - r * axis_h.tap_step, 0)};
      }
    return count;
  }

  void read_row(const T* from, const Index* from_index, T* grad, Code* index) const {
    const int64_t outputs = shape_.axis[2].out, step = grad_.stride[4], index_step = index_.stride[4];
    int64_t o = 0;
    for (; o + L <= outputs; o += L) {
      store(grad + o, load_at<T>(from + o * step, step, L));
      store(index + o, load_index<Code>(from_index + o * index_step, index_step, L));
    }
    if (o < outputs) {  // lanes beyond the end come as zeros, which is what must stand there
      const int n = int(outputs - o);
      store(grad + o, load_at<T>(from + o * step, step, n));
      store(index + o, load_index<Code>(from_index + o * index_step, index_step, n));
    }
  }

  // sum[v] = gradients of the outputs whose index names the element of tap `tap` and its like.
  template <int V>
  void gather(const Source* sources, int64_t count, int64_t tap, int64_t q, Vec<T>* sum) const {
    for (int v = 0; v < V; v++) sum[v] = Vec<T>{};
    for (int64_t s = 0; s < count; s++)
      for (int64_t j = tap; j < split_.taps; j += split_.period) {
        const T* const grad = sources[s].grad + q - shift_[j];
        const Code* const index = sources[s].index + q - shift_[j];
        const Vec<Code> mine = splat_code(sources[s].cell + Code(j));
        for (int v = 0; v < V; v++) sum[v] += load(index + v * L) == mine ? load(grad + v * L) : Vec<T>{};
      }
  }

  static Vec<Code> splat_code(Code code) { return code - Vec<Code>{}; }

  void write_row(const RowPlace& at, const T* from) const {
    T* const to = static_cast<T*>(grad_x_.data) + at.offset(grad_x_);
    const int64_t columns = shape_.axis[2].in, step = grad_x_.stride[4];
    int64_t i = 0;
    for (; i + L <= columns; i += L) store_at<T>(to + i * step, step, load(from + i), L);
    if (i < columns) store_at<T>(to + i * step, step, load(from + i), int(columns - i));
  }

  // ---- lanes along channels
  void pixel_row(int64_t unit) const {
    const PixelRowPlace at(unit, shape_.channels, shape_.axis[0].in, shape_.axis[1].in);
    T* const grad_x = static_cast<T*>(grad_x_.data) + at.offset(grad_x_);
    for (int64_t i = 0; i < shape_.axis[2].in; i++) {
      T* const to = grad_x + i * grad_x_.stride[4];
      int64_t c = at.c.begin;
      for (; c + 4 * L <= at.c.end; c += 4 * L) pixel<4>(at, i, c, to + c, L);
      for (; c + L <= at.c.end; c += L) pixel<1>(at, i, c, to + c, L);
      if (c < at.c.end) pixel<1>(at, i, c, to + c, int(at.c.end - c));
    }
  }

  template <int V>
  void pixel(const PixelRowPlace& at, int64_t i, int64_t c, T* to, int n) const {
    const PoolAxis* const axis = shape_.axis;
    const Span depth = spans_.axis[0][at.d], height = spans_.axis[1][at.h], width = spans_.axis[2][i];
    const T* const grad = static_cast<const T*>(grad_.data) + at.n * grad_.stride[0] + c;
    const Index* const index = static_cast<const Index*>(index_.data) + at.n * index_.stride[0] + c;
    Vec<T> sum[V] = {};
    for (int64_t a = 0; a < depth.count; a++)
      for (int64_t r = 0; r < height.count; r++)
        for (int64_t j = 0; j < width.count; j++) {
          const int64_t d = depth.first + a * axis[0].out_step, h = height.first + r * axis[1].out_step,
                        w = width.first + j * axis[2].out_step;
          const T* const g = grad + d * grad_.stride[2] + h * grad_.stride[3] + w * grad_.stride[4];
          const Index* const p = index + d * index_.stride[2] + h * index_.stride[3] + w * index_.stride[4];
          const Vec<Code> mine = splat_code(cell(depth.tap - a * axis[0].tap_step, height.tap - r * axis[1].tap_step,
                                                 width.tap - j * axis[2].tap_step));
          for (int v = 0; v < V; v++)
            sum[v] += load_index<Code>(p + v * L, 1, n) == mine ? load_at<T>(g + v * L, 1, n) : Vec<T>{};
        }
    for (int v = 0; v < V; v++) store_at<T>(to + v * L, 1, sum[v], n);
  }

  const PoolShape& shape_;
  const PhaseSplit split_;
  Carver carver_;
  int64_t source_, merged_, most_rows_, lane_elements_;
  RowRing ring_;
  SpanTable spans_;
  int64_t* shift_;
  T* lanes_;
  Code* indices_;
  int64_t* kept_;
  Source* sources_;
  ck_tensor grad_, index_, grad_x_;
};

template <class T>
struct max_pool_grad_direct {
  static size_t workspace(const void* params, int threads) {
    const ck_pool* p = static_cast<const ck_pool*>(params);
    const PoolShape shape(p);
    if (p->index == CK_INDEX_I64) return 0;
    return max_of(WindowIndexCheck(shape, nullptr).workspace_bytes(),
                  MaxGradGather<T, uint8_t>(shape, nullptr, threads).workspace_bytes());
  }

  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_pool>(params)) return CK_BAD_STRUCT;
    const ck_pool* p = static_cast<const ck_pool*>(params);
    if (exec->workspace_size < workspace(params, exec->threads)) return CK_SMALL_WORKSPACE;
    if (p->index == CK_INDEX_U8) return gather<uint8_t>(p, tensors, exec);
    if (p->index == CK_INDEX_U16) return gather<uint16_t>(p, tensors, exec);
    const IndexedPlanes planes(p->batch, p->channels, p->out, p->in);
    return PlaneScatter<T>(planes, tensors[0], tensors[1], tensors[2]).add(exec);
  }

  static const char* why_not(const void* params) {
    const ck_pool* p = static_cast<const ck_pool*>(params);
    const char* sentence = pool_why_not(p);
    return sentence ? sentence : max_index_why_not(p->index, PoolShape(p).cells(), 0, sizeof(T));
  }

 private:
  template <class Index>
  static ck_status gather(const ck_pool* p, const ck_tensor* tensors, ck_exec* exec) {
    const PoolShape shape(p);
    const ck_status status = WindowIndexCheck(shape, exec->workspace).run<Index>(tensors[1], exec);
    if (status != CK_OK) return status;
    return MaxGradGather<T, Index>(shape, exec->workspace, exec->threads).run(tensors[0], tensors[1], tensors[2], exec);
  }
};
