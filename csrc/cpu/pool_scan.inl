// Max pooling with indices: every window is scanned in row-major order, v replaces m if v > m or v is NaN.
//
// So the first of equal maxima wins, the last NaN, and a window of -inf gives its first real element, which is where
// the scan starts. The order matters, so rows are not joined first as in pool_reduce.inl: each row of x is copied once
// into a padded row (-inf, which never wins) and split by phase; then lanes scan their windows side by side. Rows
// without NaN, which the copy finds out, take three operations per cell: a compare and two blends. Channels (NHWC) need
// no copy.
//
// What an index counts is folded into codes, one per window cell: cells of the window, or offsets in the plane of which
// the output's own column is added last. Lanes are integers as wide as T, hence the limit of max_index_why_not().

static inline const char* max_index_why_not(int64_t index, int64_t cells, int64_t plane, int lane_bytes) {
  if (index == CK_INDEX_U8 && cells > 256)
    return "needs at most 256 cells in a window for indices of 8 bits, got {cells}";
  if (index == CK_INDEX_U16 && cells > 65536)
    return "needs at most 65536 cells in a window for indices of 16 bits, got {cells}";
  if (index == CK_INDEX_I64 && lane_bytes == 4 && plane > INT32_MAX) {
    return "needs a plane of less than 2^31 elements for indices into it, got {plane}";
  }
  return nullptr;
}

template <class T>
class PoolScan {
  using Code = IntOf<T>;
  static constexpr int L = kLanes<T>;
  static constexpr int64_t kBatchBytes = 24 * 1024;  // output rows scanned together, as in pool_reduce.inl
  static constexpr int64_t kMostBatch = 8;

  struct Kept {  // a row of x in its place
    int64_t row;
    bool has_nan;
  };
  struct WindowRow {
    const T* line;
    Code code;
  };

 public:
  PoolScan(const PoolShape& shape, bool window_index, void* workspace, int threads)
      : shape_(shape), split_(shape.axis[2]), window_index_(window_index), carver_(workspace) {
    spans_.take_elements(carver_, shape);
    if (shape.axis[2].adaptive) return;
    const PoolAxis &depth = shape.axis[0], &height = shape.axis[1];
    most_rows_ = min_of(depth.kernel, depth.in) * min_of(height.kernel, height.in);
    padded_ = split_.padded_size<T>();
    line_ = split_.stride == 1 ? padded_ : split_.split_size<T>();
    auto reach = [](const PoolAxis& axis, int64_t outputs) {  // elements from the first to the last of some windows
      return max_of<int64_t>(
          1, min_of(axis.in, (outputs - 1) * window_step(axis) + (axis.kernel - 1) * axis.dilation + 1));
    };
    ring_.depths = reach(depth, 1);
    for (batch_ = max_of<int64_t>(1, min_of(kMostBatch, height.out)); batch_ > 1; batch_--)
      if (ring_.depths * reach(height, batch_) * line_ * int64_t(sizeof(T)) <= kBatchBytes) break;
    ring_.heights = reach(height, batch_);
    offset_ = carver_.take<int64_t>(split_.taps);
    first_code_ = carver_.take<Code>(shape.axis[2].out + L);
    lane_elements_ = kPadded * padded_ + ring_.places() * line_;
    lanes_ = carver_.take<T>(lane_elements_ * threads);
    kept_ = carver_.take<Kept>(ring_.places() * threads);
    window_rows_ = carver_.take<WindowRow>(batch_ * most_rows_ * threads);
  }
  size_t workspace_bytes() const { return carver_.bytes; }

  template <class Index>
  ck_status run(const ck_tensor& x, const ck_tensor& out, const ck_tensor& index, const ck_exec* exec) {
    x_ = x, out_ = out, index_ = index;
    spans_.fill_elements(shape_);
    const int64_t outputs = shape_.batch * shape_.channels * shape_.plane_out();
    const double bytes = double(shape_.batch * shape_.channels * shape_.plane_in() + outputs) * sizeof(T) +
                         double(outputs) * sizeof(Index);
    const double ops = 2 * bytes * kOpsPerByte;
    if (shape_.channels_inner(&x, &out, &index)) {
      const int64_t units =
          shape_.batch * shape_.axis[0].out * shape_.axis[1].out * PixelRowPlace::parts(shape_.channels);
      return parallel_pieces(exec, units, ops / double(max_of<int64_t>(units, 1)),
                             [&](int64_t begin, int64_t end, int) {
                               for (int64_t unit = begin; unit < end; unit++) pixel_row<Index>(unit);
                             });
    }
    const int64_t rows =
        shape_.axis[2].out ? shape_.batch * shape_.channels * shape_.axis[0].out * shape_.axis[1].out : 0;
    const double ops_per_row = ops / double(max_of<int64_t>(rows, 1));
    if (shape_.axis[2].adaptive) {
      return parallel_pieces(exec, rows, ops_per_row, [&](int64_t begin, int64_t end, int) {
        RowPlace at(begin, shape_.channels, shape_.axis[0].out, shape_.axis[1].out);
        for (int64_t row = begin; row < end; row++, at.next()) adaptive_row<Index>(at);
      });
    }
    for (int64_t j = 0; j < split_.taps; j++) offset_[j] = split_.offset<T>(j);
    for (int64_t o = 0; o < shape_.axis[2].out + L; o++)
      first_code_[o] = o < shape_.axis[2].out ? column_code(spans_.axis[2][o].tap) : 0;
    const bool unit = x.stride[4] == 1 && out.stride[4] == 1 && index.stride[4] == 1;
    return parallel_pieces(exec, rows, ops_per_row, [&](int64_t begin, int64_t end, int lane) {
      if (unit) rows_of_planes<Index, true>(begin, end, lane);
      else rows_of_planes<Index, false>(begin, end, lane);
    });
  }

 private:
  static constexpr int64_t kPadded = 4;  // rows on their way into phases: by turns, like the batch

  // The index of a window's cell is row_code + column_code, plus column_advance times the output's column.
  Code row_code(int64_t d, int64_t h, int64_t tap_d, int64_t tap_h) const {
    if (window_index_) return Code((tap_d * shape_.axis[1].kernel + tap_h) * shape_.axis[2].kernel);
    return Code((d * shape_.axis[1].in + h) * shape_.axis[2].in);
  }
  Code column_code(int64_t tap) const {
    return Code(window_index_ ? tap : tap * shape_.axis[2].dilation - shape_.axis[2].pad);
  }
  Code column_advance() const { return window_index_ ? 0 : Code(shape_.axis[2].stride); }

  // From one window to the next: at most this many elements.
  static int64_t window_step(const PoolAxis& axis) {
    return axis.adaptive ? axis.in / max_of<int64_t>(axis.out, 1) + 1 : axis.stride;
  }

  template <bool kNan>
  static void take(Vec<T>& best, Vec<Code>& index, Vec<T> v, Vec<Code> code) {
    if constexpr (kNan) {
      const auto better = (v > best) | (v != v);
      best = better ? v : best;
      index = better ? code : index;
    } else {
      const auto better = v > best;
      best = better ? v : best;
      index = better ? code : index;
    }
  }

  // ---- lanes along rows
  template <class Index, bool kUnit>
  void rows_of_planes(int64_t begin, int64_t end, int lane) const {
    T* const padded = lanes_ + lane * lane_elements_;
    T* const lines = padded + kPadded * padded_;
    Kept* const kept = kept_ + lane * ring_.places();
    WindowRow* const window_rows = window_rows_ + lane * batch_ * most_rows_;
    for (int64_t i = 0; i < lane_elements_; i++) padded[i] = -T(INFINITY);
    for (int64_t i = 0; i < ring_.places(); i++) kept[i] = {-1, false};
    RowPlace read(begin, shape_.channels, shape_.axis[0].out, shape_.axis[1].out), write = read;
    int64_t turn = 0;
    for (int64_t row = begin, count; row < end; row += count) {
      count = min_of(min_of(batch_, end - row), shape_.axis[1].out - read.h);  // of one plane
      bool nan[kMostBatch] = {};
      for (int64_t b = 0; b < count; b++, read.next()) {
        const Span depth = spans_.axis[0][read.d], height = spans_.axis[1][read.h];
        WindowRow* window_row = window_rows + b * most_rows_;
        for (int64_t a = 0; a < depth.count; a++)
          for (int64_t r = 0; r < height.count; r++) {
            const int64_t d = depth.first + a * shape_.axis[0].dilation, h = height.first + r * shape_.axis[1].dilation;
            const int64_t x_row = ((read.n * shape_.channels + read.c) * shape_.axis[0].in + d) * shape_.axis[1].in + h;
            const int64_t place = ring_.place(d, h);
            T* const line = lines + place * line_;
            if (kept[place].row != x_row) {
              T* const to = split_.stride == 1 ? line : padded + turn++ % kPadded * padded_;
              kept[place] = {x_row, copy_row<kUnit>(static_cast<const T*>(x_.data) + read.moved(d, h).offset(x_),
                                                    to + split_.pad)};
              if (split_.stride != 1) split_.split(to, line);
            }
            nan[b] = nan[b] || kept[place].has_nan;
            *window_row++ = {line, row_code(d, h, depth.tap + a, height.tap + r)};
          }
      }
      for (int64_t b = 0; b < count; b++, write.next()) {
        if (nan[b]) scan_row<Index, kUnit, true>(write, window_rows + b * most_rows_);
        else scan_row<Index, kUnit, false>(write, window_rows + b * most_rows_);
      }
    }
  }

  // Copies the columns that windows reach; is there a NaN among them?
  template <bool kUnit>
  bool copy_row(const T* from, T* to) const {
    const int64_t step = kUnit ? 1 : x_.stride[4], columns = split_.columns();
    Vec<Code> nan{};
    int64_t i = 0;
    for (; i + L <= columns; i += L) {
      const Vec<T> v = load_at<T>(from + i * step, step, L);
      nan |= (Vec<Code>)(v != v);
      store(to + i, v);
    }
    if (i < columns) {
      const Vec<T> v = load_at<T>(from + i * step, step, int(columns - i));
      nan |= (Vec<Code>)(v != v);
      store_n<T>(to + i, v, int(columns - i));
    }
    return any<Code>(nan);
  }

  template <class Index, bool kUnit, bool kNan>
  void scan_row(const RowPlace& at, const WindowRow* window_rows) const {
    const int64_t outputs = shape_.axis[2].out;
    const int64_t rows = spans_.axis[0][at.d].count * spans_.axis[1][at.h].count;
    const int64_t step = kUnit ? 1 : out_.stride[4], index_step = kUnit ? 1 : index_.stride[4];
    T* const out = static_cast<T*>(out_.data) + at.offset(out_);
    Index* const indices = static_cast<Index*>(index_.data) + at.offset(index_);
    const Vec<Code> next = splat_code(window_index_ ? 1 : Code(shape_.axis[2].dilation));
    Vec<Code> columns{};
    for (int lane = 0; lane < L; lane++) columns[lane] = Code(lane) * column_advance();

    // V vectors of outputs from o on; n lanes of the last one exist.
    auto scan = [&](auto vectors, int64_t o, int n) {
      constexpr int V = decltype(vectors)::value;
      Vec<T> best[V];
      Vec<Code> index[V];
      for (int v = 0; v < V; v++) {
        best[v] = splat(-T(INFINITY));
        index[v] = load(first_code_ + o + v * L) + splat_code(window_rows[0].code);
      }
      for (int64_t t = 0; t < rows; t++) {
        const T* const line = window_rows[t].line + o;
        Vec<Code> code = splat_code(window_rows[t].code + column_code(0));
        for (int64_t j = 0; j < split_.taps; j++, code += next)
          for (int v = 0; v < V; v++) take<kNan>(best[v], index[v], load(line + offset_[j] + v * L), code);
      }
      for (int v = 0; v < V; v++) {
        const int64_t at_v = o + v * L;
        const int lanes = v == V - 1 ? n : L;
        store_at<T>(out + at_v * step, step, best[v], lanes);
        index[v] += columns + splat_code(Code(at_v) * column_advance());
        store_index<Code>(indices + at_v * index_step, index_step, index[v], lanes);
      }
    };
    int64_t o = 0;
    for (; o + 2 * L <= outputs; o += 2 * L) scan(Constant<2>{}, o, L);
    for (; o < outputs; o += L) scan(Constant<1>{}, o, int(min_of<int64_t>(L, outputs - o)));
  }

  static Vec<Code> splat_code(Code code) { return code - Vec<Code>{}; }

  // Adaptive windows follow no pattern that lanes could share: one scan after the other.
  template <class Index>
  void adaptive_row(const RowPlace& at) const {
    const Span depth = spans_.axis[0][at.d], height = spans_.axis[1][at.h];
    const T* const plane = static_cast<const T*>(x_.data) + at.n * x_.stride[0] + at.c * x_.stride[1];
    T* const out = static_cast<T*>(out_.data) + at.offset(out_);
    Index* const indices = static_cast<Index*>(index_.data) + at.offset(index_);
    for (int64_t o = 0; o < shape_.axis[2].out; o++) {
      const Span width = spans_.axis[2][o];
      T best = -T(INFINITY);
      int64_t index = (depth.first * shape_.axis[1].in + height.first) * shape_.axis[2].in + width.first;
      for (int64_t d = depth.first; d < depth.first + depth.count; d++)
        for (int64_t h = height.first; h < height.first + height.count; h++)
          for (int64_t w = width.first; w < width.first + width.count; w++) {
            const T v = plane[d * x_.stride[2] + h * x_.stride[3] + w * x_.stride[4]];
            if (v > best || v != v) best = v, index = (d * shape_.axis[1].in + h) * shape_.axis[2].in + w;
          }
      out[o * out_.stride[4]] = best;
      indices[o * index_.stride[4]] = Index(index);
    }
  }

  // ---- lanes along channels
  template <class Index>
  void pixel_row(int64_t unit) const {
    const PixelRowPlace at(unit, shape_.channels, shape_.axis[0].out, shape_.axis[1].out);
    const T* const x = static_cast<const T*>(x_.data) + at.n * x_.stride[0];
    T* const out = static_cast<T*>(out_.data) + at.offset(out_);
    Index* const indices = static_cast<Index*>(index_.data) + at.offset(index_);
    for (int64_t o = 0; o < shape_.axis[2].out; o++) {
      T* const to = out + o * out_.stride[4];
      Index* const index = indices + o * index_.stride[4];
      int64_t c = at.c.begin;
      for (; c + 4 * L <= at.c.end; c += 4 * L) pixel<Index, 4>(x + c, at, o, to + c, index + c, L);
      for (; c + L <= at.c.end; c += L) pixel<Index, 1>(x + c, at, o, to + c, index + c, L);
      if (c < at.c.end) pixel<Index, 1>(x + c, at, o, to + c, index + c, int(at.c.end - c));
    }
  }

  template <class Index, int V>
  void pixel(const T* x, const PixelRowPlace& at, int64_t o, T* out, Index* indices, int n) const {
    const Span depth = spans_.axis[0][at.d], height = spans_.axis[1][at.h], width = spans_.axis[2][o];
    const int64_t dilation = shape_.axis[2].dilation, step = x_.stride[4] * dilation;
    const int64_t code_step = window_index_ ? 1 : dilation;
    const Code first_column = Code(window_index_ ? width.tap : width.first);
    const Code start = row_code(depth.first, height.first, depth.tap, height.tap) + first_column;
    Vec<T> best[V];
    Vec<Code> index[V];
    for (int v = 0; v < V; v++) best[v] = splat(-T(INFINITY)), index[v] = splat_code(start);
    for (int64_t a = 0; a < depth.count; a++)
      for (int64_t r = 0; r < height.count; r++) {
        const int64_t d = depth.first + a * shape_.axis[0].dilation, h = height.first + r * shape_.axis[1].dilation;
        const T* p = x + d * x_.stride[2] + h * x_.stride[3] + width.first * x_.stride[4];
        Code code = row_code(d, h, depth.tap + a, height.tap + r) + first_column;
        for (int64_t j = 0; j < width.count; j++, p += step, code += Code(code_step))
          for (int v = 0; v < V; v++) take<true>(best[v], index[v], load_at<T>(p + v * L, 1, n), splat_code(code));
      }
    for (int v = 0; v < V; v++) {
      store_at<T>(out + v * L, 1, best[v], n);
      store_index<Code>(indices + v * L, 1, index[v], n);
    }
  }

  const PoolShape& shape_;
  const PhaseSplit split_;
  const bool window_index_;
  Carver carver_;
  int64_t most_rows_ = 0, padded_ = 0, line_ = 0, batch_ = 0, lane_elements_ = 0;
  RowRing ring_{};
  SpanTable spans_;
  int64_t* offset_ = nullptr;
  Code* first_code_ = nullptr;
  T* lanes_ = nullptr;
  Kept* kept_ = nullptr;
  WindowRow* window_rows_ = nullptr;
  ck_tensor x_, out_, index_;
};
