// Weight gradient of the depthwise convolution: lanes are channels, accumulators are taps.
//
// gw[c, tap] = sum over images and outputs of gy[n, c, p] * x[n, c, p * stride + tap]: per output one load of gy, and
// per tap one of x, which is the operand of the multiply-add. Up to five rows of taps are summed in one pass over a
// strip. Taps that fall outside the map are skipped, so padding is neither stored nor multiplied. Maps whose channels
// are neighbours (NHWC) are read in place; others (NCHW) are transposed in registers, as in conv_depthwise.inl.
//
// Strips and private copies of the gradient are those of conv_grad_weight.inl, and so is the order in which they are
// added: the bits are the same where multiply-add is fused, and depend on neither layout nor threads.
//
// Bound: memory, and one load per multiply-add. Measured as in conv_depthwise.inl: 3x3 9 cycles per vector of 16
// outputs in place, 7x7 48 at 14x14, where most outputs lie near an edge.

constexpr int kDepthwiseTaps = kVectorBytes == 64 ? 25 : 12;  // accumulators
constexpr int kDepthwiseRowTaps = 7;                          // more are summed in several passes

template <class T>
struct DepthwiseGradTile {
  const T* gy;
  const T* x;  // what output (0, 0) reads with the first tap; may lie outside the map
  int64_t gy_row, gy_pixel;
  int64_t x_row, x_pixel;                                      // elements between what neighbouring outputs read
  int64_t x_row_tap, x_pixel_tap;                              // between taps
  int64_t rows, cols;                                          // outputs
  int64_t first_row, row_step, row_advance, height, row_taps;  // rows of the map: of output 0, between outputs, taps
  int64_t first_col, col_step, col_advance, width;
  T* sums;           // [row of taps][tap][lanes]
  int64_t sums_row;  // elements between rows of taps
  int channels;
  bool add;
};

// Outputs among `count` whose taps 0 to `taps` - 1 all lie inside [0, size).
static inline Range depthwise_interior(int64_t first, int64_t step, int64_t advance, int64_t taps, int64_t size,
                                       int64_t count) {
  const int64_t last = first + (taps - 1) * advance;
  const int64_t begin = first >= 0 ? 0 : min_of(count, ceil_div(-first, step));
  const int64_t end = last >= size ? 0 : min_of(count, ceil_div(size - last, step));
  return {begin, max_of(begin, end)};
}

// One output, S taps in each of RT rows. `rows` and `columns` are bits: the taps inside the map.
template <class T, int S, int RT, bool INSIDE, bool FULL>
static inline __attribute__((always_inline)) void depthwise_grad_pixel(Vec<T> (&acc)[RT][S],
                                                                       const DepthwiseGradTile<T>& t, const T* gy,
                                                                       const T* x, uint32_t rows, uint32_t columns) {
  const Vec<T> g = load_channels<T, FULL>(gy, t.channels);
#pragma GCC unroll 7
  for (int r = 0; r < RT; r++, x += t.x_row_tap) {
    if (!(rows & 1u << r)) continue;
    const T* p = x;
#pragma GCC unroll 7
    for (int s = 0; s < S; s++, p += t.x_pixel_tap)
      if (INSIDE || (columns & 1u << s)) acc[r][s] += g * load_channels<T, FULL>(p, t.channels);
  }
}

template <class T, int S, int RT, bool FULL>
static void depthwise_grad_tile(const DepthwiseGradTile<T>& t) {
  constexpr int L = kLanes<T>;
  Vec<T> acc[RT][S];
#pragma GCC unroll 7
  for (int r = 0; r < RT; r++)
#pragma GCC unroll 7
    for (int s = 0; s < S; s++) acc[r][s] = Vec<T>{};
  const Range interior = depthwise_interior(t.first_col, t.col_step, t.col_advance, S, t.width, t.cols);
  for (int64_t row = 0; row < t.rows; row++) {
    uint32_t rows = 0;
    for (int r = 0; r < int(t.row_taps); r++)
      rows |= uint32_t(uint64_t(t.first_row + row * t.row_step + r * t.row_advance) < uint64_t(t.height)) << r;
    const T* gy = t.gy + row * t.gy_row;
    const T* x = t.x + row * t.x_row;
    for (int64_t col = 0; col < t.cols; gy += t.gy_pixel, x += t.x_pixel, col++) {
      if (col == interior.begin) {
        for (; col < interior.end; gy += t.gy_pixel, x += t.x_pixel, col++)
          depthwise_grad_pixel<T, S, RT, true, FULL>(acc, t, gy, x, rows, 0);
        if (col == t.cols) break;
      }
      uint32_t columns = 0;
      for (int s = 0; s < S; s++)
        columns |= uint32_t(uint64_t(t.first_col + col * t.col_step + s * t.col_advance) < uint64_t(t.width)) << s;
      depthwise_grad_pixel<T, S, RT, false, FULL>(acc, t, gy, x, rows, columns);
    }
  }
#pragma GCC unroll 7
  for (int r = 0; r < RT; r++) {
    if (r >= t.row_taps) break;
#pragma GCC unroll 7
    for (int s = 0; s < S; s++) {
      T* sum = t.sums + r * t.sums_row + s * L;
      store(sum, t.add ? load(sum) + acc[r][s] : acc[r][s]);
    }
  }
}

template <class T>
struct DepthwiseGradTiles {
  void (*tile[2])(const DepthwiseGradTile<T>&);  // [0]: all lanes
  int64_t rows;                                  // of taps

  template <int S>
  static DepthwiseGradTiles make() {
    constexpr int wanted = S < 3 ? 3 : S, most = kDepthwiseTaps / S < 1 ? 1 : kDepthwiseTaps / S;
    constexpr int RT = wanted < most ? wanted : most;
    return {{depthwise_grad_tile<T, S, RT, true>, depthwise_grad_tile<T, S, RT, false>}, RT};
  }
  static DepthwiseGradTiles of(int64_t taps) {
    return taps == 1   ? make<1>()
           : taps == 2 ? make<2>()
           : taps == 3 ? make<3>()
           : taps == 4 ? make<4>()
           : taps == 5 ? make<5>()
           : taps == 6 ? make<6>()
                       : make<7>();
  }
};

template <class T>
struct DepthwiseGradPlan {
  static constexpr int64_t lanes = kLanes<T>;

  GradWeightPlan<T> strips;
  ConvAxis axis[CK_AXES];
  bool in_place;
  int64_t multiplier, vectors, blocks;  // vectors of channels in a task; blocks of channels times the multiplier
  int64_t taps, copies;
  int64_t block_elements;           // sums of a block of channels
  int64_t rows_together;            // rows of strips that are transposed at once
  int64_t gy_elements, x_elements;  // transposed: of one image; of one plane of it

  // `copied`: vectors of channels in a task whose maps are not read in place.
  void init(const ck_conv& p, bool in_place_, int64_t copied) {
    strips.init(p, 1);
    in_place = in_place_;
    for (int a = 0; a < CK_AXES; a++) axis[a].init(p.in[a], p.out[a], p, a, false);
    multiplier = p.out_channels / p.groups;
    taps = strips.taps;
    copies = max_of<int64_t>(1, strips.copies);
    vectors = depthwise_vectors<T>(p.groups, taps);
    if (!in_place) vectors = min_of(vectors, copied);
    blocks = ceil_div(p.groups, vectors * lanes) * multiplier;
    block_elements = vectors * taps * lanes;
    rows_together = 1;
    const int64_t all = ceil_div(p.out[1], max_of<int64_t>(1, strips.rows));
    while (rows_together < all && bytes(2 * rows_together) <= kDepthwiseStripBytes) rows_together *= 2;
    bytes(rows_together);
    if (in_place) gy_elements = x_elements = 0;
  }
  int64_t pixel() const { return vectors * lanes; }  // elements of a transposed pixel
  int64_t planes() const { return min_of(axis[0].in, axis[0].kernel); }
  double ops() const {  // of a task, bytes moved among them
    const double outputs = double(strips.conv->batch) * double(axis[0].out) * double(axis[1].out * axis[2].out);
    return double(vectors * lanes) * outputs / double(copies) * (2.0 * double(taps) + 2 * kOpsPerByte * sizeof(T));
  }

 private:
  int64_t bytes(int64_t together) {
    const ck_conv& p = *strips.conv;
    const int64_t rows = min_of(p.out[1], together * strips.rows), cols = together > 1 ? p.out[2] : strips.cols;
    gy_elements = times(times(rows, cols), pixel());
    x_elements = times(times(depthwise_extent(axis[1], rows), depthwise_extent(axis[2], cols)), pixel());
    return times(plus(gy_elements, times(x_elements, planes())), int64_t(sizeof(T)));
  }
};

template <class S>
class DepthwiseGradWalk {
  typedef Wide<S> T;
  using Place = typename GradWeightPlan<T>::Place;

 public:
  DepthwiseGradWalk(const DepthwiseGradPlan<T>& plan, const ck_tensor* t, char* workspace)
      : plan_(plan),
        gy_(static_cast<const S*>(t[0].data)),
        x_(static_cast<const S*>(t[1].data)),
        out_(static_cast<S*>(t[2].data)),
        gy_stride_(t[0].stride),
        x_stride_(t[1].stride),
        out_stride_(t[2].stride),
        sums_(reinterpret_cast<T*>(workspace)),
        lanes_(workspace + sums_bytes(plan)) {}

  static size_t sums_bytes(const DepthwiseGradPlan<T>& plan) {
    return size_t(round_up(plan.blocks * plan.copies * plan.block_elements * int64_t(sizeof(T)), 64));
  }
  static size_t lane_bytes(const DepthwiseGradPlan<T>& plan) {
    const int64_t elements = plan.gy_elements + plan.x_elements * plan.planes();
    return size_t(round_up(elements * int64_t(sizeof(T)), 4096) + 64);
  }

  ck_status run(const ck_exec* exec) const {
    const int64_t copies = plan_.copies;
    const ck_status status =
        parallel_pieces(exec, plan_.blocks * copies, plan_.ops(), [&](int64_t begin, int64_t end, int lane) {
          for (int64_t task = begin; task < end; task++) {
            sum_strips(task / copies, task % copies, lane);
            if (copies == 1) finish(task);
          }
        });
    if (status != CK_OK || copies == 1) return status;
    return parallel_pieces(exec, plan_.blocks, double(plan_.block_elements * copies),
                           [&](int64_t begin, int64_t end, int) {
                             for (int64_t block = begin; block < end; block++) finish(block);
                           });
  }

 private:
  T* sums_of(int64_t block, int64_t copy) const {  // [vector][tap][lanes]
    return sums_ + (block * plan_.copies + copy) * plan_.block_elements;
  }
  int64_t channel_of(int64_t block) const { return block / plan_.multiplier * plan_.vectors * plan_.lanes; }
  int64_t channels_of(int64_t block) const {
    return min_of(plan_.vectors * plan_.lanes, plan_.strips.conv->groups - channel_of(block));
  }
  int64_t out_channel_of(int64_t block) const {
    return channel_of(block) * plan_.multiplier + block % plan_.multiplier;
  }

  // All strips of one copy, in their order; strips of a plane that follow one another are transposed together.
  void sum_strips(int64_t block, int64_t copy, int lane) const {
    const GradWeightPlan<T>& s = plan_.strips;
    const Range all = piece(s.strips, plan_.copies, copy);
    T* const sums = sums_of(block, copy);
    if (all.begin == all.end) memset(sums, 0, size_t(plan_.block_elements) * sizeof(T));
    const int64_t row = s.strips_w, plane = s.strips_w * s.strips_h;
    for (int64_t first = all.begin, next; first < all.end; first = next) {
      next = first + 1;
      if (plan_.rows_together > 1)
        next = min_of(min_of(all.end, round_up(next, plane)), first / row * row + plan_.rows_together * row);
      const Place a = s.place_of(first), z = s.place_of(next - 1);
      const Range rows = {a.first_row, z.first_row + z.rows};
      Range cols = {0, plan_.axis[2].out};
      if (next == first + 1) cols = {a.first_col, a.first_col + a.cols};
      for (int64_t n = a.first_image; n < a.first_image + a.images; n++) {  // one, if there are several strips
        const Maps maps = maps_of(block, n, a.depth, rows, cols, lane);
        for (int64_t strip = first; strip < next; strip++)
          sum_strip(block, s.place_of(strip), maps, sums, strip > all.begin || n > a.first_image);
      }
    }
  }

  // The planes as the tile reads them: addresses of row 0, column 0; of x that of depth 0, or of the first tap inside.
  struct Maps {
    const T *gy, *x;
    int64_t gy_row, gy_pixel, x_plane, x_row, x_pixel;
  };
  Maps maps_of(int64_t block, int64_t image, int64_t depth, Range rows, Range cols, int lane) const {
    if constexpr (kIsWide<S>)
      if (plan_.in_place) return maps_in_place(block, image, depth);
    return transposed(block, image, depth, rows, cols, lane);
  }
  Maps maps_in_place(int64_t block, int64_t image, int64_t depth) const {
    const int64_t *gs = gy_stride_, *xs = x_stride_, c = channel_of(block);
    return {gy_ + image * gs[0] + c + depth * gs[2], x_ + image * xs[0] + c, gs[3], gs[4], xs[2], xs[3], xs[4]};
  }
  Maps transposed(int64_t block, int64_t image, int64_t depth, Range rows, Range cols, int lane) const {
    T* const gy = reinterpret_cast<T*>(lanes_ + size_t(lane) * lane_bytes(plan_));
    T* const x = gy + plan_.gy_elements;
    const int64_t *gs = gy_stride_, *xs = x_stride_, L = plan_.lanes, pixel = plan_.pixel();
    const int64_t gy_channel[5] = {0, gs[1] * plan_.multiplier, 0, gs[3], gs[4]}, channels = channels_of(block);
    const S* const gy_plane = gy_ + image * gs[0] + out_channel_of(block) * gs[1] + depth * gs[2];
    for (int64_t c = 0; c < channels; c += L)
      transpose_plane(gy + c, pixel, gy_plane + c * gy_channel[1], gy_channel, rows, cols, min_of(L, channels - c));
    const Range x_rows = depthwise_inside(plan_.axis[1], rows), x_cols = depthwise_inside(plan_.axis[2], cols);
    const Range planes = planes_of(depth);
    for (int64_t z = planes.begin; z < planes.end; z++)
      for (int64_t c = 0; c < channels; c += L)
        transpose_plane(x + (z - planes.begin) * plan_.x_elements + c, pixel,
                        x_ + image * xs[0] + (channel_of(block) + c) * xs[1] + plane_of(depth, z) * xs[2], xs, x_rows,
                        x_cols, min_of(L, channels - c));
    Maps m;
    m.gy_row = (cols.end - cols.begin) * pixel, m.gy_pixel = pixel;
    m.x_row = (x_cols.end - x_cols.begin) * pixel, m.x_pixel = pixel, m.x_plane = plan_.x_elements;
    m.gy = gy - rows.begin * m.gy_row - cols.begin * pixel;
    m.x = x - x_rows.begin * m.x_row - x_cols.begin * pixel;
    return m;
  }
  int64_t plane_of(int64_t depth, int64_t tap) const {
    const ConvAxis& d = plan_.axis[0];
    return depth * d.stride - d.pad + tap * d.dilation;
  }
  Range planes_of(int64_t depth) const {  // taps whose plane lies in the map
    const DepthwiseAxis d(plan_.axis[0], 0, {depth, depth + 1});
    const Range inside = d.taps_inside(0);
    return {inside.begin, max_of(inside.begin, inside.end)};
  }

  // One strip of one image, all taps and channels.
  void sum_strip(int64_t block, const Place& p, const Maps& m, T* sums, bool add) const {
    const ConvAxis &h = plan_.axis[1], &w = plan_.axis[2];
    const Range planes = planes_of(p.depth);
    DepthwiseGradTile<T> t;
    t.gy_row = m.gy_row, t.gy_pixel = m.gy_pixel;
    t.x_row = h.stride * m.x_row, t.x_pixel = w.stride * m.x_pixel;
    t.x_row_tap = h.dilation * m.x_row, t.x_pixel_tap = w.dilation * m.x_pixel;
    t.rows = p.rows, t.cols = p.cols;
    t.row_step = h.stride, t.row_advance = h.dilation, t.height = h.in;
    t.col_step = w.stride, t.col_advance = w.dilation, t.width = w.in;
    t.sums_row = w.kernel * plan_.lanes;
    t.add = add;
    const int64_t plane_sums = h.kernel * t.sums_row, channels = channels_of(block);
    for (int64_t c = 0; c < channels; c += plan_.lanes, sums += plan_.taps * plan_.lanes) {
      t.channels = int(min_of(plan_.lanes, channels - c));
      t.gy = m.gy + p.first_row * m.gy_row + p.first_col * m.gy_pixel + c;
      const int some = plan_.in_place && t.channels < plan_.lanes;
      for (int64_t z = 0; z < plan_.axis[0].kernel; z++) {
        if (z < planes.begin || z >= planes.end) {
          if (!add) memset(sums + z * plane_sums, 0, size_t(plane_sums) * sizeof(T));
          continue;
        }
        const T* plane = m.x + (plan_.in_place ? plane_of(p.depth, z) : z - planes.begin) * m.x_plane + c;
        for (int64_t s = 0; s < w.kernel; s += kDepthwiseRowTaps) {
          const int64_t taps = min_of<int64_t>(kDepthwiseRowTaps, w.kernel - s);
          const DepthwiseGradTiles<T> tiles = DepthwiseGradTiles<T>::of(taps);
          for (int64_t r = 0; r < h.kernel; r += tiles.rows) {
            t.row_taps = min_of(tiles.rows, h.kernel - r);
            t.first_row = p.first_row * h.stride - h.pad + r * h.dilation;
            t.first_col = p.first_col * w.stride - w.pad + s * w.dilation;
            t.x = plane + t.first_row * m.x_row + t.first_col * m.x_pixel;
            t.sums = sums + z * plane_sums + r * t.sums_row + s * plan_.lanes;
            tiles.tile[some](t);
          }
        }
      }
    }
  }

  // Adds the copies in their order and writes the gradient of a block.
  void finish(int64_t block) const {
    T* const total = sums_of(block, 0);
    for (int64_t copy = 1; copy < plan_.copies; copy++) {
      const T* more = sums_of(block, copy);
      for (int64_t i = 0; i < plan_.block_elements; i += plan_.lanes)
        store(total + i, load(total + i) + load(more + i));
    }
    const ConvAxis &d = plan_.axis[0], &h = plan_.axis[1], &w = plan_.axis[2];
    const int64_t* os = out_stride_;
    const bool joined =
        (h.kernel == 1 || os[3] == w.kernel * os[4]) && (d.kernel == 1 || os[2] == h.kernel * w.kernel * os[4]);
    const int64_t run = joined ? plan_.taps : w.kernel, channels = channels_of(block);
    const T* from = total;
    for (int64_t c = 0; c < channels; c += plan_.lanes)
      for (int64_t tap = 0; tap < plan_.taps; tap += run, from += run * plan_.lanes) {
        const int64_t row = tap / w.kernel, channel = out_channel_of(block) + c * plan_.multiplier;
        S* to = out_ + channel * os[0] + row / h.kernel * os[2] + row % h.kernel * os[3];
        write_back<S>(from, plan_.lanes, run, min_of(plan_.lanes, channels - c), nullptr, 0, nullptr, 0, 0, to, os[4],
                      plan_.multiplier * os[0], false);
      }
  }

  const DepthwiseGradPlan<T>& plan_;
  const S *const gy_, *const x_;
  S* const out_;
  const int64_t *const gy_stride_, *const x_stride_, *const out_stride_;
  T* const sums_;
  char* const lanes_;
};

template <class S>
struct conv_grad_weight_depthwise {
  typedef Wide<S> T;

  static DepthwiseGradPlan<T> plan_for(const void* params, bool in_place) {
    DepthwiseGradPlan<T> plan;
    plan.init(*static_cast<const ck_conv*>(params), in_place, kDepthwiseCopied<S>);
    return plan;
  }
  static size_t bytes(const DepthwiseGradPlan<T>& plan, int threads) {
    return DepthwiseGradWalk<S>::sums_bytes(plan) + size_t(threads) * DepthwiseGradWalk<S>::lane_bytes(plan);
  }
  static const char* why_not(const void* params) {
    const char* no = depthwise_why_not<T>(*static_cast<const ck_conv*>(params), kDepthwiseMultiplier);
    if (no) return no;
    const DepthwiseGradPlan<T> plan = plan_for(params, false);
    return times(times(plan.x_elements, plan.planes()), int64_t(sizeof(T))) > kMostStripBytes
               ? "needs taps near each other: a strip of the input would take more than 256 MB"
               : nullptr;
  }
  static size_t workspace(const void* params, int threads) {  // strides, which decide on the way, are not known here
    return max_of(bytes(plan_for(params, false), threads), bytes(plan_for(params, true), threads));
  }
  static ck_status run(const void* params, const ck_tensor* t, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const ck_conv& p = *static_cast<const ck_conv*>(params);
    const bool in_place = kIsWide<S> && p.out_channels == p.groups && t[0].stride[1] == 1 && t[1].stride[1] == 1;
    const DepthwiseGradPlan<T> plan = plan_for(params, in_place);
    if (plan.blocks == 0) return CK_OK;
    if (exec->workspace_size < bytes(plan, exec->threads)) return CK_SMALL_WORKSPACE;
    return DepthwiseGradWalk<S>(plan, t, static_cast<char*>(exec->workspace)).run(exec);
  }
};
