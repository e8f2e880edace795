// What the backward's blocks need of the receivers, their lanes: tables made before it, and which of them each key
// meets.
#pragma once
#include "block.h"

namespace SYNCATTN_ISA {

INLINE int64_t padded_dim(const SyncattnProblem& p) { return (p.freq_dim + 15) / 16 * 16; }
INLINE int64_t extended_dim(const SyncattnProblem& p) { return (p.freq_dim + 2 + 15) / 16 * 16; }

// Fills one tile of the tables of receivers.
static void backward_prepare(const Plan* plan, int64_t batch, int64_t head, int64_t tile) {
    const SyncattnProblem& p = *plan->p;
    const int64_t head_number = batch * p.heads + head, wide = extended_dim(p), dim = p.value_dim;
    const Receivers& r = plan->receivers[head_number];
    const int64_t first = tile * KEYS, valid = least(KEYS, p.queries - first), row = head_number * p.queries + first;
    for (int64_t i = 0; i < KEYS; i += LANES) {
        if (i >= valid || (i && p.coupling_strides[2] == 0)) {
            memcpy(r.row_term + first + i, r.row_term + first, sizeof(vf));
            memcpy(r.radius + first + i, r.radius + first, sizeof(vf));
        } else {
            load_coupling(p, batch, head, first + i, r.row_term + first + i, r.radius + first + i);
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
        const float* value = value_of(&p, batch, head) + first * dim;
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
    const int32_t* text = p.text ? texts_of(p, batch) : nullptr;
    const bool several = text && !are_one_text(text + key, count, text + offset + start, valid);
    if (p.symmetric) {  // each pair once, from the earlier token's row, as in the forward
        if (start > key + count - 1 && valid == KEYS && !several) return false;
        for (int64_t j = 0; j < count; ++j) allowed[j] = bits_below(valid) & ~bits_below(key + j - start + 1);
        if (several) keep_own_text(text + key, count, text + offset + start, valid, allowed);
        return true;
    }
    const bool sorted = p.send_index != nullptr;
    const bool crosses_diagonal = p.is_causal && key + count - 1 > start + offset;
    const int32_t* place = p.receive_place ? p.receive_place + head_number * p.queries + start : nullptr;
    bool meets_itself = !p.self_coupling && !place && key <= start + valid - 1 + offset && key + count > start + offset;
    for (int64_t i = 0; place && i < valid; ++i) meets_itself |= place[i] >= key && place[i] < key + count;
    if (!crosses_diagonal && !meets_itself && !p.mask && !several && valid == KEYS) return false;
    for (int64_t j = 0; j < count; ++j) {
        const int64_t own = key + j - offset - start;  // the lane of the receiver that this key is
        allowed[j] = bits_below(valid);
        if (crosses_diagonal) allowed[j] &= ~bits_below(own);
        if (meets_itself && !place && own >= 0 && own < KEYS) allowed[j] &= ~(1ull << own);
    }
    if (several) keep_own_text(text + key, count, text + offset + start, valid, allowed);
    for (int64_t i = 0; meets_itself && place && i < valid; ++i)
        if (place[i] >= key && place[i] < key + count) allowed[place[i] - key] &= ~(1ull << i);
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

}  // namespace SYNCATTN_ISA
