// Rows of a map -> [row][column][channel]: channels become neighbours, and the zero padding is stored.

template <class T>
struct PixelSource {
  const T* data;                                         // the first channel wanted, image 0
  const int64_t* stride;                                 // batch, channel, depth, height, width
  const int64_t* size;                                   // depth, height, width
  int64_t channels, first_column, column_step, columns;  // columns first, first + step, ...; they may lie outside
};

// Every second element, `count` of them; none behind the last is touched.
template <class T>
static inline Vec<T> load_every_second(const T* p, int count) {
  constexpr int L = kLanes<T>;
  const int low = min_of(L, 2 * count - 1), high = max_of(0, 2 * count - 1 - L);
  return deinterleave<T>(load_n(p, low), high ? load_n(p + L, high) : Vec<T>{}).first;
}

// `lanes` pixels, `jump` elements apart, of up to `lanes` channels: v[pixel] holds the channels.
template <class T>
static inline void load_pixels(Vec<T> (&v)[kLanes<T>], const T* p, int64_t jump, int64_t channel_stride, int pixels,
                               int channels) {
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
        for (int l = 0; l < pixels; l++) lane[l] = p[j * channel_stride + l * jump];
      v[j] = load(lane);
    }
  }
  transpose<T>(v);
}

// One row into `to`, `pitch` elements per pixel. `from` is null for a row of zeros. Returns false if a value is not
// finite.
template <class T>
static bool pack_pixels(T* to, int64_t pitch, const T* from, const PixelSource<T>& s) {
  constexpr int L = kLanes<T>;
  const int64_t width = from ? s.size[2] : 0, first = s.first_column, step = s.column_step;
  const int64_t end = first >= width ? 0 : min_of(s.columns, ceil_div(width - first, step));
  const int64_t before = first >= 0 ? 0 : min_of(s.columns, ceil_div(-first, step));
  for (int64_t i = 0; i < s.columns; i++)
    if (i < before || i >= end) memset(to + i * pitch, 0, size_t(s.channels) * sizeof(T));
  Vec<T> bad{};
  for (int64_t i = before; i < end; i += L) {
    const int pixels = int(min_of<int64_t>(L, end - i));
    const T* p = from + (first + i * step) * s.stride[4];
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
