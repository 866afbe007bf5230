// Packing for the split convolutions: float32 values in bfloat16 parts, as lines of 64 bytes that a tile row holds.
//
// A line is 32 reduction elements of one pixel, or of one output channel: word i holds element i in its low and element
// i + 16 in its high half. So 16 x 16 floats are transposed first and then split without a shuffle.

typedef Vec<uint32_t> Bits;
constexpr uint32_t kHighHalf = 0xffff0000u;
constexpr uint32_t kMagnitude = 0x7fffffffu;
constexpr uint32_t kRoundsToInfinity = 0x7f7f8000u;  // magnitudes from here on have an infinite high part

// Next part of `value`, in the high halves; `value` becomes what is left. Rounding half away from zero is enough: the
// next part takes up the difference. The last of three parts has at most 8 bits and needs no rounding.
template <bool LAST>
static inline Bits next_part(Vec<float>& value) {
  const Bits part = ((Bits)value + (LAST ? 0 : 0x8000u)) & kHighHalf;
  value -= (Vec<float>)part;
  return part;
}

// The parts of elements i (`low`) and i + 16 (`high`), `part_step` bytes apart.
template <int PARTS>
static inline void store_line(char* to, int64_t part_step, Vec<float> low, Vec<float> high) {
#pragma GCC unroll 3
  for (int part = 0; part < PARTS; part++) {
    const bool last = PARTS == 3 && part == 2;
    const Bits a = last ? next_part<true>(low) : next_part<false>(low);
    const Bits b = last ? next_part<true>(high) : next_part<false>(high);
    store(reinterpret_cast<uint32_t*>(to + part * part_step), a >> 16 | b);
  }
}

// The largest magnitude seen, as bits: those of NaN lie above those of infinity.
struct Largest {
  Bits lanes = Bits{};
  void see(Vec<float> v) {
    const Bits bits = (Bits)v & kMagnitude;
    lanes = bits > lanes ? bits : lanes;
  }
  uint32_t value() const {
    uint32_t most = 0;
    for (int i = 0; i < kLanes<uint32_t>; i++) most = max_of<uint32_t>(most, lanes[i]);
    return most;
  }
};

// Makes *most at least `value`, from any thread.
static inline void raise(uint32_t* most, uint32_t value) {
  uint32_t seen = __atomic_load_n(most, __ATOMIC_RELAXED);
  while (seen < value && !__atomic_compare_exchange_n(most, &seen, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

// A plane of lines: some rows and columns of one image and depth, for 32 reduction elements.
struct LinePlane {
  char* to;
  int64_t part_step;             // bytes between the parts
  int64_t rows, columns, pitch;  // lines
};

// What a plane is filled from. Reduction element v is channel v % channels, column_shift * (v / channels) columns to
// the right: with few channels, neighbouring taps of a row are stored as channels (ConvSplitPlan::fold).
struct LineSource {
  const float* data;  // first channel of the group, first row, first column; null: all zeros
  int64_t channel_stride, row_stride, column_stride;
  int64_t height, width;
  int64_t first_row, row_step, first_column, column_step;  // input coordinates; may lie outside
  int64_t channels, elements, column_shift;

  const float* row(int64_t y) const {  // of channel 0; null outside
    const int64_t at = first_row + y * row_step;
    return data && at >= 0 && at < height ? data + at * row_stride : nullptr;
  }
};

// Elements first .. first + 31 where channels are neighbours in memory.
template <int PARTS>
static void pack_lines_channels(const LinePlane& plane, const LineSource& s, int64_t first, Largest& largest) {
  constexpr int L = kLanes<float>;
  const int low = int(min_of<int64_t>(L, s.channels - first));
  const int high = int(max_of<int64_t>(0, min_of<int64_t>(L, s.channels - first - L)));
  for (int64_t y = 0; y < plane.rows; y++) {
    const float* row = s.row(y);
    char* to = plane.to + y * plane.pitch * 64;
    for (int64_t x = 0; x < plane.columns; x++, to += 64) {
      const int64_t column = s.first_column + x * s.column_step;
      Vec<float> a{}, b{};
      if (row && column >= 0 && column < s.width) {
        const float* pixel = row + column * s.column_stride + first;
        a = load_n(pixel, low), b = load_n(pixel + L, high);
      }
      largest.see(a), largest.see(b);
      store_line<PARTS>(to, plane.part_step, a, b);
    }
  }
}

constexpr int64_t kStagePixels = 240;  // 32 rows of them are 30 KB, in the first-level cache

// Floats that pack_lines() needs as `stage` for planes of this width.
static inline int64_t stage_pitch(int64_t columns) { return round_up(max_of(columns, kStagePixels), 16) + 16; }

// Elements first .. first + 31, any strides. Rows of single channels, zero padding included, are gathered in `stage`;
// then pixels of several rows at once are transposed.
template <int PARTS>
static void pack_lines_rows(const LinePlane& plane, const LineSource& s, int64_t first, float* stage,
                            Largest& largest) {
  constexpr int L = kLanes<float>;
  const int64_t pitch = stage_pitch(plane.columns);
  const int64_t together = max_of<int64_t>(1, (kStagePixels - plane.columns) / plane.pitch + 1);
  StripShape shape{};
  shape.columns = plane.columns, shape.phases = 1;
  for (int64_t y = 0; y < plane.rows; y += together) {
    const int64_t rows = min_of(together, plane.rows - y), pixels = (rows - 1) * plane.pitch + plane.columns;
    for (int64_t v = first; v < first + 2 * L; v++) {
      float* line = stage + (v - first) * pitch;
      const int64_t c = v % s.channels, shift = v / s.channels * s.column_shift;
      for (int64_t i = 0; i < rows; i++) {
        const float* row = v < s.elements ? s.row(y + i) : nullptr;
        pack_row(line + i * plane.pitch, shape, row ? row + c * s.channel_stride : nullptr, s.column_stride,
                 row ? s.width : 0, s.first_column + shift, s.column_step);
      }
    }
    char* to = plane.to + y * plane.pitch * 64;
    for (int64_t i = 0; i < pixels; i += L) {
      Vec<float> a[L], b[L];
#pragma GCC unroll 16
      for (int j = 0; j < L; j++) a[j] = load(stage + j * pitch + i);
      transpose<float>(a);
#pragma GCC unroll 16
      for (int j = 0; j < L; j++) b[j] = load(stage + (L + j) * pitch + i);
      transpose<float>(b);
      const int count = int(min_of<int64_t>(L, pixels - i));
      for (int j = 0; j < count; j++) {
        largest.see(a[j]), largest.see(b[j]);
        store_line<PARTS>(to + (i + j) * 64, plane.part_step, a[j], b[j]);
      }
    }
  }
}

// ---- weights

// Calls body(channel, tap, values of `count` <= 16 output channels) for all weights of these output channels; lanes
// beyond `count` are zeros. The source is walked along its longest contiguous run, as in pack_blocks().
template <class Body>
static void each_weight(const ConvPlan<float>& plan, const WeightSource<float>& from, int count, const Body& body) {
  constexpr int L = kLanes<float>;
  const ConvAxis &h = plan.axis[1], &w = plan.axis[2];
  const int64_t taps = plan.taps, all = plan.in_channels * taps;
  const bool taps_run = (w.kernel == 1 || from.axis[2] == 1) && (h.kernel == 1 || from.axis[1] == w.kernel) &&
                        (plan.axis[0].kernel == 1 || from.axis[0] == w.kernel * h.kernel);
  const int64_t run = taps_run && from.c == taps ? all : taps_run ? taps : 1;
  for (int64_t r = 0; r < all; r += run) {
    int64_t c = r / taps, tap = r % taps;
    const int64_t tap_offset = tap / w.kernel / h.kernel * from.axis[0] + tap / w.kernel % h.kernel * from.axis[1] +
                               tap % w.kernel * from.axis[2];
    for (int64_t i = 0; i < run; i += L) {
      const int length = int(min_of<int64_t>(L, run - i));
      const float* source = from.data + c * from.c + (run == 1 ? tap_offset : 0) + tap * (run != 1);
      Vec<float> column[L];
      if (from.k == 1) {
        for (int j = 0; j < length; j++) column[j] = load_n(source + j, count);
      } else if (length > 1) {
#pragma GCC unroll 16
        for (int j = 0; j < L; j++) column[j] = j < count ? load_n(source + j * from.k, length) : Vec<float>{};
        transpose<float>(column);
      } else {
        float lane[L] = {};
        for (int j = 0; j < count; j++) lane[j] = source[j * from.k];
        column[0] = load(lane);
      }
      for (int j = 0; j < length; j++) {
        body(c, tap, column[j]);
        if (++tap == taps) tap = 0, c++;
      }
    }
  }
}

// Where the weights of one tap go: step of its class's first block of channels, element of the line.
struct SplitTap {
  int64_t step, taps;  // taps: steps from one block of 32 elements to the next
  int64_t element;     // of channel 0
};
template <int PARTS>
static SplitTap split_tap(const ConvSplitPlan<PARTS>& plan, int64_t tap) {
  const ConvAxis &d = plan.axis[0], &h = plan.axis[1], &w = plan.axis[2];
  const int64_t r[CK_AXES] = {tap / w.kernel / h.kernel, tap / w.kernel % h.kernel, tap % w.kernel};
  const int64_t rho[CK_AXES] = {r[0] % d.modulus, r[1] % h.modulus, r[2] % w.modulus};
  const AxisTaps td = d.taps(rho[0]), th = h.taps(rho[1]), tw = plan.folded(w.taps(rho[2]));
  const int64_t column = r[2] / w.modulus;
  SplitTap place;
  place.taps = td.count * th.count * tw.count;
  place.step = plan.steps_before(rho[0], rho[1], rho[2]) +
               ((r[0] / d.modulus) * th.count + r[1] / h.modulus) * tw.count + column / plan.fold;
  place.element = column % plan.fold * plan.in_channels;
  return place;
}

// One block of output channels: the power of two that undoes each channel's scaling, then the tiles. Returns whether
// all weights are finite. `from` is the group's.
template <int PARTS>
static bool pack_split_block(const ConvSplitPlan<PARTS>& plan, WeightSource<float> from, int64_t block, char* to) {
  constexpr int L = kLanes<float>;
  constexpr int64_t kKnownTaps = 256;  // 16x16 kernels; larger ones pay the divisions for each element
  SplitTap known[kKnownTaps];
  for (int64_t tap = 0; tap < min_of(plan.taps, kKnownTaps); tap++) known[tap] = split_tap(plan, tap);
  const int vectors = plan.vectors(block);
  bool finite = true;
  memset(to, 0, size_t(plan.block_bytes(block)));
  for (int v = 0; v < vectors; v++) {
    WeightSource<float> source = from;
    source.data += (block * plan.block + v * L) * from.k;
    const int count = int(min_of<int64_t>(L, plan.out_channels - block * plan.block - v * L));
    Largest largest;
    each_weight(plan, source, count, [&](int64_t, int64_t, Vec<float> w) { largest.see(w); });
    finite &= largest.value() < 0x7f800000u;
    // The largest weight's power of two; its reciprocal is a normal number too.
    constexpr uint32_t least = 1u << 23, most = 253u << 23;
    Bits exponent = largest.lanes & 0x7f800000u;
    exponent = exponent < least ? Bits{} + least : exponent > most ? Bits{} + most : exponent;
    store(reinterpret_cast<uint32_t*>(to) + v * L, exponent);
    const Vec<float> scale = (Vec<float>)((254u << 23) - exponent);
    each_weight(plan, source, count, [&](int64_t c, int64_t tap, Vec<float> w) {
      const SplitTap place = tap < kKnownTaps ? known[tap] : split_tap(plan, tap);
      const int64_t element = place.element + c, step = place.step + element / kLineElements * place.taps;
      const bool high = element & L;
      char* line = to + 128 + (step * PARTS * vectors + v) * 1024 + element % L * 64;
      w *= scale;
      for (int part = 0; part < PARTS; part++, line += vectors * 1024) {
        const Bits bits = PARTS == 3 && part == 2 ? next_part<true>(w) : next_part<false>(w);
        uint32_t* at = reinterpret_cast<uint32_t*>(line);
        store(at, load(at) | (high ? bits : bits >> 16));
      }
    });
  }
  return finite;
}

// All weights, in parallel over groups and blocks.
template <int PARTS>
static ck_status pack_split_weights(const ConvSplitPlan<PARTS>& plan, const WeightSource<float>& from,
                                    int64_t group_stride, void* to, const ck_exec* exec) {
  PackedHeader* header = static_cast<PackedHeader*>(to);
  header->bad[0] = 0;
  const double elements = double(plan.block) * double(plan.in_channels) * double(plan.taps);
  return parallel_pieces(exec, plan.groups * plan.k_blocks, elements * 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      WeightSource<float> source = from;
      source.data += i / plan.k_blocks * group_stride;
      const int64_t block = i % plan.k_blocks;
      char* at = static_cast<char*>(to) + plan.block_offset(i / plan.k_blocks, block);
      if (!pack_split_block(plan, source, block, at)) __atomic_store_n(&header->bad[0], 1, __ATOMIC_RELAXED);
    }
  });
}
