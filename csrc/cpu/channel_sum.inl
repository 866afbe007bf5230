// out[c] = sum of x over batch and space: the gradient of a bias.
//
// Bound by reading x once. Sums are taken in double (channels.inl), so the result is exact to the last place of float.

struct SumOfValues {
  static constexpr int inputs = 1, sums = 1;
  static void add(Vec<double>* sum, const Vec<double>* in, Vec<double>) { sum[0] += in[0]; }
};

template <class S>
struct channel_sum_direct {
  using Sums = ChannelSums<S, SumOfValues>;

  static size_t workspace(const void* params, int) {
    return size_t(Sums::partials(static_cast<const ck_channel*>(params))) * sizeof(double);
  }
  static const char* why_not(const void*) { return nullptr; }

  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_channel>(params)) return CK_BAD_STRUCT;
    if (exec->workspace_size < workspace(params, exec->threads)) return CK_SMALL_WORKSPACE;
    const ck_tensor* const inputs[] = {&tensors[0]};
    const Sums sums(static_cast<const ck_channel*>(params), inputs, nullptr, static_cast<double*>(exec->workspace));
    S* const out = static_cast<S*>(tensors[1].data);
    const int64_t step = tensors[1].stride[0];
    return sums.run(exec, [&](int64_t channel, const double* total) { put(out + channel * step, Wide<S>(total[0])); });
  }
};
