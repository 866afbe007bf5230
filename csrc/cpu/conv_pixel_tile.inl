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
  // Not null where finished sums go to an array of a narrower type: stores them, after a residual and what follows it.
  void (*narrow)(const PixelOut& o, const T* sums, int channels, int vectors);
  void* narrow_out;
  const void* narrow_residual;
};

template <class T>
static inline void to_sums(PixelOut<T>& o, T* sums) {
  o.out = sums;
  o.bias = nullptr, o.narrow = nullptr, o.narrow_residual = nullptr;
}

template <class T>
static void store_part(const PixelOut<T>& o, const T* sums, int channels, int vectors) {
  constexpr int L = kLanes<T>;
  for (int k = 0; k < channels; k++, sums += vectors * L)
    for (int64_t i = 0; i < o.pixels; i += L) {
      const int count = int(min_of<int64_t>(L, o.pixels - i));
      store_n(o.out + k * o.out_channel + i, load(sums + i), count);
    }
}

template <class S>
static void store_narrow(const PixelOut<Wide<S>>& o, const Wide<S>* sums, int channels, int vectors) {
  typedef Wide<S> T;
  constexpr int L = kLanes<T>;
  S* out = static_cast<S*>(o.narrow_out);
  const S* residual = static_cast<const S*>(o.narrow_residual);
  if (!residual && vectors == 2 && o.pixels == 2 * L) {  // most tiles
    for (int k = 0; k < channels; k++, sums += 2 * L, out += o.out_channel) {
      store(out, load(sums));
      store(out + L, load(sums + L));
    }
    return;
  }
  for (int k = 0; k < channels; k++, sums += vectors * L, out += o.out_channel) {
    for (int64_t i = 0; i < o.pixels; i += L) {
      const int count = int(min_of<int64_t>(L, o.pixels - i));
      Vec<T> y = load(sums + i);
      if (residual) y += load_n(residual + k * o.residual_channel + i, count);
      store_n(out + i, residual && o.relu ? relu<T>(y) : y, count);
    }
  }
}

// Finished sums of a tile, whose pixels are neighbours in the output.
template <class S>
static inline void to_output(PixelOut<Wide<S>>& o, S* out, const S* residual, const Wide<S>* bias) {
  o.bias = bias;
  if constexpr (kIsWide<S>) o.out = out, o.residual = residual, o.narrow = nullptr, o.narrow_residual = nullptr;
  else o.narrow = store_narrow<S>, o.narrow_out = out, o.narrow_residual = residual, o.residual = nullptr;
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
    if (o.relu && !o.narrow_residual) {
#pragma GCC unroll 16
      for (int k = 0; k < KR; k++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) acc[k][v] = relu<T>(acc[k][v]);
    }
  }
  if (o.pixels == NV * L && !o.narrow) {
#pragma GCC unroll 16
    for (int k = 0; k < KR; k++)
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) store(o.out + k * o.out_channel + v * L, acc[k][v]);
    return;
  }
  alignas(64) T sums[KR * NV * L];  // else its vectors would lie across cache lines
#pragma GCC unroll 16
  for (int k = 0; k < KR; k++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) store(sums + (k * NV + v) * L, acc[k][v]);
  (o.narrow ? o.narrow : store_part<T>)(o, sums, KR, NV);
}
