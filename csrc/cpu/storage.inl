// Storage types: what arrays hold where that is narrower than what kernels compute in.
//
// float16 and bfloat16 are widened to float as they are loaded, and a result is rounded once, to nearest even, as it is
// stored. A kernel templated over the storage type S computes in T = Wide<S>; Vec<f16> is a vector of float and
// kLanes<f16> that of float, so a register tile never sees S. Subnormals count, NaN stays NaN, float16 overflows to
// infinity.

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

template <class S>
struct WideOf {
  typedef S type;
};
template <>
struct WideOf<f16> {
  typedef float type;
};
template <>
struct WideOf<bf16> {
  typedef float type;
};
template <class S>
using Wide = typename WideOf<S>::type;
// Whether arrays of S hold what is computed in: then tiles may read and write them without a copy.
template <class S>
constexpr bool kIsWide = sizeof(S) == sizeof(Wide<S>);

template <>
struct Simd<f16> : Simd<float> {};
template <>
struct Simd<bf16> : Simd<float> {};

// As many 16-bit words as a vector of float has lanes.
typedef uint16_t Halfwords __attribute__((vector_size(kVectorBytes / 2)));

static inline Halfwords load_halfwords(const void* p) {
  typedef uint16_t loose __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
  return *static_cast<const loose*>(p);
}
static inline void store_halfwords(void* p, Halfwords w) {
  typedef uint16_t loose __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
  *static_cast<loose*>(p) = w;
}

// The first n words, 0 <= n <= lanes of float; the others read as zero and are not touched in memory.
static inline Halfwords load_halfwords_n(const void* p, int n) {
  if (n == kLanes<float>) return load_halfwords(p);
#if defined(__AVX512F__) && CK_VECTOR_BYTES == 64
  return (Halfwords)_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p);
#elif defined(__AVX2__) && CK_VECTOR_BYTES == 32
  // AVX2 has no masked access to 16-bit words: four of them, two, and one.
  const char* at = static_cast<const char*>(p);
  uint64_t four = 0, rest = 0;
  uint32_t two = 0;
  uint16_t one = 0;
  if (n & 4) memcpy(&four, at, 8), at += 8;
  if (n & 2) memcpy(&two, at, 4), at += 4;
  if (n & 1) memcpy(&one, at, 2);
  rest = n & 2 ? two | uint64_t(one) << 32 : one;
  return (Halfwords)(n & 4 ? _mm_set_epi64x(int64_t(rest), int64_t(four)) : _mm_cvtsi64_si128(int64_t(rest)));
#else
  Halfwords w{};
  for (int i = 0; i < n; i++) w[i] = static_cast<const uint16_t*>(p)[i];
  return w;
#endif
}
static inline void store_halfwords_n(void* p, Halfwords w, int n) {
  if (n == kLanes<float>) return store_halfwords(p, w);
#if defined(__AVX512F__) && CK_VECTOR_BYTES == 64
  _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), (__m256i)w);
#elif defined(__AVX2__) && CK_VECTOR_BYTES == 32
  char* at = static_cast<char*>(p);
  uint64_t left = uint64_t(_mm_cvtsi128_si64((__m128i)w));
  if (n & 4) memcpy(at, &left, 8), at += 8, left = uint64_t(_mm_extract_epi64((__m128i)w, 1));
  if (n & 2) memcpy(at, &left, 4), at += 4, left >>= 32;
  if (n & 1) memcpy(at, &left, 2);
#else
  for (int i = 0; i < n; i++) static_cast<uint16_t*>(p)[i] = w[i];
#endif
}

static inline Vec<float> widen_halfwords(Halfwords w, bf16) {
  return (Vec<float>)(__builtin_convertvector(w, Vec<uint32_t>) << 16);
}
// A tie is carried where the last bit is 1. Of NaN a carry would run into exponent and sign: it is made quiet instead.
static inline Halfwords narrow_halfwords(Vec<float> v, bf16) {
  const Vec<uint32_t> bits = (Vec<uint32_t>)v;
  const Vec<uint32_t> rounded = bits + (0x7fff + (bits >> 16 & 1)), quiet = bits | 0x400000;
  return __builtin_convertvector((v == v ? rounded : quiet) >> 16, Halfwords);
}

#if defined(__AVX512F__) && CK_VECTOR_BYTES == 64
// The forms without a mask warn of an uninitialised variable in GCC's own header.
static inline Vec<float> widen_halfwords(Halfwords w, f16) {
  return (Vec<float>)_mm512_maskz_cvtph_ps(__mmask16(-1), (__m256i)w);
}
static inline Halfwords narrow_halfwords(Vec<float> v, f16) {
  return (Halfwords)_mm512_maskz_cvtps_ph(__mmask16(-1), (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif defined(__F16C__) && CK_VECTOR_BYTES == 32
static inline Vec<float> widen_halfwords(Halfwords w, f16) { return (Vec<float>)_mm256_cvtph_ps((__m128i)w); }
static inline Halfwords narrow_halfwords(Vec<float> v, f16) {
  return (Halfwords)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__aarch64__)
static inline Vec<float> widen_halfwords(Halfwords w, f16) { return (Vec<float>)vcvt_f32_f16((float16x4_t)w); }
static inline Halfwords narrow_halfwords(Vec<float> v, f16) { return (Halfwords)vcvt_f16_f32((float32x4_t)v); }
#else
// By integer arithmetic. 2^112 moves the exponent's bias from 15 to 127 and makes normal numbers of subnormal ones.
static inline Vec<float> widen_halfwords(Halfwords w, f16) {
  const Vec<uint32_t> bits = __builtin_convertvector(w, Vec<uint32_t>);
  const Vec<float> scaled = (Vec<float>)((bits & 0x7fff) << 13) * 0x1p112f;
  const Vec<uint32_t> special = scaled >= 65536.0f ? splat(0x7f800000u) : splat(0u);  // infinity, NaN
  return (Vec<float>)((Vec<uint32_t>)scaled | special | (bits & 0x8000) << 16);
}
static inline Halfwords narrow_halfwords(Vec<float> v, f16) {
  const Vec<uint32_t> bits = (Vec<uint32_t>)v, size = bits & 0x7fffffff;
  // Below 2^-14 the sum with 1/2 has a subnormal's last place as its own and rounds there.
  const Vec<uint32_t> small = (Vec<uint32_t>)((Vec<float>)size + 0.5f) - 0x3f000000;
  const Vec<uint32_t> normal = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
  const Vec<uint32_t> special = (Vec<float>)size == (Vec<float>)size ? splat(0x7c00u) : splat(0x7e00u);
  const Vec<uint32_t> finite = (Vec<float>)size < 0x1p-14f ? small : normal;
  // From 65520 on, half a place above the largest number, it is infinity. NaN is not below.
  const Vec<uint32_t> rounded = (Vec<float>)size < 65520.0f ? finite : special;
  return __builtin_convertvector(rounded | (bits >> 16 & 0x8000), Halfwords);
}
#endif

template <>
inline Vec<f16> load(const f16* p) {
  return widen_halfwords(load_halfwords(p), f16());
}
template <>
inline Vec<bf16> load(const bf16* p) {
  return widen_halfwords(load_halfwords(p), bf16());
}
template <>
inline Vec<f16> load_n(const f16* p, int n) {
  return widen_halfwords(load_halfwords_n(p, n), f16());
}
template <>
inline Vec<bf16> load_n(const bf16* p, int n) {
  return widen_halfwords(load_halfwords_n(p, n), bf16());
}
template <>
inline void store(f16* p, Vec<f16> v) {
  store_halfwords(p, narrow_halfwords(v, f16()));
}
template <>
inline void store(bf16* p, Vec<bf16> v) {
  store_halfwords(p, narrow_halfwords(v, bf16()));
}
template <>
inline void store_n(f16* p, Vec<f16> v, int n) {
  store_halfwords_n(p, narrow_halfwords(v, f16()), n);
}
template <>
inline void store_n(bf16* p, Vec<bf16> v, int n) {
  store_halfwords_n(p, narrow_halfwords(v, bf16()), n);
}

// Single values.
static inline float widen(float x) { return x; }
static inline double widen(double x) { return x; }
static inline int32_t widen(int32_t x) { return x; }
static inline float widen(f16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  return widen_halfwords(Halfwords{x.bits}, x)[0];
#endif
}
static inline float widen(bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
static inline void put(float* p, float x) { *p = x; }
static inline void put(double* p, double x) { *p = x; }
static inline void put(int32_t* p, int32_t x) { *p = x; }
static inline void put(f16* p, float x) {
#if defined(__F16C__)
  p->bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#else
  p->bits = narrow_halfwords(Vec<float>{x}, f16())[0];
#endif
}
static inline void put(bf16* p, float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  p->bits = uint16_t((x == x ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000) >> 16);
}
