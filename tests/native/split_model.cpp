// The rows of csrc/cpu/conv_split.inl as a library for tests/tile_model.py: over the portable model of the matrix unit,
// so that any CPU tests what a CPU with AMX runs, or (CK_TILE_CODE) as the instructions themselves.
#include <stdint.h>

static int64_t second_level_cache = 1 << 20;

#define CK_ISA model
#define CK_VECTOR_BYTES 64
#define CK_TILE_PIXELS 14
#define CK_HAS_FMA 1
#define CK_TILES 1
#ifndef CK_TILE_CODE
#define CK_TILE_MODEL 1
#endif
#include "cpu/target.inl"

// Instead of isa.cpp: the test chooses, and so into how many strips a problem is cut.
extern "C" int64_t ck_l2_bytes(void) { return second_level_cache; }
extern "C" void set_l2_bytes(int64_t bytes) { second_level_cache = bytes; }

// One product of tiles: c, 16 x 16 floats, += a * b, 16 rows of 32 bfloat16 each.
extern "C" void tile_product(const void* a, const void* b, void* c) {
  TileUnit unit;
  unit.configure();
  unit.load<0>(c, 64);
  unit.load<4>(a, 64);
  unit.load<6>(b, 64);
  unit.dot<0, 4, 6>();
  unit.store<0>(c, 64);
  unit.release();
}
