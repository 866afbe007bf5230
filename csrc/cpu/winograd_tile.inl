// The inner loops of Winograd convolution: a patch of the map with channels in lanes, its transform, and the register
// tile of the products.

// Some rows of one vector of channels, zeros outside the map: [row][column][lane].
template <class S>
static void pack_patch(Wide<S>* pixels, const PixelSource<S>& from, int64_t image, int64_t plane, int64_t first_row,
                       int64_t rows) {
  constexpr int64_t L = kLanes<S>;
  if (from.channels < L) memset(pixels, 0, size_t(rows * from.columns * L) * sizeof(Wide<S>));
  const S* data = from.data + image * from.stride[0] + plane * from.stride[2];
  for (int64_t y = 0; y < rows; y++) {
    const int64_t row = first_row + y;
    const bool inside = row >= 0 && row < from.size[1] && from.size[2] > 0;
    pack_pixels(pixels + y * from.columns * L, L, inside ? data + row * from.stride[3] : nullptr, from);
  }
}

// B^T d B of one tile and vector of channels: pixels `row` elements apart per row -> products `product` apart.
template <class T, class F>
static void transform_tile(const T* pixels, int64_t row, T* v, int64_t product) {
  constexpr int N = F::size, L = kLanes<T>;
  Vec<T> half[N][N];
#pragma GCC unroll 6
  for (int i = 0; i < N; i++) {
    Vec<T> d[N];
#pragma GCC unroll 6
    for (int j = 0; j < N; j++) d[j] = load(pixels + i * row + j * L);
    F::input(d, half[i]);
  }
#pragma GCC unroll 6
  for (int j = 0; j < N; j++) {
    Vec<T> d[N], out[N];
#pragma GCC unroll 6
    for (int i = 0; i < N; i++) d[i] = half[i][j];
    F::input(d, out);
#pragma GCC unroll 6
    for (int i = 0; i < N; i++) store(v + (i * N + j) * product, out[i]);
  }
}

template <class T>
struct WinogradTileArgs {
  const T* v;          // [block of lanes channels][tile][lane], first tile
  int64_t block_step;  // elements between blocks of channels
  int64_t channels;
  const T* u;  // [channel][NV * lanes]
  T* sums;     // [tile][NV * lanes]
  bool add;
};

// MR tiles times NV vectors of output channels: conv_tile with channels in lanes of the broadcast operand.
template <class T, int MR, int NV>
static void winograd_tile(const WinogradTileArgs<T>& t) {
  constexpr int L = kLanes<T>;
  Vec<T> acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) acc[i][v] = Vec<T>{};
  const T* block = t.v;
  const T* u = t.u;
  for (int64_t left = t.channels; left > 0; left -= L, block += t.block_step) {
    const T* x = block;
    for (int64_t c = min_of<int64_t>(L, left); c > 0; c--, x++, u += NV * L) {
      Vec<T> w[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) w[v] = load(u + v * L);
#pragma GCC unroll 16
      for (int i = 0; i < MR; i++) {
        const T value = x[i * L];
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) acc[i][v] += value * w[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) {
      T* s = t.sums + (i * NV + v) * L;
      store(s, t.add ? load(s) + acc[i][v] : acc[i][v]);
    }
}
template <class T>
using WinogradTileFn = void (*)(const WinogradTileArgs<T>&);
template <class T, int NV, int... I>
static WinogradTileFn<T> pick_winograd_tile(int tiles, Lanes<I...>) {
  static constexpr WinogradTileFn<T> table[] = {winograd_tile<T, I + 1, NV>...};
  return table[tiles - 1];
}
