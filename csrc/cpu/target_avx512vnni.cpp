// AVX-512 with VNNI: AVX-512 F, BW, VL, DQ and dot products of bytes. Rows of int8 and uint8 and nothing else.
#define CK_ISA avx512vnni
#define CK_VECTOR_BYTES 64
#define CK_TILE_PIXELS 14  // 28 accumulators, 2 weights, 1 broadcast
#define CK_HAS_FMA 1
#define CK_VNNI 1
#define CK_ONLY_INT8 1
#include "target.inl"
