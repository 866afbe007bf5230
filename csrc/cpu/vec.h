// The SIMD vocabulary that the kernels are written in: one template over the compiler's vector types.
//
// Included by a target file inside its namespace, after it defined CK_VECTOR_BYTES (64 AVX-512, 32 AVX2, 16 SSE2 and
// NEON). a * b + c contracts to one fused multiply-add where the target has it (-ffp-contract=fast).
// x86 `max` returns its second operand if either is NaN; relu() below is written so that NaN stays.

constexpr int kVectorBytes = CK_VECTOR_BYTES;

template <class T>
struct Simd {
  static constexpr int lanes = kVectorBytes / int(sizeof(T));
  typedef T type __attribute__((vector_size(kVectorBytes)));
  typedef T loose __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));  // any address
};
template <class T>
using Vec = typename Simd<T>::type;
template <class T>
constexpr int kLanes = Simd<T>::lanes;

template <class T>
static inline Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::loose*>(p);
}
template <class T>
static inline void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Simd<T>::loose*>(p) = v;
}
// Holds a loaded vector in a register. GCC would rather load it again in each instruction that uses it, which costs
// where the address crosses a cache line.
template <class V>
static inline void hold(V& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__SSE2__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}
template <class T>
static inline Vec<T> splat(T x) {
  return x - Vec<T>{};  // x - 0 keeps the sign of zero
}

#if defined(__AVX2__) && CK_VECTOR_BYTES == 32
// All bits set in the first n lanes of `size` bytes.
template <int size>
static inline __m256i first_lanes(int n) {
  if constexpr (size == 4) return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  else return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
#endif

// The first n lanes, 0 <= n <= lanes; the other lanes read as zero and are not touched in memory.
template <class T>
static inline Vec<T> load_n(const T* p, int n) {
#if defined(__AVX512F__) && CK_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
  else return (Vec<T>)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
#elif defined(__AVX2__) && CK_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_maskload_ps(reinterpret_cast<const float*>(p), first_lanes<4>(n));
  else return (Vec<T>)_mm256_maskload_pd(reinterpret_cast<const double*>(p), first_lanes<8>(n));
#else
  if (n == kLanes<T>) return load(p);
  Vec<T> v{};
  for (int i = 0; i < kLanes<T>; i++)  // lanes that the compiler knows: a variable one would go through memory
    if (i < n) v[i] = p[i];
  hold(v);  // or GCC multiplies in the branches, apart from the sum, and does not fuse the two
  return v;
#endif
}
template <class T>
static inline void store_n(T* p, Vec<T> v, int n) {
#if defined(__AVX512F__) && CK_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
  else _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)v);
#elif defined(__AVX2__) && CK_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) _mm256_maskstore_ps(reinterpret_cast<float*>(p), first_lanes<4>(n), (__m256)v);
  else _mm256_maskstore_pd(reinterpret_cast<double*>(p), first_lanes<8>(n), (__m256d)v);
#else
  if (n == kLanes<T>) return store(p, v);
  for (int i = 0; i < kLanes<T>; i++)
    if (i < n) p[i] = v[i];
#endif
}

// The lanes whose bit is set; the others read as zero and are not touched in memory.
template <class T>
static inline Vec<T> load_bits(const T* p, uint32_t bits) {
#if defined(__AVX512F__) && CK_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_loadu_ps(__mmask16(bits), p);
  else return (Vec<T>)_mm512_maskz_loadu_pd(__mmask8(bits), p);
#elif defined(__AVX2__) && CK_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i mask = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(bits)), lane), lane);
    return (Vec<T>)_mm256_maskload_ps(reinterpret_cast<const float*>(p), mask);
  } else {
    const __m256i lane = _mm256_setr_epi64x(1, 2, 4, 8);
    const __m256i mask = _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(int64_t(bits)), lane), lane);
    return (Vec<T>)_mm256_maskload_pd(reinterpret_cast<const double*>(p), mask);
  }
#else
  Vec<T> v{};
  for (int i = 0; i < kLanes<T>; i++)
    if (bits & 1u << i) v[i] = p[i];
  return v;
#endif
}

// max(0, v) with NaN kept: the comparison is false for NaN.
template <class T>
static inline Vec<T> relu(Vec<T> v) {
  return v < Vec<T>{} ? Vec<T>{} : v;
}
template <class T>
static inline T relu(T v) {
  return v < T(0) ? T(0) : v;
}

// The larger of two, scalars or vectors, with NaN kept: if v is NaN it wins, if m is NaN it stays.
template <class V>
static inline V nan_max(V m, V v) {
  const V larger = v > m ? v : m;
  return v != v ? v : larger;
}

// The signed integer as wide as T: what comparing vectors of T gives, and what counts beside them.
template <class T>
struct IntLike {
  typedef int32_t type;
};
template <>
struct IntLike<double> {
  typedef int64_t type;
};
template <class T>
using IntOf = typename IntLike<T>::type;

// Is any lane of a mask (all bits set, or none) set?
template <class Int>
static inline bool any(Vec<Int> mask) {
#if CK_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif CK_VECTOR_BYTES == 32 && defined(__AVX2__)
  return _mm256_movemask_epi8((__m256i)mask) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_epi8((__m128i)mask) != 0;
#elif defined(__aarch64__)
  return vmaxvq_u32((uint32x4_t)mask) != 0;
#else
  Int all = 0;
  for (int i = 0; i < kLanes<Int>; i++) all |= mask[i];
  return all != 0;
#endif
}

// ---- shuffles with constant indices: Clang and GCC from 12 have one builtin, older GCC another
template <int... I>
struct Lanes {};
template <int N, int... I>
struct CountLanes : CountLanes<N - 1, N - 1, I...> {};
template <int... I>
struct CountLanes<0, I...> {
  typedef Lanes<I...> type;
};

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define CK_SHUFFLEVECTOR 1
#endif
#endif
#if defined(CK_SHUFFLEVECTOR)
#define CK_SHUFFLE(T, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
template <class T>
struct ShuffleIndex {
  typedef typename Simd<int32_t>::type type;
};
template <>
struct ShuffleIndex<double> {
  typedef typename Simd<int64_t>::type type;
};
#define CK_SHUFFLE(T, a, b, ...) __builtin_shuffle(a, b, typename ShuffleIndex<T>::type{__VA_ARGS__})
#endif

// Exchange blocks of H lanes between a pair of rows: the step of a transposition by recursive halving.
template <class T, int H, int... I>
static inline void exchange_blocks(Vec<T>& a, Vec<T>& b, Lanes<I...>) {
  constexpr int L = kLanes<T>;
  const Vec<T> low = CK_SHUFFLE(T, a, b, ((I & H) == 0 ? I : L + I - H)...);
  b = CK_SHUFFLE(T, a, b, ((I & H) == 0 ? I + H : L + I)...);
  a = low;
}
template <class T, int H>
static inline void transpose_step(Vec<T> (&v)[kLanes<T>]) {
  if constexpr (H > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; i++)
      if ((i & H) == 0) exchange_blocks<T, H>(v[i], v[i + H], typename CountLanes<kLanes<T>>::type{});
    transpose_step<T, H / 2>(v);
  }
}
// Rows become columns: v[i][j] = v[j][i]. log2(lanes) steps of `lanes` shuffles, in registers.
template <class T>
static inline void transpose(Vec<T> (&v)[kLanes<T>]) {
  transpose_step<T, kLanes<T> / 2>(v);
}

// Neighbours to halves and back: (a, b) holds 2 * lanes consecutive values; even and odd ones apart.
template <class T>
struct Pairs {
  Vec<T> first, second;
};
template <class T, int... I>
static inline Pairs<T> deinterleave_lanes(Vec<T> a, Vec<T> b, Lanes<I...>) {
  return {CK_SHUFFLE(T, a, b, (2 * I)...), CK_SHUFFLE(T, a, b, (2 * I + 1)...)};
}
template <class T, int... I>
static inline Pairs<T> interleave_lanes(Vec<T> even, Vec<T> odd, Lanes<I...>) {
  constexpr int L = kLanes<T>;
  return {CK_SHUFFLE(T, even, odd, (I / 2 + (I % 2) * L)...),
          CK_SHUFFLE(T, even, odd, (L / 2 + I / 2 + (I % 2) * L)...)};
}
template <class T>
static inline Pairs<T> deinterleave(Vec<T> a, Vec<T> b) {
  return deinterleave_lanes<T>(a, b, typename CountLanes<kLanes<T>>::type{});
}
template <class T>
static inline Pairs<T> interleave(Vec<T> even, Vec<T> odd) {
  return interleave_lanes<T>(even, odd, typename CountLanes<kLanes<T>>::type{});
}
