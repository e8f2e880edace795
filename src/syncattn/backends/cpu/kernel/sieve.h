// A sieve in front of D: integers in place of frequencies, two coordinates an instruction. What it lets through is
// tested exactly after; what it keeps back cannot lock, and D of a block with few locked pairs need not be known.
//
// Tokens a (rows) and b (lanes) are counted in steps from the centre of the lanes' group, rounded. If sqrt(D) <= L, then
// |a - b| <= L in steps + sqrt(m), for each is at most half a step off in each coordinate. A row outside of the
// group's box is moved to its edge, which brings it nearer to every token inside.
#pragma once
#include "block.h"

namespace SYNCATTN_ISA {

constexpr float MOST_REACH = 3e4f;  // in steps: as far as that goes everything is let through

// acc + a b of both 16-bit numbers of each lane.
INLINE vi add_product(vi acc, vi a, vi b) {
#if defined(__AVX512F__)
    return acc + (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return acc + (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return acc + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

INLINE uint32_t bits_not_above(vi a, vi b) {
#if defined(__AVX512F__)
    return _mm512_cmple_epi32_mask((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (uint32_t)_mm256_movemask_ps((__m256)_mm256_cmpgt_epi32((__m256i)a, (__m256i)b)) ^ 0xff;
#else
    const vi above = a > b;
    uint32_t bits = 0;
    for (int i = 0; i < LANES; ++i) bits |= (uint32_t)(above[i] == 0) << i;
    return bits;
#endif
}

// acc + a b of the four bytes of each lane, those of a without a sign; where library.cpp finds the instruction.
#if defined(__AVX512F__)
#define MULTIPLIES_BYTES __attribute__((target("avx512vnni")))
static inline MULTIPLIES_BYTES vi add_product_of_bytes(vi acc, vi a, vi b) {
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
}
#endif

// x in steps from the centre, moved to the edge if it is farther.
INLINE int32_t steps_of(float x, float centre, float scale, float most) {
    float steps = (x - centre) * scale;
    steps = steps > most ? most : steps > -most ? steps : -most;  // NaN to an edge
    return (int32_t)((steps + 12582912.0f) - 12582912.0f);
}

// The same of LANES of them, negated.
INLINE vi minus_steps(vf x, float centre, float scale, float most) {
    const vf steps = larger(smaller((centre - x) * scale, splat(most)), splat(-most));
    return (vi)(steps + 12582912.0f) - (vi)splat(12582912.0f);
}

// The square, rounded up, of a distance in steps that holds whatever is within `reach`.
INLINE int32_t square_steps(float reach, float scale, int64_t m) {
    const float steps = reach * scale + 1.002f * __builtin_sqrtf((float)m);
    return (int32_t)(steps < MOST_REACH ? steps * steps * 1.0001f + 1 : MOST_REACH * MOST_REACH);
}

// How far a pair that can lock may be: a bound of sqrt(D), for D is rounded.
INLINE float reach_of(float farthest) { return __builtin_sqrtf(farthest * 1.0001f + 1e-37f); }

// One tile of `lanes`, packed already, in steps: sixteen bits each, or eight. `farthest` (KEYS) is the lanes' largest
// D that may lock, null: rows have theirs. Lanes that are not there may hold anything: no pair of theirs may attend.
template <bool BYTES>
INLINE void step_tile(const Lanes* lanes, const Steps& steps, int64_t tile, int64_t m, const float* farthest) {
    constexpr int64_t PER = BYTES ? 4 : 2;
    const int64_t group = tile / GROUP, words = (m + PER - 1) / PER;
    const float scale = steps.scale[group], *centre = lanes->sieve.centre + group * m;
    const float* packed = lanes->packed + tile * m * KEYS;
    if (scale == 0) return;
    for (int64_t v = 0; v < KEYS; v += LANES) {
        vi square{}, sum{};
        for (int64_t word = 0; word < words; ++word) {
            vi all{};
            for (int64_t k = word * PER; k < least(m, word * PER + PER); ++k) {
                const vi one = minus_steps(load(packed + k * KEYS + v), centre[k], scale,
                                           BYTES ? MOST_BYTE_STEPS : MOST_STEPS);
                square += one * one, sum += one;
                all |= (one & (BYTES ? 0xff : 0xffff)) << (int32_t)(k % PER * 32 / PER);
            }
            memcpy(steps.packed + (tile * words + word) * KEYS + v, &all, sizeof all);
        }
        for (int64_t j = v; farthest && j < v + LANES; ++j)
            square[j - v] -= square_steps(reach_of(farthest[j]), scale, m);
        square >>= 1;
        if (BYTES) square -= sum << 7;  // for what rows have more, to be without a sign
        memcpy(steps.norm + tile * KEYS + v, &square, sizeof square);
    }
}

static void sieve_tile(const Lanes* lanes, int64_t tile, int64_t m, const float* farthest) {
    step_tile<false>(lanes, lanes->sieve.fine, tile, m, farthest);
    if (lanes->sieve.coarse.packed) step_tile<true>(lanes, lanes->sieve.coarse, tile, m, farthest);
}

// More pairs of a block than this are faster found by D alone.
constexpr float SIEVED_SHARE = 0.12f;
INLINE int64_t sieved_best(int64_t count) { return (int64_t)(SIEVED_SHARE * (float)(count * KEYS)); }
// Steps of bytes are fine enough if their doubt is no more of the reach.
constexpr float MOST_DOUBT = 0.07f;

// A tile of rows in the steps of one group.
struct Sifter {
    int64_t group;         // -1: of none yet
    bool able;             // whether that has steps
    bool coarse;           // whether bytes will do
    bool finite;           // whether there is a sieve, and the rows can be counted
    bool few;              // whether the last block had so few pairs that the sieve pays
    bool by_row;           // whether rows have a reach of their own, or the lanes
    float reach[ROWS];     // of pairs that can lock
    int32_t limit[ROWS];
    int32_t token[ROWS * MOST_SIEVED / 2];  // (ROWS, words)
};

// base + limit is the rows' largest D that may lock; null: the lanes have theirs.
static void sift_begin(Sifter& sifter, const Lanes& lanes, const float* tokens, int64_t count, int64_t m,
                       const float* base, const float* limit) {
    sifter.group = -1;
    sifter.few = sifter.finite = false, sifter.by_row = base;
    if (!lanes.sieve.centre) return;
    float any = 0;
    for (int64_t i = 0; i < count * m; ++i) any += tokens[i] * 0;
    for (int64_t i = 0; i < count; ++i) {
        sifter.reach[i] = base ? reach_of(base[i] + limit[i]) : 0;
        any += sifter.reach[i] != sifter.reach[i] ? sifter.reach[i] : 0;
    }
    sifter.few = sifter.finite = any == 0;  // NaN must show, and does where D is computed
}

template <bool BYTES>
INLINE void sift_rows(Sifter& sifter, const Lanes& lanes, float scale, const float* tokens, int64_t count, int64_t m) {
    constexpr int64_t PER = BYTES ? 4 : 2;
    const int64_t words = (m + PER - 1) / PER;
    const float* centre = lanes.sieve.centre + sifter.group * m;
    memset(sifter.token, 0, sizeof(int32_t) * (size_t)(ROWS * words));
    for (int64_t i = 0; i < ROWS; ++i) {
        int32_t square = 0;
        for (int64_t k = 0; k < m && i < count; ++k) {
            const int32_t steps = steps_of(tokens[i * m + k], centre[k], scale, BYTES ? MOST_BYTE_STEPS : MOST_STEPS);
            const uint32_t part = BYTES ? (uint32_t)(steps + 128) : (uint32_t)steps & 0xffff;
            sifter.token[i * words + k / PER] |= (int32_t)(part << k % PER * 32 / PER);
            square += steps * steps;
        }
        const int32_t reach = sifter.by_row && i < count ? square_steps(sifter.reach[i], scale, m) : 0;
        sifter.limit[i] = i < count ? ((reach - square) >> 1) + 1 : INT32_MIN;
    }
}

// Whether the tile can be sieved; its group's steps are then the rows'.
INLINE bool sift_group(Sifter& sifter, const Lanes& lanes, const float* tokens, int64_t count, int64_t m, int64_t tile) {
    const int64_t group = tile / GROUP;
    if (sifter.group == group) return sifter.able;
    const Sieve& sieve = lanes.sieve;
    sifter.group = group, sifter.able = sieve.fine.scale[group] != 0;
    if (!sifter.able) return false;
    const float reach = sifter.by_row ? sifter.reach[0] : reach_of(lanes.boxes.group_limit[group]);
    sifter.coarse = sieve.coarse.packed &&
                    __builtin_sqrtf((float)m) <= MOST_DOUBT * reach * sieve.coarse.scale[group];
    if (sifter.coarse) sift_rows<true>(sifter, lanes, sieve.coarse.scale[group], tokens, count, m);
    else sift_rows<false>(sifter, lanes, sieve.fine.scale[group], tokens, count, m);
    return true;
}

// The bits of the pairs that the sieve lets through, (LOCKABLE); returns how many. `add` is add_product or its kin.
template <typename Add>
INLINE int64_t sift_with(const Sifter& sifter, const Steps& steps, int64_t words, int64_t count, int64_t tile,
                         uint64_t* lockable, const Add& add) {
    constexpr int64_t STEP = 4, VECTORS = LANES == 16 ? 4 : 2;
    const int32_t* packed = steps.packed + tile * words * KEYS;
    const int32_t* norm = steps.norm + tile * KEYS;
    int64_t all = 0;
    memset(lockable, 0, sizeof(uint64_t) * LOCKABLE);
    for (int64_t i = 0; i < count; i += STEP) {
        for (int64_t column = 0; column < KEYS; column += VECTORS * LANES) {
            vi sum[STEP][VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v)
#pragma GCC unroll 4
                for (int r = 0; r < STEP; ++r) sum[r][v] = load_int(norm + column + v * LANES);
            for (int64_t k = 0; k < words; ++k) {
                vi lane[VECTORS];
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v) lane[v] = load_int(packed + k * KEYS + column + v * LANES);
#pragma GCC unroll 4
                for (int r = 0; r < STEP; ++r) {
                    const vi row = vi{} + sifter.token[(i + r) * words + k];
#pragma GCC unroll 4
                    for (int v = 0; v < VECTORS; ++v) sum[r][v] = add(sum[r][v], row, lane[v]);
                }
            }
#pragma GCC unroll 4
            for (int r = 0; r < STEP; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v)
                    put_bits(lockable + i + r, column + v * LANES,
                             bits_not_above(sum[r][v], vi{} + sifter.limit[i + r]));
        }
        for (int64_t r = 0; r < STEP; ++r) all += __builtin_popcountll(lockable[i + r]);
    }
    return all;
}

static int64_t sift_fine(const Sifter& sifter, const Lanes& lanes, int64_t count, int64_t m, int64_t tile,
                         uint64_t* lockable) {
    const auto add = [](vi acc, vi a, vi b) __attribute__((always_inline)) { return add_product(acc, a, b); };
    return sift_with(sifter, lanes.sieve.fine, (m + 1) / 2, count, tile, lockable, add);
}

#if defined(MULTIPLIES_BYTES)
static MULTIPLIES_BYTES int64_t sift_coarse(const Sifter& sifter, const Lanes& lanes, int64_t count, int64_t m,
                                            int64_t tile, uint64_t* lockable) {
    return sift_with(sifter, lanes.sieve.coarse, (m + 3) / 4, count, tile, lockable, add_product_of_bytes);
}
#endif

INLINE int64_t sift(const Sifter& sifter, const Lanes& lanes, int64_t count, int64_t m, int64_t tile,
                    uint64_t* lockable) {
#if defined(MULTIPLIES_BYTES)
    if (sifter.coarse) return sift_coarse(sifter, lanes, count, m, tile, lockable);
#endif
    return sift_fine(sifter, lanes, count, m, tile, lockable);
}

// Of the bits of LANES rows, taken LANES at a time, which hold one that is set: 64 of them.
INLINE uint64_t vectors_hit(const uint64_t* lockable) {
#if defined(__AVX512F__)
    const __m512i low = _mm512_loadu_si512(lockable), high = _mm512_loadu_si512(lockable + 8);
    return _mm512_test_epi16_mask(low, low) | (uint64_t)_mm512_test_epi16_mask(high, high) << 32;
#elif defined(__AVX2__)
    const __m256i low = _mm256_loadu_si256((const __m256i*)lockable), none = _mm256_setzero_si256();
    const __m256i high = _mm256_loadu_si256((const __m256i*)(lockable + 4));
    return ~((uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(low, none)) |
             (uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(high, none)) << 32);
#else
    uint64_t hit = 0;
    for (int64_t n = 0; n < 64; ++n)
        hit |= (uint64_t)((lockable[n * LANES / KEYS] >> n * LANES % KEYS & ((1 << LANES) - 1)) != 0) << n;
    return hit;
#endif
}

// Adds the pairs whose bit is set, unsettled.
static void list_sifted(Pairs& pairs, int64_t count, int64_t first_key, const uint64_t* lockable) {
    int64_t all = 0, longest = pairs.most;
    for (int64_t strip = 0; strip < count; strip += LANES)
        for (uint64_t hit = vectors_hit(lockable + strip); hit; hit &= hit - 1) {
            const int64_t n = __builtin_ctzll(hit), i = strip + n * LANES / KEYS, v = n * LANES % KEYS;
            const uint32_t bits = (uint32_t)(lockable[i] >> v) & (uint32_t)bits_below(LANES);
            const int64_t length = pairs.length[i];
            const int64_t more = compress(bits, lane_numbers() + (int32_t)(first_key + v), pairs.key[i] + length);
            pairs.length[i] = length + more, all += more;
            longest = length + more > longest ? length + more : longest;
        }
    pairs.most = longest, pairs.all += all, pairs.unsettled = true;
}

// D between a token (m) and those of the numbers given, of tokens (., m); summed up as `detuning` does.
INLINE vf detuning_of(const float* token, const float* tokens, const int32_t* number, int64_t m) {
    vf d{}, sum{};
    for (int64_t k = 0; k < m; k += 8) {
        vf lanes[8];
        const int64_t some = least(m - k, 8);
        load_eight(tokens + k, number, m, some, lanes);
#pragma GCC unroll 8
        for (int64_t x = 0; x < 8; ++x) {
            if (x == some) break;
            const vf apart = splat(token[k + x]) - lanes[x];
            sum += apart * apart;
        }
        if (k % RUN == RUN - 8 || k + 8 >= m) d = k < RUN ? sum : d + sum, sum = vf{};
    }
    return d;
}

// D of the pairs that have none yet, and keeps of them those that can lock: as list_lockable.
template <bool BY_KEY>
static void settle(Pairs& pairs, const float* tokens, int64_t count, int64_t m, const float* others, const float* base,
                   const float* limit) {
    if (!pairs.unsettled) return;
    pairs.unsettled = false;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t length = pairs.length[i];
        int64_t to = pairs.settled[i];
        int32_t* key = pairs.key[i];
        memset(key + length, 0, sizeof(vi));
        for (int64_t at = to; at < length; at += LANES) {
            const vi number = load_int(key + at);
            const vf from = BY_KEY ? gather(base, number) : vf{} + base[i];
            const vf most = BY_KEY ? gather(limit, number) : vf{} + limit[i];
            const vf x = detuning_of(tokens + i * m, others, key + at, m) - from;
            const uint32_t bits = bits_not_above(x, most) & (uint32_t)bits_below(least(length - at, LANES));
            to += compress(bits, x, number, pairs.detuning[i] + to, key + to);
        }
        pairs.all -= length - to;
        pairs.length[i] = pairs.settled[i] = to;
    }
}

}  // namespace SYNCATTN_ISA
