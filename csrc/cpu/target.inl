// Body of every target file: the vocabulary, the loops, the table. The target file has opened an anonymous namespace's
// surroundings: it defines CK_ISA (a name), CK_VECTOR_BYTES and the register tile, then includes this.
//
// No C++ standard headers here: a weak symbol compiled with wide instructions could be linked into baseline code.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../cnnkern.h"
#include "isa.h"
#include "parallel.h"

#define CK_STRING2(x) #x
#define CK_STRING(x) CK_STRING2(x)

namespace {

#include "vec.h"
#include "storage.inl"
#include "common.inl"
#include "nest.inl"

#include "conv_plan.inl"
#include "conv_tile.inl"
#include "conv_pack.inl"
#include "conv_pixels.inl"
#include "conv_units.inl"
#if defined(CK_TILES)  // rows on matrix tiles and nothing else
#include "conv_direct.inl"
#include "conv_grad_out.inl"
#include "conv_grad_weight.inl"
#include "tile_unit.h"
#include "split_tile.inl"
#include "conv_split_plan.inl"
#include "conv_split_pack.inl"
#include "conv_split.inl"
#include "conv_split_grad.inl"
#else
#include "conv_int8_cells.inl"
#include "conv_int8_weights.inl"
#include "conv_int8.inl"
#endif
#if !defined(CK_TILES) && !defined(CK_ONLY_INT8)
#define CK_COMPLETE 1
#include "conv_direct.inl"
#include "vec_math.inl"

#include "conv_pixel_tile.inl"
#include "conv_rows.inl"
#include "conv_gemm.inl"
#include "winograd_transforms.inl"
#include "winograd_plan.inl"
#include "winograd_tile.inl"
#include "conv_winograd.inl"
#include "conv_grad_out.inl"
#include "conv_grad_weight.inl"
#include "conv_winograd_grad.inl"
#include "conv_rows_grad_weight.inl"
#include "conv_depthwise_tile.inl"
#include "conv_depthwise.inl"
#include "conv_depthwise_planes.inl"
#include "conv_depthwise_grad_weight.inl"

#include "channels.inl"
#include "channel_sum.inl"
#include "dropout.inl"
#include "loss.inl"
#include "norm_batch.inl"
#include "norm_lrn.inl"
#include "pointwise.inl"
#include "unfold.inl"

#include "pool_shape.inl"
#include "pool_rows.inl"
#include "pool_reduce.inl"
#include "pool_scan.inl"
#include "pool_spread.inl"
#include "plane_scatter.inl"
#include "pool_max.inl"
#include "pool_index_check.inl"
#include "pool_max_grad.inl"
#include "pool_avg.inl"
#include "pool_lp.inl"
#include "pool_lp_grad.inl"
#include "pool_adaptive.inl"
#include "unpool.inl"
#endif

template <class S>
struct DTypeName;
template <>
struct DTypeName<float> {
  static constexpr const char* value = "f32";
};
template <>
struct DTypeName<double> {
  static constexpr const char* value = "f64";
};
template <>
struct DTypeName<f16> {
  static constexpr const char* value = "f16";
};
template <>
struct DTypeName<bf16> {
  static constexpr const char* value = "bf16";
};

#define CK_ROW(op, algorithm, family, operands, precision, T, packed_size, pack) \
  {#op,                                                                          \
   #algorithm,                                                                   \
   CK_STRING(CK_ISA),                                                            \
   DTypeName<T>::value,                                                          \
   #family,                                                                      \
   operands,                                                                     \
   #precision,                                                                   \
   op##_##algorithm<T>::workspace,                                               \
   op##_##algorithm<T>::run,                                                     \
   op##_##algorithm<T>::why_not,                                                 \
   packed_size,                                                                  \
   pack},
#define CK_PACKED_ROW(op, algorithm, family, operands, precision, T) \
  CK_ROW(op, algorithm, family, operands, precision, T, op##_##algorithm<T>::packed_size, op##_##algorithm<T>::pack)
// What the lines of kernels.inc make: nothing, unless the target has such rows.
#ifdef CK_COMPLETE
#define CK_KERNEL(op, algorithm, family, operands)                         \
  CK_ROW(op, algorithm, family, operands, strict, float, nullptr, nullptr) \
  CK_ROW(op, algorithm, family, operands, strict, double, nullptr, nullptr)
#define CK_KERNEL_PACKED(op, algorithm, family, operands)       \
  CK_PACKED_ROW(op, algorithm, family, operands, strict, float) \
  CK_PACKED_ROW(op, algorithm, family, operands, strict, double)
#define CK_KERNEL_F32(op, algorithm, family, operands, precision) \
  CK_ROW(op, algorithm, family, operands, precision, float, nullptr, nullptr)
#define CK_KERNEL_F32_PACKED(op, algorithm, family, operands, precision) \
  CK_PACKED_ROW(op, algorithm, family, operands, precision, float)
#define CK_KERNEL_HALF(op, algorithm, family, operands, precision)          \
  CK_ROW(op, algorithm, family, operands, precision, f16, nullptr, nullptr) \
  CK_ROW(op, algorithm, family, operands, precision, bf16, nullptr, nullptr)
#define CK_KERNEL_HALF_PACKED(op, algorithm, family, operands, precision) \
  CK_PACKED_ROW(op, algorithm, family, operands, precision, f16)          \
  CK_PACKED_ROW(op, algorithm, family, operands, precision, bf16)
#else
#define CK_KERNEL(op, algorithm, family, operands)
#define CK_KERNEL_PACKED(op, algorithm, family, operands)
#define CK_KERNEL_F32(op, algorithm, family, operands, precision)
#define CK_KERNEL_F32_PACKED(op, algorithm, family, operands, precision)
#define CK_KERNEL_HALF(op, algorithm, family, operands, precision)
#define CK_KERNEL_HALF_PACKED(op, algorithm, family, operands, precision)
#endif

#ifdef CK_TILES
#define CK_KERNEL_TILES(op, algorithm, family, operands, precision) \
  CK_ROW(op, algorithm, family, operands, precision, float, nullptr, nullptr)
#define CK_KERNEL_TILES_PACKED(op, algorithm, family, operands, precision) \
  CK_PACKED_ROW(op, algorithm, family, operands, precision, float)
#define CK_KERNEL_INT8_PACKED(op, algorithm, family, operands)
#else
#define CK_KERNEL_TILES(op, algorithm, family, operands, precision)
#define CK_KERNEL_TILES_PACKED(op, algorithm, family, operands, precision)

// The algorithm `direct` of bytes.
template <>
struct DTypeName<int8_t> {
  static constexpr const char* value = "i8";
};
template <>
struct DTypeName<uint8_t> {
  static constexpr const char* value = "u8";
};
template <class T>
struct conv_direct;
template <>
struct conv_direct<int8_t> : ConvInt8<int8_t> {};
template <>
struct conv_direct<uint8_t> : ConvInt8<uint8_t> {};

#define CK_KERNEL_INT8_PACKED(op, algorithm, family, operands)   \
  CK_PACKED_ROW(op, algorithm, family, operands, strict, int8_t) \
  CK_PACKED_ROW(op, algorithm, family, operands, strict, uint8_t)
#endif

const ck_row kRows[] = {
#include "../kernels.inc"
};

}  // namespace

#define CK_TABLE2(isa) ck_table_##isa
#define CK_TABLE(isa) CK_TABLE2(isa)
extern "C" const ck_table CK_TABLE(CK_ISA) = {CK_STRING(CK_ISA), int(sizeof kRows / sizeof kRows[0]), kRows, peak};
