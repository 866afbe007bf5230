// Memory of the binding: aligned buffers, and the cache that results come from and go back to.
//
// A fresh page costs more than the arithmetic of many layers: the kernel clears it on first touch, 2-3 GB/s in pages of
// 4 KB. malloc gives large blocks back to the system at each free, so an eager loop would pay that at every call.
// Results of 1 MB and more therefore go to a cache when their array dies, and the next result of that size takes them
// from there.
#pragma once

#include <pthread.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cnnkern {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t(2) << 20;

// From two huge pages on in huge pages, where the system has them.
inline void* aligned_bytes(size_t bytes) {
  const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kAlignment;
  const size_t size = (bytes + kAlignment - 1) / alignment * alignment + alignment;  // never empty
  void* p = std::aligned_alloc(alignment, size);
  if (!p) throw std::bad_alloc();
#if defined(__linux__)
  if (alignment == kHugePage) madvise(p, size, MADV_HUGEPAGE);
#endif
  return p;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<void, Free>;

// Buffers of dead results, at most `limit` bytes of them; the oldest go first. Called from any thread.
class ResultCache {
 public:
  ResultCache() { kept_.reserve(kMost + 1); }

  // At least `bytes`; `size` is what to give back.
  void* take(size_t bytes, size_t* size) {
    *size = bytes < kSmallest ? bytes : size_class(bytes);
    if (bytes >= kSmallest) {
      std::lock_guard<std::mutex> guard(mutex_);
      for (size_t i = kept_.size(); i-- > 0;)
        if (kept_[i].size == *size) {
          void* p = kept_[i].data;
          total_ -= *size;
          kept_.erase(kept_.begin() + long(i));
          return p;
        }
    }
    return aligned_bytes(*size);
  }
  void give(void* data, size_t size) {
    if (size < kSmallest) return std::free(data);
    std::lock_guard<std::mutex> guard(mutex_);
    kept_.push_back({data, size});
    total_ += size;
    drop();
  }
  void set_limit(size_t bytes) {
    std::lock_guard<std::mutex> guard(mutex_);
    limit_ = bytes;
    drop();
  }
  size_t kept() {
    std::lock_guard<std::mutex> guard(mutex_);
    return total_;
  }
  // Around fork(): the child must not find the lock held by a thread that it does not have.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  struct Kept {
    void* data;
    size_t size;
  };
  static constexpr size_t kSmallest = size_t(1) << 20;
  static constexpr size_t kMost = 64;  // buffers: a short list is searched quickly

  // Eight sizes for each power of two: at most an eighth is wasted.
  static size_t size_class(size_t bytes) {
    size_t step = kSmallest / 8;
    while (step * 16 <= bytes) step *= 2;
    return (bytes + step - 1) / step * step;
  }
  void drop() {
    size_t first = 0;
    for (; first < kept_.size() && (total_ > limit_ || kept_.size() - first > kMost); first++) {
      total_ -= kept_[first].size;
      std::free(kept_[first].data);
    }
    kept_.erase(kept_.begin(), kept_.begin() + long(first));
  }

  std::mutex mutex_;
  std::vector<Kept> kept_;  // oldest first
  size_t total_ = 0, limit_ = 0;
};

// Never destroyed: arrays may outlive static destructors.
inline ResultCache& result_cache() {
  static ResultCache* const cache = [] {
    ResultCache* made = new ResultCache;
    pthread_atfork([] { result_cache().lock(); }, [] { result_cache().unlock(); }, [] { result_cache().unlock(); });
    return made;
  }();
  return *cache;
}

}  // namespace cnnkern
