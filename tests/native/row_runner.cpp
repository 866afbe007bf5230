// Runs rows of the C table on cases from a file, where no Python runs: on an emulated CPU, or beside a target that no
// module contains.
//
//   row_runner list     a line for each row: op algorithm isa dtype operands precision packs, and why this CPU lacks it
//   row_runner CASES    run what the file says, in place
//
// tests/row_cases.py writes the file and judges it afterwards; this program knows csrc/cnnkern.h and nothing of any op
// or instruction set: which rows there are is what cnnkern_table(), linked to it, says. The file is mapped, and calls
// read and write it where it lies. So all that a kernel did to its surroundings is there to be seen, and after a crash
// the first case that has not ended is the one that crashed.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cnnkern.h"

namespace {

constexpr int kMostOperands = 10;
constexpr int64_t kAbsent = -1;

// What a case says beside the status codes of ck_status.
constexpr int64_t kRefused = -2, kUnknownRow = -3, kOtherOperands = -4;  // -1, as written: not run

// What was found in memory that the runner provides itself; bits.
constexpr int64_t kBesideWorkspace = 1, kBesidePacked = 2, kPackedChanged = 4;

// Head of a case. Places are bytes from its beginning; the next case follows after `bytes`. Its twin is _HEAD in
// tests/row_cases.py.
struct Case {
  int64_t size;   // of this struct
  int64_t bytes;  // of the case with all its data
  char row[64];   // op.algorithm.isa.dtype
  int64_t threads;
  int64_t packs_before;  // nonzero: row.pack first, as a plan does; else the call packs
  int64_t params;        // place of the params struct
  int64_t operands;
  struct {
    int64_t data;  // place of the first element, or kAbsent
    int64_t stride[5];
  } operand[kMostOperands];
  int64_t status, bad_index, bad_place, damage;  // written by the runner
};

// Memory of exactly so many bytes between guard words, full of NaN: what a kernel has not written itself shows.
class Guarded {
 public:
  explicit Guarded(size_t bytes) : bytes_(bytes), size_(kGuard + (bytes + kGuard - 1) / kGuard * kGuard + kGuard) {
    all_ = static_cast<unsigned char*>(std::aligned_alloc(kGuard, size_));
    if (!all_) std::perror("row_runner"), std::exit(2);
    std::memset(all_, kGuardByte, size_);
    std::memset(all_ + kGuard, kNanByte, bytes_);
  }
  ~Guarded() { std::free(all_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  void* data() const { return all_ + kGuard; }
  bool damaged() const {
    for (size_t i = 0; i < size_; i++)
      if ((i < kGuard || i >= kGuard + bytes_) && all_[i] != kGuardByte) return true;
    return false;
  }
  std::vector<unsigned char> copy() const { return {all_ + kGuard, all_ + kGuard + bytes_}; }

 private:
  static constexpr size_t kGuard = 64;  // what alignment a workspace has
  static constexpr int kGuardByte = 0x5A, kNanByte = 0xFF;
  size_t bytes_, size_;
  unsigned char* all_;
};

const ck_row* find(const char* name) {
  const char* missing = nullptr;
  for (int t = 0; const ck_table* table = cnnkern_table(t, &missing); t++)
    for (int i = 0; i < table->count && !missing; i++) {
      const ck_row& row = table->rows[i];
      if (std::string(row.op) + '.' + row.algorithm + '.' + row.isa + '.' + row.dtype == name) return &row;
    }
  return nullptr;
}

ck_exec exec_of(const Case& c) {
  ck_exec exec{};
  exec.size = sizeof exec;
  exec.threads = int32_t(c.threads);
  return exec;
}

int64_t run(Case& c, char* base) {
  const ck_row* row = find(c.row);
  if (!row) return kUnknownRow;
  if (c.operands != row->operands || row->operands > kMostOperands) return kOtherOperands;
  const void* params = base + c.params;
  if (row->why_not && row->why_not(params)) return kRefused;
  ck_tensor tensors[kMostOperands] = {};
  for (int i = 0; i < c.operands; i++) {
    tensors[i].data = c.operand[i].data == kAbsent ? nullptr : base + c.operand[i].data;
    std::memcpy(tensors[i].stride, c.operand[i].stride, sizeof tensors[i].stride);
  }
  ck_exec exec = exec_of(c);
  const bool packs = c.packs_before && row->pack;
  const Guarded packed(packs ? row->packed_size(params) : 0);
  if (packs) {
    ck_exec packing = exec_of(c);
    const ck_status status = row->pack(params, &tensors[1], packed.data(), &packing);
    if (status != CK_OK) return status;
    exec.packed = packed.data();
  }
  const std::vector<unsigned char> before = packed.copy();
  const Guarded workspace(row->workspace(params, exec.threads));
  exec.workspace_size = row->workspace(params, exec.threads);
  exec.workspace = exec.workspace_size ? workspace.data() : nullptr;
  const ck_status status = row->run(params, tensors, &exec);
  c.bad_index = exec.bad_index, c.bad_place = exec.bad_place;
  if (workspace.damaged()) c.damage |= kBesideWorkspace;
  if (packed.damaged()) c.damage |= kBesidePacked;
  if (packed.copy() != before) c.damage |= kPackedChanged;
  return status;
}

int run_file(const char* path) {
  const int file = open(path, O_RDWR);
  struct stat info;
  if (file < 0 || fstat(file, &info) != 0) return std::perror(path), 2;
  const size_t size = size_t(info.st_size);
  char* const all = static_cast<char*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
  if (all == MAP_FAILED) return std::perror(path), 2;
  for (size_t place = 0; place < size;) {
    Case& c = *reinterpret_cast<Case*>(all + place);
    if (c.size != int64_t(sizeof(Case))) return std::fprintf(stderr, "%s: cases of another version\n", path), 2;
    c.status = run(c, all + place);
    place += size_t(c.bytes);
  }
  return 0;
}

int list() {
  const char* missing = nullptr;
  for (int t = 0; const ck_table* table = cnnkern_table(t, &missing); t++)
    for (int i = 0; i < table->count; i++) {
      const ck_row& row = table->rows[i];
      std::printf("%s %s %s %s %d %s %d %s\n", row.op, row.algorithm, row.isa, row.dtype, int(row.operands),
                  row.precision, row.pack != nullptr, missing ? missing : "");
    }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return std::fprintf(stderr, "row_runner list | row_runner CASES\n"), 2;
  return std::strcmp(argv[1], "list") == 0 ? list() : run_file(argv[1]);
}
