// Softmax cross-entropy with its gradient in one go.
//
//   loss of a row = (1 - e) * (logZ - z_label) + e / classes * sum of (logZ - z_j),   z = x - max x,  Z = sum of exp(z)
//   grad = (softmax - (1 - e) * onehot - e / classes) / rows,   loss = mean over rows, NaN for an empty batch
//
// exp(z) waits in grad_logits until Z is known. Z, the label's gradient and the loss are computed in double; the rows'
// losses are added in index order. Labels are all checked before anything is written. NaN and +inf in a row make its
// gradient NaN; classes at -inf have gradient 0.
// Bound by exp (about 25 operations per class); a row of logits stays in L1 for the three passes over it.

template <class T>
struct softmax_cross_entropy_direct {
  static size_t workspace(const void* params, int) {
    return size_t(static_cast<const ck_class*>(params)->rows) * sizeof(double);
  }
  static const char* why_not(const void*) { return nullptr; }

  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_class>(params)) return CK_BAD_STRUCT;
    if (exec->workspace_size < workspace(params, exec->threads)) return CK_SMALL_WORKSPACE;
    const auto* p = static_cast<const ck_class*>(params);
    const ck_tensor &logits = tensors[0], &labels = tensors[1], &loss = tensors[2], &grad = tensors[3];
    const int64_t* const label = static_cast<const int64_t*>(labels.data);
    for (int64_t row = 0; row < p->rows; row++) {
      const int64_t value = label[row * labels.stride[0]];
      if (value < 0 || value >= p->classes) {
        exec->bad_index = value;
        exec->bad_place = row;
        return CK_LABEL_RANGE;
      }
    }
    double* const losses = static_cast<double*>(exec->workspace);
    const ck_status status =
        parallel_pieces(exec, p->rows, double(p->classes) * 40, [&](int64_t begin, int64_t end, int) {
          for (int64_t row = begin; row < end; row++) {
            const T* x = static_cast<const T*>(logits.data) + row * logits.stride[0];
            T* g = static_cast<T*>(grad.data) + row * grad.stride[0];
            losses[row] = one_row(*p, x, logits.stride[1], label[row * labels.stride[0]], g, grad.stride[1]);
          }
        });
    if (status != CK_OK) return status;
    double sum = 0;
    for (int64_t row = 0; row < p->rows; row++) sum += losses[row];
    *static_cast<T*>(loss.data) = T(sum / double(p->rows));
    return CK_OK;
  }

 private:
  static double one_row(const ck_class& p, const T* x, int64_t step, int64_t label, T* grad, int64_t grad_step) {
    const int64_t classes = p.classes;
    const T largest = maximum(x, step, classes);

    double normaliser = 0, sum_of_z = 0;
    for (int64_t i = 0; i < classes; i += kLanes<T>) {
      const int n = int(min_of<int64_t>(kLanes<T>, classes - i));
      const Vec<T> z = load_at<T>(x + i * step, step, n) - splat(largest);
      const Vec<T> e = exp_of_nonpositive<T>(z);
      store_at<T>(grad + i * grad_step, grad_step, e, n);
      for (int lane = 0; lane < n; lane++) normaliser += double(e[lane]);
      if (p.label_smoothing > 0)
        for (int lane = 0; lane < n; lane++) sum_of_z += double(z[lane]);
    }

    const double off = p.label_smoothing / double(classes), on = 1 - p.label_smoothing;
    const double scale = 1 / (normaliser * double(p.rows)), shift = off / double(p.rows);
    const double label_exp = double(grad[label * grad_step]);
    for (int64_t i = 0; i < classes; i += kLanes<T>) {
      const int n = int(min_of<int64_t>(kLanes<T>, classes - i));
      const Vec<T> e = load_at<T>(grad + i * grad_step, grad_step, n);
      store_at<T>(grad + i * grad_step, grad_step, e * splat(T(scale)) - splat(T(shift)), n);
    }
    grad[label * grad_step] = T(label_exp * scale - (on + off) / double(p.rows));

    const double log_normaliser = __builtin_log(normaliser);
    const double z_label = double(x[label * step]) - double(largest);
    double loss = on * (log_normaliser - z_label);
    if (p.label_smoothing > 0) loss += off * (double(classes) * log_normaliser - sum_of_z);
    return loss;
  }

  // NaN may or may not be passed over: exp(NaN - anything) is NaN and makes the whole row so.
  static T maximum(const T* x, int64_t step, int64_t classes) {
    Vec<T> most = splat(x[0]);
    int64_t i = 0;
    for (; i + kLanes<T> <= classes; i += kLanes<T>) {
      const Vec<T> v = load_at<T>(x + i * step, step, kLanes<T>);
      most = v > most ? v : most;
    }
    T largest = most[0];
    for (int lane = 1; lane < kLanes<T>; lane++) largest = most[lane] > largest ? most[lane] : largest;
    for (; i < classes; i++) largest = x[i * step] > largest ? x[i * step] : largest;
    return largest;
  }
};
