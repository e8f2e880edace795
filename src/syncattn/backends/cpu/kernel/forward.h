// The forward pass of one tile of rows: all of the senders that it can lock to, tile by tile.
#pragma once
#include "sieve.h"

namespace SYNCATTN_ISA {

// Blocks whose D the search for the nearest sender keeps for the pass that follows, if they are whole; more if not.
constexpr int64_t REMEMBERED = 12;
// A block is evaluated whole when at least this share of its pairs can lock, else pair by pair. A block that
// follows a full one is taken for full, but every few the guess is put to the test.
constexpr float FULL_SHARE = 0.3f;
constexpr int64_t GUESSES = 8;

struct ForwardScratch {
    float *d, *strength, *packed;  // shared by the contexts
    struct {
        float *out, *distance, *remembered;
        int32_t *found, *place;  // tiles to visit; where each tile's D is remembered, or -1
        Pairs* pairs;
    } of[CONTEXTS];
};

// Lays out the scratch in `memory`, and returns its size in floats.
INLINE int64_t forward_scratch(const SyncattnProblem& p, float* memory, ForwardScratch& to) {
    const int64_t tiles = (p.keys + KEYS - 1) / KEYS;
    float* at = memory;
    const auto take = [&at](int64_t n) {
        float* taken = at;
        at += (n + 15) / 16 * 16;
        return taken;
    };
    to.d = take(ROWS * KEYS), to.strength = take(ROWS * KEYS), to.packed = take(p.freq_dim * KEYS);
    for (auto& own : to.of) {
        own.out = take(ROWS * p.value_dim);
        own.distance = take(tiles), own.found = (int32_t*)take(tiles);
        own.place = (int32_t*)take(p.nearest ? tiles : 0);
        own.pairs = (Pairs*)take(sizeof(Pairs) / 4 + 1);
        own.remembered = take(p.nearest ? REMEMBERED * ROWS * KEYS : 0);
    }
    return at - memory;
}

// D of a block as `rows` see it.
INLINE void forward_detuning(const SyncattnProblem& p, const Rows& rows, const Lanes& senders, int64_t tile,
                             float* memory, float* d) {
    uint64_t allowed[ROWS];
    const int64_t m = p.freq_dim, first = tile * KEYS;
    const float* packed = senders.packed + tile * m * KEYS;
    if (!senders.packed) {
        pack_tile(send_of(&p, rows.batch, rows.head) + first * m, least(KEYS, p.keys - first), m, memory);
        packed = memory;
    }
    detuning(rows.receive, rows.count, m, packed, d);
    if (restricted(p, rows, tile, allowed)) forbid(d, rows.count, allowed);
}

// The nearest allowed sender of each row, and its D: the earlier one (as the caller numbers them) on a tie.
struct Nearest {
    float best[ROWS];
    int32_t place[ROWS], number[ROWS];
};

static void look_for_nearest(const SyncattnProblem& p, const Rows& rows, const float* d, int64_t tile,
                             Nearest& nearest) {
    const int32_t* index =
        p.send_index ? p.send_index + (rows.batch * p.heads + rows.head) * p.keys : nullptr;
    const int64_t start = tile * KEYS, valid = least(KEYS, p.keys - start);
    for (int64_t i = 0; i < rows.count; ++i) {
        const float* row = d + i * KEYS;
        uint32_t candidates = 0;
        for (int64_t v = 0; v < KEYS / LANES; ++v)
            candidates |= bits_not_above(load(row + v * LANES), vf{} + nearest.best[i]);
        if (!candidates) continue;
        if (!index) {  // the first of the lowest, unless one is NaN
            vf low = load(row), strange{};
            for (int64_t v = 0; v < KEYS; v += LANES) low = smaller(low, load(row + v)), strange += load(row + v);
            const float best = lowest(low);
            if (total(strange) < __builtin_inff()) {
                int64_t j = 0;
                uint32_t bits;
                while (!(bits = bits_not_above(load(row + j), vf{} + best))) j += LANES;
                j += __builtin_ctz(bits);
                if (best < nearest.best[i] || (best == nearest.best[i] && j + start < nearest.number[i]))
                    nearest.best[i] = best, nearest.place[i] = nearest.number[i] = (int32_t)(start + j);
                continue;
            }
        }
        for (int64_t j = 0; j < valid; ++j) {
            const int32_t number = index ? index[start + j] : (int32_t)(start + j);
            const bool tie = row[j] == nearest.best[i] && number < nearest.number[i];
            if (row[j] < nearest.best[i] || tie || row[j] != row[j]) {
                nearest.best[i] = row[j];
                nearest.place[i] = (int32_t)(start + j), nearest.number[i] = number;
            }
        }
    }
}

// Sets rows.base, and writes what the backward needs to know of it. Tiles that are nearer come first; one whose
// box is farther than the best of every row cannot hold a nearest sender.
template <typename Own>
static void find_nearest(const Plan& plan, Rows& rows, const Lanes& senders, int64_t count, const ForwardScratch& s,
                         const Own& own) {
    const SyncattnProblem& p = *plan.p;
    Nearest nearest;
    for (int64_t i = 0; i < ROWS; ++i)
        nearest.best[i] = FAR_DETUNING, nearest.place[i] = 0, nearest.number[i] = INT32_MAX;
    for (int64_t t = 0; t < plan.key_tiles; ++t) own.place[t] = -1;
    const int64_t block = rows.count * KEYS, room = REMEMBERED * ROWS * KEYS / block;
    int64_t kept = 0;
    const auto visit = [&](int64_t t) {
        const int64_t tile = own.found[t];
        float* d = kept < room ? own.remembered + kept * block : s.d;
        forward_detuning(p, rows, senders, tile, s.packed, d);
        look_for_nearest(p, rows, d, tile, nearest);
        if (kept < room) own.place[tile] = (int32_t)kept++;
        own.found[t] = -1;
    };
    // the nearest few in their order, which rules most of the others out, then those in passing order
    for (int64_t k = 0; k < least(count, 3); ++k) {
        int64_t next = -1;
        for (int64_t t = 0; t < count; ++t)
            if (own.found[t] >= 0 && (next < 0 || own.distance[t] < own.distance[next])) next = t;
        visit(next);
    }
    for (int64_t t = count - 1; t >= 0; --t) {
        if (own.found[t] < 0) continue;
        float worst = nearest.best[0];
        for (int64_t i = 1; i < rows.count; ++i) worst = most(worst, nearest.best[i]);
        if (!(own.distance[t] > worst * 1.0001f)) visit(t);
    }
    const int64_t at = (rows.batch * p.heads + rows.head) * p.queries + rows.first;
    for (int64_t i = 0; i < rows.count; ++i) {
        rows.base[i] = nearest.best[i] >= FAR_DETUNING ? 0 : nearest.best[i];
        p.base[at + i] = rows.base[i];
        p.nearest_sender[at + i] = nearest.place[i];
    }
}

// The numbers that the caller knows LANES keys by.
INLINE vu key_numbers(const SyncattnProblem& p, const Rows& rows, vi key) {
    if (!p.send_index) return (vu)key;
    const int32_t* index = p.send_index + (rows.batch * p.heads + rows.head) * p.keys;
    for (int lane = 0; lane < LANES; ++lane) key[lane] = key[lane] < p.keys ? index[key[lane]] : 0;
    return (vu)key;
}

// Dropout of LANES strengths of one row.
INLINE vf drop(const SyncattnProblem& p, const Rows& rows, int64_t row, vi key, vf strength) {
    return where(kept_bits(p, vu{} + rows.word[row], key_numbers(p, rows, key)), strength * p.dropout_scale, vf{});
}

// W of a whole block up to column `width`, a multiple of LANES, and the row sums (LANES of each row); dropout only
// changes what is mixed. In the symmetric form the columns' sums, too.
template <int FORM, bool SYMMETRIC>
INLINE void weigh_columns(const SyncattnProblem& p, const Rows& rows, const float* d, int64_t tile, int64_t width,
                          float* strength, float* sums, float* column_sums) {
    vf columns[KEYS / LANES] = {};
    for (int64_t i = 0; i < rows.count; ++i) {
        const vf base = vf{} + rows.base[i], row_term = vf{} + rows.row_term[i];
        vf sum{};
#pragma GCC unroll 4
        for (int64_t v = 0; v < width; v += LANES) {
            vf decay_square;
            const vf x = load(d + i * KEYS + v) - base;
            const vf w = strength_of<FORM>(margin_of(x, rows.head_term, row_term, &decay_square), p.edge);
            store(strength + i * KEYS + v, w);
            sum += w;
            if constexpr (SYMMETRIC) columns[v / LANES] += w;
        }
        store(sums + i * LANES, load(sums + i * LANES) + sum);
        if (!p.dropout) continue;
        for (int64_t v = 0; v < width; v += LANES) {
            float* at = strength + i * KEYS + v;
            store(at, drop(p, rows, i, lane_numbers() + (int32_t)(tile * KEYS + v), load(at)));
        }
    }
    if constexpr (SYMMETRIC)
        for (int64_t j = 0; j < least(KEYS, p.keys - tile * KEYS); ++j)
            column_sums[tile * KEYS + j] += columns[j / LANES][j % LANES];
}

template <int FORM, bool SYMMETRIC>
static void weigh_block(const SyncattnProblem& p, const Rows& rows, const float* d, int64_t tile, int64_t width,
                        float* strength, float* sums, float* column_sums) {
    // twice, for where the number of columns is known the loop over them is unrolled
    if (width == KEYS) weigh_columns<FORM, SYMMETRIC>(p, rows, d, tile, KEYS, strength, sums, column_sums);
    else weigh_columns<FORM, SYMMETRIC>(p, rows, d, tile, width, strength, sums, column_sums);
}

// VECTORS of the columns of out += sum_k w_k v_key(k). Two pairs at a time: one chain of sums would be bound by
// the latency of an addition.
template <int VECTORS>
INLINE void mix_pairs(float* out, const float* strength, const int32_t* key, int64_t count, const float* value,
                      int64_t ldv) {
    vf sum[VECTORS], other[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sum[v] = vf{}, other[v] = vf{};
    int64_t k = 0;
    for (; k + 2 <= count; k += 2) {
        const float *row = value + key[k] * ldv, *next = value + key[k + 1] * ldv;
        const vf w = splat(strength[k]), u = splat(strength[k + 1]);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            sum[v] += w * load(row + v * LANES);
            other[v] += u * load(next + v * LANES);
        }
    }
    if (k < count) {
        const float* row = value + key[k] * ldv;
        const vf w = splat(strength[k]);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sum[v] += w * load(row + v * LANES);
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) store(out + v * LANES, load(out + v * LANES) + (sum[v] + other[v]));
}

// VECTORS of the columns of to_key(k) += w_k x: the other half of a symmetric pair.
template <int VECTORS>
INLINE void spread_pairs(float* to, const float* strength, const int32_t* key, int64_t count, const float* x,
                         int64_t row_floats) {
    vf own[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) own[v] = load(x + v * LANES);
    for (int64_t k = 0; k < count; ++k) {
        float* row = to + key[k] * row_floats;
        const vf w = splat(strength[k]);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) store(row + v * LANES, load(row + v * LANES) + w * own[v]);
    }
}

INLINE void spread(float* to, const float* strength, const int32_t* key, int64_t count, const float* x, int64_t dim) {
    int64_t c = 0;
    for (; c + 4 * LANES <= dim; c += 4 * LANES) spread_pairs<4>(to + c, strength, key, count, x + c, dim);
    for (; c < dim; c += LANES) spread_pairs<1>(to + c, strength, key, count, x + c, dim);
}

// A head's sums, to which the symmetric form adds from both sides of each pair: (N, d) and (N).
struct HeadSums {
    float *out, *row_sum;
};

INLINE void settle_rows(const SyncattnProblem& p, const Rows& rows, Pairs& pairs) {
    settle<false>(pairs, rows.receive, rows.count, p.freq_dim, send_of(&p, rows.batch, rows.head), rows.base, rows.radius);
}

// Weighs and mixes the pairs that wait, and forgets them.
template <int FORM, bool SYMMETRIC>
static void forward_pairs(const SyncattnProblem& p, const Rows& rows, Pairs& pairs, float* sums, float* out,
                          const float* values, HeadSums all) {
    const int64_t dim = p.value_dim;
    settle_rows(p, rows, pairs);
    for (int64_t i = 0; i < rows.count; ++i) {
        const int64_t count = pairs.length[i];
        if (count == 0) continue;
        float* strength = pairs.detuning[i];  // in place of D
        int32_t* key = pairs.key[i];
        store(strength + count, vf{} + FAR_DETUNING);  // what fills the last vector does not lock
        memset(key + count, 0, sizeof(vi));
        const vf row_term = vf{} + rows.row_term[i];
        vf sum{};
        for (int64_t k = 0; k < count; k += LANES) {
            vf decay_square;
            vf w = strength_of<FORM>(margin_of(load(strength + k), rows.head_term, row_term, &decay_square), p.edge);
            sum += w;
            if (p.dropout) {
                vi number;
                memcpy(&number, key + k, sizeof number);
                w = drop(p, rows, i, number, w);
            }
            store(strength + k, w);
        }
        store(sums + i * LANES, load(sums + i * LANES) + sum);
        int64_t c = 0;
        for (; c + 4 * LANES <= dim; c += 4 * LANES)
            mix_pairs<4>(out + i * dim + c, strength, key, count, values + c, dim);
        for (; c < dim; c += LANES) mix_pairs<1>(out + i * dim + c, strength, key, count, values + c, dim);
        if constexpr (SYMMETRIC) {
            for (int64_t k = 0; k < count; ++k) all.row_sum[key[k]] += strength[k];
            spread(all.out, strength, key, count, values + (rows.first + i) * dim, dim);
        }
    }
    forget(pairs);
}

// A tile of rows on its way through the keys.
struct Context {
    Rows rows;
    int64_t count, next;  // of the tiles of keys that it can lock to
    bool whole;           // whether the last block was worth evaluating whole
    Sifter sifter;
    float sums[ROWS * LANES];
};

static void forward_begin(const Plan& plan, const Lanes& senders, int64_t batch, int64_t head, int64_t tile,
                          Context& c, const ForwardScratch& s, int64_t number) {
    const SyncattnProblem& p = *plan.p;
    const auto& own = s.of[number];
    load_rows(p, c.rows, batch, head, tile);
    float low[MOST_COORDINATES + 1], high[MOST_COORDINATES + 1];
    box_of(c.rows.receive, c.rows.count, p.freq_dim, ~0ull, senders.boxes.direction, low, high);
    int64_t last = plan.key_tiles;
    if (p.is_causal) last = least(last, (c.rows.first + c.rows.count - 1 + p.keys - p.queries) / KEYS + 1);
    int64_t first = p.symmetric ? c.rows.first / KEYS : 0;
    if (p.text) {
        const int32_t* own_texts = texts_of(p, batch) + p.keys - p.queries + c.rows.first;
        narrow(plan.sender_texts[batch], own_texts, c.rows.count, first, last);
    }
    const auto find = [&](float limit) {
        if (senders.packed)
            return tiles_within(senders.boxes, low, high, p.freq_dim, first, last, limit, own.found, own.distance);
        for (int64_t t = first; t < last; ++t) own.found[t - first] = (int32_t)t, own.distance[t - first] = 0;
        return last > first ? last - first : 0;  // too few rows for boxes to be worth their making
    };
    if (p.nearest) find_nearest(plan, c.rows, senders, find(__builtin_inff()), s, own);
    set_farthest(c.rows);
    memset(own.out, 0, sizeof(float) * (size_t)(ROWS * p.value_dim));
    memset(c.sums, 0, sizeof c.sums);
    forget(*own.pairs);
    c.count = find(c.rows.farthest);
    c.next = 0, c.whole = false;
    sift_begin(c.sifter, senders, c.rows.receive, c.rows.count, p.freq_dim, c.rows.base, c.rows.radius);
}

// One block, against the context's next tile of keys.
template <int FORM, bool SYMMETRIC>
static void forward_step(const SyncattnProblem& p, const Lanes& senders, const float* values, Context& c,
                         const ForwardScratch& s, int64_t number, HeadSums all) {
    const auto& own = s.of[number];
    const Rows& rows = c.rows;
    const int64_t tile = own.found[c.next], full = (int64_t)(FULL_SHARE * (float)(rows.count * KEYS));
    const float* d = s.d;
    const int64_t m = p.freq_dim;
    const auto enough = [&] { return own.pairs->all >= ENOUGH * rows.count || own.pairs->most > ROOM - KEYS; };
    const bool remembered = p.nearest && own.place[tile] >= 0;
    if (c.sifter.few && !c.whole && !remembered && sift_group(c.sifter, senders, rows.receive, rows.count, m, tile)) {
        uint64_t allowed[ROWS], lockable[LOCKABLE];
        const int64_t passed = sift(c.sifter, senders, rows.count, m, tile, lockable);
        if (!passed) return void(++c.next);
        c.sifter.few = passed <= sieved_best(rows.count);
        if (c.sifter.few) {
            ++c.next;
            if (restricted(p, rows, tile, allowed))
                for (int64_t i = 0; i < rows.count; ++i) lockable[i] &= allowed[i];
            list_sifted(*own.pairs, rows.count, tile * KEYS, lockable);
            if (enough()) forward_pairs<FORM, SYMMETRIC>(p, rows, *own.pairs, c.sums, own.out, values, all);
            return;
        }
    }
    if (remembered) d = own.remembered + own.place[tile] * rows.count * KEYS;
    else forward_detuning(p, rows, senders, tile, s.packed, s.d);
    if (c.next++ % GUESSES == 0) c.whole = count_lockable<false>(rows.count, d, rows.base, rows.radius) > full;
    if (c.whole) {
        const int64_t dim = p.value_dim, first = tile * KEYS;
        int64_t valid = least(KEYS, p.keys - first);
        if (p.is_causal) valid = least(valid, rows.first + rows.count + p.keys - p.queries - first);
        const int64_t width = (valid + LANES - 1) / LANES * LANES;
        weigh_block<FORM, SYMMETRIC>(p, rows, d, tile, width, s.strength, c.sums, all.row_sum);
        gemm(own.out, dim, s.strength, KEYS, 1, values + first * dim, dim, rows.count, dim, valid, true);
        if constexpr (SYMMETRIC)
            gemm(all.out + first * dim, dim, s.strength, 1, KEYS, values + rows.first * dim, dim, valid, dim,
                 rows.count, true);
        return;
    }
    settle_rows(p, rows, *own.pairs);
    const int64_t before = own.pairs->all;
    list_lockable<false>(*own.pairs, rows.count, d, tile * KEYS, rows.base, rows.radius);
    c.whole = own.pairs->all - before > full;
    c.sifter.few = c.sifter.finite && own.pairs->all - before <= sieved_best(rows.count) / 2;
    if (enough()) forward_pairs<FORM, SYMMETRIC>(p, rows, *own.pairs, c.sums, own.out, values, all);
}

// CONTEXTS tiles of rows through all keys. Adds to `all` in the symmetric form, else sets out and row_sum.
template <int FORM, bool SYMMETRIC>
static void forward_task(const Plan& plan, int64_t batch, int64_t head, int64_t task, float* memory) {
    const SyncattnProblem& p = *plan.p;
    const int64_t head_number = batch * p.heads + head, dim = p.value_dim;
    const Lanes& senders = plan.senders[batch * p.send_heads + head / (p.heads / p.send_heads)];
    const float* values = value_of(&p, batch, head);
    const int64_t first = task * CONTEXTS, tiles = (p.queries + ROWS - 1) / ROWS;
    const int64_t contexts = least(CONTEXTS, tiles - first);
    const HeadSums all{p.out + head_number * p.queries * dim, p.row_sum + head_number * p.queries};
    ForwardScratch s;
    forward_scratch(p, memory, s);
    Context context[CONTEXTS];
    for (int64_t c = 0; c < contexts; ++c) forward_begin(plan, senders, batch, head, first + c, context[c], s, c);
    for (;;) {  // the lowest tile of keys that any of them has to do, by all that have
        int64_t tile = INT64_MAX;
        for (int64_t c = 0; c < contexts; ++c)
            if (context[c].next < context[c].count) tile = least(tile, s.of[c].found[context[c].next]);
        if (tile == INT64_MAX) break;
        for (int64_t c = 0; c < contexts; ++c)
            if (context[c].next < context[c].count && s.of[c].found[context[c].next] == tile)
                forward_step<FORM, SYMMETRIC>(p, senders, values, context[c], s, c, all);
    }
    for (int64_t c = 0; c < contexts; ++c) {
        const Rows& rows = context[c].rows;
        forward_pairs<FORM, SYMMETRIC>(p, rows, *s.of[c].pairs, context[c].sums, s.of[c].out, values, all);
        for (int64_t i = 0; i < rows.count; ++i) {
            const float sum = total(load(context[c].sums + i * LANES)), normaliser = sum == 0 ? 1 : 1 / (sum + p.eps);
            float* const to = all.out + (rows.first + i) * dim;
            float& row_sum = all.row_sum[rows.first + i];
            row_sum = SYMMETRIC ? row_sum + sum : sum;
            for (int64_t x = 0; x < dim; x += LANES) {
                const vf mixed = load(s.of[c].out + i * dim + x);
                store(to + x, SYMMETRIC ? load(to + x) + mixed : mixed * normaliser);
            }
        }
    }
}

// A whole head of the symmetric form.
template <int FORM>
static void forward_symmetric(const Plan& plan, int64_t batch, int64_t head, float* memory) {
    const SyncattnProblem& p = *plan.p;
    const int64_t head_number = batch * p.heads + head, dim = p.value_dim;
    float *out = p.out + head_number * p.queries * dim, *row_sum = p.row_sum + head_number * p.queries;
    const float* value = value_of(&p, batch, head);
    memset(out, 0, sizeof(float) * (size_t)(p.queries * dim));
    memset(row_sum, 0, sizeof(float) * (size_t)p.queries);
    for (int64_t task = 0; task < plan.row_tasks; ++task) forward_task<FORM, true>(plan, batch, head, task, memory);
    const float of_all = own_strength<FORM>(p);
    for (int64_t i = 0; i < p.queries; ++i) {
        const float own = p.text && texts_of(p, batch)[i] < 0 ? 0 : of_all;  // padding sees nobody
        const float sum = row_sum[i] += own, normaliser = sum == 0 ? 1 : 1 / (sum + p.eps);
        for (int64_t c = i * dim; c < (i + 1) * dim; c += LANES) {
            const vf mixed = own ? load(out + c) + load(value + c) * own : load(out + c);
            store(out + c, mixed * normaliser);
        }
    }
}

static void forward_rows(const Plan* plan, int64_t batch, int64_t head, int64_t task, float* memory) {
    const SyncattnProblem& p = *plan->p;
    with_form(p, [&](auto form) {
        if (p.symmetric) forward_symmetric<decltype(form)::value>(*plan, batch, head, memory);
        else forward_task<decltype(form)::value, false>(*plan, batch, head, task, memory);
    });
}

}  // namespace SYNCATTN_ISA
