// Batch normalisation: with given statistics, with those of the batch, and its gradient.
//
// Statistics take two passes (mean, then centred squares) in double; the last pass applies one affine map per channel,
// (x - mean) * scale + shift. The mean is kept as a pair high + low of T, so that its rounding does not show in y when
// it is large beside the deviation. rstd = 1 / sqrt(var + eps), computed in double.
// Bound by memory: 2 transfers per element for inference, 4 in training (3 reads, 1 write), 5 for the gradient.
// Empty batch: mean and variance are 0, sums are 0.

template <class T>
static inline double channel_value(const ck_tensor& vector, int64_t channel, double absent) {
  return vector.data ? double(static_cast<const T*>(vector.data)[channel * vector.stride[0]]) : absent;
}
template <class T>
static inline void set_channel_value(const ck_tensor& vector, int64_t channel, double value) {
  static_cast<T*>(vector.data)[channel * vector.stride[0]] = T(value);
}

struct Normalise {
  static constexpr int inputs = 1, constants = 4;  // mean high, mean low, scale, shift
  template <class T>
  static Vec<T> apply(const Vec<T>* in, const Vec<T>* c) {
    return ((in[0] - c[0]) - c[1]) * c[2] + c[3];
  }
};

template <class T>
struct batch_norm_direct {
  static size_t workspace(const void* params, int) {
    return size_t(Normalise::constants * channel_pitch(static_cast<const ck_channel*>(params))) * sizeof(T);
  }
  static const char* why_not(const void*) { return nullptr; }

  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_channel>(params)) return CK_BAD_STRUCT;
    if (exec->workspace_size < workspace(params, exec->threads)) return CK_SMALL_WORKSPACE;
    const auto* p = static_cast<const ck_channel*>(params);
    const ck_tensor &mean = tensors[1], &var = tensors[2], &weight = tensors[3], &bias = tensors[4];
    const int64_t pitch = channel_pitch(p);
    T* const constants = static_cast<T*>(exec->workspace);
    for (int64_t c = 0; c < p->channels; c++) {
      const double rstd = 1 / __builtin_sqrt(channel_value<T>(var, c, 0) + p->eps);
      constants[c] = T(channel_value<T>(mean, c, 0));
      constants[pitch + c] = T(0);
      constants[2 * pitch + c] = T(channel_value<T>(weight, c, 1) * rstd);
      constants[3 * pitch + c] = T(channel_value<T>(bias, c, 0));
    }
    const ck_tensor* const maps[] = {&tensors[0], &tensors[5]};
    return map_channels<T, Normalise>(p, maps, constants, exec);
  }
};

struct CentredSquares {
  static constexpr int inputs = 1, sums = 1;
  static void add(Vec<double>* sum, const Vec<double>* in, Vec<double> centre) {
    const Vec<double> d = in[0] - centre;
    sum[0] += d * d;
  }
};

template <class T>
struct batch_norm_training_direct {
  using Means = ChannelSums<T, SumOfValues>;
  using Squares = ChannelSums<T, CentredSquares>;

  static size_t workspace(const void* params, int) {
    return Scratch(static_cast<const ck_channel*>(params), nullptr).bytes;
  }
  static const char* why_not(const void*) { return nullptr; }

  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_channel>(params)) return CK_BAD_STRUCT;
    if (exec->workspace_size < workspace(params, exec->threads)) return CK_SMALL_WORKSPACE;
    const auto* p = static_cast<const ck_channel*>(params);
    const ck_tensor &weight = tensors[1], &bias = tensors[2], &mean = tensors[4], &var = tensors[5], &rstd = tensors[6];
    const Scratch scratch(p, exec->workspace);
    const double elements = double(max_of<int64_t>(1, channel_elements(p)));
    const ck_tensor* const x[] = {&tensors[0]};

    const Means means(p, x, nullptr, scratch.partial);
    ck_status status = means.run(exec, [&](int64_t c, const double* total) { scratch.mean[c] = total[0] / elements; });
    if (status != CK_OK) return status;

    const int64_t pitch = channel_pitch(p);
    T* const constants = scratch.constants;
    const Squares squares(p, x, scratch.mean, scratch.partial);
    status = squares.run(exec, [&](int64_t c, const double* total) {
      const double m = scratch.mean[c], v = total[0] / elements, r = 1 / __builtin_sqrt(v + p->eps);
      set_channel_value<T>(mean, c, m);
      set_channel_value<T>(var, c, v);
      set_channel_value<T>(rstd, c, r);
      constants[c] = T(m);
      constants[pitch + c] = T(m - double(T(m)));
      constants[2 * pitch + c] = T(channel_value<T>(weight, c, 1) * r);
      constants[3 * pitch + c] = T(channel_value<T>(bias, c, 0));
    });
    if (status != CK_OK) return status;

    const ck_tensor* const maps[] = {&tensors[0], &tensors[3]};
    return map_channels<T, Normalise>(p, maps, constants, exec);
  }

 private:
  struct Scratch {
    double *mean, *partial;
    T* constants;
    size_t bytes;
    Scratch(const ck_channel* p, void* workspace) {
      Carver carver(workspace);
      mean = carver.take<double>(channel_pitch(p));
      partial = carver.take<double>(Means::partials(p));
      constants = carver.take<T>(Normalise::constants * channel_pitch(p));
      bytes = carver.bytes;
    }
  };
};

// Sums of grad_output and of grad_output * (x - mean).
struct GradientSums {
  static constexpr int inputs = 2, sums = 2;
  static void add(Vec<double>* sum, const Vec<double>* in, Vec<double> centre) {
    sum[0] += in[0];
    sum[1] += in[0] * (in[1] - centre);
  }
};

// Given statistics: grad_x = grad_output * weight * rstd.
struct ScaleGradient {
  static constexpr int inputs = 1, constants = 1;
  template <class T>
  static Vec<T> apply(const Vec<T>* in, const Vec<T>* c) {
    return in[0] * c[0];
  }
};

// Statistics of the batch: grad_x = weight * rstd * (g - mean(g) - (x - mean) * rstd^2 * mean(g * (x - mean))).
struct CentreGradient {
  static constexpr int inputs = 2, constants = 4;  // scale, mean of g, mean of x, slope
  template <class T>
  static Vec<T> apply(const Vec<T>* in, const Vec<T>* c) {
    return c[0] * ((in[0] - c[1]) - (in[1] - c[2]) * c[3]);
  }
};

template <class T>
struct batch_norm_grad_direct {
  using Sums = ChannelSums<T, GradientSums>;

  static size_t workspace(const void* params, int) {
    return Scratch(static_cast<const ck_channel*>(params), nullptr).bytes;
  }
  static const char* why_not(const void*) { return nullptr; }

  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_channel>(params)) return CK_BAD_STRUCT;
    if (exec->workspace_size < workspace(params, exec->threads)) return CK_SMALL_WORKSPACE;
    const auto* p = static_cast<const ck_channel*>(params);
    const ck_tensor &weight = tensors[2], &mean = tensors[3], &rstd = tensors[4];
    const ck_tensor &grad_weight = tensors[6], &grad_bias = tensors[7];
    const Scratch scratch(p, exec->workspace);
    for (int64_t c = 0; c < p->channels; c++) scratch.mean[c] = channel_value<T>(mean, c, 0);

    const double elements = double(max_of<int64_t>(1, channel_elements(p)));
    const int64_t pitch = channel_pitch(p);
    T* const constants = scratch.constants;
    const ck_tensor* const inputs[] = {&tensors[0], &tensors[1]};
    const Sums sums(p, inputs, scratch.mean, scratch.partial);
    const ck_status status = sums.run(exec, [&](int64_t c, const double* total) {
      const double r = channel_value<T>(rstd, c, 1);
      set_channel_value<T>(grad_weight, c, total[1] * r);
      set_channel_value<T>(grad_bias, c, total[0]);
      constants[c] = T(channel_value<T>(weight, c, 1) * r);
      constants[pitch + c] = T(total[0] / elements);
      constants[2 * pitch + c] = T(scratch.mean[c]);
      constants[3 * pitch + c] = T(r * r * total[1] / elements);
    });
    if (status != CK_OK) return status;

    if (!p->training) {
      const ck_tensor* const maps[] = {&tensors[0], &tensors[5]};
      return map_channels<T, ScaleGradient>(p, maps, constants, exec);
    }
    const ck_tensor* const maps[] = {&tensors[0], &tensors[1], &tensors[5]};
    return map_channels<T, CentreGradient>(p, maps, constants, exec);
  }

 private:
  struct Scratch {
    double *mean, *partial;
    T* constants;
    size_t bytes;
    Scratch(const ck_channel* p, void* workspace) {
      Carver carver(workspace);
      mean = carver.take<double>(channel_pitch(p));
      partial = carver.take<double>(Sums::partials(p));
      constants = carver.take<T>(CentreGradient::constants * channel_pitch(p));
      bytes = carver.bytes;
    }
  };
};
