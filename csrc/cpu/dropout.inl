// Dropout with a counter-based generator: element i is kept if word i % 4 of Philox4x32-10(counter i / 4, key seed) is
// at least p * 2^32. The mask depends on seed and position in the array's C order alone, not on threads, strides, type.
//
// kWordLanes counters run side by side in 64-bit lanes; each round is two 32 x 32 -> 64 bit products.
// Bound by the generator: 10 rounds of 2 products and 6 simple operations per 4 elements.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (constants of its section 4.3).

constexpr int kWordLanes = kVectorBytes / 8;
typedef uint64_t Words __attribute__((vector_size(kVectorBytes)));

// Product of the low halves of each lane.
static inline Words multiply_low_halves(Words a, Words b) {
#if CK_VECTOR_BYTES == 64  // a full mask, as in sqrt_of()
  return (Words)_mm512_maskz_mul_epu32(__mmask8(-1), (__m512i)a, (__m512i)b);
#elif CK_VECTOR_BYTES == 32
  return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Words)_mm_mul_epu32((__m128i)a, (__m128i)b);
#elif defined(__aarch64__)
  return (Words)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#else
  const Words low = Words{} + 0xffffffffu;
  return (a & low) * (b & low);
#endif
}

struct Philox {
  static constexpr int kWords = 4 * kWordLanes;  // made by one call
  uint64_t seed;

  // Words of the counters first, first + 1, ... Upper halves of the lanes are not kept clean in between.
  void words(uint64_t first, uint32_t* out) const {
    const Words a = Words{} + 0xD2511F53u, b = Words{} + 0xCD9E8D57u;
    Words c0, c1, c2{}, c3{};
    for (int i = 0; i < kWordLanes; i++) c0[i] = first + uint64_t(i);
    c1 = c0 >> 32;
    uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; round++) {
      const Words p0 = multiply_low_halves(a, c0), p1 = multiply_low_halves(b, c2);
      c0 = (p1 >> 32) ^ c1 ^ (Words{} + key0);
      c2 = (p0 >> 32) ^ c3 ^ (Words{} + key1);
      c1 = p1;
      c3 = p0;
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    for (int i = 0; i < kWordLanes; i++) {
      out[4 * i] = uint32_t(c0[i]);
      out[4 * i + 1] = uint32_t(c1[i]);
      out[4 * i + 2] = uint32_t(c2[i]);
      out[4 * i + 3] = uint32_t(c3[i]);
    }
  }
};

// Axes in C order, which gives the elements their numbers.
template <int K>
static Nest<K> dropout_nest(const ck_pointwise* p, const ck_tensor* tensors) {
  const ck_tensor* operands[K];
  for (int k = 0; k < K; k++) operands[k] = &tensors[k];
  Nest<K> nest;
  for (int axis = 0; axis < 5; axis++) nest.add(p->shape[axis], operands, axis);
  return nest;
}

// What is kept is multiplied by 1 / (1 - p); what is dropped is 0 whatever it held. p = 1 drops everything.
template <class T>
static T dropout_scale(double p) {
  return p < 1 ? T(1 / (1 - p)) : T(0);
}

template <class T>
struct dropout_direct {
  static constexpr int64_t kBlock = 1024;  // elements; a multiple of Philox::kWords
  static_assert(kBlock % Philox::kWords == 0, "a block must begin with a whole counter");

  static size_t workspace(const void*, int) { return 0; }
  static const char* why_not(const void*) { return nullptr; }

  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_pointwise>(params)) return CK_BAD_STRUCT;
    const auto* p = static_cast<const ck_pointwise*>(params);
    const Nest<3> nest = dropout_nest<3>(p, tensors);
    const int64_t elements = nest.elements();
    const Philox philox{p->seed};
    // u * 2^-32 >= p  <=>  u >= ceil(p * 2^32); scaling by a power of two is exact.
    const Mask mask{uint64_t(__builtin_ceil(p->p * 4294967296.0)), dropout_scale<T>(p->p)};
    return parallel_pieces(exec, ceil_div(elements, kBlock), kBlock * 60.0, [&](int64_t begin, int64_t end, int) {
      uint32_t words[kBlock];
      for (int64_t block = begin; block < end; block++) {
        const int64_t first = block * kBlock, last = min_of(first + kBlock, elements);
        for (int64_t i = first; i < last; i += Philox::kWords) philox.words(uint64_t(i / 4), words + (i - first));
        nest.runs(first, last, [&](int64_t at, const int64_t (&offset)[3], int64_t count) {
          const T* x = static_cast<const T*>(tensors[0].data) + offset[0];
          T* out = static_cast<T*>(tensors[1].data) + offset[1];
          uint8_t* kept = static_cast<uint8_t*>(tensors[2].data) + offset[2];
          if (nest.unit()) mask.apply(x, 1, out, 1, kept, 1, words + (at - first), count);
          else mask.apply(x, nest.step(0), out, nest.step(1), kept, nest.step(2), words + (at - first), count);
        });
      }
    });
  }

 private:
  struct Mask {
    uint64_t threshold;  // up to 2^32
    T scale;

    inline void apply(const T* x, int64_t x_step, T* out, int64_t out_step, uint8_t* kept, int64_t kept_step,
                      const uint32_t* words, int64_t count) const {
      const bool possible = threshold <= 0xffffffffu;
      const uint32_t least = uint32_t(threshold);
      for (int64_t i = 0; i < count; i++) {
        const bool keep = possible & (words[i] >= least);
        const T value = x[i * x_step] * scale;  // before the choice: a branch would be guessed wrong half of the time
        kept[i * kept_step] = keep;
        out[i * out_step] = keep ? value : T(0);
      }
    }
  };
};

template <class T>
struct dropout_grad_direct {
  static constexpr int64_t kBlock = 4096;

  static size_t workspace(const void*, int) { return 0; }
  static const char* why_not(const void*) { return nullptr; }

  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_pointwise>(params)) return CK_BAD_STRUCT;
    const auto* p = static_cast<const ck_pointwise*>(params);
    const Nest<3> nest = dropout_nest<3>(p, tensors);
    const int64_t elements = nest.elements();
    const T scale = dropout_scale<T>(p->p);
    const bool any = p->p < 1;  // a mask given with p = 1 may still be true somewhere
    const double ops = kBlock * (2 * sizeof(T) + 1) * kOpsPerByte;
    return parallel_pieces(exec, ceil_div(elements, kBlock), ops, [&](int64_t begin, int64_t end, int) {
      nest.runs(begin * kBlock, min_of(end * kBlock, elements),
                [&](int64_t, const int64_t (&offset)[3], int64_t count) {
                  const T* grad = static_cast<const T*>(tensors[0].data) + offset[0];
                  const uint8_t* kept = static_cast<const uint8_t*>(tensors[1].data) + offset[1];
                  T* out = static_cast<T*>(tensors[2].data) + offset[2];
                  if (nest.unit()) apply(grad, 1, kept, 1, out, 1, count, any, scale);
                  else apply(grad, nest.step(0), kept, nest.step(1), out, nest.step(2), count, any, scale);
                });
    });
  }

 private:
  static inline void apply(const T* grad, int64_t grad_step, const uint8_t* kept, int64_t kept_step, T* out,
                           int64_t out_step, int64_t count, bool any, T scale) {
    for (int64_t i = 0; i < count; i++) {
      const T value = grad[i * grad_step] * scale;
      out[i * out_step] = any & (kept[i * kept_step] != 0) ? value : T(0);
    }
  }
};
