// How a convolution is walked: taps of an output phase, the input strip they read, the cut into tasks.
//
// Forward convolution and input gradient are one computation,
//     out[n, k, p] = sum over c, taps of  w[k, c, tap] * in[n, c, q * step_in + offset(tap)],   p = phase + q *
//     step_out,
// where forward has one phase, step_in = stride, step_out = 1 and offset = r * dilation - pad, and the input gradient
// has `stride` phases per axis, step_in = 1, step_out = stride and only the taps with (phase + pad - r * dilation)
// divisible by the stride, offset being the quotient. So no product with an inserted zero is ever computed.
//
// The taps of a phase are r = rho, rho + m, rho + 2m, ... with m = stride / gcd(stride, dilation) (forward: m = 1):
// each residue class rho is one phase, and a phase without a class has no taps (its outputs are the bias).

static inline int64_t gcd_of(int64_t a, int64_t b) {
  while (b) {
    const int64_t r = a % b;
    a = b, b = r;
  }
  return a < 0 ? -a : a;
}

struct AxisTaps {
  int64_t phase;            // outputs are phase + q * step_out
  int64_t count;            // taps
  int64_t first, step;      // kernel index of tap j: first + j * step
  int64_t offset, advance;  // input coordinate of tap j: q * step_in + offset + j * advance
};

struct ConvAxis {
  int64_t in, out;  // sizes of the axis read and of the axis written
  int64_t kernel, stride, dilation, pad;
  bool backward;
  int64_t step_in, step_out, classes, modulus;

  void init(int64_t in_, int64_t out_, const ck_conv& p, int axis, bool backward_) {
    in = in_, out = out_, backward = backward_;
    kernel = p.kernel[axis], stride = p.stride[axis], dilation = p.dilation[axis], pad = p.pad[axis];
    step_in = backward ? 1 : stride;
    step_out = backward ? stride : 1;
    modulus = backward ? stride / gcd_of(stride, dilation) : 1;
    classes = min_of(modulus, kernel);
  }
  AxisTaps taps(int64_t rho) const {
    AxisTaps t;
    t.count = kernel / modulus + (rho < kernel % modulus);
    t.first = rho, t.step = modulus;
    if (backward) {
      const int64_t reach = rho * dilation - pad;
      t.phase = ((reach % stride) + stride) % stride;
      t.offset = (t.phase - reach) / stride;
      t.advance = -(modulus * dilation / stride);
    } else {
      t.phase = 0, t.offset = -pad, t.advance = dilation;
    }
    return t;
  }
  // Taps that stand before class rho when classes follow each other: where its packed weights begin.
  int64_t taps_before(int64_t rho) const { return rho * (kernel / modulus) + min_of(rho, kernel % modulus); }
  int64_t class_of(int64_t phase) const {
    for (int64_t rho = 0; rho < classes; rho++)
      if (taps(rho).phase == phase) return rho;
    return -1;
  }
  bool every_phase_has_taps() const {
    int64_t covered = 0;
    for (int64_t rho = 0; rho < classes; rho++) covered += taps(rho).phase < phases();
    return covered == phases();
  }
  int64_t phases() const { return min_of(step_out, out); }
  int64_t count(int64_t phase) const { return phase < out ? (out - phase + step_out - 1) / step_out : 0; }
};

// The part of an input axis that a strip holds: coordinates first, first + step, ... for the offsets [low, high].
struct Window {
  int64_t low, high, step;

  void init(const AxisTaps& t, int64_t step_in) {
    const int64_t last = t.offset + (t.count - 1) * t.advance;
    low = min_of(t.offset, last), high = max_of(t.offset, last);
    step = t.count > 1 ? gcd_of(step_in, t.advance) : step_in;
  }
  void join(const Window& other) {
    step = gcd_of(gcd_of(step, other.step), low - other.low);
    low = min_of(low, other.low), high = max_of(high, other.high);
  }
  // Coordinates held for `count` neighbouring outputs.
  int64_t extent(int64_t count, int64_t step_in) const { return ((count - 1) * step_in + high - low) / step + 1; }
};

// Does some tap of some output lie outside the input?
static inline bool reaches_padding(const ck_conv& p) {
  for (int a = 0; a < CK_AXES; a++)
    if (p.pad[a] > 0 || (p.out[a] - 1) * p.stride[a] + (p.kernel[a] - 1) * p.dilation[a] - p.pad[a] >= p.in[a])
      return true;
  return false;
}

constexpr int64_t kChunk = 288;        // products per partial sum, about: 3x3 times 32 channels, 36 KB of weights
constexpr int64_t kStripPixels = 448;  // partial sums of 32 channels: 56 KB

// A strip may take 5/8 of the second-level cache; the rest is for weights and sums. More pixels per strip mean that the
// weights are read less often.
static inline int64_t strip_budget() {
  return max_of<int64_t>(192 * 1024, min_of<int64_t>(ck_l2_bytes(), 2 << 20) * 5 / 8);
}

// Channels per partial sum: a function of channels and taps alone, so that bits depend on neither batch nor threads.
static inline int64_t chunk_channels(int64_t channels, int64_t taps) {
  const int64_t chunks = max_of<int64_t>(1, (channels * taps + kChunk / 2) / kChunk);
  return max_of<int64_t>(1, ceil_div(channels, chunks));
}

template <class T>
struct ConvPlan {
  static constexpr int64_t lanes = kLanes<T>;
  static constexpr int64_t block = 2 * lanes;  // output channels of a full tile

  ConvAxis axis[CK_AXES];
  int64_t batch, groups, in_channels, out_channels;  // channels per group, of the side read and the side written
  Window columns;                                    // joined over all column phases
  int64_t column_phases;                             // neighbouring columns with the same offset step: step_in / step
  int64_t taps;
  int64_t k_blocks, k_parts;
  int64_t images, rows, cols;  // outputs per strip and phase: images, rows, columns
  int64_t strips_n, strips_h, strips_w, row_phases;
  int64_t units;                                              // strips in all
  int64_t row_pitch, plane_rows, image_pitch, channel_pitch;  // largest strip, elements
  int64_t most_planes;
  int64_t block_elements, packed_elements;  // packed weights of a block, of all
  int64_t strip_elements, sums_elements;

  void init(const ck_conv& p, bool backward, int threads) {
    set_shape(p, backward);
    // Short sums are soon done: then they should not leave the first-level cache before they are written back.
    cut(threads, in_channels * taps < kChunk ? kStripPixels / 2 : kStripPixels, 4 * threads);
  }
  // For a walk that takes all output channels of a strip at once and keeps no sums of short ones.
  void init_whole(const ck_conv& p, bool backward, int threads, int64_t short_strip) {
    set_shape(p, backward);
    cut(threads, in_channels * taps < kChunk ? short_strip : kStripPixels, 1);
  }
  // All but the cut into strips.
  void set_shape(const ck_conv& p, bool backward) {
    batch = p.batch, groups = p.groups;
    in_channels = (backward ? p.out_channels : p.in_channels) / groups;
    out_channels = (backward ? p.in_channels : p.out_channels) / groups;
    for (int a = 0; a < CK_AXES; a++)
      axis[a].init(backward ? p.out[a] : p.in[a], backward ? p.in[a] : p.out[a], p, a, backward);
    k_blocks = ceil_div(out_channels, block);
    taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
    // One cache line more, so that blocks written side by side do not fall on the same sets of the cache.
    block_elements = block * in_channels * taps + 64 / int64_t(sizeof(T));
    packed_elements = groups * k_blocks * block_elements;
  }
  const char* why_not() const {
    return times(strip_elements, int64_t(sizeof(T))) > kMostStripBytes
               ? "needs taps near each other: a strip of the input would take more than 256 MB"
               : nullptr;
  }
  int vectors(int64_t block_index) const {  // of output channels in this block: 1 for a last block of at most `lanes`
    return out_channels - block_index * block > lanes ? 2 : 1;
  }
  // Few outputs: each block of weights is used once or twice, so a task packs it into its own cache just before.
  bool packs_late() const { return units <= 2 * groups; }
  // Then one task takes all phases of its rows, and packs a block for them once.
  int64_t phases_together() const { return packs_late() ? row_phases : 1; }
  // Blocks that a task packs at once then, where neighbouring blocks are neighbours in memory: at most 1 MB.
  int64_t late_blocks() const {
    if (!packs_late()) return 0;
    const int64_t most = (int64_t(1) << 20) / (block_elements * int64_t(sizeof(T)));
    return max_of<int64_t>(1, min_of<int64_t>(most, min_of<int64_t>(4, ceil_div(k_blocks, k_parts))));
  }

 protected:
  void cut(int threads, int64_t strip_pixels, int64_t most_parts) {
    const ConvAxis &d = axis[0], &h = axis[1], &w = axis[2];
    columns.init(w.taps(0), w.step_in);
    for (int64_t rho = 1; rho < w.classes; rho++) {
      Window other;
      other.init(w.taps(rho), w.step_in);
      columns.join(other);
    }
    most_planes = ceil_div(d.kernel, d.modulus);
    row_phases = h.phases();
    const int64_t rows_all = h.count(0), cols_all = w.count(0);
    strips_w = max_of<int64_t>(1, ceil_div(cols_all, max_of<int64_t>(1, strip_pixels / w.step_out)));
    cols = ceil_div(cols_all, strips_w);
    rows = max_of<int64_t>(1, min_of(rows_all, strip_pixels / max_of<int64_t>(1, row_outputs())));
    images = 1;
    const int64_t budget = strip_budget();
    while (rows > 1 && strip_bytes() > budget) rows = ceil_div(rows, 2);
    while (cols > 16 && strip_bytes() > 2 * budget) cols = ceil_div(cols, 2);
    strips_w = max_of<int64_t>(1, ceil_div(cols_all, max_of<int64_t>(1, cols)));
    if (rows >= rows_all && strips_w == 1) {
      images = max_of<int64_t>(1, min_of(batch, strip_pixels / max_of<int64_t>(1, rows * row_outputs())));
      while (images > 1 && strip_bytes() > budget) images--;
    }
    balance(rows_all, cols_all, threads, most_parts);
    strip_bytes();
    strip_elements = times(in_channels, channel_pitch);
    sums_elements = images * rows * row_outputs() * block;
  }

  // Outputs in a row of a strip, all column phases together.
  int64_t row_outputs() const { return min_of(axis[2].out, cols * axis[2].step_out); }

  int64_t count_units(int64_t rows_all) {
    strips_n = ceil_div(batch, images);
    strips_h = ceil_div(rows_all, rows);
    return strips_n * groups * axis[0].out * row_phases * strips_h * strips_w;
  }

  // Enough tasks of equal size for all threads: first split output channels, then images and rows. None of this changes
  // what any output's sum looks like.
  void balance(int64_t rows_all, int64_t cols_all, int threads, int64_t most_parts) {
    k_parts = 1;
    for (;;) {
      units = count_units(rows_all);
      const double ops = 2.0 * double(batch) * double(groups * out_channels) * double(in_channels) *
                         double(axis[0].kernel * axis[1].kernel * axis[2].kernel) *
                         double(rows_all * cols_all * axis[0].count(0));
      if (threads <= 1 || ops < double(kSerialOps)) break;
      double best = 0;
      for (int64_t parts = 1; parts <= min_of(k_blocks, most_parts); parts++) {
        // Phases of rows have different numbers of taps: each should keep all threads busy.
        const int64_t tasks = max_of<int64_t>(1, units / row_phases * parts);
        double share = double(tasks) / double(round_up(tasks, threads));
        share *= double(k_blocks) / double(parts * ceil_div(k_blocks, parts));
        if (share > best + 0.04) best = share, k_parts = parts;
      }
      if (best > (most_parts > 1 ? 0.87 : 0.95) || (images == 1 && rows == 1)) break;
      if (images > 1) images = ceil_div(images, 2);
      else rows = ceil_div(rows, 2);
    }
    strips_h = ceil_div(rows_all, rows);
    rows = ceil_div(rows_all, max_of<int64_t>(1, strips_h));
    images = ceil_div(batch, max_of<int64_t>(1, strips_n));
    cols = ceil_div(cols_all, strips_w);
  }

  int64_t strip_bytes() {
    // Rows of the tallest row phase; all row phases have the same number of taps but for one.
    int64_t tall = 0;
    for (int64_t rho = 0; rho < axis[1].classes; rho++) {
      Window window;
      window.init(axis[1].taps(rho), axis[1].step_in);
      tall = max_of(tall, window.extent(rows, axis[1].step_in));
    }
    plane_rows = tall;
    const int64_t width = columns.extent(cols, axis[2].step_in);
    column_phases = max_of<int64_t>(1, min_of(width, axis[2].step_in / columns.step));  // one output: its own distance
    row_pitch = ceil_div(width, column_phases) * column_phases;
    image_pitch = times(times(most_planes, plane_rows), row_pitch);
    // An odd number of cache lines between channels spreads them over the sets of the first-level cache.
    constexpr int64_t line = 64 / int64_t(sizeof(T));
    channel_pitch = (ceil_div(times(images, image_pitch), line) | 1) * line;
    return times(times(in_channels, channel_pitch), int64_t(sizeof(T)));
  }
};
