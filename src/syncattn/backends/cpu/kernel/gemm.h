// C (+)= A B for the small matrices of one block: every product of the kernel is one of these.
#pragma once
#include "simd.h"

namespace SYNCATTN_ISA {

// A micro-kernel holds ROWS x VECTORS accumulators in registers: 24 of AVX-512's 32, 12 of the others' 16.
#if LANES == 16
constexpr int ACCUMULATORS = 24, WIDEST = 4;
#else
constexpr int ACCUMULATORS = 12, WIDEST = 2;
#endif

template <int ROWS, int VECTORS>
INLINE void gemm_micro(float* c, int64_t ldc, const float* a, int64_t a_row, int64_t a_inner, const float* b,
                       int64_t ldb, int64_t inner, bool add) {
    vf sum[ROWS][VECTORS];
#pragma GCC unroll 24
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sum[r][v] = vf{};
    for (int64_t k = 0; k < inner; ++k) {
        vf row[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) row[v] = load(b + k * ldb + v * LANES);
#pragma GCC unroll 24
        for (int r = 0; r < ROWS; ++r) {
            const vf factor = splat(a[r * a_row + k * a_inner]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) sum[r][v] += factor * row[v];
        }
    }
#pragma GCC unroll 24
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {  // added last: one long chain of additions would round more
            float* to = c + r * ldc + v * LANES;
            store(to, add ? load(to) + sum[r][v] : sum[r][v]);
        }
}

template <int ROWS, int VECTORS>
static void gemm_rows(float* c, int64_t ldc, const float* a, int64_t a_row, int64_t a_inner, const float* b,
                      int64_t ldb, int64_t rows, int64_t inner, bool add) {
    for (; rows >= ROWS; rows -= ROWS, c += ROWS * ldc, a += ROWS * a_row)
        gemm_micro<ROWS, VECTORS>(c, ldc, a, a_row, a_inner, b, ldb, inner, add);
    if constexpr (ROWS > 1)
        if (rows) gemm_rows<ROWS / 2, VECTORS>(c, ldc, a, a_row, a_inner, b, ldb, rows, inner, add);
}

// c[r][x] (+)= sum_k a[r * a_row + k * a_inner] * b[k][x] for `rows` r, `columns` x (a multiple of LANES) and
// `inner` k.
static void gemm(float* c, int64_t ldc, const float* a, int64_t a_row, int64_t a_inner, const float* b,
                 int64_t ldb, int64_t rows, int64_t columns, int64_t inner, bool add) {
    for (; columns >= WIDEST * LANES; columns -= WIDEST * LANES, b += WIDEST * LANES, c += WIDEST * LANES)
        gemm_rows<ACCUMULATORS / WIDEST, WIDEST>(c, ldc, a, a_row, a_inner, b, ldb, rows, inner, add);
#if LANES == 16
    for (; columns >= 2 * LANES; columns -= 2 * LANES, b += 2 * LANES, c += 2 * LANES)
        gemm_rows<12, 2>(c, ldc, a, a_row, a_inner, b, ldb, rows, inner, add);
#endif
    if (columns > 0) gemm_rows<12, 1>(c, ldc, a, a_row, a_inner, b, ldb, rows, inner, add);
}

}  // namespace SYNCATTN_ISA
