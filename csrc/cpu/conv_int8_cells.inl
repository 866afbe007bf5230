// int8 and uint8 operands in the form that instruction sets multiply them in. A cell is an int32 lane that holds
// kCellChannels neighbouring channels, so a convolution of bytes becomes one of cells: same plan, same register tile.
//
//   AVX-512 VNNI  4 bytes    vpdpbusd: sums of four products, added to int32; it wants unsigned times signed bytes
//   x86           2 x int16  vpmaddwd: sums of two products; the largest is 2 * 255 * 255, the only one that would not
//                            fit is 2 * 2^15 * 2^15, which no 8-bit values give. Then an addition
//   others        1 x int32  multiply-add of int32
//
// vpmaddubsw, which x86 also has for bytes, saturates its sums at 16 bits, so it is not used.
//
// Where both operands have the same sign, vpdpbusd gets the input with its top bit flipped: of int8 that is x + 128, of
// uint8 x - 128. The sum is then off by 128 times the sum of the weights, which the tile starts from (with the other
// sign). That holds for every output alike because stored padding is a flipped zero. int8 with uint8 needs no flip:
// whichever is unsigned is the first factor. All of it is exact modulo 2^32, and the result fits.

#ifdef CK_VNNI
constexpr int kCellChannels = 4;
#elif defined(__SSE2__)
constexpr int kCellChannels = 2;
#else
constexpr int kCellChannels = 1;
#endif
constexpr int32_t kTopBits = int32_t(0x80808080);

// The step of the register tile. The tile's sums start at the vectors that precede a block's weights.
template <bool WEIGHTS_UNSIGNED>
struct CellProduct {
  static Vec<int32_t> start(const TileArgs<int32_t>& t, int at) { return t.add ? Vec<int32_t>{} : load(t.weight + at); }
  static void step(Vec<int32_t>& sum, int32_t x, Vec<int32_t> w) {
#ifdef CK_VNNI
    const __m512i cell = _mm512_set1_epi32(x);
    if constexpr (WEIGHTS_UNSIGNED) sum = (Vec<int32_t>)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, cell);
    else sum = (Vec<int32_t>)_mm512_dpbusd_epi32((__m512i)sum, cell, (__m512i)w);
#elif defined(__AVX512BW__) && CK_VECTOR_BYTES == 64
    sum += (Vec<int32_t>)_mm512_madd_epi16((__m512i)w, _mm512_set1_epi32(x));
#elif defined(__AVX2__) && CK_VECTOR_BYTES == 32
    sum += (Vec<int32_t>)_mm256_madd_epi16((__m256i)w, _mm256_set1_epi32(x));
#elif defined(__SSE2__)
    sum += (Vec<int32_t>)_mm_madd_epi16((__m128i)w, _mm_set1_epi32(x));
#else
    sum += w * x;
#endif
  }
};
static TileFn<int32_t> cell_tile_for(int rows, int pixels, int vectors, bool weights_unsigned) {
#ifdef CK_VNNI
  if (weights_unsigned) return tile_for<int32_t, CellProduct<true>>(rows, pixels, vectors);
#endif
  (void)weights_unsigned;  // elsewhere the operands were widened
  return tile_for<int32_t, CellProduct<false>>(rows, pixels, vectors);
}

// What the input is xored with, and so what stored padding is.
static inline int32_t input_flip(bool input_unsigned, bool weights_unsigned) {
  return kCellChannels == 4 && input_unsigned == weights_unsigned ? kTopBits : 0;
}

// ---- loading bytes

template <class X, int N>
struct BytesOf {
  typedef X type __attribute__((vector_size(N)));
};
template <class X, int N>
using Bytes = typename BytesOf<X, N>::type;

// At most 8, the first one lowest; no byte beyond them is touched.
static inline uint64_t few_bytes(const void* from, int64_t n) {
  const char* p = static_cast<const char*>(from);
  if (n >= 4) {
    uint32_t first, last;
    memcpy(&first, p, 4);
    memcpy(&last, p + n - 4, 4);
    return first | uint64_t(last) << 8 * (n - 4);
  }
  if (n >= 2) {
    uint16_t first, last;
    memcpy(&first, p, 2);
    memcpy(&last, p + n - 2, 2);
    return first | uint64_t(last) << 8 * (n - 2);
  }
  return n > 0 ? uint8_t(*p) : 0;
}

// The first n of N bytes; the others read as zero and are not touched in memory.
template <class X, int N>
static inline Bytes<X, N> load_bytes(const X* p, int64_t n) {
  Bytes<X, N> v{};
  if (n >= N) {
    memcpy(&v, p, N);
    return v;
  }
#if defined(__AVX512BW__) && CK_VECTOR_BYTES == 64
  const uint64_t mask = (uint64_t(1) << max_of<int64_t>(0, n)) - 1;
  if constexpr (N == 64) return (Bytes<X, N>)_mm512_maskz_loadu_epi8(mask, p);
  else if constexpr (N == 32) return (Bytes<X, N>)_mm256_maskz_loadu_epi8(__mmask32(mask), p);
  else return (Bytes<X, N>)_mm_maskz_loadu_epi8(__mmask16(mask), p);
#else
  char lane[N] = {};
  for (int64_t i = 0; i < n; i += 8) {
    const uint64_t some = few_bytes(p + i, min_of<int64_t>(8, n - i));
    memcpy(lane + i, &some, N < 8 ? N : 8);
  }
  memcpy(&v, lane, N);
  return v;
#endif
}

// Bytes to int32, and to int16. GCC converts vectors in steps of twice the width, or element by element.
template <class X>
static inline Vec<int32_t> widen_to_32(Bytes<X, kLanes<int32_t>> v) {
  [[maybe_unused]] constexpr bool is_signed = X(-1) < X(0);
#if defined(__AVX512BW__) && CK_VECTOR_BYTES == 64
  constexpr __mmask16 kAll = 0xffff;  // GCC 12 warns of its own header without a mask
  return (Vec<int32_t>)(is_signed ? _mm512_maskz_cvtepi8_epi32(kAll, (__m128i)v)
                                  : _mm512_maskz_cvtepu8_epi32(kAll, (__m128i)v));
#elif defined(__AVX2__) && CK_VECTOR_BYTES == 32
  const __m128i low = _mm_cvtsi64_si128((int64_t)v);
  return (Vec<int32_t>)(is_signed ? _mm256_cvtepi8_epi32(low) : _mm256_cvtepu8_epi32(low));
#elif defined(__SSE2__)
  const __m128i low = _mm_cvtsi32_si128((int32_t)v), zero = _mm_setzero_si128();
  if (!is_signed) return (Vec<int32_t>)_mm_unpacklo_epi16(_mm_unpacklo_epi8(low, zero), zero);
  const __m128i top = _mm_unpacklo_epi16(zero, _mm_unpacklo_epi8(zero, low));  // the byte highest in each lane
  return (Vec<int32_t>)_mm_srai_epi32(top, 24);
#else
  return __builtin_convertvector(v, Vec<int32_t>);
#endif
}
#if defined(__SSE2__)
template <class X>
static inline Vec<int32_t> widen_to_16(Bytes<X, 2 * kLanes<int32_t>> v) {
  constexpr bool is_signed = X(-1) < X(0);
#if defined(__AVX512BW__) && CK_VECTOR_BYTES == 64
  return (Vec<int32_t>)(is_signed ? _mm512_cvtepi8_epi16((__m256i)v) : _mm512_cvtepu8_epi16((__m256i)v));
#elif defined(__AVX2__) && CK_VECTOR_BYTES == 32
  return (Vec<int32_t>)(is_signed ? _mm256_cvtepi8_epi16((__m128i)v) : _mm256_cvtepu8_epi16((__m128i)v));
#else
  const __m128i low = _mm_cvtsi64_si128((int64_t)v), zero = _mm_setzero_si128();
  return (Vec<int32_t>)(is_signed ? _mm_srai_epi16(_mm_unpacklo_epi8(zero, low), 8) : _mm_unpacklo_epi8(low, zero));
#endif
}
#endif

// `count` values `jump` apart, widened. JUMP: 1, 2, or 0 where it is known at run time only.
template <class X, int JUMP>
static inline Vec<int32_t> load_values(const X* p, int64_t jump, int count) {
  constexpr int L = kLanes<int32_t>;
  if constexpr (JUMP == 1) {
    return widen_to_32<X>(load_bytes<X, L>(p, count));
  } else if constexpr (JUMP == 2) {  // as 16-bit words, of which the lower halves count
    typedef Vec<uint32_t> Words;
    const Bytes<X, 2 * L> pairs = load_bytes<X, 2 * L>(p, 2 * count - 1);
    const Words words = __builtin_convertvector((Bytes<uint16_t, 2 * L>)pairs, Words);
    return X(-1) < X(0) ? (Vec<int32_t>)(words << 24) >> 24 : (Vec<int32_t>)(words & 0xff);
  } else {
    int32_t lane[L] = {};
    for (int i = 0; i < count; i++) lane[i] = p[i * jump];
    return load(lane);
  }
}

// Cells of values, one vector for each channel.
static inline Vec<int32_t> cells_of(const Vec<int32_t> (&value)[kCellChannels], int32_t flip) {
  constexpr int bits = 32 / kCellChannels;
  constexpr int32_t mask = int32_t(~uint32_t(0) >> (32 - bits));
  Vec<int32_t> cells = value[0] & mask;
#pragma GCC unroll 4
  for (int j = 1; j < kCellChannels; j++) cells |= (value[j] & mask) << j * bits;
  return cells ^ flip;
}

// Cells of one pixel from `count` channels that are neighbours in memory.
template <class X>
static inline Vec<int32_t> load_cells(const X* p, int64_t count, int32_t flip) {
  constexpr int L = kLanes<int32_t>, N = L * kCellChannels;
  const Bytes<X, N> bytes = load_bytes<X, N>(p, count);
  if constexpr (kCellChannels == 4) return (Vec<int32_t>)bytes ^ flip;
#if defined(__SSE2__)
  else return widen_to_16<X>(bytes);
#else
  else return widen_to_32<X>(bytes);
#endif
}

// ---- the strip

// Where the columns of a phase lie in a row of `size` pixels: those from `before` to `end` are inside.
struct PhaseColumns {
  int64_t start, advance, before, end;

  PhaseColumns(const StripShape& s, int64_t phase, int64_t size, int64_t first, int64_t step) {
    start = first + phase * step, advance = step * s.phases;
    before = start >= 0 ? 0 : min_of(s.columns, ceil_div(-start, advance));
    end = start >= size ? 0 : min_of(s.columns, ceil_div(size - start, advance));
  }
};

// `count` cells of up to kCellChannels channels, pixels `jump` apart.
template <class X, int JUMP>
static void pack_cells(int32_t* to, const X* p, int64_t jump, int64_t channel_stride, int64_t channels, int64_t count,
                       int32_t flip) {
  constexpr int L = kLanes<int32_t>;
  for (int64_t i = 0; i < count; i += L, p += L * jump) {
    const int n = int(min_of<int64_t>(L, count - i));
    Vec<int32_t> value[kCellChannels];
#pragma GCC unroll 4
    for (int j = 0; j < kCellChannels; j++)
      value[j] = j < channels ? load_values<X, JUMP>(p + j * channel_stride, jump, n) : Vec<int32_t>{};
    store_n(to + i, cells_of(value, flip), n);
  }
}

// One row of up to kCellChannels channels.
template <class X>
static void pack_cell_row(int32_t* to, const StripShape& s, const X* from, const StripSource<X>& in, int64_t size,
                          int64_t channels, int32_t flip) {
  for (int64_t phase = 0; phase < s.phases; phase++, to += s.columns) {
    const PhaseColumns c(s, phase, size, in.first_column, in.column_step);
    const int64_t jump = c.advance * in.stride[4], inside = max_of<int64_t>(0, c.end - c.before);
    for (int64_t i = 0; i < c.before; i++) to[i] = flip;
    if (inside) {
      const X* p = from + (c.start + c.before * c.advance) * in.stride[4];
      const auto pack = jump == 1 ? pack_cells<X, 1> : jump == 2 ? pack_cells<X, 2> : pack_cells<X, 0>;
      pack(to + c.before, p, jump, in.stride[1], channels, inside, flip);
    }
    for (int64_t i = c.before + inside; i < s.columns; i++) to[i] = flip;
  }
}

// One row of all channels where they are neighbours in memory: blocks of lanes x lanes cells are transposed.
template <class X>
static void pack_cell_pixels(int32_t* to, const StripShape& s, const X* from, const StripSource<X>& in, int64_t size,
                             int32_t flip) {
  constexpr int L = kLanes<int32_t>;
  const int64_t cells = ceil_div(in.channels, kCellChannels);
  for (int64_t phase = 0; phase < s.phases; phase++, to += s.columns) {
    const PhaseColumns at(s, phase, size, in.first_column, in.column_step);
    for (int64_t i = 0; i < s.columns; i += L) {
      const int pixels = int(min_of<int64_t>(L, s.columns - i));
      for (int64_t c = 0; c < cells; c += L) {
        Vec<int32_t> v[L];
        for (int j = 0; j < L; j++) {
          const bool inside = j < pixels && i + j >= at.before && i + j < at.end;
          const X* p = from + (at.start + (i + j) * at.advance) * in.stride[4] + c * kCellChannels;
          v[j] = inside ? load_cells(p, in.channels - c * kCellChannels, flip) : splat(flip);
        }
        transpose<int32_t>(v);
        const int count = int(min_of<int64_t>(L, cells - c));
        for (int j = 0; j < count; j++) store_n(to + (c + j) * s.channel_pitch + i, v[j], pixels);
      }
    }
  }
}

// A strip for one output depth and a range of rows and columns, as pack_strip(), in cells.
template <class X>
static void pack_cell_strip(int32_t* strip, StripShape s, StripSource<X> in, int32_t flip) {
  const bool channels_inside = in.stride[1] == 1 && in.channels > 1 && in.stride[4] != 1;
  // Whole rows, one behind the other in memory and in the strip, are one row (1x1 kernels).
  const bool whole = in.first_column == 0 && s.columns == in.size[2] && s.phases == 1 && in.column_step == 1;
  const bool behind = in.stride[3] == in.size[2] * in.stride[4] && in.row_step == 1 && in.first_row >= 0;
  if (whole && behind && in.first_row + s.rows <= in.size[1]) {
    in.size[2] = s.columns *= s.rows;
    s.row_pitch = s.columns, s.rows = 1;
  }
  const int64_t step = channels_inside ? in.channels : kCellChannels;  // channels handled at once
  for (int64_t c = 0; c < in.channels; c += step)
    for (int64_t n = 0; n < s.images; n++)
      for (int64_t z = 0; z < s.planes; z++) {
        const int64_t plane = in.first_plane + z * in.plane_step;
        int32_t* to = strip + c / kCellChannels * s.channel_pitch + n * s.image_pitch + z * s.plane_pitch;
        const X* image = in.data + (in.first_image + n) * in.stride[0] + c * in.stride[1];
        for (int64_t y = 0; y < s.rows; y++, to += s.row_pitch) {
          const int64_t row = in.first_row + y * in.row_step;
          const bool inside = plane >= 0 && plane < in.size[0] && row >= 0 && row < in.size[1];
          const X* from = image + (inside ? plane * in.stride[2] + row * in.stride[3] : 0);
          const int64_t size = inside ? in.size[2] : 0;  // 0: a row of padding
          if (channels_inside) pack_cell_pixels(to, s, from, in, size, flip);
          else pack_cell_row(to, s, from, in, size, in.channels - c, flip);
        }
      }
}
