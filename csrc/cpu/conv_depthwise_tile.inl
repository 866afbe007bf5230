// Register tiles of the depthwise convolution: lanes are channels, accumulators are neighbouring outputs of one or two
// rows.
//
// The loop runs over what is read, not over taps: each pixel is loaded once and multiplied into every output of the
// tile that it belongs to, so a 3x3 of stride 1 takes 36 loads of pixels for 126 multiply-adds (two rows of 7). Rows
// and columns outside the map are stepped over (a test per load), so padding is neither stored nor multiplied: an
// infinite weight beside it does no harm. Taps come in ascending order, depth, row, column, as in every other kernel.
//
// Registers: 14 accumulators, a pixel, a weight (an operand in memory): 16, what AVX2 has.

constexpr int kDepthwisePixels = 7;  // divides the maps of 7 to 224

// One or two rows of outputs, all their columns and some channels.
template <class T>
struct DepthwiseRows {
  const T* x;                       // what output 0 reads with tap (0, 0, 0); may lie outside the map
  int64_t x_plane, x_row, x_pixel;  // elements between planes and rows of taps, between neighbouring columns
  Range planes;                     // taps whose plane lies in the map
  Range rows;                       // rows, counted from tap 0 of the first row of outputs, that lie in the map
  int64_t row_taps, row_step;       // row_step: rows between the two rows of outputs
  int64_t column_taps, column_step, advance;  // columns between outputs, between taps
  int64_t first_column, width;                // column of tap 0 of output 0; the map's columns
  const T* weight;                            // [vector][plane][row][column][lanes]
  int64_t weight_vector;                      // elements between vectors of channels
  const T* bias;
  const T* residual;  // or null
  T* out;
  int64_t residual_row, residual_pixel, out_row, out_pixel;
  int64_t outputs, channels;
  bool relu;
  bool prefetch;  // what the next rows will read
};

// Bits [begin, end) of the columns or rows that a tile looks at.
static inline uint32_t depthwise_bits(int64_t begin, int64_t end) {
  begin = min_of<int64_t>(31, max_of<int64_t>(0, begin)), end = min_of<int64_t>(31, max_of<int64_t>(0, end));
  return begin < end ? (uint32_t(1) << end) - (uint32_t(1) << begin) : 0;
}

// Where a tile lies in these rows.
struct DepthwisePlace {
  int64_t output, channel;  // the first
  int outputs, channels;
  uint32_t columns;  // bit t: column t, counted from tap 0 of the first output, lies in the map
};

template <class T, bool FULL>
static inline Vec<T> load_channels(const T* p, int channels) {
  if constexpr (FULL) return load(p);
  else return load_n(p, channels);
}

template <class T, bool FULL>
static inline __attribute__((always_inline)) void finish_outputs(Vec<T> (&acc)[kDepthwisePixels],
                                                                 const DepthwiseRows<T>& t, const DepthwisePlace& at,
                                                                 int row) {
  const Vec<T> bias = load(t.bias + at.channel);
#pragma GCC unroll 7
  for (Vec<T>& y : acc) y += bias;
  if (t.residual) {
    const T* residual = t.residual + row * t.residual_row + at.output * t.residual_pixel + at.channel;
#pragma GCC unroll 7
    for (int c = 0; c < kDepthwisePixels; c++, residual += t.residual_pixel)
      if (c < at.outputs) acc[c] += load_channels<T, FULL>(residual, at.channels);
  }
  if (t.relu) {
#pragma GCC unroll 7
    for (Vec<T>& y : acc) y = relu<T>(y);
  }
  T* out = t.out + row * t.out_row + at.output * t.out_pixel + at.channel;
#pragma GCC unroll 7
  for (int c = 0; c < kDepthwisePixels; c++, out += t.out_pixel) {
    if (c >= at.outputs) break;
    if constexpr (FULL) store(out, acc[c]);
    else store_n(out, acc[c], at.channels);
  }
}

// One row of the map into the rows of outputs that it belongs to: FIRST, SECOND. S taps, STEP columns between outputs.
template <class T, int S, int STEP, bool FIRST, bool SECOND, bool FULL, int ROWS>
static inline __attribute__((always_inline)) void depthwise_row(Vec<T> (&acc)[ROWS][kDepthwisePixels], const T* x,
                                                                int64_t x_pixel, const DepthwisePlace& at,
                                                                const T* first, const T* second) {
  constexpr int L = kLanes<T>;
  Vec<T> w[2][S];
#pragma GCC unroll 7
  for (int s = 0; s < S; s++) {
    if constexpr (FIRST) w[0][s] = load(first + s * L);
    if constexpr (SECOND) w[1][s] = load(second + s * L);
  }
#pragma GCC unroll 32
  for (int column = 0; column < (kDepthwisePixels - 1) * STEP + S; column++, x += x_pixel) {
    if (!(at.columns & 1u << column)) continue;
    Vec<T> pixel = load_channels<T, FULL>(x, at.channels);
    hold(pixel);
#pragma GCC unroll 7
    for (int c = 0; c < kDepthwisePixels; c++) {
      const int s = column - c * STEP;
      if (s < 0 || s >= S) continue;
      if constexpr (FIRST) acc[0][c] += pixel * w[0][s];
      if constexpr (SECOND) acc[ROWS - 1][c] += pixel * w[1][s];
    }
  }
}

// Taps that are neighbours in a row. Two rows of outputs share rows of the map: their taps are neighbours too, and
// row_step <= row_taps.
template <class T, int S, int STEP, int ROWS, bool FULL>
static inline __attribute__((always_inline)) void depthwise_tile(const DepthwiseRows<T>& t, const DepthwisePlace& at) {
  constexpr int L = kLanes<T>;
  Vec<T> acc[ROWS][kDepthwisePixels];
#pragma GCC unroll 2
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 7
    for (int c = 0; c < kDepthwisePixels; c++) acc[r][c] = Vec<T>{};
  const T* const origin = t.x + at.output * STEP * t.x_pixel + at.channel;
  const T* const weight = t.weight + at.channel / L * t.weight_vector;
  if (t.prefetch) {
    const T* x = origin + (t.row_taps + (ROWS - 1) * t.row_step) * t.x_row;
    for (int64_t row = ROWS * t.row_step; row > 0; row--, x += t.x_row)
      for (int64_t column = 0; column < at.outputs * STEP; column++) __builtin_prefetch(x + column * t.x_pixel);
  }
  for (int64_t plane = t.planes.begin; plane < t.planes.end; plane++) {
    const T* x = origin + plane * t.x_plane + t.rows.begin * t.x_row;
    const T* first = weight + (plane * t.row_taps + t.rows.begin) * S * L;
    const T* second = first - t.row_step * S * L;
    for (int64_t row = t.rows.begin; row < t.rows.end; row++, x += t.x_row, first += S * L, second += S * L) {
      if (ROWS == 1 || row < t.row_step)
        depthwise_row<T, S, STEP, true, false, FULL>(acc, x, t.x_pixel, at, first, second);
      else if (row < t.row_taps) depthwise_row<T, S, STEP, true, true, FULL>(acc, x, t.x_pixel, at, first, second);
      else depthwise_row<T, S, STEP, false, true, FULL>(acc, x, t.x_pixel, at, first, second);
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < ROWS; r++) finish_outputs<T, FULL>(acc[r], t, at, r);
}

// Taps and outputs at any distance from each other, one row of outputs.
template <class T, bool FULL>
static inline void depthwise_spread_tile(const DepthwiseRows<T>& t, const DepthwisePlace& at) {
  constexpr int L = kLanes<T>;
  Vec<T> acc[kDepthwisePixels];
#pragma GCC unroll 7
  for (int c = 0; c < kDepthwisePixels; c++) acc[c] = Vec<T>{};
  const int64_t jump = t.column_step * t.x_pixel;
  const T* const origin = t.x + at.output * jump + at.channel;
  const T* const weight = t.weight + at.channel / L * t.weight_vector;
  for (int64_t plane = t.planes.begin; plane < t.planes.end; plane++)
    for (int64_t row = t.rows.begin; row < t.rows.end; row++) {
      const T* x = origin + plane * t.x_plane + row * t.x_row;
      const T* w = weight + (plane * t.row_taps + row) * t.column_taps * L;
      int64_t column = t.first_column + at.output * t.column_step;
      for (int64_t s = t.column_taps; s > 0; s--) {
        const Vec<T> tap = load(w);
#pragma GCC unroll 7
        for (int c = 0; c < kDepthwisePixels; c++)
          if (uint64_t(column + c * t.column_step) < uint64_t(t.width))
            acc[c] += load_channels<T, FULL>(x + c * jump, at.channels) * tap;
        x += t.advance * t.x_pixel, column += t.advance, w += L;
      }
    }
  finish_outputs<T, FULL>(acc, t, at, 0);
}

// All tiles of the rows. S == 0: taps at any distance.
template <class T, int S, int STEP, int ROWS, bool FULL>
static void depthwise_rows(const DepthwiseRows<T>& t) {
  DepthwisePlace at;
  const int64_t size = ceil_div(t.outputs, ceil_div(t.outputs, kDepthwisePixels));
  for (at.output = 0; at.output < t.outputs; at.output += size) {
    at.outputs = int(min_of(size, t.outputs - at.output));
    if constexpr (S > 0) {
      const int64_t column = t.first_column + at.output * STEP;
      at.columns = depthwise_bits(-column, min_of<int64_t>((at.outputs - 1) * STEP + S, t.width - column));
    }
    for (at.channel = 0; at.channel < t.channels; at.channel += kLanes<T>) {
      at.channels = int(min_of<int64_t>(kLanes<T>, t.channels - at.channel));
      if constexpr (S > 0) depthwise_tile<T, S, STEP, ROWS, FULL>(t, at);
      else depthwise_spread_tile<T, FULL>(t, at);
    }
  }
}

template <class T>
using DepthwiseFn = void (*)(const DepthwiseRows<T>&);

// Tiles for one and two rows of outputs, for all lanes and for some; `two` is null where rows are not shared.
template <class T>
struct DepthwiseTiles {
  DepthwiseFn<T> one[2], two[2];  // [0]: all lanes

  template <int S, int STEP>
  static DepthwiseTiles neighbours() {
    return {{depthwise_rows<T, S, STEP, 1, true>, depthwise_rows<T, S, STEP, 1, false>},
            {depthwise_rows<T, S, STEP, 2, true>, depthwise_rows<T, S, STEP, 2, false>}};
  }
  static DepthwiseTiles of(int64_t taps, int64_t step, int64_t advance) {
    if (advance == 1 && step == 1) {
      if (taps == 2) return neighbours<2, 1>();
      if (taps == 3) return neighbours<3, 1>();
      if (taps == 4) return neighbours<4, 1>();
      if (taps == 5) return neighbours<5, 1>();
      if (taps == 7) return neighbours<7, 1>();
    }
    if (advance == 1 && step == 2) {
      if (taps == 3) return neighbours<3, 2>();
      if (taps == 5) return neighbours<5, 2>();
      if (taps == 7) return neighbours<7, 2>();
    }
    return {{depthwise_rows<T, 0, 0, 1, true>, depthwise_rows<T, 0, 0, 1, false>}, {nullptr, nullptr}};
  }
};
