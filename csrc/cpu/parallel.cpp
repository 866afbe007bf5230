// The thread pool of parallel.h.
//
// A job is published in tickets, one for each lane's share of neighbouring chunks: generation << 32 | chunks left. A
// chunk is claimed by a compare-and-swap that lowers the count, so a finished share reads 0 and a worker that wakes
// late can take nothing from it; a claim that succeeds proves that the job is unfinished, hence that fn and arg still
// belong to it. A lane whose share is finished takes from the next lane's. The caller works too and waits until all
// chunks are done, never until all workers have answered: a sleeping worker costs nothing.
//
// Shares keep a core on the same part of an array from call to call, and from layer to layer, where its own cache holds
// it: a line that the other core wrote last costs several times as much to write. (Chunks shared out one by one -> in
// shares, two cores of Zen 5: 7x7 stride 2 on 3x224x224 296 -> 345-410 GFLOP/s, 3x3 on the same 305 -> 380.)
//
// Measured on 2 cores: waking a sleeper 24-43 us, an empty job with spinning workers 0.05-0.7 us. Spinning longer than
// about 20 us is paid in full by whoever shares the core.
#include "parallel.h"

#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <time.h>

#include <atomic>
#include <mutex>
#include <new>

#include "../cnnkern.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <condition_variable>
#endif

namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMostShares = 16;  // each is a cache line that publishing a job writes

int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

inline void cpu_relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Sleep while a word has a value.
class Sleep {
 public:
  void wait(std::atomic<uint32_t>& word, uint32_t value) {
#if defined(__linux__)
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
    std::unique_lock<std::mutex> lock(mutex_);
    condition_.wait(lock, [&] { return word.load() != value; });
#endif
  }
  void wake(std::atomic<uint32_t>& word, int threads) {
#if defined(__linux__)
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, threads, nullptr, nullptr, 0);
#else
    (void)word, (void)threads;
    std::lock_guard<std::mutex> lock(mutex_);
    condition_.notify_all();
#endif
  }

#if !defined(__linux__)
 private:
  std::mutex mutex_;
  std::condition_variable condition_;
#endif
};

std::atomic<int64_t> spin_ns{20000};

// By clock and not by count: one `pause` takes 10 times longer on some CPUs than on others.
template <class Done>
bool spin_until(Done done) {
  for (int64_t end = 0;;) {
    for (int i = 0; i < 32; i++) {
      if (done()) return true;
      cpu_relax();
    }
    const int64_t now = now_ns();
    if (end == 0) end = now + spin_ns.load(std::memory_order_relaxed);
    else if (now >= end) return false;
  }
}

// A woken thread is often queued on its waker's core while another idles, and the kernel takes milliseconds to part
// them: every third call of 0.5 ms ran at half speed on 2 cores. So a caller keeps its core from the sleepers it wakes;
// awake, they may go anywhere again. Two system calls a sleeper, beside the 25 us of waking it: worth it for few.
constexpr int kMostSeats = 8;

#if defined(__linux__)
class Seat {
 public:
  void init() { thread_ = pid_t(syscall(SYS_gettid)); }
  void sleeps() { state_.store(kAsleep); }
  void wakes() {
    int state = state_.load();
    while (state == kMoving || !state_.compare_exchange_weak(state, kAwake)) {  // a caller moves this thread just now
      cpu_relax();
      state = state_.load();
    }
    if (state == kMoved) sched_setaffinity(0, sizeof allowed_, &allowed_);
  }
  // Called by one caller at a time.
  void keep_from(int core) {
    int asleep = kAsleep;
    if (core < 0 || core >= CPU_SETSIZE || !state_.compare_exchange_strong(asleep, kMoving)) return;
    bool moved = sched_getaffinity(thread_, sizeof allowed_, &allowed_) == 0;
    cpu_set_t others = allowed_;
    CPU_CLR(core, &others);
    moved = moved && CPU_COUNT(&others) > 0 && sched_setaffinity(thread_, sizeof others, &others) == 0;
    state_.store(moved ? kMoved : kAsleep);
  }
  static int core() { return sched_getcpu(); }

 private:
  enum { kAwake, kAsleep, kMoving, kMoved };
  pid_t thread_ = 0;
  std::atomic<int> state_{kAwake};
  cpu_set_t allowed_;  // to go back to
};
#else
class Seat {
 public:
  void init() {}
  void sleeps() {}
  void wakes() {}
  void keep_from(int) {}
  static int core() { return -1; }
};
#endif

thread_local bool in_job = false;  // a worker, or a caller inside ck_parallel

class Pool {
 public:
  std::mutex busy;  // held by the caller whose job is running

  // Workers for jobs of `threads` threads. Called with `busy` held.
  void grow(int threads) {
    while (workers_ < threads - 1) {
      Worker* worker = new (std::nothrow) Worker;
      if (!worker) return;  // fewer threads is slower, not wrong
      worker->pool = this, worker->lane = workers_ + 1;
      pthread_t thread;
      if (pthread_create(&thread, nullptr, &Pool::main, worker)) {
        delete worker;
        return;
      }
      pthread_detach(thread);
      if (workers_ < kMostSeats) seats_[workers_] = &worker->seat;
      workers_++;
    }
  }

  int workers() const { return workers_; }

  int run(int threads, int chunks, ck_chunk_fn fn, void* arg, int (*poll)(void*), void* poll_arg) {
    const uint32_t generation = generation_.load(std::memory_order_relaxed) + 1;
    fn_.store(fn, std::memory_order_relaxed);
    arg_.store(arg, std::memory_order_relaxed);
    total_.store(chunks, std::memory_order_relaxed);
    lanes_.store(threads, std::memory_order_relaxed);
    unfinished_.store(chunks, std::memory_order_relaxed);
    for (int i = 0; i < shares_of(threads); i++) {
      const uint32_t left = uint32_t(share_begin(i + 1, chunks, threads) - share_begin(i, chunks, threads));
      tickets_[i].left.store(uint64_t(generation) << 32 | left, std::memory_order_release);
    }
    generation_.store(generation);  // seq_cst, with sleepers_: a sleeper sees this or is seen
    if (sleepers_.load() > 0) {
      const int core = Seat::core();
      for (int i = 0; i < workers_ && i < kMostSeats; i++) seats_[i]->keep_from(core);
      sleep_.wake(generation_, workers_);
    }

    in_job = true;
    const int cancelled = work(generation, 0, poll, poll_arg);
    in_job = false;
    auto done = [&] { return unfinished_.load(std::memory_order_acquire) == 0; };
    while (!spin_until(done)) sched_yield();  // a worker lost its core: offer ours
    return cancelled;
  }

 private:
  struct Worker {  // lives as long as its thread: for ever
    Pool* pool;
    int lane;
    Seat seat;
  };

  static void* main(void* argument) {
    Worker* worker = static_cast<Worker*>(argument);
    in_job = true;
    worker->seat.init();
    worker->pool->serve(worker->lane, worker->seat);
    return nullptr;
  }

  void serve(int lane, Seat& seat) {
    for (uint32_t seen = 0;;) {
      auto changed = [&] { return generation_.load() != seen; };
      if (!spin_until(changed)) {
        seat.sleeps();
        sleepers_.fetch_add(1);
        if (!changed()) sleep_.wait(generation_, seen);
        sleepers_.fetch_sub(1);
        seat.wakes();
        if (!changed()) continue;
      }
      seen = generation_.load();
      work(seen, lane, nullptr, nullptr);
    }
  }

  static int shares_of(int lanes) { return lanes < kMostShares ? lanes : kMostShares; }
  static int share_begin(int share, int chunks, int lanes) { return int(int64_t(chunks) * share / shares_of(lanes)); }

  // Take chunks of this generation until none is left: of the lane's own share, then of the others.
  int work(uint32_t generation, int lane, int (*poll)(void*), void* poll_arg) {
    for (int visited = 0, share = lane % kMostShares;;) {
      std::atomic<uint64_t>& own = tickets_[share].left;
      uint64_t ticket = own.load(std::memory_order_acquire);
      const uint32_t left = uint32_t(ticket);
      const int lanes = lanes_.load(std::memory_order_relaxed);
      if (uint32_t(ticket >> 32) != generation || lane >= lanes) return 0;
      if (left == 0) {
        if (++visited >= shares_of(lanes)) return 0;
        share = share + 1 < shares_of(lanes) ? share + 1 : 0;
        continue;
      }
      const ck_chunk_fn fn = fn_.load(std::memory_order_relaxed);
      void* const arg = arg_.load(std::memory_order_relaxed);
      const int chunk = share_begin(share + 1, total_.load(std::memory_order_relaxed), lanes) - int(left);
      if (!own.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
      fn(arg, chunk, lane);
      unfinished_.fetch_sub(1, std::memory_order_release);
      if (poll) {
        const int cancelled = poll(poll_arg);
        if (cancelled) {
          drop(generation);
          return cancelled;
        }
      }
    }
  }

  // Take all chunks that are left and count them as done.
  void drop(uint32_t generation) {
    for (Ticket& share : tickets_) {
      uint64_t ticket = share.left.load(std::memory_order_acquire);
      while (uint32_t(ticket >> 32) == generation && uint32_t(ticket) != 0) {
        const uint64_t none = uint64_t(generation) << 32;
        if (!share.left.compare_exchange_weak(ticket, none, std::memory_order_acq_rel)) continue;
        unfinished_.fetch_sub(int(uint32_t(ticket)), std::memory_order_release);
        break;
      }
    }
  }

  struct alignas(64) Ticket {
    std::atomic<uint64_t> left{0};
  };
  Ticket tickets_[kMostShares];
  alignas(64) std::atomic<uint32_t> generation_{0};  // idle workers sleep on it
  alignas(64) std::atomic<int> unfinished_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<ck_chunk_fn> fn_{nullptr};
  std::atomic<void*> arg_{nullptr};
  std::atomic<int> total_{0}, lanes_{0};
  int workers_ = 0;
  Seat* seats_[kMostSeats];
  Sleep sleep_;
};

std::mutex create;                    // guards `pool`
Pool* pool = nullptr;                 // never destroyed: workers may outlive static destructors
std::atomic<int> default_threads{1};  // what config.py found; for those who ask
std::atomic<int> thread_limit{0};     // set from outside (threadpoolctl); 0: none

// fork(): the child has no workers, and maybe half a job of another thread. It forgets the pool (a few hundred bytes)
// and builds its own on its first call. Nothing waits for a running job: its caller may itself wait for a lock that the
// forking thread holds, Python's for one. The child of a thread that forks inside a job may only exec.
void before_fork() { create.lock(); }
void after_fork_in_parent() { create.unlock(); }
void after_fork_in_child() {
  pool = nullptr;
  in_job = false;
  new (&create) std::mutex;
}
// At load, so that no fork can come between the first use of `create` and this.
const int registered = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);

Pool* get_pool() {
  std::lock_guard<std::mutex> guard(create);
  (void)registered;
  if (!pool) pool = new (std::nothrow) Pool;
  return pool;
}

int run_alone(int chunks, ck_chunk_fn fn, void* arg, int (*poll)(void*), void* poll_arg) {
  for (int chunk = 0; chunk < chunks; chunk++) {
    fn(arg, chunk, 0);
    if (poll && !in_job) {
      const int cancelled = poll(poll_arg);
      if (cancelled) return cancelled;
    }
  }
  return 0;
}

}  // namespace

extern "C" int ck_parallel(int threads, int chunks, ck_chunk_fn fn, void* arg, int (*poll)(void*), void* poll_arg) {
  const int limit = thread_limit.load(std::memory_order_relaxed);
  threads = limit > 0 && limit < threads ? limit : threads;
  threads = threads < kMaxThreads ? threads : kMaxThreads;
  if (threads > 1 && chunks > 1 && !in_job) {
    Pool* shared = get_pool();
    if (shared && shared->busy.try_lock()) {
      shared->grow(threads);
      int cancelled;
      if (shared->workers() > 0) cancelled = shared->run(threads, chunks, fn, arg, poll, poll_arg);
      else cancelled = run_alone(chunks, fn, arg, poll, poll_arg);
      shared->busy.unlock();
      return cancelled;
    }
  }
  return run_alone(chunks, fn, arg, poll, poll_arg);
}

extern "C" void ck_parallel_set_spin_us(int spin_us) { spin_ns.store(int64_t(spin_us) * 1000); }

extern "C" void ck_parallel_set_default(int threads) {
  if (default_threads.exchange(threads) != threads) thread_limit.store(0);
}

extern "C" __attribute__((visibility("default"))) int cnnkern_get_num_threads(void) {
  const int limit = thread_limit.load();
  return limit > 0 ? limit : default_threads.load();
}
extern "C" __attribute__((visibility("default"))) void cnnkern_set_num_threads(int threads) {
  thread_limit.store(threads < 1 ? 1 : threads > kMaxThreads ? kMaxThreads : threads);
}
