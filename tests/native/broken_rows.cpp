// Rows that do one thing wrong each, for tests/test_row_runner.py, which links them to row_runner instead of a target:
// what the runner and its judge must notice. Rows of conv pack their weight and take one product alone.
#include <cstdlib>
#include <cstring>

#include "cnnkern.h"

namespace {

constexpr size_t kWorkspace = 40;  // bytes; no multiple of the guard's alignment

using Harm = void (*)(const ck_tensor* tensors, ck_exec* exec, int64_t count);

float& element(const ck_pointwise& p, const ck_tensor& tensor, int64_t i) {
  float* data = static_cast<float*>(tensor.data);
  for (int axis = 4; axis >= 0; i /= p.shape[axis--]) data += i % p.shape[axis] * tensor.stride[axis];
  return *data;
}

template <Harm harm>
ck_status relu(const void* params, const ck_tensor* tensors, ck_exec* exec) {
  const ck_pointwise& p = *static_cast<const ck_pointwise*>(params);
  int64_t count = 1;
  for (int64_t extent : p.shape) count *= extent;
  for (int64_t i = 0; i < count; i++) {
    const float x = element(p, tensors[0], i);
    element(p, tensors[1], i) = x < 0 ? 0 : x;
  }
  std::memset(exec->workspace, 0, kWorkspace - sizeof(float));
  harm(tensors, exec, count);
  return CK_OK;
}

template <Harm harm>
ck_status conv(const void*, const ck_tensor* tensors, ck_exec* exec) {
  const float* weight = static_cast<const float*>(exec->packed ? exec->packed : tensors[1].data);
  *static_cast<float*>(tensors[4].data) = *static_cast<const float*>(tensors[0].data) * *weight;
  harm(tensors, exec, 1);
  return CK_OK;
}

template <int extra>
ck_status pack(const void*, const ck_tensor* weight, void* packed, ck_exec*) {
  std::memcpy(packed, weight->data, sizeof(float));
  std::memset(static_cast<char*>(packed) + sizeof(float), 0, extra);
  return CK_OK;
}

float* floats(const ck_tensor& tensor) { return static_cast<float*>(tensor.data); }

void nothing(const ck_tensor*, ck_exec*, int64_t) {}
void wrong(const ck_tensor* t, ck_exec*, int64_t) { floats(t[1])[0] += 1; }
void after_output(const ck_tensor* t, ck_exec*, int64_t count) { floats(t[1])[count] = 0; }
void before_output(const ck_tensor* t, ck_exec*, int64_t) { floats(t[1])[-1] = 0; }
void input(const ck_tensor* t, ck_exec*, int64_t) { floats(t[0])[0] += 1; }
void beside_input(const ck_tensor* t, ck_exec*, int64_t count) { floats(t[0])[count] = 0; }
void after_workspace(const ck_tensor*, ck_exec* e, int64_t) { static_cast<char*>(e->workspace)[kWorkspace] = 0; }
void before_workspace(const ck_tensor*, ck_exec* e, int64_t) { static_cast<char*>(e->workspace)[-1] = 0; }
void crash(const ck_tensor*, ck_exec*, int64_t) { std::abort(); }
void reads_workspace(const ck_tensor* t, ck_exec* e, int64_t) {
  std::memcpy(t[1].data, static_cast<char*>(e->workspace) + kWorkspace - sizeof(float), sizeof(float));
}
void changes_packed(const ck_tensor*, ck_exec* e, int64_t) {
  if (e->packed) *static_cast<float*>(const_cast<void*>(e->packed)) += 1;
}
void other_when_packed(const ck_tensor* t, ck_exec* e, int64_t) {
  if (e->packed) *floats(t[4]) += 1;
}
void other_bits(const ck_tensor* t, ck_exec*, int64_t) { *floats(t[4]) += 1; }
void other_on_threads(const ck_tensor* t, ck_exec* e, int64_t) {
  if (e->threads > 1) *floats(t[1]) = -*floats(t[1]);  // from 0 to -0, which is equal
}

size_t workspace(const void*, int) { return kWorkspace; }
size_t none(const void*, int) { return 0; }
size_t packed_size(const void*) { return sizeof(float); }
const char* serves(const void*) { return nullptr; }
const char* refuses(const void*) { return "needs nothing that there is"; }
ck_status bad_index(const void*, const ck_tensor*, ck_exec* exec) {
  exec->bad_index = 77, exec->bad_place = 5;
  return CK_INDEX_RANGE;
}

using Run = ck_status (*)(const void*, const ck_tensor*, ck_exec*);
using WhyNot = const char* (*)(const void*);
using Pack = ck_status (*)(const void*, const ck_tensor*, void*, ck_exec*);

ck_row relu_row(const char* harm, Run run, WhyNot why_not = serves) {
  return {"relu", harm, "broken", "f32", "pointwise", 2, "strict", workspace, run, why_not, nullptr, nullptr};
}
ck_row conv_row(const char* harm, Run run, Pack pack = pack<0>) {
  return {"conv", harm, "broken", "f32", "conv", 5, "strict", none, run, serves, packed_size, pack};
}
ck_row of_dtype(const char* dtype, ck_row row) { return row.dtype = dtype, row; }
ck_row of_isa(const char* isa, ck_row row) { return row.isa = isa, row; }

const ck_row kRows[] = {
    relu_row("nothing", relu<nothing>),
    relu_row("wrong", relu<wrong>),
    relu_row("after_output", relu<after_output>),
    relu_row("before_output", relu<before_output>),
    relu_row("input", relu<input>),
    relu_row("beside_input", relu<beside_input>),
    relu_row("after_workspace", relu<after_workspace>),
    relu_row("before_workspace", relu<before_workspace>),
    relu_row("reads_workspace", relu<reads_workspace>),
    relu_row("other_on_threads", relu<other_on_threads>),
    relu_row("bad_index", bad_index),
    relu_row("crash", relu<crash>),
    relu_row("refuses", relu<crash>, refuses),
    of_dtype("i4", relu_row("other_dtype", relu<nothing>)),
    conv_row("nothing", conv<nothing>),
    conv_row("other_when_packed", conv<other_when_packed>),
    conv_row("changes_packed", conv<changes_packed>),
    conv_row("packs_too_much", conv<nothing>, pack<1>),
    of_isa("other", conv_row("twin", conv<other_bits>)),
    conv_row("twin", conv<nothing>),
};
const ck_table kTable = {"broken", int(sizeof kRows / sizeof kRows[0]), kRows, nullptr};

}  // namespace

extern "C" const ck_table* cnnkern_table(int index, const char** missing) {
  if (missing) *missing = nullptr;
  return index == 0 ? &kTable : nullptr;
}
