// Values that go to, or come from, the place in a plane that an index names: max unpooling, gradients by plane offset.
//
// A unit of work is one plane (n, c), or one cache line of channels where channels lie side by side, so no two threads
// write one line and no atomics are needed. Within a plane values are taken in row-major order: sums have one order,
// and of two values for one place the last wins. Bound by the random access to a plane, which mostly sits in the
// second-level cache. An index outside its plane is skipped and noted; the caller then looks for the first one.

// Planes with an index per position, and the planes that these indices point into.
struct IndexedPlanes {
  int64_t batch, channels;
  int64_t from[CK_AXES], to[CK_AXES];

  IndexedPlanes(int64_t batch_, int64_t channels_, const int64_t (&from_)[CK_AXES], const int64_t (&to_)[CK_AXES])
      : batch(batch_), channels(channels_) {
    for (int a = 0; a < CK_AXES; a++) from[a] = from_[a], to[a] = to_[a];
  }
  int64_t positions() const { return from[0] * from[1] * from[2]; }
  int64_t plane() const { return to[0] * to[1] * to[2]; }

  // The first bad index in row-major order of (n, c, position).
  ck_status report(const ck_tensor& index, ck_exec* exec) const {
    int64_t place = 0;
    for (int64_t n = 0; n < batch; n++)
      for (int64_t c = 0; c < channels; c++)
        for (int64_t d = 0; d < from[0]; d++)
          for (int64_t h = 0; h < from[1]; h++)
            for (int64_t w = 0; w < from[2]; w++, place++) {
              const int64_t i = static_cast<const int64_t*>(
                  index.data)[n * index.stride[0] + c * index.stride[1] + d * index.stride[2] + h * index.stride[3] +
                              w * index.stride[4]];
              if (i >= 0 && i < plane()) continue;
              exec->bad_index = i, exec->bad_place = place;
              return CK_INDEX_RANGE;
            }
    return CK_OK;
  }
};

// An offset in a plane -> an offset in the tensor.
struct PlaneOffset {
  int64_t height, width, step, stride_d, stride_h;
  bool dense;  // the plane's elements are equally far apart

  PlaneOffset(const int64_t (&size)[CK_AXES], const ck_tensor& t)
      : height(size[1]), width(size[2]), step(t.stride[4]), stride_d(t.stride[2]), stride_h(t.stride[3]) {
    dense = (height == 1 || stride_h == width * step) && (size[0] == 1 || stride_d == height * width * step);
  }
  int64_t operator()(int64_t index) const {
    if (dense) return index * step;
    const int64_t row = index / width;
    return row / height * stride_d + row % height * stride_h + index % width * step;
  }
};

template <class T>
class PlaneScatter {
  static constexpr int64_t kBlock = 64 / int64_t(sizeof(T));  // channels of a cache line

 public:
  // `values` has the shape of `from`, `plane` that of `to`; channels_inner(...) of everything used decides on blocks.
  PlaneScatter(const IndexedPlanes& planes, const ck_tensor& values, const ck_tensor& index, const ck_tensor& plane)
      : planes_(planes), values_(values), index_(index), plane_(plane), offset_(planes.to, plane) {
    const bool inner = planes.channels > 1 && values.stride[1] == 1 && index.stride[1] == 1 && plane.stride[1] == 1;
    block_ = inner ? kBlock : 1;
  }

  static size_t taken_bytes(int64_t plane, int threads) { return size_t(round_up(plane * kBlock, 64) * threads); }

  // plane = zeros, plus each value at its place.
  ck_status add(ck_exec* exec) const {
    return units(exec, [&](const Unit& unit, int) {
      clear(unit);
      return each(unit, false, [&](T& value, T& place, int64_t) { place += value; });
    });
  }

  // plane = zeros, with each value put at its place.
  ck_status put(ck_exec* exec) const {
    return units(exec, [&](const Unit& unit, int) {
      clear(unit);
      return each(unit, false, [&](T& value, T& place, int64_t) { place = value; });
    });
  }

  // value = what stands at its place, for the last value of each place; 0 for the others, which were overwritten.
  // Going backwards, the last comes first.
  ck_status get_last(uint8_t* taken, ck_exec* exec) const {
    const int64_t size = planes_.plane() * kBlock;
    return units(exec, [&](const Unit& unit, int lane) {
      uint8_t* const mine = taken + lane * round_up(size, 64);
      memset(mine, 0, size_t(size));
      return each(unit, true, [&](T& value, T& place, int64_t cell) {
        value = mine[cell] ? T(0) : place;
        mine[cell] = 1;
      });
    });
  }

 private:
  struct Unit {
    int64_t n, channel, channels;
  };

  template <class Body>
  ck_status units(ck_exec* exec, const Body& body) const {
    const int64_t blocks = ceil_div(planes_.channels, block_), count = planes_.batch * blocks;
    const double ops = double(block_) * (4 * double(planes_.positions()) + double(planes_.plane())) * sizeof(T);
    int bad = 0;
    const ck_status status = parallel_pieces(exec, count, ops * kOpsPerByte, [&](int64_t begin, int64_t end, int lane) {
      for (int64_t u = begin; u < end; u++) {
        const int64_t channel = u % blocks * block_;
        const Unit unit{u / blocks, channel, min_of(block_, planes_.channels - channel)};
        if (!body(unit, lane)) __atomic_store_n(&bad, 1, __ATOMIC_RELAXED);
      }
    });
    return status != CK_OK || !bad ? status : planes_.report(index_, exec);
  }

  void clear(const Unit& unit) const {
    T* const base = static_cast<T*>(plane_.data) + unit.n * plane_.stride[0] + unit.channel * plane_.stride[1];
    for (int64_t d = 0; d < planes_.to[0]; d++)
      for (int64_t h = 0; h < planes_.to[1]; h++) {
        T* const row = base + d * plane_.stride[2] + h * plane_.stride[3];
        if (block_ == 1 && plane_.stride[4] == 1) {
          memset(row, 0, size_t(planes_.to[2]) * sizeof(T));
          continue;
        }
        for (int64_t w = 0; w < planes_.to[2]; w++)
          for (int64_t c = 0; c < unit.channels; c++) row[w * plane_.stride[4] + c] = 0;
      }
  }

  // body(value, its place in the plane, number of the place within the unit); false if an index was outside.
  template <class Body>
  bool each(const Unit& unit, bool backwards, const Body& body) const {
    auto base = [&](const ck_tensor& t) { return unit.n * t.stride[0] + unit.channel * t.stride[1]; };
    T* const values = static_cast<T*>(values_.data) + base(values_);
    const int64_t* const indices = static_cast<const int64_t*>(index_.data) + base(index_);
    T* const plane = static_cast<T*>(plane_.data) + base(plane_);
    const uint64_t size = uint64_t(planes_.plane());
    const int64_t rows = planes_.from[0] * planes_.from[1], columns = planes_.from[2];
    bool ok = true;
    for (int64_t r = 0; r < rows; r++) {
      const int64_t row = backwards ? rows - 1 - r : r;
      const int64_t d = row / planes_.from[1], h = row % planes_.from[1];
      T* const value = values + d * values_.stride[2] + h * values_.stride[3];
      const int64_t* const index = indices + d * index_.stride[2] + h * index_.stride[3];
      for (int64_t j = 0; j < columns; j++) {
        const int64_t w = backwards ? columns - 1 - j : j;
        for (int64_t c = 0; c < unit.channels; c++) {
          const int64_t i = index[w * index_.stride[4] + c];
          if (uint64_t(i) >= size) {
            ok = false;
            continue;
          }
          body(value[w * values_.stride[4] + c], plane[offset_(i) + c], i * unit.channels + c);
        }
      }
    }
    return ok;
  }

  const IndexedPlanes planes_;
  const ck_tensor values_, index_, plane_;
  const PlaneOffset offset_;
  int64_t block_;
};
