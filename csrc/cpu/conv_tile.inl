// The register tile: MR pixels in each of ROWS rows, times NV vectors of output channels, one accumulator per output.
//
// Per product step: NV weight loads and ROWS * MR broadcasts for ROWS * MR * NV multiply-adds. Weights lie as
// [tap][channel][NV * lanes], input pixels next to each other, taps and channels at fixed distances.
// AVX-512, 14 x 32: 28 accumulators, 2 weights and a broadcast are 31 of 32 registers. AVX2, 6 x 16: 15 of 16.
// Bound: multiply-adds; 16 loads for 28 of them.

constexpr int kTilePixels = CK_TILE_PIXELS;

template <class T>
struct TileArgs {
  const T* x;              // first pixel of the first row, tap offset 0
  int64_t row_step;        // between the rows of the tile
  const int64_t* tap;      // offset of each tap in the strip
  int64_t taps, channels;  // of this chunk
  int64_t channel_pitch;
  const T* weight;
  T* sums;            // [pixel][block]
  int64_t sums_step;  // elements between neighbouring pixels
  int64_t sums_row;   // elements between rows
  bool add;           // to what sums holds, else overwrite
};

// What a step of the tile does. `at`: place of the vector before the weights of the chunk, negative.
template <class T>
struct MultiplyAdd {
  static Vec<T> start(const TileArgs<T>&, int) { return Vec<T>{}; }
  static void step(Vec<T>& sum, T x, Vec<T> w) { sum += x * w; }
};

template <class T, class Product, int ROWS, int MR, int NV>
static void conv_tile(const TileArgs<T>& t) {
  constexpr int L = kLanes<T>;
  Vec<T> acc[ROWS][MR][NV];
#pragma GCC unroll 2
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) acc[r][i][v] = Product::start(t, (v - NV) * L);
  const T* w = t.weight;
  const int64_t pitch = t.channel_pitch, row_step = t.row_step;
  for (int64_t tap = 0; tap < t.taps; tap++) {
    const T* x = t.x + t.tap[tap];
    for (int64_t c = t.channels; c > 0; c--) {
      Vec<T> wv[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) wv[v] = load(w + v * L);
#pragma GCC unroll 2
      for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
        for (int i = 0; i < MR; i++) {
          const T value = x[r * row_step + i];
#pragma GCC unroll 2
          for (int v = 0; v < NV; v++) Product::step(acc[r][i][v], value, wv[v]);
        }
      x += pitch;
      w += NV * L;
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) {
        T* s = t.sums + r * t.sums_row + i * t.sums_step + v * L;
        store(s, t.add ? load(s) + acc[r][i][v] : acc[r][i][v]);
      }
}

template <class T>
using TileFn = void (*)(const TileArgs<T>&);

template <class T, class Product, int ROWS, int NV, int... I>
static TileFn<T> pick_tile(int pixels, Lanes<I...>) {
  static constexpr TileFn<T> table[] = {conv_tile<T, Product, ROWS, I + 1, NV>...};
  return table[pixels - 1];
}

// The tile for `rows` (1 or 2) rows of `pixels` pixels and `vectors` (1 or 2) vectors of channels.
template <class T, class Product = MultiplyAdd<T>>
static TileFn<T> tile_for(int rows, int pixels, int vectors) {
  typedef typename CountLanes<kTilePixels>::type One;
  typedef typename CountLanes<kTilePixels / 2>::type Two;
  if (rows == 1)
    return vectors == 1 ? pick_tile<T, Product, 1, 1>(pixels, One{}) : pick_tile<T, Product, 1, 2>(pixels, One{});
  return vectors == 1 ? pick_tile<T, Product, 2, 1>(pixels, Two{}) : pick_tile<T, Product, 2, 2>(pixels, Two{});
}
