// Convolution of int8 and uint8, any mix of signs, into int32: the walk of conv_direct.inl over cells of bytes.
//
// A strip of the input is copied into the second-level cache, padding included, with kCellChannels channels to an int32
// (conv_int8_cells.inl); then the register tile (conv_tile.inl) sweeps it for each block of output channels, with the
// dot product of the instruction set in place of a multiply-add. Integers: every order of sums gives the same bits, so
// nothing here is about order; chunks keep weights in the first-level cache as they do for floats.
//
// Bound: dot products, with VNNI four times the products of float32 per instruction, with vpmaddwd two for two
// instructions; small layers by packing.
//
// One channel per group (depthwise) is right but slow: three of four bytes of a cell, and the lanes, stand empty.

class ConvInt8Walk : ConvUnits<int32_t> {
  typedef int32_t T;

 public:
  // `in` is the input, of int8 or uint8; `operands` are the others, and strides. `packed` is null where tasks pack
  // late.
  ConvInt8Walk(const Int8Plan& plan, const ConvOperands<T>& operands, const Int8Weights& weights, const void* in,
               bool input_unsigned, const T* packed, char* lanes)
      : ConvUnits<T>(plan, operands),
        plan_(plan),
        weights_(weights),
        in_(in),
        input_unsigned_(input_unsigned),
        packed_(packed),
        lanes_(lanes) {}

  static size_t lane_bytes(const Int8Plan& plan) {
    const int64_t elements = plan.strip_elements + plan.sums_elements + (plan.packs_late() ? plan.block_elements : 0);
    const int64_t bytes = int64_t(sizeof(Lane)) + elements * int64_t(sizeof(T)) + plan.taps * 8;
    return size_t(round_up(bytes, 4096) + 64);  // 64: lanes do not start at the same offset of a page
  }

  ck_status run(const ck_exec* exec) {
    const int64_t tasks = plan_.units * plan_.k_parts;
    for (int lane = 0; lane < exec->threads; lane++) lane_at(lane)->unit = lane_at(lane)->block = -1;
    const int64_t chunks = exec->threads == 1 && !exec->poll ? 1 : min_of<int64_t>(tasks, 1 << 20);
    return parallel(exec, chunks, [&](int chunk, int lane) {
      const Range range = piece(tasks, chunks, chunk);
      for (int64_t task = range.begin; task < range.end; task++)
        unit(task / plan_.k_parts, piece(plan_.k_blocks, plan_.k_parts, task % plan_.k_parts), lane_at(lane));
    });
  }

 private:
  // A lane's part of the workspace: this struct, the strip, the sums, a block of weights packed late, the tap offsets.
  struct alignas(64) Lane {
    int64_t unit;   // whose strip is packed; -1: none
    int64_t block;  // that is packed, counted over all groups; -1: none
    StripShape shape;
  };
  Lane* lane_at(int lane) const { return reinterpret_cast<Lane*>(lanes_ + size_t(lane) * lane_bytes(plan_)); }
  T* strip_of(Lane* lane) const { return reinterpret_cast<T*>(lane + 1); }
  T* sums_of(Lane* lane) const { return strip_of(lane) + plan_.strip_elements; }
  T* weights_of(Lane* lane) const { return sums_of(lane) + plan_.sums_elements; }
  int64_t* taps_of(Lane* lane) const {
    return reinterpret_cast<int64_t*>(weights_of(lane) + (plan_.packs_late() ? plan_.block_elements : 0));
  }

  void unit(int64_t unit, Range blocks, Lane* lane) {
    const Place p = place_of(unit);
    if (p.rows == 0 || p.cols == 0 || p.images == 0) return;
    const bool reads = plan_.channels > 0 && plan_.taps > 0;
    if (reads && lane->unit != unit) {
      pack_input(p, lane);
      lane->unit = unit;
    }
    for (int64_t block = blocks.begin; block < blocks.end; block++) {
      if (reads) sum_block(p, block_weights(p.group, block, lane), plan_.vectors(block), lane);
      else memset(sums_of(lane), 0, size_t(p.images * p.rows * p.cols * plan_.block) * sizeof(T));
      write_block(p, block, sums_of(lane));
    }
  }

  void pack_input(const Place& p, Lane* lane) const {
    if (input_unsigned_) pack_as<uint8_t>(p, lane);
    else pack_as<int8_t>(p, lane);
  }
  template <class X>
  void pack_as(const Place& p, Lane* lane) const {
    StripSource<X> in = source_of<X>(p, plan_.axis[0].taps(0), plan_.axis[1].taps(0), lane->shape);
    in.channels = plan_.channels;
    in.data = static_cast<const X*>(in_) + p.group * plan_.channels * op_.in_stride[1];
    pack_cell_strip(strip_of(lane), lane->shape, in, input_flip(input_unsigned_, weights_.is_unsigned));
  }

  const T* block_weights(int64_t group, int64_t block, Lane* lane) const {
    const int64_t index = group * plan_.k_blocks + block;
    if (packed_) return packed_ + index * plan_.block_elements;
    if (lane->block != index) {
      weights_.pack_block(plan_, group, block, weights_of(lane));
      lane->block = index;
    }
    return weights_of(lane);
  }

  // Sums of one block of channels over the unit's outputs: [image][row][column][block].
  void sum_block(const Place& p, const T* packed, int vectors, Lane* lane) const {
    const StripShape& s = lane->shape;
    const AxisTaps th = plan_.axis[1].taps(0);
    const int64_t wide = vectors * plan_.lanes, row_step = strip_row_step(s, th), sums_row = p.cols * plan_.block;
    TileArgs<T> t;
    t.tap = taps_of(lane), t.channel_pitch = s.channel_pitch, t.sums_step = plan_.block, t.sums_row = sums_row;
    t.taps = strip_taps(s, plan_.axis[0].taps(0), th, plan_.axis[2].taps(0), taps_of(lane));
    // Rows that follow each other without a gap are one long row.
    int64_t images = p.images, rows = p.rows, length = p.cols;
    const bool flat = row_step == length && s.phases == 1 && (images == 1 || s.image_pitch == rows * row_step);
    if (flat) length = images * rows * p.cols, images = rows = 1;
    const int64_t tiles = ceil_div(length, kTilePixels), all_rows = images * rows;
    const int pair = length <= kTilePixels / 2 ? 2 : 1;  // two short rows fill a tile
    const int64_t chunk = chunk_channels(plan_.in_channels, t.taps);
    for (int64_t c = 0; c < plan_.in_channels; c += chunk) {
      t.channels = min_of(chunk, plan_.in_channels - c);
      t.weight = packed + wide + c * t.taps * wide;
      t.add = c > 0;
      const T* x = strip_of(lane) + c * s.channel_pitch;
      for (int64_t row = 0; row < all_rows;) {
        const int together = row + pair <= all_rows ? pair : 1;
        const T* x_row = x + row / rows * s.image_pitch + row % rows * row_step;
        const int64_t next = row + 1;
        t.row_step = together == 2 ? x + next / rows * s.image_pitch + next % rows * row_step - x_row : 0;
        for (int64_t i = 0; i < tiles; i++) {
          const Range r = piece(length, tiles, i);
          t.x = x_row + r.begin;
          t.sums = sums_of(lane) + row * sums_row + r.begin * plan_.block;
          cell_tile_for(together, int(r.end - r.begin), vectors, weights_.is_unsigned)(t);
        }
        row += together;
      }
    }
  }

  const Int8Plan& plan_;
  const Int8Weights& weights_;
  const void* const in_;
  const bool input_unsigned_;
  const T* const packed_;
  char* const lanes_;
};

// The row of inputs of type X.
template <class X>
struct ConvInt8 {
  static constexpr bool input_unsigned = X(-1) > X(0);

  static const ck_conv& params_of(const void* params) { return *static_cast<const ck_conv*>(params); }

  // An int32 holds any sum of so many products: (2^31 - 1) / (255 * 255), / (255 * 128), / (128 * 128).
  static const char* why_not(const void* params) {
    const ck_conv& p = params_of(params);
    const int64_t products = times(p.in_channels / p.groups, times(p.kernel[0], times(p.kernel[1], p.kernel[2])));
    if (input_unsigned && p.weight_unsigned) {
      if (products > 33025) return "needs at most 33025 products per output of uint8 by uint8, got {products}";
    } else if (input_unsigned || p.weight_unsigned) {
      if (products > 65793) return "needs at most 65793 products per output of int8 by uint8, got {products}";
    } else if (products > 131071) {
      return "needs at most 131071 products per output of int8 by int8, got {products}";
    }
    return Int8Plan(p, 1).why_not();
  }
  static size_t packed_size(const void* params) {
    return size_t(Int8Plan(params_of(params), 1).packed_elements) * sizeof(int32_t);
  }
  static ck_status pack(const void* params, const ck_tensor* weight, void* packed, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const ck_conv& p = params_of(params);
    return Int8Weights(p, *weight, input_unsigned).pack(Int8Plan(p, 1), static_cast<int32_t*>(packed), exec);
  }
  // Bytes of the workspace before the lanes.
  static size_t packed_part(const Int8Plan& plan) {
    return plan.packs_late() ? 0 : size_t(round_up(plan.packed_elements * int64_t(sizeof(int32_t)), 64));
  }
  static size_t workspace(const void* params, int threads) {
    const Int8Plan plan(params_of(params), threads);
    return packed_part(plan) + size_t(threads) * ConvInt8Walk::lane_bytes(plan);
  }
  static ck_status run(const void* params, const ck_tensor* t, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const ck_conv& p = params_of(params);
    const Int8Plan plan(p, exec->threads);
    if (plan.units == 0 || plan.k_blocks == 0) return CK_OK;
    if (exec->workspace_size < packed_part(plan) + size_t(exec->threads) * ConvInt8Walk::lane_bytes(plan))
      return CK_SMALL_WORKSPACE;
    char* workspace = static_cast<char*>(exec->workspace);
    const Int8Weights weights(p, t[1], input_unsigned);
    const int32_t* packed = static_cast<const int32_t*>(exec->packed);
    if (!packed && !plan.packs_late()) {
      packed = reinterpret_cast<int32_t*>(workspace);
      const ck_status status = weights.pack(plan, reinterpret_cast<int32_t*>(workspace), exec);
      if (status != CK_OK) return status;
    }
    const ConvOperands<int32_t> operands = conv_operands<int32_t>(p, t, false);  // but for t[0] and t[1], of bytes
    return ConvInt8Walk(plan, operands, weights, t[0].data, input_unsigned, packed, workspace + packed_part(plan))
        .run(exec);
  }
};
