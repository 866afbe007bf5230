// AMX: eight tiles of 1 KB and their bfloat16 product, beside AVX-512 F, BW, VL, DQ.
#define CK_ISA amx
#define CK_VECTOR_BYTES 64
#define CK_TILE_PIXELS 14  // as avx512: the direct convolution computes images again that the tiles cannot
#define CK_HAS_FMA 1
#define CK_TILES 1
#include "target.inl"
