// How a Winograd convolution is cut: units of tiles, groups of units, chunks of channels, and what each takes of
// memory. See conv_winograd.inl for the terms.

constexpr int64_t kWinogradChannels = 8;               // fewer: beyond 3 times the error of a sequential sum
constexpr int64_t kWinogradChunk = 128;                // channels: 590 KB of U for 36 products
constexpr int64_t kWinogradTiles = 64;                 // tiles of a group: M takes 295 KB
constexpr int64_t kWinogradShared = int64_t(4) << 20;  // bytes of U from which on it is made late, and of V at most

template <class T, class F>
struct WinogradPlan : ConvPlan<T> {
  using Base = ConvPlan<T>;
  using Base::axis, Base::batch, Base::block, Base::cols, Base::groups, Base::images, Base::in_channels, Base::k_blocks,
      Base::lanes, Base::rows, Base::strips_h, Base::strips_n, Base::strips_w, Base::units;
  static constexpr int64_t products = F::size * F::size;

  int64_t channel_blocks, chunk;        // of `lanes` input channels; channels of a chunk
  int64_t tile_rows, tile_cols, tiles;  // of a unit, at most; tiles: of all its images
  bool shared;                          // V of `together` units in common
  int64_t together;                     // units of a group; 1 where V is a lane's own
  int64_t v_pitch, v_elements;          // between products; of a unit
  int64_t m_pitch, m_elements;          // likewise
  int64_t u_elements;                   // of a block of output channels
  int64_t pixel_elements;

  void init(const ck_conv& p, bool backward, int threads) {
    this->set_shape(p, backward);
    channel_blocks = ceil_div(in_channels, lanes);
    const int64_t chunks = max_of<int64_t>(1, ceil_div(in_channels, kWinogradChunk));
    chunk = round_up(max_of<int64_t>(1, ceil_div(in_channels, chunks)), lanes);
    cut(threads);
    constexpr int64_t line = 64 / int64_t(sizeof(T));  // odd numbers of cache lines spread products over the cache
    v_pitch = (ceil_div(channel_blocks * tiles * lanes, line) | 1) * line;
    v_elements = times(products, v_pitch);
    m_pitch = (ceil_div(tiles * block, line) | 1) * line;
    m_elements = products * m_pitch;
    u_elements = times(products * block, plus(in_channels, ceil_div(in_channels, chunk)));
    pixel_elements = (tile_rows * F::outputs + F::taps - 1) * (tile_cols * F::outputs + F::taps - 1) * lanes;
    this->sums_elements = images * rows * cols * block;
  }
  int64_t u_bytes() const { return times(times(groups * k_blocks, u_elements), int64_t(sizeof(T))); }

 private:
  void cut(int threads) {
    constexpr int64_t m = F::outputs;
    const int64_t all_rows = ceil_div(axis[1].out, m), all_cols = ceil_div(axis[2].out, m);
    const int64_t tile_bytes = products * channel_blocks * lanes * int64_t(sizeof(T));
    const int64_t budget = ck_l2_bytes() / 2;
    const int64_t most =
        max_of<int64_t>(kTilePixels, min_of<int64_t>(4 * kTilePixels, budget / max_of<int64_t>(1, tile_bytes)));
    this->row_phases = 1;
    strips_w = max_of<int64_t>(1, ceil_div(all_cols, most));
    tile_cols = ceil_div(all_cols, strips_w);
    tile_rows = max_of<int64_t>(1, min_of(all_rows, most / max_of<int64_t>(1, tile_cols)));
    images = 1;
    if (tile_rows == all_rows && strips_w == 1)
      images = max_of<int64_t>(1, min_of(batch, most / max_of<int64_t>(1, tile_rows * tile_cols)));
    count(all_rows);
    shared =
        k_blocks > 1 && (times(k_blocks * int64_t(sizeof(T)), times(products * block, in_channels)) > kWinogradShared ||
                         units < 8 * groups);
    if (!shared) balance(all_rows, threads);
    tile_rows = ceil_div(all_rows, max_of<int64_t>(1, strips_h));
    images = max_of<int64_t>(1, ceil_div(batch, max_of<int64_t>(1, strips_n)));
    tiles = max_of<int64_t>(1, images * tile_rows * tile_cols);
    count(all_rows);
    rows = tile_rows * m, cols = tile_cols * m;
    together = 1;
    if (shared) {
      together = min_of(kWinogradTiles / tiles, kWinogradShared / max_of<int64_t>(1, tile_bytes * tiles));
      together = max_of<int64_t>(1, min_of(together, units / max_of<int64_t>(1, groups)));
    }
  }
  void count(int64_t all_rows) {
    strips_n = ceil_div(batch, images);
    strips_h = ceil_div(all_rows, tile_rows);
    units = strips_n * groups * axis[0].out * strips_h * strips_w;
  }
  // Smaller units until the threads have nearly equal shares.
  void balance(int64_t all_rows, int threads) {
    while (threads > 1 && (images > 1 || tile_rows > 1)) {
      if (double(units) / double(round_up(units, threads)) > 0.87) break;
      if (images > 1) images = ceil_div(images, 2);
      else tile_rows = ceil_div(tile_rows, 2);
      count(all_rows);
    }
  }
};
