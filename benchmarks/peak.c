/* What the processor's arithmetic units can do: register loops without memory, one number for each unit, in operations per second.
 *
 *     cc -O2 -march=native -pthread benchmarks/peak.c -o peak && ./peak [THREADS] [SECONDS]
 *
 * A multiply-accumulate counts as two operations. Sixteen independent accumulators cover the latency of the instructions (eight
 * tiles on AMX, of which six accumulate). Prints JSON: {"f32": ..., "bf16": ..., "int8": ..., "amx_bf16": ..., "amx_int8": ...},
 * those that the processor has.
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define CHAINS 16
#define ROUNDS 20000

static double seconds_wanted = 0.5;

static double now(void) { /* the thread's own: what others take of the core does not count */
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* Each loop makes ROUNDS x CHAINS instructions; the empty asm keeps the accumulators in registers and in use. */
#define LOOP(TYPE, INIT, STEP)                                     \
    TYPE c[CHAINS], a = INIT, b = INIT;                            \
    for (int i = 0; i < CHAINS; i++) c[i] = INIT;                  \
    for (int n = 0; n < ROUNDS; n++) {                             \
        _Pragma("GCC unroll 16") for (int i = 0; i < CHAINS; i++) STEP; \
        __asm__ volatile("" : "+v"(c[0]), "+v"(c[5]), "+v"(c[10]), "+v"(c[15]), "+v"(a), "+v"(b)); \
    }                                                              \
    for (int i = 0; i < CHAINS; i++) __asm__ volatile("" ::"v"(c[i]));

#if defined(__AVX512F__)
static double f32(void) { LOOP(__m512, _mm512_setzero_ps(), c[i] = _mm512_fmadd_ps(a, b, c[i])) return 2.0 * 16; }
#elif defined(__FMA__)
static double f32(void) { LOOP(__m256, _mm256_setzero_ps(), c[i] = _mm256_fmadd_ps(a, b, c[i])) return 2.0 * 8; }
#endif
#if defined(__AVX512BF16__)
static double bf16(void) {
    __m512bh x = (__m512bh)_mm512_setzero_si512();
    LOOP(__m512, _mm512_setzero_ps(), c[i] = _mm512_dpbf16_ps(c[i], x, x))
    return 2.0 * 32;
}
#endif
#if defined(__AVX512VNNI__)
static double int8(void) { LOOP(__m512i, _mm512_setzero_si512(), c[i] = _mm512_dpbusd_epi32(c[i], a, b)) return 2.0 * 64; }
#elif defined(__AVXVNNI__)
static double int8(void) { LOOP(__m256i, _mm256_setzero_si256(), c[i] = _mm256_dpbusd_avx_epi32(c[i], a, b)) return 2.0 * 32; }
#endif

#if defined(__AMX_TILE__)
struct tiles { uint8_t palette, start, reserved[14]; uint16_t columns[16]; uint8_t rows[16]; } __attribute__((packed));

static void set_tiles(void) {
    struct tiles config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.columns[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7);
}
#define TILES(STEP) \
    set_tiles();    \
    for (int n = 0; n < ROUNDS; n++) { STEP(0, 6, 7); STEP(1, 6, 7); STEP(2, 6, 7); STEP(3, 6, 7); STEP(4, 6, 7); STEP(5, 6, 7); } \
    _tile_release();
static double amx_bf16(void) { TILES(_tile_dpbf16ps) return 2.0 * 16 * 16 * 32 * 6 / CHAINS; }
static double amx_int8(void) { TILES(_tile_dpbusd) return 2.0 * 16 * 16 * 64 * 6 / CHAINS; }
#endif

struct task { double (*loop)(void); double rate; };

static void *work(void *given) {
    struct task *task = given;
    double operations = 0, start;
    task->loop();
    start = now();
    while (now() - start < seconds_wanted) operations += task->loop() * ROUNDS * CHAINS;
    task->rate = operations / (now() - start);
    return NULL;
}

static void measure(const char *name, double (*loop)(void), int threads) {
    static int printed = 0;
    pthread_t *ids = calloc(threads, sizeof *ids);
    struct task *tasks = calloc(threads, sizeof *tasks);
    double total = 0;
    for (int i = 0; i < threads; i++) {
        tasks[i].loop = loop;
        pthread_create(&ids[i], NULL, work, &tasks[i]);
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        total += tasks[i].rate;
    }
    printf("%s\"%s\": %.4g", printed++ ? ", " : "{", name, total);
    free(ids);
    free(tasks);
}

int main(int count, char **arguments) {
    int threads = count > 1 ? atoi(arguments[1]) : 1;
    if (count > 2) seconds_wanted = atof(arguments[2]);
#if defined(__AVX512F__) || defined(__FMA__)
    measure("f32", f32, threads);
#endif
#if defined(__AVX512BF16__)
    measure("bf16", bf16, threads);
#endif
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
    measure("int8", int8, threads);
#endif
#if defined(__AMX_TILE__)
    if (syscall(SYS_arch_prctl, 0x1023, 18) == 0) { /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
        measure("amx_bf16", amx_bf16, threads);
        measure("amx_int8", amx_int8, threads);
    }
#endif
    printf("}\n");
    return 0;
}
