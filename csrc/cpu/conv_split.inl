// Convolution and input gradient on bfloat16 tiles: each float32 is split into parts of 8 bits, and the products of
// parts that matter are summed in float32.
//
//   split6  three parts, the six leading of nine products: as accurate as a float32 sum in blocks    precision f32
//   split3  two parts, three products: error about 4e-6 of the output                                precision fast
//   split1  the high parts alone                                                                     precision bf16
//
// A task is a strip of outputs times a range of output channels, as in conv_direct.inl. The strip's input is split into
// the second-level cache (conv_split_plan.inl has its form); then for each block of 32 output channels and each chunk
// of steps, a step being 32 products, pairs of tiles of 16 outputs run over the strip (split_tile.inl). Sums are
// scaled, given bias, residual and activation, and written by write_back().
//
// Bound: 16 cycles per tile product, 16 * 16 * 32 * 2 operations: of 3,350 GFLOP/s per core at 3.3 GHz, split6 keeps
// a sixth, 558; below about 20 flop per byte read and written, by those. (Measured with a prototype of the inner loop.
// These rows have never run on AMX hardware, only over the model of tile_unit.h: docs/decisions/0006-amx.md.)
//
// Order of sums: chunks of steps, whose length the number of steps alone decides; blocks of channels, then taps. So the
// bits depend on neither threads nor batch.
//
// Range. Weights are scaled to [1, 2) per output channel while they are packed. An image is computed again by the
// direct convolution if its largest magnitude read rounds to infinity in bfloat16, is NaN, or is below 2^-60, where low
// parts would vanish in sums, which have no subnormals; or if some sum was not finite, of which one multiply-add per
// vector keeps watch. So such images get what "strict" gives. With weights that are not finite all images do.
// What remains: outputs that read tiny values only, in an image that has others too, are good to about 1e-38.
//
// After: Henry, Tang, Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision
// computations", ARITH 2019.

// ---- the walk

template <int PARTS>
class ConvSplitWalk : ConvUnits<float> {
  typedef ConvSplitPlan<PARTS> Plan;
  using typename ConvUnits<float>::Place;
  static constexpr int L = kLanes<float>;
  static constexpr int64_t kBlock = ConvPlan<float>::block;
  static_assert(L == 16, "tiles have rows of 16");

 public:
  // largest: of each image, the bits of the largest magnitude read; those of NaN where a sum was not finite.
  ConvSplitWalk(const Plan& plan, const ConvOperands<float>& operands, const char* packed, char* lanes,
                uint32_t* largest)
      : ConvUnits<float>(plan, operands), split_(plan), packed_(packed), lanes_(lanes), largest_(largest) {}

  static size_t lane_bytes(const Plan& plan) { return Lane(plan, nullptr).bytes; }

  ck_status run(const ck_exec* exec) {
    const int64_t tasks = split_.units * split_.k_parts;
    if (tasks == 0) return CK_OK;
    for (int lane = 0; lane < exec->threads; lane++) *Lane(split_, lane_at(lane)).unit = -1;
    const int64_t chunks = exec->threads == 1 && !exec->poll ? 1 : min_of<int64_t>(tasks, 1 << 20);
    return parallel(exec, chunks, [&](int chunk, int number) {
      const Lane lane(split_, lane_at(number));
      TileUnit tiles;
      tiles.configure();
      const Range range = piece(tasks, chunks, chunk);
      for (int64_t task = range.begin; task < range.end; task++)
        unit(task / split_.k_parts, piece(split_.k_blocks, split_.k_parts, task % split_.k_parts), lane, tiles);
      tiles.release();
    });
  }

 private:
  // A lane's part of the workspace.
  struct Lane {
    int64_t* unit;  // whose strip is packed; -1: none
    char* strip;
    float *sums, *partial;  // partial: of a pair of tiles, where a chunk is added to others
    float *scratch, *stage;
    int64_t *lines, *weights;  // offsets of each step
    size_t bytes;
    Lane(const Plan& plan, char* at) {
      Carver carver(at);
      unit = carver.take<int64_t>(1);
      strip = carver.take<char>(plan.strip_bytes());
      sums = carver.take<float>(plan.sums_pixels * kBlock);
      partial = carver.take<float>(2 * L * kBlock);
      scratch = carver.take<float>(L * L);
      stage = carver.take<float>(kLineElements * stage_pitch(plan.plane_columns));
      lines = carver.take<int64_t>(plan.most_steps());
      weights = carver.take<int64_t>(plan.most_steps());
      bytes = size_t(round_up(int64_t(carver.bytes), 4096) + 64);  // 64: lanes do not start at equal offsets of a page
    }
  };
  char* lane_at(int lane) const { return lanes_ + size_t(lane) * lane_bytes(split_); }

  void unit(int64_t unit, Range channels, const Lane& lane, TileUnit& tiles) {
    const Place p = place_of(unit);
    if (p.rows == 0 || p.cols == 0 || p.images == 0) return;
    const ConvAxis &d = split_.axis[0], &h = split_.axis[1];
    const int64_t rho_d = d.class_of(p.depth % d.step_out), rho_h = h.class_of(p.row_phase);
    const bool taps = rho_d >= 0 && rho_h >= 0 && split_.in_channels > 0;
    if (taps && *lane.unit != unit) {
      pack(p, d.taps(rho_d), h.taps(rho_h), lane);
      *lane.unit = unit;
    }
    for (int64_t block = channels.begin; block < channels.end; block++) {
      if (!taps || !split_.axis[2].every_phase_has_taps())  // outputs that no tap reaches
        memset(lane.sums, 0, size_t(split_.sums_pixels * kBlock) * sizeof(float));
      if (taps) sum_block(p, rho_d, rho_h, block, lane, tiles);
      finish_block(p, block, lane);
    }
  }

  void pack(const Place& p, const AxisTaps& td, const AxisTaps& th, const Lane& lane) const {
    const ConvAxis &d = split_.axis[0], &h = split_.axis[1], &w = split_.axis[2];
    Window height;
    height.init(th, h.step_in);
    LinePlane plane;
    plane.part_step = split_.part_lines * 64;
    plane.rows = ceil_div(height.extent(p.rows, h.step_in), split_.row_split);
    plane.columns = split_.plane_columns, plane.pitch = split_.pitch;
    LineSource s;
    s.channel_stride = op_.in_stride[1], s.row_stride = op_.in_stride[3], s.column_stride = op_.in_stride[4];
    s.height = h.in, s.width = w.in;
    s.row_step = height.step * split_.row_split;
    s.column_step = split_.columns.step * split_.column_phases;
    s.channels = split_.in_channels, s.elements = split_.elements, s.column_shift = w.taps(0).advance;
    const bool neighbours = s.channel_stride == 1 && split_.fold == 1;
    for (int64_t n = 0; n < p.images; n++) {
      const float* image = op_.in + (p.first_image + n) * op_.in_stride[0];
      image += p.group * split_.in_channels * op_.in_stride[1];
      Largest largest;
      for (int64_t z = 0; z < td.count; z++) {
        const int64_t depth = p.depth / d.step_out * d.step_in + td.offset + z * td.advance;
        s.data = depth >= 0 && depth < d.in ? image + depth * op_.in_stride[2] : nullptr;
        for (int64_t phase = 0; phase < split_.row_split * split_.column_phases; phase++) {
          const int64_t row = phase / split_.column_phases, column = phase % split_.column_phases;
          s.first_row = p.first_row * h.step_in + height.low + row * height.step;
          s.first_column = p.first_col * w.step_in + split_.columns.low + column * split_.columns.step;
          for (int64_t block = 0; block < split_.blocks; block++) {
            const int64_t line = n * split_.image_lines + split_.line_of(z, row, column);
            plane.to = lane.strip + (block * PARTS * split_.part_lines + line) * 64;
            if (neighbours) pack_lines_channels<PARTS>(plane, s, block * kLineElements, largest);
            else pack_lines_rows<PARTS>(plane, s, block * kLineElements, lane.stage, largest);
          }
        }
      }
      raise(&largest_[p.first_image + n], largest.value());
    }
  }
  // Outputs of an image with the lines between rows, as they lie in the strip; images may follow without a gap.
  struct Run {
    int64_t count, length;  // runs, outputs of each
    int64_t lines, sums;    // from one to the next, in lines and in outputs
    int64_t image_sums;     // from image to image, in outputs
  };
  Run run_of(const Place& p, int64_t cols) const {
    const int64_t rows = p.rows * split_.pitch, end = cols - split_.pitch;
    if (split_.image_lines == rows) return {1, p.images * rows + end, 0, 0, rows * split_.axis[2].step_out};
    return {p.images, rows + end, split_.image_lines, split_.image_sums, split_.image_sums};
  }

  void sum_block(const Place& p, int64_t rho_d, int64_t rho_h, int64_t block, const Lane& lane, TileUnit& tiles) const {
    const ConvAxis& w = split_.axis[2];
    const char* weights = packed_ + split_.block_offset(p.group, block) + 128;
    for (int64_t rho_w = 0; rho_w < w.classes; rho_w++) {
      const int64_t phase = w.taps(rho_w).phase, cols = min_of(p.first_col + p.cols, w.count(phase)) - p.first_col;
      if (cols <= 0) continue;
      const int64_t before = split_.steps_before(rho_d, rho_h, rho_w);
      const int64_t steps = step_offsets(rho_d, rho_h, rho_w, split_.vectors(block), lane);
      class_sums(run_of(p, cols), steps, weights + before * PARTS * split_.vectors(block) * 1024, split_.vectors(block),
                 lane.sums + phase * kBlock, lane, tiles);
    }
  }
  int64_t step_offsets(int64_t rho_d, int64_t rho_h, int64_t rho_w, int vectors, const Lane& lane) const {
    const AxisTaps td = split_.axis[0].taps(rho_d), th = split_.axis[1].taps(rho_h);
    const AxisTaps tw = split_.folded(split_.axis[2].taps(rho_w));
    Window height;
    height.init(th, split_.axis[1].step_in);
    int64_t steps = 0;
    for (int64_t block = 0; block < split_.blocks; block++)
      for (int64_t jd = 0; jd < td.count; jd++)
        for (int64_t jh = 0; jh < th.count; jh++)
          for (int64_t jw = 0; jw < tw.count; jw++) {
            const int64_t row = (th.offset + jh * th.advance - height.low) / height.step;
            const int64_t column = (tw.offset + jw * tw.advance - split_.columns.low) / split_.columns.step;
            lane.lines[steps] = (block * PARTS * split_.part_lines + split_.line_of(jd, row, column)) * 64;
            lane.weights[steps] = steps * PARTS * vectors * 1024;
            steps++;
          }
    return steps;
  }

  // Steps whose sums stay in the tiles. Fewer make the error smaller and keep the weights in cache; it may look at the
  // length of the reduction only.
  static int64_t chunk_steps(int64_t steps) { return steps >= 64 ? 9 : steps >= 32 ? 18 : max_of<int64_t>(1, steps); }

  void class_sums(const Run& run, int64_t steps, const char* weights, int vectors, float* sums, const Lane& lane,
                  TileUnit& tiles) const {
    const int64_t step_out = split_.axis[2].step_out, chunk = chunk_steps(steps);
    SplitTileArgs t;
    t.a_part = split_.part_lines * 64, t.a_tile = 1024, t.a_row = 64;
    t.b = weights, t.b_part = vectors * 1024, t.b_tile = 1024;
    t.scratch = lane.scratch;
    // Every pair of tiles fetches its share of the next chunk's weights. With few pairs that gets in the way.
    const int64_t step_bytes = PARTS * vectors * 1024, pairs = run.count * ceil_div(run.length, 2 * L);
    t.ahead_lines = pairs >= 4 ? ceil_div(step_bytes / 64, pairs) : 0;
    for (int64_t k = 0; k < steps; k += chunk) {
      t.a_offset = lane.lines + k, t.b_offset = lane.weights + k;
      t.steps = min_of(chunk, steps - k);
      t.ahead = weights + (k + t.steps) * step_bytes;
      for (int64_t n = 0; n < run.count; n++)
        for (int64_t i = 0; i < run.length; i += 2 * L, t.ahead += t.steps * t.ahead_lines * 64) {
          const int count = run.length - i > L ? 2 : 1;
          float* to = sums + (n * run.sums + i * step_out) * kBlock;
          t.a = lane.strip + (n * run.lines + i) * 64;
          t.sums = k == 0 ? to : lane.partial;
          t.sums_row = (k == 0 ? step_out : 1) * kBlock * int64_t(sizeof(float));
          split_tiles<PARTS>(tiles, t, count, vectors);
          if (k > 0) add_split_sums(lane.partial, count, vectors, to, step_out * kBlock);
        }
    }
  }

  void finish_block(const Place& p, int64_t block, const Lane& lane) const {
    const float* scale = reinterpret_cast<const float*>(packed_ + split_.block_offset(p.group, block));
    const int64_t row_sums = split_.pitch * split_.axis[2].step_out, image_sums = run_of(p, p.cols).image_sums;
    Place image = p;
    image.images = 1;
    for (int64_t n = 0; n < p.images; n++, image.first_image++) {
      const float* from = lane.sums + n * image_sums * kBlock;
      Vec<float> watch{};
      write_block(image, block, row_sums, [&](int64_t i, int64_t k) {
        const Vec<float> sum = load(from + i * kBlock + k) * load(scale + k);
        watch += sum * 0.0f;
        return sum;
      });
      for (int i = 0; i < L; i++)
        if (watch[i] != 0) raise(&largest_[image.first_image], kMagnitude);
    }
  }

  const Plan& split_;
  const char* const packed_;
  char* const lanes_;
  uint32_t* const largest_;
};

// ---- the rows of the table

template <int PARTS, bool BACKWARD>
struct ConvSplit {
  typedef ConvSplitPlan<PARTS> Plan;
  typedef ConvDirect<float, BACKWARD> Direct;

  static Plan plan_for(const void* params, int threads) {
    Plan plan;
    plan.init(*static_cast<const ck_conv*>(params), BACKWARD, threads);
    return plan;
  }
  static const char* why_not(const void* params) {
    const char* direct = Direct::why_not(params);
    return direct ? direct : plan_for(params, 1).why_not();
  }
  static size_t packed_size(const void* params) { return size_t(plan_for(params, 1).packed_bytes()); }
  static ck_status pack(const void* params, const ck_tensor* weight, void* packed, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    return pack_split_weights<PARTS>(plan_for(params, 1), weight_source<float>(*weight, BACKWARD),
                                     weight_group(*static_cast<const ck_conv*>(params), *weight), packed, exec);
  }

  // The workspace: the largest magnitude of each image, then what the split or the direct convolution needs.
  static int64_t marks_bytes(const ck_conv& p) { return round_up(p.batch * int64_t(sizeof(uint32_t)), 64); }
  static int64_t packed_part(const Plan& plan) { return round_up(plan.packed_bytes(), 64); }
  static size_t split_bytes(const Plan& plan, int threads) {
    return size_t(packed_part(plan)) + size_t(threads) * ConvSplitWalk<PARTS>::lane_bytes(plan);
  }
  static size_t workspace(const void* params, int threads) {
    ck_conv p = *static_cast<const ck_conv*>(params);
    const size_t split = split_bytes(plan_for(params, threads), threads), all = Direct::workspace(params, threads);
    const size_t marks = size_t(marks_bytes(p));
    p.batch = min_of<int64_t>(1, p.batch);
    return marks + max_of(split, max_of(all, Direct::workspace(&p, threads)));
  }

  static ck_status run(const void* params, const ck_tensor* t, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const ck_conv& p = *static_cast<const ck_conv*>(params);
    const Plan plan = plan_for(params, exec->threads);
    if (plan.units == 0 || plan.k_blocks == 0) return CK_OK;
    if (exec->workspace_size < size_t(marks_bytes(p)) + split_bytes(plan, exec->threads)) return CK_SMALL_WORKSPACE;
    uint32_t* largest = static_cast<uint32_t*>(exec->workspace);
    char* rest = static_cast<char*>(exec->workspace) + marks_bytes(p);
    memset(largest, 0, size_t(p.batch) * sizeof *largest);
    void* packed = const_cast<void*>(exec->packed);
    if (!packed) {
      packed = rest;
      const ck_status status =
          pack_split_weights<PARTS>(plan, weight_source<float>(t[1], BACKWARD), weight_group(p, t[1]), packed, exec);
      if (status != CK_OK) return status;
    }
    if (static_cast<const PackedHeader*>(packed)->bad[0]) return again(p, t, exec, 0, p.batch);
    const ConvOperands<float> operands = conv_operands<float>(p, t, BACKWARD);
    ConvSplitWalk<PARTS> walk(plan, operands, static_cast<const char*>(packed), rest + packed_part(plan), largest);
    const ck_status status = walk.run(exec);
    if (status != CK_OK) return status;
    int64_t count = 0;
    for (int64_t image = 0; image < p.batch; image++) count += out_of_range(largest[image]);
    if (count == p.batch) return again(p, t, exec, 0, p.batch);
    for (int64_t image = 0; count > 0 && image < p.batch; image++) {
      const ck_status failed = out_of_range(largest[image]) ? again(p, t, exec, image, 1) : CK_OK;
      if (failed != CK_OK) return failed;
    }
    return CK_OK;
  }

 private:
  static bool out_of_range(uint32_t largest) {
    constexpr uint32_t tiny = (127 - 60) << 23;
    return largest >= kRoundsToInfinity || (largest > 0 && largest < tiny);
  }
  static ck_status again(const ck_conv& p, const ck_tensor* t, const ck_exec* exec, int64_t image, int64_t count) {
    return Direct::run_images(p, t, exec, static_cast<char*>(exec->workspace) + marks_bytes(p), image, count);
  }
};

template <class T>
struct conv_split6 : ConvSplit<3, false> {};
template <class T>
struct conv_split3 : ConvSplit<2, false> {};
template <class T>
struct conv_split1 : ConvSplit<1, false> {};
template <class T>
struct conv_grad_input_split6 : ConvSplit<3, true> {};
template <class T>
struct conv_grad_input_split3 : ConvSplit<2, true> {};
template <class T>
struct conv_grad_input_split1 : ConvSplit<1, true> {};
