// The matrix unit of AMX: eight tiles of 16 rows of 64 bytes, and the product of bfloat16 pairs, TDPBF16PS.
//
// Between configure() and release() the calling thread has tiles. (No destructor: exception tables would bring a weak
// symbol.) dot<C, A, B>() adds to tile C, 16 x 16 float32,
//     C[m][n] += sum over k < 16 of  A[m][2k] * B[k][2n] + A[m][2k + 1] * B[k][2n + 1],
// rounded so: the even and the odd products each form a chain of 16 fused multiply-adds from zero; the chains are
// added, then the sum is added to C. Round to nearest even; subnormal operands, sums and results are zero. (A rule of
// measurement: 200,000 random sums on a Sapphire Rapids, none different.)
//
// CK_TILE_MODEL: the same in portable code, so that all that is written over it is tested on any CPU.

#if defined(CK_TILE_MODEL)

class TileUnit {
 public:
  void configure() {}
  void release() {}
  template <int T>
  void zero() {
    memset(tile_[T], 0, sizeof tile_[T]);
  }
  template <int T>
  void load(const void* from, int64_t step) {  // `step` bytes between rows
    for (int r = 0; r < 16; r++) memcpy(tile_[T][r], static_cast<const char*>(from) + r * step, 64);
  }
  template <int T>
  void store(void* to, int64_t step) const {
    for (int r = 0; r < 16; r++) memcpy(static_cast<char*>(to) + r * step, tile_[T][r], 64);
  }
  template <int C, int A, int B>
  void dot() {
    float b_even[16][16], b_odd[16][16];
    for (int k = 0; k < 16; k++)
      for (int n = 0; n < 16; n++)
        b_even[k][n] = number(tile_[B][k][n] << 16), b_odd[k][n] = number(tile_[B][k][n] & 0xffff0000u);
    for (int m = 0; m < 16; m++) {
      float even[16] = {}, odd[16] = {};
      for (int k = 0; k < 16; k++) {
        const float a_even = number(tile_[A][m][k] << 16), a_odd = number(tile_[A][m][k] & 0xffff0000u);
        for (int n = 0; n < 16; n++) {
          even[n] = flush(__builtin_fmaf(a_even, b_even[k][n], even[n]));
          odd[n] = flush(__builtin_fmaf(a_odd, b_odd[k][n], odd[n]));
        }
      }
      for (int n = 0; n < 16; n++) {
        const float sum = flush(number(tile_[C][m][n]) + flush(even[n] + odd[n]));
        memcpy(&tile_[C][m][n], &sum, 4);
      }
    }
  }

 private:
  static float flush(float v) { return __builtin_fabsf(v) < 0x1p-126f ? __builtin_copysignf(0, v) : v; }
  static float number(uint32_t bits) {
    float v;
    memcpy(&v, &bits, 4);
    return flush(v);
  }
  uint32_t tile_[8][16][16];
};

#else

// As the compilers' intrinsics, which take literals only and, in GCC, do not tell the compiler that memory is read or
// written.
class TileUnit {
 public:
  void configure() {
    struct {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } shape = {};
    shape.palette = 1;
    for (int t = 0; t < 8; t++) shape.row_bytes[t] = 64, shape.rows[t] = 16;
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  void release() { asm volatile("tilerelease"); }
  template <int T>
  void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  void load(const void* from, int64_t step) {  // `step` bytes between rows
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(step), "i"(T) : "memory");
  }
  template <int T>
  void store(void* to, int64_t step) const {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(step), "i"(T) : "memory");
  }
  template <int C, int A, int B>
  void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

#endif
