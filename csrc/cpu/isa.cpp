// Which tables were built and which of them this CPU can run. Baseline code: no ISA flags.
#include "isa.h"

#include <unistd.h>
#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

#if defined(__linux__)
#include <sys/syscall.h>
#endif

namespace {

struct Entry {
  const ck_table* table;
  const char* (*missing)();
};

#if defined(__x86_64__) || defined(__i386__)
// Older compilers do not know the name "f16c".
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
// __builtin_cpu_supports also asks whether the operating system saves the wider registers.
const char* avx512_missing() {
  const bool ok = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && has_f16c();
  return ok ? nullptr : "this CPU lacks avx512 (f, bw, vl, dq) with f16c";
}
const char* avx512vnni_missing() {
  if (avx512_missing()) return avx512_missing();
  return __builtin_cpu_supports("avx512vnni") ? nullptr : "this CPU lacks avx512vnni";
}
const char* avx2_missing() {
  const bool ok = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  return ok ? nullptr : "this CPU lacks avx2 with fma and f16c";
}
#if defined(CNNKERN_HAVE_AMX)
// Tiles make every saved context 8 KB larger, so Linux gives them only to a process that asks.
bool tiles_permitted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool permitted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return permitted;
#else
  return false;
#endif
}
const char* amx_missing() {
  constexpr unsigned kBfloat16 = 1u << 22, kTile = 1u << 24;  // of leaf 7, EDX
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (avx512_missing()) return avx512_missing();
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (~d & (kBfloat16 | kTile))) return "this CPU lacks amx (tile, bf16)";
  return tiles_permitted() ? nullptr : "the operating system does not permit amx tiles";
}
#endif
#endif
const char* none_missing() { return nullptr; }

const Entry kEntries[] = {
#ifdef CNNKERN_HAVE_AMX
    {&ck_table_amx, amx_missing},
#endif
#ifdef CNNKERN_HAVE_AVX512VNNI
    {&ck_table_avx512vnni, avx512vnni_missing},
#endif
#ifdef CNNKERN_HAVE_AVX512
    {&ck_table_avx512, avx512_missing},
#endif
#ifdef CNNKERN_HAVE_AVX2
    {&ck_table_avx2, avx2_missing},
#endif
#ifdef CNNKERN_HAVE_NEON
    {&ck_table_neon, none_missing},
#endif
    {&ck_table_scalar, none_missing},
};

const char* const kStatusText[CK_STATUS_COUNT] = {
    "ok",
    "interrupted; the outputs are undefined",
    "the params struct has another size than this library expects: rebuild the caller",
    "the workspace is smaller than the kernel needs",
    "an index lies outside its plane",
    "a label lies outside the classes",
};

}  // namespace

extern "C" const ck_table* cnnkern_table(int index, const char** missing) {
  if (index < 0 || index >= int(sizeof kEntries / sizeof kEntries[0])) return nullptr;
  if (missing) *missing = kEntries[index].missing();
  return kEntries[index].table;
}

extern "C" int64_t ck_l2_bytes(void) {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return 512 * 1024;
}

extern "C" const char* cnnkern_status_text(int status) {
  return status >= 0 && status < CK_STATUS_COUNT ? kStatusText[status] : "unknown status";
}
