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

// x in steps from the centre, moved to the edge if it is farther.
INLINE int16_t steps_of(float x, float centre, float scale) {
    float steps = (x - centre) * scale;
    steps = steps > MOST_STEPS ? MOST_STEPS : steps > -MOST_STEPS ? steps : -MOST_STEPS;  // NaN to an edge
    return (int16_t)(int32_t)((steps + 12582912.0f) - 12582912.0f);
}

// The same of LANES of them, negated.
INLINE vi minus_steps(vf x, float centre, float scale) {
    const vf steps = larger(smaller((centre - x) * scale, splat(MOST_STEPS)), splat(-MOST_STEPS));
    return (vi)(steps + 12582912.0f) - (vi)splat(12582912.0f);
}

// The square, rounded up, of a distance in steps that holds whatever is within `reach`.
INLINE int32_t square_steps(float reach, float scale, int64_t m) {
    const float steps = reach * scale + 1.002f * __builtin_sqrtf((float)m);
    return (int32_t)(steps < MOST_REACH ? steps * steps * 1.0001f + 1 : MOST_REACH * MOST_REACH);
}

// How far a pair that can lock may be: a bound of sqrt(D), for D is rounded.
INLINE float reach_of(float farthest) { return __builtin_sqrtf(farthest * 1.0001f + 1e-37f); }

// One tile of `lanes`, packed already, for the sieve; `farthest` (KEYS) is the lanes' largest D that may lock, null:
// rows have theirs. Lanes that are not there may hold anything: no pair of theirs may attend.
static void sieve_tile(const Lanes* lanes, int64_t tile, int64_t m, const float* farthest) {
    const Sieve& sieve = lanes->sieve;
    const int64_t group = tile / GROUP, pairs = (m + 1) / 2;
    const float scale = sieve.scale[group], *centre = sieve.centre + group * m;
    const float* packed = lanes->packed + tile * m * KEYS;
    if (scale == 0) return;
    for (int64_t v = 0; v < KEYS; v += LANES) {
        vi square{};
        for (int64_t k = 0; k < pairs; ++k) {
            const vi first = minus_steps(load(packed + 2 * k * KEYS + v), centre[2 * k], scale);
            const vi second = 2 * k + 1 < m ? minus_steps(load(packed + (2 * k + 1) * KEYS + v), centre[2 * k + 1], scale)
                                            : vi{};
            const vi both = (first & 0xffff) | second << 16;
            square = add_product(square, both, both);
            memcpy(sieve.packed + ((tile * pairs + k) * KEYS + v) * 2, &both, sizeof both);
        }
        for (int64_t j = v; farthest && j < v + LANES; ++j)
            square[j - v] -= square_steps(reach_of(farthest[j]), scale, m);
        square >>= 1;
        memcpy(sieve.norm + tile * KEYS + v, &square, sizeof square);
    }
}

// More pairs of a block than this are faster found by D alone.
constexpr float SIEVED_SHARE = 0.12f;
INLINE int64_t sieved_best(int64_t count) { return (int64_t)(SIEVED_SHARE * (float)(count * KEYS)); }

// A tile of rows in the steps of one group.
struct Sifter {
    int64_t group;         // -1: of none yet
    bool able;             // whether that has steps
    bool finite;           // whether there is a sieve, and the rows can be counted
    bool few;              // whether the last block had so few pairs that the sieve pays
    float reach[ROWS];     // of pairs that can lock; 0 if the lanes have it
    int32_t limit[ROWS];
    int16_t token[ROWS * MOST_SIEVED];  // (ROWS, coordinates rounded up to pairs)
};

// base + limit is the rows' largest D that may lock; null: the lanes have theirs.
static void sift_begin(Sifter& sifter, const Lanes& lanes, const float* tokens, int64_t count, int64_t m,
                       const float* base, const float* limit) {
    sifter.group = -1;
    sifter.few = sifter.finite = false;
    if (!lanes.sieve.packed) return;
    float any = 0;
    for (int64_t i = 0; i < count * m; ++i) any += tokens[i] * 0;
    for (int64_t i = 0; i < count; ++i) {
        sifter.reach[i] = base ? reach_of(base[i] + limit[i]) : 0;
        any += sifter.reach[i] != sifter.reach[i] ? sifter.reach[i] : 0;
    }
    sifter.few = sifter.finite = any == 0;  // NaN must show, and does where D is computed
}

// Whether the tile can be sieved; its group's steps are then the rows'.
INLINE bool sift_group(Sifter& sifter, const Lanes& lanes, const float* tokens, int64_t count, int64_t m, int64_t tile) {
    const int64_t group = tile / GROUP, wide = (m + 1) / 2 * 2;
    if (sifter.group == group) return sifter.able;
    const float scale = lanes.sieve.scale[group], *centre = lanes.sieve.centre + group * m;
    sifter.group = group, sifter.able = scale != 0;
    if (!sifter.able) return false;
    for (int64_t i = 0; i < ROWS; ++i) {
        int32_t square = 0;
        for (int64_t k = 0; k < wide; ++k) {
            const int16_t steps = i < count && k < m ? steps_of(tokens[i * m + k], centre[k], scale) : (int16_t)0;
            sifter.token[i * wide + k] = steps;
            square += (int32_t)steps * steps;
        }
        const int32_t reach = sifter.reach[i] > 0 && i < count ? square_steps(sifter.reach[i], scale, m) : 0;
        sifter.limit[i] = i < count ? ((reach - square) >> 1) + 1 : INT32_MIN;
    }
    return true;
}

// The bits of the pairs that the sieve lets through, (LOCKABLE); returns how many.
static int64_t sift(const Sifter& sifter, const Lanes& lanes, int64_t count, int64_t m, int64_t tile,
                    uint64_t* lockable) {
    constexpr int64_t STEP = 4, VECTORS = LANES == 16 ? 4 : 2;
    const int64_t pairs = (m + 1) / 2;
    const int16_t* packed = lanes.sieve.packed + tile * pairs * KEYS * 2;
    const int32_t* norm = lanes.sieve.norm + tile * KEYS;
    int64_t all = 0;
    memset(lockable, 0, sizeof(uint64_t) * LOCKABLE);
    for (int64_t i = 0; i < count; i += STEP) {
        for (int64_t column = 0; column < KEYS; column += VECTORS * LANES) {
            vi sum[STEP][VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v)
#pragma GCC unroll 4
                for (int r = 0; r < STEP; ++r) sum[r][v] = load_int(norm + column + v * LANES);
            for (int64_t k = 0; k < pairs; ++k) {
                vi lane[VECTORS];
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v) lane[v] = load_int(packed + (k * KEYS + column + v * LANES) * 2);
#pragma GCC unroll 4
                for (int r = 0; r < STEP; ++r) {
                    int32_t both;
                    memcpy(&both, sifter.token + ((i + r) * pairs + k) * 2, sizeof both);
                    const vi row = vi{} + both;
#pragma GCC unroll 4
                    for (int v = 0; v < VECTORS; ++v) sum[r][v] = add_product(sum[r][v], row, lane[v]);
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
