// The backward pass: tiles of keys outside, and all receivers that they can lock to as the lanes of blocks inside;
// everything is recomputed. The gradients of send and value belong to one task each; those of the receivers are
// summed over `parts` of the keys. In the forward's terms, rows are keys here and keys are receivers.
//
//   dW = dO' v - offset     dO' = dO / (Z + eps), offset = <dO', out>
//   dF = dW dW/dF           exactly 0 where not locked
//   dD = dF (-2 alpha J^2 - 1 / kappa^2)
//   dw^r = sum_j 2 dD (w^r - w^s)     dw^s = -sum_i 2 dD (w^r - w^s)     dv = sum_i W dO'
#pragma once
#include "forward.h"

namespace SYNCATTN_ISA {

// As FULL_SHARE, of the backward.
constexpr float BACKWARD_FULL_SHARE = 0.3f;

INLINE int64_t padded_dim(const SyncattnProblem& p) { return (p.freq_dim + 15) / 16 * 16; }
INLINE int64_t extended_dim(const SyncattnProblem& p) { return (p.freq_dim + 2 + 15) / 16 * 16; }

// What a tile of keys gathers on its way through the receivers.
struct KeyScratch {
    float *grad_value, *grad_send;      // (ROWS, d), (ROWS, wide)
    float *keys, *minus_keys, *centre;  // (ROWS, wide), about the centre; (wide)
    float *key_sums, *distance;         // (ROWS, LANES): of dD; (tiles)
    int32_t* found;
    Pairs* pairs;
};

struct BackwardScratch {
    float *d, *weight, *grad;        // (ROWS, KEYS): D, W, and dO' v, then dD
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
    to.d = take(ROWS * KEYS), to.weight = take(ROWS * KEYS), to.grad = take(ROWS * KEYS);
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

// Fills one tile of the tables of receivers.
static void backward_prepare(const Plan* plan, int64_t batch, int64_t head, int64_t tile) {
    const SyncattnProblem& p = *plan->p;
    const int64_t head_number = batch * p.heads + head, wide = extended_dim(p), dim = p.value_dim;
    const Receivers& r = plan->receivers[head_number];
    const int64_t first = tile * KEYS, valid = least(KEYS, p.queries - first), row = head_number * p.queries + first;
    for (int64_t i = 0; i < KEYS; i += LANES) {
        if (i >= valid || (i && p.coupling_strides[2] == 0)) {
            memcpy(r.inverse_square + first + i, r.inverse_square + first, sizeof(vf));
            memcpy(r.radius + first + i, r.radius + first, sizeof(vf));
        } else {
            load_strength(p, batch, head, first + i, r.inverse_square + first + i, r.radius + first + i);
        }
    }
    float limit = -__builtin_inff();
    for (int64_t i = 0; i < valid; ++i) {
        const float sum = p.row_sum[row + i], scale = sum == 0 ? 1 : 1 / (sum + p.eps);
        const float *grad = p.grad_out + (row + i) * dim, *out = p.out + (row + i) * dim;
        float* to = r.gradient + (first + i) * dim;
        vf product{};
        for (int64_t c = 0; c < dim; c += LANES) {
            const vf g = load(grad + c) * scale;
            product += g * load(out + c);
            store(to + c, g);
        }
        r.offset[first + i] = total(product);
        r.base[first + i] = p.nearest ? p.base[row + i] : 0;
        r.word[first + i] = p.dropout ? row_word(p, batch, head, first + i) : 0;
        limit = most(limit, r.base[first + i] + r.radius[first + i]);
        for (int64_t k = 0; k < wide; ++k)  // a 1 after the frequency sums up what multiplies it
            r.frequency[(first + i) * wide + k] =
                k < p.freq_dim ? p.receive[(row + i) * p.freq_dim + k] : k == p.freq_dim ? 1 : 0;
    }
    for (int64_t i = valid; i < KEYS; ++i) r.offset[first + i] = r.base[first + i] = 0, r.word[first + i] = 0;
    if (p.symmetric) {
        const float* value =
            p.value + ((batch * p.value_heads + head / (p.heads / p.value_heads)) * p.keys + first) * dim;
        float* transposed = r.value_t + tile * dim * KEYS;
        for (int64_t c = 0; c < dim; ++c)
            for (int64_t i = 0; i < KEYS; ++i) transposed[c * KEYS + i] = i < valid ? value[i * dim + c] : 0;
    }
    float* transposed = r.gradient_t + tile * dim * KEYS;
    for (int64_t c = 0; c < dim; ++c)
        for (int64_t i = 0; i < KEYS; ++i) transposed[c * KEYS + i] = i < valid ? r.gradient[(first + i) * dim + c] : 0;
    r.lanes.boxes.limit[tile] = limit;
}

// The pairs of a tile of keys with a tile of receivers that may attend. Returns false if all of them may; else
// `allowed` holds each key's bits.
static bool restricted_keys(const SyncattnProblem& p, int64_t batch, int64_t head, int64_t key, int64_t count,
                            int64_t tile, uint64_t* allowed) {
    const int64_t start = tile * KEYS, valid = least(KEYS, p.queries - start), offset = p.keys - p.queries;
    const int64_t head_number = batch * p.heads + head;
    if (p.symmetric) {  // each pair once, from the earlier token's row, as in the forward
        if (start > key + count - 1 && valid == KEYS) return false;
        for (int64_t j = 0; j < count; ++j) allowed[j] = bits_below(valid) & ~bits_below(key + j - start + 1);
        return true;
    }
    const bool sorted = p.send_index != nullptr;
    const bool crosses_diagonal = p.is_causal && key + count - 1 > start + offset;
    const bool meets_itself =
        !p.self_coupling && (sorted || (key <= start + valid - 1 + offset && key + count > start + offset));
    if (!crosses_diagonal && !meets_itself && !p.mask && valid == KEYS) return false;
    for (int64_t j = 0; j < count; ++j) {
        const int64_t own = key + j - offset - start;  // the lane of the receiver that this key is
        allowed[j] = bits_below(valid);
        if (crosses_diagonal) allowed[j] &= ~bits_below(own);
        if (meets_itself && !sorted && own >= 0 && own < KEYS) allowed[j] &= ~(1ull << own);
    }
    if (meets_itself && sorted)
        for (int64_t i = 0; i < valid; ++i) {
            const int64_t own = p.receive_index[head_number * p.queries + start + i] + offset;
            for (int64_t j = 0; j < count; ++j)
                if (p.send_index[head_number * p.keys + key + j] == own) allowed[j] &= ~(1ull << i);
        }
    if (!p.mask) return true;
    const int64_t* s = p.mask_strides;
    const uint8_t* mask = p.mask + batch * s[0] + head * s[1];
    for (int64_t j = 0; j < count; ++j) {
        const int64_t number = sorted ? p.send_index[head_number * p.keys + key + j] : key + j;
        if (s[2] == 0 && !mask[number * s[3]]) allowed[j] = 0;
    }
    if (s[2] == 0) return true;
    for (int64_t i = 0; i < valid; ++i) {
        const int64_t query = sorted ? p.receive_index[head_number * p.queries + start + i] : start + i;
        for (int64_t j = 0; j < count; ++j) {
            const int64_t number = sorted ? p.send_index[head_number * p.keys + key + j] : key + j;
            if (!mask[query * s[2] + number * s[3]]) allowed[j] &= ~(1ull << i);
        }
    }
    return true;
}

// A tile of keys on its way through all receivers.
struct Keys {
    int64_t batch, head, first, count;
    const float *send, *value;           // (count, m), (count, d)
    const float* values;                 // (N, d): all of them; symmetric form only, as the next
    float* grad_values;                  // (N, d)
    float rate, negative_twice_alpha;
    uint32_t number[ROWS];       // as the caller counts them
    int64_t tiles, next;         // of the receivers' tiles that it can lock to
    bool whole;                  // whether the last block was worth evaluating whole
};

// From dO' v in `grad`, and D, to dD in `grad` and W in `weight`. The sums over the keys, by receiver, go to
// dd_sums and fx_sums (KEYS); those over receivers to key_sums (LANES of each
// key), unless a product sees to it.
template <int FORM, bool SYMMETRIC>
static void through_block(const SyncattnProblem& p, const Keys& keys, const Receivers& r, int64_t tile, const float* d,
                          float* grad, float* weight, float* key_sums, float* dd_sums, float* fx_sums,
                          double* bandwidth) {
    const int64_t first = tile * KEYS;
    const bool in_product = p.freq_dim < padded_dim(p);
    vf all_kernel{};
    for (int64_t v = 0; v < KEYS; v += LANES) {
        const vf base = load(r.base + first + v), inverse_square = load(r.inverse_square + first + v);
        const vf offset = load(r.offset + first + v);
        vu word;
        memcpy(&word, r.word + first + v, sizeof word);
        vf sum_d{}, sum_x{};
        for (int64_t j = 0; j < keys.count; ++j) {
            const int64_t at = j * KEYS + v;
            vf kernel;
            const vf x = load(d + at) - base;
            const vf margin = margin_of(x, keys.rate, inverse_square, &kernel);
            vf w = weight_of<FORM>(margin, p.edge), product = load(grad + at);
            if (p.dropout) {
                const uint32_t kept = kept_bits(p, word, vu{} + keys.number[j]);
                w = where(kept, w * p.dropout_scale, vf{});
                product = where(kept, product * p.dropout_scale, vf{});
            }
            store(weight + at, w);
            const vf through = through_weight<FORM>(
                SYMMETRIC ? product - (offset + r.offset[keys.first + j]) : product - offset, margin, p.edge);
            const vf to_d = through * (kernel * keys.negative_twice_alpha - inverse_square);
            store(grad + at, to_d);
            const vf scaled = through * x;  // x is FAR_DETUNING where a pair may not attend, and `through` 0
            sum_x += scaled;
            sum_d += to_d;
            all_kernel += scaled * kernel;
            if (!in_product) store(key_sums + j * LANES, load(key_sums + j * LANES) + to_d);
        }
        store(dd_sums + v, sum_d);
        store(fx_sums + v, load(fx_sums + v) + sum_x);
    }
    *bandwidth += (double)total(all_kernel);
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

// The gradients through the pairs that wait, and forgets them.
template <int FORM, bool SYMMETRIC>
static void backward_pairs(const Plan& plan, const Keys& keys, const Receivers& r, const PartSums& sums,
                           const BackwardScratch& s, const KeyScratch& own) {
    const SyncattnProblem& p = *plan.p;
    const int64_t m = p.freq_dim, wide = padded_dim(p), extended = extended_dim(p), dim = p.value_dim;
    Pairs& pairs = *own.pairs;
    vf all_kernel{};
    for (int64_t j = 0; j < keys.count; ++j) {
        const int64_t count = pairs.length[j];
        if (count == 0) continue;
        float* weight = pairs.detuning[j];  // in place of D
        int32_t* row = pairs.key[j];
        store(weight + count, vf{} + FAR_DETUNING);  // what fills the last vector does not lock
        memset(row + count, 0, sizeof(vi));
        dots<false>(keys.value + j * dim, r.gradient, row, count, dim, s.pair_grad);
        if constexpr (SYMMETRIC)
            dots<true>(r.gradient + (keys.first + j) * dim, keys.values, row, count, dim, s.pair_grad);
        for (int64_t k = 0; k < count; k += LANES) {
            vi at;
            memcpy(&at, row + k, sizeof at);
            const vf inverse_square = gather(r.inverse_square, at), x = load(weight + k);
            vf kernel, product = load(s.pair_grad + k);
            const vf margin = margin_of(x, keys.rate, inverse_square, &kernel);
            vf w = weight_of<FORM>(margin, p.edge);
            if (p.dropout) {
                const vu word = (vu)gather((const float*)r.word, at);
                const uint32_t kept = kept_bits(p, word, vu{} + keys.number[j]);
                w = where(kept, w * p.dropout_scale, vf{});
                product = where(kept, product * p.dropout_scale, vf{});
            }
            store(weight + k, w);
            const vf through = through_weight<FORM>(
                SYMMETRIC ? product - (gather(r.offset, at) + r.offset[keys.first + j]) : product - gather(r.offset, at),
                margin, p.edge);
            const vf scaled = through * x;
            all_kernel += scaled * kernel;
            store(s.pair_scaled + k, scaled);
            store(s.pair_grad + k, through * (kernel * keys.negative_twice_alpha - inverse_square));
        }
        int64_t c = 0;
        for (; c + 4 * LANES <= dim; c += 4 * LANES)
            mix_pairs<4>(own.grad_value + j * dim + c, weight, row, count, r.gradient + c, dim);
        for (; c < dim; c += LANES)
            mix_pairs<1>(own.grad_value + j * dim + c, weight, row, count, r.gradient + c, dim);
        if constexpr (SYMMETRIC)
            spread(keys.grad_values, weight, row, count, r.gradient + (keys.first + j) * dim, dim);
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
    *sums.bandwidth += (double)total(all_kernel);
    forget(pairs);
}

// The gradients through a block whose D is in s.d.
template <int FORM, bool SYMMETRIC>
static void backward_block(const SyncattnProblem& p, const Keys& keys, const Receivers& r, const PartSums& sums,
                           int64_t tile, const BackwardScratch& s, const KeyScratch& own) {
    const int64_t m = p.freq_dim, wide = padded_dim(p), extended = extended_dim(p), dim = p.value_dim;
    const int64_t first = tile * KEYS;
    const int64_t valid = least(KEYS, p.queries - first);
    float* by_lane = sums.by_lane + tile * (m + 2) * KEYS;
    float dd_sums[KEYS];
    gemm(s.grad, KEYS, keys.value, dim, 1, r.gradient_t + tile * dim * KEYS, KEYS, keys.count, KEYS, dim, false);
    if constexpr (SYMMETRIC)
        gemm(s.grad, KEYS, r.gradient + keys.first * dim, dim, 1, r.value_t + tile * dim * KEYS, KEYS, keys.count, KEYS,
             dim, true);
    through_block<FORM, SYMMETRIC>(p, keys, r, tile, s.d, s.grad, s.weight, own.key_sums, dd_sums, by_lane + (m + 1) * KEYS,
                        sums.bandwidth);
    gemm(own.grad_value, dim, s.weight, KEYS, 1, r.gradient + first * dim, dim, keys.count, dim, valid, true);
    if constexpr (SYMMETRIC)
        gemm(keys.grad_values + first * dim, dim, s.weight, 1, KEYS, r.gradient + keys.first * dim, dim, valid, dim,
             keys.count, true);
    for (int64_t i = 0; i < valid; ++i)
        for (int64_t k = 0; k < wide; k += LANES)
            store(s.receivers + i * wide + k, load(r.frequency + (first + i) * extended + k) - load(own.centre + k));
    // where there is room, the 1 after the frequency makes this sum up dD, too
    gemm(own.grad_send, wide, s.grad, KEYS, 1, s.receivers, wide, keys.count, wide, valid, true);
    gemm(by_lane, KEYS, own.minus_keys, 1, wide, s.grad, KEYS, m, KEYS, keys.count, true);
    const float* packed = r.lanes.packed + tile * m * KEYS;
    for (int64_t v = 0; v < KEYS; v += LANES) {
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
    const int64_t send_number = batch * p.send_heads + head / (p.heads / p.send_heads);
    const int64_t value_number = batch * p.value_heads + head / (p.heads / p.value_heads);
    keys.batch = batch, keys.head = head, keys.first = tile * ROWS, keys.count = least(ROWS, p.keys - tile * ROWS);
    keys.send = p.send + (send_number * p.keys + keys.first) * m;
    keys.value = p.value + (value_number * p.keys + keys.first) * dim;
    keys.values = p.value + value_number * p.keys * dim;
    keys.grad_values = p.grad_value + head_number * p.keys * dim;
    keys.rate = p.bandwidth[head] * RATE, keys.negative_twice_alpha = -2 * p.bandwidth[head];
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

    float low[MOST_COORDINATES], high[MOST_COORDINATES];
    box_of(keys.send, keys.count, m, ~0ull, low, high);
    const int64_t offset = p.keys - p.queries;
    int64_t first = p.is_causal && keys.first > offset ? (keys.first - offset) / KEYS : 0;
    if (p.symmetric) first = keys.first / KEYS;
    const Boxes& boxes = plan.receivers[head_number].lanes.boxes;
    keys.tiles = tiles_within(boxes, low, high, m, first, plan.receiver_tiles, 0, own.found, own.distance);
    keys.next = 0, keys.whole = false;
}

// One block, against the next tile of receivers.
template <int FORM, bool SYMMETRIC>
static void backward_step(const Plan& plan, const Receivers& r, const PartSums& sums, Keys& keys,
                          const BackwardScratch& s, const KeyScratch& own) {
    const SyncattnProblem& p = *plan.p;
    const int64_t tile = own.found[keys.next], row = tile * KEYS, m = p.freq_dim;
    const int64_t full = (int64_t)(BACKWARD_FULL_SHARE * (float)(keys.count * KEYS));
    uint64_t allowed[ROWS];
    detuning(keys.send, keys.count, m, r.lanes.packed + tile * m * KEYS, s.d);
    if (restricted_keys(p, keys.batch, keys.head, keys.first, keys.count, tile, allowed))
        forbid(s.d, keys.count, allowed);
    if (keys.next++ % GUESSES == 0)
        keys.whole = count_lockable<true>(keys.count, s.d, r.base + row, r.radius + row) > full;
    if (keys.whole) {
        backward_block<FORM, SYMMETRIC>(p, keys, r, sums, tile, s, own);
        return;
    }
    const int64_t before = own.pairs->all;
    list_lockable<true>(*own.pairs, keys.count, s.d, row, r.base + row, r.radius + row);
    keys.whole = own.pairs->all - before > full;
    if (own.pairs->all >= ENOUGH * keys.count || own.pairs->most > ROOM - KEYS)
        backward_pairs<FORM, SYMMETRIC>(plan, keys, r, sums, s, own);
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
    const float own = own_weight<FORM>(p);
    for (int64_t c = 0; c < p.keys * dim; c += LANES) store(to + c, own ? load(gradient + c) * own : vf{});
    for (int64_t task = 0; task < plan.row_tasks; ++task) backward_task<FORM, true>(plan, batch, head, 0, task, memory);
}

// Every `parts`-th task of keys, from `part` on: early keys have more rows than late ones in causal calls.
static void backward_keys(const Plan* plan, int64_t batch, int64_t head, int64_t part, float* memory) {
    const SyncattnProblem& p = *plan->p;
    if (p.symmetric) {
        const auto form = p.edge > 0
                              ? (p.power == 2 ? backward_symmetric<SQUARED_EDGE> : backward_symmetric<PLAIN_EDGE>)
                              : (p.power == 2 ? backward_symmetric<SQUARED> : backward_symmetric<PLAIN>);
        return form(*plan, batch, head, memory);
    }
    const auto form = p.edge > 0
                          ? (p.power == 2 ? backward_task<SQUARED_EDGE, false> : backward_task<PLAIN_EDGE, false>)
                          : (p.power == 2 ? backward_task<SQUARED, false> : backward_task<PLAIN, false>);
    for (int64_t task = part; task < plan->row_tasks; task += plan->parts)
        form(*plan, batch, head, part, task, memory);
}

constexpr Instance instance(const char* name) {
    return Instance{name, ROWS * CONTEXTS, scratch_floats, pack, forward_rows, backward_prepare, backward_keys};
}

}  // namespace SYNCATTN_ISA
