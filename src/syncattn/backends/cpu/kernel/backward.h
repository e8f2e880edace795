// The backward pass: tiles of keys outside, and all receivers that they can lock to as the lanes of blocks inside;
// everything is recomputed. The gradients of send and value belong to one task each; those of the receivers are
// summed over `parts` of the keys. In the forward's terms, rows are keys here and keys are receivers.
//
//   dW = dO' v - offset     dO' = dO / (Z + eps), offset = <dO', out>
//   dF = dW dW/dF, dD = dF dF/dD     margin.h; exactly 0 where not locked
//   dw^r = sum_j 2 dD (w^r - w^s)     dw^s = -sum_i 2 dD (w^r - w^s)     dv = sum_i W dO'
#pragma once
#include "count.h"
#include "receivers.h"

namespace SYNCATTN_ISA {

// As FULL_SHARE, of the backward.
constexpr float BACKWARD_FULL_SHARE = 0.3f;

// What a tile of keys gathers on its way through the receivers.
struct KeyScratch {
    float *grad_value, *grad_send;      // (ROWS, d), (ROWS, wide)
    float *keys, *minus_keys, *centre;  // (ROWS, wide), about the centre; (wide)
    float *key_sums, *distance;         // (ROWS, LANES): of dD; (tiles)
    int32_t* found;
    Pairs* pairs;
};

struct BackwardScratch {
    float *d, *strength, *grad;        // (ROWS, KEYS): D, W, and dO' v, then dD
    float* receivers;                 // (KEYS, wide) about a centre
    float *pair_grad, *pair_scaled;   // (ROOM + LANES)
    KeyScratch of[CONTEXTS];
};

INLINE int64_t backward_scratch(const SyncattnProblem& p, float* memory, BackwardScratch& to) {
    const int64_t wide = padded_dim(p), tiles = (p.queries + KEYS - 1) / KEYS;
    float* at = memory;
    const auto take = [&at](int64_t n) {
        float* taken = at;
        at += (n + 15) / 16 * 16;
        return taken;
    };
    to.d = take(ROWS * KEYS), to.strength = take(ROWS * KEYS), to.grad = take(ROWS * KEYS);
    to.receivers = take(KEYS * wide);
    to.pair_grad = take(ROOM + LANES), to.pair_scaled = take(ROOM + LANES);
    for (KeyScratch& own : to.of) {
        own.grad_value = take(ROWS * p.value_dim), own.grad_send = take(ROWS * wide);
        own.keys = take(ROWS * wide), own.minus_keys = take(ROWS * wide), own.centre = take(wide);
        own.key_sums = take(ROWS * LANES), own.distance = take(tiles), own.found = (int32_t*)take(tiles);
        own.pairs = (Pairs*)take(sizeof(Pairs) / 4 + 1);
    }
    return at - memory;
}

static int64_t scratch_floats(const SyncattnProblem* p) {
    ForwardScratch forward;
    BackwardScratch backward;
    const int64_t a = forward_scratch(*p, nullptr, forward), b = backward_scratch(*p, nullptr, backward);
    return a > b ? a : b;
}

// A tile of keys on its way through all receivers.
struct Keys {
    int64_t batch, head, first, count;
    const float *send, *value;           // (count, m), (count, d)
    const float* values;                 // (N, d): all of them; symmetric form only, as the next
    float* grad_values;                  // (N, d)
    float head_term, alpha;
    uint32_t number[ROWS];  // as the caller counts them
    int64_t tiles, next;    // of the receivers' tiles that it can lock to
    bool whole;             // whether the last block was worth evaluating whole
    Sifter sifter;
};

// From dO' v in `grad`, and D, to dD in `grad` and W in `strength`. The sums over the keys, by receiver, go to
// dd_sums and fx_sums (KEYS), from lane `from` on; those over receivers to key_sums (LANES of each key), unless a product sees to it.
template <int FORM, bool SYMMETRIC>
static void through_block(const SyncattnProblem& p, const Keys& keys, const Receivers& r, int64_t tile, int64_t from,
                          const float* d, float* grad, float* strength, float* key_sums, float* dd_sums, float* fx_sums,
                          double* bandwidth) {
    const int64_t first = tile * KEYS;
    const bool in_product = p.freq_dim < padded_dim(p);
    vf to_bandwidth{};
    for (int64_t v = from; v < KEYS; v += LANES) {
        const vf base = load(r.base + first + v), row_term = load(r.row_term + first + v);
        const vf offset = load(r.offset + first + v);
        vu word;
        memcpy(&word, r.word + first + v, sizeof word);
        vf sum_d{}, sum_x{};
        for (int64_t j = 0; j < keys.count; ++j) {
            const int64_t at = j * KEYS + v;
            vf decay_square;
            const vf x = load(d + at) - base;
            const vf margin = margin_of(x, keys.head_term, row_term, &decay_square);
            vf w = strength_of<FORM>(margin, p.edge), product = load(grad + at);
            if (p.dropout) {
                const uint32_t kept = kept_bits(p, word, vu{} + keys.number[j]);
                w = where(kept, w * p.dropout_scale, vf{});
                product = where(kept, product * p.dropout_scale, vf{});
            }
            store(strength + at, w);
            const vf through = through_strength<FORM>(
                SYMMETRIC ? product - (offset + r.offset[keys.first + j]) : product - offset, margin, p.edge);
            const Through to = through_margin(through, x, decay_square, row_term, keys.alpha);
            store(grad + at, to.detuning);
            sum_x += to.coupling;
            sum_d += to.detuning;
            to_bandwidth += to.bandwidth;
            if (!in_product) store(key_sums + j * LANES, load(key_sums + j * LANES) + to.detuning);
        }
        store(dd_sums + v, sum_d);
        store(fx_sums + v, load(fx_sums + v) + sum_x);
    }
    *bandwidth += (double)total(to_bandwidth);
}

// to[k] (+)= <a, b_key(k)> over n numbers: four at a time, so that their additions overlap.
template <bool ADD>
INLINE void dots(const float* a, const float* b, const int32_t* key, int64_t count, int64_t n, float* to) {
    for (int64_t k = 0; k < count; k += 4) {
        const float* at[4];
        for (int64_t q = 0; q < 4; ++q) at[q] = b + key[least(k + q, count - 1)] * n;
        vf sum[4] = {};
        for (int64_t c = 0; c < n; c += LANES) {
            const vf x = load(a + c);
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q) sum[q] += x * load(at[q] + c);
        }
        for (int64_t q = 0; q < 4; ++q) to[k + q] = (ADD ? to[k + q] : 0) + total(sum[q]);
    }
}

INLINE void settle_keys(const SyncattnProblem& p, const Keys& keys, const Receivers& r, Pairs& pairs) {
    const float* receive = p.receive + (keys.batch * p.heads + keys.head) * p.queries * p.freq_dim;
    settle<true>(pairs, keys.send, keys.count, p.freq_dim, receive, r.base, r.radius);
}

// The gradients through the pairs that wait, and forgets them.
template <int FORM, bool SYMMETRIC>
static void backward_pairs(const Plan& plan, const Keys& keys, const Receivers& r, const PartSums& sums,
                           const BackwardScratch& s, const KeyScratch& own) {
    const SyncattnProblem& p = *plan.p;
    const int64_t m = p.freq_dim, wide = padded_dim(p), extended = extended_dim(p), dim = p.value_dim;
    Pairs& pairs = *own.pairs;
    settle_keys(p, keys, r, pairs);
    vf to_bandwidth{};
    for (int64_t j = 0; j < keys.count; ++j) {
        const int64_t count = pairs.length[j];
        if (count == 0) continue;
        float* strength = pairs.detuning[j];  // in place of D
        int32_t* row = pairs.key[j];
        store(strength + count, vf{} + FAR_DETUNING);  // what fills the last vector does not lock
        memset(row + count, 0, sizeof(vi));
        dots<false>(keys.value + j * dim, r.gradient, row, count, dim, s.pair_grad);
        if constexpr (SYMMETRIC)
            dots<true>(r.gradient + (keys.first + j) * dim, keys.values, row, count, dim, s.pair_grad);
        for (int64_t k = 0; k < count; k += LANES) {
            vi at;
            memcpy(&at, row + k, sizeof at);
            const vf row_term = gather(r.row_term, at), x = load(strength + k);
            vf decay_square, product = load(s.pair_grad + k);
            const vf margin = margin_of(x, keys.head_term, row_term, &decay_square);
            vf w = strength_of<FORM>(margin, p.edge);
            if (p.dropout) {
                const vu word = (vu)gather((const float*)r.word, at);
                const uint32_t kept = kept_bits(p, word, vu{} + keys.number[j]);
                w = where(kept, w * p.dropout_scale, vf{});
                product = where(kept, product * p.dropout_scale, vf{});
            }
            store(strength + k, w);
            const vf offset = SYMMETRIC ? gather(r.offset, at) + r.offset[keys.first + j] : gather(r.offset, at);
            const vf through = through_strength<FORM>(product - offset, margin, p.edge);
            const Through to = through_margin(through, x, decay_square, row_term, keys.alpha);
            to_bandwidth += to.bandwidth;
            store(s.pair_scaled + k, to.coupling);
            store(s.pair_grad + k, to.detuning);
        }
        int64_t c = 0;
        for (; c + 4 * LANES <= dim; c += 4 * LANES)
            mix_pairs<4>(own.grad_value + j * dim + c, strength, row, count, r.gradient + c, dim);
        for (; c < dim; c += LANES)
            mix_pairs<1>(own.grad_value + j * dim + c, strength, row, count, r.gradient + c, dim);
        if constexpr (SYMMETRIC)
            spread(keys.grad_values, strength, row, count, r.gradient + (keys.first + j) * dim, dim);
        // dD (w^r - w^s, 1) and dF x of each pair, added to its receiver's sums, and the first to the sender's
        for (int64_t k = 0; k < extended; k += LANES) {
            const vi coordinate = lane_numbers() + (int32_t)k;
            const vf last = (vf)((vi)(vf{} + 1.0f) & (coordinate == (int32_t)m + 1));
            vf here{};
            for (int64_t x = k; x < k + LANES && x < m; ++x) here[x - k] = keys.send[j * m + x];
            vf sent{};
            for (int64_t q = 0; q < count; ++q) {
                float* to = sums.by_row + row[q] * extended + k;
                const vf step = (load(r.frequency + row[q] * extended + k) - here) * s.pair_grad[q];
                sent += step;
                store(to, load(to) + step + last * s.pair_scaled[q]);
            }
            if (k >= wide) continue;
            const vf frequencies = (vf)((vi)sent & (coordinate < (int32_t)m));
            store(own.grad_send + j * wide + k, load(own.grad_send + j * wide + k) + frequencies);
        }
    }
    *sums.bandwidth += (double)total(to_bandwidth);
    forget(pairs);
}

// The gradients through a block whose D is in s.d.
template <int FORM, bool SYMMETRIC>
static void backward_block(const SyncattnProblem& p, const Keys& keys, const Receivers& r, const PartSums& sums,
                           int64_t tile, const BackwardScratch& s, const KeyScratch& own) {
    const int64_t m = p.freq_dim, wide = padded_dim(p), extended = extended_dim(p), dim = p.value_dim;
    const int64_t first = tile * KEYS;
    const int64_t valid = least(KEYS, p.queries - first);
    // receivers before all of the keys see none of them: in whole vectors they are left out
    int64_t before = p.is_causal ? keys.first - (p.keys - p.queries) - first : 0;
    before = before > 0 ? least(before, valid - 1) / 16 * 16 : 0;
    const int64_t lanes = KEYS - before, inner = valid - before;
    float* by_lane = sums.by_lane + tile * (m + 2) * KEYS;
    float dd_sums[KEYS];
    gemm(s.grad + before, KEYS, keys.value, dim, 1, r.gradient_t + tile * dim * KEYS + before, KEYS, keys.count, lanes,
         dim, false);
    if constexpr (SYMMETRIC)
        gemm(s.grad, KEYS, r.gradient + keys.first * dim, dim, 1, r.value_t + tile * dim * KEYS, KEYS, keys.count, KEYS,
             dim, true);
    through_block<FORM, SYMMETRIC>(p, keys, r, tile, before, s.d, s.grad, s.strength, own.key_sums, dd_sums,
                                   by_lane + (m + 1) * KEYS, sums.bandwidth);
    gemm(own.grad_value, dim, s.strength + before, KEYS, 1, r.gradient + (first + before) * dim, dim, keys.count, dim,
         inner, true);
    if constexpr (SYMMETRIC)
        gemm(keys.grad_values + first * dim, dim, s.strength, 1, KEYS, r.gradient + keys.first * dim, dim, valid, dim,
             keys.count, true);
    for (int64_t i = before; i < valid; ++i)
        for (int64_t k = 0; k < wide; k += LANES)
            store(s.receivers + i * wide + k, load(r.frequency + (first + i) * extended + k) - load(own.centre + k));
    // where there is room, the 1 after the frequency makes this sum up dD, too
    gemm(own.grad_send, wide, s.grad + before, KEYS, 1, s.receivers + before * wide, wide, keys.count, wide, inner, true);
    gemm(by_lane + before, KEYS, own.minus_keys, 1, wide, s.grad + before, KEYS, m, lanes, keys.count, true);
    const float* packed = r.lanes.packed + tile * m * KEYS;
    for (int64_t v = before; v < KEYS; v += LANES) {
        const vf sum = load(dd_sums + v);
        for (int64_t k = 0; k < m; ++k) {
            float* to = by_lane + k * KEYS + v;
            store(to, load(to) + (load(packed + k * KEYS + v) - own.centre[k]) * sum);
        }
        float* to = by_lane + m * KEYS + v;
        store(to, load(to) + sum);
    }
}

static void backward_begin(const Plan& plan, int64_t batch, int64_t head, int64_t tile, Keys& keys, KeyScratch& own) {
    const SyncattnProblem& p = *plan.p;
    const int64_t m = p.freq_dim, dim = p.value_dim, wide = padded_dim(p), head_number = batch * p.heads + head;
    keys.batch = batch, keys.head = head, keys.first = tile * ROWS, keys.count = least(ROWS, p.keys - tile * ROWS);
    keys.send = send_of(&p, batch, head) + keys.first * m;
    keys.values = value_of(&p, batch, head);
    keys.value = keys.values + keys.first * dim;
    keys.grad_values = p.grad_value + head_number * p.keys * dim;
    keys.head_term = head_term_of(p.bandwidth[head]), keys.alpha = p.bandwidth[head];
    for (int64_t j = 0; j < keys.count; ++j) {
        const int64_t key = keys.first + j;
        keys.number[j] = (uint32_t)(p.send_index ? p.send_index[head_number * p.keys + key] : key);
    }
    // Frequencies about one of the tile's own: what is left is small, and so is its rounding.
    memset(own.centre, 0, sizeof(float) * (size_t)wide);
    memset(own.keys, 0, sizeof(float) * (size_t)(ROWS * wide));
    memset(own.minus_keys, 0, sizeof(float) * (size_t)(ROWS * wide));
    for (int64_t k = 0; k < m; ++k)
        for (int64_t j = 0; j < keys.count; ++j)
            if (__builtin_isfinite(keys.send[j * m + k])) own.centre[k] = keys.send[j * m + k];
    for (int64_t j = 0; j < keys.count; ++j)
        for (int64_t k = 0; k < m; ++k) {
            // padding may hold anything; where NaN is attended to, dD is NaN already
            const float from_centre = keys.send[j * m + k] - own.centre[k];
            own.keys[j * wide + k] = __builtin_isfinite(from_centre) ? from_centre : 0;
            own.minus_keys[j * wide + k] = -own.keys[j * wide + k];
        }
    memset(own.grad_value, 0, sizeof(float) * (size_t)(ROWS * dim));
    memset(own.grad_send, 0, sizeof(float) * (size_t)(ROWS * wide));
    memset(own.key_sums, 0, sizeof(float) * (size_t)(ROWS * LANES));
    forget(*own.pairs);

    const Boxes& boxes = plan.receivers[head_number].lanes.boxes;
    float low[MOST_COORDINATES + 1], high[MOST_COORDINATES + 1];
    box_of(keys.send, keys.count, m, ~0ull, boxes.direction, low, high);
    const int64_t offset = p.keys - p.queries;
    int64_t first = p.is_causal && keys.first > offset ? (keys.first - offset) / KEYS : 0;
    if (p.symmetric) first = keys.first / KEYS;
    int64_t last = plan.receiver_tiles;
    if (p.text) narrow(plan.receiver_texts[batch], texts_of(p, batch) + keys.first, keys.count, first, last);
    keys.tiles = tiles_within(boxes, low, high, m, first, last, 0, own.found, own.distance);
    keys.next = 0, keys.whole = false;
    sift_begin(keys.sifter, plan.receivers[head_number].lanes, keys.send, keys.count, m, nullptr, nullptr);
}

// One block, against the next tile of receivers.
template <int FORM, bool SYMMETRIC>
static void backward_step(const Plan& plan, const Receivers& r, const PartSums& sums, Keys& keys,
                          const BackwardScratch& s, const KeyScratch& own) {
    const SyncattnProblem& p = *plan.p;
    const int64_t tile = own.found[keys.next], row = tile * KEYS, m = p.freq_dim;
    const int64_t full = (int64_t)(BACKWARD_FULL_SHARE * (float)(keys.count * KEYS));
    uint64_t allowed[ROWS], lockable[LOCKABLE];
    const auto enough = [&] { return own.pairs->all >= ENOUGH * keys.count || own.pairs->most > ROOM - KEYS; };
    if (keys.sifter.few && !keys.whole && sift_group(keys.sifter, r.lanes, keys.send, keys.count, m, tile)) {
        const int64_t passed = sift(keys.sifter, r.lanes, keys.count, m, tile, lockable);
        if (!passed) return void(++keys.next);
        keys.sifter.few = passed <= sieved_best(keys.count);
        if (keys.sifter.few) {
            ++keys.next;
            if (restricted_keys(p, keys.batch, keys.head, keys.first, keys.count, tile, allowed))
                for (int64_t j = 0; j < keys.count; ++j) lockable[j] &= allowed[j];
            list_sifted(*own.pairs, keys.count, row, lockable);
            if (enough()) backward_pairs<FORM, SYMMETRIC>(plan, keys, r, sums, s, own);
            return;
        }
    }
    detuning(keys.send, keys.count, m, r.lanes.packed + tile * m * KEYS, s.d);
    if (restricted_keys(p, keys.batch, keys.head, keys.first, keys.count, tile, allowed))
        forbid(s.d, keys.count, allowed);
    if (keys.next++ % GUESSES == 0)
        keys.whole = count_lockable<true>(keys.count, s.d, r.base + row, r.radius + row) > full;
    if (keys.whole) {
        backward_block<FORM, SYMMETRIC>(p, keys, r, sums, tile, s, own);
        return;
    }
    settle_keys(p, keys, r, *own.pairs);
    const int64_t before = own.pairs->all;
    list_lockable<true>(*own.pairs, keys.count, s.d, row, r.base + row, r.radius + row);
    keys.whole = own.pairs->all - before > full;
    keys.sifter.few = keys.sifter.finite && own.pairs->all - before <= sieved_best(keys.count) / 2;
    if (enough()) backward_pairs<FORM, SYMMETRIC>(plan, keys, r, sums, s, own);
}

template <int FORM, bool SYMMETRIC>
static void backward_task(const Plan& plan, int64_t batch, int64_t head, int64_t part, int64_t task, float* memory) {
    const SyncattnProblem& p = *plan.p;
    const int64_t m = p.freq_dim, dim = p.value_dim, wide = padded_dim(p), head_number = batch * p.heads + head;
    const Receivers& r = plan.receivers[head_number];
    const PartSums& sums = plan.sums[part * p.batch * p.heads + head_number];
    const int64_t first = task * CONTEXTS, tiles = (p.keys + ROWS - 1) / ROWS;
    const int64_t contexts = least(CONTEXTS, tiles - first);
    BackwardScratch s;
    backward_scratch(p, memory, s);
    Keys context[CONTEXTS];
    for (int64_t c = 0; c < contexts; ++c) backward_begin(plan, batch, head, first + c, context[c], s.of[c]);
    for (;;) {  // the lowest tile of receivers that any of them has to do, by all that have
        int64_t tile = INT64_MAX;
        for (int64_t c = 0; c < contexts; ++c)
            if (context[c].next < context[c].tiles) tile = least(tile, s.of[c].found[context[c].next]);
        if (tile == INT64_MAX) break;
        for (int64_t c = 0; c < contexts; ++c)
            if (context[c].next < context[c].tiles && s.of[c].found[context[c].next] == tile)
                backward_step<FORM, SYMMETRIC>(plan, r, sums, context[c], s, s.of[c]);
    }
    for (int64_t c = 0; c < contexts; ++c) {
        const Keys& keys = context[c];
        const KeyScratch& own = s.of[c];
        backward_pairs<FORM, SYMMETRIC>(plan, keys, r, sums, s, own);
        const int64_t at = head_number * p.keys + keys.first;
        for (int64_t x = 0; x < keys.count * dim; x += LANES) {
            float* to = p.grad_value + at * dim + x;
            store(to, SYMMETRIC ? load(to) + load(own.grad_value + x) : load(own.grad_value + x));
        }
        for (int64_t j = 0; j < keys.count; ++j) {
            const float sum = m < wide ? own.grad_send[j * wide + m] : total(load(own.key_sums + j * LANES));
            for (int64_t k = 0; k < m; ++k)
                p.grad_send[(at + j) * m + k] = 2 * (own.keys[j * wide + k] * sum - own.grad_send[j * wide + k]);
        }
    }
}

// A whole head of the symmetric form.
template <int FORM>
static void backward_symmetric(const Plan& plan, int64_t batch, int64_t head, float* memory) {
    const SyncattnProblem& p = *plan.p;
    const int64_t head_number = batch * p.heads + head, dim = p.value_dim;
    const float* gradient = plan.receivers[head_number].gradient;
    float* to = p.grad_value + head_number * p.keys * dim;
    const float of_all = own_strength<FORM>(p);
    for (int64_t i = 0; i < p.keys; ++i) {
        const float own = p.text && texts_of(p, batch)[i] < 0 ? 0 : of_all;
        for (int64_t c = i * dim; c < (i + 1) * dim; c += LANES) store(to + c, own ? load(gradient + c) * own : vf{});
    }
    for (int64_t task = 0; task < plan.row_tasks; ++task) backward_task<FORM, true>(plan, batch, head, 0, task, memory);
}

// Every `parts`-th task of keys, from `part` on: early keys have more rows than late ones in causal calls. Or, where
// many texts stand in a row, as many that stand side by side, which have the receivers of few texts.
static void backward_keys(const Plan* plan, int64_t batch, int64_t head, int64_t part, float* memory) {
    const SyncattnProblem& p = *plan->p;
    with_form(p, [&](auto form) {
        if (p.symmetric) return backward_symmetric<decltype(form)::value>(*plan, batch, head, memory);
        const bool in_a_row = plan->parts_in_a_row;
        const int64_t first = in_a_row ? first_task_of(*plan, part) : part;
        const int64_t last = in_a_row ? first_task_of(*plan, part + 1) : plan->row_tasks;
        for (int64_t task = first; task < last; task += in_a_row ? 1 : plan->parts)
            backward_task<decltype(form)::value, false>(*plan, batch, head, part, task, memory);
    });
}

constexpr Instance instance(const char* name) {
    return Instance{name, ROWS * CONTEXTS, scratch_floats, pack, LANES > 4 ? sieve_tile : nullptr, forward_rows, backward_prepare,
                    backward_keys, ROWS, count_floats, count_rows};
}

}  // namespace SYNCATTN_ISA
