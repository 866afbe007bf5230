// Depthwise convolution and its input gradient: one input channel per group, lanes are channels.
//
// A unit is a range of outputs of some channels of one image. Where channels are neighbours in memory (NHWC) the tile
// reads and writes the maps themselves. Elsewhere (NCHW) the part of the input that a unit reads is transposed in
// registers into [row][column][lanes], and its outputs are transposed back by write_back(): for a 3x3 as much work
// again as the sums, and still below what memory takes, for every width of map alike. No padding is stored: tiles step
// over rows and columns outside the map.
//
// The input gradient of stride 1 is the forward convolution of the maps read backwards: reversed axes are negative
// strides, and the weights stay as they are. With a stride each phase (conv_plan.inl) is such a convolution with the
// taps that hit it. A group with several outputs (a channel multiplier) is as many depthwise convolutions.
//
// Bound: memory, 8 bytes for 18 operations of a 3x3. Measured, float32, 2 cores of an AMD EPYC (Zen 5), in cycles per
// vector of 16 outputs of a core, data in the first-level cache: 3x3 8-9 in place and 16-17 transposed (4.5 of
// multiply-adds), 5x5 14 and 22 (12.5); MobileNet's layers with 8 images in NHWC 80-117 GB/s.
//
// Sums are one chain of multiply-adds in the order of the taps, as
// in conv_direct.inl and conv_rows.inl, and give the same bits where multiply-add is fused.

constexpr int64_t kDepthwiseMultiplier = 4;
constexpr int64_t kDepthwiseVectors = 16;                 // of channels in a unit, read in place: 1 KB of each pixel
constexpr int64_t kDepthwiseFarBytes = int64_t(8) << 20;  // larger inputs come from memory: rows are fetched ahead
constexpr int64_t kDepthwiseUnitBytes = 32 * 1024;        // of outputs, read in place
constexpr int64_t kDepthwiseStripBytes = 256 * 1024;      // of input, transposed
constexpr int64_t kDepthwiseSumsBytes = 16 * 1024;        // of outputs, transposed: they stay in the first level
constexpr int64_t kDepthwiseWeightBytes = 128 * 1024;     // of the channels of a unit

// The tiles know T alone, so arrays of a narrower type are always copied, a cache line of channels at once.
template <class S>
constexpr int64_t kDepthwiseCopied = kIsWide<S> ? 1 : 64 / (kLanes<S> * int64_t(sizeof(S)));  // vectors

// One axis of a range of outputs of one phase, backwards for the input gradient, so that everything ascends:
// output u, counted from the first, reads coordinate first + u * step + j * advance of the axis with tap j.
struct DepthwiseAxis {
  int64_t taps, step, advance, first;
  int64_t size;                 // of the input axis
  bool backwards;               // coordinate i stands for size - 1 - i
  int64_t outputs;              // in the range
  int64_t out_first, out_step;  // output coordinates
  int64_t tap_first, tap_step;  // kernel indices

  // The outputs of `phase` among [begin, end).
  DepthwiseAxis(const ConvAxis& a, int64_t phase, Range range) {
    const int64_t rho = a.class_of(phase);
    const int64_t low = ceil_div(max_of<int64_t>(0, range.begin - phase), a.step_out);
    const int64_t high = ceil_div(max_of<int64_t>(0, range.end - phase), a.step_out);
    AxisTaps t = {phase, 0, 0, 1, 0, a.backward ? -1 : 1};  // no taps
    if (rho >= 0) t = a.taps(rho);
    size = a.in, backwards = a.backward;
    outputs = max_of<int64_t>(0, high - low);
    taps = t.count, tap_first = t.first, tap_step = t.step;
    step = a.step_in;
    if (backwards) {
      first = size - 1 - (high - 1 + t.offset), advance = -t.advance;
      out_first = phase + (high - 1) * a.step_out, out_step = -a.step_out;
    } else {
      first = low * step + t.offset, advance = t.advance;
      out_first = phase + low * a.step_out, out_step = a.step_out;
    }
  }
  // Taps with which output u reads inside the map.
  Range taps_inside(int64_t u) const {
    const int64_t at = first + u * step;
    const int64_t begin = at >= 0 ? 0 : ceil_div(-at, advance);
    const int64_t end = at >= size ? 0 : ceil_div(size - at, advance);
    return {min_of(begin, taps), min_of(end, taps)};
  }
  // Input coordinates from the first to the last that the range reads, those of the map.
  Range inside() const {
    if (outputs == 0 || taps == 0) return {0, 0};
    const int64_t low = max_of<int64_t>(0, first);
    const int64_t high = min_of(size, first + (outputs - 1) * step + (taps - 1) * advance + 1);
    if (low >= high) return {0, 0};
    return backwards ? Range{size - high, size - low} : Range{low, high};
  }
};

// What a range of outputs reads of an axis, all phases together.
static inline Range depthwise_inside(const ConvAxis& a, Range outputs) {
  Range all = {0, 0};
  for (int64_t phase = 0; phase < a.phases(); phase++) {
    const Range one = DepthwiseAxis(a, phase, outputs).inside();
    if (one.begin == one.end) continue;
    if (all.begin == all.end) all = one;
    all = {min_of(all.begin, one.begin), max_of(all.end, one.end)};
  }
  return all;
}

// At most this many coordinates of the input lie between the first and the last that `outputs` neighbours read.
static inline int64_t depthwise_extent(const ConvAxis& a, int64_t outputs) {
  const int64_t reach = times(a.kernel - 1, a.dilation);
  const int64_t span = a.backward ? (plus(outputs, reach)) / a.stride + 2 : plus(times(outputs, a.stride), reach);
  return min_of(a.in, span);
}

// Vectors of channels that a unit takes at once, at most.
template <class T>
static inline int64_t depthwise_vectors(int64_t channels, int64_t taps) {
  const int64_t weights = max_of<int64_t>(1, kDepthwiseWeightBytes / times(taps, kVectorBytes));
  return min_of(min_of(kDepthwiseVectors, weights), ceil_div(channels, kLanes<T>));
}

// Part of a plane of at most `lanes` channels -> [row][column][pitch]. Rows that follow each other in memory without a
// gap are one row.
template <class S>
static void transpose_plane(Wide<S>* to, int64_t pitch, const S* from, const int64_t* stride, Range rows, Range cols,
                            int64_t channels) {
  constexpr int L = kLanes<S>;
  const int64_t width = cols.end - cols.begin, height = rows.end - rows.begin;
  if (width == 0 || height == 0) return;
  const bool joined = stride[3] == width * stride[4];
  const int64_t runs = joined ? 1 : height, length = joined ? width * height : width;
  from += rows.begin * stride[3] + cols.begin * stride[4];
  if (stride[1] == 1) {  // channels are neighbours: no transposition
    for (int64_t y = 0; y < runs; y++, from += stride[3])
      for (int64_t i = 0; i < length; i++, to += pitch) store(to, load_n(from + i * stride[4], int(channels)));
    return;
  }
  for (int64_t y = 0; y < runs; y++, from += stride[3])
    for (int64_t i = 0; i < length; i += L) {
      const int pixels = int(min_of<int64_t>(L, length - i));
      Vec<S> v[L];
      load_pixels(v, from + i * stride[4], stride[4], stride[1], pixels, int(channels));
      if (pixels == L) {
#pragma GCC unroll 16
        for (int j = 0; j < L; j++) store(to + j * pitch, v[j]);
      } else {
        for (int j = 0; j < pixels; j++) store(to + j * pitch, v[j]);
      }
      to += pixels * pitch;
    }
}

// Maps as the tile reads and writes them: addresses of coordinate 0 of all axes.
template <class T>
struct DepthwiseMaps {
  const T* in;
  const T* residual;
  T* out;
  int64_t in_stride[CK_AXES], residual_stride[CK_AXES], out_stride[CK_AXES];  // depth, height, width
  bool planes_by_tap;                                                         // `in` holds a plane per tap, in order
};

template <class T>
struct DepthwisePlan {
  static constexpr int64_t lanes = kLanes<T>;

  ConvAxis axis[CK_AXES];
  int64_t batch, groups, multiplier;
  int64_t taps;
  bool in_place, prefetches;
  int64_t vectors, blocks;  // vectors of channels in a unit
  int64_t rows, cols;       // outputs of a unit
  int64_t band;             // rows of outputs that are summed and then written, of a transposed strip
  int64_t strips_h, strips_w, units;
  int64_t plane_elements, in_elements, sums_elements;  // of a transposed strip

  // `copied`: vectors of channels in a unit whose maps are not read in place.
  void init(const ck_conv& p, bool backward, bool in_place_, int64_t copied) {
    batch = p.batch, groups = p.groups, multiplier = p.out_channels / p.groups;
    in_place = in_place_;
    for (int a = 0; a < CK_AXES; a++)
      axis[a].init(backward ? p.out[a] : p.in[a], backward ? p.in[a] : p.out[a], p, a, backward);
    taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
    vectors = depthwise_vectors<T>(groups, taps);
    if (!in_place) vectors = min_of(vectors, copied);
    blocks = ceil_div(groups, vectors * lanes);
    const int64_t pixels = times(times(axis[0].in, axis[1].in), axis[2].in);
    prefetches = in_place && times(times(batch, groups * int64_t(sizeof(T))), pixels) > kDepthwiseFarBytes;
    cut();
    strips_h = ceil_div(axis[1].out, max_of<int64_t>(1, rows));
    strips_w = ceil_div(axis[2].out, max_of<int64_t>(1, cols));
    units = blocks * multiplier * batch * axis[0].out * strips_h * strips_w;
  }
  int64_t pixel() const { return vectors * lanes; }  // elements of a pixel in a transposed strip
  int64_t weight_elements() const { return vectors * taps * lanes; }
  double ops() const {  // of a unit, bytes moved among them
    return double(vectors * lanes) * double(rows * cols) * (2.0 * double(taps) + 2 * kOpsPerByte * sizeof(T));
  }

 private:
  void cut() {
    const int64_t pair = 2 * axis[1].step_out;  // the tile takes two rows of a phase
    rows = axis[1].out, cols = axis[2].out;
    plane_elements = in_elements = sums_elements = band = 0;
    if (in_place) {
      const int64_t most = kDepthwiseUnitBytes / (vectors * kVectorBytes);
      cols = ceil_div(cols, ceil_div(max_of<int64_t>(1, cols), 4 * most));
      rows = min_of(rows, max_of(pair, round_up(most / max_of<int64_t>(1, cols), pair)));
      return;
    }
    while (rows > pair && bytes() > kDepthwiseStripBytes) rows = round_up(ceil_div(rows, 2), pair);
    while (cols > 64 && bytes() > 2 * kDepthwiseStripBytes) cols = ceil_div(cols, 2);
    bytes();
  }
  int64_t bytes() {
    plane_elements = times(times(depthwise_extent(axis[1], rows), depthwise_extent(axis[2], cols)), pixel());
    in_elements = times(plane_elements, min_of(axis[0].in, ceil_div(axis[0].kernel, axis[0].modulus)));
    const int64_t pair = 2 * axis[1].step_out, row = times(times(cols, pixel()), int64_t(sizeof(T)));
    band = min_of(rows, max_of(pair, round_up(kDepthwiseSumsBytes / max_of<int64_t>(1, row), pair)));
    sums_elements = times(times(band, cols), pixel());
    return times(plus(in_elements, sums_elements), int64_t(sizeof(T)));
  }
};

template <class S>
class DepthwiseWalk {
  typedef Wide<S> T;

 public:
  DepthwiseWalk(const DepthwisePlan<T>& plan, const ConvOperands<S>& operands, char* lanes)
      : plan_(plan), op_(operands), lanes_(lanes) {}

  static size_t lane_bytes(const DepthwisePlan<T>& plan) {
    const int64_t elements =
        2 * plan.weight_elements() + plan.vectors * plan.lanes + plan.in_elements + plan.sums_elements + plan.lanes;
    return size_t(round_up(int64_t(sizeof(Lane)) + elements * int64_t(sizeof(T)), 4096) + 64);
  }

  ck_status run(const ck_exec* exec) {
    for (int lane = 0; lane < exec->threads; lane++) lane_at(lane)->weights = -1;
    return parallel_pieces(exec, plan_.units, plan_.ops(), [&](int64_t begin, int64_t end, int lane) {
      for (int64_t i = begin; i < end; i++) unit(i, lane_at(lane));
    });
  }

 private:
  // A lane's part of the workspace: this struct, weights of a block, those of one phase, biases, zeros, strips.
  struct alignas(64) Lane {
    int64_t weights;  // whose weights and biases are packed; -1: none
  };
  Lane* lane_at(int lane) const { return reinterpret_cast<Lane*>(lanes_ + size_t(lane) * lane_bytes(plan_)); }
  T* weights_of(Lane* lane) const { return reinterpret_cast<T*>(lane + 1); }
  T* phase_weights_of(Lane* lane) const { return weights_of(lane) + plan_.weight_elements(); }
  T* bias_of(Lane* lane) const { return phase_weights_of(lane) + plan_.weight_elements(); }
  T* input_of(Lane* lane) const { return bias_of(lane) + plan_.vectors * plan_.lanes; }
  T* sums_of(Lane* lane) const { return input_of(lane) + plan_.in_elements; }

  struct Place {
    int64_t block, image, depth;
    Range rows, cols;           // outputs
    int64_t channel, channels;  // of the input, where it has one per group
    int64_t out_channel;        // of the output: the first; the next ones lie `multiplier` apart
  };
  Place place_of(int64_t unit) const {
    Place p;
    p.cols = piece(plan_.axis[2].out, plan_.strips_w, unit % plan_.strips_w);
    unit /= plan_.strips_w;
    const int64_t first = unit % plan_.strips_h * plan_.rows;
    p.rows = {first, min_of(first + plan_.rows, plan_.axis[1].out)};
    unit /= plan_.strips_h;
    p.depth = unit % plan_.axis[0].out;
    unit /= plan_.axis[0].out;
    p.image = unit % plan_.batch;
    p.block = unit / plan_.batch;
    p.channel = p.block / plan_.multiplier * plan_.vectors * plan_.lanes;
    p.channels = min_of(plan_.vectors * plan_.lanes, plan_.groups - p.channel);
    p.out_channel = p.channel * plan_.multiplier + p.block % plan_.multiplier;
    return p;
  }

  void unit(int64_t unit, Lane* lane) const {
    const Place p = place_of(unit);
    if (lane->weights != p.block) {
      pack_weights(p, lane);
      lane->weights = p.block;
    }
    const ConvAxis& d = plan_.axis[0];
    const DepthwiseAxis depth(d, p.depth % d.step_out, {p.depth, p.depth + 1});
    const DepthwiseMaps<T> maps = maps_of(p, depth, lane);
    if (plan_.in_place) return sum_rows(p, depth, maps, lane);
    Place some = p;
    for (int64_t row = p.rows.begin; row < p.rows.end; row = some.rows.end) {
      some.rows = {row, min_of(row + plan_.band, p.rows.end)};
      DepthwiseMaps<T> own = maps;
      own.out -= (row - p.rows.begin) * own.out_stride[1];
      sum_rows(some, depth, own, lane);
      write_sums(some, lane);
    }
  }
  // All phases of some rows of outputs.
  void sum_rows(const Place& p, const DepthwiseAxis& depth, const DepthwiseMaps<T>& maps, Lane* lane) const {
    const ConvAxis &h = plan_.axis[1], &w = plan_.axis[2];
    for (int64_t phase_h = 0; phase_h < h.phases(); phase_h++)
      for (int64_t phase_w = 0; phase_w < w.phases(); phase_w++) {
        const DepthwiseAxis height(h, phase_h, p.rows), width(w, phase_w, p.cols);
        if (height.outputs > 0 && width.outputs > 0) phase(p, depth, height, width, maps, lane);
      }
  }

  DepthwiseMaps<T> maps_of(const Place& p, const DepthwiseAxis& depth, Lane* lane) const {
    if constexpr (kIsWide<S>)
      if (plan_.in_place) return maps_in_place(p);
    return transposed(p, depth, lane);
  }

  // Weights of a unit's channels: [vector][tap][lanes]; and biases, for the tile to add.
  void pack_weights(const Place& p, Lane* lane) const {
    const WeightSource<S>& from = op_.weight;
    const ConvAxis &d = plan_.axis[0], &h = plan_.axis[1], &w = plan_.axis[2];
    const bool joined = (h.kernel == 1 || from.axis[1] == w.kernel * from.axis[2]) &&
                        (d.kernel == 1 || from.axis[0] == h.kernel * w.kernel * from.axis[2]);
    const int64_t run = joined ? plan_.taps : w.kernel;
    const int64_t stride[5] = {0, op_.weight_group, 0, 0, from.axis[2]}, size[CK_AXES] = {1, 1, run};
    const S* weight = from.data + p.out_channel % plan_.multiplier * from.k + p.channel * op_.weight_group;
    T* to = weights_of(lane);
    for (int64_t c = 0; c < p.channels; c += plan_.lanes)
      for (int64_t tap = 0; tap < plan_.taps; tap += run, to += run * plan_.lanes) {
        const PixelSource<S> source = {nullptr, stride, size, min_of(plan_.lanes, p.channels - c), 0, 1, run};
        const int64_t row = tap / w.kernel;
        const S* first = weight + row % h.kernel * from.axis[1] + row / h.kernel * from.axis[0];
        pack_pixels(to, plan_.lanes, first + c * op_.weight_group, source);
      }
    T* bias = bias_of(lane);
    for (int64_t c = 0; c < plan_.vectors * plan_.lanes; c++)
      bias[c] =
          plan_.in_place && op_.bias && c < p.channels ? widen(op_.bias[(p.out_channel + c) * op_.bias_stride]) : T(0);
  }

  // The taps of a phase, one behind the other.
  const T* phase_weights(const DepthwiseAxis& depth, const DepthwiseAxis& height, const DepthwiseAxis& width,
                         Lane* lane) const {
    if (depth.taps * height.taps * width.taps == plan_.taps) return weights_of(lane);
    const T* from = weights_of(lane);
    T* to = phase_weights_of(lane);
    for (int64_t v = 0; v < plan_.vectors; v++, from += plan_.taps * plan_.lanes)
      for (int64_t z = 0; z < depth.taps; z++)
        for (int64_t y = 0; y < height.taps; y++)
          for (int64_t x = 0; x < width.taps; x++, to += plan_.lanes) {
            const int64_t row =
                (depth.tap_first + z * depth.tap_step) * plan_.axis[1].kernel + height.tap_first + y * height.tap_step;
            const int64_t tap = row * plan_.axis[2].kernel + width.tap_first + x * width.tap_step;
            store(to, load(from + tap * plan_.lanes));
          }
    return phase_weights_of(lane);
  }

  DepthwiseMaps<T> maps_in_place(const Place& p) const {
    DepthwiseMaps<T> m;
    const int64_t *is = op_.in_stride, *rs = op_.residual_stride, *os = op_.out_stride;
    m.in = op_.in + p.image * is[0] + p.channel * is[1];
    m.out = op_.out + p.image * os[0] + p.out_channel * os[1];
    m.residual = op_.residual ? op_.residual + p.image * rs[0] + p.out_channel * rs[1] : nullptr;
    for (int a = 0; a < CK_AXES; a++)
      m.in_stride[a] = is[2 + a], m.out_stride[a] = os[2 + a], m.residual_stride[a] = rs[2 + a];
    m.planes_by_tap = false;
    return m;
  }

  // Transposes what the unit reads: [tap in depth][row][column][channel]. Outputs go to the sums,
  // [row][column][channel].
  DepthwiseMaps<T> transposed(const Place& p, const DepthwiseAxis& depth, Lane* lane) const {
    const int64_t* is = op_.in_stride;
    const Range rows = depthwise_inside(plan_.axis[1], p.rows), cols = depthwise_inside(plan_.axis[2], p.cols);
    const Range planes = depth.taps_inside(0);
    T* const to = input_of(lane);
    for (int64_t z = planes.begin; z < planes.end; z++) {
      const int64_t at = depth.first + z * depth.advance, plane = depth.backwards ? depth.size - 1 - at : at;
      for (int64_t c = 0; c < p.channels; c += plan_.lanes)
        transpose_plane(to + (z - planes.begin) * plan_.plane_elements + c, plan_.pixel(),
                        op_.in + p.image * is[0] + (p.channel + c) * is[1] + plane * is[2], is, rows, cols,
                        min_of(plan_.lanes, p.channels - c));
    }
    DepthwiseMaps<T> m;
    const int64_t pixel = plan_.pixel(), width = cols.end - cols.begin, out_width = p.cols.end - p.cols.begin;
    m.in = to - (rows.begin * width + cols.begin) * pixel - planes.begin * plan_.plane_elements;
    m.in_stride[0] = plan_.plane_elements, m.in_stride[1] = width * pixel, m.in_stride[2] = pixel;
    m.out = sums_of(lane) - (p.rows.begin * out_width + p.cols.begin) * pixel;
    m.out_stride[0] = 0, m.out_stride[1] = out_width * pixel, m.out_stride[2] = pixel;
    m.residual = nullptr;
    for (int64_t& stride : m.residual_stride) stride = 0;
    m.planes_by_tap = true;
    return m;
  }

  void phase(const Place& p, const DepthwiseAxis& depth, const DepthwiseAxis& height, const DepthwiseAxis& width,
             const DepthwiseMaps<T>& m, Lane* lane) const {
    const DepthwiseTiles<T> tiles = DepthwiseTiles<T>::of(width.taps, width.step, width.advance);
    const bool pairs = tiles.two[0] && height.advance == 1 && height.step <= height.taps;
    const int64_t taps = depth.taps * height.taps * width.taps;
    const T* const weights = phase_weights(depth, height, width, lane);
    // Of the axes as they are walked: where coordinate 0 lies, and strides.
    const T* in = m.in;
    int64_t stride[CK_AXES];
    const DepthwiseAxis* const axes[CK_AXES] = {&depth, &height, &width};
    for (int a = 0; a < CK_AXES; a++) {
      const bool reversed = axes[a]->backwards && !(a == 0 && m.planes_by_tap);
      if (reversed) in += (axes[a]->size - 1) * m.in_stride[a];
      stride[a] = reversed ? -m.in_stride[a] : m.in_stride[a];
    }
    in += m.planes_by_tap ? 0 : depth.first * stride[0];
    DepthwiseRows<T> t;
    t.x_plane = m.planes_by_tap ? stride[0] : depth.advance * stride[0];
    t.x_pixel = stride[2];
    t.planes = taps > 0 ? depth.taps_inside(0) : Range{0, 0};
    t.row_taps = height.taps, t.row_step = height.step;
    t.column_taps = width.taps, t.column_step = width.step, t.advance = width.advance, t.width = width.size;
    t.out_row = height.out_step * m.out_stride[1], t.out_pixel = width.out_step * m.out_stride[2];
    t.residual_row = height.out_step * m.residual_stride[1];
    t.residual_pixel = width.out_step * m.residual_stride[2];
    t.relu = op_.relu && plan_.in_place, t.prefetch = plan_.prefetches && height.advance == 1;
    t.first_column = width.first, t.outputs = width.outputs;
    t.weight_vector = taps * plan_.lanes;
    const int64_t out_at = depth.out_first * m.out_stride[0] + width.out_first * m.out_stride[2];
    const int64_t residual_at = depth.out_first * m.residual_stride[0] + width.out_first * m.residual_stride[2];
    in += width.first * stride[2];
    // Transposed strips have all lanes, whatever stands in those beyond the last channel.
    const int64_t channels = plan_.in_place ? p.channels : round_up(p.channels, plan_.lanes);
    const int64_t whole = channels / plan_.lanes * plan_.lanes;
    for (int64_t row = 0, next; row < height.outputs; row = next) {
      next = row + (pairs && row + 2 <= height.outputs ? 2 : 1);
      const DepthwiseFn<T>* const tile = next == row + 2 ? tiles.two : tiles.one;
      const int64_t y = height.first + row * height.step, out_y = height.out_first + row * height.out_step;
      t.x_row = height.advance * stride[1];
      t.rows = height.taps_inside(row);
      if (next == row + 2) {
        t.rows.end = max_of<int64_t>(0, min_of(height.taps + height.step, height.size - y));
        t.rows.begin = min_of(max_of<int64_t>(0, -y), t.rows.end);
      }
      for (int some = 0; some < 2; some++) {  // first all whole vectors of channels, then what is left
        const int64_t c = some ? whole : 0;
        t.channels = some ? channels - whole : whole;
        if (t.channels == 0) continue;
        t.x = in + y * stride[1] + c;
        t.weight = weights + c / plan_.lanes * t.weight_vector;
        t.bias = bias_of(lane) + c;
        t.out = m.out + out_at + out_y * m.out_stride[1] + c;
        t.residual = m.residual ? m.residual + residual_at + out_y * m.residual_stride[1] + c : nullptr;
        tile[some](t);
      }
    }
  }

  void write_sums(const Place& p, Lane* lane) const {
    const int64_t *os = op_.out_stride, *rs = op_.residual_stride;
    const int64_t width = p.cols.end - p.cols.begin, height = p.rows.end - p.rows.begin;
    const bool joined = os[3] == width * os[4] && (!op_.residual || rs[3] == width * rs[4]);
    const int64_t runs = joined ? 1 : height, length = joined ? width * height : width;
    const int64_t channel = plan_.multiplier;  // between those of the unit
    for (int64_t y = 0; y < runs; y++) {
      const int64_t row = p.rows.begin + y;
      const S* residual = op_.residual ? op_.residual + p.image * rs[0] + p.out_channel * rs[1] + p.depth * rs[2] +
                                             row * rs[3] + p.cols.begin * rs[4]
                                       : nullptr;
      S* out = op_.out + p.image * os[0] + p.out_channel * os[1] + p.depth * os[2] + row * os[3] + p.cols.begin * os[4];
      write_back(sums_of(lane) + y * length * plan_.pixel(), plan_.pixel(), length, p.channels,
                 op_.bias ? op_.bias + p.out_channel * op_.bias_stride : nullptr, channel * op_.bias_stride, residual,
                 rs[4], channel * rs[1], out, os[4], channel * os[1], op_.relu);
    }
  }

  const DepthwisePlan<T>& plan_;
  const ConvOperands<S>& op_;
  char* const lanes_;
};

// Refusals that all depthwise rows share.
template <class T>
static const char* depthwise_why_not(const ck_conv& p, int64_t most_outputs) {
  if (p.in_channels != p.groups) return "needs 1 input channel per group, got {in_per_group}";
  if (p.out_channels > most_outputs * p.groups)
    return most_outputs == 1 ? "needs 1 output channel per group, got {out_per_group}"
                             : "needs at most 4 output channels per group, got {out_per_group}";
  // Lanes would stand empty: neighbouring pixels fill them better.
  if (2 * p.groups < kLanes<T>) return "needs groups for at least half a vector, got {groups}";
  return nullptr;
}
