// Rows of a map of storage type S -> [row][column][channel] in Wide<S>: channels become neighbours, and the zero
// padding is stored.

template <class S>
struct PixelSource {
  const S* data;                                         // the first channel wanted, image 0
  const int64_t* stride;                                 // batch, channel, depth, height, width
  const int64_t* size;                                   // depth, height, width
  int64_t channels, first_column, column_step, columns;  // columns first, first + step, ...; they may lie outside
};

// `lanes` pixels, `jump` elements apart, of up to `lanes` channels: v[pixel] holds the channels.
template <class S>
static inline void load_pixels(Vec<S> (&v)[kLanes<S>], const S* p, int64_t jump, int64_t channel_stride, int pixels,
                               int channels) {
  typedef Wide<S> T;
  constexpr int L = kLanes<T>;
  if (channel_stride == 1) {  // channels are neighbours: no transposition
    for (int j = 0; j < pixels; j++) v[j] = load_n(p + j * jump, channels);
    return;
  }
  if (jump == 1) {
#pragma GCC unroll 16
    for (int j = 0; j < L; j++) v[j] = j < channels ? load_n(p + j * channel_stride, pixels) : Vec<T>{};
  } else if (jump == 2) {
    for (int j = 0; j < L; j++) v[j] = j < channels ? load_every_second(p + j * channel_stride, pixels) : Vec<T>{};
  } else {
    for (int j = 0; j < L; j++) {
      T lane[L] = {};
      if (j < channels)
        for (int l = 0; l < pixels; l++) lane[l] = widen(p[j * channel_stride + l * jump]);
      v[j] = load(lane);
    }
  }
  transpose<T>(v);
}

// Part PART of three: a[0] b[0] c[0] a[1] ...
template <class T, int PART, int... I>
static inline Vec<T> weave_part(Vec<T> a, Vec<T> b, Vec<T> c, Lanes<I...>) {
  constexpr int L = kLanes<T>, first = PART * L;
  const Vec<T> ab = CK_SHUFFLE(T, a, b, ((first + I) % 3 == 1 ? L : 0) + (first + I) / 3 ...);
  return CK_SHUFFLE(T, ab, c, ((first + I) % 3 == 2 ? L + (first + I) / 3 : I)...);
}
// Three channels of `pixels` neighbouring pixels, those of a pixel side by side: images, where a transposition would
// leave 13 of 16 vectors empty.
template <class S>
static inline Vec<S> weave_three(Wide<S>* to, const S* p, int64_t channel_stride, int pixels) {
  typedef Wide<S> T;
  typedef typename CountLanes<kLanes<T>>::type All;
  constexpr int L = kLanes<T>;
  const Vec<T> a = load_n(p, pixels), b = load_n(p + channel_stride, pixels),
               c = load_n(p + 2 * channel_stride, pixels);
  const Vec<T> parts[] = {weave_part<T, 0>(a, b, c, All{}), weave_part<T, 1>(a, b, c, All{}),
                          weave_part<T, 2>(a, b, c, All{})};
  for (int i = 0; i < 3; i++) store_n(to + i * L, parts[i], max_of(0, min_of(L, 3 * pixels - i * L)));
  return (a + b + c) * T(0);
}

// One row into `to`, `pitch` elements per pixel. `from` is null for a row of zeros. Returns false if a value is not
// finite.
template <class S>
static bool pack_pixels(Wide<S>* to, int64_t pitch, const S* from, const PixelSource<S>& s) {
  typedef Wide<S> T;
  constexpr int L = kLanes<T>;
  const int64_t width = from ? s.size[2] : 0, first = s.first_column, step = s.column_step;
  const int64_t end = first >= width ? 0 : min_of(s.columns, ceil_div(width - first, step));
  const int64_t before = first >= 0 ? 0 : min_of(s.columns, ceil_div(-first, step));
  for (int64_t i = 0; i < s.columns; i++)
    if (i < before || i >= end) memset(to + i * pitch, 0, size_t(s.channels) * sizeof(T));
  Vec<T> bad{};
  for (int64_t i = before; i < end; i += L) {
    const int pixels = int(min_of<int64_t>(L, end - i));
    const S* p = from + (first + i * step) * s.stride[4];
    if (s.channels == 3 && pitch == 3 && step * s.stride[4] == 1) {
      bad += weave_three(to + 3 * i, p, s.stride[1], pixels);
      continue;
    }
    for (int64_t c = 0; c < s.channels; c += L) {
      const int count = int(min_of<int64_t>(L, s.channels - c));
      Vec<T> v[L];
      load_pixels(v, p + c * s.stride[1], step * s.stride[4], s.stride[1], pixels, count);
      T* out = to + i * pitch + c;
      for (int j = 0; j < pixels; j++, out += pitch) {
        bad += v[j] * T(0);
        if (count == L) store(out, v[j]);
        else store_n(out, v[j], count);
      }
    }
  }
  for (int j = 0; j < L; j++)
    if (bad[j] != T(0)) return false;
  return true;
}
