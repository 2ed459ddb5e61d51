/* Runs the emitted kernels on what standard input holds and writes the sums: see test_neon.py. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Names that the object leaves open, for errors and memory that it never comes to. */
#define NEVER(name) void name(void) { abort(); }
NEVER(NRT_Free) NEVER(NRT_MemInfo_call_dtor) NEVER(PyBytes_FromStringAndSize) NEVER(PyErr_Clear) NEVER(PyErr_SetNone)
NEVER(PyErr_SetString) NEVER(PyErr_WriteUnraisable) NEVER(PyExc_RuntimeError) NEVER(PyExc_StopIteration)
NEVER(PyExc_SystemError) NEVER(PyUnicode_FromString) NEVER(Py_DecRef) NEVER(numba_do_raise) NEVER(numba_gil_ensure)
NEVER(numba_gil_release) NEVER(numba_runtime_build_excinfo_struct) NEVER(numba_unpickle)

void ternary_sums(void *unused, const uint8_t *tiles, int64_t row_tiles, int64_t n_tile, const int8_t *q,
                  int64_t n_token, int8_t *scratch, int32_t *sums);
void plane_sums(void *unused, const uint8_t *high, const uint8_t *low, int64_t rows, int64_t groups, const int8_t *q,
                int64_t n_input, int32_t *sums);

static void *take(size_t size) {
    void *data = aligned_alloc(64, (size + 64) / 64 * 64 + 8192); /* kernels fetch ahead of what they use */
    if (!data || fread(data, 1, size, stdin) != size) exit(2);
    return data;
}

static int written(const int32_t *sums, size_t count) {
    return fwrite(sums, sizeof(int32_t), count, stdout) == count ? 0 : 2;
}

/* n: rows, groups of 128 columns, rows of activations */
static int planes(const int64_t *n) {
    uint8_t *high = take((size_t)(n[0] * n[1] * 96)), *low = take((size_t)(n[0] * n[1] * 32));
    int8_t *q = take((size_t)(n[2] * n[1] * 128));
    size_t count = (size_t)(2 * n[2] * n[0]);
    int32_t *sums = malloc(count * sizeof(int32_t));
    if (!sums) return 2;
    plane_sums(0, high, low, n[0], n[1], q, n[2], sums);
    return written(sums, count);
}

/* n: row tiles, column tiles, tokens */
static int ternary(const int64_t *n) {
    uint8_t *tiles = take((size_t)(n[0] * n[1] * 64));
    int8_t *q = take((size_t)(n[2] * n[1] * 16));
    size_t count = (size_t)(n[0] * n[2] * 16);
    int32_t *sums = malloc(count * sizeof(int32_t));
    int8_t *scratch = malloc(1 << 16);
    if (!sums || !scratch) return 2;
    ternary_sums(0, tiles, n[0], n[1], q, n[2], scratch, sums);
    return written(sums, count);
}

int main(void) {
    int64_t *n = take(4 * sizeof(int64_t)); /* which, and three sizes */
    return n[0] ? planes(n + 1) : ternary(n + 1);
}
