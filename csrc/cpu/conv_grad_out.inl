// Where a weight gradient goes: from sums packed as [tap][channel][lanes or 2 * lanes output channels] to its array, of
// the storage type S.

template <class S>
struct GradientOut {
  typedef Wide<S> T;
  static constexpr int64_t lanes = kLanes<T>, block = 2 * lanes;

  const ck_conv* conv;
  S* out;
  const int64_t* stride;
  int64_t in_channels, out_channels, taps;  // channels of a group

  GradientOut(const ck_conv& p, const ck_tensor& t)
      : conv(&p),
        out(static_cast<S*>(t.data)),
        stride(t.stride),
        in_channels(p.in_channels / p.groups),
        out_channels(p.out_channels / p.groups),
        taps(p.kernel[0] * p.kernel[1] * p.kernel[2]) {}

  S* place(int64_t k, int64_t c, int64_t tap) const {
    const ck_conv& p = *conv;
    const int64_t jw = tap % p.kernel[2], jh = tap / p.kernel[2] % p.kernel[1], jd = tap / p.kernel[2] / p.kernel[1];
    return out + k * stride[0] + c * stride[1] + jd * stride[2] + jh * stride[3] + jw * stride[4];
  }

  // All weights of an output channel are neighbours.
  bool contiguous() const {
    const ck_conv& p = *conv;
    return stride[4] == 1 && stride[3] == p.kernel[2] && (p.kernel[0] == 1 || stride[2] == p.kernel[2] * p.kernel[1]) &&
           stride[1] == taps;
  }

  // One block of output channels and `channels` input channels from c0 on: the copies, `copy_step` elements apart, are
  // added in their order.
  void unpack(int64_t group, int64_t block_index, int64_t c0, int64_t channels, const T* sums, int64_t copies,
              int64_t copy_step) const {
    constexpr int L = kLanes<T>;
    const int64_t wide = out_channels - block_index * block > lanes ? block : lanes, elements = channels * taps;
    const bool contiguous = this->contiguous();
    for (int64_t v = 0; v < wide; v += L) {
      const int64_t k0 = block_index * block + v;
      const int count = int(max_of<int64_t>(0, min_of<int64_t>(L, out_channels - k0)));
      int64_t c = 0, tap = 0;
      for (int64_t e = 0; e < elements; e += L) {
        const int length = int(min_of<int64_t>(L, elements - e));
        const int64_t c_first = c, tap_first = tap;
        Vec<T> column[L];
        for (int j = 0; j < L; j++) {
          column[j] = Vec<T>{};
          if (j >= length) continue;
          const T* from = sums + (tap * channels + c) * wide + v;
          column[j] = load(from);
          for (int64_t copy = 1; copy < copies; copy++) column[j] += load(from + copy * copy_step);
          if (++tap == taps) tap = 0, c++;
        }
        transpose<T>(column);
        for (int k = 0; k < count; k++) {
          const int64_t channel = group * out_channels + k0 + k;
          if (contiguous) {
            store_n(place(channel, c0, 0) + e, column[k], length);
            continue;
          }
          for (int j = 0; j < length; j++) {
            const int64_t at = tap_first + j;
            put(place(channel, c0 + c_first + at / taps, at % taps), column[k][j]);
          }
        }
      }
    }
  }
};
