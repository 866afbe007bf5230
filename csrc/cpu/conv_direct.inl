// Convolution and input gradient, direct: an implicit matrix product without the matrix.
//
// A task is a strip of outputs (some rows, or some images) times a range of output channels. It copies the input it
// reads into the second-level cache, zero padding included, so that the inner loop has no branch; then for each block
// of 2 * lanes output channels and each chunk of about 288 products the register tile (conv_tile.inl) sweeps the strip,
// the chunk's weights staying in the first-level cache. Partial sums of a strip are added chunk by chunk; after the
// last one bias, residual and activation are applied while the sums are transposed into the output's layout. A strided
// gradient with few outputs takes all phases of its rows in one task, so that a block of weights is packed once for
// them.
//
// Bound: multiply-adds (2 N K P Q C R S at the FMA peak) from about 8 flop per byte on; else the bytes of x, w and y.
//
// Order of sums: chunks of channels, in a chunk taps, then channels; fixed by channels and taps alone, so the bits
// depend on neither batch nor threads, and not on the ISA where multiply-add is fused.
//
// Non-finite weights: stored zeros times them would give NaN where padding must contribute nothing, so packing looks
// for them and such a call is computed tap by tap (safe_sums).
//
// Measured, float32, 2 cores of an AMD EPYC (Zen 5, FMA peak 511 GFLOP/s), eager calls with weights packed in each:
// 3x3 stride 1 of VGG-16 and ResNet-50 425-486 GFLOP/s down to 14x14, 305 at 7x7 with one image; 1x1 270-450; 7x7
// stride 2 with 3 channels 442.
//
// After: Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures", SC18.

// The walk over one convolution (or input gradient) of arrays of S: see conv_plan.inl for the terms.
template <class S>
class ConvWalk : ConvUnits<S> {
  using typename ConvUnits<S>::T;
  using typename ConvUnits<S>::Place;
  using ConvUnits<S>::plan_;
  using ConvUnits<S>::op_;

 public:
  // `packed` is null where tasks pack late.
  ConvWalk(const ConvPlan<T>& plan, const ConvOperands<S>& operands, void* packed, char* lanes)
      : ConvUnits<S>(plan, operands), packed_(packed), lanes_(lanes) {}

  static size_t lane_bytes(const ConvPlan<T>& plan) {
    const int64_t elements =
        plan.phases_together() * plan.strip_elements + plan.sums_elements + plan.late_blocks() * plan.block_elements;
    const int64_t bytes = int64_t(sizeof(Lane)) + elements * int64_t(sizeof(T)) + ConvUnits<S>::most_taps(plan) * 8;
    return size_t(round_up(bytes, 4096) + 64);  // 64: lanes do not start at the same offset of a page
  }

  ck_status run(const ck_exec* exec) {
    const int64_t tasks = plan_.units / phases() * plan_.k_parts;
    if (tasks == 0) return CK_OK;
    for (int lane = 0; lane < exec->threads; lane++) lane_at(lane)->unit = lane_at(lane)->group = -1;
    const int64_t chunks = exec->threads == 1 && !exec->poll ? 1 : min_of<int64_t>(tasks, 1 << 20);
    return parallel(exec, chunks, [&](int chunk, int lane) {
      const Range range = piece(tasks, chunks, chunk);
      for (int64_t task = range.begin; task < range.end; task++)
        units(task / plan_.k_parts, piece(plan_.k_blocks, plan_.k_parts, task % plan_.k_parts), lane_at(lane));
    });
  }

 private:
  // A lane's part of the workspace: this struct, the strips, the sums, blocks of weights packed late, the tap offsets.
  struct alignas(64) Lane {
    int64_t unit;   // whose strips are packed; -1: none
    int64_t group;  // whose blocks are packed; -1: none
    Range blocks;
    bool finite;
  };
  Lane* lane_at(int lane) const { return reinterpret_cast<Lane*>(lanes_ + size_t(lane) * lane_bytes(plan_)); }
  T* strips_of(Lane* lane) const { return reinterpret_cast<T*>(lane + 1); }
  T* sums_of(Lane* lane) const { return strips_of(lane) + plan_.phases_together() * plan_.strip_elements; }
  T* weights_of(Lane* lane) const { return sums_of(lane) + plan_.sums_elements; }
  int64_t* taps_of(Lane* lane) const {
    return reinterpret_cast<int64_t*>(weights_of(lane) + plan_.late_blocks() * plan_.block_elements);
  }

  // Phases of rows that a task takes together.
  int64_t phases() const { return packed_ ? 1 : plan_.phases_together(); }

  // A unit of one phase, and what its outputs are sums of.
  struct Phase {
    Place place;
    int64_t rho_d, rho_h;
    bool taps;
    StripShape shape;
    const T* strip;
  };
  Phase phase_of(int64_t unit, T* strip) const {
    Phase f;
    f.place = this->place_of(unit);
    const ConvAxis &d = plan_.axis[0], &h = plan_.axis[1];
    f.rho_d = d.class_of(f.place.depth % d.step_out), f.rho_h = h.class_of(f.place.row_phase);
    f.taps = f.rho_d >= 0 && f.rho_h >= 0 && plan_.in_channels > 0;
    f.strip = strip;
    return f;
  }
  static bool empty(const Place& p) { return p.rows == 0 || p.cols == 0 || p.images == 0; }

  // The phases of one unit, counted without them: all strips, then block by block.
  void units(int64_t index, Range blocks, Lane* lane) {
    const int64_t all = phases(), inner = all > 1 ? plan_.strips_h * plan_.strips_w : 1;
    const bool known = lane->unit == index;
    lane->unit = index;
    for (int64_t block = blocks.begin; block < blocks.end; block++) {
      Weights weights = {nullptr, true};
      for (int64_t i = 0; i < all; i++) {
        T* const strip = strips_of(lane) + i * plan_.strip_elements;
        Phase f = phase_of((index / inner * all + i) * inner + index % inner, strip);
        if (empty(f.place)) continue;
        if (f.taps) {
          const AxisTaps td = plan_.axis[0].taps(f.rho_d), th = plan_.axis[1].taps(f.rho_h);
          if (!known && block == blocks.begin) this->pack(f.place, td, th, f.shape, strip);
          else this->template source_of<S>(f.place, td, th, f.shape);
          if (!weights.data) weights = block_weights(f.place.group, block, blocks.end, lane);
        }
        sum_block(f, f.taps ? weights : Weights{nullptr, true}, block, lane);
        this->write_block(f.place, block, sums_of(lane));
      }
    }
  }

  // The packed weights of a block, null where there are none to multiply with, and whether all of them are finite.
  struct Weights {
    const T* data;
    bool finite;
  };
  Weights block_weights(int64_t group, int64_t block, int64_t end, Lane* lane) const {
    if (packed_)
      return {PackedWeights<T>(plan_, packed_).block(group, block), PackedWeights<T>::header(packed_)->bad[0] == 0};
    if (lane->group != group || block < lane->blocks.begin || block >= lane->blocks.end) {
      WeightSource<S> source = op_.weight;
      source.data += group * op_.weight_group;
      const int64_t together = source.k < source.c ? plan_.late_blocks() : 1;
      lane->group = group;
      lane->blocks = {block, min_of(end, block + together)};
      if (plan_.vectors(lane->blocks.end - 1) != plan_.vectors(block)) lane->blocks.end--;  // a narrow last block
      lane->finite = pack_blocks(plan_, lane->blocks, source, weights_of(lane));
    }
    return {weights_of(lane) + (block - lane->blocks.begin) * plan_.block_elements, lane->finite};
  }

  // Partial sums of one block of channels over the unit's outputs: [image][row][output column][block].
  void sum_block(const Phase& f, Weights weights, int64_t block, Lane* lane) const {
    const Place& p = f.place;
    const ConvAxis& w = plan_.axis[2];
    const int64_t step_out = w.step_out, outs = this->out_columns(p);
    T* sums = sums_of(lane);
    if (!weights.data || !w.every_phase_has_taps())  // outputs that no tap reaches
      memset(sums, 0, size_t(p.images * p.rows * outs * plan_.block) * sizeof(T));
    if (!weights.data) return;
    for (int64_t rho_w = 0; rho_w < w.classes; rho_w++) {
      const AxisTaps tw = w.taps(rho_w);
      const int64_t cols = min_of(p.first_col + p.cols, w.count(tw.phase)) - p.first_col;
      if (cols <= 0) continue;
      T* first = sums + tw.phase * plan_.block;
      const T* weight = weights.data + class_offset(plan_, block, f.rho_d, f.rho_h, rho_w);
      if (weights.finite)
        phase_sums(f, rho_w, weight, plan_.vectors(block), cols, first, outs * plan_.block, step_out * plan_.block,
                   lane);
      else safe_sums(p, f.rho_d, f.rho_h, rho_w, weight, plan_.vectors(block), cols, first, outs);
    }
  }
  void phase_sums(const Phase& f, int64_t rho_w, const T* weight, int vectors, int64_t cols, T* sums, int64_t sums_row,
                  int64_t sums_step, Lane* lane) const {
    const Place& p = f.place;
    const StripShape& s = f.shape;
    const AxisTaps td = plan_.axis[0].taps(f.rho_d), th = plan_.axis[1].taps(f.rho_h), tw = plan_.axis[2].taps(rho_w);
    int64_t* tap = taps_of(lane);
    const int64_t taps = this->strip_taps(s, td, th, tw, tap), row_step = this->strip_row_step(s, th);
    const int64_t chunk = chunk_channels(plan_.in_channels, taps);
    TileArgs<T> t;
    t.tap = tap, t.taps = taps, t.channel_pitch = s.channel_pitch, t.sums_step = sums_step;
    // Rows that follow each other without a gap are one long row.
    int64_t images = p.images, rows = p.rows, length = cols;
    const bool flat = row_step == cols && s.phases == 1 && sums_row == cols * sums_step &&
                      (images == 1 || s.image_pitch == rows * row_step);
    if (flat) length = images * rows * cols, images = rows = 1;
    const int64_t tiles = ceil_div(length, kTilePixels);
    const int64_t all_rows = images * rows;
    const int pair = length <= kTilePixels / 2 ? 2 : 1;  // two short rows fill a tile
    for (int64_t c = 0; c < plan_.in_channels; c += chunk) {
      t.channels = min_of(chunk, plan_.in_channels - c);
      t.weight = weight + c * taps * vectors * plan_.lanes;
      t.add = c > 0;
      const T* x = f.strip + c * s.channel_pitch;
      for (int64_t row = 0; row < all_rows;) {
        const int together = row + pair <= all_rows ? pair : 1;
        const T* x_row = x + row / rows * s.image_pitch + row % rows * row_step;
        const int64_t next = row + 1;
        t.row_step = together == 2 ? x + next / rows * s.image_pitch + next % rows * row_step - x_row : 0;
        t.sums_row = sums_row;
        for (int64_t i = 0; i < tiles; i++) {
          const Range r = piece(length, tiles, i);
          t.x = x_row + r.begin;
          t.sums = sums + row * sums_row + r.begin * sums_step;
          tile_for<T>(together, int(r.end - r.begin), vectors)(t);
        }
        row += together;
      }
    }
  }

  void safe_sums(const Place& p, int64_t rho_d, int64_t rho_h, int64_t rho_w, const T* weight, int vectors,
                 int64_t cols, T* sums, int64_t outs) const {
    const AxisTaps td = plan_.axis[0].taps(rho_d), th = plan_.axis[1].taps(rho_h), tw = plan_.axis[2].taps(rho_w);
    const int64_t wide = vectors * plan_.lanes, step_out = plan_.axis[2].step_out;
    for (int64_t n = 0; n < p.images; n++)
      for (int64_t y = 0; y < p.rows; y++)
        for (int64_t x = 0; x < cols; x++)
          for (int64_t k = 0; k < wide; k++)
            sums[((n * p.rows + y) * outs + x * step_out) * plan_.block + k] =
                this->safe_sum(p, td, th, tw, weight + k, wide, n, y, x);
  }

  void* const packed_;
  char* const lanes_;
};

// The two rows of the table. BACKWARD exchanges the roles of input and output channels.
template <class S, bool BACKWARD>
struct ConvDirect {
  typedef Wide<S> T;

  static ConvPlan<T> plan_for(const void* params, int threads) {
    ConvPlan<T> plan;
    plan.init(*static_cast<const ck_conv*>(params), BACKWARD, threads);
    return plan;
  }
  static const char* why_not(const void* params) { return plan_for(params, 1).why_not(); }
  static size_t packed_size(const void* params) { return PackedWeights<T>::bytes(plan_for(params, 1)); }
  static ck_status pack(const void* params, const ck_tensor* weight, void* packed, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const ConvPlan<T> plan = plan_for(params, 1);
    return pack_weights(plan, weight_source<S>(*weight, BACKWARD),
                        weight_group(*static_cast<const ck_conv*>(params), *weight), packed, exec);
  }
  // Bytes of the workspace before the lanes.
  static size_t packed_part(const ConvPlan<T>& plan) {
    return plan.packs_late() ? 0 : size_t(round_up(int64_t(PackedWeights<T>::bytes(plan)), 64));
  }
  static size_t workspace(const void* params, int threads) {
    const ConvPlan<T> plan = plan_for(params, threads);
    return packed_part(plan) + size_t(threads) * ConvWalk<S>::lane_bytes(plan);
  }
  static ck_status run(const void* params, const ck_tensor* t, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const ck_conv& p = *static_cast<const ck_conv*>(params);
    const ConvPlan<T> plan = plan_for(params, exec->threads);
    if (plan.units == 0 || plan.k_blocks == 0) return CK_OK;
    if (exec->workspace_size < packed_part(plan) + size_t(exec->threads) * ConvWalk<S>::lane_bytes(plan))
      return CK_SMALL_WORKSPACE;
    char* workspace = static_cast<char*>(exec->workspace);
    void* packed = const_cast<void*>(exec->packed);
    if (!packed && !plan.packs_late()) {
      packed = workspace;
      const ck_status status =
          pack_weights(plan, weight_source<S>(t[1], BACKWARD), weight_group(p, t[1]), packed, exec);
      if (status != CK_OK) return status;
    }
    workspace += packed_part(plan);
    const ConvOperands<S> operands = conv_operands<S>(p, t, BACKWARD);
    return ConvWalk<S>(plan, operands, packed, workspace).run(exec);
  }
  // Some images of another algorithm's call, which could not keep its promise for them. The call's workspace from
  // `workspace` on is free for it.
  static ck_status run_images(ck_conv p, const ck_tensor* t, const ck_exec* exec, char* workspace, int64_t first,
                              int64_t count) {
    ck_tensor some[5];
    for (int i = 0; i < 5; i++) {
      some[i] = t[i];
      const bool map = i == 0 || i >= 3;  // the input, the residual, the result
      if (map && t[i].data) some[i].data = static_cast<S*>(t[i].data) + first * t[i].stride[0];
    }
    ck_exec own = *exec;
    own.packed = nullptr;
    own.workspace_size -= size_t(workspace - static_cast<char*>(exec->workspace));
    own.workspace = workspace;
    p.batch = count;
    return run(&p, some, &own);
  }
};

template <class S>
struct conv_direct : ConvDirect<S, false> {};
template <class S>
struct conv_grad_input_direct : ConvDirect<S, true> {};
