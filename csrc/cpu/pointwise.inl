// relu, tanh, sigmoid and their gradients: one vector in, one vector out.
//
// Axes are sorted by the output's stride and merged, so any dense arrays of one order become a single contiguous run.
// Bound by memory: 8 bytes (gradients 12) per float element; tanh and sigmoid by their 20 operations while in cache.
// NaN: relu keeps it, and its gradient passes where the output is NaN; tanh and sigmoid carry it through.

struct ReluOf {
  static constexpr int inputs = 1;
  static constexpr double ops = 1;
  template <class T>
  static Vec<T> apply(const Vec<T>* in) {
    return relu<T>(in[0]);
  }
};
struct TanhOf {
  static constexpr int inputs = 1;
  static constexpr double ops = 40;
  template <class T>
  static Vec<T> apply(const Vec<T>* in) {
    return tanh_of<T>(in[0]);
  }
};
struct SigmoidOf {
  static constexpr int inputs = 1;
  static constexpr double ops = 40;
  template <class T>
  static Vec<T> apply(const Vec<T>* in) {
    return sigmoid_of<T>(in[0]);
  }
};

// Gradients: in[0] is grad_output, in[1] the op's own output.
struct ReluGrad {
  static constexpr int inputs = 2;
  static constexpr double ops = 1;
  template <class T>
  static Vec<T> apply(const Vec<T>* in) {
    return in[1] <= Vec<T>{} ? Vec<T>{} : in[0];
  }
};
struct TanhGrad {
  static constexpr int inputs = 2;
  static constexpr double ops = 4;
  template <class T>
  static Vec<T> apply(const Vec<T>* in) {
    const Vec<T> one = splat(T(1));
    return in[0] * ((one - in[1]) * (one + in[1]));  // 1 - y * y would lose all digits near 1
  }
};
struct SigmoidGrad {
  static constexpr int inputs = 2;
  static constexpr double ops = 3;
  template <class T>
  static Vec<T> apply(const Vec<T>* in) {
    return in[0] * (in[1] * (splat(T(1)) - in[1]));
  }
};

// Axes of a pointwise call, the output's largest stride outermost.
template <int K>
static Nest<K> sorted_nest(const ck_pointwise* p, const ck_tensor* const (&tensors)[K]) {
  int order[5] = {0, 1, 2, 3, 4};
  auto stride = [&](int axis) {
    const int64_t s = tensors[K - 1]->stride[axis];
    return s < 0 ? -s : s;
  };
  for (int i = 1; i < 5; i++)
    for (int j = i; j > 0 && stride(order[j - 1]) < stride(order[j]); j--) {
      const int other = order[j];
      order[j] = order[j - 1];
      order[j - 1] = other;
    }
  Nest<K> nest;
  for (int axis : order) nest.add(p->shape[axis], tensors, axis);
  return nest;
}

template <class T, class F>
struct Pointwise {
  static constexpr int K = F::inputs + 1;
  static constexpr int64_t kBlock = 4096;  // elements: chunks begin at multiples of it

  static size_t workspace(const void*, int) { return 0; }
  static const char* why_not(const void*) { return nullptr; }

  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_pointwise>(params)) return CK_BAD_STRUCT;
    const ck_tensor* operands[K];
    for (int k = 0; k < K; k++) operands[k] = &tensors[k];
    const Nest<K> nest = sorted_nest<K>(static_cast<const ck_pointwise*>(params), operands);
    const int64_t elements = nest.elements();
    const double ops = double(kBlock) * (K * sizeof(T) * kOpsPerByte + F::ops);
    return parallel_pieces(exec, ceil_div(elements, kBlock), ops, [&](int64_t begin, int64_t end, int) {
      nest.runs(begin * kBlock, min_of(end * kBlock, elements),
                [&](int64_t, const int64_t (&offset)[K], int64_t count) { run_of(nest, tensors, offset, count); });
    });
  }

 private:
  static void run_of(const Nest<K>& nest, const ck_tensor* tensors, const int64_t (&offset)[K], int64_t count) {
    T* p[K];
    for (int k = 0; k < K; k++) p[k] = static_cast<T*>(tensors[k].data) + offset[k];
    for (int64_t i = 0; i < count; i += kLanes<T>) {
      const int n = int(min_of<int64_t>(kLanes<T>, count - i));
      Vec<T> in[F::inputs];
      for (int k = 0; k < F::inputs; k++) in[k] = load_at<T>(p[k] + i * nest.step(k), nest.step(k), n);
      store_at<T>(p[K - 1] + i * nest.step(K - 1), nest.step(K - 1), F::template apply<T>(in), n);
    }
  }
};

template <class T>
struct relu_direct : Pointwise<T, ReluOf> {};
template <class T>
struct tanh_direct : Pointwise<T, TanhOf> {};
template <class T>
struct sigmoid_direct : Pointwise<T, SigmoidOf> {};
template <class T>
struct relu_grad_direct : Pointwise<T, ReluGrad> {};
template <class T>
struct tanh_grad_direct : Pointwise<T, TanhGrad> {};
template <class T>
struct sigmoid_grad_direct : Pointwise<T, SigmoidGrad> {};
