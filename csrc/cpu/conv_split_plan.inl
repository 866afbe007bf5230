// How a split convolution is walked: ConvPlan's strips, tasks and taps with another cut and another form of the strip.
//
// A strip of the input is stored as planes [block of 32 elements][part][image][depth tap][row phase][column
// phase][row][column] of 64-byte lines. With stride s, rows and columns are split by their remainder, so that
// neighbouring outputs read neighbouring lines, whatever the stride: output (y, x) reads line y * pitch + x plus an
// offset of its tap. So a tile is 16 consecutive lines, also across the ends of rows; outputs beyond a row's end are
// computed and not written. Where rows end and begin with zeros of the padding, the rows share them.

constexpr int64_t kLineElements = 32;

template <int PARTS>
struct ConvSplitPlan : ConvPlan<float> {
  // Neighbouring taps of a row that are stored as channels, so that few channels fill a line: 7 for 3 channels, 7x7.
  int64_t fold;
  int64_t elements, blocks;                // of reduction per tap: in_channels * fold; in lines
  int64_t row_taps;                        // taps of a row after folding, over all classes
  int64_t row_split;                       // row phases of the strip
  int64_t most_plane_rows, plane_columns;  // of a plane
  int64_t pitch;                           // lines between its rows
  int64_t plane_lines, image_lines, part_lines;
  int64_t image_sums, sums_pixels;  // outputs with those between rows: of an image, of a strip

  void init(const ck_conv& p, bool backward, int threads) {
    set_taps(p, backward);
    cut(threads);
  }
  // All but the cut into strips.
  void set_taps(const ck_conv& p, bool backward) {
    set_shape(p, backward);
    row_phases = axis[1].phases();
    choose_fold();
    columns.init(folded(axis[2].taps(0)), axis[2].step_in);
    for (int64_t rho = 1; rho < axis[2].classes; rho++) {
      Window other;
      other.init(folded(axis[2].taps(rho)), axis[2].step_in);
      columns.join(other);
    }
  }
  const char* why_not() const {
    if (strip_bytes() > kMostStripBytes)
      return "needs taps near each other: a strip of the input would take more than 256 MB";
    // Packed weights then take at most 15/4 of their bytes: three parts of half the size, 2.5 times as many.
    const double products = double(out_channels) * double(in_channels) * double(taps);
    return group_tiles() * 512 * kFill > products
               ? "needs channels that fill two fifths of the tiles, got {in_per_group} to {out_per_group} per group"
               : nullptr;
  }

  AxisTaps folded(AxisTaps t) const {
    t.count = ceil_div(t.count, fold);
    t.advance *= fold;
    return t;
  }
  // Steps of 32 products that stand before this class in a block's weights, and those of the class.
  int64_t steps_before(int64_t rho_d, int64_t rho_h, int64_t rho_w) const {
    const AxisTaps td = axis[0].taps(rho_d), th = axis[1].taps(rho_h);
    int64_t before = axis[0].taps_before(rho_d) * axis[1].kernel * row_taps;
    before += td.count * axis[1].taps_before(rho_h) * row_taps;
    for (int64_t rho = 0; rho < rho_w; rho++) before += td.count * th.count * folded(axis[2].taps(rho)).count;
    return before * blocks;
  }

  // Packed weights of a block of 32 output channels: [scale of each][step][part][16 channels, or twice 16][tile].
  int64_t block_steps() const { return axis[0].kernel * axis[1].kernel * row_taps * blocks; }
  int64_t block_bytes(int64_t block) const { return 128 + block_steps() * PARTS * vectors(block) * 1024; }
  int64_t block_offset(int64_t group, int64_t block) const {
    const int64_t group_bytes = (k_blocks - 1) * block_bytes(0) + block_bytes(k_blocks - 1);
    return int64_t(sizeof(PackedHeader)) + group * group_bytes + block * block_bytes(0);
  }
  int64_t packed_bytes() const { return k_blocks ? block_offset(groups, 0) : int64_t(sizeof(PackedHeader)); }

  int64_t strip_bytes() const {
    const int64_t lines = times(blocks * PARTS, part_lines);
    return plus(times(lines, 64), 1024);  // 1024: the last tile may begin with the last line
  }
  // Where an offset of the kernel lies in the strip: depth tap, row and column counted from the window's first.
  int64_t line_of(int64_t plane, int64_t row, int64_t column) const {
    const int64_t index = (plane * row_split + row % row_split) * column_phases + column % column_phases;
    return index * plane_lines + row / row_split * pitch + column / column_phases;
  }
  int64_t most_steps() const {  // of a class
    int64_t taps = ceil_div(ceil_div(axis[2].kernel, axis[2].modulus), fold);
    for (int a = 0; a < 2; a++) taps *= ceil_div(axis[a].kernel, axis[a].modulus);
    return taps * blocks;
  }

 protected:
  static constexpr double kFill = 0.4;

  double group_tiles() const {
    const double full = double(k_blocks - 1) * 2 + (k_blocks ? vectors(k_blocks - 1) : 0);
    return k_blocks ? full * double(block_steps()) : 0;
  }

  // The fewest steps, at most two lines per pixel: 20 channels and 3 taps are 2 steps as 60 elements instead of 3.
  void choose_fold() {
    const int64_t most = ceil_div(axis[2].kernel, axis[2].modulus);
    int64_t best = 0;
    for (int64_t f = 1; f == 1 || (f <= most && f * in_channels <= 2 * kLineElements); f++) {
      const int64_t steps = ceil_div(most, f) * ceil_div(in_channels * f, kLineElements);
      if (f == 1 || steps < best) best = steps, fold = f;
      if (in_channels == 0) break;
    }
    elements = in_channels * fold, blocks = ceil_div(elements, kLineElements);
    row_taps = 0;
    for (int64_t rho = 0; rho < axis[2].classes; rho++) row_taps += folded(axis[2].taps(rho)).count;
  }

  void cut(int threads) {
    const ConvAxis &h = axis[1], &w = axis[2];
    const int64_t rows_all = h.count(0), cols_all = w.count(0);
    // Weights that stay in the second-level cache allow short strips, whose sums stay near, but strips that are too
    // short pack the rows between them often. Other weights are to be read seldom: strips as large as the cache allows.
    const bool small = times(k_blocks, block_bytes(0)) <= ck_l2_bytes() / 4;
    const int64_t most_outputs = kStripPixels * (!small ? 16 : h.kernel > 1 ? 2 : 1), budget = strip_budget();
    images = 1;
    strips_w = max_of<int64_t>(1, ceil_div(cols_all, max_of<int64_t>(1, most_outputs / w.step_out)));
    cols = ceil_div(cols_all, strips_w);
    rows = max_of<int64_t>(1, min_of(rows_all, most_outputs / max_of<int64_t>(1, cols * w.step_out)));
    shrink(rows, 1, budget);
    shrink(cols, 16, 2 * budget);
    strips_w = max_of<int64_t>(1, ceil_div(cols_all, max_of<int64_t>(1, cols)));
    if (rows >= rows_all && strips_w == 1) {
      images = max_of<int64_t>(1, min_of(batch, most_outputs / max_of<int64_t>(1, rows * cols * w.step_out)));
      shrink(images, 1, budget);
    }
    balance(rows_all, cols_all, threads, 4 * threads);
    lay_out();
  }
  // Lowers a count, to no less than `least`, until the strip and its sums fit.
  void shrink(int64_t& count, int64_t least, int64_t budget) {
    for (;;) {
      lay_out();
      const int64_t bytes = plus(strip_bytes(), times(sums_pixels, 128));
      if (count <= least || bytes <= budget) return;
      count = max_of(least, min_of(count - 1, int64_t(double(count) * double(budget) / double(bytes))));
    }
  }

  void lay_out() {
    const ConvAxis &d = axis[0], &h = axis[1], &w = axis[2];
    int64_t tall = 0;
    row_split = 1;
    for (int64_t rho = 0; rho < h.classes; rho++) {
      Window window;
      window.init(h.taps(rho), h.step_in);
      tall = max_of(tall, window.extent(rows, h.step_in));
      if (h.step_in > 1) row_split = max_of<int64_t>(1, min_of(tall, h.step_in / window.step));  // one class
    }
    most_plane_rows = ceil_div(tall, row_split);
    const int64_t width = max_of<int64_t>(1, columns.extent(cols, w.step_in));
    column_phases = max_of<int64_t>(1, min_of(width, w.step_in / columns.step));
    plane_columns = ceil_div(width, column_phases);
    const int64_t shared = shared_columns();
    pitch = plane_columns - shared;
    plane_lines = plus(times(most_plane_rows, pitch), shared);
    const int64_t planes = ceil_div(d.kernel, d.modulus) * row_split * column_phases;
    image_lines = times(planes, plane_lines);
    part_lines = times(images, image_lines) | 1;  // odd: parts and blocks spread over the sets of the caches
    image_sums = times(round_up(rows * pitch, 16), w.step_out);
    sums_pixels = times(images, image_sums);
  }
  // Columns of zeros with which every row both begins and ends.
  int64_t shared_columns() const {
    if (column_phases > 1 || fold > 1 || strips_w > 1) return 0;
    const int64_t before = columns.low < 0 ? ceil_div(-columns.low, columns.step) : 0;
    const int64_t real = columns.low + plane_columns * columns.step - axis[2].in;
    const int64_t after = real > 0 ? real / columns.step : 0;
    return min_of(min_of(before, after), (columns.high - columns.low) / columns.step);
  }
};
