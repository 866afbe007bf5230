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
extern const ck_table ck_table_neon;

#ifdef __cplusplus
}
#endif
#endif
