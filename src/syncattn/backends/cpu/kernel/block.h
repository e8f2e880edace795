// One block: up to ROWS receivers and KEYS senders. Which pairs may attend, their squared detuning D, and the
// list of those that can lock.
#pragma once
#include "gemm.h"
#include "margin.h"
#include "plan.h"
#include "texts.h"

namespace SYNCATTN_ISA {

// Tiles of rows that go through the keys together, so that what is fetched of the keys is used several times.
constexpr int64_t CONTEXTS = 4;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The terms and the bounds of rho^2 of LANES rows, from `first` on; past the last row, of the last.
INLINE void load_coupling(const SyncattnProblem& p, int64_t batch, int64_t head, int64_t first, float* row_term,
                          float* radius) {
    const float* kappa = p.coupling + batch * p.coupling_strides[0] + head * p.coupling_strides[1];
    for (int64_t i = 0; i < LANES; ++i)
        row_term[i] = row_term_of(kappa[least(first + i, p.queries - 1) * p.coupling_strides[2]]);
    store(radius, radius_bound(load(row_term), p.bandwidth[head]));
}

// The row's part of the dropout hash, as backends/dropout.py has it.
INLINE uint32_t row_word(const SyncattnProblem& p, int64_t batch, int64_t head, int64_t row) {
    const int64_t head_number = batch * p.heads + head;
    if (p.receive_index) row = p.receive_index[head_number * p.queries + row];
    const uint64_t number = (uint64_t)(head_number * p.queries + row);
    const uint32_t low = mix((uint32_t)(number ^ p.seed));
    return mix(low ^ (uint32_t)((number >> 32) ^ (p.seed >> 32)));
}

// What is known about a tile of receivers before any block of it is looked at.
struct Rows {
    int64_t batch, head, first, count;
    const float* receive;  // (count, m)
    float row_term[ROWS + LANES], radius[ROWS + LANES];
    float base[ROWS];  // D of the nearest allowed sender; 0 in the absolute frame
    float farthest;    // an upper bound of base + radius over the rows
    float head_term;   // margin.h
    uint32_t word[ROWS];
};

INLINE void load_rows(const SyncattnProblem& p, Rows& rows, int64_t batch, int64_t head, int64_t tile) {
    rows.batch = batch, rows.head = head, rows.first = tile * ROWS;
    rows.count = least(ROWS, p.queries - rows.first);
    rows.receive = p.receive + ((batch * p.heads + head) * p.queries + rows.first) * p.freq_dim;
    rows.head_term = head_term_of(p.bandwidth[head]);
    memset(rows.base, 0, sizeof rows.base);
    for (int64_t i = 0; i < rows.count; i += LANES) {
        if (i && p.coupling_strides[2] == 0) {
            memcpy(rows.row_term + i, rows.row_term, sizeof(vf));
            memcpy(rows.radius + i, rows.radius, sizeof(vf));
        } else {
            load_coupling(p, batch, head, rows.first + i, rows.row_term + i, rows.radius + i);
        }
    }
    if (p.dropout)
        for (int64_t i = 0; i < rows.count; ++i) rows.word[i] = row_word(p, batch, head, rows.first + i);
}

// Call when the bases are known.
INLINE void set_farthest(Rows& rows) {
    rows.farthest = rows.base[0] + rows.radius[0];
    for (int64_t i = 1; i < rows.count; ++i) rows.farthest = most(rows.farthest, rows.base[i] + rows.radius[i]);
}

// The tiles from `first` to `last` (not included) whose box may be within `limit` of the box (low, high), m + 1
// extents each, ascending, and their squared distances; `found` and `distance` have room for all.
static int64_t tiles_within(const Boxes& boxes, const float* low, const float* high, int64_t m, int64_t first,
                            int64_t last, float limit, int32_t* found, float* distance) {
    int64_t count = 0;
    const float generous = limit * 1.0001f + 1e-37f;  // a box's distance is rounded otherwise than a pair's
    for (int64_t group = first / GROUP; group * GROUP < last; ++group) {
        float apart = 0;
        for (int64_t k = 0; k < m; ++k) {
            const float below = boxes.group_low[k * boxes.group_stride + group] - high[k];
            const float above = low[k] - boxes.group_high[k * boxes.group_stride + group];
            const float gap = below > above ? below : above;
            if (gap > 0) apart += gap * gap;
        }
        const float ahead = boxes.group_low[m * boxes.group_stride + group] - high[m];
        const float behind = low[m] - boxes.group_high[m * boxes.group_stride + group];
        const float along = ahead > behind ? ahead : behind;
        if (along > 0 && along * along > apart) apart = along * along;
        const float extra = boxes.group_limit ? boxes.group_limit[group] * 1.0001f : 0;
        if (apart > generous + extra) continue;
        for (int64_t start = group * GROUP; start < group * GROUP + GROUP; start += LANES) {
            vf sum{};
            for (int64_t k = 0; k < m; ++k) {
                const vf below = load(boxes.low + k * boxes.stride + start) - high[k];
                const vf above = low[k] - load(boxes.high + k * boxes.stride + start);
                const vf gap = larger(larger(below, above), vf{});
                sum += gap * gap;
            }
            const vf ahead = load(boxes.low + m * boxes.stride + start) - high[m];
            const vf behind = low[m] - load(boxes.high + m * boxes.stride + start);
            const vf along = larger(larger(ahead, behind), vf{});
            sum = larger(along * along, sum);  // NaN stays
            vf most = vf{} + generous;
            if (boxes.limit) most += load(boxes.limit + start) * 1.0001f;
            uint32_t bits = bits_not_above(sum, most);
            for (; bits; bits &= bits - 1) {
                const int64_t lane = __builtin_ctz(bits), tile = start + lane;
                if (tile < first || tile >= last) continue;
                found[count] = (int32_t)tile;
                distance[count++] = sum[lane];
            }
        }
    }
    return count;
}

// The first `count` bits.
INLINE uint64_t bits_below(int64_t count) {
    return count >= 64 ? ~0ull : count <= 0 ? 0 : (1ull << count) - 1;
}

// Which keys of a tile the mask lets a row attend to; of no row in particular where it is the same for all.
static uint64_t mask_bits(const SyncattnProblem& p, int64_t batch, int64_t head, int64_t query, int64_t tile) {
    const int64_t* s = p.mask_strides;
    if (p.receive_index && s[2])
        query = p.receive_index[(batch * p.heads + head) * p.queries + query];
    const uint8_t* row = p.mask + batch * s[0] + head * s[1] + query * s[2];
    const int64_t start = tile * KEYS, valid = least(KEYS, p.keys - start);
    if (s[3] == 0) return *row ? bits_below(valid) : 0;
    uint64_t bits = 0;
    if (p.send_index) {
        const int32_t* index = p.send_index + (batch * p.heads + head) * p.keys + start;
        for (int64_t j = 0; j < valid; ++j) bits |= (uint64_t)(row[index[j] * s[3]] != 0) << j;
    } else {
        for (int64_t j = 0; j < valid; ++j) bits |= (uint64_t)(row[(start + j) * s[3]] != 0) << j;
    }
    return bits;
}

// The pairs of a block that may attend. Returns false if all of them may; else `allowed` holds each row's bits.
static bool restricted(const SyncattnProblem& p, const Rows& rows, int64_t tile, uint64_t* allowed) {
    const int64_t start = tile * KEYS, valid = least(KEYS, p.keys - start), offset = p.keys - p.queries;
    const int64_t first = rows.first + offset, last = first + rows.count - 1;  // the rows' own places
    const int32_t* text = p.text ? texts_of(p, rows.batch) : nullptr;
    const bool several = text && !are_one_text(text + first, rows.count, text + start, valid);
    if (p.symmetric) {  // each pair once, from the earlier token's row; the diagonal is added at the end
        if (start > last && valid == KEYS && !several) return false;
        for (int64_t i = 0; i < rows.count; ++i) allowed[i] = bits_below(valid) & ~bits_below(first + i - start + 1);
        if (several) keep_own_text(text + first, rows.count, text + start, valid, allowed);
        return true;
    }
    const bool crosses_diagonal = p.is_causal && start + valid - 1 > first;
    const int32_t* place = p.receive_place;  // of the rows, where tokens stand in an order
    if (place) place += (rows.batch * p.heads + rows.head) * p.queries + rows.first;
    bool meets_itself = !p.self_coupling && !place && start <= last && start + valid > first;
    for (int64_t i = 0; place && i < rows.count; ++i) meets_itself |= place[i] >= start && place[i] < start + KEYS;
    if (!crosses_diagonal && !meets_itself && !p.mask && !several && valid == KEYS) return false;

    uint64_t common = bits_below(valid);
    if (p.mask && p.mask_strides[2] == 0) common &= mask_bits(p, rows.batch, rows.head, 0, tile);
    for (int64_t i = 0; i < rows.count; ++i) {
        uint64_t bits = common;
        const int64_t own = place ? place[i] : first + i;
        if (crosses_diagonal) bits &= bits_below(own - start + 1);
        if (meets_itself && own >= start && own < start + KEYS) bits &= ~(1ull << (own - start));
        if (p.mask && p.mask_strides[2] && bits)
            bits &= mask_bits(p, rows.batch, rows.head, rows.first + i, tile);
        allowed[i] = bits;
    }
    if (several) keep_own_text(text + first, rows.count, text + start, valid, allowed);
    return true;
}

// p[i] for each lane's i.
INLINE vf gather(const float* p, vi i) {
#if defined(__AVX512F__)
    return (vf)_mm512_i32gather_ps((__m512i)i, p, 4);
#else
    vf x;
    for (int lane = 0; lane < LANES; ++lane) x[lane] = p[i[lane]];
    return x;
#endif
}

#if defined(__AVX2__)
// Transposes the eight coordinates of eight tokens.
INLINE void turn(const __m256 (&token)[8], __m256 (&lanes)[8]) {
    __m256 x[8], y[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {  // pairs of tokens, then fours, then all
        y[i] = _mm256_unpacklo_ps(token[i], token[i + 1]);
        y[i + 1] = _mm256_unpackhi_ps(token[i], token[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        x[i] = _mm256_shuffle_ps(y[i], y[i + 2], 0x44), x[i + 1] = _mm256_shuffle_ps(y[i], y[i + 2], 0xee);
        x[i + 2] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0x44), x[i + 3] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        lanes[i] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x20);
        lanes[i + 4] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x31);
    }
}

// Eight coordinates of eight tokens (8, m) as lanes, (8, KEYS).
INLINE void pack_eight(const float* tokens, int64_t m, float* packed) {
    __m256 x[8], y[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) x[i] = _mm256_loadu_ps(tokens + i * m);
    turn(x, y);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) _mm256_storeu_ps(packed + i * KEYS, y[i]);
}
#endif

// The first `some`, eight at most, coordinates of tokens (., m) by their numbers, as lanes.
INLINE void load_eight(const float* tokens, const int32_t* number, int64_t m, int64_t some, vf (&lanes)[8]) {
#if defined(__AVX512F__)
    if (some == 8) {
        __m512 x[8], y[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {  // tokens 0 and 4, 1 and 5, 2 and 6, 3 and 7; 8 and 12, and so on
            const int32_t* at = number + i + i / 4 * 4;
            x[i] = _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(tokens + at[0] * m)),
                                      _mm256_loadu_ps(tokens + at[4] * m), 1);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 8; i += 2) {
            y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
            y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
        }
#pragma GCC unroll 2
        for (int i = 0; i < 8; i += 4) {
            x[i] = _mm512_shuffle_ps(y[i], y[i + 2], 0x44), x[i + 1] = _mm512_shuffle_ps(y[i], y[i + 2], 0xee);
            x[i + 2] = _mm512_shuffle_ps(y[i + 1], y[i + 3], 0x44), x[i + 3] = _mm512_shuffle_ps(y[i + 1], y[i + 3], 0xee);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            lanes[i] = (vf)_mm512_shuffle_f32x4(x[i], x[i + 4], 0x88);
            lanes[i + 4] = (vf)_mm512_shuffle_f32x4(x[i], x[i + 4], 0xdd);
        }
        return;
    }
#elif defined(__AVX2__)
    if (some == 8) {
        __m256 x[8], y[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) x[i] = _mm256_loadu_ps(tokens + number[i] * m);
        turn(x, y);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) lanes[i] = (vf)y[i];
        return;
    }
#endif
    float turned[8][LANES];
    for (int lane = 0; lane < LANES; ++lane)
        for (int64_t k = 0; k < some; ++k) turned[k][lane] = tokens[number[lane] * m + k];
    for (int64_t k = 0; k < some; ++k) lanes[k] = load(turned[k]);
}

// A tile's frequencies as lanes, (m, KEYS), from (count, m). What is not there stands far away.
static void pack_tile(const float* tokens, int64_t count, int64_t m, float* packed) {
#if defined(__AVX2__)
    if (count == KEYS && m % 8 == 0) {  // gathers take several times as long
        for (int64_t v = 0; v < KEYS; v += 8)
            for (int64_t k = 0; k < m; k += 8) pack_eight(tokens + v * m + k, m, packed + k * KEYS + v);
        return;
    }
#endif
    for (int64_t v = 0; v < KEYS; v += LANES) {
        const vi lane = lane_numbers() + (int32_t)v;
        vi from;
        for (int l = 0; l < LANES; ++l) from[l] = (int32_t)(least(lane[l], count - 1) * m);
        const uint32_t there = (uint32_t)(bits_below(count) >> v);
        for (int64_t k = 0; k < m; ++k)
            store(packed + k * KEYS + v, where(there, gather(tokens + k, from), vf{} + FAR_FREQUENCY));
    }
}

// Lowest and highest frequency, and place along `direction` (m; null: anywhere), (m + 1) each, of those of `count`
// tokens (count, m) whose bit is set; everything, if one of them is NaN, so that it is looked at and shows.
static void box_of(const float* tokens, int64_t count, int64_t m, uint64_t counted, const float* direction, float* low,
                   float* high) {
    for (int64_t k = 0; k < m; ++k) low[k] = __builtin_inff(), high[k] = -__builtin_inff();
    for (int64_t i = 0; i < count; ++i) {
        if (!(counted >> i & 1)) continue;
        for (int64_t k = 0; k < m; ++k) {
            const float x = tokens[i * m + k];
            low[k] = low[k] <= x ? low[k] : x;  // a NaN that comes in stays: nothing compares with it
            high[k] = high[k] >= x || high[k] != high[k] ? high[k] : x;
            low[k] = high[k] != high[k] ? high[k] : low[k];
        }
    }
    for (int64_t k = 0; k < m; ++k)
        if (high[k] != high[k]) low[k] = -__builtin_inff(), high[k] = -low[k];
    // In double, then outwards: places grow with position, and where tiles end up must not be rounded nearer.
    double least = __builtin_inf(), most = -least, any = 0;
    for (int64_t i = 0; direction && i < count; ++i) {
        double place = 0;
        for (int64_t k = 0; k < m; ++k) place += (double)tokens[i * m + k] * direction[k];
        if (!(counted >> i & 1)) continue;
        least = place < least ? place : least, most = place > most ? place : most, any += place;
    }
    const bool finite = direction && __builtin_isfinite(any);
    low[m] = finite ? (float)(least - 1e-6 * __builtin_fabs(least)) : -__builtin_inff();
    high[m] = finite ? (float)(most + 1e-6 * __builtin_fabs(most)) : __builtin_inff();
}

// One tile of `lanes`: packed, and its box.
static void pack(const Lanes* lanes, int64_t tile, const float* tokens, int64_t count, int64_t m, uint64_t counted) {
    float low[MOST_COORDINATES + 1], high[MOST_COORDINATES + 1];
    pack_tile(tokens, count, m, lanes->packed + tile * m * KEYS);
    box_of(tokens, count, m, counted, lanes->boxes.direction, low, high);
    for (int64_t k = 0; k <= m; ++k) {
        lanes->boxes.low[k * lanes->boxes.stride + tile] = low[k];
        lanes->boxes.high[k * lanes->boxes.stride + tile] = high[k];
    }
}

// Squares are summed up in runs of so many coordinates, and the runs then: one long sum would round more.
constexpr int64_t RUN = 16;

template <int COUNT, int VECTORS>
INLINE void detuning_micro(float* d, const float* receive, const float* packed, int64_t m, int64_t from) {
    vf sum[COUNT][VECTORS];
#pragma GCC unroll 24
    for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sum[r][v] = vf{};
    for (int64_t k = from; k < least(m, from + RUN); ++k) {
        vf sent[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sent[v] = load(packed + k * KEYS + v * LANES);
#pragma GCC unroll 24
        for (int r = 0; r < COUNT; ++r) {
            const vf received = splat(receive[r * m + k]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) {
                const vf apart = received - sent[v];
                sum[r][v] += apart * apart;
            }
        }
    }
#pragma GCC unroll 24
    for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            float* to = d + r * KEYS + v * LANES;
            store(to, from ? load(to) + sum[r][v] : sum[r][v]);
        }
}

// D of a block, (ROWS, KEYS), between `count` tokens (count, m) and packed ones: differences first, squares after,
// so that it is as exact as its inputs, exactly 0 between equal frequencies, and the same both ways round.
static void detuning(const float* tokens, int64_t count, int64_t m, const float* packed, float* d) {
    constexpr int STEP = ACCUMULATORS / WIDEST;
    for (int64_t column = 0; column < KEYS; column += WIDEST * LANES) {
        int64_t i = 0;
        for (; i + STEP <= count; i += STEP)
            for (int64_t from = 0; from < m; from += RUN)
                detuning_micro<STEP, WIDEST>(d + i * KEYS + column, tokens + i * m, packed + column, m, from);
        for (; i < count; ++i)
            for (int64_t from = 0; from < m; from += RUN)
                detuning_micro<1, WIDEST>(d + i * KEYS + column, tokens + i * m, packed + column, m, from);
    }
}

// Sets D to FAR_DETUNING where a pair may not attend: `allowed` holds a bit for each of a row's keys.
static void forbid(float* d, int64_t count, const uint64_t* allowed) {
    for (int64_t i = 0; i < count; ++i)
        for (int64_t v = 0; v < KEYS; v += LANES) {
            float* at = d + i * KEYS + v;
            store(at, where((uint32_t)(allowed[i] >> v), load(at), vf{} + FAR_DETUNING));
        }
}

// Pairs that can lock, row by row: D and the key's number. They wait here until rows have enough of them. Past the
// first `settled` of a row are numbers alone, of those that the sieve let through: `settle` finds D.
constexpr int64_t ROOM = 192, ENOUGH = 32;
// Which keys of a block's rows can lock, a bit each; filled up with 0 to a multiple of LANES rows.
constexpr int64_t LOCKABLE = (ROWS + LANES - 1) / LANES * LANES;

// Sets the bits of LANES keys of a row, from key v on; in the order of v.
INLINE void put_bits(uint64_t* row, int64_t v, uint32_t bits) {
#if LANES == 16
    const uint16_t part = (uint16_t)bits;
    memcpy((char*)row + v / 8, &part, sizeof part);
#elif LANES == 8
    const uint8_t part = (uint8_t)bits;
    memcpy((char*)row + v / 8, &part, sizeof part);
#else
    *row = (v ? *row : 0) | (uint64_t)bits << v;
#endif
}

struct Pairs {
    float detuning[ROWS][ROOM + LANES];
    int32_t key[ROWS][ROOM + LANES];
    int64_t length[ROWS], settled[ROWS], most, all;
    bool unsettled;  // whether any is
};

INLINE void forget(Pairs& pairs) {
    memset(pairs.length, 0, sizeof pairs.length);
    memset(pairs.settled, 0, sizeof pairs.settled);
    pairs.most = pairs.all = 0, pairs.unsettled = false;
}

// Adds those of a block that can lock: D - base <= limit; base and limit may differ by row or by key. There is
// room for KEYS more in each row, and all are settled.
template <bool BY_KEY>
INLINE void list_lockable(Pairs& pairs, int64_t count, const float* d, int64_t first_key, const float* base,
                          const float* limit) {
    for (int64_t i = 0; i < count; ++i) {
        int64_t length = pairs.length[i];
        float* to = pairs.detuning[i];
        int32_t* key = pairs.key[i];
        for (int64_t v = 0; v < KEYS; v += LANES) {
            const vf from = BY_KEY ? load(base + v) : vf{} + base[i], most = BY_KEY ? load(limit + v) : vf{} + limit[i];
            const vf x = load(d + i * KEYS + v) - from;
            const uint32_t bits = bits_not_above(x, most);
            length += compress(bits, x, lane_numbers() + (int32_t)(first_key + v), to + length, key + length);
        }
        pairs.all += length - pairs.length[i];
        pairs.length[i] = pairs.settled[i] = length;
        if (length > pairs.most) pairs.most = length;
    }
}

// How many pairs of a block can lock.
template <bool BY_KEY>
INLINE int64_t count_lockable(int64_t count, const float* d, const float* base, const float* limit) {
    int64_t all = 0;
    for (int64_t i = 0; i < count; ++i)
        for (int64_t v = 0; v < KEYS; v += LANES) {
            const vf from = BY_KEY ? load(base + v) : vf{} + base[i], most = BY_KEY ? load(limit + v) : vf{} + limit[i];
            all += __builtin_popcount(bits_not_above(load(d + i * KEYS + v) - from, most));
        }
    return all;
}

// Which pairs of rows, given by their words, and keys, by their numbers among the caller's, dropout keeps.
INLINE uint32_t kept_bits(const SyncattnProblem& p, vu word, vu number) {
    return bits_at_least(mix(number * 0x9E3779B9u + word), p.dropout_threshold);
}

}  // namespace SYNCATTN_ISA
