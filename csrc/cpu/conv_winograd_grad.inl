// Weight gradient by Winograd, F(3,4) for 3x3 and F(5,2) for 5x5:
//     gw[k, c] = A^T [sum over tiles of (G gy G^T) * (B^T x B)] A
// with the points and the input tiles of conv_winograd.inl: a tile is a square of F::outputs outputs, and its gy plays
// the part of the filter.
//
// A group of tiles is transformed, V[product][c][tile] and E[product][k][tile]; then each product is a matrix product
// over the tiles of the group: sums of all products for a block of output channels and some input channels in the
// second-level cache, one inverse transform, added to the packed gradient [tap][c][k].
//
// Small gradients are summed in several copies, and one thread does all of a copy's tiles, so that it alone writes and
// reads their V and E: shared by two cores of Zen 5, 64 channels at 56x56 took longer than on one (654 GFLOP/s on one,
// 482 on two, 1123 with copies). Large gradients have one copy, and all threads share out each group's transforms and
// products.
//
// Bound: multiply-adds, 2.25 per output and channel pair instead of 9; V streams 64 bytes per 16 cycles.
//
// Order of sums: tiles of a group, groups, copies; all follow from the shape alone, so bits do not depend on threads.
//
// Special values: a gradient that is not finite somewhere is computed again by the direct row.

constexpr int64_t kGradGroupBytes = int64_t(4) << 20;  // V and E of a group; twice that where threads share them
constexpr int64_t kGradGroupTiles = 128;               // E of a block: 590 KB for 36 products
// Fewer outputs, hence shorter sums: beyond 3 times the error of a sequential sum.
constexpr int64_t kGradOutputs3 = 100, kGradOutputs5 = 512;
constexpr int64_t kGradVectors = 4;                      // of input channels per task: its sums take 295 KB
constexpr int64_t kGradCopyElements = int64_t(1) << 20;  // of all copies together
constexpr int64_t kGradCopyTiles = 24;                   // of a copy at least: they pay for its inverse transforms

template <class T, class F>
struct WinogradGradPlan : ConvPlan<T> {
  using Base = ConvPlan<T>;
  using Base::axis, Base::batch, Base::block, Base::cols, Base::groups, Base::images, Base::in_channels, Base::k_blocks,
      Base::lanes, Base::out_channels, Base::rows, Base::strips_h, Base::strips_n, Base::strips_w, Base::units;
  static constexpr int64_t products = F::size * F::size, taps = F::taps * F::taps;

  int64_t channel_blocks, tile_rows, tile_cols;
  int64_t copies, copy_elements;
  int64_t tiles, together, group_tiles;  // of a unit; units of a group; tiles of a group
  int64_t v_pitch, e_pitch;              // elements between products
  int64_t e_block;                       // of E: elements of a block of output channels
  int64_t v_elements, e_elements, pixel_elements, sums_elements, m_pitch;

  void init(const ck_conv& p) {
    this->set_shape(p, false);
    constexpr int64_t m = F::outputs, line = 64 / int64_t(sizeof(T));
    channel_blocks = ceil_div(in_channels, lanes);
    const int64_t all_rows = ceil_div(axis[1].out, m), all_cols = ceil_div(axis[2].out, m);
    const int64_t tile_bytes = products * (channel_blocks * lanes + k_blocks * block) * int64_t(sizeof(T));
    copy_elements = groups * k_blocks * block * in_channels * taps;
    const int64_t all_tiles = batch * axis[0].out * all_rows * all_cols;
    const int64_t wanted = min_of(all_tiles / kGradCopyTiles, kGradCopyElements / max_of<int64_t>(1, copy_elements));
    for (copies = 1; 2 * copies <= min_of<int64_t>(wanted, 16);) copies *= 2;
    const int64_t bytes = copies > 1 ? kGradGroupBytes : 2 * kGradGroupBytes;
    const int64_t most = min_of(kGradGroupTiles, max_of<int64_t>(8, bytes / max_of<int64_t>(1, tile_bytes)));
    // Copies of few tiles would be uneven in large units.
    const int64_t unit = min_of(most, copies > 1 && all_tiles < 512 ? max_of<int64_t>(8, all_cols) : 32);
    this->row_phases = 1;
    strips_w = max_of<int64_t>(1, ceil_div(all_cols, unit));
    tile_cols = ceil_div(all_cols, strips_w);
    tile_rows = max_of<int64_t>(1, min_of(all_rows, unit / max_of<int64_t>(1, tile_cols)));
    strips_h = ceil_div(all_rows, tile_rows);
    tile_rows = ceil_div(all_rows, max_of<int64_t>(1, strips_h));
    images = 1;
    if (strips_h == 1 && strips_w == 1)
      images = max_of<int64_t>(1, min_of(batch, unit / max_of<int64_t>(1, tile_rows * tile_cols)));
    strips_n = ceil_div(batch, images);
    images = max_of<int64_t>(1, ceil_div(batch, max_of<int64_t>(1, strips_n)));
    rows = tile_rows * m, cols = tile_cols * m;
    units = strips_n * axis[0].out * strips_h * strips_w;  // of one group of channels
    tiles = max_of<int64_t>(1, images * tile_rows * tile_cols);
    copies = max_of<int64_t>(1, min_of(copies, units));
    together = max_of<int64_t>(1, min_of(ceil_div(units, copies), most / tiles));
    group_tiles = together * tiles;
    v_pitch = (ceil_div(channel_blocks * group_tiles * lanes, line) | 1) * line;
    e_pitch = (ceil_div(group_tiles * block, line) | 1) * line;
    e_block = products * e_pitch;
    v_elements = products * v_pitch;
    e_elements = k_blocks * e_block;
    pixel_elements = (rows + F::taps - 1) * (cols + F::taps - 1) * lanes;
    m_pitch = kGradVectors * lanes * block + line;
    sums_elements = copies * copy_elements;
  }
};

template <class T>
struct WinogradGradArgs {
  const T* v;  // [tile][lanes], first channel
  const T* e;  // [tile][NV * lanes]
  int64_t tiles;
  T* sums;  // [channel][NV * lanes]
};

// Channels that share a vector of V: 8 x 2 accumulators of AVX-512, 4 x 2 of AVX2 and NEON hide the latency.
template <class T>
constexpr int kGradChannels = kLanes<T> >= 16 ? 8
                              : kLanes<T> < 4 ? kLanes<T>
                                              : 4;

template <class T, int NV>
static void winograd_grad_tile(const WinogradGradArgs<T>& t) {
  constexpr int L = kLanes<T>, COUNT = kGradChannels<T>;
  Vec<T> acc[COUNT][NV];
#pragma GCC unroll 8
  for (int i = 0; i < COUNT; i++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) acc[i][v] = Vec<T>{};
  const T* x = t.v;
  const T* e = t.e;
  for (int64_t n = t.tiles; n > 0; n--, x += L, e += NV * L) {
    Vec<T> g[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) g[v] = load(e + v * L);
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; i++) {
      const T value = x[i];
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) acc[i][v] += value * g[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < COUNT; i++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) store(t.sums + (i * NV + v) * L, acc[i][v]);
}

template <class S, class F>
class WinogradGradWalk : ConvUnits<S> {
  using typename ConvUnits<S>::T;
  using typename ConvUnits<S>::Place;
  using ConvUnits<S>::op_;
  typedef WinogradGradPlan<T, F> Plan;
  static constexpr int L = kLanes<T>;
  static constexpr int N = F::size, M = F::outputs, R = F::taps;

 public:
  // `operands`: x as input; gy apart.
  WinogradGradWalk(const Plan& plan, const ConvOperands<S>& operands, const ck_tensor& gy, const GradientOut<S>& out,
                   char* workspace)
      : ConvUnits<S>(plan, operands), plan_(plan), gy_(gy), out_(out) {
    sums_ = reinterpret_cast<T*>(workspace);
    shared_ = sums_ + round_up(plan.sums_elements, 16);
    lanes_ = reinterpret_cast<char*>(plan.copies > 1 ? shared_ : shared_ + transformed(plan));
  }
  static size_t workspace(const Plan& plan, int threads) {
    const int64_t shared = round_up(plan.sums_elements, 16) + (plan.copies > 1 ? 0 : transformed(plan));
    return size_t(shared) * sizeof(T) + size_t(threads) * lane_bytes(plan);
  }

  // `finite`: whether the whole gradient is.
  ck_status run(const ck_exec* exec, bool* finite) {
    bad_ = 0;
    ck_status status = plan_.copies > 1 ? run_copies(exec) : run_groups(exec);
    if (status != CK_OK) return status;
    const int64_t blocks = plan_.groups * plan_.k_blocks;
    status = parallel(exec, min_of<int64_t>(blocks, 1 << 20), [&](int chunk, int) {
      const Range range = piece(blocks, min_of<int64_t>(blocks, 1 << 20), chunk);
      for (int64_t i = range.begin; i < range.end; i++) {
        const int64_t group = i / plan_.k_blocks, block = i % plan_.k_blocks, wide = plan_.vectors(block) * L;
        Vec<T> watch{};
        for (int64_t copy = 0; copy < plan_.copies; copy++) {
          const T* sums = block_sums(copy, group, block);
          for (int64_t e = 0; e < plan_.in_channels * Plan::taps * wide; e += L) watch += load(sums + e) * T(0);
        }
        for (int j = 0; j < L; j++)
          if (watch[j] != T(0)) __atomic_store_n(&bad_, 1, __ATOMIC_RELAXED);
        out_.unpack(group, block, 0, plan_.in_channels, block_sums(0, group, block), plan_.copies, plan_.copy_elements);
      }
    });
    *finite = !bad_;
    return status;
  }

 private:
  // One thread for all tiles of a copy. Where copies are fewer than threads, they share out its output channels and
  // each transforms x.
  ck_status run_copies(const ck_exec* exec) {
    const int64_t pairs = plan_.groups * plan_.copies;
    const int64_t k_parts = min_of(plan_.k_blocks, max_of<int64_t>(1, exec->threads / pairs));
    const int64_t tasks = pairs * k_parts, pieces = ceil_div(plan_.in_channels, kGradChannels<T>);
    const int64_t parts = ceil_div(plan_.channel_blocks, kGradVectors);
    const ck_status status = parallel(exec, tasks, [&](int task, int lane) {
      const int64_t copy = task / k_parts % plan_.copies, group = task / k_parts / plan_.copies;
      const Range blocks = piece(plan_.k_blocks, k_parts, task % k_parts);
      const Range units = piece(plan_.units, plan_.copies, copy);
      T* const own = products_of(lane) + Plan::products * plan_.m_pitch;
      for (int64_t first = units.begin; first < units.end && !ask_cancelled(exec, lane, &cancelled_);
           first += plan_.together) {
        const int64_t some = min_of(plan_.together, units.end - first);
        for (int64_t unit = 0; unit < some; unit++) {
          const Place p = place(group, first + unit);
          for (int64_t v = 0; v < plan_.channel_blocks; v++) transform(p, unit * plan_.tiles, v, pixels_of(lane), own);
          for (int64_t v = 2 * blocks.begin; v < 2 * blocks.end; v++)
            transform(p, unit * plan_.tiles, plan_.channel_blocks + v, pixels_of(lane), own);
        }
        for (int64_t block = blocks.begin; block < blocks.end; block++)
          for (int64_t part = 0; part < parts; part++)
            multiply(copy, group, block, piece(pieces, parts, part), some * plan_.tiles, products_of(lane), own,
                     first > units.begin);
      }
    });
    return cancelled_ ? CK_CANCELLED : status;
  }

  // One copy: all threads share out each group of tiles.
  ck_status run_groups(const ck_exec* exec) {
    for (int64_t group = 0; group < plan_.groups; group++)
      for (int64_t first = 0; first < plan_.units; first += plan_.together) {
        const int64_t some = min_of(plan_.together, plan_.units - first);
        const int64_t vectors = plan_.channel_blocks + 2 * plan_.k_blocks, transforms = some * vectors;
        ck_status status = parallel(exec, min_of<int64_t>(transforms, 1 << 20), [&](int chunk, int lane) {
          const Range range = piece(transforms, min_of<int64_t>(transforms, 1 << 20), chunk);
          for (int64_t i = range.begin; i < range.end; i++)
            transform(place(group, first + i / vectors), i / vectors * plan_.tiles, i % vectors, pixels_of(lane),
                      shared_);
        });
        if (status != CK_OK) return status;
        // Pieces of kGradChannels input channels; a task takes as many as fit its cache, fewer where tasks are few.
        const int64_t pieces = ceil_div(plan_.in_channels, kGradChannels<T>);
        int64_t parts = ceil_div(plan_.channel_blocks, kGradVectors);
        parts = max_of(parts, min_of<int64_t>(pieces, ceil_div(4 * exec->threads, plan_.k_blocks)));
        const int64_t tasks = plan_.k_blocks * parts;
        status = parallel(exec, min_of<int64_t>(tasks, 1 << 20), [&](int chunk, int lane) {
          const Range range = piece(tasks, min_of<int64_t>(tasks, 1 << 20), chunk);
          for (int64_t i = range.begin; i < range.end; i++)
            multiply(0, group, i / parts, piece(pieces, parts, i % parts), some * plan_.tiles, products_of(lane),
                     shared_, first > 0);
        });
        if (status != CK_OK) return status;
      }
    return CK_OK;
  }

  static int64_t transformed(const Plan& plan) { return plan.v_elements + plan.e_elements; }  // V, then E
  static size_t lane_bytes(const Plan& plan) {
    const int64_t elements =
        round_up(plan.pixel_elements, 16) + Plan::products * plan.m_pitch + (plan.copies > 1 ? transformed(plan) : 0);
    return size_t(round_up(elements * int64_t(sizeof(T)), 4096) + 64);
  }
  T* pixels_of(int lane) const { return reinterpret_cast<T*>(lanes_ + size_t(lane) * lane_bytes(plan_)); }
  T* products_of(int lane) const { return pixels_of(lane) + round_up(plan_.pixel_elements, 16); }
  T* block_sums(int64_t copy, int64_t group, int64_t block) const {
    const int64_t size = plan_.block * plan_.in_channels * Plan::taps;
    return sums_ + copy * plan_.copy_elements + (group * plan_.k_blocks + block) * size;
  }
  Place place(int64_t group, int64_t unit) const {
    const int64_t inner = plan_.axis[0].out * plan_.strips_h * plan_.strips_w;
    return this->place_of((unit / inner * plan_.groups + group) * inner + unit % inner);
  }

  // One vector of channels of a unit: of x into V, or of gy into E; zeros for the tiles that a last unit lacks.
  void transform(const Place& p, int64_t first_tile, int64_t vector, T* pixels, T* transformed) const {
    const bool input = vector < plan_.channel_blocks;
    if (!input) vector -= plan_.channel_blocks;
    const int64_t tile_rows = ceil_div(p.rows, M), tile_cols = ceil_div(p.cols, M);
    const int64_t k_block = vector / 2, wide = plan_.vectors(k_block) * L;
    if (!input && vector % 2 * L >= wide) return;
    T* to = input ? transformed + (vector * plan_.group_tiles + first_tile) * L
                  : transformed + plan_.v_elements + k_block * plan_.e_block + first_tile * wide + vector % 2 * L;
    const int64_t step = input ? L : wide, product = input ? plan_.v_pitch : plan_.e_pitch;
    const int64_t channels = input ? plan_.in_channels : plan_.out_channels;
    const int64_t size[CK_AXES] = {plan_.axis[0].in, input ? plan_.axis[1].in : plan_.axis[1].out,
                                   input ? plan_.axis[2].in : plan_.axis[2].out};
    PixelSource<S> from;
    from.stride = input ? op_.in_stride : gy_.stride;
    from.data = (input ? op_.in : static_cast<const S*>(gy_.data)) + (p.group * channels + vector * L) * from.stride[1];
    from.size = size, from.channels = min_of<int64_t>(L, channels - vector * L);
    Window height, width;
    height.init(plan_.axis[1].taps(0), 1), width.init(plan_.axis[2].taps(0), 1);
    from.first_column = p.first_col + (input ? width.low : 0), from.column_step = 1;
    from.columns = tile_cols * M + (input ? R - 1 : 0);
    const int64_t rows = tile_rows * M + (input ? R - 1 : 0), first_row = p.first_row + (input ? height.low : 0);
    int64_t done = 0;
    for (int64_t n = 0; n < p.images; n++) {
      pack_patch(pixels, from, p.first_image + n, p.depth, first_row, rows);
      for (int64_t y = 0; y < tile_rows; y++)
        for (int64_t x = 0; x < tile_cols; x++, to += step, done++) {
          const T* tile = pixels + (y * from.columns + x) * M * L;
          if (input) transform_tile<T, F>(tile, from.columns * L, to, product);
          else gradient_tile(tile, from.columns * L, to, product);
        }
    }
    for (; done < plan_.tiles; done++, to += step)
      for (int64_t i = 0; i < Plan::products; i++) store(to + i * product, Vec<T>{});
  }
  // G e G^T of one tile of gy.
  static void gradient_tile(const T* pixels, int64_t row, T* e, int64_t product) {
    Vec<T> half[M][N];
#pragma GCC unroll 4
    for (int i = 0; i < M; i++) {
      Vec<T> d[M];
#pragma GCC unroll 4
      for (int j = 0; j < M; j++) d[j] = load(pixels + i * row + j * L);
      F::gradient(d, half[i]);
    }
#pragma GCC unroll 6
    for (int j = 0; j < N; j++) {
      Vec<T> d[M], out[N];
#pragma GCC unroll 4
      for (int i = 0; i < M; i++) d[i] = half[i][j];
      F::gradient(d, out);
#pragma GCC unroll 6
      for (int i = 0; i < N; i++) store(e + (i * N + j) * product, out[i]);
    }
  }

  // All products of a block of output channels and some pieces of input channels; the inverse; into the packed
  // gradient.
  void multiply(int64_t copy, int64_t group, int64_t block, Range pieces, int64_t tiles, T* m, const T* transformed,
                bool add) const {
    constexpr int64_t step = kGradChannels<T>;
    const int64_t wide = plan_.vectors(block) * L, first = pieces.begin * step;
    const int64_t channels = min_of(pieces.end * step, plan_.in_channels) - first;
    WinogradGradArgs<T> t;
    t.tiles = tiles;
    for (int64_t i = 0; i < Plan::products; i++)
      for (int64_t c = 0; c < channels; c += step) {
        t.v = transformed + i * plan_.v_pitch + (first + c) / L * plan_.group_tiles * L + (first + c) % L;
        t.e = transformed + plan_.v_elements + block * plan_.e_block + i * plan_.e_pitch;
        t.sums = m + i * plan_.m_pitch + c * wide;
        if (wide == L) winograd_grad_tile<T, 1>(t);
        else winograd_grad_tile<T, 2>(t);
      }
    T* sums = block_sums(copy, group, block) + first * wide;
    for (int64_t c = 0; c < channels; c++)
      for (int64_t v = 0; v < wide; v += L)
        taps_of(m + c * wide + v, sums + c * wide + v, plan_.in_channels * wide, add);
  }
  // A^T m A of one input channel and vector of output channels; taps `tap` elements apart.
  void taps_of(const T* m, T* to, int64_t tap, bool add) const {
    Vec<T> half[N][R];
#pragma GCC unroll 6
    for (int i = 0; i < N; i++) {
      Vec<T> d[N];
#pragma GCC unroll 6
      for (int j = 0; j < N; j++) d[j] = load(m + (i * N + j) * plan_.m_pitch);
      F::gradient_taps(d, half[i]);
    }
#pragma GCC unroll 5
    for (int j = 0; j < R; j++) {
      Vec<T> d[N], y[R];
#pragma GCC unroll 6
      for (int i = 0; i < N; i++) d[i] = half[i][j];
      F::gradient_taps(d, y);
#pragma GCC unroll 5
      for (int i = 0; i < R; i++) {
        T* at = to + (i * R + j) * tap;
        store(at, add ? load(at) + y[i] : y[i]);
      }
    }
  }

  const Plan& plan_;
  const ck_tensor& gy_;
  const GradientOut<S>& out_;
  T *sums_, *shared_;  // packed gradients; V and E of all threads
  char* lanes_;
  int bad_ = 0, cancelled_ = 0;
};

template <class S, class F>
struct GradWeightWinograd {
  typedef WinogradGradPlan<Wide<S>, F> Plan;
  typedef WinogradGradWalk<S, F> Walk;

  static Plan plan_for(const void* params) {
    Plan plan;
    plan.init(*static_cast<const ck_conv*>(params));
    return plan;
  }
  static const char* why_not(const void* params) {
    if (!ConvWinograd<S, F, false>::fits(*static_cast<const ck_conv*>(params)))
      return "needs a 3x3 or 5x5 kernel with stride 1 and dilation 1";
    const ck_conv& p = *static_cast<const ck_conv*>(params);
    if (p.batch * p.out[0] * p.out[1] * p.out[2] < (F::taps == 3 ? kGradOutputs3 : kGradOutputs5))
      return F::taps == 3 ? "needs at least 100 outputs per channel for its error"
                          : "needs at least 512 outputs per channel for its error";
    return conv_grad_weight_direct<S>::why_not(params);
  }
  static size_t workspace(const void* params, int threads) {
    return max_of(Walk::workspace(plan_for(params), threads), conv_grad_weight_direct<S>::workspace(params, threads));
  }
  static ck_status run(const void* params, const ck_tensor* t, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const ck_conv& p = *static_cast<const ck_conv*>(params);
    const Plan plan = plan_for(params);
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
    return status != CK_OK || finite ? status : conv_grad_weight_direct<S>::run(params, t, exec);
  }
};

template <class S>
struct conv_grad_weight_winograd
    : WinogradBySize<GradWeightWinograd<S, WinogradF43<Wide<S>>>, GradWeightWinograd<S, WinogradF25<Wide<S>>>> {};
