// AVX2 with FMA: 16 registers of 32 bytes.
#define CK_ISA avx2
#define CK_VECTOR_BYTES 32
#define CK_TILE_PIXELS 6  // 12 accumulators, 2 weights, 1 broadcast
#define CK_HAS_FMA 1
#include "target.inl"
