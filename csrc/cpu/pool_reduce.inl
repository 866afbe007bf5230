// Values of windows without indices: out = finish(join over the window of lift(x)), for max, averages and norms.
//
// Rows (NCHW): the rows of a window are joined into one padded row first, once per output row, then that row's columns
// (pool_rows.inl). A 3x3 window so costs 4 joins per output instead of 8, all on whole vectors. Channels (NHWC): lanes
// are channels, the window's cells are visited one by one, 4 vectors at a time. Bound by memory: x is read once from
// there, out written once. The order of joins follows from the shape alone.
//
// Op has the type Sum of its joins, identity(), lift(v), join(a, b) for scalars and vectors, finish(vector of sums),
// and two flags: with `divides`, sums are divided by counts before finish; without `lifts`, lift(v) is v.

template <class T, class Op, class Y = T>  // T: type of x, Y: type of out
class PoolReduce {
  using A = typename Op::Sum;
  static constexpr int L = kLanes<A>;
  static constexpr int64_t kBatchBytes = 16 * 1024;  // rows prepared together: their stores have left the store buffer
  static constexpr int64_t kMostBatch = 16;          // when the unaligned loads that straddle them come

 public:
  // Without a workspace this only counts its bytes.
  PoolReduce(const PoolShape& shape, const Op& op, void* workspace, int threads)
      : shape_(shape), op_(op), split_(shape.axis[2]), carver_(workspace) {
    // One or two outputs in a row leave most lanes of a vector of outputs empty: lanes run along the window there, as
    // in long windows, and as they must where adaptive windows follow no pattern.
    const PoolAxis& width = shape.axis[2];
    irregular_ = width.adaptive || (width.dilation == 1 && (width.out <= 2 || width.kernel >= 4 * L));
    columns_ = irregular_ ? shape.axis[2].in : split_.columns();
    pad_ = irregular_ ? 0 : split_.pad;
    padded_ = irregular_ ? round_up(columns_, L) + L : split_.padded_size<A>();
    splits_ = irregular_ ? 0 : split_.split_size<A>();
    const int64_t row_bytes = (padded_ + splits_) * int64_t(sizeof(A));
    batch_ = max_of<int64_t>(1, min_of(kMostBatch, kBatchBytes / row_bytes));
    spans_.take_elements(carver_, shape);
    if (!irregular_) offset_ = carver_.take<int64_t>(split_.taps);
    if (Op::divides)
      for (int a = 0; a < CK_AXES; a++) counts_[a] = carver_.take<A>(shape.axis[a].out + L);
    lane_elements_ = batch_ * (padded_ + splits_);
    lanes_ = carver_.take<A>(lane_elements_ * threads);
  }
  size_t workspace_bytes() const { return carver_.bytes; }

  // count(axis, output): cells that an average counts there.
  template <class Count>
  ck_status run(const ck_tensor& x, const ck_tensor& out, const ck_exec* exec, const Count& count) {
    x_ = x, out_ = out;
    spans_.fill_elements(shape_);
    if (!irregular_)
      for (int64_t j = 0; j < split_.taps; j++) offset_[j] = split_.offset<A>(j);
    if (Op::divides)
      for (int a = 0; a < CK_AXES; a++)
        for (int64_t o = 0; o < shape_.axis[a].out + L; o++)
          counts_[a][o] = o < shape_.axis[a].out ? A(count(a, o)) : 1;
    const int64_t outputs = shape_.batch * shape_.channels * shape_.plane_out();
    const double bytes = double(shape_.batch * shape_.channels * shape_.plane_in() + outputs) * sizeof(T);
    if (shape_.channels_inner(&x, &out)) {
      const int64_t units =
          shape_.batch * shape_.axis[0].out * shape_.axis[1].out * PixelRowPlace::parts(shape_.channels);
      return parallel_pieces(exec, units, bytes * kOpsPerByte / double(max_of<int64_t>(units, 1)),
                             [&](int64_t begin, int64_t end, int) {
                               for (int64_t unit = begin; unit < end; unit++) pixel_row(unit);
                             });
    }
    const int64_t rows = shape_.batch * shape_.channels * shape_.axis[0].out * shape_.axis[1].out;
    const bool unit = x.stride[4] == 1 && out.stride[4] == 1;
    return parallel_pieces(exec, shape_.axis[2].out ? rows : 0, bytes * kOpsPerByte / double(max_of<int64_t>(rows, 1)),
                           [&](int64_t begin, int64_t end, int lane) {
                             if (unit) rows_of_planes<true>(begin, end, lane);
                             else rows_of_planes<false>(begin, end, lane);
                           });
  }

 private:
  // ---- lanes along rows
  template <bool kUnit>
  void rows_of_planes(int64_t begin, int64_t end, int lane) const {
    if constexpr (kUnit && !Op::lifts) {
      if (irregular_ && shape_.axis[0].in == 1 && shape_.axis[1].in == 1) {  // no rows to join: read x where it is
        RowPlace at(begin, shape_.channels, shape_.axis[0].out, shape_.axis[1].out);
        for (int64_t row = begin; row < end; row++, at.next())
          join_spans<true>(at, static_cast<const T*>(x_.data) + at.n * x_.stride[0] + at.c * x_.stride[1]);
        return;
      }
    }
    A* const padded = lanes_ + lane * lane_elements_;
    A* const splits = padded + batch_ * padded_;
    for (int64_t i = 0; i < lane_elements_; i++) padded[i] = Op::identity();
    RowPlace read(begin, shape_.channels, shape_.axis[0].out, shape_.axis[1].out), write = read;
    for (int64_t row = begin; row < end; row += batch_) {
      const int64_t count = min_of(batch_, end - row);
      for (int64_t b = 0; b < count; b++, read.next()) join_rows<kUnit>(read, padded + b * padded_ + pad_);
      if (splits_)
        for (int64_t b = 0; b < count; b++) split_.split(padded + b * padded_, splits + b * splits_);
      for (int64_t b = 0; b < count; b++, write.next()) {
        if (irregular_) join_spans<kUnit>(write, padded + b * padded_);
        else join_taps<kUnit>(write, splits_ ? splits + b * splits_ : padded + b * padded_);
      }
    }
  }

  // to[i] = join over the window's rows of lift(x[i]), for all real columns.
  template <bool kUnit>
  void join_rows(const RowPlace& at, A* to) const {
    const Span depth = spans_.axis[0][at.d], height = spans_.axis[1][at.h];
    const int64_t step = kUnit ? 1 : x_.stride[4];
    const int64_t step_d = x_.stride[2] * shape_.axis[0].dilation, step_h = x_.stride[3] * shape_.axis[1].dilation;
    const T* const base = static_cast<const T*>(x_.data) + at.n * x_.stride[0] + at.c * x_.stride[1] +
                          depth.first * x_.stride[2] + height.first * x_.stride[3];
    auto join_vectors = [&](int64_t i, auto vectors, int n) {
      constexpr int V = decltype(vectors)::value;
      Vec<A> sum[V];
      for (int v = 0; v < V; v++) sum[v] = op_.lift(load_as<A>(base + (i + v * L) * step, step, n));
      for (int64_t a = 0; a < depth.count; a++)
        for (int64_t r = a == 0; r < height.count; r++) {
          const T* const row = base + a * step_d + r * step_h + i * step;
          for (int v = 0; v < V; v++) sum[v] = op_.join(sum[v], op_.lift(load_as<A>(row + v * L * step, step, n)));
        }
      if (n == L)
        for (int v = 0; v < V; v++) store(to + i + v * L, sum[v]);
      else store_n(to + i, sum[0], n);
    };
    int64_t i = 0;
    if constexpr (kUnit)
      for (; i + 4 * L <= columns_; i += 4 * L) join_vectors(i, Constant<4>{}, L);
    for (; i + L <= columns_; i += L) join_vectors(i, Constant<1>{}, L);
    if (i < columns_) join_vectors(i, Constant<1>{}, int(columns_ - i));
  }

  template <bool kUnit>
  void join_taps(const RowPlace& at, const A* row) const {
    const int64_t outputs = shape_.axis[2].out;
    for (int64_t o = 0; o < outputs; o += L) {
      Vec<A> sum = load(row + o);
      for (int64_t j = 1; j < split_.taps; j++) sum = op_.join(sum, load(row + offset_[j] + o));
      give<kUnit>(at, o, sum, int(min_of<int64_t>(L, outputs - o)));
    }
  }

  template <bool kUnit>
  void join_spans(const RowPlace& at, const A* row) const {
    const int64_t outputs = shape_.axis[2].out;
    for (int64_t o = 0; o < outputs; o += L) {
      const int n = int(min_of<int64_t>(L, outputs - o));
      A sum[L] = {};
      for (int i = 0; i < n; i++) {
        const Span span = spans_.axis[2][o + i];
        sum[i] = join_all(row + span.first, span.count);
      }
      give<kUnit>(at, o, load(sum), n);
    }
  }

  // Four chains of vectors where there is enough for them; more than 16 links are halved, so that sums round little.
  A join_all(const A* p, int64_t count) const {
    constexpr int64_t kMost = 16 * 4 * L;
    if (count > kMost) {
      const int64_t half = round_up(count / 2, kMost);
      return op_.join(join_all(p, half), join_all(p + half, count - half));
    }
    A sum = p[0];
    int64_t i = 1;
    if (count >= 2 * L) {
      Vec<A> chain[4] = {load(p), load(p + L), splat(Op::identity()), splat(Op::identity())};
      for (i = 2 * L; i + 4 * L <= count; i += 4 * L)
        for (int k = 0; k < 4; k++) chain[k] = op_.join(chain[k], load(p + i + k * L));
      for (; i + L <= count; i += L) chain[0] = op_.join(chain[0], load(p + i));
      const Vec<A> all = op_.join(op_.join(chain[0], chain[1]), op_.join(chain[2], chain[3]));
      sum = all[0];
      for (int lane = 1; lane < L; lane++) sum = op_.join(sum, A(all[lane]));
    }
    for (; i < count; i++) sum = op_.join(sum, p[i]);
    return sum;
  }

  template <bool kUnit>
  void give(const RowPlace& at, int64_t o, Vec<A> sum, int n) const {
    const int64_t step = kUnit ? 1 : out_.stride[4];
    if (Op::divides) sum = sum / (load(counts_[2] + o) * splat(counts_[0][at.d] * counts_[1][at.h]));
    store_as<A>(static_cast<Y*>(out_.data) + at.offset(out_) + o * step, step, op_.finish(sum), n);
  }

  // ---- lanes along channels
  void pixel_row(int64_t unit) const {
    const PixelRowPlace at(unit, shape_.channels, shape_.axis[0].out, shape_.axis[1].out);
    const Span depth = spans_.axis[0][at.d], height = spans_.axis[1][at.h];
    const T* const x =
        static_cast<const T*>(x_.data) + at.n * x_.stride[0] + depth.first * x_.stride[2] + height.first * x_.stride[3];
    Y* const out = static_cast<Y*>(out_.data) + at.offset(out_);
    for (int64_t o = 0; o < shape_.axis[2].out; o++) {
      const Span width = spans_.axis[2][o];
      const T* const from = x + width.first * x_.stride[4];
      Y* const to = out + o * out_.stride[4];
      A divisor = 1;
      if (Op::divides) divisor = counts_[0][at.d] * counts_[1][at.h] * counts_[2][o];
      int64_t c = at.c.begin;
      for (; c + 4 * L <= at.c.end; c += 4 * L) pixel<4>(from + c, to + c, L, depth, height, width, divisor);
      for (; c + L <= at.c.end; c += L) pixel<1>(from + c, to + c, L, depth, height, width, divisor);
      if (c < at.c.end) pixel<1>(from + c, to + c, int(at.c.end - c), depth, height, width, divisor);
    }
  }

  // V vectors of channels of one output: a sum for each row of the window, then over rows. Shorter chains round less,
  // and the number of joins is the same.
  template <int V>
  void pixel(const T* x, Y* out, int n, const Span& depth, const Span& height, const Span& width, A divisor) const {
    const int64_t step_d = x_.stride[2] * shape_.axis[0].dilation, step_h = x_.stride[3] * shape_.axis[1].dilation,
                  step_w = x_.stride[4] * shape_.axis[2].dilation;
    Vec<A> sum[V] = {};
    for (int64_t a = 0; a < depth.count; a++)
      for (int64_t r = 0; r < height.count; r++) {
        const T* p = x + a * step_d + r * step_h;
        Vec<A> row[V];
        for (int v = 0; v < V; v++) row[v] = op_.lift(load_as<A>(p + v * L, 1, n));
        for (int64_t j = 1; j < width.count; j++) {
          p += step_w;
          for (int v = 0; v < V; v++) row[v] = op_.join(row[v], op_.lift(load_as<A>(p + v * L, 1, n)));
        }
        for (int v = 0; v < V; v++) sum[v] = a == 0 && r == 0 ? row[v] : op_.join(sum[v], row[v]);
      }
    for (int v = 0; v < V; v++) {
      if (Op::divides) sum[v] = sum[v] / splat(divisor);
      store_as<A>(out + v * L, 1, op_.finish(sum[v]), n);
    }
  }

  const PoolShape& shape_;
  const Op op_;
  const PhaseSplit split_;
  Carver carver_;
  bool irregular_;
  int64_t columns_, pad_, padded_, splits_, batch_, lane_elements_;
  SpanTable spans_;
  int64_t* offset_ = nullptr;
  A* counts_[CK_AXES] = {};
  A* lanes_;
  ck_tensor x_, out_;
};
