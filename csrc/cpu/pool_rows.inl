// One row of a plane as pooling windows read it, and one row of a gradient as windows write it.
//
// The columns that one tap reads for neighbouring outputs are `stride` apart. Split by phase (column mod stride) they
// are neighbours: tap j of outputs o, o + 1, ... reads consecutive elements from offset(j) + o on. So every stride and
// dilation is one loop of unaligned loads without range checks, padding being stored in the row. A gradient goes the
// opposite way: phases are summed from unaligned loads, then merged. All of it happens in the first-level cache.

// A number of vectors, as an argument of a generic lambda.
template <int value_>
struct Constant {
  static constexpr int value = value_;
};

struct PhaseSplit {
  int64_t in, out, taps, stride, dilation, pad;
  int64_t period;  // taps j and j + period lie in one phase
  int64_t phases;  // that any tap lies in

  explicit PhaseSplit(const PoolAxis& axis)
      : in(axis.in), out(axis.out), taps(axis.kernel), stride(axis.stride), dilation(axis.dilation), pad(axis.pad) {
    period = stride / gcd_of(stride, dilation);
    phases = min_of(taps, period);
  }
  int64_t phase(int64_t tap) const { return tap * dilation % stride; }
  int64_t shift(int64_t tap) const { return tap * dilation / stride; }
  int64_t most_shift() const { return shift(taps - 1); }

  // ---- forward: a padded row of z = column + pad, and its phases
  int64_t positions() const { return out + most_shift(); }
  int64_t columns() const {  // real columns that a window reaches
    return max_of<int64_t>(0, min_of(in, (out - 1) * stride + (taps - 1) * dilation + 1 - pad));
  }
  template <class A>
  int64_t phase_pitch() const {
    return round_up(positions(), kLanes<A>) + kLanes<A>;
  }
  template <class A>
  int64_t padded_size() const {
    return stride <= 2 ? stride * phase_pitch<A>() : round_up(positions() * stride, kLanes<A>);
  }
  template <class A>
  int64_t split_size() const {  // 0: the padded row serves as it is
    return stride == 1 ? 0 : phases * phase_pitch<A>();
  }
  template <class A>
  int64_t offset(int64_t tap) const {
    return tap % period * phase_pitch<A>() + shift(tap);
  }
  template <class A>
  void split(const A* padded, A* split) const {
    const int64_t pitch = phase_pitch<A>(), count = positions();
    if (stride == 2 && phases == 2) {
      constexpr int L = kLanes<A>;
      for (int64_t q = 0; q < count; q += L) {
        const Pairs<A> pair = deinterleave<A>(load(padded + 2 * q), load(padded + 2 * q + L));
        store(split + q, pair.first);
        store(split + pitch + q, pair.second);
      }
      return;
    }
    for (int64_t t = 0; t < phases; t++) {
      const A* from = padded + phase(t);
      A* to = split + t * pitch;
      for (int64_t q = 0; q < count; q++) to[q] = from[q * stride];
    }
  }

  // ---- gradient: rows of grad_output with zeros on both sides, and a padded row of grad_x
  template <class A>
  int64_t source_size() const {  // element o stands at most_shift() + o
    return most_shift() + round_up(max_of(merged_positions(), out), kLanes<A>) + kLanes<A>;
  }
  int64_t merged_positions() const { return ceil_div(pad + in, stride); }
  template <class A>
  int64_t merged_size() const {
    const int64_t count = merged_positions();
    return stride * (stride <= 2 ? count + kLanes<A> : count) + kLanes<A>;
  }
  // merged[q * stride + phase] = sum over the taps t, t + period, ... of that phase. sum(Constant<V>, t, q, Vec<A>* to)
  // gives V vectors of positions from q on. Phases without taps are left alone: they were zeroed once.
  template <class A, class Sum>
  void merge(A* merged, const Sum& sum) const {
    constexpr int L = kLanes<A>;
    const int64_t end = merged_positions();
    int64_t q = pad / stride;
    for (; q + L < end; q += 2 * L) merge_vectors<2>(merged, sum, q);
    if (q < end) merge_vectors<1>(merged, sum, q);
  }

 private:
  template <int V, class A, class Sum>
  void merge_vectors(A* merged, const Sum& sum, int64_t q) const {
    constexpr int L = kLanes<A>;
    const Constant<V> vectors;
    if (stride == 1) {
      Vec<A> v[V];
      sum(vectors, 0, q, v);
      for (int i = 0; i < V; i++) store(merged + q + i * L, v[i]);
    } else if (stride == 2 && phases == 2) {
      Vec<A> even[V], odd[V];
      sum(vectors, 0, q, even);
      sum(vectors, 1, q, odd);
      for (int i = 0; i < V; i++) {
        const Pairs<A> pair = interleave<A>(even[i], odd[i]);
        store(merged + 2 * (q + i * L), pair.first);
        store(merged + 2 * (q + i * L) + L, pair.second);
      }
    } else {
      const int64_t count = min_of<int64_t>(V * L, merged_positions() - q);
      for (int64_t t = 0; t < phases; t++) {
        Vec<A> v[V];
        sum(vectors, t, q, v);
        A lane[V * L];
        for (int i = 0; i < V; i++) store(lane + i * L, v[i]);
        A* const to = merged + q * stride + phase(t);
        for (int64_t i = 0; i < count; i++) to[i * stride] = lane[i];
      }
    }
  }
};

// Rows of a plane that are kept while windows slide over them. Those needed at once have places of their own.
struct RowRing {
  int64_t depths, heights;

  int64_t places() const { return depths * heights; }
  int64_t place(int64_t d, int64_t h) const {  // extents fit 32 bits, whose division is fast
    return int64_t(uint32_t(d) % uint32_t(depths)) * heights + uint32_t(h) % uint32_t(heights);
  }
};

// Vectors of A from and to arrays of T, which is A or narrower.
template <class A, class T>
static inline Vec<A> load_as(const T* p, int64_t step, int n) {
  if constexpr (sizeof(A) == sizeof(T)) return load_at(p, step, n);
  else return load_wide_at(p, step, n);
}
template <class A, class T>
static inline void store_as(T* p, int64_t step, Vec<A> v, int n) {
  if constexpr (sizeof(A) == sizeof(T)) {
    store_at<T>(p, step, v, n);
  } else {
    for (int i = 0; i < n; i++) p[i * step] = T(v[i]);
  }
}

// Index vectors from and to arrays of bytes, 16-bit or 64-bit integers. In steps of a factor of two, because GCC 12
// turns a conversion by a factor of four or eight into one scalar move per lane.
template <int size>
struct SizedInt;
template <>
struct SizedInt<2> {
  typedef uint16_t type;
};
template <>
struct SizedInt<4> {
  typedef int32_t type;
};
template <class Int, int n>
struct IntLanes {
  typedef Int type __attribute__((vector_size(n * sizeof(Int))));
};

template <class Int, int n, class V>
static inline void store_converted(Int* p, V v) {
  constexpr int size = int(sizeof(V)) / n;
  if constexpr (size > 2 * int(sizeof(Int))) {
    typedef typename IntLanes<typename SizedInt<size / 2>::type, n>::type Half;
    store_converted<Int, n>(p, __builtin_convertvector(v, Half));
  } else {
    const auto converted = __builtin_convertvector(v, typename IntLanes<Int, n>::type);
    memcpy(p, &converted, sizeof converted);
  }
}
template <class Lane, class V>
static inline Vec<Lane> widened(V v) {
  constexpr int n = kLanes<Lane>, size = int(sizeof(V)) / n;
  if constexpr (2 * size < int(sizeof(Lane))) {
    typedef typename IntLanes<typename SizedInt<size * 2>::type, n>::type Twice;
    return widened<Lane>(__builtin_convertvector(v, Twice));
  } else {
    return __builtin_convertvector(v, Vec<Lane>);
  }
}

// n < lanes elements, in pieces of powers of two.
template <int size, class Int>
static inline void copy_few(Int* to, const Int* from, int n) {
  if constexpr (size > 0) {
    if (n & size) {
      memcpy(to, from, size * sizeof(Int));
      to += size, from += size;
    }
    copy_few<size / 2>(to, from, n);
  }
}

template <class Lane, class Int>
static inline void store_index(Int* p, int64_t step, Vec<Lane> index, int n) {
  constexpr int L = kLanes<Lane>;
  if (step == 1 && n == L) return store_converted<Int, L>(p, index);
  Int lane[L];
  store_converted<Int, L>(lane, index);
  if (step == 1) return copy_few<L / 2>(p, lane, n);
  for (int i = 0; i < n; i++) p[i * step] = lane[i];
}
template <class Lane, class Int>
static inline Vec<Lane> load_index(const Int* p, int64_t step, int n) {
  constexpr int L = kLanes<Lane>;
  typename IntLanes<Int, L>::type narrow;
  if (step == 1 && n == L) {
    memcpy(&narrow, p, sizeof narrow);
  } else {
    Int lane[L] = {};
    if (step == 1) copy_few<L / 2>(lane, p, n);
    else
      for (int i = 0; i < n; i++) lane[i] = p[i * step];
    memcpy(&narrow, lane, sizeof narrow);
  }
  return widened<Lane>(narrow);
}
