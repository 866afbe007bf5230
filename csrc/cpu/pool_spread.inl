// Gradients of pooling sums: grad_x[i] = finish(sum over the windows that hold i of grad_output * weight, x[i]).
//
// Every element of grad_x is gathered and written exactly once, in an order of additions that follows from the shape:
// no zero fill, no atomics. Rows (NCHW): the rows of grad_output whose windows hold the row are added up first, then
// their columns are spread (pool_rows.inl); neighbouring rows held by the same windows are computed once, so that a
// pooling without overlap is one stream of copies. Channels (NHWC): lanes are channels, windows are visited one by one.
// Bound by memory: grad_output is read once from there, grad_x written once.
//
// G is the type of grad_output, T of grad_x and x. Op has the type Sum of sums, `divides` (weights are one over the
// counts of all axes, otherwise 1), `reads_x` and finish(sum, x) for vectors of Sum.

template <class T, class G, class Op>
class PoolSpread {
  using A = typename Op::Sum;
  static constexpr int L = kLanes<A>;

 public:
  PoolSpread(const PoolShape& shape, const Op& op, void* workspace, int threads)
      : shape_(shape), op_(op), split_(shape.axis[2]), carver_(workspace) {
    adaptive_ = shape.axis[2].adaptive;
    lead_ = adaptive_ ? 0 : split_.most_shift();
    source_ = round_up(adaptive_ ? shape.axis[2].out + L : split_.source_size<A>(), L);
    merged_ = round_up(adaptive_ ? shape.axis[2].in + L : split_.merged_size<A>(), L);
    pad_ = adaptive_ ? 0 : split_.pad;
    spans_.take_outputs(carver_, shape);
    if (!adaptive_) shift_ = carver_.take<int64_t>(split_.taps);
    if (Op::divides)
      for (int a = 0; a < CK_AXES; a++) weight_[a] = carver_.take<A>(shape.axis[a].out + L);
    lanes_ = carver_.take<A>((source_ + merged_) * threads);
  }
  size_t workspace_bytes() const { return carver_.bytes; }

  // count(axis, output): cells counted there. x is read only if Op::reads_x.
  template <class Count>
  ck_status run(const ck_tensor& grad, const ck_tensor& x, const ck_tensor& grad_x, const ck_exec* exec,
                const Count& count) {
    grad_ = grad, x_ = Op::reads_x ? x : grad_x, grad_x_ = grad_x;
    spans_.fill_outputs(shape_);
    if (!adaptive_)
      for (int64_t j = 0; j < split_.taps; j++) shift_[j] = split_.shift(j);
    if (Op::divides)
      for (int a = 0; a < CK_AXES; a++)
        for (int64_t o = 0; o < shape_.axis[a].out + L; o++)
          weight_[a][o] = o < shape_.axis[a].out ? A(1) / A(count(a, o)) : A(0);
    const int64_t elements = shape_.batch * shape_.channels * shape_.plane_in();
    const double bytes = double(elements) * sizeof(T) * (Op::reads_x ? 2 : 1) +
                         double(shape_.batch * shape_.channels * shape_.plane_out()) * sizeof(G);
    if (shape_.channels_inner(&grad_, &x_, &grad_x_)) {
      const int64_t units =
          shape_.batch * shape_.axis[0].in * shape_.axis[1].in * PixelRowPlace::parts(shape_.channels);
      return parallel_pieces(exec, units, bytes * kOpsPerByte / double(max_of<int64_t>(units, 1)),
                             [&](int64_t begin, int64_t end, int) {
                               for (int64_t unit = begin; unit < end; unit++) pixel_row(unit);
                             });
    }
    const int64_t rows = shape_.batch * shape_.channels * shape_.axis[0].in * shape_.axis[1].in;
    const bool unit = grad.stride[4] == 1 && x_.stride[4] == 1 && grad_x.stride[4] == 1;
    return parallel_pieces(exec, rows, bytes * kOpsPerByte / double(max_of<int64_t>(rows, 1)),
                           [&](int64_t begin, int64_t end, int lane) {
                             if (unit) rows_of_planes<true>(begin, end, lane);
                             else rows_of_planes<false>(begin, end, lane);
                           });
  }

 private:
  // ---- lanes along rows
  template <bool kUnit>
  void rows_of_planes(int64_t begin, int64_t end, int lane) const {
    A* const source = lanes_ + lane * (source_ + merged_);
    A* const merged = source + source_;
    memset(source, 0, size_t(source_ + merged_) * sizeof(A));
    RowPlace at(begin, shape_.channels, shape_.axis[0].in, shape_.axis[1].in);
    RowPlace done = at;
    for (int64_t row = begin; row < end; row++, at.next()) {
      if (row == begin || !same_windows(at, done)) {
        add_rows<kUnit>(at, source + lead_);
        if (adaptive_) spread_spans(source, merged);
        else spread_taps(source + lead_, merged);
        done = at;
      }
      give<kUnit>(at, merged + pad_);
    }
  }

  bool same_windows(const RowPlace& a, const RowPlace& b) const {
    auto same = [](const Span& s, const Span& t) { return s.first == t.first && s.count == t.count; };
    return a.n == b.n && a.c == b.c && same(spans_.axis[0][a.d], spans_.axis[0][b.d]) &&
           same(spans_.axis[1][a.h], spans_.axis[1][b.h]);
  }

  // Output (d, h) number (a, r) of those that hold a row.
  int64_t out_d(const Span& depth, int64_t a) const { return depth.first + a * shape_.axis[0].out_step; }
  int64_t out_h(const Span& height, int64_t r) const { return height.first + r * shape_.axis[1].out_step; }

  template <bool kUnit>
  void add_rows(const RowPlace& at, A* to) const {
    const Span depth = spans_.axis[0][at.d], height = spans_.axis[1][at.h];
    const int64_t step = kUnit ? 1 : grad_.stride[4], outputs = shape_.axis[2].out;
    const G* const plane = static_cast<const G*>(grad_.data) + at.n * grad_.stride[0] + at.c * grad_.stride[1];
    for (int64_t o = 0; o < outputs; o += L) {
      const int n = int(min_of<int64_t>(L, outputs - o));
      Vec<A> sum{};
      for (int64_t a = 0; a < depth.count; a++)
        for (int64_t r = 0; r < height.count; r++) {
          const int64_t d = out_d(depth, a), h = out_h(height, r);
          const G* const row = plane + d * grad_.stride[2] + h * grad_.stride[3];
          const Vec<A> v = n == L ? load_as<A>(row + o * step, step, L) : load_as<A>(row + o * step, step, n);
          if (Op::divides) sum += v * splat(weight_[0][d] * weight_[1][h]);
          else sum += v;
        }
      if (Op::divides) sum *= load(weight_[2] + o);
      if (n == L) store(to + o, sum);
      else store_n(to + o, sum, n);
    }
  }

  void spread_taps(const A* source, A* merged) const {
    split_.merge(merged, [&](auto vectors, int64_t t, int64_t q, Vec<A>* sum) {
      constexpr int V = decltype(vectors)::value;
      for (int v = 0; v < V; v++) sum[v] = load(source + q + v * L - shift_[t]);
      for (int64_t j = t + split_.period; j < split_.taps; j += split_.period) {
        const A* const from = source + q - shift_[j];
        for (int v = 0; v < V; v++) sum[v] += load(from + v * L);
      }
    });
  }

  void spread_spans(const A* source, A* merged) const {
    for (int64_t i = 0; i < shape_.axis[2].in; i++) {
      const Span span = spans_.axis[2][i];
      A sum = 0;
      for (int64_t o = span.first; o < span.first + span.count; o++) sum += source[o];
      merged[i] = sum;
    }
  }

  template <bool kUnit>
  void give(const RowPlace& at, const A* sums) const {
    const int64_t columns = shape_.axis[2].in;
    const int64_t step = kUnit ? 1 : grad_x_.stride[4], x_step = kUnit ? 1 : x_.stride[4];
    T* const to = static_cast<T*>(grad_x_.data) + at.offset(grad_x_);
    const T* const x = static_cast<const T*>(x_.data) + at.offset(x_);
    auto give_vector = [&](int64_t i, int n) {
      Vec<A> value = load(sums + i);
      if (Op::reads_x) value = op_.finish(value, load_as<A>(x + i * x_step, x_step, n));
      store_as<A>(to + i * step, step, value, n);
    };
    int64_t i = 0;
    for (; i + L <= columns; i += L) give_vector(i, L);
    if (i < columns) give_vector(i, int(columns - i));
  }

  // ---- lanes along channels
  void pixel_row(int64_t unit) const {
    const PixelRowPlace at(unit, shape_.channels, shape_.axis[0].in, shape_.axis[1].in);
    const G* const grad = static_cast<const G*>(grad_.data) + at.n * grad_.stride[0];
    const T* const x = static_cast<const T*>(x_.data) + at.offset(x_);
    T* const grad_x = static_cast<T*>(grad_x_.data) + at.offset(grad_x_);
    for (int64_t i = 0; i < shape_.axis[2].in; i++) {
      T* const to = grad_x + i * grad_x_.stride[4];
      const T* const from = x + i * x_.stride[4];
      int64_t c = at.c.begin;
      for (; c + 4 * L <= at.c.end; c += 4 * L) pixel<4>(grad + c, at, i, from + c, to + c, L);
      for (; c + L <= at.c.end; c += L) pixel<1>(grad + c, at, i, from + c, to + c, L);
      if (c < at.c.end) pixel<1>(grad + c, at, i, from + c, to + c, int(at.c.end - c));
    }
  }

  template <int V>
  void pixel(const G* grad, const PixelRowPlace& at, int64_t i, const T* x, T* to, int n) const {
    const Span depth = spans_.axis[0][at.d], height = spans_.axis[1][at.h], width = spans_.axis[2][i];
    const int64_t step_w = shape_.axis[2].out_step;
    Vec<A> sum[V] = {};
    for (int64_t a = 0; a < depth.count; a++)
      for (int64_t r = 0; r < height.count; r++) {
        const int64_t d = out_d(depth, a), h = out_h(height, r);
        const G* const row = grad + d * grad_.stride[2] + h * grad_.stride[3];
        for (int64_t j = 0; j < width.count; j++) {
          const int64_t w = width.first + j * step_w;
          for (int v = 0; v < V; v++) {
            const Vec<A> g = load_as<A>(row + w * grad_.stride[4] + v * L, 1, n);
            if (Op::divides) sum[v] += g * splat(weight_[0][d] * weight_[1][h] * weight_[2][w]);
            else sum[v] += g;
          }
        }
      }
    for (int v = 0; v < V; v++) {
      if (Op::reads_x) sum[v] = op_.finish(sum[v], load_as<A>(x + v * L, 1, n));
      store_as<A>(to + v * L, 1, sum[v], n);
    }
  }

  const PoolShape& shape_;
  const Op op_;
  const PhaseSplit split_;
  Carver carver_;
  bool adaptive_;
  int64_t lead_, source_, merged_, pad_;
  SpanTable spans_;
  int64_t* shift_ = nullptr;
  A* weight_[CK_AXES] = {};
  A* lanes_;
  ck_tensor grad_, x_, grad_x_;
};
