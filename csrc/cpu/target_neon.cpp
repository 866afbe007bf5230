// NEON on 64-bit Arm: 32 registers of 16 bytes.
#define CK_ISA neon
#define CK_VECTOR_BYTES 16
#define CK_TILE_PIXELS 12  // 24 accumulators, 2 weights, 1 broadcast
#define CK_HAS_FMA 1
#include "target.inl"
