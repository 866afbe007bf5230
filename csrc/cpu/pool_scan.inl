// Max pooling with indices: every window is scanned in row-major order, v replaces m if v > m or v is NaN.
//
// So the first of equal maxima wins, the last NaN, and a window of -inf gives its first real element, which is where the
// scan starts. The order matters, so rows are not joined first as in pool_reduce.inl: each row of a window is copied into
// a padded row (-inf, which never wins) and split by phase; then lanes scan their windows side by side. Five operations
// per cell: two compares, their union, two blends. NHWC needs no copy, its lanes are channels.
//
// What an index counts is folded into codes, one per window cell: cells of the window, or offsets in the plane of which
// the output's own column is added last. Lanes are integers as wide as T, hence the limit of max_index_why_not().

static inline const char* max_index_why_not(int64_t index, int64_t cells, int64_t plane, int lane_bytes) {
  if (index == CK_INDEX_U8 && cells > 256) return "needs at most 256 cells in a window for indices of 8 bits";
  if (index == CK_INDEX_U16 && cells > 65536) return "needs at most 65536 cells in a window for indices of 16 bits";
  if (index == CK_INDEX_I64 && lane_bytes == 4 && plane > INT32_MAX) {
    return "needs a plane of less than 2^31 elements for indices into it";
  }
  return nullptr;
}

template <class T>
class PoolScan {
  using Code = IntOf<T>;
  static constexpr int L = kLanes<T>;
  static constexpr int64_t kBatchBytes = 16 * 1024, kMostBatch = 8;  // as in pool_reduce.inl

 public:
  PoolScan(const PoolShape& shape, bool window_index, void* workspace, int threads)
      : shape_(shape), split_(shape.axis[2]), window_index_(window_index), carver_(workspace) {
    spans_.take_elements(carver_, shape);
    if (shape.axis[2].adaptive) return;
    most_rows_ = min_of(shape.axis[0].kernel, shape.axis[0].in) * min_of(shape.axis[1].kernel, shape.axis[1].in);
    padded_ = split_.padded_size<T>();
    line_ = split_.stride == 1 ? padded_ : split_.split_size<T>();
    const int64_t window_bytes = max_of<int64_t>(1, most_rows_ * line_ * int64_t(sizeof(T)));
    batch_ = max_of<int64_t>(1, min_of(kMostBatch, kBatchBytes / window_bytes));
    offset_ = carver_.take<int64_t>(split_.taps);
    first_code_ = carver_.take<Code>(shape.axis[2].out + L);
    lane_elements_ = kPadded * padded_ + batch_ * most_rows_ * line_;
    lanes_ = carver_.take<T>(lane_elements_ * threads);
    codes_ = carver_.take<Code>(batch_ * most_rows_ * threads);
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

  static void take(Vec<T>& best, Vec<Code>& index, Vec<T> v, Vec<Code> code) {
    const auto better = (v > best) | (v != v);
    best = better ? v : best;
    index = better ? code : index;
  }

  // ---- lanes along rows
  template <class Index, bool kUnit>
  void rows_of_planes(int64_t begin, int64_t end, int lane) const {
    T* const padded = lanes_ + lane * lane_elements_;
    T* const lines = padded + kPadded * padded_;
    Code* const codes = codes_ + lane * batch_ * most_rows_;
    for (int64_t i = 0; i < lane_elements_; i++) padded[i] = -T(INFINITY);
    RowPlace read(begin, shape_.channels, shape_.axis[0].out, shape_.axis[1].out), write = read;
    int64_t turn = 0;
    for (int64_t row = begin; row < end; row += batch_) {
      const int64_t count = min_of(batch_, end - row);
      for (int64_t b = 0; b < count; b++, read.next()) {
        const Span depth = spans_.axis[0][read.d], height = spans_.axis[1][read.h];
        T* line = lines + b * most_rows_ * line_;
        Code* code = codes + b * most_rows_;
        for (int64_t a = 0; a < depth.count; a++)
          for (int64_t r = 0; r < height.count; r++, line += line_) {
            const int64_t d = depth.first + a * shape_.axis[0].dilation, h = height.first + r * shape_.axis[1].dilation;
            *code++ = row_code(d, h, depth.tap + a, height.tap + r);
            T* const to = split_.stride == 1 ? line : padded + turn++ % kPadded * padded_;
            copy_row<kUnit>(static_cast<const T*>(x_.data) + read.n * x_.stride[0] + read.c * x_.stride[1] +
                                d * x_.stride[2] + h * x_.stride[3],
                            to + split_.pad);
            if (split_.stride != 1) split_.split(to, line);
          }
      }
      for (int64_t b = 0; b < count; b++, write.next())
        scan_row<Index, kUnit>(write, lines + b * most_rows_ * line_, codes + b * most_rows_);
    }
  }

  template <bool kUnit>
  void copy_row(const T* from, T* to) const {
    const int64_t step = kUnit ? 1 : x_.stride[4], columns = split_.columns();
    int64_t i = 0;
    for (; i + L <= columns; i += L) store(to + i, load_at<T>(from + i * step, step, L));
    if (i < columns) store_n<T>(to + i, load_at<T>(from + i * step, step, int(columns - i)), int(columns - i));
  }

  template <class Index, bool kUnit>
  void scan_row(const RowPlace& at, const T* lines, const Code* codes) const {
    const int64_t outputs = shape_.axis[2].out;
    const int64_t rows = spans_.axis[0][at.d].count * spans_.axis[1][at.h].count;
    const int64_t step = kUnit ? 1 : out_.stride[4], index_step = kUnit ? 1 : index_.stride[4];
    T* const out = static_cast<T*>(out_.data) + at.offset(out_);
    Index* const indices = static_cast<Index*>(index_.data) + at.offset(index_);
    const Vec<Code> next = splat_code(window_index_ ? 1 : Code(shape_.axis[2].dilation));
    Vec<Code> columns{};
    for (int lane = 0; lane < L; lane++) columns[lane] = Code(lane) * column_advance();
    for (int64_t o = 0; o < outputs; o += L) {
      Vec<T> best = splat(-T(INFINITY));
      Vec<Code> index = load(first_code_ + o) + splat_code(codes[0]);
      const T* line = lines + o;
      for (int64_t t = 0; t < rows; t++, line += line_) {
        Vec<Code> code = splat_code(codes[t] + column_code(0));
        for (int64_t j = 0; j < split_.taps; j++, code += next) take(best, index, load(line + offset_[j]), code);
      }
      const int n = int(min_of<int64_t>(L, outputs - o));
      store_at<T>(out + o * step, step, best, n);
      index += columns + splat_code(Code(o) * column_advance());
      store_index<Code>(indices + o * index_step, index_step, index, n);
    }
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
          for (int v = 0; v < V; v++) take(best[v], index[v], load_at<T>(p + v * L, 1, n), splat_code(code));
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
  SpanTable spans_;
  int64_t* offset_ = nullptr;
  Code* first_code_ = nullptr;
  T* lanes_ = nullptr;
  Code* codes_ = nullptr;
  ck_tensor x_, out_, index_;
};
