// Small helpers of all kernels: integer arithmetic, parallel loops over a lambda, the peak loop.

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
template <class T>
static constexpr T min_of(T a, T b) {
  return b < a ? b : a;
}
template <class T>
static constexpr T max_of(T a, T b) {
  return a < b ? b : a;
}

// a * b + c, rounded once where vectors of this target round it once. (Written as a sum, a loop over neighbours is
// vectorised by GCC into products and additions in order, each rounded.)
static inline float multiply_add(float a, float b, float c) { return CK_HAS_FMA ? __builtin_fmaf(a, b, c) : a * b + c; }
static inline double multiply_add(double a, double b, double c) {
  return CK_HAS_FMA ? __builtin_fma(a, b, c) : a * b + c;
}

// Products and sums of sizes that may be absurd: at most kTooMuch, never wrapped.
constexpr int64_t kTooMuch = int64_t(1) << 61;
static inline int64_t times(int64_t a, int64_t b) {
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) || product > kTooMuch ? kTooMuch : product;
}
static inline int64_t plus(int64_t a, int64_t b) { return min_of(kTooMuch, a + b); }  // each at most kTooMuch

// A lane's strip of input beyond this is refused: the taps lie so far apart that most of it would be padding.
constexpr int64_t kMostStripBytes = int64_t(256) << 20;

// Does params have the size this file was compiled with? Every run() asks first.
template <class P>
static inline bool valid(const void* params) {
  return static_cast<const P*>(params)->size == int64_t(sizeof(P));
}

// Calls body(chunk, lane) for each chunk on the pool; see parallel.h.
template <class Body>
static ck_status parallel(const ck_exec* exec, int64_t chunks, const Body& body) {
  struct Call {
    static void chunk(void* arg, int chunk, int lane) { (*static_cast<const Body*>(arg))(chunk, lane); }
  };
  const int cancelled =
      ck_parallel(exec->threads, int(chunks), &Call::chunk, const_cast<Body*>(&body), exec->poll, exec->poll_arg);
  return cancelled ? CK_CANCELLED : CK_OK;
}

// A chunk may take minutes at worst: between its pieces the calling thread asks too, and all see the answer in `flag`.
static inline bool ask_cancelled(const ck_exec* exec, int lane, int* flag) {
  if (lane == 0 && exec->poll && exec->poll(exec->poll_arg)) __atomic_store_n(flag, 1, __ATOMIC_RELAXED);
  return __atomic_load_n(flag, __ATOMIC_RELAXED);
}

// Work below this many operations is not worth a second thread: about 20 us (kSerialOps / (2 * 16 * 2 per ns)).
constexpr int64_t kSerialOps = 1 << 20;

// Contiguous pieces of [0, items): piece `index` of `pieces`, sizes differing by at most one.
struct Range {
  int64_t begin, end;
};
static inline Range piece(int64_t items, int64_t pieces, int64_t index) {
  return {items * index / pieces, items * (index + 1) / pieces};
}

// Chunks of long calls take milliseconds, also with one thread: between chunks the caller looks for Ctrl-C.
constexpr int64_t kChunkOps = int64_t(1) << 28;

// Chunks for `items` equal pieces of work of `ops` operations each: enough for balance (8 a thread), few enough that
// a chunk is worth claiming. Only the number of pieces per chunk depends on threads, never what a piece computes.
static inline int64_t chunks_for(int64_t items, double ops_per_item, int threads) {
  if (items * ops_per_item < kSerialOps) return items > 0 ? 1 : 0;
  const int64_t most = max_of(int64_t(threads) * 8, int64_t(items * ops_per_item / kChunkOps));
  const int64_t worth = int64_t(items * ops_per_item / (kSerialOps / 4)) + 1;
  return min_of(items, min_of(most, worth));
}

// Independent chains of multiply-adds in registers: what the FMA units can do at best.
template <class T>
static double peak_of(int64_t iterations) {
  constexpr int chains = kVectorBytes == 64 ? 24 : 12;  // 4-5 cycles latency times 2 units, and registers to spare
  Vec<T> acc[chains];
  for (int i = 0; i < chains; i++) acc[i] = splat(T(1) + T(i));
  Vec<T> a = splat(T(0.999)), b = splat(T(0.001));
  for (int64_t n = 0; n < iterations; n++) {
#pragma GCC unroll 32
    for (int i = 0; i < chains; i++) acc[i] = acc[i] * a + b;
  }
  Vec<T> sum{};
  for (int i = 0; i < chains; i++) sum += acc[i];
  volatile T sink = sum[0];
  (void)sink;
  return 2.0 * chains * kLanes<T> * double(iterations);
}
static double peak(int dtype, int64_t iterations) {
  return dtype == 0 ? peak_of<float>(iterations) : peak_of<double>(iterations);
}
