// What the kernels that walk strips share: operands, units, packing a unit's strip, the tap-by-tap sum. Arrays are of
// the storage type S (storage.inl); strips, weights and sums are of T = Wide<S>.

template <class S>
struct ConvOperands {
  const S* in;
  WeightSource<S> weight;  // of group 0
  int64_t weight_group;    // elements between groups
  const S* bias;
  const S* residual;
  S* out;
  int64_t bias_stride;
  const int64_t *in_stride, *residual_stride, *out_stride;  // batch, channel, depth, height, width
  bool relu;
};

// The input gradient exchanges the roles of input and output channels.
template <class S>
static WeightSource<S> weight_source(const ck_tensor& weight, bool backward) {
  WeightSource<S> s;
  s.data = static_cast<const S*>(weight.data);
  s.k = weight.stride[backward ? 1 : 0];
  s.c = weight.stride[backward ? 0 : 1];
  for (int a = 0; a < CK_AXES; a++) s.axis[a] = weight.stride[2 + a];
  return s;
}
static inline int64_t weight_group(const ck_conv& p, const ck_tensor& weight) {
  return p.out_channels / p.groups * weight.stride[0];
}
template <class S>
static ConvOperands<S> conv_operands(const ck_conv& p, const ck_tensor* t, bool backward) {
  ConvOperands<S> o;
  o.in = static_cast<const S*>(t[0].data);
  o.weight = weight_source<S>(t[1], backward);
  o.weight_group = weight_group(p, t[1]);
  o.bias = static_cast<const S*>(t[2].data);
  o.residual = static_cast<const S*>(t[3].data);
  o.out = static_cast<S*>(t[4].data);
  o.bias_stride = t[2].stride[0];
  o.in_stride = t[0].stride, o.residual_stride = t[3].stride, o.out_stride = t[4].stride;
  o.relu = p.activation == CK_ACTIVATION_RELU;
  return o;
}

// Sums of `pixels` neighbouring outputs -> output array, for one block of channels. sums(i, k) gives those of pixel i,
// channels k and on.
template <class S, class Sums>
static void write_back(Sums sums, int64_t pixels, int64_t channels, const S* bias, int64_t bias_stride,
                       const S* residual, int64_t residual_pixel, int64_t residual_channel, S* out, int64_t out_pixel,
                       int64_t out_channel, bool activate) {
  typedef Wide<S> T;
  constexpr int L = kLanes<T>;
  const bool rows = out_pixel == 1 && (!residual || residual_pixel == 1);
  const bool columns = out_channel == 1 && (!residual || residual_channel == 1);
  for (int64_t k = 0; k < channels; k += L) {
    const int count = int(min_of<int64_t>(L, channels - k));
    Vec<T> b{};
    if (bias) {
      T lane[L] = {};
      for (int j = 0; j < count; j++) lane[j] = widen(bias[(k + j) * bias_stride]);
      b = load(lane);
    }
    if (rows) {
      for (int64_t i = 0; i < pixels; i += L) {
        const int length = int(min_of<int64_t>(L, pixels - i));
        Vec<T> v[L];
#pragma GCC unroll 16
        for (int j = 0; j < L; j++) v[j] = j < length ? sums(i + j, k) + b : Vec<T>{};
        transpose<T>(v);
        for (int j = 0; j < count; j++) {
          Vec<T> y = v[j];
          if (residual) y += load_n(residual + (k + j) * residual_channel + i, length);
          if (activate) y = relu<T>(y);
          if (length == L) store(out + (k + j) * out_channel + i, y);
          else store_n(out + (k + j) * out_channel + i, y, length);
        }
      }
    } else if (columns) {
      for (int64_t i = 0; i < pixels; i++) {
        Vec<T> y = sums(i, k) + b;
        if (residual) y += load_n(residual + i * residual_pixel + k, count);
        if (activate) y = relu<T>(y);
        store_n(out + i * out_pixel + k, y, count);
      }
    } else {
      for (int64_t i = 0; i < pixels; i++) {
        T lane[L];
        store(lane, sums(i, k) + b);
        for (int j = 0; j < count; j++) {
          T y = lane[j];
          if (residual) y += widen(residual[i * residual_pixel + (k + j) * residual_channel]);
          put(out + i * out_pixel + (k + j) * out_channel, activate ? relu<T>(y) : y);
        }
      }
    }
  }
}
// The same where pixels of sums lie `block` elements apart.
template <class S>
static void write_back(const Wide<S>* sums, int64_t block, int64_t pixels, int64_t channels, const S* bias,
                       int64_t bias_stride, const S* residual, int64_t residual_pixel, int64_t residual_channel, S* out,
                       int64_t out_pixel, int64_t out_channel, bool activate) {
  write_back([=](int64_t i, int64_t k) { return load(sums + i * block + k); }, pixels, channels, bias, bias_stride,
             residual, residual_pixel, residual_channel, out, out_pixel, out_channel, activate);
}

// Sums of neighbouring outputs of one channel -> output array: bias, residual, activation.
template <class S>
static void write_row(const Wide<S>* sums, Wide<S> bias, const S* residual, int64_t residual_step, S* out, int64_t step,
                      int64_t count, bool activate) {
  typedef Wide<S> T;
  constexpr int L = kLanes<T>;
  if (step != 1 || (residual && residual_step != 1)) {
    for (int64_t i = 0; i < count; i++) {
      T v = sums[i] + bias;
      if (residual) v += widen(residual[i * residual_step]);
      put(out + i * step, activate ? relu<T>(v) : v);
    }
    return;
  }
  const Vec<T> b = splat(bias);
  for (int64_t i = 0; i < count; i += L) {
    const int length = int(min_of<int64_t>(L, count - i));
    Vec<T> v = load_n(sums + i, length) + b;
    if (residual) v += load_n(residual + i, length);
    store_n(out + i, activate ? relu<T>(v) : v, length);
  }
}

template <class S>
class ConvUnits {
 public:
  typedef Wide<S> T;

  ConvUnits(const ConvPlan<T>& plan, const ConvOperands<S>& operands) : plan_(plan), op_(operands) {}

 protected:
  // Where a unit lies. Columns run over q of all column phases alike: outputs first_col * step_out and on.
  struct Place {
    int64_t first_image, images, group, depth, row_phase, first_row, rows, first_col, cols;
  };
  Place place_of(int64_t unit) const {
    Place p;
    const ConvAxis &h = plan_.axis[1], &w = plan_.axis[2];
    const int64_t part_w = unit % plan_.strips_w;
    unit /= plan_.strips_w;
    const int64_t part_h = unit % plan_.strips_h;
    unit /= plan_.strips_h;
    p.row_phase = unit % plan_.row_phases;
    unit /= plan_.row_phases;
    p.depth = unit % plan_.axis[0].out;
    unit /= plan_.axis[0].out;
    p.group = unit % plan_.groups;
    unit /= plan_.groups;
    p.first_image = unit * plan_.images;
    p.images = min_of(plan_.images, plan_.batch - p.first_image);
    p.first_row = part_h * plan_.rows;
    p.rows = max_of<int64_t>(0, min_of(plan_.rows, h.count(p.row_phase) - p.first_row));
    p.first_col = part_w * plan_.cols;
    p.cols = max_of<int64_t>(0, min_of(plan_.cols, w.count(0) - p.first_col));
    return p;
  }

  // Output columns that this unit covers.
  int64_t out_columns(const Place& p) const {
    const ConvAxis& w = plan_.axis[2];
    return min_of(w.out - p.first_col * w.step_out, p.cols * w.step_out);
  }

  void pack(const Place& p, const AxisTaps& td, const AxisTaps& th, StripShape& s, T* strip) const {
    StripSource<S> in = this->template source_of<S>(p, td, th, s);
    in.data = op_.in + p.group * plan_.in_channels * op_.in_stride[1];
    pack_strip(strip, s, in);
  }

  // What a unit's strip holds, and its shape; the data's address is for the caller to add.
  template <class X>
  StripSource<X> source_of(const Place& p, const AxisTaps& td, const AxisTaps& th, StripShape& s) const {
    Window depth, height;
    depth.init(td, plan_.axis[0].step_in);
    height.init(th, plan_.axis[1].step_in);
    s.images = p.images;
    s.planes = td.count;
    s.rows = height.extent(p.rows, plan_.axis[1].step_in);
    s.phases = plan_.column_phases;
    s.columns = ceil_div(plan_.columns.extent(p.cols, plan_.axis[2].step_in), s.phases);
    s.row_pitch = s.columns * s.phases;
    s.plane_pitch = s.rows * s.row_pitch;
    s.image_pitch = s.planes * s.plane_pitch;
    s.channel_pitch = plan_.channel_pitch;
    StripSource<X> in;
    in.data = nullptr;
    in.stride = op_.in_stride;
    for (int a = 0; a < CK_AXES; a++) in.size[a] = plan_.axis[a].in;
    in.first_image = p.first_image;
    in.channels = plan_.in_channels;
    const int64_t q = p.depth / plan_.axis[0].step_out;
    // Planes are stored in the order of the taps.
    in.first_plane = q * plan_.axis[0].step_in + td.offset, in.plane_step = td.advance;
    in.first_row = p.first_row * plan_.axis[1].step_in + height.low, in.row_step = height.step;
    in.first_column = p.first_col * plan_.axis[2].step_in + plan_.columns.low, in.column_step = plan_.columns.step;
    return in;
  }

  // Offsets in the strip of the taps of one class, depth, height, width; returns how many.
  int64_t strip_taps(const StripShape& s, const AxisTaps& td, const AxisTaps& th, const AxisTaps& tw,
                     int64_t* tap) const {
    Window height;
    height.init(th, plan_.axis[1].step_in);
    int64_t taps = 0;
    for (int64_t jd = 0; jd < td.count; jd++)
      for (int64_t jh = 0; jh < th.count; jh++)
        for (int64_t jw = 0; jw < tw.count; jw++) {
          const int64_t y = (th.offset + jh * th.advance - height.low) / height.step;
          const int64_t x = (tw.offset + jw * tw.advance - plan_.columns.low) / plan_.columns.step;
          tap[taps++] = jd * s.plane_pitch + y * s.row_pitch + x % s.phases * s.columns + x / s.phases;
        }
    return taps;
  }
  // Strip elements between rows of outputs.
  int64_t strip_row_step(const StripShape& s, const AxisTaps& th) const {
    Window height;
    height.init(th, plan_.axis[1].step_in);
    return plan_.axis[1].step_in / height.step * s.row_pitch;
  }
  static int64_t most_taps(const ConvPlan<T>& plan) {
    int64_t taps = 1;
    for (const ConvAxis& axis : plan.axis) taps *= ceil_div(axis.kernel, axis.modulus);
    return taps;
  }

  // One output's sum, tap by tap with range checks, in the order of sums of the fast path. Only for weights that are
  // not all finite, where a stored zero of the padding would become NaN. `weight`: [chunk][tap][channel], `wide` apart.
  T safe_sum(const Place& p, const AxisTaps& td, const AxisTaps& th, const AxisTaps& tw, const T* weight, int64_t wide,
             int64_t n, int64_t y, int64_t x) const {
    const ConvAxis &d = plan_.axis[0], &h = plan_.axis[1], &w = plan_.axis[2];
    const int64_t taps = td.count * th.count * tw.count, chunk = chunk_channels(plan_.in_channels, taps);
    const S* in = op_.in + p.group * plan_.in_channels * op_.in_stride[1] + (p.first_image + n) * op_.in_stride[0];
    T total = T(0);
    for (int64_t c = 0; c < plan_.in_channels; c += chunk) {
      const int64_t size = min_of(chunk, plan_.in_channels - c);
      T sum = T(0);
      for (int64_t tap = 0; tap < taps; tap++) {
        const int64_t jd = tap / (th.count * tw.count), jh = tap / tw.count % th.count, jw = tap % tw.count;
        const int64_t id = p.depth / d.step_out * d.step_in + td.offset + jd * td.advance;
        const int64_t ih = (p.first_row + y) * h.step_in + th.offset + jh * th.advance;
        const int64_t iw = (p.first_col + x) * w.step_in + tw.offset + jw * tw.advance;
        if (id < 0 || id >= d.in || ih < 0 || ih >= h.in || iw < 0 || iw >= w.in) continue;
        const S* pixel = in + id * op_.in_stride[2] + ih * op_.in_stride[3] + iw * op_.in_stride[4];
        const T* row = weight + (c * taps + tap * size) * wide;
        for (int64_t j = 0; j < size; j++)
          sum = multiply_add(widen(pixel[(c + j) * op_.in_stride[1]]), row[j * wide], sum);
      }
      total = c == 0 ? sum : total + sum;
    }
    return total;
  }

  // The sums of a block of output channels, [image][row][output column][block]: add bias and residual, activate, store.
  void write_block(const Place& p, int64_t block, const T* sums) const {
    constexpr int64_t step = ConvPlan<T>::block;
    write_block(p, block, this->out_columns(p), [=](int64_t i, int64_t k) { return load(sums + i * step + k); });
  }
  // The same for sums(i, k) of output i, counted with `row_sums` outputs to a row, channels k and on.
  template <class Sums>
  void write_block(const Place& p, int64_t block, int64_t row_sums, const Sums& sums) const {
    const ConvAxis &h = plan_.axis[1], &w = plan_.axis[2];
    const int64_t outs = this->out_columns(p);
    const int64_t k0 = block * plan_.block, channels = min_of(plan_.block, plan_.out_channels - k0);
    const int64_t k = p.group * plan_.out_channels + k0;
    const int64_t* os = op_.out_stride;
    const int64_t* rs = op_.residual_stride;
    // Whole rows that lie one behind the other in memory are written as one.
    const bool whole = outs == w.out && outs == row_sums && h.step_out == 1 && os[3] == outs * os[4] &&
                       (!op_.residual || rs[3] == outs * rs[4]);
    const int64_t rows = whole ? 1 : p.rows, pixels = whole ? p.rows * outs : outs;
    for (int64_t n = 0; n < p.images; n++)
      for (int64_t y = 0; y < rows; y++) {
        const int64_t image = p.first_image + n, row = p.row_phase + (p.first_row + y) * h.step_out;
        const int64_t column = p.first_col * w.step_out;
        const S* residual =
            op_.residual ? op_.residual + image * rs[0] + k * rs[1] + p.depth * rs[2] + row * rs[3] + column * rs[4]
                         : nullptr;
        const int64_t first = (n * p.rows + y) * row_sums;
        write_back([=](int64_t i, int64_t j) { return sums(first + i, j); }, pixels, channels,
                   op_.bias ? op_.bias + k * op_.bias_stride : nullptr, op_.bias_stride, residual, rs[4], rs[1],
                   op_.out + image * os[0] + k * os[1] + p.depth * os[2] + row * os[3] + column * os[4], os[4], os[1],
                   op_.relu);
      }
  }

  const ConvPlan<T>& plan_;
  const ConvOperands<S>& op_;
};
