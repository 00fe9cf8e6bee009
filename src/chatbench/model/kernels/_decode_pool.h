/* Threads for one piece of work, which every thread that takes part is called with: they take its
   parts from a counter, so that nothing depends on who computes what, nor on how many come.

   Where torch computes with GNU's OpenMP, its threads are taken: they spin after each of torch's
   own steps, and further threads would fight with them for the processor. Elsewhere, and after a
   fork, which those threads do not survive, a few helpers of our own do it, one work at a time.
   They wait spinning for a moment, since the next product of a reply follows soon, then sleep; a
   helper that comes too late finds nothing left, so nobody waits for a thread that the system has
   not started. A second caller at the same time computes alone. */

#ifndef DECODE_POOL_H
#define DECODE_POOL_H

#include <stddef.h>
#include <stdint.h>

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

typedef void (*Run)(void *what);

#define MOST_HELPERS 63
#define SPIN_NANOSECONDS 200000

static struct {
    pthread_mutex_t busy; /* held by the caller whose work is done */
    pthread_mutex_t sleeping;
    pthread_cond_t wake;
    int helpers; /* started so far; changed while `busy` is held */
    Run run;
    void *what;
    atomic_int wanted; /* helpers that may take part */
    atomic_int open; /* whether there is work */
    atomic_int inside; /* helpers that may be at work */
    atomic_int asleep;
    atomic_ulong jobs; /* counted up with each piece of work */
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER,
          .sleeping = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER};

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void await_job(unsigned long known)
{
    int64_t begin = nanoseconds();
    for (unsigned turn = 1; atomic_load(&pool.jobs) == known; turn++) {
        relax();
        if (turn % 64)
            continue;
        sched_yield();
        if (nanoseconds() - begin < SPIN_NANOSECONDS)
            continue;
        pthread_mutex_lock(&pool.sleeping);
        atomic_fetch_add(&pool.asleep, 1);
        while (atomic_load(&pool.jobs) == known)
            pthread_cond_wait(&pool.wake, &pool.sleeping);
        atomic_fetch_sub(&pool.asleep, 1);
        pthread_mutex_unlock(&pool.sleeping);
    }
}

static void *help(void *number)
{
    unsigned long known = 0;
    for (;;) {
        await_job(known);
        known = atomic_load(&pool.jobs);
        /* The caller closes, then waits for those inside: whoever sees it open is waited for. */
        atomic_fetch_add(&pool.inside, 1);
        if (atomic_load(&pool.open) && (int)(intptr_t)number < atomic_load(&pool.wanted))
            pool.run(pool.what);
        atomic_fetch_sub(&pool.inside, 1);
    }
    return NULL;
}

/* Helpers take no signals: handlers are for the threads of the program. */
static void start_helpers(int wanted)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    if (wanted <= pool.helpers || pthread_attr_init(&attributes))
        return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 256 * 1024);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.helpers < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, help, (void *)(intptr_t)pool.helpers))
            break; /* fewer do as well */
        pool.helpers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

/* ---- the threads of torch */

typedef void (*Parallel)(void (*run)(void *), void *what, unsigned threads, unsigned flags);
static Parallel openmp; /* GOMP_parallel, or NULL */

static void work_together(Run run, void *what, int threads)
{
    if (openmp && threads > 1) {
        openmp(run, what, (unsigned)threads, 0);
        return;
    }
    if (threads < 2 || pthread_mutex_trylock(&pool.busy)) {
        run(what);
        return;
    }
    int helpers = threads - 1 < MOST_HELPERS ? threads - 1 : MOST_HELPERS;
    start_helpers(helpers);
    pool.run = run, pool.what = what;
    atomic_store(&pool.wanted, helpers);
    atomic_store(&pool.open, 1);
    atomic_fetch_add(&pool.jobs, 1);
    if (atomic_load(&pool.asleep)) {
        pthread_mutex_lock(&pool.sleeping);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.sleeping);
    }
    run(what);
    atomic_store(&pool.open, 0);
    for (unsigned turn = 1; atomic_load(&pool.inside); turn++) {
        relax();
        if (turn % 64 == 0)
            sched_yield();
    }
    pthread_mutex_unlock(&pool.busy);
}

/* After a fork there are no helpers, whatever the parent was doing. */
static void forget_helpers(void)
{
    pthread_mutex_init(&pool.busy, NULL);
    pthread_mutex_init(&pool.sleeping, NULL);
    pthread_cond_init(&pool.wake, NULL);
    openmp = NULL;
    pool.helpers = 0;
    atomic_store(&pool.open, 0);
    atomic_store(&pool.inside, 0);
    atomic_store(&pool.asleep, 0);
}

static void use_openmp(uintptr_t address)
{
    openmp = (Parallel)address;
}

static int pool_init(void)
{
    static int done;
    if (!done && pthread_atfork(NULL, NULL, forget_helpers))
        return -1;
    done = 1;
    return 0;
}

#endif
