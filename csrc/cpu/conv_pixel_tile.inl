// The end of a register tile whose lanes are pixels: KR output channels times NV vectors of neighbouring outputs.
//
// Partial sums go to a buffer; finished ones get bias, residual and activation in registers and go straight to the
// output, which saves writing, reading and finishing them in a pass of its own (5 to 12 % of a 1x1 layer).

template <class T>
struct PixelOut {
  const T* before;  // sums of earlier chunks to add these to, or null
  int64_t before_channel;
  T* out;  // a buffer of sums, or the output: neighbouring pixels
  int64_t out_channel;
  int64_t pixels;  // wanted, at most NV * lanes; `before` is read in whole vectors
  const T* bias;   // null: not finished yet. Else one per output channel, and what follows
  const T* residual;
  int64_t residual_channel;
  bool relu;
};

template <class T>
static void store_part(const PixelOut<T>& o, const T* sums, int channels, int vectors) {
  constexpr int L = kLanes<T>;
  for (int k = 0; k < channels; k++, sums += vectors * L)
    for (int64_t i = 0; i < o.pixels; i += L) {
      const int count = int(min_of<int64_t>(L, o.pixels - i));
      store_n(o.out + k * o.out_channel + i, load(sums + i), count);
    }
}

// Each question once for all sums: they stay in registers.
template <class T, int KR, int NV>
static inline __attribute__((always_inline)) void finish_tile(Vec<T> (&acc)[KR][NV], const PixelOut<T>& o) {
  constexpr int L = kLanes<T>;
  if (o.before) {
#pragma GCC unroll 16
    for (int k = 0; k < KR; k++)
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) acc[k][v] = load(o.before + k * o.before_channel + v * L) + acc[k][v];
  }
  if (o.bias) {
#pragma GCC unroll 16
    for (int k = 0; k < KR; k++)
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) acc[k][v] += splat(o.bias[k]);
    if (o.residual) {
      int count[NV];
      for (int v = 0; v < NV; v++) count[v] = int(max_of<int64_t>(0, min_of<int64_t>(L, o.pixels - v * L)));
#pragma GCC unroll 16
      for (int k = 0; k < KR; k++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) acc[k][v] += load_n(o.residual + k * o.residual_channel + v * L, count[v]);
    }
    if (o.relu) {
#pragma GCC unroll 16
      for (int k = 0; k < KR; k++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) acc[k][v] = relu<T>(acc[k][v]);
    }
  }
  if (o.pixels == NV * L) {
#pragma GCC unroll 16
    for (int k = 0; k < KR; k++)
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) store(o.out + k * o.out_channel + v * L, acc[k][v]);
    return;
  }
  T sums[KR * NV * L];
#pragma GCC unroll 16
  for (int k = 0; k < KR; k++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) store(sums + (k * NV + v) * L, acc[k][v]);
  store_part(o, sums, KR, NV);
}
