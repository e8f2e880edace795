// One vector of LANES floats, in GCC's and Clang's vector extension, and what that lacks. Included by each of
// the instances (plain, avx2, avx512), which differ in LANES and in the flags that they are compiled with.
// No standard C++ header below this line: an inline function of one would be compiled for AVX-512 here and
// might then be the one that the linker keeps for every instance.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

namespace SYNCATTN_ISA {

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))

INLINE vf load(const float* p) { vf x; memcpy(&x, p, sizeof x); return x; }
INLINE vi load_int(const void* p) { vi x; memcpy(&x, p, sizeof x); return x; }
INLINE void store(float* p, vf x) { memcpy(p, &x, sizeof x); }
INLINE vf splat(float x) { return x - vf{}; }  // x - 0, not x + 0: the compiler may then drop it

INLINE vi lane_numbers() {
    vi x;
    for (int i = 0; i < LANES; ++i) x[i] = i;
    return x;
}

// The larger; b where either is NaN.
INLINE vf larger(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

INLINE vf smaller(vf a, vf b) {  // b where either is NaN
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}

// Bit l is set unless a[l] > b[l]: NaN counts as set, so that it is looked at and shows.
INLINE uint32_t bits_not_above(vf a, vf b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NGT_UQ);
#elif defined(__AVX2__)
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_NGT_UQ));
#else
    const vi above = a > b;
    uint32_t bits = 0;
    for (int i = 0; i < LANES; ++i) bits |= (uint32_t)(above[i] == 0) << i;
    return bits;
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// For each byte the numbers of its set bits, ascending, a byte each.
struct SetBits {
    uint64_t of[256];
    constexpr SetBits() : of() {
        for (int byte = 0; byte < 256; ++byte)
            for (int bit = 0, at = 0; bit < 8; ++bit)
                if (byte >> bit & 1) of[byte] |= (uint64_t)bit << 8 * at++;
    }
};
constexpr SetBits SET_BITS;
#endif

// Writes a vector of which the first are the lanes whose bit is set, of x and of number, and returns how many are.
INLINE int64_t compress(uint32_t bits, vf x, vi number, float* to, int32_t* to_number) {
#if defined(__AVX512F__)
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps((__mmask16)bits, (__m512)x));
    _mm512_storeu_si512(to_number, _mm512_maskz_compress_epi32((__mmask16)bits, (__m512i)number));
    return __builtin_popcount(bits);
#elif defined(__AVX2__)
    const __m256i lanes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)SET_BITS.of[bits]));
    _mm256_storeu_ps(to, _mm256_permutevar8x32_ps((__m256)x, lanes));
    _mm256_storeu_si256((__m256i*)to_number, _mm256_permutevar8x32_epi32((__m256i)number, lanes));
    return __builtin_popcount(bits);
#else
    int64_t count = 0;
    for (; bits; bits &= bits - 1, ++count) {
        const int lane = __builtin_ctz(bits);
        to[count] = x[lane], to_number[count] = number[lane];
    }
    return count;
#endif
}

// The same of number alone.
INLINE int64_t compress(uint32_t bits, vi number, int32_t* to) {
#if defined(__AVX512F__)
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32((__mmask16)bits, (__m512i)number));
    return __builtin_popcount(bits);
#elif defined(__AVX2__)
    const __m256i lanes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)SET_BITS.of[bits]));
    _mm256_storeu_si256((__m256i*)to, _mm256_permutevar8x32_epi32((__m256i)number, lanes));
    return __builtin_popcount(bits);
#else
    int64_t count = 0;
    for (; bits; bits &= bits - 1) to[count++] = number[__builtin_ctz(bits)];
    return count;
#endif
}

// a where the lane's bit is set, else b.
INLINE vf where(uint32_t bits, vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_mask_blend_ps((__mmask16)bits, (__m512)b, (__m512)a);
#else
    const vi lane = (vi)((vu{} + bits) >> (vu)lane_numbers()) & 1;
    return lane != 0 ? a : b;
#endif
}

INLINE float total(vf x) {  // in a fixed order
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#elif defined(__AVX2__)
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    return (x[0] + x[1]) + (x[2] + x[3]);
#endif
}

INLINE float lowest(vf x) {  // of numbers, none of them NaN
#if defined(__AVX512F__)
    return _mm512_reduce_min_ps((__m512)x);
#else
    float least = x[0];
    for (int i = 1; i < LANES; ++i) least = x[i] < least ? x[i] : least;
    return least;
#endif
}

INLINE vf square_root(vf x) {  // x >= 0 or NaN; to an ulp or so
#if defined(__AVX512F__)
    // the instruction takes 18 cycles; an estimate and a Newton step take 5
    const __m512 a = (__m512)x;
    const __m512 estimate = _mm512_rsqrt14_ps(_mm512_max_ps(_mm512_set1_ps(1e-37f), a));
    const __m512 root = _mm512_mul_ps(a, estimate);
    const __m512 rest = _mm512_fnmadd_ps(root, root, a);
    return (vf)_mm512_fmadd_ps(rest, _mm512_mul_ps(estimate, _mm512_set1_ps(0.5f)), root);
#elif defined(__AVX2__)
    return (vf)_mm256_sqrt_ps((__m256)x);
#else
    vf root;
    for (int i = 0; i < LANES; ++i) root[i] = __builtin_sqrtf(x[i]);
    return root;
#endif
}

// 2^y for y from -126 to 0 (1 ulp): 2^n times a polynomial in the rest, whose constant term is exactly 1.
INLINE vf exp2_of(vf y) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: added, it leaves round(y) in the low bits
    const vf shifted = y + magic;
    const vf rest = y - (shifted - magic);
    vf p = splat(0x1.41fbbcp-13f);
    p = p * rest + 0x1.5f3e54p-10f;
    p = p * rest + 0x1.3b2d4cp-7f;
    p = p * rest + 0x1.c6aee8p-5f;
    p = p * rest + 0x1.ebfbdcp-3f;
    p = p * rest + 0x1.62e430p-1f;
    p = p * rest + 1.0f;
    return (vf)((vi)p + ((vi)shifted << 23));
}

// Wellons' lowbias32, as backends/dropout.py has it.
INLINE vu mix(vu x) {
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
}
INLINE uint32_t mix(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
}

INLINE uint32_t bits_at_least(vu a, uint32_t b) {
#if defined(__AVX512F__)
    return _mm512_cmpge_epu32_mask((__m512i)a, _mm512_set1_epi32((int)b));
#else
    const vi below = a < b;
    uint32_t bits = 0;
    for (int i = 0; i < LANES; ++i) bits |= (uint32_t)(below[i] == 0) << i;
    return bits;
#endif
}

}  // namespace SYNCATTN_ISA
