// AVX-512 F, BW, VL, DQ: 32 registers of 64 bytes.
#define CK_ISA avx512
#define CK_VECTOR_BYTES 64
#define CK_TILE_PIXELS 14  // 28 accumulators, 2 weights, 1 broadcast
#define CK_HAS_FMA 1
#include "target.inl"
