// Weight gradient by rows: lanes are neighbouring outputs of a row, and each weight is a dot product,
//     gw[k, c, tap] = sum over images and rows of gy[n, k, row] . x[n, c, the row's pixels under the tap].
//
// A tile is kDotRows output channels times up to kDotColumns pairs of (channel, tap), each with a vector of partial
// sums, which are added up once per unit of about kDotPixels outputs. In NCHW nothing is transposed: gy is read where
// it lies unless very many pairs load it (kDotCopies), x too where no tap reaches into padding and outputs are as close
// as inputs; else they are copied row by row, the column phases of x apart. conv_grad_weight.inl transposes both, a
// fifth of the time of a 1x1 layer.
//
// Measured on one core of a 262 GFLOP/s Zen 5: 1x1 with 784 outputs and more 180-225 GFLOP/s, 14x14 of 8 images
// 165-200, first layers 150-195.
//
// Bound: multiply-adds; 10 loads for 24 of them. The x of a tile stays in the first-level cache, gy of all tiles in the
// second: 4 lines per 12 cycles.
//
// Order of sums: lanes, rows and images of a unit, units, copies; all follow from shape, strides and ISA, so bits do
// not depend on threads.
//
// Special values: stored zeros of the padding times a non-finite gy would be NaN, so a padded gradient that is not
// finite somewhere is computed again by the direct row.

constexpr int kDotRows = kTilePixels >= 12 ? 4 : 2;  // with 6 columns: 24 sums and 5 operands in 32 registers, 12 and 3
constexpr int kDotColumns = 6;
constexpr int kDotSums = 8;  // sums of a row of the tile, those beyond kDotColumns empty
constexpr int64_t kDotPixels = 1024;
constexpr int64_t kDotStrip = int64_t(2) << 20;  // bytes of copied x: each line serves all output channels once
// NumPy's arrays begin 16 bytes behind a cache line, and a load across lines takes two turns: gy is copied first where
// this many pairs, and twice as many as it has channels, load it. On 1x1 layers 6 to 15 % faster.
constexpr int64_t kDotCopies = 128;

template <class T>
struct DotTileArgs {
  const T* gy;                           // first output channel
  int64_t channels;                      // of them, at most kDotRows
  int64_t gy_channel, gy_image, gy_row;  // elements between neighbours
  const T* x;
  const int64_t* column;  // where each pair's pixels begin
  int64_t x_image, x_row;
  int64_t images, rows, length;
  const T* ahead;  // kDotRows rows that a later tile reads, ahead_next elements apart
  int64_t ahead_next, ahead_image, ahead_row;
  T* sums;  // [output channel][pair]
  int64_t pitch;
  bool add;
};

// Sums of lanes: v[i] of the first kDotRows * kDotSums / lanes vectors receive those of v[i * lanes], ...
template <class T, int COUNT, int WIDTH = kLanes<T>>
static inline void add_lanes(Vec<T>* v) {
  if constexpr (WIDTH > 1) {
#pragma GCC unroll 16
    for (int i = 0; i < COUNT / 2; i++) {
      const Pairs<T> pair = deinterleave<T>(v[2 * i], v[2 * i + 1]);
      v[i] = pair.first + pair.second;
    }
    add_lanes<T, COUNT / 2, WIDTH / 2>(v);
  }
}

// AHEAD: fetches the rows `ahead` too.
template <class T, int NC, bool AHEAD>
static void dot_tile(const DotTileArgs<T>& t) {
  constexpr int L = kLanes<T>, KR = kDotRows;
  Vec<T> acc[KR][NC];
#pragma GCC unroll 4
  for (int k = 0; k < KR; k++)
#pragma GCC unroll 6
    for (int j = 0; j < NC; j++) acc[k][j] = Vec<T>{};
  for (int64_t n = 0; n < t.images; n++)
    for (int64_t row = 0; row < t.rows; row++) {
      const T *g[KR], *x[NC];
#pragma GCC unroll 4
      for (int k = 0; k < KR; k++)
        g[k] = t.gy + n * t.gy_image + row * t.gy_row + min_of<int64_t>(k, t.channels - 1) * t.gy_channel;
#pragma GCC unroll 6
      for (int j = 0; j < NC; j++) x[j] = t.x + n * t.x_image + row * t.x_row + t.column[j];
      const auto step = [&](const auto& at) {
        Vec<T> gv[KR];
#pragma GCC unroll 4
        for (int k = 0; k < KR; k++) gv[k] = at(g[k]);
#pragma GCC unroll 6
        for (int j = 0; j < NC; j++) {
          const Vec<T> xv = at(x[j]);
#pragma GCC unroll 4
          for (int k = 0; k < KR; k++) acc[k][j] += gv[k] * xv;
        }
      };
      int64_t i = 0;
      const T* ahead = AHEAD ? t.ahead + n * t.ahead_image + row * t.ahead_row : nullptr;
      for (; i + L <= t.length; i += L) {
        if (AHEAD) {
#pragma GCC unroll 4
          for (int k = 0; k < KR; k++) __builtin_prefetch(ahead + i + k * t.ahead_next);
        }
        step([i](const T* p) { return load(p + i); });
      }
      if (i < t.length) step([i, &t](const T* p) { return load_n(p + i, int(t.length - i)); });
    }
  Vec<T> all[KR * kDotSums];
#pragma GCC unroll 4
  for (int k = 0; k < KR; k++)
#pragma GCC unroll 8
    for (int j = 0; j < kDotSums; j++) all[k * kDotSums + j] = j < NC ? acc[k][min_of(j, NC - 1)] : Vec<T>{};
  add_lanes<T, KR * kDotSums>(all);
  T sums[KR * kDotSums];
  for (int i = 0; i < KR * kDotSums / L; i++) store(sums + i * L, all[i]);
  for (int64_t k = 0; k < t.channels; k++)
    for (int j = 0; j < NC; j += L) {
      T* const to = t.sums + k * t.pitch + j;
      const int count = min_of(L, NC - j);
      Vec<T> v = load_n(sums + k * kDotSums + j, count);
      if (t.add) v += load_n(to, count);
      store_n(to, v, count);
    }
}
template <class T>
using DotTileFn = void (*)(const DotTileArgs<T>&);
template <class T, bool AHEAD, int... I>
static DotTileFn<T> pick_dot_tile(int columns, Lanes<I...>) {
  static constexpr DotTileFn<T> table[] = {dot_tile<T, I + 1, AHEAD>...};
  return table[columns - 1];
}

template <class T>
struct RowsGradPlan : ConvPlan<T> {
  using Base = ConvPlan<T>;
  using Base::axis, Base::batch, Base::channel_pitch, Base::cols, Base::columns, Base::groups, Base::images,
      Base::in_channels, Base::k_parts, Base::lanes, Base::most_planes, Base::out_channels, Base::row_phases,
      Base::rows, Base::strips_h, Base::strips_n, Base::strips_w, Base::taps, Base::units;

  int64_t copies, copy_elements;
  int64_t k_chunk, c_chunk;  // channels that are read or copied at once
  int64_t c_parts;
  int64_t gy_pitch;  // elements between channels of gy where it is copied
  bool copy_x, copy_gy;

  void init(const ck_conv& p, int threads) {
    this->set_shape(p, false);
    const ConvAxis &h = axis[1], &w = axis[2];
    columns.init(w.taps(0), w.step_in);
    most_planes = axis[0].kernel, row_phases = 1;
    strips_w = max_of<int64_t>(1, ceil_div(w.out, kDotPixels + kDotPixels / 4));
    cols = ceil_div(w.out, strips_w);
    strips_w = ceil_div(w.out, max_of<int64_t>(1, cols));
    rows = max_of<int64_t>(1, min_of(h.out, kDotPixels / max_of<int64_t>(1, cols)));
    strips_h = ceil_div(h.out, rows);
    rows = ceil_div(h.out, max_of<int64_t>(1, strips_h));
    images = 1;
    if (rows == h.out && strips_w == 1)
      images = max_of<int64_t>(1, min_of(batch, kDotPixels / max_of<int64_t>(1, rows * cols)));
    strips_n = ceil_div(batch, images);
    images = max_of<int64_t>(1, ceil_div(batch, max_of<int64_t>(1, strips_n)));
    units = strips_n * axis[0].out * strips_h * strips_w;  // of one group
    const int64_t plane = rows * cols, item = sizeof(T);
    // Where both are copied, the pixels of small images are one row.
    const bool compact = taps == 1 && images > 1 && 20 * plane < 19 * round_up(plane, lanes);
    copy_x = compact;
    copy_gy = compact || in_channels * taps >= max_of(kDotCopies, 2 * out_channels);
    constexpr int64_t line = 64 / int64_t(sizeof(T));
    gy_pitch = (ceil_div(images * plane, line) | 1) * line;
    this->strip_bytes();
    copy_elements = groups * out_channels * in_channels * taps;
    copies = copies_of(units, copy_elements);
    const int64_t cache = max_of<int64_t>(256 * 1024, min_of<int64_t>(ck_l2_bytes(), 2 << 20));
    k_chunk = chunk_of(out_channels, cache / 2 / max_of<int64_t>(1, gy_pitch * item), kDotRows);
    const int64_t strip = max_of<int64_t>(1, times(channel_pitch, item));
    c_chunk = chunk_of(in_channels, kDotStrip / strip, taps == 1 ? kDotColumns : 1);
    share(threads);
  }
  int64_t strip_elements() const { return times(c_chunk, channel_pitch); }
  int64_t row_elements() const { return in_channels * taps; }

 private:
  // Near `most`, a multiple of `step`, and equal pieces of `all`.
  static int64_t chunk_of(int64_t all, int64_t most, int64_t step) {
    const int64_t steps = ceil_div(all, step);
    const int64_t chunks = ceil_div(steps, max_of<int64_t>(1, most / step));
    return ceil_div(steps, max_of<int64_t>(1, chunks)) * step;
  }
  // Threads share out the copies, and where those are few the channels, of x first: gy is the one read again.
  void share(int threads) {
    k_parts = c_parts = 1;
    const double ops = 2.0 * double(copy_elements) * double(batch * axis[0].out) * double(axis[1].out * axis[2].out);
    if (threads <= 1 || ops < double(kSerialOps)) return;
    const int64_t tasks = copies * groups;
    if (tasks % threads == 0 || tasks >= 8 * threads) return;
    const int64_t wanted = ceil_div(2 * threads, tasks);
    c_parts = max_of<int64_t>(1, min_of(wanted, min_of(in_channels, in_channels * taps / (2 * kDotColumns))));
    k_parts = max_of<int64_t>(1, min_of(ceil_div(wanted, c_parts), out_channels / (2 * kDotRows)));
  }
};

template <class S>
class RowsGradWalk : ConvUnits<S> {
  using typename ConvUnits<S>::T;
  using typename ConvUnits<S>::Place;
  using ConvUnits<S>::op_;
  typedef RowsGradPlan<T> Plan;

 public:
  // `operands`: x as input; gy apart.
  RowsGradWalk(const Plan& plan, const ConvOperands<S>& operands, const ck_tensor& gy, const GradientOut<S>& out,
               char* workspace)
      : ConvUnits<S>(plan, operands),
        plan_(plan),
        gy_(static_cast<const S*>(gy.data)),
        gy_stride_(gy.stride),
        out_(out),
        sums_(reinterpret_cast<T*>(workspace)),
        lanes_(workspace + sums_bytes(plan)) {
    const bool near = op_.in_stride[4] == 1 && plan.axis[2].step_in == 1;
    x_in_place_ = kIsWide<S> && near && !plan.copy_x && !reaches_padding(*out.conv);
    gy_in_place_ = kIsWide<S> && gy_stride_[4] == 1 && !plan.copy_gy;
  }
  static size_t workspace(const Plan& plan, int threads) {
    return sums_bytes(plan) + size_t(threads) * lane_bytes(plan);
  }

  // `finite`: whether the whole gradient is.
  ck_status run(const ck_exec* exec, bool* finite) {
    const int64_t parts = plan_.k_parts * plan_.c_parts, tasks = plan_.copies * plan_.groups * parts;
    const ck_status status = parallel(exec, tasks, [&](int task, int lane) {
      const int64_t copy = task / parts / plan_.groups, group = task / parts % plan_.groups;
      const Range tiles = piece(ceil_div(plan_.out_channels, kDotRows), plan_.k_parts, task % parts / plan_.c_parts);
      const Range outputs = {tiles.begin * kDotRows, min_of(tiles.end * kDotRows, plan_.out_channels)};
      const Range inputs = piece(plan_.in_channels, plan_.c_parts, task % plan_.c_parts);
      const Range units = piece(plan_.units, plan_.copies, copy);
      for (int64_t i = units.begin; i < units.end && !ask_cancelled(exec, lane, &cancelled_); i++)
        unit(i, copy, group, outputs, inputs, i > units.begin, lane);
    });
    if (status != CK_OK || cancelled_) return CK_CANCELLED;
    const int64_t channels = plan_.groups * plan_.out_channels;
    const int64_t chunks = chunks_for(channels, double(plan_.row_elements() * (plan_.copies + 1)), exec->threads);
    int64_t bad = 0;
    const ck_status written = parallel(exec, chunks, [&](int chunk, int) {
      const Range range = piece(channels, chunks, chunk);
      for (int64_t k = range.begin; k < range.end; k++)
        if (!write(k)) __atomic_store_n(&bad, 1, __ATOMIC_RELAXED);
    });
    *finite = !bad;
    return written;
  }

 private:
  static size_t sums_bytes(const Plan& plan) {
    return size_t(round_up(times(times(plan.copies, plan.copy_elements), int64_t(sizeof(T))), 64));
  }
  static size_t column_bytes(const Plan& plan) { return size_t(round_up(plan.c_chunk * plan.taps * 8, 64)); }
  // A lane: columns, the strip of x, gy.
  static size_t lane_bytes(const Plan& plan) {
    const int64_t elements = plus(plan.strip_elements(), plan.k_chunk * plan.gy_pitch);
    return size_t(round_up(int64_t(column_bytes(plan)) + times(elements, int64_t(sizeof(T))), 4096) + 64);
  }

  // All images of `operand` in a unit are one row, or each row apart.
  struct Rows {
    const T* data;
    int64_t channel, image, row;  // elements between neighbours
  };

  void unit(int64_t unit, int64_t copy, int64_t group, Range outputs, Range inputs, bool add, int lane) const {
    typedef typename CountLanes<kDotColumns>::type All;
    char* const memory = lanes_ + size_t(lane) * lane_bytes(plan_);
    int64_t* const columns = reinterpret_cast<int64_t*>(memory);
    T* const strip = reinterpret_cast<T*>(memory + column_bytes(plan_));
    const int64_t inner = plan_.axis[0].out * plan_.strips_h * plan_.strips_w;
    const Place p = this->place_of((unit / inner * plan_.groups + group) * inner + unit % inner);
    const int64_t pitch = plan_.row_elements();
    for (int64_t c0 = inputs.begin; c0 < inputs.end; c0 += plan_.c_chunk) {
      const int64_t some_c = min_of(plan_.c_chunk, inputs.end - c0);
      const Rows x = x_rows(p, c0, some_c, strip, columns);
      for (int64_t k0 = outputs.begin; k0 < outputs.end; k0 += plan_.k_chunk) {
        const int64_t some_k = min_of(plan_.k_chunk, outputs.end - k0);
        const Rows gy = gy_rows(p, k0, some_k, strip + plan_.strip_elements());
        DotTileArgs<T> t;
        t.gy_channel = gy.channel, t.gy_image = gy.image, t.gy_row = gy.row;
        t.x = x.data, t.x_image = x.image, t.x_row = x.row;
        t.images = p.images, t.rows = p.rows, t.length = p.cols;
        if (x.row == p.cols && gy.row == p.cols) {
          t.length *= t.rows, t.rows = 1;
          if (x.image == t.length && gy.image == t.length) t.length *= t.images, t.images = 1;
        }
        t.pitch = pitch, t.add = add;
        T* const sums =
            sums_ + copy * plan_.copy_elements + (group * plan_.out_channels + k0) * pitch + c0 * plan_.taps;
        const int64_t all = some_c * plan_.taps, tiles = ceil_div(all, kDotColumns);
        for (int64_t i = 0; i < tiles; i++) {
          const Range few = piece(all, tiles, i);
          t.column = columns + few.begin;
          for (int64_t k = 0; k < some_k; k += kDotRows) {
            t.gy = gy.data + k * gy.channel, t.channels = min_of<int64_t>(kDotRows, some_k - k);
            t.sums = sums + k * pitch + few.begin;
            // Arrays come from memory: the first tile fetches the next rows of gy, a later one some of the next x.
            const bool next_gy = i == 0 && gy_in_place_ && k + kDotRows < some_k;
            const bool next_x = i > 0 && x_in_place_ && plan_.taps == 1 && i + 1 < tiles && k < kDotColumns;
            if (next_gy) {
              t.ahead = t.gy + kDotRows * gy.channel;
              t.ahead_next = gy.channel, t.ahead_image = gy.image, t.ahead_row = gy.row;
            } else if (next_x) {
              t.ahead = x.data + (few.end + k) * x.channel;
              t.ahead_next = x.channel, t.ahead_image = x.image, t.ahead_row = x.row;
            }
            const int count = int(few.end - few.begin);
            (next_gy || next_x ? pick_dot_tile<T, true>(count, All{}) : pick_dot_tile<T, false>(count, All{}))(t);
          }
        }
      }
    }
  }

  Rows gy_rows(const Place& p, int64_t k0, int64_t channels, T* copied) const {
    const S* data = gy_ + (p.group * plan_.out_channels + k0) * gy_stride_[1];
    if constexpr (kIsWide<S>)
      if (gy_in_place_)
        return {
            data + p.first_image * gy_stride_[0] + p.depth * gy_stride_[2] + p.first_row * gy_stride_[3] + p.first_col,
            gy_stride_[1], gy_stride_[0], gy_stride_[3]};
    StripShape s;
    s.images = p.images, s.planes = 1, s.rows = p.rows, s.columns = p.cols, s.phases = 1;
    s.row_pitch = p.cols, s.plane_pitch = s.image_pitch = p.rows * p.cols, s.channel_pitch = plan_.gy_pitch;
    StripSource<S> in;
    in.data = data, in.stride = gy_stride_;
    for (int a = 0; a < CK_AXES; a++) in.size[a] = plan_.axis[a].out;
    in.first_image = p.first_image, in.channels = channels;
    in.first_plane = p.depth, in.plane_step = 1;
    in.first_row = p.first_row, in.row_step = 1;
    in.first_column = p.first_col, in.column_step = 1;
    pack_strip(copied, s, in);
    return {copied, s.channel_pitch, s.image_pitch, s.row_pitch};
  }

  // Also where the pixels of each pair of (channel, tap) begin.
  Rows x_rows(const Place& p, int64_t c0, int64_t channels, T* strip, int64_t* columns) const {
    const AxisTaps td = plan_.axis[0].taps(0), th = plan_.axis[1].taps(0), tw = plan_.axis[2].taps(0);
    const S* data = op_.in + (p.group * plan_.in_channels + c0) * op_.in_stride[1];
    Rows x;
    if constexpr (kIsWide<S>)
      if (x_in_place_) {
        const int64_t* s = op_.in_stride;
        int64_t* to = columns;
        for (int64_t jd = 0; jd < td.count; jd++)
          for (int64_t jh = 0; jh < th.count; jh++)
            for (int64_t jw = 0; jw < tw.count; jw++)
              *to++ = (td.offset + jd * td.advance) * s[2] + (th.offset + jh * th.advance) * s[3] + tw.offset +
                      jw * tw.advance;
        x.data = data + p.first_image * s[0] + p.depth * plan_.axis[0].step_in * s[2] +
                 p.first_row * plan_.axis[1].step_in * s[3] + p.first_col;
        x.channel = s[1], x.image = s[0], x.row = plan_.axis[1].step_in * s[3];
        repeat(columns, channels, x.channel);
        return x;
      }
    StripShape s;
    StripSource<S> in = this->template source_of<S>(p, td, th, s);
    in.data = data, in.channels = channels;
    pack_strip(strip, s, in);
    this->strip_taps(s, td, th, tw, columns);
    x.data = strip, x.channel = s.channel_pitch, x.image = s.image_pitch, x.row = this->strip_row_step(s, th);
    repeat(columns, channels, x.channel);
    return x;
  }
  // The taps of the first channel for all of them.
  void repeat(int64_t* columns, int64_t channels, int64_t pitch) const {
    for (int64_t i = plan_.taps; i < channels * plan_.taps; i++) columns[i] = columns[i - plan_.taps] + pitch;
  }

  // One output channel: the copies added in their order. False: some gradient is not finite.
  bool write(int64_t k) const {
    constexpr int L = kLanes<T>;
    const int64_t elements = plan_.row_elements();
    const T* from = sums_ + k * elements;
    const bool contiguous = out_.contiguous();
    Vec<T> watch{};
    for (int64_t e = 0; e < elements; e += L) {
      const int count = int(min_of<int64_t>(L, elements - e));
      Vec<T> v = load_n(from + e, count);
      for (int64_t copy = 1; copy < plan_.copies; copy++) v += load_n(from + copy * plan_.copy_elements + e, count);
      watch += v * T(0);
      if (contiguous) {
        store_n(out_.place(k, 0, 0) + e, v, count);
        continue;
      }
      T lane[L];
      store(lane, v);
      for (int j = 0; j < count; j++) put(out_.place(k, (e + j) / plan_.taps, (e + j) % plan_.taps), lane[j]);
    }
    for (int j = 0; j < L; j++)
      if (watch[j] != T(0)) return false;
    return true;
  }

  const Plan& plan_;
  const S* const gy_;
  const int64_t* const gy_stride_;
  const GradientOut<S>& out_;
  T* const sums_;
  char* const lanes_;
  bool x_in_place_, gy_in_place_;
  int cancelled_ = 0;
};

template <class S>
struct conv_grad_weight_rows {
  typedef RowsGradPlan<Wide<S>> Plan;
  typedef RowsGradWalk<S> Walk;

  static Plan plan_for(const void* params, int threads) {
    Plan plan;
    plan.init(*static_cast<const ck_conv*>(params), threads);
    return plan;
  }
  static const char* why_not(const void* params) {
    if (times(plan_for(params, 1).strip_elements(), int64_t(sizeof(Wide<S>))) > kMostStripBytes)
      return "needs taps near each other: a strip of the input would take more than 256 MB";
    return conv_grad_weight_direct<S>::why_not(params);
  }
  static size_t workspace(const void* params, int threads) {
    return max_of(Walk::workspace(plan_for(params, threads), threads),
                  conv_grad_weight_direct<S>::workspace(params, threads));
  }
  static ck_status run(const void* params, const ck_tensor* t, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const ck_conv& p = *static_cast<const ck_conv*>(params);
    const Plan plan = plan_for(params, exec->threads);
    if (exec->workspace_size < workspace(params, exec->threads)) return CK_SMALL_WORKSPACE;
    if (plan.units == 0 || plan.in_channels == 0 || plan.out_channels == 0)
      return conv_grad_weight_direct<S>::run(params, t, exec);
    ConvOperands<S> operands{};
    operands.in = static_cast<const S*>(t[1].data);
    operands.in_stride = t[1].stride;
    const GradientOut<S> out(p, t[2]);
    Walk walk(plan, operands, t[0], out, static_cast<char*>(exec->workspace));
    bool finite = true;
    const ck_status status = walk.run(exec, &finite);
    const bool again = status == CK_OK && !finite && reaches_padding(p);
    return again ? conv_grad_weight_direct<S>::run(params, t, exec) : status;
  }
};
