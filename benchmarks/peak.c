/* What the processor's arithmetic units can do: register loops without memory, one number for each unit, in operations per second.
 *
 *     cc -O2 -march=native -pthread benchmarks/peak.c -o peak && ./peak [THREADS] [SECONDS]
 *
 * A multiply-accumulate counts as two operations. Twelve or sixteen independent accumulators cover the latency of the instructions (eight
 * tiles on AMX, of which six accumulate). The best of short windows counts, of each thread. Prints JSON, {"f32": ..., "bf16": ...,
 * "int8": ..., "amx_bf16": ..., "amx_int8": ...}: what the processor has.
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

#if defined(__AVX512F__)
#define CHAINS 16
#else
#define CHAINS 12 /* of sixteen registers, two are taken */
#endif
#define ROUNDS 20000

static double seconds_wanted = 0.5;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* Each loop makes ROUNDS x CHAINS instructions. The empty asm keeps the compiler from knowing the accumulators, of which it would
 * merge equal ones; all loops over them are unrolled, so that they stay in registers. */
#define UNROLLED _Pragma("GCC unroll 16") for (int i = 0; i < CHAINS; i++)
#define LOOP(TYPE, INIT, STEP)                                                                             \
    TYPE c[CHAINS], a = INIT, b = INIT;                                                                    \
    UNROLLED { c[i] = INIT; __asm__ volatile("" : "+v"(c[i])); }                                           \
    for (int n = 0; n < ROUNDS; n++) {                                                                     \
        UNROLLED STEP;                                                                                     \
        __asm__ volatile("" : "+v"(c[0]), "+v"(c[CHAINS - 1]), "+v"(a), "+v"(b));                          \
    }                                                                                                      \
    UNROLLED __asm__ volatile("" ::"v"(c[i]));

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
#elif defined(__AVX2__)
/* Without VNNI three instructions make one. The product is opaque, or the compiler would make it once. */
static inline __m256i pairs(__m256i a, __m256i b) {
    __m256i sums;
    __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(sums) : "x"(a), "x"(b));
    return sums;
}
static double int8(void) {
    __m256i ones = _mm256_set1_epi16(1);
    LOOP(__m256i, _mm256_setzero_si256(), c[i] = _mm256_add_epi32(c[i], _mm256_madd_epi16(pairs(a, b), ones)))
    return 2.0 * 32;
}
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
    double end = now() + seconds_wanted;
    task->loop();
    while (now() < end) {
        double start = now(), operations = 0;
        for (int i = 0; i < 40; i++) operations += task->loop() * ROUNDS * CHAINS;
        double rate = operations / (now() - start);
        if (rate > task->rate) task->rate = rate;
    }
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
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__AVX2__)
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
