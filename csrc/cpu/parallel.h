/* The thread pool: one per process, fork-safe, work claimed chunk by chunk. Plain C, so that ISA files may include it.
 */
#ifndef CNNKERN_PARALLEL_H
#define CNNKERN_PARALLEL_H

#ifdef __cplusplus
extern "C" {
#endif

/* One piece of a job. `lane` is in [0, threads) and no two chunks with the same lane run at once: it selects a part of
 * the workspace. The result must not depend on lane or on the order of chunks. Must not throw. */
typedef void (*ck_chunk_fn)(void* arg, int chunk, int lane);

/* Run fn(arg, 0..chunks-1, lane) on at most `threads` threads, the caller among them; return 0 when all are done.
 * poll (may be NULL) is called from the calling thread between chunks; nonzero skips the chunks not yet begun and is
 * returned after those running have ended. Callable from any thread; a nested call, and one that finds the pool busy,
 * runs in the caller alone. */
int ck_parallel(int threads, int chunks, ck_chunk_fn fn, void* arg, int (*poll)(void*), void* poll_arg);

/* The number of threads that calls use if nothing limits them; a new number ends a limit set by
 * cnnkern_set_num_threads (cnnkern.h). */
void ck_parallel_set_default(int threads);

/* How long an idle worker spins before it sleeps. */
void ck_parallel_set_spin_us(int spin_us);

#ifdef __cplusplus
}
#endif
#endif
