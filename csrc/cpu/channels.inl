// Loops over maps that have one value per channel: sums over a channel, and elementwise work with channel constants.
//
// One nest holds all axes but the channel. If the channel is the innermost axis in memory (NHWC), lanes run along
// channels; otherwise along the nest, one channel at a time. Sums are taken in double: the nest is cut into segments by
// shape alone, each segment has its own partial sum, and these are added in index order, so the bits do not depend on
// the number of threads. Bound by memory: each tensor is read once per pass.

template <class T, int K>
struct ChannelMap {
  Nest<K> nest;  // batch, depth, height, width
  T* data[K];
  int64_t channel_stride[K];
  int64_t channels, elements;  // elements of one channel
  bool channels_inner;

  ChannelMap(const ck_channel* p, const ck_tensor* const (&tensors)[K]) : channels(p->channels) {
    nest.add(p->batch, tensors, 0);
    for (int a = 0; a < CK_AXES; a++) nest.add(p->spatial[a], tensors, 2 + a);
    elements = nest.elements();
    channels_inner = channels > 1 && !nest.unit();
    for (int k = 0; k < K; k++) {
      data[k] = static_cast<T*>(tensors[k]->data);
      channel_stride[k] = tensors[k]->stride[1];
      channels_inner = channels_inner && channel_stride[k] == 1;
    }
  }
};

static inline int64_t channel_elements(const ck_channel* p) {
  return p->batch * p->spatial[0] * p->spatial[1] * p->spatial[2];
}

// Values per channel in the workspace are padded to whole vectors.
static inline int64_t channel_pitch(const ck_channel* p) { return round_up(p->channels, kLanes<float>); }

// Into how many segments a channel's elements are cut: enough work for many threads, few partial sums.
static inline int64_t row_segments(int64_t elements) {
  return max_of<int64_t>(1, min_of<int64_t>(64, ceil_div(elements, 8192)));
}
static inline int64_t pixel_segments(int64_t elements, int64_t channels) {
  return max_of<int64_t>(1, min_of(min_of<int64_t>(64, elements), ceil_div(elements * channels, 32768)));
}

// Sums over each channel. F has `inputs`, `sums` and add(sums, inputs, centre), all in double vectors.
template <class T, class F>
class ChannelSums {
 public:
  static constexpr int K = F::inputs, S = F::sums;

  static int64_t partials(const ck_channel* p) {
    const int64_t elements = channel_elements(p);
    return max_of(row_segments(elements), pixel_segments(elements, p->channels)) * S * channel_pitch(p);
  }

  // `centre`: a value per channel, padded to channel_pitch(). `partial`: partials() doubles.
  ChannelSums(const ck_channel* p, const ck_tensor* const (&tensors)[K], const double* centre, double* partial)
      : map_(p, tensors), pitch_(channel_pitch(p)), centre_(centre), partial_(partial) {
    segments_ = map_.channels_inner ? pixel_segments(map_.elements, map_.channels) : row_segments(map_.elements);
  }

  // finish(channel, totals) is called once per channel, from any thread.
  template <class Finish>
  ck_status run(const ck_exec* exec, const Finish& finish) const {
    const int64_t units = map_.channels_inner ? segments_ : segments_ * map_.channels;
    const double bytes = double(map_.elements) * double(map_.channels) * K * sizeof(T);
    const ck_status status = parallel_pieces(exec, units, bytes * kOpsPerByte / double(max_of<int64_t>(units, 1)),
                                             [&](int64_t begin, int64_t end, int) {
                                               for (int64_t unit = begin; unit < end; unit++)
                                                 if (map_.channels_inner) along_channels(unit);
                                                 else along_row(unit / segments_, unit % segments_);
                                             });
    if (status != CK_OK) return status;
    return parallel_pieces(exec, map_.channels, double(segments_ * S * 4), [&](int64_t begin, int64_t end, int) {
      for (int64_t c = begin; c < end; c++) {
        double total[S] = {};
        for (int64_t s = 0; s < segments_; s++)
          for (int k = 0; k < S; k++) total[k] += partial_[(s * S + k) * pitch_ + c];
        finish(c, total);
      }
    });
  }

 private:
  void along_row(int64_t channel, int64_t segment) const {
    constexpr int kChains = 4;  // independent additions in flight
    Vec<double> sum[kChains][S] = {};
    const Vec<double> centre = splat(centre_ ? centre_[channel] : 0.0);
    const Range range = piece(map_.elements, segments_, segment);
    map_.nest.runs(range.begin, range.end, [&](int64_t, const int64_t (&offset)[K], int64_t count) {
      const T* p[K];
      for (int k = 0; k < K; k++) p[k] = map_.data[k] + channel * map_.channel_stride[k] + offset[k];
      int64_t i = 0;
      for (; i + kChains * kWideLanes <= count; i += kChains * kWideLanes)
#pragma GCC unroll 4
        for (int chain = 0; chain < kChains; chain++) add(sum[chain], p, i + chain * kWideLanes, kWideLanes, centre);
      for (; i + kWideLanes <= count; i += kWideLanes) add(sum[0], p, i, kWideLanes, centre);
      // Lanes beyond the end must add nothing, though F of zeros need not be zero.
      if (i < count) {
        Vec<double> rest[S] = {};
        const int n = int(count - i);
        add(rest, p, i, n, centre);
        for (int k = 0; k < S; k++)
          for (int lane = 0; lane < n; lane++) sum[0][k][lane] += rest[k][lane];
      }
    });
    for (int k = 0; k < S; k++) {
      const Vec<double> all = (sum[0][k] + sum[1][k]) + (sum[2][k] + sum[3][k]);
      partial_[(segment * S + k) * pitch_ + channel] = sum_of_lanes<double>(all);
    }
  }

  void add(Vec<double>* sum, const T* const* p, int64_t i, int n, Vec<double> centre) const {
    Vec<double> in[K];
    for (int k = 0; k < K; k++) in[k] = load_wide_at(p[k] + i * map_.nest.step(k), map_.nest.step(k), n);
    F::add(sum, in, centre);
  }

  // Sums stay in the partials (L1), a few pixels are added at each visit. Lanes beyond the last channel hold values
  // that nobody reads.
  void along_channels(int64_t segment) const {
    constexpr int64_t kPixels = 8;
    double* partial = partial_ + segment * S * pitch_;
    memset(partial, 0, size_t(S * pitch_) * sizeof(double));
    const Range range = piece(map_.elements, segments_, segment);
    map_.nest.runs(range.begin, range.end, [&](int64_t, const int64_t (&offset)[K], int64_t count) {
      for (int64_t pixel = 0; pixel < count; pixel += kPixels) {
        const int64_t pixels = min_of(kPixels, count - pixel);
        for (int64_t c = 0; c < map_.channels; c += kWideLanes) {
          const int n = int(min_of<int64_t>(kWideLanes, map_.channels - c));
          const Vec<double> centre = centre_ ? load(centre_ + c) : Vec<double>{};
          Vec<double> sum[S], in[K];
          for (int k = 0; k < S; k++) sum[k] = load(partial + k * pitch_ + c);
          for (int64_t q = pixel; q < pixel + pixels; q++) {
            for (int k = 0; k < K; k++)
              in[k] = load_wide_at(map_.data[k] + offset[k] + q * map_.nest.step(k) + c, 1, n);
            F::add(sum, in, centre);
          }
          for (int k = 0; k < S; k++) store(partial + k * pitch_ + c, sum[k]);
        }
      }
    });
  }

  ChannelMap<T, K> map_;
  int64_t pitch_, segments_;
  const double* centre_;
  double* partial_;
};

// out = F::apply(inputs, constants of the channel). The output is the last tensor of the map; `constants` holds
// F::constants rows of channel_pitch() values.
template <class T, class F, int K>
static ck_status map_channels(const ck_channel* p, const ck_tensor* const (&tensors)[K], const T* constants,
                              const ck_exec* exec) {
  static_assert(K == F::inputs + 1, "inputs, then the output");
  constexpr int64_t kUnit = 16384;  // elements of a unit, about
  const ChannelMap<T, K> map(p, tensors);
  const int64_t pitch = channel_pitch(p);

  // n lanes at distance `step` (one per tensor) from the pointers on.
  auto apply = [&](T* const* at, const int64_t* step, int n, const Vec<T>* constant) {
    Vec<T> in[F::inputs];
    for (int k = 0; k < F::inputs; k++) in[k] = load_at<T>(at[k], step[k], n);
    store_at<T>(at[K - 1], step[K - 1], F::template apply<T>(in, constant), n);
  };

  auto along_row = [&](int64_t channel, Range range) {
    Vec<T> constant[F::constants];
    for (int k = 0; k < F::constants; k++) constant[k] = splat(constants[k * pitch + channel]);
    int64_t step[K];
    for (int k = 0; k < K; k++) step[k] = map.nest.step(k);
    map.nest.runs(range.begin, range.end, [&](int64_t, const int64_t (&offset)[K], int64_t count) {
      for (int64_t i = 0; i < count; i += kLanes<T>) {
        T* at[K];
        for (int k = 0; k < K; k++) at[k] = map.data[k] + channel * map.channel_stride[k] + offset[k] + i * step[k];
        apply(at, step, int(min_of<int64_t>(kLanes<T>, count - i)), constant);
      }
    });
  };

  auto along_channels = [&](Range range) {
    int64_t step[K];
    for (int k = 0; k < K; k++) step[k] = 1;
    map.nest.runs(range.begin, range.end, [&](int64_t, const int64_t (&offset)[K], int64_t count) {
      for (int64_t pixel = 0; pixel < count; pixel++)
        for (int64_t c = 0; c < map.channels; c += kLanes<T>) {
          Vec<T> constant[F::constants];
          for (int k = 0; k < F::constants; k++) constant[k] = load(constants + k * pitch + c);
          T* at[K];
          for (int k = 0; k < K; k++) at[k] = map.data[k] + offset[k] + pixel * map.nest.step(k) + c;
          apply(at, step, int(min_of<int64_t>(kLanes<T>, map.channels - c)), constant);
        }
    });
  };

  const int64_t row_pieces = ceil_div(map.elements, kUnit);
  const int64_t pixel_pieces = min_of(map.elements, ceil_div(map.elements * map.channels, kUnit));
  const int64_t units = map.channels_inner ? pixel_pieces : row_pieces * map.channels;
  const double ops = double(map.elements) * double(map.channels) * K * sizeof(T) * kOpsPerByte;
  return parallel_pieces(exec, units, ops / double(max_of<int64_t>(units, 1)), [&](int64_t begin, int64_t end, int) {
    for (int64_t unit = begin; unit < end; unit++)
      if (map.channels_inner) along_channels(piece(map.elements, pixel_pieces, unit));
      else along_row(unit / row_pieces, piece(map.elements, row_pieces, unit % row_pieces));
  });
}
