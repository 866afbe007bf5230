// Packing for the direct convolution: the input strip with its zero padding, and the weights. Arrays are of the storage
// type S (storage.inl), what is packed of T = Wide<S>.

// Where a strip's pixels lie: [channel][image][plane][row][column phase][column].
struct StripShape {
  int64_t images, planes, rows, columns;  // columns of one column phase
  int64_t phases;                         // column phases: neighbouring outputs are neighbours within one phase
  int64_t row_pitch, plane_pitch, image_pitch, channel_pitch;
};

// Rows are short (7 to 56 pixels in most layers): a vector loop beats the call of memcpy.
template <class S>
static inline void copy_short(Wide<S>* to, const S* from, int64_t count) {
  typedef Wide<S> T;
  constexpr int L = kLanes<T>;
  int64_t i = 0;
  for (; i + L <= count; i += L) store(to + i, load(from + i));
  if (i < count) store_n(to + i, load_n(from + i, int(count - i)), int(count - i));
}

// Elements 0, 2, ... of the 2 * count - 1 from p on.
template <class S>
static inline Vec<S> load_every_second(const S* p, int count) {
  constexpr int L = kLanes<S>;
  const int low = min_of(L, 2 * count - 1), high = max_of(0, 2 * count - 1 - L);
  return deinterleave<Wide<S>>(load_n(p, low), high ? load_n(p + L, high) : Vec<S>{}).first;
}

template <class S>
static inline void copy_every_second(Wide<S>* to, const S* from, int64_t count) {
  constexpr int64_t L = kLanes<S>;
  for (int64_t i = 0; i < count; i += L) {
    const int some = int(min_of(L, count - i));
    store_n(to + i, load_every_second(from + 2 * i, some), some);
  }
}

// Elements at, at + 1, ... of a row of `size`; zeros outside it.
template <class S>
static inline Vec<S> load_inside(const S* row, int64_t size, int64_t at) {
  constexpr int L = kLanes<S>;
  if (at >= 0)
    return at + L <= size ? load(row + at) : load_n(row + min_of(at, size), int(max_of<int64_t>(0, size - at)));
  Wide<S> lane[L] = {};
  for (int64_t i = -at; i < min_of<int64_t>(L, size - at); i++) lane[i] = widen(row[at + i]);
  return load(lane);
}
// v[0], v[1], ... of P * lanes consecutive values -> every P-th one from the first on, from the second on, ...
template <class T, int P>
static inline void split_phases(Vec<T> (&v)[P]) {
  if constexpr (P == 2) {
    const Pairs<T> pair = deinterleave<T>(v[0], v[1]);
    v[0] = pair.first, v[1] = pair.second;
  } else {
    static_assert(P == 4, "phases of two or four");
    const Pairs<T> low = deinterleave<T>(v[0], v[1]), high = deinterleave<T>(v[2], v[3]);
    const Pairs<T> even = deinterleave<T>(low.first, high.first), odd = deinterleave<T>(low.second, high.second);
    v[0] = even.first, v[1] = odd.first, v[2] = even.second, v[3] = odd.second;
  }
}
// Neighbouring elements from `first` on, zeros outside the row, split into P phases of `columns`.
template <int P, class S>
static inline void pack_phases(Wide<S>* to, const S* row, int64_t size, int64_t first, int64_t columns) {
  constexpr int64_t L = kLanes<S>;
  for (int64_t i = 0; i < columns; i += L) {
    Vec<S> v[P];
    for (int j = 0; j < P; j++) v[j] = load_inside(row, size, first + P * i + j * L);
    split_phases<Wide<S>, P>(v);
    for (int j = 0; j < P; j++) store_n(to + j * columns + i, v[j], int(min_of(L, columns - i)));
  }
}

// One row of one channel: columns first, first + step, ... of the source, zeros outside it, split into phases.
template <class S>
static void pack_row(Wide<S>* to, const StripShape& s, const S* from, int64_t stride, int64_t size, int64_t first,
                     int64_t step) {
  typedef Wide<S> T;
  if (step == 1 && stride == 1 && s.phases == 2) return pack_phases<2>(to, from, size, first, s.columns);
  if (step == 1 && stride == 1 && s.phases == 4) return pack_phases<4>(to, from, size, first, s.columns);
  for (int64_t phase = 0; phase < s.phases; phase++, to += s.columns) {
    const int64_t start = first + phase * step, advance = step * s.phases;
    const int64_t before = start >= 0 ? 0 : min_of(s.columns, ceil_div(-start, advance));
    const int64_t end = start >= size ? 0 : min_of(s.columns, ceil_div(size - start, advance));
    int64_t i = 0;
    for (; i < before; i++) to[i] = T(0);
    if (i < end) {
      const S* p = from + (start + i * advance) * stride;
      const int64_t jump = advance * stride;
      if (jump == 1) {
        copy_short(to + i, p, end - i);
        i = end;
      } else if (jump == 2) {
        copy_every_second(to + i, p, end - i);
        i = end;
      } else {
        for (; i < end; i++, p += jump) to[i] = widen(*p);
      }
    }
    for (; i < s.columns; i++) to[i] = T(0);
  }
}

// One row of all channels where channels are neighbours in memory: blocks of lanes x lanes are transposed in registers.
template <class S>
static void pack_row_channels(Wide<S>* to, const StripShape& s, const S* from, int64_t stride, int64_t size,
                              int64_t first, int64_t step, int64_t channels) {
  typedef Wide<S> T;
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
template <class S>
struct StripSource {
  const S* data;
  const int64_t* stride;  // batch, channel, depth, height, width
  int64_t size[CK_AXES];  // depth, height, width
  int64_t first_image, channels;
  int64_t first_plane, plane_step;  // input coordinates; may lie outside
  int64_t first_row, row_step;
  int64_t first_column, column_step;
};

template <class S>
static void pack_strip(Wide<S>* strip, StripShape s, StripSource<S> in) {
  const bool channels_inside = in.stride[1] == 1 && in.channels > 1 && in.stride[4] != 1;
  int64_t width = in.size[2], height = in.size[1];
  // Whole rows, one behind the other in memory and in the strip, are one row (1x1 kernels).
  const bool whole = in.first_column == 0 && s.columns == width && s.phases == 1 && in.column_step == 1;
  const bool behind = in.stride[3] == width * in.stride[4] && in.row_step == 1 && in.first_row >= 0;
  if (whole && behind && in.first_row + s.rows <= height) {
    width = s.columns *= s.rows;
    s.row_pitch = s.columns, s.rows = 1;
  }
  const int64_t groups = channels_inside ? 1 : in.channels;  // channels handled one by one, or all at once
  for (int64_t c = 0; c < groups; c++)
    for (int64_t n = 0; n < s.images; n++)
      for (int64_t z = 0; z < s.planes; z++) {
        const int64_t plane = in.first_plane + z * in.plane_step;
        Wide<S>* to = strip + c * s.channel_pitch + n * s.image_pitch + z * s.plane_pitch;
        const S* image = in.data + (in.first_image + n) * in.stride[0] + c * in.stride[1];
        for (int64_t y = 0; y < s.rows; y++, to += s.row_pitch) {
          const int64_t row = in.first_row + y * in.row_step;
          const bool inside = plane >= 0 && plane < in.size[0] && row >= 0 && row < height;
          const S* from = image + (inside ? plane * in.stride[2] + row * in.stride[3] : 0);
          const int64_t size = inside ? width : 0;  // 0: a row of zeros
          if (channels_inside)
            pack_row_channels(to, s, from, in.stride[4], size, in.first_column, in.column_step, in.channels);
          else pack_row(to, s, from, in.stride[4], size, in.first_column, in.column_step);
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
  T* block(int64_t group, int64_t block) const { return data + (group * plan.k_blocks + block) * plan.block_elements; }
};

// First element of a class's weights in its block: classes follow each other in the order depth, height, width.
template <class T>
static int64_t class_offset(const ConvPlan<T>& plan, int64_t block, int64_t rho_d, int64_t rho_h, int64_t rho_w) {
  const ConvAxis &d = plan.axis[0], &h = plan.axis[1], &w = plan.axis[2];
  const int64_t in_h = h.taps_before(rho_h) * w.kernel + h.taps(rho_h).count * w.taps_before(rho_w);
  const int64_t before = d.taps_before(rho_d) * h.kernel * w.kernel + d.taps(rho_d).count * in_h;
  return before * plan.in_channels * plan.vectors(block) * plan.lanes;
}

// Weights as they come: element (k, c, depth, height, width) of one group.
template <class S>
struct WeightSource {
  const S* data;
  int64_t k, c, axis[CK_AXES];  // strides
};

// Where one tap of the kernel goes in a packed block.
struct TapPlace {
  int64_t base;   // elements: its class, then its place among the class's taps
  int64_t taps;   // of the class
  int64_t chunk;  // channels
  int64_t index;  // in the class
};

template <class T>
static TapPlace place_of_tap(const ConvPlan<T>& plan, int64_t block, int64_t tap) {
  const ConvAxis &d = plan.axis[0], &h = plan.axis[1], &w = plan.axis[2];
  const int64_t r[CK_AXES] = {tap / w.kernel / h.kernel, tap / w.kernel % h.kernel, tap % w.kernel};
  const int64_t rho[CK_AXES] = {r[0] % d.modulus, r[1] % h.modulus, r[2] % w.modulus};
  const AxisTaps td = d.taps(rho[0]), th = h.taps(rho[1]), tw = w.taps(rho[2]);
  TapPlace place;
  place.taps = td.count * th.count * tw.count;
  place.chunk = chunk_channels(plan.in_channels, place.taps);
  place.index = ((r[0] / d.modulus) * th.count + r[1] / h.modulus) * tw.count + r[2] / w.modulus;
  place.base = class_offset(plan, block, rho[0], rho[1], rho[2]);
  return place;
}

// Some blocks of output channels, all as wide as the first, to `out`, block_elements apart. Returns whether all weights
// are finite. `from` is the group's.
//
// The source is walked along its longest contiguous run: channels and taps together (forward), taps (input gradient),
// or single elements. lanes x lanes elements are transposed in registers, unless output channels are neighbours anyway.
// For the input gradient a channel's weights of neighbouring blocks are neighbours too: several blocks at once read
// whole pages instead of a few lines of each (9.4 MB of 3x3 weights: 3.3 -> 1.1 ms), and the next channel's are
// prefetched.
template <class S>
static bool pack_blocks(const ConvPlan<Wide<S>>& plan, Range blocks, const WeightSource<S>& from, Wide<S>* out) {
  typedef Wide<S> T;
  constexpr int L = kLanes<T>;
  constexpr int64_t kKnownTaps = 256;  // 16x16 kernels; larger ones pay the divisions for each element
  const ConvAxis &h = plan.axis[1], &w = plan.axis[2];
  const int vectors = plan.vectors(blocks.begin);
  const int64_t channels = plan.in_channels, taps = plan.taps, wide = vectors * L;
  // Where the next channel of each tap goes: channels come in order, so that is one further, but for a new chunk.
  struct Cursor {
    int64_t offset, left;
  };
  Cursor known[kKnownTaps];
  for (int64_t tap = 0; tap < min_of(taps, kKnownTaps); tap++) known[tap] = {0, 0};
  const auto begin = [&](int64_t c, int64_t tap) -> Cursor {
    const TapPlace place = place_of_tap(plan, blocks.begin, tap);
    const int64_t first = c / place.chunk * place.chunk, size = min_of(place.chunk, channels - first);
    return {place.base + (first * place.taps + place.index * size + (c - first)) * wide, size - (c - first)};
  };
  const auto next = [&](int64_t c, int64_t tap) {
    if (tap >= kKnownTaps) return begin(c, tap).offset;
    Cursor& cursor = known[tap];
    if (cursor.left == 0) cursor = begin(c, tap);
    cursor.left--;
    cursor.offset += wide;
    return cursor.offset - wide;
  };
  const bool taps_run = (w.kernel == 1 || from.axis[2] == 1) && (h.kernel == 1 || from.axis[1] == w.kernel) &&
                        (plan.axis[0].kernel == 1 || from.axis[0] == w.kernel * h.kernel);
  const bool all_run = taps_run && from.c == taps;
  const int64_t run = all_run ? channels * taps : taps_run ? taps : 1;
  const int64_t runs = channels * taps / max_of<int64_t>(1, run);
  Vec<T> bad{};
  int64_t c = 0, tap = 0;
  for (int64_t r = 0; r < runs; r++) {
    int64_t offset = c * from.c;
    if (run == 1 && taps > 1)
      offset += tap / w.kernel / h.kernel * from.axis[0] + tap / w.kernel % h.kernel * from.axis[1] +
                tap % w.kernel * from.axis[2];
    for (int64_t i = 0; i < run; i += L) {
      const int length = int(min_of<int64_t>(L, run - i));
      int64_t place[L];
      for (int j = 0; j < length; j++) {
        place[j] = next(c, tap);
        if (++tap == taps) tap = 0, c++;
      }
      for (int64_t block = blocks.begin; block < blocks.end; block++) {
        T* const to = out + (block - blocks.begin) * plan.block_elements;
        for (int v = 0; v < vectors; v++) {
          const int64_t k0 = block * plan.block + v * L;
          const int count = int(max_of<int64_t>(0, min_of<int64_t>(L, plan.out_channels - k0)));
          const S* const source = from.data + k0 * from.k + offset + i;
          Vec<T> column[L];
          if (from.k == 1) {
            __builtin_prefetch(source + 16 * from.c);  // a page each: the walk takes longest
            for (int j = 0; j < length; j++) column[j] = load_n(source + j, count);
          } else if (length > 1) {
#pragma GCC unroll 16
            for (int j = 0; j < L; j++) {
              column[j] = j < count ? load_n(source + j * from.k, length) : Vec<T>{};
              __builtin_prefetch(source + j * from.k + (all_run ? 4 * L : 2 * from.c));
            }
            transpose<T>(column);
          } else {
            T lane[L] = {};
            for (int j = 0; j < count; j++) lane[j] = widen(source[j * from.k]);
            column[0] = load(lane);
          }
          for (int j = 0; j < length; j++) {
            store(to + place[j] + v * L, column[j]);
            bad += column[j] * T(0);
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
template <class S>
static ck_status pack_weights(const ConvPlan<Wide<S>>& plan, const WeightSource<S>& from, int64_t group_stride,
                              void* to, const ck_exec* exec) {
  typedef Wide<S> T;
  const PackedWeights<T> packed(plan, to);
  PackedHeader* header = PackedWeights<T>::header(to);
  header->bad[0] = 0;
  constexpr int64_t kTogether = 4;  // blocks of one task: enough to read pages whole, few enough streams to write
  const int64_t teams = ceil_div(plan.k_blocks, kTogether), tasks = plan.groups * teams;
  const double elements = double(plan.block * kTogether) * double(plan.in_channels) * double(plan.taps);
  const int64_t chunks = chunks_for(tasks, elements * 8, exec->threads);
  return parallel(exec, chunks, [&](int chunk, int) {
    const Range range = piece(tasks, chunks, chunk);
    for (int64_t i = range.begin; i < range.end; i++) {
      const int64_t group = i / teams;
      WeightSource<S> source = from;
      source.data += group * group_stride;
      const Range blocks = {i % teams * kTogether, min_of(plan.k_blocks, (i % teams + 1) * kTogether)};
      const bool narrow = plan.vectors(blocks.end - 1) == 1;  // the last block may be one vector wide
      const int64_t step = from.k > from.c ? 1 : kTogether;   // rows of the source that are long: one block at a time
      bool finite = true;
      for (int64_t b = blocks.begin; b < blocks.end - narrow; b += step) {
        const Range some = {b, min_of(b + step, blocks.end - narrow)};
        finite &= pack_blocks(plan, some, source, packed.block(group, b));
      }
      if (narrow)
        finite &= pack_blocks(plan, {blocks.end - 1, blocks.end}, source, packed.block(group, blocks.end - 1));
      if (!finite) __atomic_store_n(&header->bad[0], 1, __ATOMIC_RELAXED);
    }
  });
}
