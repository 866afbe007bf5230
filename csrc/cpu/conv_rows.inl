// Convolution and input gradient by rows: lanes are neighbouring pixels, for few output channels or short sums.
//
// A tile is KR output channels times NV vectors of neighbouring outputs of a row: per product NV vector loads of the
// strip, shared by KR broadcast weights. Where a group has 1 to 4 output channels (depthwise; the input gradient of a
// first layer, whose "output" channels are the image's 3), lanes of output channels would stand empty. Where sums are
// short (a first layer's 27 to 363 products) and the output is NCHW, they go straight from registers to the output,
// which needs no transposition. Strips, taps and the order of sums are those of conv_direct.inl, so the bits are the
// same where multiply-add is fused.
//
// Bound: depthwise moves 8 bytes for 18 flop of a 3x3, so memory; VGG's first layer, the bytes of its output; others,
// multiply-adds.
//
// Measured as in conv_direct.inl, beside PyTorch's faster layout in one run, one image: input gradients of first layers
// 122-153 GFLOP/s, 1.4 to 1.75 times; forward VGG's first layer 355 (direct 141, PyTorch 442), 7x7 stride 2 with 3
// channels 453 (471).
//
// Needs: at most kRowsChannels output channels per group or weights that stay in the first two cache levels, and rows
// of at least half a vector.

constexpr int kRowsChannels = 4;
constexpr int64_t kRowsWeights = int64_t(1) << 16;  // of a group, where it has more channels: each lane copies them
constexpr int kRowsVectors = kVectorBytes == 64 ? 4 : 3;  // one channel: enough accumulators to hide latency
constexpr int64_t kRowsStrip = 2048;        // outputs of a strip whose sums are short and go to the output at once
constexpr int kRowsSums = 2 * kTilePixels;  // accumulators: 28 of 32 registers, 12 of 16

template <class T>
struct RowsTileArgs {
  const T* x;
  const int64_t* tap;
  int64_t taps, channels, channel_pitch;
  const T* weight;  // [tap][channel][KR]
  PixelOut<T> to;
};

template <class T, int KR, int NV>
static void rows_tile(const RowsTileArgs<T>& t) {
  constexpr int L = kLanes<T>;
  Vec<T> acc[KR][NV];
#pragma GCC unroll 16
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
#pragma GCC unroll 16
      for (int k = 0; k < KR; k++) {
        const T value = w[k];
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) acc[k][v] += xv[v] * value;
      }
      x += t.channel_pitch;
      w += KR;
    }
  }
  finish_tile(acc, t.to);
}

template <class T>
using RowsTileFn = void (*)(const RowsTileArgs<T>&);
static constexpr int rows_vectors(int channels) { return min_of(kRowsVectors, kRowsSums / channels); }
template <class T, int KR>
static RowsTileFn<T> pick_rows_tile(int vectors) {
  constexpr int most = rows_vectors(KR);
  static constexpr RowsTileFn<T> table[] = {rows_tile<T, KR, 1>, rows_tile<T, KR, min_of(2, most)>,
                                            rows_tile<T, KR, min_of(3, most)>, rows_tile<T, KR, most>};
  return table[vectors - 1];
}
template <class T, int... I>
static RowsTileFn<T> rows_tile_for(int channels, int vectors, Lanes<I...>) {
  static constexpr RowsTileFn<T> (*table[])(int) = {pick_rows_tile<T, I + 1>...};
  return table[channels - 1](vectors);
}

template <class S>
class ConvRows : ConvUnits<S> {
  using typename ConvUnits<S>::T;
  using typename ConvUnits<S>::Place;
  using ConvUnits<S>::plan_;
  using ConvUnits<S>::op_;

 public:
  ConvRows(const ConvPlan<T>& plan, const ConvOperands<S>& operands, char* lanes)
      : ConvUnits<S>(plan, operands), lanes_(lanes) {}

  static size_t lane_bytes(const ConvPlan<T>& plan) {
    const int64_t elements = strip_elements(plan) + sums_elements(plan) + row_elements(plan) + weight_elements(plan);
    const int64_t bytes = int64_t(sizeof(Lane)) + tap_bytes(plan) + elements * int64_t(sizeof(T));
    return size_t(round_up(bytes, 4096) + 64);  // 64: lanes do not start at the same offset of a page
  }

  ck_status run(const ck_exec* exec) {
    for (int lane = 0; lane < exec->threads; lane++) lane_at(lane)->group = -1;
    const int64_t chunks = min_of<int64_t>(plan_.units, 1 << 20);
    return parallel(exec, chunks, [&](int chunk, int lane) {
      const Range range = piece(plan_.units, chunks, chunk);
      for (int64_t i = range.begin; i < range.end; i++) unit(i, lane_at(lane));
    });
  }

 private:
  // A lane's part of the workspace: this struct, tap offsets, the strip, sums of a panel, a row of outputs, weights.
  struct alignas(64) Lane {
    int64_t group, rho_d, rho_h;  // whose weights are copied; group -1: none
    bool finite;
  };

  Lane* lane_at(int lane) const { return reinterpret_cast<Lane*>(lanes_ + size_t(lane) * lane_bytes(plan_)); }
  int64_t* taps_of(Lane* lane) const { return reinterpret_cast<int64_t*>(lane + 1); }
  T* strip_of(Lane* lane) const { return reinterpret_cast<T*>(reinterpret_cast<char*>(lane + 1) + tap_bytes(plan_)); }
  T* sums_of(Lane* lane) const { return strip_of(lane) + strip_elements(plan_); }
  T* row_of(Lane* lane) const { return sums_of(lane) + sums_elements(plan_); }
  T* weights_of(Lane* lane) const { return row_of(lane) + row_elements(plan_); }
  static int64_t tap_bytes(const ConvPlan<T>& plan) { return round_up(ConvUnits<S>::most_taps(plan) * 8, 64); }
  // A tile may read up to its own width beyond the last row, of the strip and of sums.
  static int64_t strip_elements(const ConvPlan<T>& plan) { return plan.strip_elements + kRowsVectors * plan.lanes; }
  static int64_t panels(const ConvPlan<T>& plan) { return ceil_div(plan.out_channels, kTilePixels); }
  static int64_t sums_elements(const ConvPlan<T>& plan) {
    const int64_t channels = min_of<int64_t>(plan.out_channels, kTilePixels);
    return channels * plan.axis[2].classes * plan.images * plan.rows * plan.cols + kRowsVectors * plan.lanes;
  }
  static int64_t row_elements(const ConvPlan<T>& plan) { return (plan.cols + plan.lanes) * plan.axis[2].step_out; }
  static int64_t weight_elements(const ConvPlan<T>& plan) {  // of one class of depths and rows, all columns
    const ConvAxis &d = plan.axis[0], &h = plan.axis[1];
    return plan.in_channels * ceil_div(d.kernel, d.modulus) * ceil_div(h.kernel, h.modulus) * plan.axis[2].kernel *
           plan.out_channels;
  }

  void unit(int64_t unit, Lane* lane) const {
    const Place p = this->place_of(unit);
    if (p.rows == 0 || p.cols == 0 || p.images == 0) return;
    const ConvAxis &d = plan_.axis[0], &h = plan_.axis[1], &w = plan_.axis[2];
    const int64_t rho_d = d.class_of(p.depth % d.step_out), rho_h = h.class_of(p.row_phase);
    const bool any = rho_d >= 0 && rho_h >= 0 && plan_.in_channels > 0;
    StripShape shape;
    if (any) {
      this->pack(p, d.taps(rho_d), h.taps(rho_h), shape, strip_of(lane));
      if (lane->group != p.group || lane->rho_d != rho_d || lane->rho_h != rho_h) {
        lane->group = p.group, lane->rho_d = rho_d, lane->rho_h = rho_h;
        lane->finite = copy_weights(p.group, rho_d, rho_h, weights_of(lane));
      }
    }
    const bool at_once = any && lane->finite && w.step_out == 1 && op_.out_stride[4] == 1 &&
                         (!op_.residual || op_.residual_stride[4] == 1);
    for (int64_t panel = 0; panel < panels(plan_); panel++) {
      const Range channels = piece(plan_.out_channels, panels(plan_), panel);
      if (any) panel_sums(p, shape, rho_d, rho_h, channels, at_once, lane);
      if (!at_once) finish(p, channels, any, lane);
    }
  }

  // The unit's first output of a channel of its group.
  S* output(const Place& p, int64_t k) const { return op_.out + first_output(p, k, op_.out_stride); }
  const S* residual(const Place& p, int64_t k) const {
    return op_.residual ? op_.residual + first_output(p, k, op_.residual_stride) : nullptr;
  }
  int64_t first_output(const Place& p, int64_t k, const int64_t* s) const {
    return p.first_image * s[0] + (p.group * plan_.out_channels + k) * s[1] + p.depth * s[2] +
           (p.row_phase + p.first_row * plan_.axis[1].step_out) * s[3] + p.first_col * plan_.axis[2].step_out * s[4];
  }

  // All weights of one class of depths and rows: [panel][class of columns][chunk][tap][channel][output channel].
  // Returns whether all are finite.
  bool copy_weights(int64_t group, int64_t rho_d, int64_t rho_h, T* to) const {
    const WeightSource<S>& from = op_.weight;
    const S* base = from.data + group * op_.weight_group;
    const ConvAxis& w = plan_.axis[2];
    const AxisTaps td = plan_.axis[0].taps(rho_d), th = plan_.axis[1].taps(rho_h);
    T bad = T(0);
    for (int64_t panel = 0; panel < panels(plan_); panel++) {
      const Range channels = piece(plan_.out_channels, panels(plan_), panel);
      for (int64_t rho_w = 0; rho_w < w.classes; rho_w++) {
        const AxisTaps tw = w.taps(rho_w);
        const int64_t taps = td.count * th.count * tw.count, chunk = chunk_channels(plan_.in_channels, taps);
        for (int64_t c0 = 0; c0 < plan_.in_channels; c0 += chunk)
          for (int64_t tap = 0; tap < taps; tap++) {
            const int64_t jd = tap / (th.count * tw.count), jh = tap / tw.count % th.count, jw = tap % tw.count;
            const S* at = base + (td.first + jd * td.step) * from.axis[0] + (th.first + jh * th.step) * from.axis[1] +
                          (tw.first + jw * tw.step) * from.axis[2];
            for (int64_t c = c0; c < min_of(c0 + chunk, plan_.in_channels); c++)
              for (int64_t k = channels.begin; k < channels.end; k++) {
                *to = widen(at[c * from.c + k * from.k]);
                bad += *to++ * T(0);
              }
          }
      }
    }
    return bad == T(0);
  }

  // The sums of one panel of output channels, class by class of columns: [class][channel][image][row][column].
  void panel_sums(const Place& p, const StripShape& s, int64_t rho_d, int64_t rho_h, Range channels, bool at_once,
                  Lane* lane) const {
    const ConvAxis& w = plan_.axis[2];
    const AxisTaps td = plan_.axis[0].taps(rho_d), th = plan_.axis[1].taps(rho_h);
    const int64_t lines = td.count * th.count * plan_.in_channels;  // of the window, over all channels
    const T* weights = weights_of(lane) + channels.begin * lines * w.kernel;
    for (int64_t rho_w = 0; rho_w < w.classes; rho_w++) {
      const AxisTaps tw = w.taps(rho_w);
      const int64_t cols = columns(p, tw), size = channels.end - channels.begin;
      const T* weight = weights + size * lines * w.taps_before(rho_w);
      T* sums = sums_of(lane) + rho_w * size * p.images * p.rows * p.cols;
      if (cols <= 0) continue;
      if (lane->finite) phase_sums(p, s, td, th, tw, channels, weight, cols, sums, at_once, lane);
      else safe_sums(p, td, th, tw, size, weight, cols, sums);
    }
  }
  int64_t columns(const Place& p, const AxisTaps& tw) const {
    return min_of(p.first_col + p.cols, plan_.axis[2].count(tw.phase)) - p.first_col;
  }

  void phase_sums(const Place& p, const StripShape& s, const AxisTaps& td, const AxisTaps& th, const AxisTaps& tw,
                  Range channels, const T* weight, int64_t cols, T* sums, bool at_once, Lane* lane) const {
    typedef typename CountLanes<kTilePixels>::type All;
    constexpr int64_t L = kLanes<T>;
    const int64_t taps = this->strip_taps(s, td, th, tw, taps_of(lane)), row_step = this->strip_row_step(s, th);
    const int64_t chunk = chunk_channels(plan_.in_channels, taps), size = channels.end - channels.begin;
    const int64_t *os = op_.out_stride, *rs = op_.residual_stride, step = plan_.axis[1].step_out;
    S* const out = output(p, channels.begin);
    const S* const residual_at = residual(p, channels.begin);
    T bias[kTilePixels] = {};
    if (op_.bias)
      for (int64_t k = 0; k < size; k++)
        bias[k] = widen(op_.bias[(p.group * plan_.out_channels + channels.begin + k) * op_.bias_stride]);
    RowsTileArgs<T> t;
    t.tap = taps_of(lane), t.taps = taps, t.channel_pitch = s.channel_pitch;
    t.to.before_channel = p.images * p.rows * p.cols;
    t.to.residual_channel = rs[1], t.to.relu = op_.relu;
    // Rows that follow each other without a gap are one long row.
    int64_t images = p.images, rows = p.rows, length = cols;
    const bool one_row = !at_once || (os[3] * step == cols && (!residual_at || rs[3] * step == cols));
    if (row_step == cols && s.phases == 1 && p.cols == cols && one_row) {
      const int64_t plane = rows * cols;
      const bool one_image = !at_once || (os[0] == plane && (!residual_at || rs[0] == plane));
      length = plane, rows = 1;
      if (s.image_pitch == plane && one_image) length *= images, images = 1;
    }
    const int64_t vectors = ceil_div(length, L), tiles = ceil_div(vectors, rows_vectors(int(size)));
    for (int64_t c = 0; c < plan_.in_channels; c += chunk) {
      const bool finished = at_once && c + chunk >= plan_.in_channels;
      t.channels = min_of(chunk, plan_.in_channels - c);
      t.weight = weight + c * taps * size;
      t.to.out_channel = finished ? os[1] : t.to.before_channel;
      for (int64_t n = 0; n < images; n++)
        for (int64_t row = 0; row < rows; row++)
          for (int64_t i = 0; i < tiles; i++) {
            const Range r = piece(vectors, tiles, i);
            T* const place = sums + (n * p.rows + row) * p.cols + r.begin * L;
            t.x = strip_of(lane) + c * s.channel_pitch + n * s.image_pitch + row * row_step + r.begin * L;
            t.to.before = c > 0 ? place : nullptr;
            if (finished)
              to_output(t.to, out + n * os[0] + row * step * os[3] + r.begin * L,
                        residual_at ? residual_at + n * rs[0] + row * step * rs[3] + r.begin * L : nullptr, bias);
            else to_sums(t.to, place);
            t.to.pixels = min_of(length, r.end * L) - r.begin * L;
            rows_tile_for<T>(int(size), int(r.end - r.begin), All{})(t);
          }
    }
  }

  void safe_sums(const Place& p, const AxisTaps& td, const AxisTaps& th, const AxisTaps& tw, int64_t channels,
                 const T* weights, int64_t cols, T* sums) const {
    for (int64_t k = 0; k < channels; k++)
      for (int64_t n = 0; n < p.images; n++)
        for (int64_t y = 0; y < p.rows; y++)
          for (int64_t x = 0; x < cols; x++)
            sums[((k * p.images + n) * p.rows + y) * p.cols + x] =
                this->safe_sum(p, td, th, tw, weights + k, channels, n, y, x);
  }

  // Bias, residual, activation, into the output. `any`: there are sums; otherwise outputs that no tap reaches.
  void finish(const Place& p, Range channels, bool any, Lane* lane) const {
    const ConvAxis &h = plan_.axis[1], &w = plan_.axis[2];
    const int64_t *os = op_.out_stride, *rs = op_.residual_stride;
    const int64_t outs = this->out_columns(p), size = channels.end - channels.begin;
    T* const line = row_of(lane);
    memset(line, 0, size_t(row_elements(plan_)) * sizeof(T));
    for (int64_t k = 0; k < size; k++) {
      const int64_t channel = channels.begin + k;
      const T bias = op_.bias ? widen(op_.bias[(p.group * plan_.out_channels + channel) * op_.bias_stride]) : T(0);
      for (int64_t n = 0; n < p.images; n++)
        for (int64_t y = 0; y < p.rows; y++) {
          const T* sums = sums_of(lane) + ((k * p.images + n) * p.rows + y) * p.cols;
          const T* row = w.step_out == 1 && any ? sums : line;
          if (w.step_out > 1 && any) spread(p, sums, size * p.images * p.rows * p.cols, line);
          const S* add = residual(p, channel);
          if (add) add += n * rs[0] + y * h.step_out * rs[3];
          write_row(row, bias, add, rs[4], output(p, channel) + n * os[0] + y * h.step_out * os[3], os[4], outs,
                    op_.relu);
        }
    }
  }
  // The columns of all classes to where they stand in a row.
  void spread(const Place& p, const T* sums, int64_t class_step, T* line) const {
    constexpr int64_t L = kLanes<T>;
    const ConvAxis& w = plan_.axis[2];
    const int64_t step = w.step_out;
    if (step == 2 && w.classes == 2) {
      const bool swapped = w.taps(0).phase == 1;  // the first class is that of the odd columns
      const T *even = sums + swapped * class_step, *odd = sums + !swapped * class_step;
      for (int64_t q = 0; q < p.cols; q += L) {
        const int count = int(min_of(L, p.cols - q));
        const Pairs<T> pair = interleave<T>(load_n(even + q, count), load_n(odd + q, count));
        store(line + 2 * q, pair.first);
        store(line + 2 * q + L, pair.second);
      }
      return;
    }
    for (int64_t rho = 0; rho < w.classes; rho++, sums += class_step) {
      const AxisTaps tw = w.taps(rho);
      for (int64_t q = 0; q < columns(p, tw); q++) line[tw.phase + q * step] = sums[q];
    }
  }

  char* const lanes_;
};

template <class S, bool BACKWARD>
struct ConvRowsRow {
  typedef Wide<S> T;

  static const char* why_not(const void* params) {
    const ck_conv& p = *static_cast<const ck_conv*>(params);
    const int64_t channels = (BACKWARD ? p.in_channels : p.out_channels) / p.groups;
    const int64_t weights = times(p.in_channels / p.groups * (p.out_channels / p.groups),
                                  times(times(p.kernel[0], p.kernel[1]), p.kernel[2]));
    if (channels > kRowsChannels && weights > kRowsWeights)
      return BACKWARD ? "needs at most 4 input channels per group or at most 65536 weights, got {in_per_group} channels"
                      : "needs at most 4 output channels per group or at most 65536 weights, got {out_per_group} "
                        "channels";
    if (2 * p.out[2] < kLanes<T>) return "needs rows of at least half a vector of outputs, got {width}";
    ConvPlan<T> plan;
    plan.init_whole(p, BACKWARD, 1, kRowsStrip);
    return plan.why_not();
  }
  static size_t workspace(const void* params, int threads) {
    ConvPlan<T> plan;
    plan.init_whole(*static_cast<const ck_conv*>(params), BACKWARD, threads, kRowsStrip);
    return size_t(threads) * ConvRows<S>::lane_bytes(plan);
  }
  static ck_status run(const void* params, const ck_tensor* t, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const ck_conv& p = *static_cast<const ck_conv*>(params);
    ConvPlan<T> plan;
    plan.init_whole(p, BACKWARD, exec->threads, kRowsStrip);
    if (plan.units == 0 || plan.out_channels == 0) return CK_OK;
    if (exec->workspace_size < size_t(exec->threads) * ConvRows<S>::lane_bytes(plan)) return CK_SMALL_WORKSPACE;
    const ConvOperands<S> operands = conv_operands<S>(p, t, BACKWARD);
    return ConvRows<S>(plan, operands, static_cast<char*>(exec->workspace)).run(exec);
  }
};

template <class S>
struct conv_rows : ConvRowsRow<S, false> {};
template <class S>
struct conv_grad_input_rows : ConvRowsRow<S, true> {};
