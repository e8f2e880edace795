// Counting: the pairs of one tile of rows that lock, without weighing or mixing. A pair so near to the locking edge
// that rounding decides is not counted but written down: counting.py looks at it as the definition does.
#pragma once
#include "forward.h"

namespace SYNCATTN_ISA {

struct CountScratch {
    float *distance, *d, *packed;
    float* remembered;
    int32_t *found, *place;
};

INLINE int64_t count_scratch(const SyncattnProblem& p, float* memory, CountScratch& to) {
    const int64_t tiles = (p.keys + KEYS - 1) / KEYS;
    float* at = memory;
    const auto take = [&at](int64_t n) {
        float* taken = at;
        at += (n + 15) / 16 * 16;
        return taken;
    };
    to.d = take(ROWS * KEYS), to.packed = take(p.freq_dim * KEYS);
    to.distance = take(tiles), to.found = (int32_t*)take(tiles), to.place = (int32_t*)take(tiles);
    to.remembered = take(p.nearest ? REMEMBERED * ROWS * KEYS : 0);
    return at - memory;
}

static int64_t count_floats(const SyncattnProblem* p) {
    CountScratch scratch;
    return count_scratch(*p, nullptr, scratch);
}

// Writes down the pairs of a row whose bits are set, as far as there is room; counts them all.
static void write_down(const SyncattnCount& to, int32_t head_number, int64_t row, int64_t first_key, uint32_t bits) {
    const int64_t at = __atomic_fetch_add(to.doubtful_count, (int64_t)__builtin_popcount(bits), __ATOMIC_RELAXED);
    for (int64_t k = at; bits && k < to.room; bits &= bits - 1, ++k) {
        int32_t* pair = to.doubtful + 3 * k;
        pair[0] = head_number, pair[1] = (int32_t)row, pair[2] = (int32_t)(first_key + __builtin_ctz(bits));
    }
}

static void count_rows(const Plan* plan, const SyncattnCount* to, int64_t batch, int64_t head, int64_t tile,
                       float* memory) {
    const SyncattnProblem& p = *plan->p;
    const int64_t head_number = batch * p.heads + head;
    const Lanes& senders = plan->senders[batch * p.send_heads + head / (p.heads / p.send_heads)];
    CountScratch own;
    count_scratch(p, memory, own);
    ForwardScratch shared{};
    shared.d = own.d, shared.packed = own.packed;
    Rows rows;
    load_rows(p, rows, batch, head, tile);
    float low[MOST_COORDINATES + 1], high[MOST_COORDINATES + 1];
    box_of(rows.receive, rows.count, p.freq_dim, ~0ull, senders.boxes.direction, low, high);
    int64_t last = plan->key_tiles;
    if (p.is_causal) last = least(last, (rows.first + rows.count - 1 + p.keys - p.queries) / KEYS + 1);
    int64_t first = 0;
    if (p.text) {
        const int32_t* own_texts = texts_of(p, batch) + p.keys - p.queries + rows.first;
        narrow(plan->sender_texts[batch], own_texts, rows.count, first, last);
    }
    const auto find = [&](float limit) {
        if (senders.packed)
            return tiles_within(senders.boxes, low, high, p.freq_dim, first, last, limit, own.found, own.distance);
        for (int64_t t = first; t < last; ++t) own.found[t - first] = (int32_t)t, own.distance[t - first] = 0;
        return last > first ? last - first : 0;
    };
    if (p.nearest) find_nearest(*plan, rows, senders, find(__builtin_inff()), shared, own);
    float within[ROWS];
    for (int64_t i = 0; i < rows.count; ++i) {
        const float radius = to->radius[head_number * p.queries + rows.first + i];
        const float doubt = to->slack * (radius + rows.base[i]);
        within[i] = radius - doubt;
        const float beyond = radius + doubt;
        rows.radius[i] = beyond < to->farthest ? beyond : to->farthest;
    }
    set_farthest(rows);
    int64_t counts[ROWS] = {};
    const int64_t count = find(rows.farthest);
    for (int64_t t = 0; t < count; ++t) {
        const int64_t at = own.found[t];
        const float* d = own.d;
        if (p.nearest && own.place[at] >= 0) d = own.remembered + own.place[at] * rows.count * KEYS;
        else forward_detuning(p, rows, senders, at, own.packed, own.d);
        for (int64_t i = 0; i < rows.count; ++i) {
            const vf base = vf{} + rows.base[i], sure = vf{} + within[i], possible = vf{} + rows.radius[i];
            for (int64_t v = 0; v < KEYS; v += LANES) {
                const vf x = load(d + i * KEYS + v) - base;
                const uint32_t locked = bits_not_above(x, sure), doubtful = bits_not_above(x, possible) & ~locked;
                counts[i] += __builtin_popcount(locked);
                if (doubtful) write_down(*to, (int32_t)head_number, rows.first + i, at * KEYS + v, doubtful);
            }
        }
    }
    for (int64_t i = 0; i < rows.count; ++i)
        to->locked[head_number * p.queries + rows.first + i] = counts[i];
}

}  // namespace SYNCATTN_ISA
