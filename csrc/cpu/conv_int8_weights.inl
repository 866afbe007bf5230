// Weights of an int8 convolution in cells (conv_int8_cells.inl), and the plan that counts in cells.
//
// Packed weights: for each group and block of output channels
//     [lanes or 2 * lanes start values] [chunk of cells][tap][cell of the chunk][lanes or 2 * lanes output channels].
// The start values are what flipped inputs make the sums miss: 128 times the sum of a channel's weights, or 0.

struct Int8Plan : ConvPlan<int32_t> {
  int64_t channels;  // read per group; in_channels counts cells

  Int8Plan(const ck_conv& p, int threads) {
    ck_conv in_cells = p;
    channels = p.in_channels / p.groups;
    in_cells.in_channels = ceil_div(channels, kCellChannels) * p.groups;
    init(in_cells, false, threads);
    block_elements += block;
    packed_elements = groups * k_blocks * block_elements;
  }
};

// One block of output channels. `from` is the group's.
//
// A channel's taps are neighbours in memory, and usually its channels too; then rows of lanes x lanes dwords are
// transposed in registers, and each cell picks its bytes from them: 20 instructions for lanes * kCellChannels weights.
template <class W>
static void pack_cell_block(const Int8Plan& plan, int64_t block, const WeightSource<W>& from, int64_t start_factor,
                            int32_t* out) {
  constexpr int L = kLanes<int32_t>;
  constexpr int64_t kMostBytes = 512;  // loaded at once: taps of the channels of a cell; 8x8 taps of four channels fit
  typedef Vec<uint32_t> Words;
  const ConvAxis &d = plan.axis[0], &h = plan.axis[1], &w = plan.axis[2];
  const int64_t taps = plan.taps, cell_bytes = taps * kCellChannels;
  const bool run = (w.kernel == 1 || from.axis[2] == 1) && (h.kernel == 1 || from.axis[1] == w.kernel) &&
                   (d.kernel == 1 || from.axis[0] == w.kernel * h.kernel) && from.c == taps && cell_bytes <= kMostBytes;
  const int64_t together = run ? max_of<int64_t>(1, 4 * L / cell_bytes) : 1;  // cells whose bytes are loaded at once
  const int64_t chunk = chunk_channels(plan.in_channels, taps), wide = plan.vectors(block) * L;
  for (int64_t k = 0; k < wide; k += L) {
    const int64_t count = min_of<int64_t>(L, plan.out_channels - block * plan.block - k);
    const W* const source = from.data + (block * plan.block + k) * from.k;
    Vec<int32_t> sum{};
    for (int64_t first = 0; first < plan.in_channels; first += together) {
      Vec<int32_t> words[kMostBytes / 4 + L];
      const int64_t begin = first * cell_bytes, end = min_of(plan.channels * taps, begin + together * cell_bytes);
      for (int64_t b = 0; run && b < together * cell_bytes; b += 4 * L) {
        Vec<int32_t>(&v)[L] = reinterpret_cast<Vec<int32_t>(&)[L]>(words[b / 4]);
        for (int j = 0; j < L; j++) {
          const W* p = source + j * from.k + begin + b;
          v[j] = j < count ? (Vec<int32_t>)load_bytes<W, 4 * L>(p, end - begin - b) : Vec<int32_t>{};
          __builtin_prefetch(p + 8 * L);
        }
        transpose<int32_t>(v);
      }
      const int64_t last = min_of(plan.in_channels, first + together);
      for (int64_t c = first; c < last; c++) {
        const int64_t chunk_first = c / chunk * chunk, size = min_of(chunk, plan.in_channels - chunk_first);
        int32_t* to = out + wide + (chunk_first * taps + c - chunk_first) * wide + k;
        for (int64_t tap = 0; tap < taps; tap++, to += size * wide) {
          Vec<int32_t> value[kCellChannels];
          for (int j = 0; j < kCellChannels; j++) {
            if (run) {
              const int64_t byte = ((c - first) * kCellChannels + j) * taps + tap;
              const Words top = (Words)words[byte / 4] << uint32_t(24 - byte % 4 * 8);
              value[j] = W(-1) < W(0) ? (Vec<int32_t>)top >> 24 : (Vec<int32_t>)(top >> 24);
            } else {
              const int64_t channel = c * kCellChannels + j;
              const int64_t at = channel * from.c + tap / (w.kernel * h.kernel) * from.axis[0] +
                                 tap / w.kernel % h.kernel * from.axis[1] + tap % w.kernel * from.axis[2];
              int32_t lane[L] = {};
              for (int64_t i = 0; channel < plan.channels && i < count; i++) lane[i] = source[i * from.k + at];
              value[j] = load(lane);
            }
            sum += value[j];
          }
          store(to, cells_of(value, 0));
        }
      }
    }
    store(out + k, sum * int32_t(start_factor));
  }
}

// Weights of either sign as they come, and where a block of them goes.
struct Int8Weights {
  const ck_tensor& tensor;
  bool is_unsigned;
  int64_t group_stride, start_factor;  // -128 where the input is int8 + 128, 128 where it is uint8 - 128, or 0

  Int8Weights(const ck_conv& p, const ck_tensor& weight, bool input_unsigned)
      : tensor(weight), is_unsigned(p.weight_unsigned != 0), group_stride(weight_group(p, weight)) {
    start_factor = !input_flip(input_unsigned, is_unsigned) ? 0 : is_unsigned ? 128 : -128;
  }
  void pack_block(const Int8Plan& plan, int64_t group, int64_t block, int32_t* to) const {
    if (is_unsigned) pack_as<uint8_t>(plan, group, block, to);
    else pack_as<int8_t>(plan, group, block, to);
  }
  // All blocks, in parallel.
  ck_status pack(const Int8Plan& plan, int32_t* to, const ck_exec* exec) const {
    const double ops = 2.0 * double(plan.block) * double(plan.channels) * double(plan.taps);
    return parallel_pieces(exec, plan.groups * plan.k_blocks, ops, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++)
        pack_block(plan, i / plan.k_blocks, i % plan.k_blocks, to + i * plan.block_elements);
    });
  }

 private:
  template <class W>
  void pack_as(const Int8Plan& plan, int64_t group, int64_t block, int32_t* to) const {
    WeightSource<W> source = weight_source<W>(tensor, false);
    source.data += group * group_stride;
    pack_cell_block(plan, block, source, start_factor, to);
  }
};
