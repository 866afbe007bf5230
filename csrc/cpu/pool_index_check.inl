// Do the window indices of a gradient name real elements? Asked before any is used: they come from the caller.
//
// One pass over the indices, a few per cent of the gradient's own traffic. In a plane the real cells of a row of
// windows are a range, so a row is checked by its smallest and largest index; only windows that the sides of the plane
// cut are looked at one by one.

class WindowIndexCheck {
 public:
  WindowIndexCheck(const PoolShape& shape, void* workspace) : shape_(shape), carver_(workspace) {
    spans_.take_elements(carver_, shape);
    column_of_cell_ = carver_.take<uint16_t>(shape.cells());
  }
  size_t workspace_bytes() const { return carver_.bytes; }

  template <class Index>
  ck_status run(const ck_tensor& index, ck_exec* exec) {
    index_ = index;
    spans_.fill_elements(shape_);
    for (int64_t cell = 0; cell < shape_.cells(); cell++)
      column_of_cell_[cell] = uint16_t(cell % shape_.axis[2].kernel);
    const PoolAxis& width = shape_.axis[2];
    whole_ = {0, width.out};
    while (whole_.begin < width.out && spans_.axis[2][whole_.begin].count < width.kernel) whole_.begin++;
    while (whole_.end > whole_.begin && spans_.axis[2][whole_.end - 1].count < width.kernel) whole_.end--;
    const int64_t rows = shape_.batch * shape_.axis[0].out * shape_.axis[1].out;
    const double ops = double(shape_.channels * width.out * int64_t(sizeof(Index))) * kOpsPerByte;
    int bad = 0;
    const ck_status status = parallel_pieces(exec, rows, ops, [&](int64_t begin, int64_t end, int) {
      RowPlace at(begin, 1, shape_.axis[0].out, shape_.axis[1].out);
      for (int64_t row = begin; row < end; row++, at.next())
        if (!row_ok<Index>(at)) __atomic_store_n(&bad, 1, __ATOMIC_RELAXED);
    });
    return status != CK_OK || !bad ? status : report<Index>(exec);
  }

 private:
  template <class Index>
  const Index& at(int64_t n, int64_t c, int64_t d, int64_t h, int64_t w) const {
    return static_cast<const Index*>(index_.data)[n * index_.stride[0] + c * index_.stride[1] + d * index_.stride[2] +
                                                  h * index_.stride[3] + w * index_.stride[4]];
  }

  bool names_element(int64_t cell, int64_t d, int64_t h, int64_t w) const {
    const int64_t place[CK_AXES] = {d, h, w};
    for (int a = CK_AXES - 1; a >= 0; a--) {
      const Span span = spans_.axis[a][place[a]];
      const int64_t tap = a == 0 ? cell : cell % shape_.axis[a].kernel;
      if (tap < span.tap || tap >= span.tap + span.count) return false;
      cell /= shape_.axis[a].kernel;
    }
    return true;
  }

  // All channels of the row (n, d, h) of outputs.
  template <class Index>
  bool row_ok(const RowPlace& row) const {
    const Span depth = spans_.axis[0][row.d], height = spans_.axis[1][row.h];
    const int64_t outputs = shape_.axis[2].out, channels = shape_.channels;
    if (depth.count > 1 && height.count < shape_.axis[1].kernel) {  // several ranges
      for (int64_t c = 0; c < channels; c++)
        for (int64_t w = 0; w < outputs; w++)
          if (!names_element(at<Index>(row.n, c, row.d, row.h, w), row.d, row.h, w)) return false;
      return true;
    }
    if (channels == 0) return true;
    const int64_t kernel_h = shape_.axis[1].kernel, kernel_w = shape_.axis[2].kernel;
    const int64_t first = (depth.tap * kernel_h + height.tap) * kernel_w;
    const int64_t end = ((depth.tap + depth.count - 1) * kernel_h + height.tap + height.count) * kernel_w;
    const bool across = index_.stride[1] == 1;
    const int64_t inner = across ? channels : outputs, outer = across ? outputs : channels;
    const int64_t inner_step = index_.stride[across ? 1 : 4], outer_step = index_.stride[across ? 4 : 1];
    const Index* line = &at<Index>(row.n, 0, row.d, row.h, 0);
    Index least = line[0], most = line[0];
    for (int64_t o = 0; o < outer; o++, line += outer_step) {
      if (inner_step == 1) {
        for (int64_t i = 0; i < inner; i++) {  // the compiler makes vectors of this
          least = line[i] < least ? line[i] : least;
          most = line[i] > most ? line[i] : most;
        }
      } else {
        for (int64_t i = 0; i < inner; i++) {
          least = min_of(least, line[i * inner_step]);
          most = max_of(most, line[i * inner_step]);
        }
      }
    }
    if (least < first || most >= end) return false;
    for (int64_t w = 0; w < outputs; w++) {
      if (w == whole_.begin) w = whole_.end;
      if (w == outputs) break;
      const Span span = spans_.axis[2][w];
      const Index* column = &at<Index>(row.n, 0, row.d, row.h, w);
      for (int64_t c = 0; c < channels; c++, column += index_.stride[1])
        if (uint64_t(column_of_cell_[*column] - span.tap) >= uint64_t(span.count)) return false;
    }
    return true;
  }

  // The first bad index in row-major order of (n, c, d, h, w).
  template <class Index>
  ck_status report(ck_exec* exec) const {
    int64_t place = 0;
    for (int64_t n = 0; n < shape_.batch; n++)
      for (int64_t c = 0; c < shape_.channels; c++)
        for (int64_t d = 0; d < shape_.axis[0].out; d++)
          for (int64_t h = 0; h < shape_.axis[1].out; h++)
            for (int64_t w = 0; w < shape_.axis[2].out; w++, place++) {
              const int64_t cell = at<Index>(n, c, d, h, w);
              if (cell < shape_.cells() && names_element(cell, d, h, w)) continue;
              exec->bad_index = cell, exec->bad_place = place;
              return CK_INDEX_RANGE;
            }
    return CK_OK;
  }

  const PoolShape& shape_;
  Carver carver_;
  SpanTable spans_;
  uint16_t* column_of_cell_;
  Range whole_{};  // columns of outputs whose windows lie inside
  ck_tensor index_{};
};
