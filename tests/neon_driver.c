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
                  int64_t n_token, int32_t *sums);

static void *take(size_t size) {
    void *data = aligned_alloc(64, (size + 64) / 64 * 64 + 8192); /* kernels fetch ahead of what they use */
    if (!data || fread(data, 1, size, stdin) != size) exit(2);
    return data;
}

int main(void) {
    int64_t *n = take(3 * sizeof(int64_t)); /* row tiles, column tiles, tokens */
    uint8_t *tiles = take((size_t)(n[0] * n[1] * 64));
    int8_t *q = take((size_t)(n[2] * n[1] * 16));
    size_t count = (size_t)(n[0] * n[2] * 16);
    int32_t *sums = malloc((count + 128) * sizeof(int32_t)); /* a block writes for as many tokens as it holds */
    if (!sums) return 2;
    ternary_sums(0, tiles, n[0], n[1], q, n[2], sums);
    return fwrite(sums, sizeof(int32_t), count, stdout) == count ? 0 : 2;
}
