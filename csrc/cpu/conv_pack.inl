// Packing for the direct convolution: the input strip with its zero padding, and the weights.

// Where a strip's pixels lie: [channel][image][plane][row][column phase][column].
struct StripShape {
  int64_t images, planes, rows, columns;  // columns of one column phase
  int64_t phases;                         // column phases: neighbouring outputs are neighbours within one phase
  int64_t row_pitch, plane_pitch, image_pitch, channel_pitch;
};

// One row of one channel: columns first, first + step, ... of the source, zeros outside it, split into phases.
template <class T>
static void pack_row(T* to, const StripShape& s, const T* from, int64_t stride, int64_t size, int64_t first,
                     int64_t step) {
  for (int64_t phase = 0; phase < s.phases; phase++, to += s.columns) {
    const int64_t start = first + phase * step, advance = step * s.phases;
    const int64_t before = start >= 0 ? 0 : min_of(s.columns, ceil_div(-start, advance));
    const int64_t end = start >= size ? 0 : min_of(s.columns, ceil_div(size - start, advance));
    int64_t i = 0;
    for (; i < before; i++) to[i] = T(0);
    if (i < end) {
      const T* p = from + (start + i * advance) * stride;
      const int64_t jump = advance * stride;
      if (jump == 1) {
        memcpy(to + i, p, size_t(end - i) * sizeof(T));
        i = end;
      } else if (jump == 2) {
        for (int64_t j = 0; j < end - i; j++) to[i + j] = p[2 * j];
        i = end;
      } else {
        for (; i < end; i++, p += jump) to[i] = *p;
      }
    }
    for (; i < s.columns; i++) to[i] = T(0);
  }
}

// One row of all channels where channels are neighbours in memory: blocks of lanes x lanes are transposed in registers.
template <class T>
static void pack_row_channels(T* to, const StripShape& s, const T* from, int64_t stride, int64_t size, int64_t first,
                              int64_t step, int64_t channels) {
  constexpr int L = kLanes<T>;
  for (int64_t phase = 0; phase < s.phases; phase++, to += s.columns) {
    const int64_t start = first + phase * step, advance = step * s.phases;
    for (int64_t i = 0; i < s.columns; i += L) {
      const int pixels = int(min_of<int64_t>(L, s.columns - i));
      for (int64_t c = 0; c < channels; c += L) {
        const int count = int(min_of<int64_t>(L, channels - c));
        Vec<T> v[L];
#pragma GCC unroll 16
        for (int j = 0; j < L; j++) {
          const int64_t column = start + (i + j) * advance;
          const bool inside = j < pixels && column >= 0 && column < size;
          v[j] = inside ? load_n(from + column * stride + c, count) : Vec<T>{};
        }
        transpose<T>(v);
        for (int j = 0; j < count; j++) store_n(to + (c + j) * s.channel_pitch + i, v[j], pixels);
      }
    }
  }
}

// A strip for one output depth and a range of rows and columns. `in` points at the group's first channel of image 0.
template <class T>
struct StripSource {
  const T* data;
  const int64_t* stride;        // batch, channel, depth, height, width
  const int64_t* size;          // depth, height, width
  int64_t first_image, channels;
  int64_t first_plane, plane_step;  // input coordinates; may lie outside
  int64_t first_row, row_step;
  int64_t first_column, column_step;
};

template <class T>
static void pack_strip(T* strip, const StripShape& s, const StripSource<T>& in) {
  const bool channels_inside = in.stride[1] == 1 && in.channels > 1 && in.stride[4] != 1;
  const int64_t groups = channels_inside ? 1 : in.channels;  // channels handled one by one, or all at once
  for (int64_t c = 0; c < groups; c++)
    for (int64_t n = 0; n < s.images; n++)
      for (int64_t z = 0; z < s.planes; z++) {
        const int64_t plane = in.first_plane + z * in.plane_step;
        T* to = strip + c * s.channel_pitch + n * s.image_pitch + z * s.plane_pitch;
        const T* image = in.data + (in.first_image + n) * in.stride[0] + c * in.stride[1];
        for (int64_t y = 0; y < s.rows; y++, to += s.row_pitch) {
          const int64_t row = in.first_row + y * in.row_step;
          const bool inside = plane >= 0 && plane < in.size[0] && row >= 0 && row < in.size[1];
          const T* from = image + (inside ? plane * in.stride[2] + row * in.stride[3] : 0);
          const int64_t width = inside ? in.size[2] : 0;  // 0: a row of zeros
          if (channels_inside)
            pack_row_channels(to, s, from, in.stride[4], width, in.first_column, in.column_step, in.channels);
          else
            pack_row(to, s, from, in.stride[4], width, in.first_column, in.column_step);
        }
      }
}

// Packed weights: a header, then for each group, block of output channels, class of taps and chunk of channels
//     [tap][channel of the chunk][lanes or 2 * lanes output channels].
// A last block of at most `lanes` channels is one vector wide; channels beyond the last are zeros.
struct PackedHeader {
  int64_t bad[8];  // bad[0]: some weight is not finite. One cache line.
};

template <class T>
struct PackedWeights {
  const ConvPlan<T>& plan;
  T* data;  // behind the header

  static size_t bytes(const ConvPlan<T>& plan) {
    return sizeof(PackedHeader) + size_t(plan.packed_elements) * sizeof(T);
  }
  static PackedHeader* header(void* packed) { return static_cast<PackedHeader*>(packed); }
  PackedWeights(const ConvPlan<T>& p, void* packed) : plan(p), data(reinterpret_cast<T*>(header(packed) + 1)) {}

  int vectors(int64_t block) const {  // of one tap and channel in this block
    return plan.out_channels - block * plan.block > plan.lanes ? 2 : 1;
  }
  int64_t taps_all() const { return plan.axis[0].kernel * plan.axis[1].kernel * plan.axis[2].kernel; }
  // First element of a class's weights: classes follow each other in the order depth, height, width.
  T* at(int64_t group, int64_t block, int64_t rho_d, int64_t rho_h, int64_t rho_w) const {
    const ConvAxis &d = plan.axis[0], &h = plan.axis[1], &w = plan.axis[2];
    const int64_t in_h = h.taps_before(rho_h) * w.kernel + h.taps(rho_h).count * w.taps_before(rho_w);
    const int64_t before = d.taps_before(rho_d) * h.kernel * w.kernel + d.taps(rho_d).count * in_h;
    const int64_t whole = (group * plan.k_blocks + block) * plan.block * plan.in_channels * taps_all();
    return data + whole + before * plan.in_channels * vectors(block) * plan.lanes;
  }
};

// Weights as they come: element (k, c, depth, height, width) of one group.
template <class T>
struct WeightSource {
  const T* data;
  int64_t k, c, axis[CK_AXES];  // strides
};

// One block of output channels of one group. Returns whether all its weights are finite.
template <class T>
static bool pack_block(const PackedWeights<T>& packed, int64_t group, int64_t block, const WeightSource<T>& from) {
  constexpr int L = kLanes<T>;
  const ConvPlan<T>& plan = packed.plan;
  const ConvAxis &d = plan.axis[0], &h = plan.axis[1], &w = plan.axis[2];
  const int vectors = packed.vectors(block);
  const int64_t channels = plan.in_channels, wide = vectors * L;
  Vec<T> bad{};
  for (int64_t rd = 0; rd < d.classes; rd++)
    for (int64_t rh = 0; rh < h.classes; rh++)
      for (int64_t rw = 0; rw < w.classes; rw++) {
        const AxisTaps td = d.taps(rd), th = h.taps(rh), tw = w.taps(rw);
        const int64_t taps = td.count * th.count * tw.count;
        const int64_t chunk = chunk_channels(channels, taps);
        T* to = packed.at(group, block, rd, rh, rw);
        for (int v = 0; v < vectors; v++) {
          const int64_t k0 = block * plan.block + v * L;
          const int count = int(max_of<int64_t>(0, min_of<int64_t>(L, plan.out_channels - k0)));
          const T* base = from.data + k0 * from.k;
          // Where output channels are neighbours a vector is one load. Else lanes x lanes elements along the innermost
          // run of the source are transposed: the run is the taps of a row if they are neighbours, or the channels.
          const bool run_taps = from.axis[2] * tw.step == 1 && tw.count > 1;
          const int64_t run = run_taps ? tw.count : channels;
          const int64_t run_stride = run_taps ? 1 : from.c;
          const int64_t outer = run_taps ? channels : tw.count;
          for (int64_t jd = 0; jd < td.count; jd++)
            for (int64_t jh = 0; jh < th.count; jh++)
              for (int64_t o = 0; o < outer; o++) {
                const T* source = base + (td.first + jd * td.step) * from.axis[0] +
                                  (th.first + jh * th.step) * from.axis[1] + tw.first * from.axis[2] +
                                  (run_taps ? o * from.c : o * tw.step * from.axis[2]);
                const int64_t tap_row = (jd * th.count + jh) * tw.count;
                for (int64_t i = 0; i < run; i += L) {
                  const int length = int(min_of<int64_t>(L, run - i));
                  Vec<T> block_[L];
                  if (from.k == 1) {
                    for (int j = 0; j < length; j++) block_[j] = load_n(source + (i + j) * run_stride, count);
                  } else if (run_stride == 1) {
#pragma GCC unroll 16
                    for (int j = 0; j < L; j++)
                      block_[j] = j < count ? load_n(source + j * from.k + i, length) : Vec<T>{};
                    transpose<T>(block_);
                  } else {
                    for (int j = 0; j < length; j++) {
                      T lane[L] = {};
                      for (int k = 0; k < count; k++) lane[k] = source[k * from.k + (i + j) * run_stride];
                      block_[j] = load(lane);
                    }
                  }
                  for (int j = 0; j < length; j++) {
                    const int64_t c = run_taps ? o : i + j, tap = tap_row + (run_taps ? i + j : o);
                    const int64_t first = c / chunk * chunk, size = min_of(chunk, channels - first);
                    T* place = to + (first * taps + tap * size + (c - first)) * wide + v * L;
                    store(place, block_[j]);
                    bad += block_[j] * T(0);
                  }
                }
              }
        }
      }
  for (int j = 0; j < L; j++)
    if (bad[j] != T(0)) return false;
  return true;
}

// All weights, in parallel over groups and blocks.
template <class T>
static ck_status pack_weights(const ConvPlan<T>& plan, const WeightSource<T>& from, int64_t group_stride, void* to,
                              const ck_exec* exec) {
  const PackedWeights<T> packed(plan, to);
  PackedHeader* header = PackedWeights<T>::header(to);
  header->bad[0] = 0;
  const int64_t blocks = plan.groups * plan.k_blocks;
  const double elements = double(plan.block) * double(plan.in_channels) * double(packed.taps_all());
  const int64_t chunks = chunks_for(blocks, elements * 8, exec->threads);
  return parallel(exec, chunks, [&](int chunk, int) {
    const Range range = piece(blocks, chunks, chunk);
    for (int64_t i = range.begin; i < range.end; i++) {
      WeightSource<T> source = from;
      source.data += i / plan.k_blocks * group_stride;
      if (!pack_block(packed, i / plan.k_blocks, i % plan.k_blocks, source))
        __atomic_store_n(&header->bad[0], 1, __ATOMIC_RELAXED);
    }
  });
}
