// unfold: every cell of every window as a row of a matrix (im2col); fold: its adjoint, sums back into the image.
//
// The matrix has rows (channel, kernel cell) and columns (output position), row-major. unfold copies runs of an image
// row that one cell sees while the window slides along; cells in the padding are zeros. fold gathers: each image row
// adds the runs of all cells that reach it, cells in rising order, so no two units of work write the same row.
// Bound by memory: the matrix is written (read) once; it is kernel cells / stride times larger than the image.

struct Unfolding {
  const ck_conv* p;
  int64_t cells;    // of the kernel
  int64_t columns;  // output positions

  explicit Unfolding(const ck_conv* params)
      : p(params),
        cells(params->kernel[0] * params->kernel[1] * params->kernel[2]),
        columns(params->out[0] * params->out[1] * params->out[2]) {}

  // Where cell `tap` of a window at output 0 lies on `axis`.
  int64_t origin(int axis, int64_t tap) const { return tap * p->dilation[axis] - p->pad[axis]; }

  // Outputs whose cell at `origin` lies inside the image.
  Range inside(int axis, int64_t origin) const {
    const int64_t stride = p->stride[axis], last = p->in[axis] - 1 - origin;
    const int64_t begin = origin < 0 ? ceil_div(-origin, stride) : 0;
    const int64_t end = last < 0 ? 0 : min_of(p->out[axis], last / stride + 1);
    return {min_of(begin, end), end};
  }

  // The output whose window has a cell of this origin at `position`, or -1.
  int64_t output_at(int axis, int64_t position, int64_t origin) const {
    const int64_t distance = position - origin;
    if (distance < 0 || distance % p->stride[axis] != 0) return -1;
    const int64_t output = distance / p->stride[axis];
    return output < p->out[axis] ? output : -1;
  }
};

template <class T>
struct unfold_direct {
  static size_t workspace(const void*, int) { return 0; }
  static const char* why_not(const void*) { return nullptr; }

  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const Unfolding u(static_cast<const ck_conv*>(params));
    const int64_t rows = u.p->in_channels * u.cells;
    const double ops = double(u.columns) * 2 * sizeof(T) * kOpsPerByte;
    return parallel_pieces(exec, u.p->batch * rows, ops, [&](int64_t begin, int64_t end, int) {
      for (int64_t unit = begin; unit < end; unit++) matrix_row(u, tensors[0], tensors[1], unit / rows, unit % rows);
    });
  }

 private:
  static void matrix_row(const Unfolding& u, const ck_tensor& x, const ck_tensor& out, int64_t image, int64_t row) {
    const int64_t* kernel = u.p->kernel;
    const int64_t channel = row / u.cells, cell = row % u.cells;
    const int64_t origin_d = u.origin(0, cell / (kernel[1] * kernel[2]));
    const int64_t origin_h = u.origin(1, cell / kernel[2] % kernel[1]);
    const int64_t origin_w = u.origin(2, cell % kernel[2]);
    const int64_t width = u.p->out[2], step = out.stride[2], x_step = x.stride[4] * u.p->stride[2];
    const Range in_d = u.inside(0, origin_d), in_h = u.inside(1, origin_h), in_w = u.inside(2, origin_w);
    const T* const plane = static_cast<const T*>(x.data) + image * x.stride[0] + channel * x.stride[1];
    T* to = static_cast<T*>(out.data) + image * out.stride[0] + row * out.stride[1];
    for (int64_t od = 0; od < u.p->out[0]; od++)
      for (int64_t oh = 0; oh < u.p->out[1]; oh++, to += width * step) {
        const bool real = od >= in_d.begin && od < in_d.end && oh >= in_h.begin && oh < in_h.end;
        const Range copied = real ? in_w : Range{0, 0};
        fill_zero(to, step, copied.begin);
        if (copied.begin < copied.end) {
          const T* from = plane + (od * u.p->stride[0] + origin_d) * x.stride[2] +
                          (oh * u.p->stride[1] + origin_h) * x.stride[3] +
                          (copied.begin * u.p->stride[2] + origin_w) * x.stride[4];
          copy(to + copied.begin * step, step, from, x_step, copied.end - copied.begin);
        }
        fill_zero(to + copied.end * step, step, width - copied.end);
      }
  }
  static void fill_zero(T* to, int64_t step, int64_t count) {
    if (step == 1) {
      if (count > 0) memset(to, 0, size_t(count) * sizeof(T));
    } else {
      for (int64_t i = 0; i < count; i++) to[i * step] = T(0);
    }
  }
  static void copy(T* to, int64_t step, const T* from, int64_t from_step, int64_t count) {
    if (step == 1 && from_step == 1) memcpy(to, from, size_t(count) * sizeof(T));
    else
      for (int64_t i = 0; i < count; i++) to[i * step] = from[i * from_step];
  }
};

template <class T>
struct fold_direct {
  static size_t workspace(const void*, int) { return 0; }
  static const char* why_not(const void*) { return nullptr; }

  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_conv>(params)) return CK_BAD_STRUCT;
    const Unfolding u(static_cast<const ck_conv*>(params));
    const int64_t* in = u.p->in;
    const int64_t rows = u.p->batch * u.p->in_channels * in[0] * in[1];
    const double elements = double(u.p->in_channels) * double(u.p->batch) * double(u.cells) * double(u.columns);
    const double ops = elements * sizeof(T) * kOpsPerByte / double(max_of<int64_t>(rows, 1));
    return parallel_pieces(exec, rows, ops, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; row++) {
        const int64_t h = row % in[1], d = row / in[1] % in[0], plane = row / (in[1] * in[0]);
        image_row(u, tensors[0], tensors[1], plane / u.p->in_channels, plane % u.p->in_channels, d, h);
      }
    });
  }

 private:
  static void image_row(const Unfolding& u, const ck_tensor& matrix, const ck_tensor& out, int64_t image,
                        int64_t channel, int64_t d, int64_t h) {
    const int64_t* kernel = u.p->kernel;
    T* const to = static_cast<T*>(out.data) + image * out.stride[0] + channel * out.stride[1] + d * out.stride[2] +
                  h * out.stride[3];
    const T* const first_row =
        static_cast<const T*>(matrix.data) + image * matrix.stride[0] + channel * u.cells * matrix.stride[1];
    const int64_t step = out.stride[4];
    for (int64_t w = 0; w < u.p->in[2]; w++) to[w * step] = T(0);
    for (int64_t kd = 0; kd < kernel[0]; kd++)
      for (int64_t kh = 0; kh < kernel[1]; kh++) {
        const int64_t od = u.output_at(0, d, u.origin(0, kd)), oh = u.output_at(1, h, u.origin(1, kh));
        if (od < 0 || oh < 0) continue;
        for (int64_t kw = 0; kw < kernel[2]; kw++) {
          const int64_t origin = u.origin(2, kw), row = (kd * kernel[1] + kh) * kernel[2] + kw;
          const Range range = u.inside(2, origin);
          if (range.begin >= range.end) continue;
          const T* from = first_row + row * matrix.stride[1] +
                          ((od * u.p->out[1] + oh) * u.p->out[2] + range.begin) * matrix.stride[2];
          add(to + (range.begin * u.p->stride[2] + origin) * step, step * u.p->stride[2], from, matrix.stride[2],
              range.end - range.begin);
        }
      }
  }
  static void add(T* to, int64_t step, const T* from, int64_t from_step, int64_t count) {
    if (step == 1 && from_step == 1)
      for (int64_t i = 0; i < count; i++) to[i] += from[i];
    else
      for (int64_t i = 0; i < count; i++) to[i * step] += from[i * from_step];
  }
};
