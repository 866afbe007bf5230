// Where pooling windows lie: which real elements an output sees, and which outputs see an element.
//
// Both questions are answered per axis by a Span, an arithmetic progression. Windowed pooling and adaptive pooling
// differ in nothing else, so the loops over windows (pool_reduce, pool_scan, pool_spread) serve both. All indices are
// of real elements: padding takes no part in any pooling op but by counting in an average's divisor.

struct Span {
  int64_t first, count;
  int64_t tap;  // window cell of the first
};

struct PoolAxis {
  int64_t in, out;
  int64_t kernel, stride, dilation, pad, pad_after;
  bool adaptive;               // then kernel is the longest window, dilation is 1, the others say nothing
  int64_t out_step, tap_step;  // from one window that holds an element to the next: outputs further, cells back

  static PoolAxis windowed(const ck_pool* p, int a) {
    const int64_t common = gcd_of(p->stride[a], p->dilation[a]);
    return {p->in[a],
            p->out[a],
            p->kernel[a],
            p->stride[a],
            p->dilation[a],
            p->pad[a],
            p->pad_after[a],
            false,
            p->dilation[a] / common,
            p->stride[a] / common};
  }
  // Short windows that divide the axis are ordinary ones, with the faster loops. Long ones are not worth their phases.
  static PoolAxis adapting(int64_t in, int64_t out) {
    constexpr int64_t kLong = 32;
    if (out > 2 && in % out == 0 && in / out < kLong) {
      return {in, out, in / out, in / out, 1, 0, 0, false, 1, in / out};
    }
    return {in, out, out ? min_of(in, in / out + 2) : 0, 1, 1, 0, 0, true, 1, 0};
  }

  // Elements that output o sees: first, first + dilation, ... in cells tap, tap + 1, ...
  Span elements(int64_t o) const {
    if (adaptive) {
      const int64_t first = o * in / out;
      return {first, ceil_div((o + 1) * in, out) - first, 0};
    }
    const int64_t start = o * stride - pad;
    const int64_t tap = start < 0 ? ceil_div(-start, dilation) : 0;
    const int64_t end = start < in ? min_of(kernel, ceil_div(in - start, dilation)) : 0;
    return {start + tap * dilation, max_of<int64_t>(end - tap, 0), tap};
  }

  // Outputs that see element i: first, first + out_step, ... in cells tap, tap - tap_step, ...
  Span outputs(int64_t i) const {
    if (adaptive) {
      const int64_t first = i * out / in;
      return {first, ceil_div((i + 1) * out, in) - first, 0};
    }
    const int64_t z = i + pad, reach = (kernel - 1) * dilation;
    const int64_t last = min_of(z / stride, out - 1);
    int64_t o = z > reach ? ceil_div(z - reach, stride) : 0;
    // With dilation only one window in out_step has a cell on z, and perhaps none has.
    for (int64_t tries = out_step; dilation > 1 && o <= last && (z - o * stride) % dilation != 0; o++)
      if (--tries == 0) return {0, 0, 0};
    if (o > last) return {0, 0, 0};
    return {o, (last - o) / out_step + 1, (z - o * stride) / dilation};
  }

  // Cells of output o that an average counts: those before the end of the padded input, or the real ones.
  int64_t counted(int64_t o, bool include_pad) const {
    if (!include_pad || adaptive) return elements(o).count;
    const int64_t start = o * stride - pad, room = in + pad_after - start;
    return room > 0 ? min_of(kernel, ceil_div(room, dilation)) : 0;
  }
};

struct PoolShape {
  int64_t batch, channels;
  PoolAxis axis[CK_AXES];

  explicit PoolShape(const ck_pool* p) : batch(p->batch), channels(p->channels) {
    for (int a = 0; a < CK_AXES; a++) axis[a] = PoolAxis::windowed(p, a);
  }
  explicit PoolShape(const ck_resize* p) : batch(p->batch), channels(p->channels) {
    for (int a = 0; a < CK_AXES; a++) axis[a] = PoolAxis::adapting(p->in[a], p->out[a]);
  }

  int64_t plane_in() const { return axis[0].in * axis[1].in * axis[2].in; }
  int64_t plane_out() const { return axis[0].out * axis[1].out * axis[2].out; }
  int64_t cells() const { return axis[0].kernel * axis[1].kernel * axis[2].kernel; }

  // Do channels lie side by side in all of these tensors? Then lanes run along them, else along rows of a plane.
  template <class... Tensor>
  bool channels_inner(const Tensor*... tensor) const {
    return channels > 1 && ((tensor->stride[1] == 1) && ...);
  }
};

// Spans of all coordinates of each axis, looked up by the loops.
struct SpanTable {
  Span* axis[CK_AXES];

  void take_elements(Carver& carver, const PoolShape& shape) {
    for (int a = 0; a < CK_AXES; a++) axis[a] = carver.take<Span>(shape.axis[a].out);
  }
  void fill_elements(const PoolShape& shape) const {
    for (int a = 0; a < CK_AXES; a++)
      for (int64_t o = 0; o < shape.axis[a].out; o++) axis[a][o] = shape.axis[a].elements(o);
  }
  void take_outputs(Carver& carver, const PoolShape& shape) {
    for (int a = 0; a < CK_AXES; a++) axis[a] = carver.take<Span>(shape.axis[a].in);
  }
  void fill_outputs(const PoolShape& shape) const {
    for (int a = 0; a < CK_AXES; a++)
      for (int64_t i = 0; i < shape.axis[a].in; i++) axis[a][i] = shape.axis[a].outputs(i);
  }
};

// Rows (n, c, d, h) of a map, counted in row-major order.
struct RowPlace {
  int64_t n, c, d, h;

  RowPlace(int64_t row, int64_t channels, int64_t depth, int64_t height)
      : channels_(channels), depth_(depth), height_(height) {
    h = row % height, row /= height;
    d = row % depth, row /= depth;
    c = row % channels, n = row / channels;
  }
  void next() {
    if (++h < height_) return;
    h = 0;
    if (++d < depth_) return;
    d = 0;
    if (++c < channels_) return;
    c = 0, n++;
  }
  RowPlace moved(int64_t to_d, int64_t to_h) const {
    RowPlace other = *this;
    other.d = to_d, other.h = to_h;
    return other;
  }
  int64_t offset(const ck_tensor& t) const {
    return n * t.stride[0] + c * t.stride[1] + d * t.stride[2] + h * t.stride[3];
  }

 private:
  int64_t channels_, depth_, height_;
};

// Rows (n, d, h) of pixels with a part of the channels: the unit of work where lanes run along channels. Parts are
// whole cache lines, long enough to stream and short enough that one row of a small batch still feeds several threads.
constexpr int64_t kChannelPart = 256;

struct PixelRowPlace {
  int64_t n, d, h;
  Range c;

  static int64_t parts(int64_t channels) { return ceil_div(channels, kChannelPart); }

  PixelRowPlace(int64_t unit, int64_t channels, int64_t depth, int64_t height) {
    const int64_t part = unit % parts(channels);
    unit /= parts(channels);
    c = {part * kChannelPart, min_of(channels, (part + 1) * kChannelPart)};
    h = unit % height, unit /= height;
    d = unit % depth, n = unit / depth;
  }
  // Of the row's first pixel in channel 0.
  int64_t offset(const ck_tensor& t) const { return n * t.stride[0] + d * t.stride[2] + h * t.stride[3]; }
};
