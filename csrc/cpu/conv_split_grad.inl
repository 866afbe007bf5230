// Weight gradient on bfloat16 tiles: gw[k, c, tap] = sum over images and outputs of gy[n, k, p] * x[n, c, p + tap],
// both in parts as in conv_split.inl; split6, split3 and split1 are the same there.
//
// The reduction runs over the outputs of a strip as they lie in x's strip (conv_split_plan.inl), 32 per step, with
// zeros of gy for the lines between rows. Operand A is gy in its own layout: a line is 32 outputs of one channel,
// output q + i beside q + 16 + i. Operand B is x: line q is 16 channels of pixel q, beside those of pixel q + 16. So
// the 16 lines from q on are the 32 pixels from q on, for any q: taps shift by whole lines, at the price of splitting
// each pixel twice. A task runs over its strips in their order; the sums of a strip stay in the tiles and are added to
// a gradient packed as [tap][output channel][channel].
//
// Bound: as conv_split.inl; with 1x1 kernels by splitting, as 32 outputs of a channel meet 32 channels only.
//
// Deterministic as in conv_grad_weight.inl: strips and copies of the gradient follow from the shape alone.
//
// Range. The whole gradient is computed again by the direct kernel if the largest magnitude of x or of gy is not finite
// in bfloat16, if one is below 2^-90 or their product below 2^-60, or if some sum was not finite.

constexpr int64_t kSplitGradLines = 512;         // of a strip: 16 steps between two additions to the packed gradient
constexpr int64_t kSplitGradBytes = 512 * 1024;  // of x in a strip
constexpr int64_t kSplitGradTiles = 16;          // of 16 output channels: 800 KB of gy

template <int PARTS>
struct ConvSplitGradPlan : ConvSplitPlan<PARTS> {
  using Base = ConvSplitPlan<PARTS>;
  using Base::axis, Base::batch, Base::cols, Base::elements, Base::groups, Base::image_lines, Base::images,
      Base::in_channels, Base::out_channels, Base::part_lines, Base::pitch, Base::plane_lines, Base::row_taps,
      Base::rows, Base::strips_h, Base::strips_n, Base::strips_w, Base::taps;
  static constexpr int64_t L = 16;

  int64_t strips, copies, k_parts;
  int64_t k_tiles, e_tiles;  // of 16 output channels, of 16 elements
  int64_t chunk;             // tiles of elements of a strip
  int64_t line_taps;         // taps, those that fold into elements taken together
  int64_t steps;             // of a strip
  int64_t gy_pitch;          // bytes between channels of gy
  int64_t copy_elements;

  void init(const ck_conv& p, int threads) {
    this->set_taps(p, false);
    cut();
    k_tiles = ceil_div(out_channels, L), e_tiles = ceil_div(elements, L);
    const int64_t tile_bytes = max_of<int64_t>(1, times(PARTS * 64, part_lines));
    chunk = min_of(e_tiles, max_of<int64_t>(2, kSplitGradBytes / tile_bytes / 2 * 2));
    line_taps = axis[0].kernel * axis[1].kernel * row_taps;
    steps = flat() ? ceil_div(images * rows * pitch, 32) : images * image_steps();
    gy_pitch = (steps | 1) * 64;
    copy_elements = groups * line_taps * k_tiles * L * e_tiles * L;
    const int64_t size = max_of<int64_t>(1, groups * out_channels * in_channels * taps);
    copies = min_of(strips, max_of<int64_t>(1, min_of(kMostCopies, kCopyElements / size)));
    share(threads);
  }
  const char* why_not() const {
    if (strip_bytes() > kMostStripBytes)
      return "needs taps near each other: a strip of the input would take more than 256 MB";
    const double products = double(out_channels) * double(in_channels) * double(taps);
    return double(k_tiles * e_tiles * L * L) * double(line_taps) * Base::kFill > products
               ? "needs channels that fill two fifths of the tiles, got {in_per_group} to {out_per_group} per group"
               : nullptr;
  }
  // Images follow each other without a gap: their outputs are one run.
  bool flat() const { return image_lines == rows * pitch; }
  int64_t stage_lines(int64_t count) const { return (flat() ? count : 1) * plane_lines; }  // split at once
  int64_t image_steps() const { return ceil_div(rows * pitch, 32); }
  int64_t strip_bytes() const { return times(times(chunk * PARTS, part_lines), 64); }
  int64_t gy_bytes() const { return min_of(kSplitGradTiles, k_tiles) * PARTS * L * gy_pitch; }

 private:
  void cut() {
    strips_w = max_of<int64_t>(1, ceil_div(axis[2].out, kSplitGradLines));
    cols = ceil_div(axis[2].out, strips_w);
    rows = images = 1;
    this->lay_out();
    rows = max_of<int64_t>(1, min_of(axis[1].out, kSplitGradLines / pitch));
    rows = ceil_div(axis[1].out, max_of<int64_t>(1, ceil_div(axis[1].out, rows)));
    if (rows == axis[1].out && strips_w == 1)
      images = max_of<int64_t>(1, min_of(batch, kSplitGradLines / max_of<int64_t>(1, rows * pitch)));
    this->lay_out();
    part_lines = plus(times(images, image_lines), L) | 1;  // the last step reads up to 15 lines more
    strips_n = ceil_div(batch, images);
    strips_h = ceil_div(axis[1].out, max_of<int64_t>(1, rows));
    strips = axis[2].out ? strips_n * axis[0].out * strips_h * strips_w : 0;
  }
  // Split output channels as far as the copies do not keep all threads busy: each part splits x again.
  void share(int threads) {
    k_parts = 1;
    const int64_t tasks = max_of<int64_t>(1, copies * groups);
    double best = 0;
    for (int64_t parts = 1; threads > 1 && parts <= min_of<int64_t>(ceil_div(k_tiles, 2), 4 * threads); parts++) {
      double part = double(tasks * parts) / double(round_up(tasks * parts, threads));
      part *= double(k_tiles) / double(parts * round_up(ceil_div(k_tiles, parts), 2));
      if (part > best + 0.08) best = part, k_parts = parts;
    }
  }
};

template <int PARTS>
class ConvSplitGradWalk {
  typedef ConvSplitGradPlan<PARTS> Plan;
  static constexpr int L = kLanes<float>;

 public:
  // largest: bits of the largest magnitudes read of gy and of x; those of NaN where a sum was not finite.
  ConvSplitGradWalk(const Plan& plan, const ck_conv& conv, const ck_tensor* t, char* workspace, uint32_t* largest)
      : plan_(plan),
        conv_(conv),
        gy_(t[0]),
        x_(t[1]),
        out_(conv, t[2]),
        sums_(reinterpret_cast<float*>(workspace)),
        lanes_(workspace + copies_bytes(plan)),
        largest_(largest) {}

  static size_t bytes(const Plan& plan, int threads) {
    return copies_bytes(plan) + size_t(threads) * Lane(plan, nullptr).bytes;
  }

  ck_status run(const ck_exec* exec) {
    const int64_t parts = plan_.groups * plan_.k_parts, pairs = ceil_div(plan_.k_tiles, 2);
    const ck_status status = parallel(exec, plan_.copies * parts, [&](int task, int number) {
      TileUnit tiles;
      tiles.configure();
      const int64_t part = task % parts;
      const Range range = piece(pairs, plan_.k_parts, part % plan_.k_parts);
      const Range k = {range.begin * 2, min_of(range.end * 2, plan_.k_tiles)};
      sum_strips(task / parts, part / plan_.k_parts, k, number, tiles, exec);
      tiles.release();
    });
    if (status != CK_OK || cancelled_) return CK_CANCELLED;
    const int64_t channels = conv_.out_channels;
    const double ops = double(plan_.copy_elements / max_of<int64_t>(1, channels)) * double(plan_.copies + 1);
    return parallel_pieces(exec, channels, ops * 4, [&](int64_t begin, int64_t end, int) {
      Vec<float> watch{};
      for (int64_t k = begin; k < end; k++) unpack(k, watch);
      for (int i = 0; i < L; i++)
        if (watch[i] != 0) raise(&largest_[0], kMagnitude);
    });
  }

 private:
  // A lane's part of the workspace.
  struct Lane {
    char *x, *gy;
    float *partial, *scratch, *stage;
    int64_t *a_offset, *b_offset;  // of each step
    size_t bytes;
    Lane(const Plan& plan, char* at) {
      Carver carver(at);
      x = carver.take<char>(plan.strip_bytes());
      gy = carver.take<char>(plan.gy_bytes());
      partial = carver.take<float>(4 * L * L);
      scratch = carver.take<float>(L * L);
      stage = carver.take<float>(max_of((plan.stage_lines(plan.images) + L) * L, plan.steps * 32 * L));
      a_offset = carver.take<int64_t>(plan.steps);
      b_offset = carver.take<int64_t>(plan.steps);
      bytes = size_t(round_up(int64_t(carver.bytes), 4096) + 64);  // 64: lanes do not start at equal offsets of a page
    }
  };
  static size_t copies_bytes(const Plan& plan) {
    return size_t(round_up(plan.copies * plan.copy_elements * int64_t(sizeof(float)), 64));
  }
  // [tap][output channel][element] of one copy and group.
  float* group_sums(int64_t copy, int64_t group) const {
    return sums_ + copy * plan_.copy_elements + group * (plan_.copy_elements / plan_.groups);
  }
  int64_t row_elements() const { return plan_.e_tiles * L; }
  int64_t tap_elements() const { return plan_.k_tiles * L * row_elements(); }

  // All strips of one copy, for one group and some tiles of its output channels.
  void sum_strips(int64_t copy, int64_t group, Range channels, int number, TileUnit& tiles, const ck_exec* exec) {
    const Lane lane(plan_, lanes_ + size_t(number) * Lane(plan_, nullptr).bytes);
    const Range strips = piece(plan_.strips, plan_.copies, copy);
    Largest x, gy;
    for (int64_t first = channels.begin; first < channels.end; first += kSplitGradTiles) {
      const Range k = {first, min_of(first + kSplitGradTiles, channels.end)};
      for (int64_t strip = strips.begin; strip < strips.end && !cancelled(exec, number); strip++) {
        const Place p = place_of(strip);
        const int64_t steps = step_offsets(p, lane);
        pack_gy(p, group, k, lane, gy);
        for (int64_t e = 0; e < plan_.e_tiles; e += plan_.chunk) {
          const Range chunk = {e, min_of(e + plan_.chunk, plan_.e_tiles)};
          pack_x(p, group, chunk, lane, x);
          sum_strip(group_sums(copy, group), k, chunk, steps, strip > strips.begin, lane, tiles);
        }
      }
    }
    raise(&largest_[0], gy.value());
    raise(&largest_[1], x.value());
  }

  // A large gradient has one task per thread, minutes long at worst: the caller asks between strips too.
  bool cancelled(const ck_exec* exec, int lane) {
    if (lane == 0 && exec->poll && exec->poll(exec->poll_arg)) __atomic_store_n(&cancelled_, 1, __ATOMIC_RELAXED);
    return __atomic_load_n(&cancelled_, __ATOMIC_RELAXED);
  }

  struct Place {
    int64_t first_image, images, depth, first_row, rows, first_col, cols;
  };
  Place place_of(int64_t strip) const {
    Place s;
    s.first_col = strip % plan_.strips_w * plan_.cols;
    strip /= plan_.strips_w;
    s.first_row = strip % plan_.strips_h * plan_.rows;
    strip /= plan_.strips_h;
    s.depth = strip % conv_.out[0];
    s.first_image = strip / conv_.out[0] * plan_.images;
    s.images = min_of(plan_.images, conv_.batch - s.first_image);
    s.rows = min_of(plan_.rows, conv_.out[1] - s.first_row);
    s.cols = min_of(plan_.cols, conv_.out[2] - s.first_col);
    return s;
  }

  // Where the outputs of each step lie in gy's lines and in x's; returns how many steps.
  int64_t step_offsets(const Place& p, const Lane& lane) const {
    const int64_t runs = plan_.flat() ? 1 : p.images;
    const int64_t each = plan_.flat() ? ceil_div(p.images * plan_.rows * plan_.pitch, 32) : plan_.image_steps();
    for (int64_t s = 0; s < runs * each; s++) {
      lane.a_offset[s] = s * 64;
      lane.b_offset[s] = (s / each * plan_.image_lines + s % each * 32) * 64;
    }
    return runs * each;
  }

  // gy of some tiles of channels: [tile][part][channel][step].
  void pack_gy(const Place& p, int64_t group, Range tiles, const Lane& lane, Largest& largest) const {
    const int64_t outputs = plan_.steps * 32, pitch = plan_.pitch, *stride = gy_.stride;
    const int64_t image_outputs = plan_.flat() ? plan_.rows * pitch : plan_.image_steps() * 32;
    StripShape shape{};
    shape.columns = p.cols, shape.phases = 1, shape.channel_pitch = outputs;
    for (int64_t tile = tiles.begin; tile < tiles.end; tile++) {
      const int64_t channels = min_of<int64_t>(L, plan_.out_channels - tile * L);
      memset(lane.stage, 0, size_t(outputs * L) * sizeof(float));
      const float* from = static_cast<const float*>(gy_.data) + (group * plan_.out_channels + tile * L) * stride[1] +
                          p.depth * stride[2];
      for (int64_t n = 0; n < p.images; n++)
        for (int64_t y = 0; y < p.rows; y++) {
          const float* row = from + (p.first_image + n) * stride[0] + (p.first_row + y) * stride[3];
          float* to = lane.stage + n * image_outputs + y * pitch;
          if (stride[1] == 1 && stride[4] != 1) {
            pack_row_channels(to, shape, row, stride[4], conv_.out[2], p.first_col, 1, channels);
          } else {
            for (int64_t c = 0; c < channels; c++)
              pack_row(to + c * outputs, shape, row + c * stride[1], stride[4], conv_.out[2], p.first_col, 1);
          }
        }
      char* line = lane.gy + (tile - tiles.begin) * PARTS * L * plan_.gy_pitch;
      for (int64_t c = 0; c < L; c++, line += plan_.gy_pitch)
        for (int64_t s = 0; s < plan_.steps; s++) {
          const float* pair = lane.stage + c * outputs + s * 32;
          largest.see(load(pair)), largest.see(load(pair + L));
          store_line<PARTS>(line + s * 64, L * plan_.gy_pitch, load(pair), load(pair + L));
        }
    }
  }

  // x of some tiles of elements: [tile][part][line].
  void pack_x(const Place& p, int64_t group, Range tiles, const Lane& lane, Largest& largest) const {
    const ConvAxis &d = plan_.axis[0], &h = plan_.axis[1], &w = plan_.axis[2];
    const AxisTaps td = d.taps(0);
    Window height;
    height.init(h.taps(0), h.step_in);
    const int64_t phases = plan_.row_split * plan_.column_phases, part_step = plan_.part_lines * 64;
    const int64_t together = plan_.flat() ? p.images : 1, lines = plan_.stage_lines(p.images);
    for (int64_t tile = tiles.begin; tile < tiles.end; tile++) {
      char* const to = lane.x + (tile - tiles.begin) * PARTS * part_step;
      if (tile * L + L > plan_.elements) memset(lane.stage, 0, size_t(lines * L) * sizeof(float));
      memset(lane.stage + lines * L, 0, size_t(L * L) * sizeof(float));  // beside the last pixels
      for (int64_t n = 0; n < p.images; n += together)
        for (int64_t plane = 0; plane < td.count * phases; plane++) {
          const int64_t z = plane / phases, row = plane / plan_.column_phases % plan_.row_split;
          const int64_t column = plane % plan_.column_phases;
          const int64_t depth = p.depth * d.step_in + td.offset + z * td.advance;
          const int64_t first_row = p.first_row * h.step_in + height.low + row * height.step;
          const int64_t first_column = p.first_col * w.step_in + plan_.columns.low + column * plan_.columns.step;
          for (int64_t i = 0; i < together; i++)
            stage_plane(p.first_image + n + i, group, depth, first_row, height.step * plan_.row_split, first_column,
                        tile * L, lane.stage + i * plan_.plane_lines * L);
          char* line = to + (n * plan_.image_lines + plan_.line_of(z, row, column)) * 64;
          for (int64_t q = 0; q < lines; q++) {
            const Vec<float> pixel = load(lane.stage + q * L);
            largest.see(pixel);
            store_line<PARTS>(line + q * 64, part_step, pixel, load(lane.stage + (q + L) * L));
          }
        }
      for (int part = 0; part < PARTS; part++)  // what the last step reads beyond the last image
        memset(to + part * part_step + p.images * plan_.image_lines * 64, 0, L * 64);
    }
  }
  // A plane of 16 elements from `first` on: [line][element].
  void stage_plane(int64_t image, int64_t group, int64_t depth, int64_t first_row, int64_t row_step,
                   int64_t first_column, int64_t first, float* stage) const {
    const float* const from = static_cast<const float*>(x_.data) + image * x_.stride[0] + depth * x_.stride[2];
    PixelSource<float> s;
    s.stride = x_.stride, s.size = conv_.in;
    s.column_step = plan_.columns.step * plan_.column_phases, s.columns = plan_.plane_columns;
    for (int64_t y = 0; y < plan_.most_plane_rows; y++) {
      const int64_t row = first_row + y * row_step;
      const bool inside = depth >= 0 && depth < conv_.in[0] && row >= 0 && row < conv_.in[1] && conv_.in[2] > 0;
      for (int64_t e = first; e < min_of(first + L, plan_.elements); e += s.channels) {
        const int64_t c = e % plan_.in_channels;
        s.channels = min_of(plan_.in_channels - c, min_of(first + L, plan_.elements) - e);
        s.first_column = first_column + e / plan_.in_channels * plan_.axis[2].taps(0).advance;
        const float* pixel = from + (group * plan_.in_channels + c) * x_.stride[1] + row * x_.stride[3];
        pack_pixels(stage + y * plan_.pitch * L + (e - first), L, inside ? pixel : nullptr, s);
      }
    }
  }

  void sum_strip(float* sums, Range k, Range elements, int64_t steps, bool add, const Lane& lane,
                 TileUnit& tiles) const {
    const ConvAxis &h = plan_.axis[1], &w = plan_.axis[2];
    const AxisTaps th = h.taps(0), tw = plan_.folded(w.taps(0));
    Window height;
    height.init(th, h.step_in);
    SplitTileArgs t{};
    t.a_offset = lane.a_offset, t.b_offset = lane.b_offset, t.steps = steps;
    t.a_row = plan_.gy_pitch, t.a_part = L * plan_.gy_pitch, t.a_tile = PARTS * t.a_part;
    t.b_part = plan_.part_lines * 64, t.b_tile = PARTS * t.b_part;
    t.scratch = lane.scratch;
    const int64_t row = row_elements();
    for (int64_t e = elements.begin; e < elements.end; e += 2)
      for (int64_t tap = 0; tap < plan_.line_taps; tap++) {
        const int64_t jd = tap / (th.count * tw.count), jh = tap / tw.count % th.count, jw = tap % tw.count;
        const int64_t y = (th.offset + jh * th.advance - height.low) / height.step;
        const int64_t x = (tw.offset + jw * tw.advance - plan_.columns.low) / plan_.columns.step;
        t.b = lane.x + (e - elements.begin) * t.b_tile + plan_.line_of(jd, y, x) * 64;
        for (int64_t i = k.begin; i < k.end; i += 2) {
          const int rows = int(min_of<int64_t>(2, k.end - i)), columns = int(min_of<int64_t>(2, elements.end - e));
          float* to = sums + tap * tap_elements() + i * L * row + e * L;
          t.a = lane.gy + (i - k.begin) * t.a_tile;
          t.sums = add ? lane.partial : to;
          t.sums_row = (add ? 2 * L : row) * int64_t(sizeof(float));
          split_tiles<PARTS>(tiles, t, rows, columns);
          if (add) add_split_sums(lane.partial, rows, columns, to, row);
        }
      }
  }

  // Gradients of one output channel: the copies added in their order.
  void unpack(int64_t channel, Vec<float>& watch) const {
    const int64_t group = channel / plan_.out_channels, k = channel % plan_.out_channels;
    const float* const from = group_sums(0, group) + k * row_elements();
    const auto sum = [&](int64_t tap, int64_t element) {
      const float* at = from + tap * tap_elements() + element;
      Vec<float> total = load(at);
      for (int64_t copy = 1; copy < plan_.copies; copy++) total += load(at + copy * plan_.copy_elements);
      watch += total * 0.0f;
      return total;
    };
    const int64_t row_taps = plan_.row_taps, width = conv_.kernel[2];
    const int64_t* stride = out_.stride;
    const bool run = plan_.fold == 1 && stride[4] == 1 && stride[3] == width &&
                     (conv_.kernel[0] == 1 || stride[2] == width * conv_.kernel[1]);
    for (int64_t e = 0; e < plan_.elements; e += L) {
      const int count = int(min_of<int64_t>(L, plan_.elements - e));
      for (int64_t tap = 0; tap < plan_.line_taps; tap += L) {
        const int taps = int(min_of<int64_t>(L, plan_.line_taps - tap));
        Vec<float> v[L] = {};
        for (int j = 0; j < taps; j++) v[j] = sum(tap + j, e);
        if (run) {
          transpose<float>(v);
          for (int j = 0; j < count; j++) store_n(out_.place(channel, e + j, tap), v[j], taps);
          continue;
        }
        for (int j = 0; j < taps; j++)
          for (int i = 0; i < count; i++) {
            const int64_t column = (tap + j) % row_taps * plan_.fold + (e + i) / plan_.in_channels;
            const int64_t place = (tap + j) / row_taps * width + column;
            if (column < width) *out_.place(channel, (e + i) % plan_.in_channels, place) = v[j][i];
          }
      }
    }
  }

  const Plan& plan_;
  const ck_conv& conv_;
  const ck_tensor &gy_, &x_;
  const GradientOut<float> out_;
  float* const sums_;
  char* const lanes_;
  uint32_t* const largest_;
  int cancelled_ = 0;
};

template <int PARTS>
struct ConvSplitGrad {
  typedef ConvSplitGradPlan<PARTS> Plan;
  typedef conv_grad_weight_direct<float> Direct;

  static Plan plan_for(const void* params, int threads) {
    Plan plan;
    plan.init(*static_cast<const ck_conv*>(params), threads);
    return plan;
  }
  static const char* why_not(const void* params) {
    const char* direct = Direct::why_not(params);
    return direct ? direct : plan_for(params, 1).why_not();
  }
  // The workspace: two magnitudes, then what the split or the direct kernel needs.
  static constexpr size_t kMarks = 64;
  static size_t workspace(const void* params, int threads) {
    const size_t split = ConvSplitGradWalk<PARTS>::bytes(plan_for(params, threads), threads);
    return kMarks + max_of(split, Direct::workspace(params, threads));
  }
  static ck_status run(const void* params, const ck_tensor* t, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const ck_conv& p = *static_cast<const ck_conv*>(params);
    const Plan plan = plan_for(params, exec->threads);
    if (plan.strips == 0 || plan.k_tiles == 0 || plan.e_tiles == 0) return Direct::run(params, t, exec);
    if (exec->workspace_size < kMarks + ConvSplitGradWalk<PARTS>::bytes(plan, exec->threads)) return CK_SMALL_WORKSPACE;
    uint32_t* largest = static_cast<uint32_t*>(exec->workspace);
    largest[0] = largest[1] = 0;
    char* rest = static_cast<char*>(exec->workspace) + kMarks;
    const ck_status status = ConvSplitGradWalk<PARTS>(plan, p, t, rest, largest).run(exec);
    return status == CK_OK && out_of_range(largest[0], largest[1]) ? Direct::run(params, t, exec) : status;
  }

 private:
  static bool out_of_range(uint32_t gy, uint32_t x) {
    if (max_of(gy, x) >= kRoundsToInfinity) return true;
    const uint32_t a = gy >> 23, b = x >> 23;  // exponents
    return gy && x && (min_of(a, b) < 127 - 90 || a + b < 2 * 127 - 60);
  }
};

template <class T>
struct conv_grad_weight_split6 : ConvSplitGrad<3> {};
template <class T>
struct conv_grad_weight_split3 : ConvSplitGrad<2> {};
template <class T>
struct conv_grad_weight_split1 : ConvSplitGrad<1> {};
