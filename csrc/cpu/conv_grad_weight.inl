// Weight gradient, direct: gw[k, c, tap] = sum over images and outputs of gy[n, k, p] * x[n, c, p * stride + tap].
//
// A task takes some strips of outputs. Per strip it transposes gy to [block of 2 * lanes channels][pixel][channel] and
// x to [row][column][channel], both in the second-level cache. Then neighbouring taps of a row and their channels are
// one contiguous run, whatever the number of channels, and the register tile holds up to 14 elements of the run times a
// block of output channels, summed over the strip's pixels. Strips are added to a packed gradient in their order.
//
// Bound: multiply-adds, as forward. Deterministic: strips and the number of private gradient copies follow from the
// shape and the ISA alone (as many copies as kCopyElements hold, a power of two; large gradients have one); copies are
// added in index order. Threads share out copies and, where those are few, blocks of output channels.
//
// Stored zeros of the padding times a non-finite gy would be NaN: such a call is computed tap by tap (safe_rows).
//
// Measured as in conv_direct.inl, one image: 3x3 333-454 GFLOP/s, 1x1 295-412, first layers 219-328.

constexpr int64_t kGradPixels = 196;  // outputs per strip: gy of one block stays in the first-level cache
constexpr int64_t kCopyElements = int64_t(1) << 18;
constexpr int64_t kMostCopies = 16;
constexpr int64_t kGradStripBytes = 256 * 1024;  // of x

template <class T>
struct GradTileArgs {
  const T* x;   // first element of the run at the first pixel
  const T* gy;  // [pixel][NV * lanes]
  int64_t rows, columns;
  int64_t x_row, x_pixel;  // elements between rows and between pixels of x
  T* sums;                 // [element][NV * lanes]
  bool add;
};

// COUNT elements of the run times NV vectors of output channels, summed over the strip.
template <class T, int COUNT, int NV>
static void grad_tile(const GradTileArgs<T>& t) {
  constexpr int L = kLanes<T>;
  Vec<T> acc[COUNT][NV];
#pragma GCC unroll 16
  for (int i = 0; i < COUNT; i++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) acc[i][v] = Vec<T>{};
  const T* gy = t.gy;
  const int64_t pixel = t.x_pixel;
  for (int64_t row = 0; row < t.rows; row++) {
    const T* x = t.x + row * t.x_row;
    for (int64_t n = t.columns; n > 0; n--) {
      Vec<T> g[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) g[v] = load(gy + v * L);
#pragma GCC unroll 16
      for (int i = 0; i < COUNT; i++) {
        const T value = x[i];
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) acc[i][v] += value * g[v];
      }
      x += pixel;
      gy += NV * L;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < COUNT; i++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) {
      T* s = t.sums + (i * NV + v) * L;
      store(s, t.add ? load(s) + acc[i][v] : acc[i][v]);
    }
}
template <class T>
using GradTileFn = void (*)(const GradTileArgs<T>&);
template <class T, int NV, int... I>
static GradTileFn<T> pick_grad_tile(int count, Lanes<I...>) {
  static constexpr GradTileFn<T> table[] = {grad_tile<T, I + 1, NV>...};
  return table[count - 1];
}

// A power of two, which the usual numbers of threads share out evenly. From the gradient's own size, not that of whole
// blocks: equal bits on all instruction sets need equal copies.
static inline int64_t copies_of(int64_t strips, int64_t elements) {
  int64_t copies = 1;
  while (2 * copies <= min_of(strips, min_of(kMostCopies, kCopyElements / max_of<int64_t>(1, elements)))) copies *= 2;
  return min_of(copies, strips);
}

template <class T>
struct GradWeightPlan {
  static constexpr int64_t lanes = kLanes<T>, block = 2 * lanes;

  const ck_conv* conv;
  int64_t in_channels, out_channels;  // per group
  int64_t k_blocks, k_parts;
  int64_t chunk, chunks;       // input channels of a strip
  int64_t images, rows, cols;  // outputs of a strip
  int64_t strips_n, strips_h, strips_w, strips;
  int64_t copies;
  int64_t taps, copy_elements;
  int64_t x_elements, gy_elements;
  Window window[CK_AXES];
  AxisTaps tap[CK_AXES];

  void init(const ck_conv& p, int threads) {
    conv = &p;
    in_channels = p.in_channels / p.groups, out_channels = p.out_channels / p.groups;
    k_blocks = ceil_div(out_channels, block);
    taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
    for (int a = 0; a < CK_AXES; a++) {
      ConvAxis axis;
      axis.init(p.in[a], p.out[a], p, a, false);
      tap[a] = axis.taps(0);
      window[a].init(tap[a], p.stride[a]);
    }
    strips_w = max_of<int64_t>(1, ceil_div(p.out[2], kGradPixels + kGradPixels / 4));
    cols = ceil_div(p.out[2], strips_w);
    rows = max_of<int64_t>(1, min_of(p.out[1], kGradPixels / max_of<int64_t>(1, cols)));
    rows = ceil_div(p.out[1], max_of<int64_t>(1, ceil_div(p.out[1], rows)));
    images = 1;
    if (rows == p.out[1] && strips_w == 1)
      images = max_of<int64_t>(1, min_of(p.batch, kGradPixels / max_of<int64_t>(1, rows * cols)));
    chunk = in_channels;
    while (chunk > 16 && times(strip_elements(chunk), int64_t(sizeof(T))) > kGradStripBytes) chunk = ceil_div(chunk, 2);
    chunks = ceil_div(in_channels, max_of<int64_t>(1, chunk));
    strips_n = ceil_div(p.batch, images);
    strips_h = ceil_div(p.out[1], max_of<int64_t>(1, rows));
    strips = strips_n * p.out[0] * strips_h * strips_w;
    copy_elements = p.groups * k_blocks * block * in_channels * taps;
    const int64_t elements = p.out_channels * in_channels * taps;
    copies = copies_of(strips, elements);
    share(threads);
    x_elements = round_up(strip_elements(chunk), lanes);
    gy_elements = ceil_div(k_blocks, k_parts) * images * rows * cols * block;
  }
  // One strip in all: a block's sums are final at once, and go from the lane's cache to where they belong.
  bool unpacks_early() const { return strips == 1; }
  int64_t early_elements() const { return unpacks_early() ? block * chunk * taps : 0; }
  int64_t strip_columns() const { return window[2].extent(cols, conv->stride[2]); }
  int64_t strip_rows() const { return window[1].extent(rows, conv->stride[1]); }
  int64_t strip_elements(int64_t channels) const {
    return times(times(images * tap[0].count, strip_rows()), times(strip_columns(), pixel_pitch(channels)));
  }
  // Elements between neighbouring pixels of x in a strip. Few channels stand close, so that the taps of a row are one
  // run; many stand an odd number of cache lines apart, or neighbouring pixels would fall on a few sets of the cache.
  static int64_t pixel_pitch(int64_t channels) {
    constexpr int64_t line = 64 / int64_t(sizeof(T));
    return channels < 2 * line ? channels : (ceil_div(channels, line) | 1) * line;
  }

  struct Place {
    int64_t first_image, images, depth, first_row, rows, first_col, cols;
  };
  Place place_of(int64_t strip) const {
    Place s;
    s.first_col = strip % strips_w * cols;
    strip /= strips_w;
    s.first_row = strip % strips_h * rows;
    strip /= strips_h;
    s.depth = strip % conv->out[0];
    s.first_image = strip / conv->out[0] * images;
    s.images = min_of(images, conv->batch - s.first_image);
    s.rows = min_of(rows, conv->out[1] - s.first_row);
    s.cols = min_of(cols, conv->out[2] - s.first_col);
    return s;
  }

 private:
  // Split output channels only as far as the copies do not keep all threads busy: each part packs x again.
  void share(int threads) {
    k_parts = 1;
    if (threads <= 1) return;
    const int64_t tasks = copies * conv->groups;
    double best = 0;
    for (int64_t parts = 1; parts <= min_of<int64_t>(k_blocks, 4 * threads); parts++) {
      double part = double(tasks * parts) / double(round_up(tasks * parts, threads));
      part *= double(k_blocks) / double(parts * ceil_div(k_blocks, parts));
      if (part > best + 0.08) best = part, k_parts = parts;
    }
  }
};

template <class S>
class GradWeightWalk {
  typedef Wide<S> T;
  using Place = typename GradWeightPlan<T>::Place;

 public:
  GradWeightWalk(const GradWeightPlan<T>& plan, const ck_tensor* t, char* workspace)
      : plan_(plan),
        gy_(static_cast<const S*>(t[0].data)),
        x_(static_cast<const S*>(t[1].data)),
        out_(*plan.conv, t[2]),
        gy_stride_(t[0].stride),
        x_stride_(t[1].stride),
        sums_(reinterpret_cast<T*>(workspace)),
        lanes_(workspace + copies_bytes(plan)) {}

  static size_t copies_bytes(const GradWeightPlan<T>& plan) {
    return plan.unpacks_early() ? 0 : size_t(round_up(plan.copies * plan.copy_elements * int64_t(sizeof(T)), 64));
  }
  static size_t lane_bytes(const GradWeightPlan<T>& plan) {
    const int64_t elements = plan.x_elements + plan.gy_elements + plan.early_elements();
    return size_t(round_up(elements * int64_t(sizeof(T)), 4096) + 64);
  }

  ck_status run(const ck_exec* exec) {
    const GradWeightPlan<T>& plan = plan_;
    const int64_t parts = plan.conv->groups * plan.k_parts, tasks = plan.copies * parts;
    int64_t bad = 0;
    ck_status status = parallel(exec, tasks, [&](int task, int lane) {
      const int64_t part = task % parts;
      const Range blocks = piece(plan.k_blocks, plan.k_parts, part % plan.k_parts);
      if (!sum_strips(task / parts, part / plan.k_parts, blocks, lane, exec))
        __atomic_store_n(&bad, 1, __ATOMIC_RELAXED);
    });
    if (status != CK_OK || cancelled_) return CK_CANCELLED;
    const int64_t blocks = plan.conv->groups * plan.k_blocks;
    if (bad && reaches_padding(*plan.conv)) {
      const int64_t all = plan.conv->out_channels;
      return parallel(exec, min_of<int64_t>(all, 1 << 20), [&](int chunk, int) {
        const Range range = piece(all, min_of<int64_t>(all, 1 << 20), chunk);
        for (int64_t k = range.begin; k < range.end; k++) safe_rows(k);
      });
    }
    if (plan.unpacks_early()) return CK_OK;
    const double ops = double(plan.copy_elements / max_of<int64_t>(1, blocks) * (plan.copies + 1));
    const int64_t chunks = chunks_for(blocks, ops * 4, exec->threads);
    return parallel(exec, chunks, [&](int chunk, int) {
      const Range range = piece(blocks, chunks, chunk);
      for (int64_t i = range.begin; i < range.end; i++) {
        const int64_t group = i / plan.k_blocks, block = i % plan.k_blocks;
        for (int64_t c0 = 0; c0 < plan.in_channels; c0 += plan.chunk)
          out_.unpack(group, block, c0, min_of(plan.chunk, plan.in_channels - c0), chunk_sums(0, group, block, c0),
                      plan.copies, plan.copy_elements);
      }
    });
  }

  // No outputs: the gradient is zero.
  void zero() {
    for (int64_t k = 0; k < plan_.conv->out_channels; k++)
      for (int64_t c = 0; c < plan_.in_channels; c++)
        for (int64_t tap = 0; tap < plan_.taps; tap++) put(out_.place(k, c, tap), T(0));
  }

 private:
  int vectors(int64_t block) const { return plan_.out_channels - block * plan_.block > plan_.lanes ? 2 : 1; }
  T* block_sums(int64_t copy, int64_t group, int64_t block) const {
    const int64_t size = plan_.block * plan_.in_channels * plan_.taps;
    return sums_ + copy * plan_.copy_elements + (group * plan_.k_blocks + block) * size;
  }
  // Sums of a chunk of channels: [tap][channel][lanes or 2 * lanes output channels].
  T* chunk_sums(int64_t copy, int64_t group, int64_t block, int64_t c0) const {
    return block_sums(copy, group, block) + c0 * plan_.taps * vectors(block) * plan_.lanes;
  }
  // All strips of one copy, for one group and some blocks of its output channels. False: some gy was not finite.
  bool sum_strips(int64_t copy, int64_t group, Range blocks, int lane, const ck_exec* exec) {
    const GradWeightPlan<T>& plan = plan_;
    T* x = reinterpret_cast<T*>(lanes_ + size_t(lane) * lane_bytes(plan));
    T* gy = x + plan.x_elements;
    const Range strips = piece(plan.strips, plan.copies, copy);
    bool finite = true;
    for (int64_t chunk = 0; chunk < plan.chunks; chunk++) {
      const int64_t c0 = chunk * plan.chunk, channels = min_of(plan.chunk, plan.in_channels - c0);
      for (int64_t strip = strips.begin; strip < strips.end && !ask_cancelled(exec, lane, &cancelled_); strip++) {
        const Place p = plan.place_of(strip);
        pack_x(p, group * plan.in_channels + c0, channels, x);
        finite &= pack_gy(p, group * plan.out_channels, blocks, gy);
        const T* g = gy;
        for (int64_t block = blocks.begin; block < blocks.end; block++) {
          const int64_t wide = vectors(block) * plan.lanes;
          T* sums = plan.unpacks_early() ? gy + plan.gy_elements : chunk_sums(copy, group, block, c0);
          sum_block(p, channels, x, g, vectors(block), sums, strip > strips.begin);
          if (plan.unpacks_early()) out_.unpack(group, block, c0, channels, sums, 1, 0);
          g += p.images * p.rows * p.cols * wide;
        }
      }
    }
    return finite;
  }

  // x of a strip: [image][depth tap][row][column][channel].
  void pack_x(const Place& s, int64_t c0, int64_t channels, T* to) const {
    const ck_conv& p = *plan_.conv;
    PixelSource<S> from;
    from.data = x_ + c0 * x_stride_[1];
    from.stride = x_stride_, from.size = p.in, from.channels = channels;
    from.first_column = s.first_col * p.stride[2] + plan_.window[2].low;
    from.column_step = plan_.window[2].step, from.columns = plan_.window[2].extent(s.cols, p.stride[2]);
    const int64_t rows = plan_.window[1].extent(s.rows, p.stride[1]);
    for (int64_t n = 0; n < s.images; n++)
      for (int64_t z = 0; z < plan_.tap[0].count; z++)
        for (int64_t y = 0; y < rows; y++, to += from.columns * plan_.pixel_pitch(channels)) {
          const int64_t id = s.depth * p.stride[0] + plan_.tap[0].offset + z * plan_.tap[0].advance;
          const int64_t ih = s.first_row * p.stride[1] + plan_.window[1].low + y * plan_.window[1].step;
          const bool inside = id >= 0 && id < p.in[0] && ih >= 0 && ih < p.in[1] && p.in[2] > 0;
          const S* row = from.data + (s.first_image + n) * x_stride_[0] + id * x_stride_[2] + ih * x_stride_[3];
          pack_pixels(to, plan_.pixel_pitch(channels), inside ? row : nullptr, from);
        }
  }

  // gy of a strip: [block][image][row][column][channel].
  bool pack_gy(const Place& s, int64_t k0, Range blocks, T* to) const {
    const ck_conv& p = *plan_.conv;
    bool finite = true;
    for (int64_t block = blocks.begin; block < blocks.end; block++) {
      const int64_t k = block * plan_.block, wide = vectors(block) * plan_.lanes;
      PixelSource<S> from;
      from.data = gy_ + (k0 + k) * gy_stride_[1];
      from.stride = gy_stride_, from.size = p.out, from.channels = min_of(wide, plan_.out_channels - k);
      from.first_column = s.first_col, from.column_step = 1, from.columns = s.cols;
      for (int64_t n = 0; n < s.images; n++)
        for (int64_t y = 0; y < s.rows; y++, to += s.cols * wide) {
          if (from.channels < wide) memset(to, 0, size_t(s.cols * wide) * sizeof(T));
          const S* row = from.data + (s.first_image + n) * gy_stride_[0] + s.depth * gy_stride_[2] +
                         (s.first_row + y) * gy_stride_[3];
          finite &= pack_pixels(to, wide, row, from);
        }
    }
    return finite;
  }

  // One block of output channels: every tap and channel of the strip's chunk. sums: [tap][channel][wide], the taps of a
  // row being one run where they are neighbours in the strip.
  void sum_block(const Place& s, int64_t channels, const T* x, const T* gy, int vectors, T* sums, bool add) const {
    typedef typename CountLanes<kTilePixels>::type All;
    const ck_conv& p = *plan_.conv;
    const Window& wide = plan_.window[2];
    const Window& high = plan_.window[1];
    const int64_t columns = wide.extent(s.cols, p.stride[2]), rows = high.extent(s.rows, p.stride[1]);
    const int64_t pixel = plan_.pixel_pitch(channels), row_pitch = columns * pixel;
    const int64_t tap_w = plan_.tap[2].count > 1 ? p.dilation[2] / wide.step : 1;
    const int64_t tap_h = plan_.tap[1].count > 1 ? p.dilation[1] / high.step : 1;
    const bool joined = tap_w == 1 && pixel == channels;
    const int64_t runs = joined ? 1 : p.kernel[2], length = joined ? p.kernel[2] * channels : channels;
    GradTileArgs<T> t;
    t.columns = s.cols;
    t.x_row = p.stride[1] / high.step * row_pitch;
    t.x_pixel = p.stride[2] / wide.step * pixel;
    t.rows = s.rows;
    const int64_t tiles = ceil_div(length, kTilePixels);
    for (int64_t z = 0; z < p.kernel[0]; z++)
      for (int64_t r = 0; r < p.kernel[1]; r++)
        for (int64_t run = 0; run < runs; run++)
          for (int64_t i = 0; i < tiles; i++) {
            const Range range = piece(length, tiles, i);
            const int count = int(range.end - range.begin);
            const int64_t tap = (z * p.kernel[1] + r) * p.kernel[2] + run;
            t.sums = sums + (tap * channels + range.begin) * vectors * plan_.lanes;
            t.add = add;
            t.gy = gy;
            for (int64_t n = 0; n < s.images; n++) {
              const int64_t plane = (n * plan_.tap[0].count + z) * rows;
              t.x = x + (plane + r * tap_h) * row_pitch + run * tap_w * pixel + range.begin;
              (vectors == 1 ? pick_grad_tile<T, 1>(count, All{}) : pick_grad_tile<T, 2>(count, All{}))(t);
              t.gy += s.rows * s.cols * vectors * plan_.lanes;
              t.add = true;
            }
          }
  }

  // One output channel, tap by tap, padding left out.
  void safe_rows(int64_t k) const {
    const ck_conv& p = *plan_.conv;
    const int64_t first = k / plan_.out_channels * plan_.in_channels;
    for (int64_t c = 0; c < plan_.in_channels; c++)
      for (int64_t tap = 0; tap < plan_.taps; tap++) {
        const int64_t j[CK_AXES] = {tap / p.kernel[2] / p.kernel[1], tap / p.kernel[2] % p.kernel[1],
                                    tap % p.kernel[2]};
        T sum = T(0);
        for (int64_t n = 0; n < p.batch; n++)
          for (int64_t z = 0; z < p.out[0]; z++)
            for (int64_t y = 0; y < p.out[1]; y++)
              for (int64_t w = 0; w < p.out[2]; w++) {
                const int64_t o[CK_AXES] = {z, y, w};
                int64_t at = n * x_stride_[0] + (first + c) * x_stride_[1];
                int64_t from = n * gy_stride_[0] + k * gy_stride_[1];
                bool inside = true;
                for (int a = 0; a < CK_AXES; a++) {
                  const int64_t i = o[a] * p.stride[a] - p.pad[a] + j[a] * p.dilation[a];
                  inside = inside && i >= 0 && i < p.in[a];
                  at += i * x_stride_[2 + a], from += o[a] * gy_stride_[2 + a];
                }
                if (inside) sum += widen(gy_[from]) * widen(x_[at]);
              }
        put(out_.place(k, c, tap), sum);
      }
  }

  const GradWeightPlan<T>& plan_;
  const S *const gy_, *const x_;
  const GradientOut<S> out_;
  const int64_t *const gy_stride_, *const x_stride_;
  T* const sums_;
  char* const lanes_;
  int cancelled_ = 0;
};

template <class S>
struct conv_grad_weight_direct {
  typedef Wide<S> T;

  static GradWeightPlan<T> plan_for(const void* params, int threads) {
    GradWeightPlan<T> plan;
    plan.init(*static_cast<const ck_conv*>(params), threads);
    return plan;
  }
  static const char* why_not(const void* params) {
    const GradWeightPlan<T> plan = plan_for(params, 1);
    return times(plan.x_elements, int64_t(sizeof(T))) > kMostStripBytes
               ? "needs taps near each other: a strip of the input would take more than 256 MB"
               : nullptr;
  }
  static size_t workspace(const void* params, int threads) {
    const GradWeightPlan<T> plan = plan_for(params, threads);
    return GradWeightWalk<S>::copies_bytes(plan) + size_t(threads) * GradWeightWalk<S>::lane_bytes(plan);
  }
  static ck_status run(const void* params, const ck_tensor* t, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const GradWeightPlan<T> plan = plan_for(params, exec->threads);
    if (plan.out_channels == 0 || plan.in_channels == 0) return CK_OK;
    if (exec->workspace_size <
        GradWeightWalk<S>::copies_bytes(plan) + size_t(exec->threads) * GradWeightWalk<S>::lane_bytes(plan))
      return CK_SMALL_WORKSPACE;
    GradWeightWalk<S> walk(plan, t, static_cast<char*>(exec->workspace));
    if (plan.strips == 0) {
      walk.zero();
      return CK_OK;
    }
    return walk.run(exec);
  }
};
