// Which tables were built and which of them this CPU can run. Baseline code: no ISA flags.
#include "isa.h"

#include <unistd.h>
#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
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
#endif
const char* none_missing() { return nullptr; }

const Entry kEntries[] = {
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
