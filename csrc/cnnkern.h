/* The C interface of the kernels: everything a binding needs, and nothing of Python.
 *
 * A kernel is a row of a table. A call gives it a params struct of its family (geometry.h), its tensors in the operand
 * order of the op, and an exec with threads and workspace. Rules: re-entrant from several threads at once; no mutable
 * globals; kernels allocate nothing; no exception crosses; offsets are 64-bit. */
#ifndef CNNKERN_H
#define CNNKERN_H

#include <stddef.h>
#include <stdint.h>

#include "geometry.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CNNKERN_API_VERSION 1

typedef enum {
  CK_OK = 0,
  CK_CANCELLED = 1,       /* exec.poll asked for it; outputs are undefined */
  CK_BAD_STRUCT = 2,      /* a params struct of another version */
  CK_SMALL_WORKSPACE = 3, /* workspace_size below what row.workspace() said */
  CK_INDEX_RANGE = 4,     /* an index in the data is outside its plane; exec.bad_index and exec.bad_place say which */
  CK_LABEL_RANGE = 5,     /* a label outside [0, classes); exec.bad_index is the label, exec.bad_place the row */
  CK_STATUS_COUNT
} ck_status;

/* An operand: address of its first element and strides in elements.
 * Maps: batch, channel, depth, height, width. Weights: out channel, in channel of the group, depth, height, width.
 * Vectors: [0] only. Pointwise: the params' five axes. data is NULL where an optional operand is absent. */
typedef struct {
  void* data;
  int64_t stride[5];
} ck_tensor;

typedef struct {
  int64_t size;
  int32_t threads; /* at most; the result does not depend on it */
  void* workspace; /* at least row.workspace() bytes, aligned to 64 */
  size_t workspace_size;
  const void* packed; /* weights packed earlier by row.pack, or NULL: pack them in this call. The weight operand is
                         there in any case: what is not finite may be computed from it again */
  int (*poll)(void*); /* called now and then from the calling thread; nonzero cancels. May be NULL */
  void* poll_arg;
  int64_t bad_index, bad_place; /* set with CK_INDEX_RANGE and CK_LABEL_RANGE */
} ck_exec;

typedef struct {
  const char *op, *algorithm, *isa, *dtype;
  const char* family;    /* "conv", "pool", "resize", "channel", "pointwise" or "class": which params struct */
  int32_t operands;      /* tensors expected: inputs, then outputs */
  const char* precision; /* the tightest level it keeps, "strict", "f32", "fast" or "bf16"; it serves looser ones too */
  size_t (*workspace)(const void* params, int threads);
  ck_status (*run)(const void* params, const ck_tensor* tensors, ck_exec* exec);
  /* NULL, or the sentence why this row cannot serve; may itself be NULL. {name} in it stands for a size of the request:
   * groups, in_per_group, out_per_group (channels), products (of an output's sum), width (of the output), cells (of the
   * window), plane (input elements). */
  const char* (*why_not)(const void* params);
  /* Rows with weights: bytes of the packed form, and packing. NULL where there is nothing to pack. */
  size_t (*packed_size)(const void* params);
  ck_status (*pack)(const void* params, const ck_tensor* weight, void* packed, ck_exec* exec);
} ck_row;

typedef struct {
  const char* isa;
  int count;
  const ck_row* rows;
  double (*peak)(int dtype,
                 int64_t iterations); /* runs multiply-adds in registers; returns operations done. 0: f32, 1: f64 */
} ck_table;

/* Tables that were built, best instruction set first. `missing` (may be NULL): why this CPU cannot run it, or NULL. */
const ck_table* cnnkern_table(int index, const char** missing);

const char* cnnkern_status_text(int status);

/* A limit on the threads of every call, for threadpoolctl and its like: the two names it looks for. */
int cnnkern_get_num_threads(void);
void cnnkern_set_num_threads(int threads);

#ifdef __cplusplus
}
#endif
#endif
