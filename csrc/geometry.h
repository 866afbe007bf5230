/* Plain structs for shapes: one per family of ops. Shared by C++ and, later, CUDA.
 *
 * Spatial axes are always three, outermost first (depth, height, width); a 1d or 2d op has leading axes of size 1,
 * kernel 1, stride 1, dilation 1, padding 0. Sizes count elements. Each struct begins with its own size in bytes, so
 * that glue compiled against another version is refused instead of read wrongly. */
#ifndef CNNKERN_GEOMETRY_H
#define CNNKERN_GEOMETRY_H

#include <stdint.h>

#define CK_AXES 3

enum { CK_ACTIVATION_NONE = 0, CK_ACTIVATION_RELU = 1 };

/* Convolution, its two gradients, unfold and fold. Padding after follows from `out`. */
typedef struct {
  int64_t size;
  int64_t batch, groups;
  int64_t in_channels, out_channels; /* totals over all groups */
  int64_t in[CK_AXES], out[CK_AXES], kernel[CK_AXES], stride[CK_AXES], dilation[CK_AXES], pad[CK_AXES];
  int64_t activation;
  int64_t weight_unsigned; /* rows of int8 and uint8: the weights are uint8, whatever the input is */
} ck_conv;

/* What an index array of pooling holds: row-major offsets in the window, or in the whole input plane or volume. */
enum { CK_INDEX_NONE = 0, CK_INDEX_U8 = 1, CK_INDEX_U16 = 2, CK_INDEX_I64 = 3 };

/* Windowed pooling. */
typedef struct {
  int64_t size;
  int64_t batch, channels;
  int64_t in[CK_AXES], out[CK_AXES], kernel[CK_AXES], stride[CK_AXES], dilation[CK_AXES];
  int64_t pad[CK_AXES], pad_after[CK_AXES];
  int64_t index;             /* CK_INDEX_*: U8 and U16 are window offsets, I64 plane offsets */
  int64_t count_include_pad; /* average */
  int64_t divisor;           /* average: 0 means the window's own count */
  double norm_type;          /* lp */
} ck_pool;

/* Planes of one size to planes of another: adaptive pooling, unpooling. */
typedef struct {
  int64_t size;
  int64_t batch, channels;
  int64_t in[CK_AXES], out[CK_AXES];
  int64_t index; /* CK_INDEX_NONE or CK_INDEX_I64 */
} ck_resize;

/* Ops that keep the shape and look at channels: batch norm, local response norm, sums over a channel. */
typedef struct {
  int64_t size;
  int64_t batch, channels;
  int64_t spatial[CK_AXES];
  int64_t window;        /* local response norm: channels summed */
  int64_t training;      /* batch norm gradient */
  double alpha, beta, k; /* local response norm; alpha already divided where the caller wants a mean */
  double eps;            /* batch norm */
} ck_channel;

/* One element at a time, up to five axes (more are merged before the call). */
typedef struct {
  int64_t size;
  int64_t shape[5];
  double p;      /* dropout */
  uint64_t seed; /* dropout */
} ck_pointwise;

/* Rows of class scores. */
typedef struct {
  int64_t size;
  int64_t rows, classes;
  double label_smoothing;
} ck_class;

#endif
