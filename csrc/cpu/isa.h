/* Which tables exist in this build; each is defined by one target_<isa>.cpp. */
#ifndef CNNKERN_ISA_H
#define CNNKERN_ISA_H

#include "../cnnkern.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const ck_table ck_table_scalar;
extern const ck_table ck_table_avx2;
extern const ck_table ck_table_avx512;
extern const ck_table ck_table_avx512vnni;
extern const ck_table ck_table_amx;
extern const ck_table ck_table_neon;

/* Bytes of this CPU's second-level cache, 512 KB where it cannot be asked. Kernels size their strips by it; no result
 * depends on it. */
int64_t ck_l2_bytes(void);

#ifdef __cplusplus
}
#endif
#endif
