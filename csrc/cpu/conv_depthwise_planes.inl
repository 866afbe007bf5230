// Depthwise convolution of maps whose rows are contiguous (NCHW): lanes are neighbouring pixels of a row.
//
// The tile is 7 rows of outputs by one or two vectors, and as in conv_depthwise_tile.inl it runs over what is read: a
// row of pixels is loaded once per tap of a row, at any address, and multiplied into each of the rows of outputs that
// it belongs to. So a 3x3 of stride 1 takes 27 loads for 63 multiply-adds. For stride 2 even and odd pixels of two
// vectors are put apart. Nothing is copied: rows outside the map are stepped over, and at both ends of a row the loads
// are masked.
//
// Beside conv_depthwise.inl, which transposes such maps, 10 to 13 cycles instead of 16 per vector of 16 outputs
// (AVX-512). Bound: memory; in the caches, loads across cache lines. The order of sums is the same, and so are the
// bits.
//
// Needs: 3x3 taps without depth and dilation, stride 1 and, forward, 2; rows of one and a half vectors, with shorter
// ones transposing pays; finite weights, because the zeros of a masked load are multiplied with them.

constexpr int kDepthwisePlaneTaps = 3;  // of a row and rows; with more, transposing pays
constexpr int kDepthwiseRows = 7;       // of outputs in a tile: divides the maps of 7 to 224
constexpr int kDepthwisePlaneVectors = kVectorBytes == 64 ? 2 : 1;  // 14 accumulators, 9 weights, or 7 of 16 registers

template <class T>
struct DepthwisePlaneTile {
  const T* x;            // row of tap 0 of the first row of outputs, column that the first output reads with tap 0
  int64_t x_row, x_tap;  // elements between rows, between taps of a row: 1, or -1 for the input gradient
  uint32_t rows;         // bit j: row j lies in the map
  const uint32_t* bits;  // [tap][vector]: which of the pixels that a load takes lie in the map
  const T* weight;       // [row][tap]
  T bias;
  const T* residual;  // or null
  T* out;
  int64_t residual_row, out_row;
  int outputs, pixels;  // rows and columns wanted
  bool relu;
};

// The pixels that tap `s` of a row multiplies, for NV vectors of outputs. For stride 2 every other one of twice as
// many, and those between are what the next tap multiplies.
template <class T, int STEP, int NV, bool EDGE>
static inline void load_tap(Vec<T> (&pixels)[NV], Vec<T> (&between)[NV], const T* x, int s,
                            const DepthwisePlaneTile<T>& t) {
  constexpr int L = kLanes<T>;
  constexpr uint32_t all = (1u << L) - 1;
#pragma GCC unroll 2
  for (int v = 0; v < NV; v++) {
    if (STEP == 2 && s % 2 == 1) {
      pixels[v] = between[v];
      continue;
    }
    Vec<T> read[STEP];
#pragma GCC unroll 2
    for (int i = 0; i < STEP; i++) {
      const int at = v * STEP + i;
      const uint32_t bits = EDGE ? t.bits[s * NV * STEP + at] : all;
      read[i] = bits == all ? load(x + at * L) : load_bits(x + at * L, bits);
    }
    if constexpr (STEP == 1) {
      pixels[v] = read[0];
      hold(pixels[v]);
    } else {
      const Pairs<T> pair = deinterleave<T>(read[0], read[1]);
      pixels[v] = pair.first, between[v] = pair.second;
    }
  }
}

// STEP rows and columns between outputs; EDGE: some pixels lie outside the map.
template <class T, int STEP, int NV, bool EDGE>
static void depthwise_plane_tile(const DepthwisePlaneTile<T>& t) {
  constexpr int L = kLanes<T>, K = kDepthwisePlaneTaps;
  Vec<T> weight[K * K], acc[kDepthwiseRows][NV];
#pragma GCC unroll 9
  for (int i = 0; i < K * K; i++) weight[i] = splat(t.weight[i]);
#pragma GCC unroll 7
  for (int c = 0; c < kDepthwiseRows; c++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) acc[c][v] = Vec<T>{};
  const T* row = t.x;
#pragma GCC unroll 32
  for (int j = 0; j < (kDepthwiseRows - 1) * STEP + K; j++, row += t.x_row) {
    if (!(t.rows & 1u << j)) continue;
    const T* x = row;
    Vec<T> between[NV];
#pragma GCC unroll 3
    for (int s = 0; s < K; s++, x += t.x_tap) {
      Vec<T> pixels[NV];
      load_tap<T, STEP, NV, EDGE>(pixels, between, x, s, t);
#pragma GCC unroll 7
      for (int c = 0; c < kDepthwiseRows; c++) {
        const int r = j - c * STEP;
        if (r < 0 || r >= K) continue;
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) acc[c][v] += pixels[v] * weight[r * K + s];
      }
    }
  }
  const Vec<T> bias = splat(t.bias);
  int count[NV];
#pragma GCC unroll 2
  for (int v = 0; v < NV; v++) count[v] = min_of(L, t.pixels - v * L);
#pragma GCC unroll 7
  for (int c = 0; c < kDepthwiseRows; c++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) acc[c][v] += bias;
  if (t.residual) {
#pragma GCC unroll 7
    for (int c = 0; c < kDepthwiseRows; c++)
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++)
        if (c < t.outputs) acc[c][v] += load_n(t.residual + c * t.residual_row + v * L, count[v]);
  }
  if (t.relu) {
#pragma GCC unroll 7
    for (int c = 0; c < kDepthwiseRows; c++)
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) acc[c][v] = relu<T>(acc[c][v]);
  }
  T* out = t.out;
#pragma GCC unroll 7
  for (int c = 0; c < kDepthwiseRows; c++, out += t.out_row) {
    if (c >= t.outputs) break;
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) {
      if (v < NV - 1 || !EDGE) store(out + v * L, acc[c][v]);
      else store_n(out + v * L, acc[c][v], count[v]);
    }
  }
}

template <class T>
using DepthwisePlaneFn = void (*)(const DepthwisePlaneTile<T>&);
template <class T, int STEP>
static DepthwisePlaneFn<T> depthwise_plane_tile_for(bool two, bool edge) {
  constexpr int most = kDepthwisePlaneVectors;
  if (two) return edge ? depthwise_plane_tile<T, STEP, most, true> : depthwise_plane_tile<T, STEP, most, false>;
  return edge ? depthwise_plane_tile<T, STEP, 1, true> : depthwise_plane_tile<T, STEP, 1, false>;
}

// Are all weights finite? x * 0 is NaN for the others.
template <class S>
static bool weights_finite(const ck_conv& p, const ck_tensor& weight) {
  Nest<1> nest;
  const ck_tensor* const tensors[1] = {&weight};
  nest.add(p.out_channels, tensors, 0);
  for (int a = 0; a < CK_AXES; a++) nest.add(p.kernel[a], tensors, 2 + a);
  typedef Wide<S> T;
  const S* const data = static_cast<const S*>(weight.data);
  bool finite = true;
  nest.runs(0, nest.elements(), [&](int64_t, const int64_t (&offset)[1], int64_t count) {
    const S* w = data + offset[0];
    const int64_t step = nest.step(0);
    Vec<T> bad{};
    int64_t i = 0;
    if (step == 1)
      for (; i + kLanes<T> <= count; i += kLanes<T>) bad += load(w + i) * T(0);
    for (; i < count; i++) bad[0] += widen(w[i * step]) * T(0);
    for (int l = 0; l < kLanes<T>; l++) finite = finite && bad[l] == T(0);
  });
  return finite;
}

template <class S>
class DepthwisePlanes {
  typedef Wide<S> T;

 public:
  static bool serves(const ck_conv& p, bool backward) {
    const int64_t k = kDepthwisePlaneTaps, s = p.stride[1], width = backward ? p.in[2] : p.out[2];
    return p.kernel[0] == 1 && p.in[0] == p.out[0] && p.stride[0] == 1 && p.pad[0] == 0 && p.kernel[1] == k &&
           p.kernel[2] == k && p.stride[2] == s && p.dilation[1] == 1 && p.dilation[2] == 1 &&
           (s == 1 || (s == 2 && !backward)) && 2 * width >= 3 * kLanes<T> &&
           (kIsWide<S> || Copied(p).bytes() <= kDepthwiseStripBytes);
  }
  static size_t lane_bytes(const ck_conv& p) {
    const int64_t own = round_up(p.kernel[2] * (4 * kMostRead + p.kernel[1] * int64_t(sizeof(T))), 64);
    return size_t(own + (kIsWide<S> ? 0 : Copied(p).bytes()));
  }

  DepthwisePlanes(const ck_conv& p, const ConvOperands<S>& operands, bool backward, char* lanes)
      : op_(operands),
        batch_(p.batch),
        channels_(p.out_channels),
        multiplier_(p.out_channels / p.groups),
        copied_(p),
        lane_bytes_(lane_bytes(p)),
        lanes_(lanes) {
    for (int a = 0; a < CK_AXES; a++)
      axis_[a].init(backward ? p.out[a] : p.in[a], backward ? p.in[a] : p.out[a], p, a, backward);
  }

  ck_status run(const ck_exec* exec) const {
    const ConvAxis &d = axis_[0], &h = axis_[1], &w = axis_[2];
    const int64_t bands = ceil_div(h.out, kDepthwiseRows), planes = batch_ * channels_ * d.out;
    const double ops =
        double(kDepthwiseRows * w.out) * (2.0 * double(h.kernel * w.kernel) + 2 * kOpsPerByte * double(sizeof(T)));
    return parallel_pieces(exec, planes * bands, ops, [&](int64_t begin, int64_t end, int lane) {
      Lane l;
      l.weight = reinterpret_cast<T*>(lanes_ + size_t(lane) * lane_bytes_);
      l.bits = reinterpret_cast<uint32_t*>(l.weight + h.kernel * w.kernel);
      l.in = l.weight + round_up(h.kernel * w.kernel * int64_t(sizeof(T)) + w.kernel * 4 * kMostRead, 64) / sizeof(T);
      l.out = l.in + copied_.inputs * copied_.pitch;
      while (begin < end) {
        const int64_t plane = begin / bands, next = min_of(end, (plane + 1) * bands);
        band(plane, (begin - plane * bands) * kDepthwiseRows, min_of(h.out, (next - plane * bands) * kDepthwiseRows),
             l);
        begin = next;
      }
    });
  }

 private:
  static constexpr int kMostRead = 4;  // vectors: two of outputs, stride 2

  struct Lane {
    T* weight;
    uint32_t* bits;
    T *in, *out;  // of a narrower type: rows that a tile reads, and its sums
  };
  // Of maps of a narrower type some rows are copied: an odd number of cache lines apart, so that they do not fall on
  // the same sets of the cache; those of several tiles before the first runs, because a load that spans two stores just
  // made waits for both.
  struct Copied {
    int64_t pitch, outputs, inputs;  // elements of a row; rows of outputs, and those that they read

    explicit Copied(const ck_conv& p) {
      constexpr int64_t line = 64 / int64_t(sizeof(T));
      pitch = (ceil_div(max_of(p.in[2], p.out[2]), line) | 1) * line;
      const int64_t most = kDepthwiseUnitBytes / (pitch * int64_t(sizeof(T)) * (1 + p.stride[1]));
      outputs = max_of<int64_t>(1, most / kDepthwiseRows) * kDepthwiseRows;
      inputs = (outputs - 1) * p.stride[1] + kDepthwisePlaneTaps;
    }
    int64_t bytes() const { return times(times(outputs + inputs, pitch), int64_t(sizeof(T))); }
  };

  // Rows [begin, end) of the outputs of a plane.
  void band(int64_t plane, int64_t begin, int64_t end, const Lane& l) const {
    const ConvAxis &h = axis_[1], &w = axis_[2];
    const int64_t depth = plane % axis_[0].out, channel = plane / axis_[0].out % channels_;
    const int64_t image = plane / axis_[0].out / channels_;
    const DepthwiseAxis rows(h, 0, {begin, end});
    const int64_t *is = op_.in_stride, *os = op_.out_stride, *rs = op_.residual_stride;
    const S* in = op_.in + image * is[0] + channel / multiplier_ * is[1] + depth * is[2];
    S* const out = op_.out + image * os[0] + channel * os[1] + depth * os[2];
    const S* const residual = op_.residual ? op_.residual + image * rs[0] + channel * rs[1] + depth * rs[2] : nullptr;
    const T bias = op_.bias ? widen(op_.bias[channel * op_.bias_stride]) : T(0);
    copy_weights(channel, l.weight);
    if constexpr (kIsWide<S>) {
      const int64_t last = rows.backwards ? rows.size - 1 : 0, step = rows.backwards ? -is[3] : is[3];
      const T* const first_residual = residual ? residual + rows.out_first * rs[3] : nullptr;
      sweep(rows, {0, rows.outputs},
            {in + last * is[3], step, first_residual, rows.out_step * rs[3], out + rows.out_first * os[3],
             rows.out_step * os[3], bias, op_.relu},
            l);
    } else {
      for (int64_t row = 0; row < rows.outputs; row += copied_.outputs) {
        const Range some = {row, min_of(row + copied_.outputs, rows.outputs)};
        const int64_t first = rows.first + row * rows.step, read = (some.end - row - 1) * rows.step + rows.taps;
        for (int64_t y = max_of<int64_t>(0, first); y < min_of(rows.size, first + read); y++)
          copy_short(l.in + (y - first) * copied_.pitch, in + (rows.backwards ? rows.size - 1 - y : y) * is[3], w.in);
        sweep(rows, some, {l.in - first * copied_.pitch, copied_.pitch, nullptr, 0, l.out, copied_.pitch, T(0), false},
              l);
        for (int64_t i = row; i < some.end; i++) {
          const int64_t y = rows.out_first + i * rows.out_step;
          write_row(l.out + (i - row) * copied_.pitch, bias, residual ? residual + y * rs[3] : nullptr, 1,
                    out + y * os[3], 1, w.out, op_.relu);
        }
      }
    }
  }

  // A plane in T, as it is walked: row 0 of the input, the first row of outputs; elements between rows.
  struct Plane {
    const T* in;
    int64_t in_row;
    const T* residual;
    int64_t residual_row;
    T* out;
    int64_t out_row;
    T bias;
    bool relu;
  };
  // Some rows of outputs, all columns.
  void sweep(const DepthwiseAxis& rows, Range some, const Plane& plane, const Lane& l) const {
    const ConvAxis& w = axis_[2];
    const AxisTaps taps = w.taps(0);
    DepthwisePlaneTile<T> t;
    t.x_row = plane.in_row, t.x_tap = taps.advance;
    t.weight = l.weight, t.bits = l.bits;
    t.bias = plane.bias, t.relu = plane.relu;
    t.out_row = plane.out_row, t.residual_row = plane.residual_row;
    for (int64_t column = 0; column < w.out; column += t.pixels) {
      t.pixels = int(min_of<int64_t>(kDepthwisePlaneVectors * kLanes<T>, w.out - column));
      const bool two = t.pixels > kLanes<T>, edge = mask(column, two ? 2 : 1, l) || t.pixels % kLanes<T> > 0;
      const DepthwisePlaneFn<T> tile =
          w.step_in == 1 ? depthwise_plane_tile_for<T, 1>(two, edge) : depthwise_plane_tile_for<T, 2>(two, edge);
      for (int64_t row = some.begin; row < some.end; row += kDepthwiseRows) {
        const int64_t y = rows.first + row * rows.step;
        t.outputs = int(min_of<int64_t>(kDepthwiseRows, some.end - row));
        t.rows = depthwise_bits(-y, min_of((t.outputs - 1) * rows.step + rows.taps, rows.size - y));
        t.x = plane.in + y * plane.in_row + column * w.step_in + taps.offset;
        t.out = plane.out + (row - some.begin) * plane.out_row + column;
        t.residual = plane.residual ? plane.residual + (row - some.begin) * plane.residual_row + column : nullptr;
        tile(t);
      }
    }
  }

  // Which pixels that a tile loads lie in the map; returns whether some do not.
  bool mask(int64_t column, int64_t vectors, const Lane& l) const {
    const ConvAxis& w = axis_[2];
    const AxisTaps taps = w.taps(0);
    uint32_t* bits = l.bits;
    bool edge = false;
    for (int64_t s = 0; s < w.kernel; s++)
      for (int64_t v = 0; v < vectors * w.step_in; v++) {
        const int64_t at = column * w.step_in + taps.offset + s * taps.advance + v * kLanes<T>;
        edge = edge || at < 0 || at + kLanes<T> > w.in;
        *bits++ = depthwise_bits(-at, min_of<int64_t>(kLanes<T>, w.in - at));
      }
    return edge;
  }

  void copy_weights(int64_t channel, T* to) const {
    const WeightSource<S>& from = op_.weight;
    const S* weight = from.data + channel / multiplier_ * op_.weight_group + channel % multiplier_ * from.k;
    for (int64_t y = 0; y < axis_[1].kernel; y++)
      for (int64_t x = 0; x < axis_[2].kernel; x++) *to++ = widen(weight[y * from.axis[1] + x * from.axis[2]]);
  }

  ConvAxis axis_[CK_AXES];
  const ConvOperands<S>& op_;
  const int64_t batch_, channels_, multiplier_;  // channels of the output
  const Copied copied_;
  const size_t lane_bytes_;
  char* const lanes_;
};

template <class S, bool BACKWARD>
struct DepthwiseRow {
  typedef Wide<S> T;

  static DepthwisePlan<T> plan_for(const ck_conv& p, bool in_place) {
    DepthwisePlan<T> plan;
    plan.init(p, BACKWARD, in_place, kDepthwiseCopied<S>);
    return plan;
  }
  static const char* why_not(const void* params) {
    const ck_conv& p = *static_cast<const ck_conv*>(params);
    const char* no = depthwise_why_not<T>(p, BACKWARD ? 1 : kDepthwiseMultiplier);
    if (no) return no;
    return times(plan_for(p, false).in_elements, int64_t(sizeof(T))) > kMostStripBytes
               ? "needs taps near each other: a strip of the input would take more than 256 MB"
               : nullptr;
  }
  static size_t workspace(const void* params, int threads) {  // strides, which decide on the way, are not known here
    const ck_conv& p = *static_cast<const ck_conv*>(params);
    size_t bytes =
        max_of(DepthwiseWalk<S>::lane_bytes(plan_for(p, false)), DepthwiseWalk<S>::lane_bytes(plan_for(p, true)));
    if (DepthwisePlanes<S>::serves(p, BACKWARD)) bytes = max_of(bytes, DepthwisePlanes<S>::lane_bytes(p));
    return size_t(threads) * bytes;
  }
  static ck_status run(const void* params, const ck_tensor* t, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const ck_conv& p = *static_cast<const ck_conv*>(params);
    const ConvOperands<S> operands = conv_operands<S>(p, t, BACKWARD);
    const bool in_place = kIsWide<S> && p.out_channels == p.groups && operands.in_stride[1] == 1 &&
                          operands.out_stride[1] == 1 && (!operands.residual || operands.residual_stride[1] == 1);
    const bool rows = operands.in_stride[4] == 1 && operands.out_stride[4] == 1 &&
                      (!operands.residual || operands.residual_stride[4] == 1);
    if (!in_place && rows && DepthwisePlanes<S>::serves(p, BACKWARD) && weights_finite<S>(p, t[1])) {
      if (exec->workspace_size < size_t(exec->threads) * DepthwisePlanes<S>::lane_bytes(p)) return CK_SMALL_WORKSPACE;
      return DepthwisePlanes<S>(p, operands, BACKWARD, static_cast<char*>(exec->workspace)).run(exec);
    }
    const DepthwisePlan<T> plan = plan_for(p, in_place);
    if (plan.units == 0) return CK_OK;
    if (exec->workspace_size < size_t(exec->threads) * DepthwiseWalk<S>::lane_bytes(plan)) return CK_SMALL_WORKSPACE;
    return DepthwiseWalk<S>(plan, operands, static_cast<char*>(exec->workspace)).run(exec);
  }
};

template <class S>
struct conv_depthwise : DepthwiseRow<S, false> {};
template <class S>
struct conv_grad_input_depthwise : DepthwiseRow<S, true> {};
