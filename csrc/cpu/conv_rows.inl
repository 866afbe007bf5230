// Convolution and input gradient by rows: lanes are neighbouring pixels, for few output channels per group.
//
// Where a group has 1 to 4 output channels (depthwise; the input gradient of a first layer, whose "output" channels are
// the image's 3) lanes of output channels stand empty. Here a tile is KR output channels times NV vectors of
// neighbouring outputs of a row: per product one vector load of the strip, shared by KR broadcast weights. Strips, taps
// and the order of sums are those of conv_direct.inl, so the bits are the same where multiply-add is fused.
//
// Bound: depthwise moves 8 bytes for 18 flop of a 3x3, so memory; a first layer's gradient, multiply-adds.
//
// Measured as in conv_direct.inl: input gradients of first layers 110-143 GFLOP/s, 1.4 to 1.6 times PyTorch.
//
// Needs: at most kRowsChannels output channels per group, and rows of at least half a vector.

constexpr int kRowsChannels = 4;
constexpr int kRowsVectors = kVectorBytes == 64 ? 4 : 3;  // 16 accumulators of 32 registers, 12 of 16

template <class T>
struct RowsTileArgs {
  const T* x;
  const int64_t* tap;
  int64_t taps, channels, channel_pitch;
  const T* weight;       // [tap][channel][KR]
  T* sums;               // first output; outputs of a row lie `step` apart
  int64_t sums_channel;  // between output channels
  int64_t step;
  int64_t pixels;  // outputs wanted, at most NV * lanes
  bool add;
};

template <class T, int KR, int NV>
static void rows_tile(const RowsTileArgs<T>& t) {
  constexpr int L = kLanes<T>;
  Vec<T> acc[KR][NV];
#pragma GCC unroll 4
  for (int k = 0; k < KR; k++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) acc[k][v] = Vec<T>{};
  const T* w = t.weight;
  for (int64_t tap = 0; tap < t.taps; tap++) {
    const T* x = t.x + t.tap[tap];
    for (int64_t c = t.channels; c > 0; c--) {
      Vec<T> xv[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) xv[v] = load(x + v * L);
#pragma GCC unroll 4
      for (int k = 0; k < KR; k++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) acc[k][v] += xv[v] * w[k];
      x += t.channel_pitch;
      w += KR;
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < KR; k++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) {
      const int count = int(max_of<int64_t>(0, min_of<int64_t>(L, t.pixels - v * L)));
      T* s = t.sums + k * t.sums_channel + v * L * t.step;
      if (t.step == 1) {
        store_n(s, t.add ? load_n(s, count) + acc[k][v] : acc[k][v], count);
      } else {
        T lane[L];
        store(lane, acc[k][v]);
        for (int i = 0; i < count; i++) s[i * t.step] = t.add ? s[i * t.step] + lane[i] : lane[i];
      }
    }
}

template <class T>
using RowsTileFn = void (*)(const RowsTileArgs<T>&);
template <class T, int KR>
static RowsTileFn<T> pick_rows_tile(int vectors) {
  return vectors == 1   ? rows_tile<T, KR, 1>
         : vectors == 2 ? rows_tile<T, KR, 2>
         : vectors == 3 ? rows_tile<T, KR, 3>
                        : rows_tile<T, KR, kRowsVectors>;
}
template <class T>
static RowsTileFn<T> rows_tile_for(int channels, int vectors) {
  return channels == 1   ? pick_rows_tile<T, 1>(vectors)
         : channels == 2 ? pick_rows_tile<T, 2>(vectors)
         : channels == 3 ? pick_rows_tile<T, 3>(vectors)
                         : pick_rows_tile<T, 4>(vectors);
}

template <class T>
class ConvRows : ConvUnits<T> {
  using typename ConvUnits<T>::Place;
  using ConvUnits<T>::plan_;
  using ConvUnits<T>::op_;

 public:
  ConvRows(const ConvPlan<T>& plan, const ConvOperands<T>& operands, char* lanes)
      : ConvUnits<T>(plan, operands), lanes_(lanes) {}

  static size_t lane_bytes(const ConvPlan<T>& plan) {
    const int64_t elements = strip_elements(plan) + sums_elements(plan) + weight_elements(plan);
    return size_t(round_up(tap_bytes(plan) + elements * int64_t(sizeof(T)), 4096) + 64);
  }

  ck_status run(const ck_exec* exec) {
    const int64_t chunks = min_of<int64_t>(plan_.units, 1 << 20);
    return parallel(exec, chunks, [&](int chunk, int lane) {
      const Range range = piece(plan_.units, chunks, chunk);
      for (int64_t i = range.begin; i < range.end; i++) unit(i, lanes_ + size_t(lane) * lane_bytes(plan_));
    });
  }

 private:
  static int64_t tap_bytes(const ConvPlan<T>& plan) { return round_up(ConvUnits<T>::most_taps(plan) * 8, 64); }
  // A tile may read up to a tile's width beyond the last row.
  static int64_t strip_elements(const ConvPlan<T>& plan) { return plan.strip_elements + kRowsVectors * plan.lanes; }
  static int64_t sums_elements(const ConvPlan<T>& plan) {
    return plan.sums_elements / plan.block * min_of<int64_t>(plan.out_channels, kRowsChannels);
  }
  static int64_t weight_elements(const ConvPlan<T>& plan) {
    return plan.in_channels * ConvUnits<T>::most_taps(plan) * min_of<int64_t>(plan.out_channels, kRowsChannels);
  }

  void unit(int64_t unit, char* lane) const {
    const Place p = this->place_of(unit);
    if (p.rows == 0 || p.cols == 0 || p.images == 0) return;
    const ConvAxis &d = plan_.axis[0], &h = plan_.axis[1], &w = plan_.axis[2];
    int64_t* const tap = reinterpret_cast<int64_t*>(lane);
    T* const strip = reinterpret_cast<T*>(lane + tap_bytes(plan_));
    T* const sums = strip + strip_elements(plan_);
    T* const weights = sums + sums_elements(plan_);
    const int64_t rho_d = d.class_of(p.depth % d.step_out), rho_h = h.class_of(p.row_phase);
    const bool any = rho_d >= 0 && rho_h >= 0 && plan_.in_channels > 0;
    const int64_t outs = this->out_columns(p), channel = p.images * p.rows * outs;
    if (!any || !w.every_phase_has_taps()) memset(sums, 0, size_t(plan_.out_channels * channel) * sizeof(T));
    if (any) {
      const AxisTaps td = d.taps(rho_d), th = h.taps(rho_h);
      StripShape shape;
      this->pack(p, td, th, shape, strip);
      for (int64_t rho_w = 0; rho_w < w.classes; rho_w++) {
        const AxisTaps tw = w.taps(rho_w);
        const int64_t cols = min_of(p.first_col + p.cols, w.count(tw.phase)) - p.first_col;
        if (cols <= 0) continue;
        const int64_t taps = this->strip_taps(shape, td, th, tw, tap);
        if (copy_weights(p.group, td, th, tw, weights))
          phase_sums(p, shape, strip, tap, taps, this->strip_row_step(shape, th), weights, cols, sums + tw.phase, outs);
        else safe_sums(p, td, th, tw, weights, cols, sums + tw.phase, outs);
      }
    }
    finish(p, sums, outs);
  }

  // [chunk][tap][channel][output channel]. Returns whether all are finite.
  bool copy_weights(int64_t group, const AxisTaps& td, const AxisTaps& th, const AxisTaps& tw, T* to) const {
    const WeightSource<T>& from = op_.weight;
    const T* base = from.data + group * op_.weight_group;
    const int64_t chunk = chunk_channels(plan_.in_channels, td.count * th.count * tw.count);
    T bad = T(0);
    for (int64_t c0 = 0; c0 < plan_.in_channels; c0 += chunk)
      for (int64_t jd = 0; jd < td.count; jd++)
        for (int64_t jh = 0; jh < th.count; jh++)
          for (int64_t jw = 0; jw < tw.count; jw++) {
            const T* tap = base + (td.first + jd * td.step) * from.axis[0] + (th.first + jh * th.step) * from.axis[1] +
                           (tw.first + jw * tw.step) * from.axis[2];
            const int64_t end = min_of(c0 + chunk, plan_.in_channels);
            for (int64_t c = c0; c < end; c++)
              for (int64_t k = 0; k < plan_.out_channels; k++) {
                *to = tap[c * from.c + k * from.k];
                bad += *to++ * T(0);
              }
          }
    return bad == T(0);
  }

  void phase_sums(const Place& p, const StripShape& s, const T* strip, const int64_t* tap, int64_t taps,
                  int64_t row_step, const T* weights, int64_t cols, T* sums, int64_t outs) const {
    constexpr int64_t L = kLanes<T>;
    const int64_t chunk = chunk_channels(plan_.in_channels, taps), channels = plan_.out_channels;
    RowsTileArgs<T> t;
    t.tap = tap, t.taps = taps, t.channel_pitch = s.channel_pitch;
    t.step = plan_.axis[2].step_out, t.sums_channel = p.images * p.rows * outs;
    // Rows that follow each other without a gap are one long row.
    int64_t images = p.images, rows = p.rows, length = cols;
    const bool flat =
        row_step == cols && s.phases == 1 && outs == cols * t.step && (images == 1 || s.image_pitch == rows * row_step);
    if (flat) length = images * rows * cols, images = rows = 1;
    const int64_t tiles = ceil_div(ceil_div(length, L), kRowsVectors);
    for (int64_t c = 0; c < plan_.in_channels; c += chunk) {
      t.channels = min_of(chunk, plan_.in_channels - c);
      t.weight = weights + c * taps * channels;
      t.add = c > 0;
      for (int64_t row = 0; row < images * rows; row++)
        for (int64_t i = 0; i < tiles; i++) {
          const Range r = piece(ceil_div(length, L), tiles, i);
          t.x = strip + c * s.channel_pitch + row / rows * s.image_pitch + row % rows * row_step + r.begin * L;
          t.sums = sums + row * outs + r.begin * L * t.step;
          t.pixels = min_of(length, r.end * L) - r.begin * L;
          rows_tile_for<T>(int(channels), int(r.end - r.begin))(t);
        }
    }
  }

  void safe_sums(const Place& p, const AxisTaps& td, const AxisTaps& th, const AxisTaps& tw, const T* weights,
                 int64_t cols, T* sums, int64_t outs) const {
    const int64_t step = plan_.axis[2].step_out;
    for (int64_t k = 0; k < plan_.out_channels; k++)
      for (int64_t n = 0; n < p.images; n++)
        for (int64_t y = 0; y < p.rows; y++)
          for (int64_t x = 0; x < cols; x++)
            sums[((k * p.images + n) * p.rows + y) * outs + x * step] =
                this->safe_sum(p, td, th, tw, weights + k, plan_.out_channels, n, y, x);
  }

  // Bias, residual, activation, into the output.
  void finish(const Place& p, const T* sums, int64_t outs) const {
    const ConvAxis &h = plan_.axis[1], &w = plan_.axis[2];
    const int64_t *os = op_.out_stride, *rs = op_.residual_stride;
    for (int64_t k = 0; k < plan_.out_channels; k++) {
      const int64_t channel = p.group * plan_.out_channels + k;
      const T bias = op_.bias ? op_.bias[channel * op_.bias_stride] : T(0);
      for (int64_t n = 0; n < p.images; n++)
        for (int64_t y = 0; y < p.rows; y++, sums += outs) {
          const int64_t image = p.first_image + n, row = p.row_phase + (p.first_row + y) * h.step_out;
          const int64_t column = p.first_col * w.step_out;
          T* out = op_.out + image * os[0] + channel * os[1] + p.depth * os[2] + row * os[3] + column * os[4];
          const T* residual = op_.residual ? op_.residual + image * rs[0] + channel * rs[1] + p.depth * rs[2] +
                                                 row * rs[3] + column * rs[4]
                                           : nullptr;
          write_row(sums, bias, residual, rs[4], out, os[4], outs, op_.relu);
        }
    }
  }

  char* const lanes_;
};

template <class T, bool BACKWARD>
struct ConvRowsRow {
  static const char* why_not(const void* params) {
    const ck_conv& p = *static_cast<const ck_conv*>(params);
    const int64_t channels = (BACKWARD ? p.in_channels : p.out_channels) / p.groups;
    if (channels > kRowsChannels)
      return BACKWARD ? "needs at most 4 input channels per group, got {in_per_group}"
                      : "needs at most 4 output channels per group, got {out_per_group}";
    if (2 * p.out[2] < kLanes<T>) return "needs rows of at least half a vector of outputs, got {width}";
    ConvPlan<T> plan;
    plan.init(p, BACKWARD, 1);
    return plan.why_not();
  }
  static size_t workspace(const void* params, int threads) {
    ConvPlan<T> plan;
    plan.init(*static_cast<const ck_conv*>(params), BACKWARD, threads);
    return size_t(threads) * ConvRows<T>::lane_bytes(plan);
  }
  static ck_status run(const void* params, const ck_tensor* t, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const ck_conv& p = *static_cast<const ck_conv*>(params);
    ConvPlan<T> plan;
    plan.init(p, BACKWARD, exec->threads);
    if (plan.units == 0 || plan.out_channels == 0) return CK_OK;
    if (exec->workspace_size < size_t(exec->threads) * ConvRows<T>::lane_bytes(plan)) return CK_SMALL_WORKSPACE;
    const ConvOperands<T> operands = conv_operands<T>(p, t, BACKWARD);
    return ConvRows<T>(plan, operands, static_cast<char*>(exec->workspace)).run(exec);
  }
};

template <class T>
struct conv_rows : ConvRowsRow<T, false> {};
template <class T>
struct conv_grad_input_rows : ConvRowsRow<T, true> {};
