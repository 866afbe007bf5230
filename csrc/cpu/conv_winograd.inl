// Convolution and input gradient by Winograd's minimal filtering, F(4,3), F(2,5) and F(2,3) in two dimensions.
//
// A unit is a rectangle of output tiles (F::outputs squared) of some images. Its input is copied pixel by pixel with
// channels in lanes and zeros around it, and transformed into V[product][channel][tile]. For a block of 2 * lanes
// output channels, each of the F::size^2 products is a small matrix product M[tile][k] += V[tile][c] * U[c][k] with the
// register tile of the direct convolution; M is transformed back into the unit's outputs, which are written as there.
//
// Two walks, chosen by the shape. Few weights: a task is a unit with its V in the second-level cache, and all U were
// transformed before. Many weights, or few units: all threads fill a shared V for a group of units, then share out the
// blocks of output channels; a block's U is made in the second-level cache, chunk by chunk, and used at once, so that 4
// times the weights never go through memory (512 x 512: 38 MB).
//
// Bound: multiply-adds, 36 / 16 = 2.25 per output and channel pair instead of 9 for F(4,3), plus the transforms: 144
// vector operations per tile and vector of input channels, 90 per tile and vector of output channels.
//
// Order of sums: channels in chunks of kWinogradChunk; per tile, so bits depend on neither threads nor batch.
//
// Special values: an infinity, a NaN or an overflow in a tile reaches all its outputs as NaN. Every output is watched
// (watch += y * 0), and an image with such an output is computed again by the direct convolution.

template <class S, class F>
class WinogradWalk : ConvUnits<S> {
  using typename ConvUnits<S>::T;
  using typename ConvUnits<S>::Place;
  using ConvUnits<S>::op_;
  typedef WinogradPlan<T, F> Plan;
  static constexpr int L = kLanes<T>;
  static constexpr int N = F::size, M = F::outputs, R = F::taps;

 public:
  // `packed`: transformed weights, or weights as the direct convolution packs them where V is shared; null there: none.
  WinogradWalk(const Plan& plan, const ConvOperands<S>& operands, void* packed, char* workspace)
      : ConvUnits<S>(plan, operands),
        plan_(plan),
        packed_(packed),
        bad_(workspace),
        v_(reinterpret_cast<T*>(workspace + flag_bytes(plan))),
        lanes_(workspace + flag_bytes(plan) + shared_bytes(plan)) {}

  static size_t flag_bytes(const Plan& plan) { return size_t(round_up(plan.batch, 64)); }
  static size_t workspace(const Plan& plan, int threads) {
    return flag_bytes(plan) + shared_bytes(plan) + size_t(threads) * lane_bytes(plan);
  }

  // Sets flag [image] at the begin of the workspace where some output was not finite.
  ck_status run(const ck_exec* exec) {
    memset(bad_, 0, size_t(plan_.batch));
    if (plan_.shared) return run_shared(exec);
    const int64_t chunks = serial() ? 1 : min_of<int64_t>(plan_.units, 1 << 20);
    return parallel(exec, chunks, [&](int chunk, int lane) {
      const Range range = piece(plan_.units, chunks, chunk);
      for (int64_t unit = range.begin; unit < range.end; unit++) {
        const Place p = this->place_of(unit);
        const Lane l = lane_at(lane);
        for (int64_t c = 0; c < plan_.channel_blocks; c++) transform_input(p, c, l.v, l.pixels);
        for (int64_t block = 0; block < plan_.k_blocks; block++) {
          const T* u = static_cast<const T*>(packed_) + (p.group * plan_.k_blocks + block) * plan_.u_elements;
          for (int64_t c = 0; c < plan_.in_channels; c += plan_.chunk) {
            multiply(l.v, p, block, c, u, l.m);
            u += Plan::products * u_pitch(block, c);
          }
          finish(p, block, l);
        }
      }
    });
  }

  // U of every block, in parallel.
  static ck_status transform_all(const Plan& plan, const ConvOperands<S>& operands, T* u, const ck_exec* exec) {
    WinogradWalk walk(plan, operands, nullptr, nullptr);
    const int64_t blocks = plan.groups * plan.k_blocks;
    const int64_t chunks = chunks_for(blocks, double(plan.u_elements) * 4, exec->threads);
    return parallel(exec, chunks, [&](int chunk, int) {
      const Range range = piece(blocks, chunks, chunk);
      for (int64_t i = range.begin; i < range.end; i++) {
        const int64_t block = i % plan.k_blocks;
        T* to = u + i * plan.u_elements;
        for (int64_t c = 0; c < plan.in_channels; c += plan.chunk) {
          walk.make_weights(i / plan.k_blocks, block, c, to);
          to += Plan::products * walk.u_pitch(block, c);
        }
      }
    });
  }

 private:
  struct Lane {
    T *pixels, *m, *sums, *u, *v;
  };
  static int64_t aligned(int64_t elements) { return round_up(elements * int64_t(sizeof(T)), 64); }
  static size_t shared_bytes(const Plan& plan) {
    return plan.shared ? size_t(aligned(times(plan.together, plan.v_elements))) : 0;
  }
  static int64_t late_elements(const Plan& plan) {
    return plan.shared ? plan.products * (min_of(plan.chunk, plan.in_channels) + 1) * plan.block : 0;
  }
  static size_t lane_bytes(const Plan& plan) {
    const int64_t bytes = aligned(plan.pixel_elements) + aligned(plan.together * plan.m_elements) +
                          aligned(plan.sums_elements) + aligned(late_elements(plan)) +
                          (plan.shared ? 0 : aligned(plan.v_elements));
    return size_t(round_up(bytes, 4096) + 64);  // 64: lanes do not start at the same offset of a page
  }
  Lane lane_at(int lane) const {
    char* at = lanes_ + size_t(lane) * lane_bytes(plan_);
    const auto take = [&at](int64_t elements) {
      T* here = reinterpret_cast<T*>(at);
      at += aligned(elements);
      return here;
    };
    Lane l;
    l.pixels = take(plan_.pixel_elements);
    l.m = take(plan_.together * plan_.m_elements);
    l.sums = take(plan_.sums_elements);
    l.u = take(late_elements(plan_));
    l.v = plan_.shared ? nullptr : take(plan_.v_elements);
    return l;
  }
  bool serial() const {
    return double(plan_.batch * plan_.axis[1].out * plan_.axis[2].out) * double(plan_.out_channels) *
               double(plan_.in_channels) * double(plan_.groups * R * R) <
           double(kSerialOps);
  }
  // Elements between products in the U of the chunk that begins at channel c. One channel more than there are: at
  // powers of two all products would fall on one set of the cache (512 channels at 7x7, one image: 131 -> 324 GFLOP/s).
  int64_t u_pitch(int64_t block, int64_t c) const {
    return (min_of(plan_.chunk, plan_.in_channels - c) + 1) * plan_.vectors(block) * L;
  }

  // Units of one group of channels (`groups` of the convolution), a group of units at a time.
  ck_status run_shared(const ck_exec* exec) {
    const int64_t inner = plan_.axis[0].out * plan_.strips_h * plan_.strips_w, units = plan_.strips_n * inner;
    for (int64_t group = 0; group < plan_.groups; group++)
      for (int64_t first = 0; first < units; first += plan_.together) {
        const int64_t some = min_of(plan_.together, units - first);
        const auto place = [&](int64_t i) {
          const int64_t unit = first + i;
          return this->place_of((unit / inner * plan_.groups + group) * inner + unit % inner);
        };
        const int64_t inputs = some * plan_.channel_blocks;
        const int64_t in_chunks = serial() ? 1 : min_of<int64_t>(inputs, 1 << 20);
        ck_status status = parallel(exec, in_chunks, [&](int chunk, int lane) {
          const Range range = piece(inputs, in_chunks, chunk);
          for (int64_t i = range.begin; i < range.end; i++) {
            const int64_t unit = i / plan_.channel_blocks;
            transform_input(place(unit), i % plan_.channel_blocks, v_ + unit * plan_.v_elements, lane_at(lane).pixels);
          }
        });
        if (status != CK_OK) return status;
        const int64_t chunks = serial() ? 1 : plan_.k_blocks;
        status = parallel(exec, chunks, [&](int chunk, int lane) {
          const Lane l = lane_at(lane);
          const Range range = piece(plan_.k_blocks, chunks, chunk);
          for (int64_t block = range.begin; block < range.end; block++) {
            for (int64_t c = 0; c < plan_.in_channels; c += plan_.chunk) {
              make_weights(group, block, c, l.u);
              for (int64_t i = 0; i < some; i++)
                multiply(v_ + i * plan_.v_elements, place(i), block, c, l.u, l.m + i * plan_.m_elements);
            }
            for (int64_t i = 0; i < some; i++) {
              Lane own = l;
              own.m += i * plan_.m_elements;
              finish(place(i), block, own);
            }
          }
        });
        if (status != CK_OK) return status;
      }
    return CK_OK;
  }

  static int64_t tiles_of(const Place& p) { return p.images * ceil_div(p.rows, M) * ceil_div(p.cols, M); }

  // One vector of input channels of a unit into its V.
  void transform_input(const Place& p, int64_t channel_block, T* v, T* pixels) const {
    const int64_t tile_rows = ceil_div(p.rows, M), tile_cols = ceil_div(p.cols, M);
    const int64_t c = channel_block * L, columns = tile_cols * M + R - 1;
    Window height, width;
    height.init(plan_.axis[1].taps(0), 1), width.init(plan_.axis[2].taps(0), 1);
    const int64_t size[CK_AXES] = {plan_.axis[0].in, plan_.axis[1].in, plan_.axis[2].in};
    PixelSource<S> from;
    from.data = op_.in + (p.group * plan_.in_channels + c) * op_.in_stride[1];
    from.stride = op_.in_stride, from.size = size, from.channels = min_of<int64_t>(L, plan_.in_channels - c);
    from.first_column = p.first_col + width.low, from.column_step = 1, from.columns = columns;
    T* to = v + channel_block * plan_.tiles * L;
    for (int64_t n = 0; n < p.images; n++) {
      pack_patch(pixels, from, p.first_image + n, p.depth, p.first_row + height.low, tile_rows * M + R - 1);
      for (int64_t y = 0; y < tile_rows; y++)
        for (int64_t x = 0; x < tile_cols; x++, to += L)
          transform_tile<T, F>(pixels + (y * columns + x) * M * L, columns * L, to, plan_.v_pitch);
    }
  }
  // U of one block of output channels and the chunk of input channels from c on: [product][channel][wide].
  void make_weights(int64_t group, int64_t block, int64_t c, T* u) const {
    const int64_t channels = min_of(plan_.chunk, plan_.in_channels - c), wide = plan_.vectors(block) * L;
    if (packed_) {
      const T* packed = PackedWeights<T>(plan_, packed_).block(group, block);
      for (int64_t i = 0; i < channels; i++)
        filters(packed, plan_.in_channels, c + i, u + i * wide, u_pitch(block, c), wide);
      return;
    }
    constexpr int64_t some = 16;  // channels: 18 KB of 3x3 weights
    T raw[some * R * R * Plan::block];
    ConvPlan<T> part = plan_;
    WeightSource<S> source = op_.weight;
    source.data += group * op_.weight_group + c * source.c;
    for (int64_t i = 0; i < channels; i += some, source.data += some * source.c) {
      part.in_channels = min_of(some, channels - i);
      pack_blocks(part, {block, block + 1}, source, raw);
      for (int64_t j = 0; j < part.in_channels; j++)
        filters(raw, part.in_channels, j, u + (i + j) * wide, u_pitch(block, c), wide);
    }
  }
  // The filters of input channel c from weights packed for `of` channels as the direct convolution wants them.
  void filters(const T* packed, int64_t of, int64_t c, T* u, int64_t product, int64_t wide) const {
    const int64_t together = chunk_channels(of, R * R), begin = c / together * together;
    const int64_t size = min_of(together, of - begin);
    const T* g = packed + (begin * R * R + (c - begin)) * wide;
    for (int64_t v = 0; v < wide; v += L) filter(g + v, size * wide, u + v, product);
  }
  // One vector of filters: taps `tap` elements apart, products `product` apart.
  void filter(const T* g, int64_t tap, T* u, int64_t product) const {
    const bool flip = plan_.axis[1].backward;
    Vec<T> half[R][N];
#pragma GCC unroll 5
    for (int i = 0; i < R; i++) {
      Vec<T> row[R];
#pragma GCC unroll 5
      for (int j = 0; j < R; j++) {
        const int at = i * R + j;
        row[j] = load(g + (flip ? R * R - 1 - at : at) * tap);
      }
      F::weight(row, half[i]);
    }
#pragma GCC unroll 6
    for (int j = 0; j < N; j++) {
      Vec<T> column[R], out[N];
#pragma GCC unroll 5
      for (int i = 0; i < R; i++) column[i] = half[i][j];
      F::weight(column, out);
#pragma GCC unroll 6
      for (int i = 0; i < N; i++) store(u + (i * N + j) * product, out[i]);
    }
  }

  // M += V * U for one unit and chunk of channels.
  void multiply(const T* v, const Place& p, int64_t block, int64_t c, const T* u, T* m) const {
    typedef typename CountLanes<kTilePixels>::type All;
    const int vectors = plan_.vectors(block);
    const int64_t tiles = tiles_of(p), pieces = ceil_div(tiles, kTilePixels);
    WinogradTileArgs<T> t;
    t.block_step = plan_.tiles * L;
    t.channels = min_of(plan_.chunk, plan_.in_channels - c);
    t.add = c > 0;
    for (int64_t product = 0; product < Plan::products; product++)
      for (int64_t i = 0; i < pieces; i++) {
        const Range r = piece(tiles, pieces, i);
        t.v = v + product * plan_.v_pitch + (c / L * plan_.tiles + r.begin) * L;
        t.u = u + product * u_pitch(block, c);
        t.sums = m + product * plan_.m_pitch + r.begin * vectors * L;
        const int count = int(r.end - r.begin);
        (vectors == 1 ? pick_winograd_tile<T, 1>(count, All{}) : pick_winograd_tile<T, 2>(count, All{}))(t);
      }
  }

  // M of a unit and block of channels -> outputs.
  void finish(const Place& p, int64_t block, const Lane& l) const {
    if (plan_.in_channels == 0) {
      memset(l.sums, 0, size_t(p.images * p.rows * p.cols * plan_.block) * sizeof(T));
      this->write_block(p, block, l.sums);
      return;
    }
    const int64_t wide = plan_.vectors(block) * L;
    const T* m = l.m;
    for (int64_t n = 0; n < p.images; n++) {
      Vec<T> watch{};
      for (int64_t y = 0; y < p.rows; y += M)
        for (int64_t x = 0; x < p.cols; x += M, m += wide) {
          T* to = l.sums + ((n * p.rows + y) * p.cols + x) * plan_.block;
          const int rows = int(min_of<int64_t>(M, p.rows - y)), cols = int(min_of<int64_t>(M, p.cols - x));
          for (int64_t v = 0; v < wide; v += L) watch += tile_output(m + v, to + v, p.cols * plan_.block, rows, cols);
        }
      bool finite = true;
      for (int i = 0; i < L; i++) finite &= watch[i] == T(0);
      if (!finite) __atomic_store_n(bad_ + p.first_image + n, 1, __ATOMIC_RELAXED);
    }
    this->write_block(p, block, l.sums);
  }
  // Returns a vector that is not zero where an output is not finite.
  Vec<T> tile_output(const T* m, T* to, int64_t row, int rows, int cols) const {
    Vec<T> half[N][M], watch{};
#pragma GCC unroll 6
    for (int i = 0; i < N; i++) {
      Vec<T> d[N];
#pragma GCC unroll 6
      for (int j = 0; j < N; j++) d[j] = load(m + (i * N + j) * plan_.m_pitch);
      F::output(d, half[i]);
    }
    const bool whole = rows == M && cols == M;
#pragma GCC unroll 4
    for (int j = 0; j < M; j++) {
      Vec<T> d[N], y[M];
#pragma GCC unroll 6
      for (int i = 0; i < N; i++) d[i] = half[i][j];
      F::output(d, y);
#pragma GCC unroll 4
      for (int i = 0; i < M; i++) {
        watch += y[i] * T(0);
        if (whole || (i < rows && j < cols)) store(to + i * row + j * plan_.block, y[i]);
      }
    }
    return watch;
  }

  const Plan& plan_;
  void* const packed_;
  char* const bad_;
  T* const v_;
  char* const lanes_;
};

template <class S, class F, bool BACKWARD>
struct ConvWinograd {
  typedef Wide<S> T;
  typedef WinogradPlan<T, F> Plan;
  typedef WinogradWalk<S, F> Walk;

  static Plan plan_for(const void* params, int threads) {
    Plan plan;
    plan.init(*static_cast<const ck_conv*>(params), BACKWARD, threads);
    return plan;
  }
  static bool fits(const ck_conv& p) {
    for (int a = 0; a < CK_AXES; a++) {
      const int64_t kernel = a == 0 ? 1 : F::taps;
      if (p.kernel[a] != kernel || p.stride[a] != 1 || (p.dilation[a] != 1 && p.kernel[a] > 1)) return false;
    }
    return p.pad[0] == 0 && p.in[0] == p.out[0];
  }
  static const char* why_not(const void* params) {
    if (!fits(*static_cast<const ck_conv*>(params)))
      return F::size == 6 ? "needs a 3x3 or 5x5 kernel with stride 1 and dilation 1"
                          : "needs a 3x3 kernel with stride 1 and dilation 1";
    const ck_conv& p = *static_cast<const ck_conv*>(params);
    if (F::size == 6 && (BACKWARD ? p.out_channels : p.in_channels) / p.groups < kWinogradChannels)
      return BACKWARD ? "needs at least 8 output channels per group for its error, got {out_per_group}"
                      : "needs at least 8 input channels per group for its error, got {in_per_group}";
    return Direct::why_not(params);
  }
  // What is packed: U, or, where that is made late, what the direct convolution packs.
  static size_t packed_size(const void* params) {
    const Plan plan = plan_for(params, 1);
    return plan.shared ? PackedWeights<T>::bytes(plan) : size_t(plan.u_bytes());
  }
  static ck_status pack(const void* params, const ck_tensor* weight, void* packed, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const Plan plan = plan_for(params, 1);
    if (plan.shared) return ConvDirect<S, BACKWARD>::pack(params, weight, packed, exec);
    ConvOperands<S> operands{};
    operands.weight = weight_source<S>(*weight, BACKWARD);
    operands.weight_group = weight_group(*static_cast<const ck_conv*>(params), *weight);
    return Walk::transform_all(plan, operands, static_cast<T*>(packed), exec);
  }
  // Bytes of the workspace before the walk's.
  static size_t packed_part(const Plan& plan) { return plan.shared ? 0 : size_t(round_up(plan.u_bytes(), 64)); }
  static size_t workspace(const void* params, int threads) {
    const Plan plan = plan_for(params, threads);
    const ck_conv image = one_image(params);
    return packed_part(plan) +
           max_of(Walk::workspace(plan, threads), Walk::flag_bytes(plan) + Direct::workspace(&image, threads));
  }
  static ck_status run(const void* params, const ck_tensor* t, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const Plan plan = plan_for(params, exec->threads);
    if (plan.units == 0 || plan.k_blocks == 0) return CK_OK;
    if (exec->workspace_size < workspace(params, exec->threads)) return CK_SMALL_WORKSPACE;
    const ConvOperands<S> operands = conv_operands<S>(*static_cast<const ck_conv*>(params), t, BACKWARD);
    char* at = static_cast<char*>(exec->workspace);
    void* packed = const_cast<void*>(exec->packed);
    if (!packed && !plan.shared) {
      packed = at;
      const ck_status status = Walk::transform_all(plan, operands, static_cast<T*>(packed), exec);
      if (status != CK_OK) return status;
    }
    at += packed_part(plan);
    Walk walk(plan, operands, packed, at);
    ck_status status = walk.run(exec);
    const char* const bad = at;  // which images have an output that is not finite
    const ck_conv& p = *static_cast<const ck_conv*>(params);
    for (int64_t n = 0; status == CK_OK && n < p.batch; n++)
      if (bad[n]) status = Direct::run_images(p, t, exec, at + Walk::flag_bytes(plan), n, 1);
    return status;
  }

 private:
  typedef ConvDirect<S, BACKWARD> Direct;

  static ck_conv one_image(const void* params) {
    ck_conv p = *static_cast<const ck_conv*>(params);
    p.batch = min_of<int64_t>(p.batch, 1);
    return p;
  }
};

// One row for two kernel sizes. A gradient of weights packs nothing: of a template only what is used is compiled.
template <class Three, class Five>
struct WinogradBySize {
  static bool five(const void* params) { return static_cast<const ck_conv*>(params)->kernel[2] == 5; }
  static const char* why_not(const void* params) {
    return five(params) ? Five::why_not(params) : Three::why_not(params);
  }
  static size_t packed_size(const void* params) {
    return five(params) ? Five::packed_size(params) : Three::packed_size(params);
  }
  static ck_status pack(const void* params, const ck_tensor* weight, void* packed, ck_exec* exec) {
    return five(params) ? Five::pack(params, weight, packed, exec) : Three::pack(params, weight, packed, exec);
  }
  static size_t workspace(const void* params, int threads) {
    return five(params) ? Five::workspace(params, threads) : Three::workspace(params, threads);
  }
  static ck_status run(const void* params, const ck_tensor* t, ck_exec* exec) {
    return five(params) ? Five::run(params, t, exec) : Three::run(params, t, exec);
  }
};

template <class S, bool BACKWARD>
using ConvWinogradSix =
    WinogradBySize<ConvWinograd<S, WinogradF43<Wide<S>>, BACKWARD>, ConvWinograd<S, WinogradF25<Wide<S>>, BACKWARD>>;

template <class S>
struct conv_winograd : ConvWinogradSix<S, false> {};
template <class S>
struct conv_grad_input_winograd : ConvWinogradSix<S, true> {};
template <class S>
struct conv_winograd_f2 : ConvWinograd<S, WinogradF23<Wide<S>>, false> {};
template <class S>
struct conv_grad_input_winograd_f2 : ConvWinograd<S, WinogradF23<Wide<S>>, true> {};
