// 1x1 convolution and its input gradient as a matrix product, Y[o, p] = sum over r of W[o, r] * X[r, p]: lanes are
// pixels.
//
// Output channels of NCHW are rows of neighbouring pixels, so nothing is transposed on the way in or out, and weights,
// being broadcast, need no transposition either. A task is a strip of pixels (of several images where those are small)
// and a range of output channels: it copies its X into the second-level cache, [tile][r][2 vectors], then sweeps it
// with a register tile of up to kTilePixels output channels times two vectors, weights of a chunk of r in the first
// level. Where outputs are few, all weights stay in the second-level cache and images are whole vectors, X is read
// where it lies instead, tile by tile, while the next tile is fetched.
//
// Bound: multiply-adds; kTilePixels + 2 loads for 2 * kTilePixels of them.
//
// Order of sums: that of conv_direct.inl, so the bits are the same where multiply-add is fused.
//
// The gradient of a strided layer is a product over the pixels of gy; its other outputs are zero (or the bias alone).
//
// Needs: a 1x1 kernel without padding; pixels that are neighbours in memory (NCHW).

// Bytes, and outputs: a tile writes two lines of each, far apart, and where results go to memory 256 of them at 56x56
// took half as long again.
constexpr int64_t kNearWeights = 512 * 1024, kNearOutputs = 128;

template <class T>
struct GemmPlan {
  static constexpr int64_t lanes = kLanes<T>, tile = 2 * lanes;

  const ck_conv* conv;
  bool backward;
  int64_t reduction, outputs;  // channels per group: summed over, and written
  int64_t pixels, total;       // outputs of an image; of all
  int64_t strip, strips;       // pixels of a strip
  int64_t parts;               // ranges of output channels
  int64_t panels;              // of output channels: at most kTilePixels each
  int64_t chunk;
  bool near;  // X may be read in place

  void init(const ck_conv& p, bool backward_, int threads) {
    conv = &p, backward = backward_;
    reduction = (backward ? p.out_channels : p.in_channels) / p.groups;
    outputs = (backward ? p.in_channels : p.out_channels) / p.groups;
    pixels = p.out[0] * p.out[1] * p.out[2];
    total = p.batch * pixels;
    chunk = chunk_channels(reduction, 1);
    panels = ceil_div(outputs, kTilePixels);
    // Planes at powers of two would fall on few sets of the cache.
    near = pixels % lanes == 0 && pixels * int64_t(sizeof(T)) % 2048 != 0 && p.stride[0] == 1 && p.stride[1] == 1 &&
           p.stride[2] == 1 && outputs <= min_of(kNearOutputs, 2 * reduction) &&
           outputs * weight_pitch() * int64_t(sizeof(T)) <= kNearWeights;
    // With few output channels copying X takes a tenth of the time and more: then a strip leaves room in the
    // second-level cache for the next, which is fetched meanwhile.
    const int64_t bytes = max_of<int64_t>(1, reduction * int64_t(sizeof(T)));
    int64_t most = strip_budget() / bytes;
    if (outputs <= 256) most = max_of<int64_t>(strip_budget() * 2 / 5 / bytes, min_of<int64_t>(most, 5 * tile));
    int64_t size = max_of<int64_t>(tile, min_of(kStripPixels, most / tile * tile));
    // Enough tasks of equal size for all threads: by smaller strips, and where these would be small by ranges of output
    // channels, for which X is copied again.
    const auto share = [&](int64_t n) {
      const int64_t tasks = ceil_div(total, size) * p.groups * n;
      const double even = double(tasks) / double(max_of<int64_t>(1, round_up(tasks, threads)));
      return even * double(panels) / double(max_of<int64_t>(1, n * ceil_div(panels, n)));
    };
    parts = 1;
    if (threads > 1 && 2.0 * double(total) * double(outputs * reduction * p.groups) >= double(kSerialOps)) {
      while (share(1) < 0.87 && size >= 8 * tile) size = round_up(size / 2, tile);
      double best = share(1);
      for (int64_t n = 2; best < 0.87 && n <= min_of<int64_t>(panels, 4 * threads); n++)
        if (share(n) > best + 0.04) best = share(n), parts = n;
    }
    strips = max_of<int64_t>(1, ceil_div(total, size));
    strip = max_of<int64_t>(tile, round_up(ceil_div(total, strips), lanes));
    strips = ceil_div(total, strip);
  }
  int64_t panel_elements() const { return reduction * kTilePixels; }
  // Rows of weights as they are, a chunk of r long: at powers of two they would fall on one set of the cache.
  int64_t row_pitch() const { return (ceil_div(min_of(chunk, reduction), lanes) | 1) * lanes; }
  // The same of whole rows.
  int64_t weight_pitch() const { return (ceil_div(reduction, lanes) | 1) * lanes; }
  // Weights that must be packed are packed once for all strips where there are several; else panel by panel just before
  // use, some at once: a row of them is a page of its own, and is then read in whole lines. At most 1 MB.
  bool packs_early() const { return strips > 2; }
  int64_t late_panels() const {
    const int64_t most = (int64_t(1) << 20) / max_of<int64_t>(1, panel_elements() * int64_t(sizeof(T)));
    return packs_early() ? 0 : max_of<int64_t>(1, min_of<int64_t>(most, min_of<int64_t>(8, ceil_div(panels, parts))));
  }
  int64_t own_elements() const {
    const int64_t most = max_of(late_panels() * panel_elements(), kTilePixels * row_pitch());
    return near ? max_of(most, outputs * weight_pitch()) : most;
  }
  int64_t packed_elements() const { return times(conv->groups * panels, panel_elements()); }
  int64_t x_elements() const { return times(round_up(strip, tile), reduction); }
  int64_t sums_elements() const { return kTilePixels * round_up(strip, tile); }
};

template <class T>
struct GemmTileArgs {
  const T* x;         // 2 * lanes pixels, or lanes of them, of each r
  int64_t x_step;     // elements between r
  int64_t reduction;  // of this chunk
  const T* weight;    // packed: [r][KR]; else KR rows of neighbouring r
  int64_t row;        // elements between rows
  const char* ahead;  // what a later strip or tile will read, one cache line per r; bytes between them
  int64_t ahead_step;
  PixelOut<T> to;
};

// KR output channels times NV vectors of pixels.
template <class T, int KR, int NV, bool PACKED>
static void gemm_tile(const GemmTileArgs<T>& t) {
  constexpr int L = kLanes<T>;
  constexpr int run = 5;  // rows reached from one pointer: five fit the addressing of 14 rows into the registers
  Vec<T> acc[KR][NV];
#pragma GCC unroll 16
  for (int k = 0; k < KR; k++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) acc[k][v] = Vec<T>{};
  const T* x = t.x;
  const T* w[(KR + run - 1) / run];
  for (int i = 0; i < (KR + run - 1) / run; i++) w[i] = t.weight + (PACKED ? 0 : i * run * t.row);
  const int64_t row = t.row, x_step = t.x_step, ahead_step = t.ahead_step, out_row = t.to.out_channel;
  const char* ahead = t.ahead;
  const auto step = [&] {
    __builtin_prefetch(ahead, 0, 2);
    ahead += ahead_step;
    Vec<T> xv[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) xv[v] = load(x + v * L);
#pragma GCC unroll 16
    for (int k = 0; k < KR; k++) {
      const T value = PACKED ? w[0][k] : w[k / run][k % run * row];
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) acc[k][v] += value * xv[v];
    }
    if (PACKED) {
      w[0] += KR;
    } else {
#pragma GCC unroll 3
      for (int i = 0; i < (KR + run - 1) / run; i++) w[i]++;
    }
    x += x_step;
  };
  int64_t left = t.reduction;
  if (t.to.bias && left >= KR * NV) {  // finished: the lines of the output are fetched meanwhile
    const int64_t item = t.to.narrow ? 2 : int64_t(sizeof(T));
    for (int v = 0; v < NV; v++) {
      const char* out = static_cast<const char*>(t.to.narrow ? t.to.narrow_out : t.to.out) + v * L * item;
      for (int k = 0; k < KR; k++, out += out_row * item) {
        __builtin_prefetch(out, 1, 2);
        step();
      }
    }
    left -= KR * NV;
  }
  for (; left > 0; left--) step();
  finish_tile(acc, t.to);
}
template <class T>
using GemmTileFn = void (*)(const GemmTileArgs<T>&);
template <class T, int NV, bool PACKED, int... I>
static GemmTileFn<T> pick_gemm_tile(int rows, Lanes<I...>) {
  static constexpr GemmTileFn<T> table[] = {gemm_tile<T, I + 1, NV, PACKED>...};
  return table[rows - 1];
}

template <class S>
class GemmWalk {
  typedef Wide<S> T;

 public:
  GemmWalk(const GemmPlan<T>& plan, const ConvOperands<S>& operands, const T* packed, char* lanes)
      : plan_(plan), op_(operands), packed_(packed), lanes_(lanes) {
    const ck_conv& p = *plan.conv;
    const auto one_run = [&p](const int64_t* s) {
      return s[4] == 1 && (p.out[1] == 1 || s[3] == p.out[2]) && (p.out[0] == 1 || s[2] == p.out[1] * s[3]);
    };
    spread_ = plan.backward && (p.in[0] != p.out[0] || p.in[1] != p.out[1] || p.in[2] != p.out[2]);
    whole_ = !spread_ && op_.out && one_run(op_.out_stride) && (!op_.residual || one_run(op_.residual_stride));
    // Weights that are packed late would be packed again for each tile.
    near_ = kIsWide<S> && plan.near && whole_ && plan.reduction > 0 && one_run(op_.in_stride) &&
            (packed || op_.weight.c == 1);
  }

  static size_t lane_bytes(const GemmPlan<T>& plan) {
    const int64_t elements = plan.x_elements() + plan.sums_elements() + plan.own_elements();
    return size_t(round_up(int64_t(sizeof(Lane)) + elements * int64_t(sizeof(T)), 4096) + 64);  // 64: another offset
  }

  ck_status run(const ck_exec* exec) {
    const int64_t tasks = plan_.strips * plan_.conv->groups * plan_.parts;
    const int64_t chunks = exec->threads == 1 && !exec->poll ? 1 : min_of<int64_t>(tasks, 1 << 20);
    for (int lane = 0; lane < exec->threads; lane++) lane_at(lane)->unit = -1;
    if (near_)
      return parallel(exec, chunks, [&](int chunk, int lane) {
        const Range range = piece(tasks, chunks, chunk);
        for (int64_t task = range.begin; task < range.end; task++) run_near(task, lane_at(lane));
      });
    return parallel(exec, chunks, [&](int chunk, int lane) {
      Lane* const held = lane_at(lane);
      T* const x = reinterpret_cast<T*>(held + 1);
      T *const sums = x + plan_.x_elements(), *const late = sums + plan_.sums_elements();
      const int64_t together = packed_ || op_.weight.c == 1 ? 1 : plan_.late_panels();
      const Range range = piece(tasks, chunks, chunk);
      for (int64_t task = range.begin; task < range.end; task++) {
        const int64_t unit = task / plan_.parts, group = unit % plan_.conv->groups;
        const Range some = {unit / plan_.conv->groups * plan_.strip,
                            min_of(plan_.total, (unit / plan_.conv->groups + 1) * plan_.strip)};
        if (held->unit != unit) copy(group, some, x);
        held->unit = unit;
        const Range panels = piece(plan_.panels, plan_.parts, task % plan_.parts);
        for (int64_t first = panels.begin; first < panels.end; first += together) {
          const Range few = {first, min_of(first + together, panels.end)};
          if (!packed_ && op_.weight.c != 1) pack_panels(group, few, late);
          for (int64_t panel = few.begin; panel < few.end; panel++) {
            const T* weight = packed_ ? packed_ + (group * plan_.panels + panel) * plan_.panel_elements()
                                      : late + (panel - few.begin) * plan_.panel_elements();
            multiply(group, panel, some, panel - panels.begin, {x, GemmPlan<T>::tile, plan_.reduction}, sums, weight,
                     late);
          }
        }
      }
    });
  }

  // All panels of weights: [group][panel][r][rows of the panel].
  static void pack(const GemmPlan<T>& plan, const ConvOperands<S>& operands, T* to, int64_t group, Range panels) {
    GemmWalk(plan, operands, nullptr, nullptr)
        .pack_panels(group, panels, to + (group * plan.panels + panels.begin) * plan.panel_elements());
  }

 private:
  struct alignas(64) Lane {  // x, sums and weights follow
    int64_t unit;            // whose pixels are copied, or the group whose weights; -1: none
  };
  // The pixels of a strip: elements between r, and elements per pixel from one tile to another (0: a single tile).
  struct Pixels {
    const T* data;
    int64_t step, tile_step;
  };
  Lane* lane_at(int lane) const { return reinterpret_cast<Lane*>(lanes_ + size_t(lane) * lane_bytes(plan_)); }

  // A task with X where it lies: all panels of a tile, then the next tile.
  void run_near(int64_t task, Lane* held) const {
    constexpr int64_t tile = GemmPlan<T>::tile;
    T* const sums = reinterpret_cast<T*>(held + 1) + plan_.x_elements();
    T* const rows = sums + plan_.sums_elements();
    const int64_t unit = task / plan_.parts, group = unit % plan_.conv->groups;
    const int64_t first = unit / plan_.conv->groups * plan_.strip, end = min_of(plan_.total, first + plan_.strip);
    if (!packed_ && held->unit != group)
      for (int64_t k = 0; k < plan_.outputs; k++)
        copy_short(rows + k * plan_.weight_pitch(), weights(group, k), plan_.reduction);
    held->unit = group;
    const Range panels = piece(plan_.panels, plan_.parts, task % plan_.parts);
    for (int64_t at = first; at < end;) {
      const int64_t image = at / plan_.pixels, pixel = at % plan_.pixels;
      const Range some = {at, min_of(min_of(at + tile, end), at - pixel + plan_.pixels)};
      const S* x = op_.in + image * op_.in_stride[0] + group * plan_.reduction * op_.in_stride[1] + pixel;
      for (int64_t panel = panels.begin; panel < panels.end; panel++) {
        const int64_t k = piece(plan_.outputs, plan_.panels, panel).begin;
        const T* weight = packed_ ? packed_ + (group * plan_.panels + panel) * plan_.panel_elements()
                                  : rows + k * plan_.weight_pitch();
        if constexpr (kIsWide<S>)
          multiply(group, panel, some, panel - panels.begin, {x, op_.in_stride[1], 0}, sums, weight, nullptr);
      }
      at = some.end;
    }
  }

  static inline void copy_pixels(T* to, const S* from, int64_t count, int64_t step) {
    constexpr int64_t L = kLanes<T>;
    if (step == 1 && count == 2 * L) {
      store(to, load(from));
      store(to + L, load(from + L));
    } else if (step == 1) {
      copy_short(to, from, count);
    } else if (step == 2) {
      copy_every_second(to, from, count);
    } else {
      for (int64_t i = 0; i < count; i++) to[i] = widen(from[i * step]);
    }
  }
  // Pixels of a strip: [tile][r][2 vectors], zeros behind the last.
  void copy(int64_t group, Range some, T* to) const {
    constexpr int64_t tile = GemmPlan<T>::tile;
    const int64_t* s = op_.in_stride;
    const ck_conv& p = *plan_.conv;
    const int64_t size = some.end - some.begin, rest = round_up(size, tile) - size;
    if (rest)
      for (int64_t r = 0; r < plan_.reduction; r++)
        memset(to + size / tile * tile * plan_.reduction + r * tile + size % tile, 0, size_t(rest) * sizeof(T));
    int64_t step[CK_AXES];  // elements between neighbouring outputs
    for (int a = 0; a < CK_AXES; a++) step[a] = (plan_.backward ? 1 : p.stride[a]) * s[2 + a];
    const bool whole = step[2] == 1 && (p.out[1] == 1 || step[1] == p.out[2]) &&
                       (p.out[0] == 1 || step[0] == p.out[1] * p.out[2]);  // an image is one run
    const int64_t run = whole ? plan_.pixels : p.out[2];
    for (int64_t at = some.begin; at < some.end;) {
      const int64_t image = at / plan_.pixels, pixel = at % plan_.pixels, first = pixel % run, line = pixel / run;
      const int64_t count = min_of(run - first, some.end - at);
      const S* from = op_.in + image * s[0] + group * plan_.reduction * s[1] + first * step[2];
      if (!whole) from += line / p.out[1] * step[0] + line % p.out[1] * step[1];
      const int64_t place = at - some.begin, head = min_of(count, round_up(place, tile) - place),
                    tiles = (count - head) / tile;
      T* out = to + place / tile * tile * plan_.reduction + place % tile;
      T* const next = to + ceil_div(place, tile) * tile * plan_.reduction;
      for (int64_t r = 0; r < plan_.reduction; r++, from += s[1], out += tile) {
        copy_pixels(out, from, head, step[2]);
        const S* in = from + head * step[2];
        T* whole_tile = next + r * tile;
        for (int64_t i = 0; i < tiles; i++, in += tile * step[2], whole_tile += tile * plan_.reduction)
          copy_pixels(whole_tile, in, tile, step[2]);
        copy_pixels(whole_tile, in, count - head - tiles * tile, step[2]);
      }
      at += count;
    }
  }

  const S* weights(int64_t group, int64_t output) const {
    return op_.weight.data + group * op_.weight_group + output * op_.weight.k;
  }
  void pack_panels(int64_t group, Range some, T* to) const {
    const S* from = weights(group, piece(plan_.outputs, plan_.panels, some.begin).begin);
    for (int64_t r = 0; r < plan_.reduction; r++, from += op_.weight.c) {
      const S* row = from;
      for (int64_t panel = some.begin; panel < some.end; panel++) {
        const Range rows = piece(plan_.outputs, plan_.panels, panel);
        const int64_t count = rows.end - rows.begin;
        T* out = to + (panel - some.begin) * plan_.panel_elements() + r * count;
        __builtin_prefetch(row + 16 * op_.weight.c);
        if (op_.weight.k == 1) copy_short(out, row, count);
        else
          for (int64_t k = 0; k < count; k++) out[k] = widen(row[k * op_.weight.k]);
        row += count * op_.weight.k;
      }
    }
  }

  // Sums of one panel over a strip: rows of pixels.
  // weight: the packed panel, or without one `own` for rows of weights as they are.
  // Without either, `weight` are whole rows, copied.
  void multiply(int64_t group, int64_t panel, Range some, int64_t line, Pixels x, T* sums, const T* weight,
                T* own) const {
    const int64_t size = some.end - some.begin;
    typedef typename CountLanes<kTilePixels>::type All;
    constexpr int64_t tile = GemmPlan<T>::tile;
    const Range rows = piece(plan_.outputs, plan_.panels, panel);
    const int count = int(rows.end - rows.begin);
    const bool as_rows = !packed_ && op_.weight.c == 1;
    const int64_t *os = op_.out_stride, *rs = op_.residual_stride;
    const int64_t first_channel = group * plan_.outputs + rows.begin;
    T bias[kTilePixels] = {};
    if (op_.bias)
      for (int k = 0; k < count; k++) bias[k] = widen(op_.bias[(first_channel + k) * op_.bias_stride]);
    if (plan_.reduction == 0)
      for (int k = 0; k < count; k++) memset(sums + k * sums_row(), 0, size_t(size) * sizeof(T));
    GemmTileArgs<T> t;
    t.row = own ? plan_.row_pitch() : plan_.weight_pitch();
    t.x_step = x.step;
    t.to.before_channel = sums_row();
    t.to.residual_channel = rs[1], t.to.relu = op_.relu;
    for (int64_t r = 0; r < plan_.reduction; r += plan_.chunk) {
      t.reduction = min_of(plan_.chunk, plan_.reduction - r);
      t.weight = weight + (as_rows ? r : r * count);
      if (as_rows && own) {
        t.weight = own;
        for (int k = 0; k < count; k++) copy_short(own + k * t.row, weights(group, rows.begin + k) + r, t.reduction);
      }
      const bool last = r + t.reduction == plan_.reduction;
      int64_t image = some.begin / plan_.pixels, pixel = some.begin % plan_.pixels;
      for (int64_t i = 0; i < size; i += tile, pixel += tile) {
        for (; pixel >= plan_.pixels; pixel -= plan_.pixels) image++;
        const int64_t pixels = min_of(tile, size - i);
        const int vectors = pixels > plan_.lanes ? 2 : 1;
        const bool finished = last && whole_ && pixel + pixels <= plan_.pixels;
        t.to.before = r > 0 ? sums + i : nullptr;
        t.to.out_channel = finished ? os[1] : sums_row();
        t.to.pixels = finished ? pixels : vectors * plan_.lanes;
        if (finished)
          to_output(t.to, op_.out + image * os[0] + first_channel * os[1] + pixel,
                    op_.residual ? op_.residual + image * rs[0] + first_channel * rs[1] + pixel : nullptr, bias);
        else to_sums(t.to, sums + i);
        t.x = x.data + i * x.tile_step + r * x.step;
        t.ahead = reinterpret_cast<const char*>(t.x), t.ahead_step = 0;
        const int64_t next = some.end + i + line * plan_.lanes;
        if (line < 2 && next < plan_.total) {
          t.ahead =
              reinterpret_cast<const char*>(op_.in + next / plan_.pixels * op_.in_stride[0] +
                                            (group * plan_.reduction + r) * op_.in_stride[1] + next % plan_.pixels);
          t.ahead_step = op_.in_stride[1] * int64_t(sizeof(S));
        }
        if (vectors == 2)
          (as_rows ? pick_gemm_tile<T, 2, false>(count, All{}) : pick_gemm_tile<T, 2, true>(count, All{}))(t);
        else (as_rows ? pick_gemm_tile<T, 1, false>(count, All{}) : pick_gemm_tile<T, 1, true>(count, All{}))(t);
        if (last && whole_ && !finished)  // two images in one tile
          finish(group, rows, {some.begin + i, some.begin + i + pixels}, sums + i);
      }
    }
    if (!whole_ || plan_.reduction == 0) finish(group, rows, some, sums);
  }
  int64_t sums_row() const { return round_up(plan_.strip, GemmPlan<T>::tile); }

  // Bias, residual, activation, into the output.
  void finish(int64_t group, Range rows, Range some, const T* sums) const {
    const ck_conv& p = *plan_.conv;
    const int64_t *os = op_.out_stride, *rs = op_.residual_stride;
    const int64_t run = whole_ ? plan_.pixels : p.out[2];
    for (int64_t k = rows.begin; k < rows.end; k++, sums += sums_row()) {
      const int64_t channel = group * plan_.outputs + k;
      const T bias = op_.bias ? widen(op_.bias[channel * op_.bias_stride]) : T(0);
      for (int64_t at = some.begin; at < some.end;) {
        const int64_t image = at / plan_.pixels, pixel = at % plan_.pixels, first = pixel % run, line = pixel / run;
        const int64_t count = min_of(run - first, some.end - at), d = line / p.out[1], h = line % p.out[1];
        S* const out = op_.out + image * os[0] + channel * os[1];
        const S* const residual = op_.residual ? op_.residual + image * rs[0] + channel * rs[1] : nullptr;
        const T* const row = sums + (at - some.begin);
        at += count;
        if (spread_) {
          spread(row, {first, first + count}, d, h, bias, residual, out);
          continue;
        }
        const int64_t place = first * os[4] + (whole_ ? 0 : d * os[2] + h * os[3]);
        const int64_t other = first * rs[4] + (whole_ ? 0 : d * rs[2] + h * rs[3]);
        write_row(row, bias, residual ? residual + other : nullptr, rs[4], out + place, os[4], count, op_.relu);
      }
    }
  }

  // Some columns of row (d, h) of gy into the outputs that belong to them, a stride apart, and to the zeros between.
  void spread(const T* sums, Range some, int64_t d, int64_t h, T bias, const S* residual, S* out) const {
    constexpr int64_t L = kLanes<T>, wide = 4 * L;
    const int64_t *in = plan_.conv->in, *step = plan_.conv->stride, *os = op_.out_stride, *rs = op_.residual_stride;
    const int64_t begin = some.begin * step[2], columns = min_of(some.end * step[2], in[2]) - begin;
    for (int64_t z = d * step[0]; z < min_of((d + 1) * step[0], in[0]); z++)
      for (int64_t y = h * step[1]; y < min_of((h + 1) * step[1], in[1]); y++) {
        const int64_t count = z == d * step[0] && y == h * step[1] ? some.end - some.begin : 0;  // sums of this row
        for (int64_t c = 0; c < columns; c += wide) {
          T line[wide] = {};
          if (step[2] == 2) {
            for (int64_t i = 0; i < 2 * L && c / 2 + i < count; i += L) {
              const Vec<T> v = load_n(sums + c / 2 + i, int(min_of(L, count - c / 2 - i)));
              const Pairs<T> pair = interleave<T>(v, Vec<T>{});
              store(line + 2 * i, pair.first);
              store(line + 2 * i + L, pair.second);
            }
          } else {
            for (int64_t i = ceil_div(c, step[2]); i < count && i * step[2] < c + wide; i++)
              line[i * step[2] - c] = sums[i];
          }
          const int64_t place = z * os[2] + y * os[3] + (begin + c) * os[4];
          const S* other = residual ? residual + z * rs[2] + y * rs[3] + (begin + c) * rs[4] : nullptr;
          write_row(line, bias, other, rs[4], out + place, os[4], min_of(wide, columns - c), op_.relu);
        }
      }
  }

  const GemmPlan<T>& plan_;
  const ConvOperands<S>& op_;
  const T* const packed_;
  char* const lanes_;
  bool spread_;  // a strided gradient
  bool near_;    // X is read where it lies
  bool whole_;   // an image of the output, and of the residual, is one run of pixels (packing has neither)
};

template <class S, bool BACKWARD>
struct ConvGemm {
  typedef Wide<S> T;

  static GemmPlan<T> plan_for(const void* params, int threads) {
    GemmPlan<T> plan;
    plan.init(*static_cast<const ck_conv*>(params), BACKWARD, threads);
    return plan;
  }
  static const char* why_not(const void* params) {
    const ck_conv& p = *static_cast<const ck_conv*>(params);
    for (int a = 0; a < CK_AXES; a++) {
      // No padding on either side: outputs begin and end with the input.
      const bool inside = p.pad[a] == 0 && (p.out[a] - 1) * p.stride[a] < p.in[a];
      if (p.kernel[a] != 1 || !inside) return "needs a 1x1 kernel without padding";
      if (BACKWARD && p.in[a] > p.out[a] * p.stride[a]) return "needs all its outputs within a stride of an input";
    }
    return nullptr;
  }
  static size_t packed_size(const void* params) { return size_t(plan_for(params, 1).packed_elements()) * sizeof(T); }
  static ck_status pack(const void* params, const ck_tensor* weight, void* packed, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const GemmPlan<T> plan = plan_for(params, 1);
    ConvOperands<S> operands{};
    operands.weight = weight_source<S>(*weight, BACKWARD);
    operands.weight_group = weight_group(*plan.conv, *weight);
    return pack_all(plan, operands, static_cast<T*>(packed), exec);
  }
  static ck_status pack_all(const GemmPlan<T>& plan, const ConvOperands<S>& operands, T* to, const ck_exec* exec) {
    constexpr int64_t kTogether = 8;
    const int64_t teams = ceil_div(plan.panels, kTogether), tasks = plan.conv->groups * teams;
    const int64_t chunks = chunks_for(tasks, double(kTogether * plan.panel_elements()) * 8, exec->threads);
    return parallel(exec, chunks, [&](int chunk, int) {
      const Range range = piece(tasks, chunks, chunk);
      for (int64_t i = range.begin; i < range.end; i++) {
        const int64_t first = i % teams * kTogether;
        GemmWalk<S>::pack(plan, operands, to, i / teams, {first, min_of(first + kTogether, plan.panels)});
      }
    });
  }
  static size_t packed_part(const GemmPlan<T>& plan) {
    return plan.packs_early() ? size_t(round_up(plan.packed_elements() * int64_t(sizeof(T)), 64)) : 0;
  }
  static size_t workspace(const void* params, int threads) {
    const GemmPlan<T> plan = plan_for(params, threads);
    return packed_part(plan) + size_t(threads) * GemmWalk<S>::lane_bytes(plan);
  }
  static ck_status run(const void* params, const ck_tensor* t, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const GemmPlan<T> plan = plan_for(params, exec->threads);
    if (plan.total == 0 || plan.outputs == 0) return CK_OK;
    if (exec->workspace_size < workspace(params, exec->threads)) return CK_SMALL_WORKSPACE;
    const ConvOperands<S> operands = conv_operands<S>(*plan.conv, t, BACKWARD);
    char* at = static_cast<char*>(exec->workspace);
    const T* packed = static_cast<const T*>(exec->packed);
    if (!packed && plan.packs_early() && operands.weight.c != 1) {
      const ck_status status = pack_all(plan, operands, reinterpret_cast<T*>(at), exec);
      if (status != CK_OK) return status;
      packed = reinterpret_cast<T*>(at);
    }
    return GemmWalk<S>(plan, operands, packed, at + packed_part(plan)).run(exec);
  }
};

template <class S>
struct conv_gemm : ConvGemm<S, false> {};
template <class S>
struct conv_grad_input_gemm : ConvGemm<S, true> {};
