// The sweep of the split convolutions: sums of products of parts in 2 x 2 tiles.
//
// Tiles 0 to 3 are sums, 4 and 5 operand A, 6 and 7 operand B. A step is 32 products of each sum. Its tile products run
// from small to large parts, and neighbours share an operand: six products take 14 tile loads for 24 tile products,
// three take 8 for 12. A prototype of this loop took 440 cycles per step of six on a Sapphire Rapids, operands in the
// second-level cache.
//
// A tile store after 2,300 cycles without one takes 1,000 cycles longer there, so a step now and then stores a tile
// into scratch; doing so too rarely is worse than never.

struct SplitTileArgs {
  const char *a, *b;                   // first tiles at offset 0
  const int64_t *a_offset, *b_offset;  // of each step, bytes
  int64_t a_part, a_tile, a_row;       // bytes between parts, between the two tiles, between rows of a tile
  int64_t b_part, b_tile;              // rows of B are 64 bytes apart
  int64_t steps;
  const char* ahead;    // fetched into the second-level cache meanwhile,
  int64_t ahead_lines;  // so many cache lines per step
  float* sums;          // row m, column n of the sums: sums[m * sums_row / 4 + n]
  int64_t sums_row;     // bytes
  float* scratch;       // 16 x 16
};

// One product, of part A and part B, for all tiles of sums. Only parts that the product before did not use are loaded.
template <int A, int B, bool NEW_A, bool NEW_B, int NA, int NB>
static inline void split_product(TileUnit& unit, const char* a, const char* b, int64_t a_part, int64_t a_tile,
                                 int64_t a_row, int64_t b_part, int64_t b_tile) {
  a += A * a_part, b += B * b_part;
  if constexpr (NEW_A) unit.load<4>(a, a_row);
  if constexpr (NEW_B) unit.load<6>(b, 64);
  unit.dot<0, 4, 6>();
  if constexpr (NB == 2) {
    if constexpr (NEW_B) unit.load<7>(b + b_tile, 64);
    unit.dot<1, 4, 7>();
  }
  if constexpr (NA == 2) {
    if constexpr (NEW_A) unit.load<5>(a + a_tile, a_row);
    unit.dot<2, 5, 6>();
    if constexpr (NB == 2) unit.dot<3, 5, 7>();
  }
}

// Sums of 16 * NA rows and 16 * NB columns over some steps.
template <int PARTS, int NA, int NB>
static void split_tile(TileUnit& unit, const SplitTileArgs& t) {
  constexpr int64_t kStoreEvery = PARTS == 3 ? 4 : PARTS == 2 ? 8 : 16;
  const int64_t *const a_offset = t.a_offset, *const b_offset = t.b_offset;
  const int64_t a_part = t.a_part, a_tile = t.a_tile, a_row = t.a_row, b_part = t.b_part, b_tile = t.b_tile;
  const int64_t steps = t.steps, ahead_lines = t.ahead_lines;
  const char *const a0 = t.a, *const b0 = t.b, *ahead = t.ahead;
  unit.zero<0>(), unit.zero<1>(), unit.zero<2>(), unit.zero<3>();
  for (int64_t k = 0; k < steps; k++) {
    const char *const a = a0 + a_offset[k], *const b = b0 + b_offset[k];
    if constexpr (PARTS == 1) {
      split_product<0, 0, true, true, NA, NB>(unit, a, b, a_part, a_tile, a_row, b_part, b_tile);
    } else if constexpr (PARTS == 2) {
      split_product<0, 1, true, true, NA, NB>(unit, a, b, a_part, a_tile, a_row, b_part, b_tile);
      split_product<0, 0, false, true, NA, NB>(unit, a, b, a_part, a_tile, a_row, b_part, b_tile);
      split_product<1, 0, true, false, NA, NB>(unit, a, b, a_part, a_tile, a_row, b_part, b_tile);
    } else {
      split_product<0, 2, true, true, NA, NB>(unit, a, b, a_part, a_tile, a_row, b_part, b_tile);
      split_product<0, 1, false, true, NA, NB>(unit, a, b, a_part, a_tile, a_row, b_part, b_tile);
      split_product<1, 1, true, false, NA, NB>(unit, a, b, a_part, a_tile, a_row, b_part, b_tile);
      split_product<1, 0, false, true, NA, NB>(unit, a, b, a_part, a_tile, a_row, b_part, b_tile);
      split_product<2, 0, true, false, NA, NB>(unit, a, b, a_part, a_tile, a_row, b_part, b_tile);
      split_product<0, 0, true, false, NA, NB>(unit, a, b, a_part, a_tile, a_row, b_part, b_tile);
    }
    for (int64_t i = 0; i < ahead_lines; i++, ahead += 64) __builtin_prefetch(ahead, 0, 2);
    if (k % kStoreEvery == kStoreEvery - 1) unit.store<4>(t.scratch, 64);
  }
  unit.store<0>(t.sums, t.sums_row);
  if constexpr (NB == 2) unit.store<1>(t.sums + 16, t.sums_row);
  float* second = t.sums + 4 * t.sums_row;  // 16 rows on
  if constexpr (NA == 2) unit.store<2>(second, t.sums_row);
  if constexpr (NA == 2 && NB == 2) unit.store<3>(second + 16, t.sums_row);
}

// The same for one or two tiles of rows and of columns.
template <int PARTS>
static void split_tiles(TileUnit& unit, const SplitTileArgs& t, int rows, int columns) {
  if (rows == 2) columns == 2 ? split_tile<PARTS, 2, 2>(unit, t) : split_tile<PARTS, 2, 1>(unit, t);
  else columns == 2 ? split_tile<PARTS, 1, 2>(unit, t) : split_tile<PARTS, 1, 1>(unit, t);
}

// Adds 16 * rows by 16 * columns sums, 32 floats between rows, to others, `step` floats between rows.
static inline void add_split_sums(const float* partial, int rows, int columns, float* sums, int64_t step) {
  constexpr int L = kLanes<float>;
  for (int i = 0; i < rows * L; i++)
    for (int v = 0; v < columns * L; v += L) {
      float* to = sums + i * step + v;
      store(to, load(to) + load(partial + i * 2 * L + v));
    }
}
