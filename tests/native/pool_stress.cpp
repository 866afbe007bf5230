// A stress of the thread pool, meant for ThreadSanitizer: pool_stress [rounds]. Exits 0 if every chunk of every job ran
// exactly once, whoever called, forked or cancelled meanwhile.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

#include "cnnkern.h"
#include "cpu/parallel.h"

// ThreadSanitizer cannot start threads in the child of a fork (gcc 12: "dup thread with used id"); there the children
// run alone, and the plain build of this program has them build pools of their own.
#if defined(__SANITIZE_THREAD__)
constexpr int kChildThreads = 1;
#else
constexpr int kChildThreads = 3;
#endif

namespace {

std::atomic<int> failures{0};

void expect(bool ok, const char* what) {
  if (!ok && failures.fetch_add(1) < 20) std::fprintf(stderr, "pool_stress: %s\n", what);
}

// Counts how often each chunk ran, in plain memory: a chunk that ran twice at once is a race that the sanitizer
// reports.
struct Job {
  std::vector<int> count;
  std::vector<std::atomic<int>> busy;
  explicit Job(int chunks, int threads) : count(size_t(chunks)), busy(size_t(threads)) {}
  static void chunk(void* arg, int chunk, int lane) {
    Job& job = *static_cast<Job*>(arg);
    expect(lane >= 0 && size_t(lane) < job.busy.size(), "lane out of range");
    expect(job.busy[size_t(lane)].fetch_add(1) == 0, "one lane runs two chunks at once");
    job.count[size_t(chunk)]++;
    job.busy[size_t(lane)].fetch_sub(1);
  }
  bool once() const {
    for (int n : count)
      if (n != 1) return false;
    return true;
  }
};

void run_jobs(int rounds, int threads) {
  for (int i = 0; i < rounds; i++) {
    Job job(1 + i % 37, threads);
    expect(ck_parallel(threads, int(job.count.size()), &Job::chunk, &job, nullptr, nullptr) == 0,
           "a job was cancelled");
    expect(job.once(), "a chunk did not run exactly once");
  }
}

void nested(int threads) {
  struct Outer {
    int threads;
    std::atomic<int> done{0};
  } outer{threads};
  ck_parallel(
      threads, 8,
      [](void* arg, int, int) {
        auto& o = *static_cast<Outer*>(arg);
        Job inner(5, o.threads);
        ck_parallel(o.threads, 5, &Job::chunk, &inner, nullptr, nullptr);
        expect(inner.once(), "a nested job is incomplete");
        o.done.fetch_add(1);
      },
      &outer, nullptr, nullptr);
  expect(outer.done.load() == 8, "a job with nested jobs is incomplete");
}

void cancelled(int threads) {
  struct Counted {
    std::atomic<int> ran{0};
  } counted;
  int polls = 0;
  const int status = ck_parallel(
      threads, 1000, [](void* arg, int, int) { static_cast<Counted*>(arg)->ran.fetch_add(1); }, &counted,
      [](void* arg) { return ++*static_cast<int*>(arg) >= 3 ? 7 : 0; }, &polls);
  // With other threads at work the caller may find nothing left before its third poll.
  expect(status == 7 || counted.ran.load() == 1000, "a cancelled job has another status");
  expect(counted.ran.load() <= 1000, "a cancelled job ran too much");
  run_jobs(3, threads);  // the pool is whole afterwards
}

int child_of_fork(const std::function<void()>& body) {
  const pid_t pid = fork();
  if (pid == 0) {
    body();
    _exit(failures.load() ? 1 : 0);
  }
  int status = 1;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void forks_during_jobs(int rounds, int threads) {
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop.load()) run_jobs(5, threads);
  });
  for (int i = 0; i < rounds; i++)
    expect(child_of_fork([] { run_jobs(3, kChildThreads); }) == 0, "the child of a fork failed");
  stop.store(true);
  other.join();
}

void fork_inside_a_chunk(int threads) {
  ck_parallel(
      threads, 4,
      [](void*, int chunk, int) {
        if (chunk == 1) expect(child_of_fork([] {}) == 0, "the child of a fork inside a chunk failed");
      },
      nullptr, nullptr, nullptr);
  run_jobs(3, threads);
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 2000;
  for (int spin : {20, 0}) {
    ck_parallel_set_spin_us(spin);
    for (int threads : {2, 3, 8}) run_jobs(rounds / 4, threads);  // more threads than cores, and fewer again
    run_jobs(rounds / 4, 2);
    std::vector<std::thread> callers;
    for (int i = 0; i < 8; i++) callers.emplace_back(run_jobs, rounds / 8, 2 + i % 3);
    for (std::thread& t : callers) t.join();
    nested(4);
    cancelled(3);
    cnnkern_set_num_threads(1);  // a limit from outside
    run_jobs(5, 4);
    ck_parallel_set_default(4);
    forks_during_jobs(20, 3);
    fork_inside_a_chunk(3);
  }
  if (failures.load()) return 1;
  std::puts("pool_stress: all chunks ran once");
  return 0;
}
