// Local response normalisation across channels and its gradient.
//
//   S_c = k + alpha * sum of x_j^2 over the window of c      y_c = x_c * S_c^-beta
//   grad_x_c = g_c * S_c^-beta - 2 alpha beta x_c * sum of t_j over all j whose window holds c
//   t_j = g_j * x_j * S_j^(-beta-1)
//
// The window of c is c - size / 2 .. c + (size - 1) / 2, clipped. Its squares are added anew for each channel: a
// running sum that subtracts would carry one infinity through all channels after it. For beta = 3/4 the power is two
// square roots and a division. NCHW: lanes run along pixels, the window's rows stay in L1. NHWC: lanes run along
// channels, window sums are unaligned loads from a padded row of squares.
// Bound by the square roots and the division (about 3 cycles per float element with 64-byte vectors), then by memory.
// Source: Krizhevsky et al., "ImageNet classification with deep convolutional neural networks", 2012, section 3.3.

enum class Power { three_quarters, half, one, general };

static inline Power power_of(double beta) {
  return beta == 0.75 ? Power::three_quarters : beta == 0.5 ? Power::half : beta == 1 ? Power::one : Power::general;
}

// s^-beta
template <class T>
static inline Vec<T> inverse_power(Vec<T> s, Power power, T beta) {
  if (power == Power::one) return splat(T(1)) / s;
  if (power == Power::general) {
    for (int i = 0; i < kLanes<T>; i++) {
      if constexpr (sizeof(T) == 4) s[i] = __builtin_powf(s[i], -beta);
      else s[i] = __builtin_pow(s[i], -beta);
    }
    return s;
  }
  const Vec<T> root = sqrt_of<T>(s);
  return splat(T(1)) / (power == Power::half ? root : root * sqrt_of<T>(root));
}

// What both directions need, in the element type.
template <class T>
struct Response {
  int64_t before, after, channels;  // the window of c is [c - before, c + after]
  T alpha, beta, k;
  Power power;

  explicit Response(const ck_channel* p)
      : before(min_of(p->window / 2, max_of<int64_t>(p->channels - 1, 0))),
        after(min_of((p->window - 1) / 2, max_of<int64_t>(p->channels - 1, 0))),
        channels(p->channels),
        alpha(T(p->alpha)),
        beta(T(p->beta)),
        k(T(p->k)),
        power(power_of(p->beta)) {}

  Range window(int64_t c) const { return {max_of<int64_t>(0, c - before), min_of(channels, c + after + 1)}; }
  Vec<T> denominator(Vec<T> squares) const { return splat(k) + splat(alpha) * squares; }
  Vec<T> inverse(Vec<T> s) const { return inverse_power<T>(s, power, beta); }
};

// Sum of squares over channels, n lanes of pixels at distance `step`.
template <class T>
static inline Vec<T> sum_of_squares(const T* x, int64_t channel_stride, int64_t step, int n, Range channels) {
  Vec<T> sum{};
  x += channels.begin * channel_stride;
  if (step == 1 && n == kLanes<T>) {
    for (int64_t j = channels.begin; j < channels.end; j++, x += channel_stride) sum += load(x) * load(x);
  } else {
    for (int64_t j = channels.begin; j < channels.end; j++, x += channel_stride) {
      const Vec<T> v = load_at<T>(x, step, n);
      sum += v * v;
    }
  }
  return sum;
}

// NCHW and any other strides: units of kChannels channels by kPixels pixels; NHWC: units of pixels.
constexpr int64_t kResponseChannels = 32;
constexpr int64_t kResponsePixels = 512;      // a row of a unit: at most 4 KB, so a window of 5 rows fits L1
constexpr int64_t kResponseGradPixels = 128;  // smaller, because a unit's t are kept: (32 + 4) rows of at most 1 KB

template <class T>
struct local_response_norm_direct {
  static size_t workspace(const void* params, int threads) {
    const Response<T> response(static_cast<const ck_channel*>(params));
    return size_t(threads) * size_t(row_bytes(response));
  }
  static const char* why_not(const void*) { return nullptr; }

  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_channel>(params)) return CK_BAD_STRUCT;
    if (exec->workspace_size < workspace(params, exec->threads)) return CK_SMALL_WORKSPACE;
    const auto* p = static_cast<const ck_channel*>(params);
    const ck_tensor* const maps[] = {&tensors[0], &tensors[1]};
    const ChannelMap<T, 2> map(p, maps);
    const Response<T> response(p);
    const double ops = double(response.before + response.after + 40);  // of an element
    if (map.channels_inner)
      return parallel_pieces(exec, map.elements, ops * double(map.channels), [&](int64_t begin, int64_t end, int lane) {
        T* const squares = reinterpret_cast<T*>(static_cast<char*>(exec->workspace) + lane * row_bytes(response));
        along_channels(map, response, squares, {begin, end});
      });
    const int64_t blocks = ceil_div(map.channels, kResponseChannels);
    const int64_t pieces = ceil_div(map.elements, kResponsePixels);
    const double unit_ops = ops * double(kResponsePixels * min_of(map.channels, kResponseChannels));
    return parallel_pieces(exec, blocks * pieces, unit_ops, [&](int64_t begin, int64_t end, int) {
      for (int64_t unit = begin; unit < end; unit++) {
        const int64_t channel = unit % blocks * kResponseChannels, pixel = unit / blocks * kResponsePixels;
        along_pixels(map, response, {channel, min_of(channel + kResponseChannels, map.channels)},
                     {pixel, min_of(pixel + kResponsePixels, map.elements)});
      }
    });
  }

 private:
  // One pixel's squares between zeros.
  static int64_t row_length(const Response<T>& r) { return r.before + r.channels + r.after + kLanes<T>; }
  static int64_t row_bytes(const Response<T>& r) { return round_up(row_length(r) * int64_t(sizeof(T)), 64); }

  static void along_pixels(const ChannelMap<T, 2>& map, const Response<T>& response, Range channels, Range pixels) {
    const int64_t x_step = map.nest.step(0), out_step = map.nest.step(1);
    map.nest.runs(pixels.begin, pixels.end, [&](int64_t, const int64_t (&offset)[2], int64_t count) {
      for (int64_t c = channels.begin; c < channels.end; c++) {
        const Range window = response.window(c);
        for (int64_t i = 0; i < count; i += kLanes<T>) {
          const int n = int(min_of<int64_t>(kLanes<T>, count - i));
          const T* x = map.data[0] + offset[0] + i * x_step;
          const Vec<T> squares = sum_of_squares<T>(x, map.channel_stride[0], x_step, n, window);
          const Vec<T> v = load_at<T>(x + c * map.channel_stride[0], x_step, n);
          T* out = map.data[1] + offset[1] + c * map.channel_stride[1] + i * out_step;
          store_at<T>(out, out_step, v * response.inverse(response.denominator(squares)), n);
        }
      }
    });
  }

  static void along_channels(const ChannelMap<T, 2>& map, const Response<T>& response, T* squares, Range pixels) {
    memset(squares, 0, size_t(row_length(response)) * sizeof(T));
    map.nest.runs(pixels.begin, pixels.end, [&](int64_t, const int64_t (&offset)[2], int64_t count) {
      for (int64_t pixel = 0; pixel < count; pixel++) {
        const T* x = map.data[0] + offset[0] + pixel * map.nest.step(0);
        T* out = map.data[1] + offset[1] + pixel * map.nest.step(1);
        for (int64_t c = 0; c < map.channels; c += kLanes<T>) {
          const int n = int(min_of<int64_t>(kLanes<T>, map.channels - c));
          const Vec<T> v = load_at<T>(x + c, 1, n);
          store_at<T>(squares + response.before + c, 1, v * v, n);
        }
        for (int64_t c = 0; c < map.channels; c += kLanes<T>) {
          const int n = int(min_of<int64_t>(kLanes<T>, map.channels - c));
          Vec<T> sum{};
          for (int64_t j = 0; j <= response.before + response.after; j++) sum += load(squares + c + j);
          const Vec<T> v = load_at<T>(x + c, 1, n);
          store_at<T>(out + c, 1, v * response.inverse(response.denominator(sum)), n);
        }
      }
    });
  }
};

template <class T>
struct local_response_norm_grad_direct {
  static size_t workspace(const void* params, int threads) {
    const Response<T> response(static_cast<const ck_channel*>(params));
    return size_t(threads) * size_t(lane_bytes(response));
  }
  static const char* why_not(const void*) { return nullptr; }

  static ck_status run(const void* params, const ck_tensor* tensors, ck_exec* exec) {
    if (!valid<ck_channel>(params)) return CK_BAD_STRUCT;
    if (exec->workspace_size < workspace(params, exec->threads)) return CK_SMALL_WORKSPACE;
    const auto* p = static_cast<const ck_channel*>(params);
    const ck_tensor* const maps[] = {&tensors[0], &tensors[1], &tensors[2]};
    const ChannelMap<T, 3> map(p, maps);
    const Response<T> response(p);
    auto scratch = [&](int lane) {
      return reinterpret_cast<T*>(static_cast<char*>(exec->workspace) + lane * lane_bytes(response));
    };
    const double ops = 2 * double(response.before + response.after) + 60;
    if (map.channels_inner)
      return parallel_pieces(exec, map.elements, ops * double(map.channels), [&](int64_t begin, int64_t end, int lane) {
        along_channels(map, response, scratch(lane), {begin, end});
      });
    const int64_t blocks = ceil_div(map.channels, kResponseChannels);
    const int64_t pieces = ceil_div(map.elements, kResponseGradPixels);
    const double unit_ops = ops * double(kResponseGradPixels * min_of(map.channels, kResponseChannels));
    return parallel_pieces(exec, blocks * pieces, unit_ops, [&](int64_t begin, int64_t end, int lane) {
      for (int64_t unit = begin; unit < end; unit++) {
        const int64_t channel = unit % blocks * kResponseChannels, pixel = unit / blocks * kResponseGradPixels;
        along_pixels(map, response, scratch(lane), {channel, min_of(channel + kResponseChannels, map.channels)},
                     {pixel, min_of(pixel + kResponseGradPixels, map.elements)});
      }
    });
  }

 private:
  // NHWC: two padded rows (squares, t) and the powers. NCHW: the t of a unit's channels and their neighbours.
  static int64_t row_length(const Response<T>& r) { return r.before + r.channels + r.after + kLanes<T>; }
  static int64_t lane_bytes(const Response<T>& r) {
    const int64_t rows = min_of(r.channels, kResponseChannels + r.before + r.after);
    return round_up(max_of(3 * row_length(r), rows * kResponseGradPixels) * int64_t(sizeof(T)), 64);
  }

  static void along_pixels(const ChannelMap<T, 3>& map, const Response<T>& response, T* t, Range channels,
                           Range pixels) {
    const int64_t g_step = map.nest.step(0), x_step = map.nest.step(1), out_step = map.nest.step(2);
    const Range rows{max_of<int64_t>(0, channels.begin - response.after),
                     min_of(map.channels, channels.end + response.before)};
    const Vec<T> slope = splat(2 * response.alpha * response.beta);
    map.nest.runs(pixels.begin, pixels.end, [&](int64_t, const int64_t (&offset)[3], int64_t count) {
      const T* const g = map.data[0] + offset[0];
      const T* const x = map.data[1] + offset[1];
      T* const out = map.data[2] + offset[2];
      for (int64_t j = rows.begin; j < rows.end; j++) {
        const Range window = response.window(j);
        const bool own = j >= channels.begin && j < channels.end;
        for (int64_t i = 0; i < count; i += kLanes<T>) {
          const int n = int(min_of<int64_t>(kLanes<T>, count - i));
          const Vec<T> squares = sum_of_squares<T>(x + i * x_step, map.channel_stride[1], x_step, n, window);
          const Vec<T> s = response.denominator(squares);
          const Vec<T> gp = load_at<T>(g + j * map.channel_stride[0] + i * g_step, g_step, n) * response.inverse(s);
          const Vec<T> v = load_at<T>(x + j * map.channel_stride[1] + i * x_step, x_step, n);
          store(t + (j - rows.begin) * kResponseGradPixels + i, gp * v / s);
          // The first term waits in the output until the sums of t are known.
          if (own) store_at<T>(out + j * map.channel_stride[2] + i * out_step, out_step, gp, n);
        }
      }
      for (int64_t c = channels.begin; c < channels.end; c++) {
        const int64_t first = max_of<int64_t>(0, c - response.after);
        const int64_t last = min_of(map.channels - 1, c + response.before);
        for (int64_t i = 0; i < count; i += kLanes<T>) {
          const int n = int(min_of<int64_t>(kLanes<T>, count - i));
          Vec<T> sum{};
          for (int64_t j = first; j <= last; j++) sum += load(t + (j - rows.begin) * kResponseGradPixels + i);
          const Vec<T> v = load_at<T>(x + c * map.channel_stride[1] + i * x_step, x_step, n);
          T* at = out + c * map.channel_stride[2] + i * out_step;
          store_at<T>(at, out_step, load_at<T>(at, out_step, n) - slope * v * sum, n);
        }
      }
    });
  }

  static void along_channels(const ChannelMap<T, 3>& map, const Response<T>& response, T* scratch, Range pixels) {
    const int64_t length = row_length(response), window = response.before + response.after;
    T* const squares = scratch;     // of channel c at before + c
    T* const t = squares + length;  // of channel c at after + c
    T* const first_term = t + length;
    memset(scratch, 0, size_t(2 * length) * sizeof(T));
    const Vec<T> slope = splat(2 * response.alpha * response.beta);
    map.nest.runs(pixels.begin, pixels.end, [&](int64_t, const int64_t (&offset)[3], int64_t count) {
      for (int64_t pixel = 0; pixel < count; pixel++) {
        const T* g = map.data[0] + offset[0] + pixel * map.nest.step(0);
        const T* x = map.data[1] + offset[1] + pixel * map.nest.step(1);
        T* out = map.data[2] + offset[2] + pixel * map.nest.step(2);
        auto lanes = [&](int64_t c) { return int(min_of<int64_t>(kLanes<T>, map.channels - c)); };
        for (int64_t c = 0; c < map.channels; c += kLanes<T>) {
          const Vec<T> v = load_at<T>(x + c, 1, lanes(c));
          store_at<T>(squares + response.before + c, 1, v * v, lanes(c));
        }
        for (int64_t c = 0; c < map.channels; c += kLanes<T>) {
          Vec<T> sum{};
          for (int64_t j = 0; j <= window; j++) sum += load(squares + c + j);
          const Vec<T> s = response.denominator(sum);
          const Vec<T> gp = load_at<T>(g + c, 1, lanes(c)) * response.inverse(s);
          const Vec<T> v = load_at<T>(x + c, 1, lanes(c));
          store(first_term + c, gp);
          store_at<T>(t + response.after + c, 1, gp * v / s, lanes(c));
        }
        for (int64_t c = 0; c < map.channels; c += kLanes<T>) {
          Vec<T> sum{};
          for (int64_t j = 0; j <= window; j++) sum += load(t + c + j);
          const Vec<T> v = load_at<T>(x + c, 1, lanes(c));
          store_at<T>(out + c, 1, load(first_term + c) - slope * v * sum, lanes(c));
        }
      }
    });
  }
};
