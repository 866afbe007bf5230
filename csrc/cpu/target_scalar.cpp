// The baseline of the platform: SSE2 on x86-64, one 16-byte vector type, no fused multiply-add.
#define CK_ISA scalar
#define CK_VECTOR_BYTES 16
#define CK_TILE_PIXELS 6  // 12 accumulators of 16 registers
#define CK_HAS_FMA 0
#include "target.inl"
