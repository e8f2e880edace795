// The C interface of the kernel: one call's tensors as raw pointers. library.py mirrors this struct field
// by field, and checks its size by `syncattn_problem_bytes`.
#pragma once
#include <stdint.h>

extern "C" {

// Every tensor is float32, contiguous in the order given, unless strides are given (in elements, 0 where the
// dimension is broadcast). The tokens of one head are contiguous always, its frequencies and values as well: a cache
// with room for more tokens has strides of its own from head to head. B batch, H heads, N queries, M keys, m frequency coordinates, d value columns.
typedef struct {
    int64_t batch, heads, send_heads, value_heads;  // the numbers of send and value heads divide heads
    int64_t queries, keys, freq_dim, value_dim;     // value_dim is a multiple of 16
    const float* receive;                           // (B, H, N, m)
    const float* send;                              // (B, Hs, M, m)
    int64_t send_strides[2];                        // of batch, head
    const float* value;                             // (B, Hv, M, d)
    int64_t value_strides[2];                       // of batch, head
    const float* coupling;                          // kappa
    int64_t coupling_strides[3];                    // of batch, head, query
    const float* bandwidth;                         // alpha (H)
    const uint8_t* mask;                            // 1 = may attend; null: all may
    int64_t mask_strides[4];                        // of batch, head, query, key
    const int32_t* receive_index;                   // (B, H, N): where each row stood before it was sorted, or null
    const int32_t* send_index;                      // (B, H, M): the same of the senders (then Hs = Hv = H), or null
    const int32_t* receive_place;                   // (B, H, N): where the senders have each receiver's own token, in
                                                    // an order without self_coupling; else null
    const int32_t* text;                            // (B or 1, M): which text each sender is of, the receivers being
                                                    // the last; negative: none; null: there is one. Never with an order
    int64_t text_stride;                            // of batch
    int32_t is_causal, self_coupling, nearest;      // as the operator has them
    int32_t symmetric;  // receive == send, one kappa a head, the absolute frame, no mask, order or dropout: S_ij = S_ji
    int32_t power;      // 1 or 2
    float edge, eps;
    int32_t dropout;                                // whether pairs are dropped
    uint32_t dropout_threshold;                     // those whose hash is below this
    float dropout_scale;                            // 1 / (1 - p)
    uint64_t seed;
    // What the forward leaves for the backward.
    float* out;        // (B, H, N, d)
    float* row_sum;    // (B, H, N): Z = sum_j W_ij
    float* base;       // (B, H, N): D of the nearest allowed sender; nearest frame only
    int32_t* nearest_sender;  // (B, H, N): where it stands in `send`; nearest frame only
    // The backward's.
    const float* grad_out;     // (B, H, N, d)
    const float* grad_base;    // (B, H, N): of D of the nearest sender, where it was asked for; else null
    float* grad_receive;       // (B, H, N, m)
    float* grad_send;          // (B, H, M, m): of every query head
    float* grad_value;         // (B, H, M, d): of every query head
    float* grad_coupling;      // (B, H, N)
    double* grad_bandwidth;    // (B, H)
} SyncattnProblem;

// What counting takes and gives besides: which pairs lock, nothing of what they exchange.
typedef struct {
    const float* radius;      // (B, H, N): rho^2
    float slack;              // pairs are in doubt within this share of rho^2 and of their frame's D
    float farthest;           // no pair that may attend is as far, none that may not is nearer
    int64_t* locked;          // (B, H, N): how many are not in doubt
    int64_t room;             // for pairs in doubt
    int64_t* doubtful_count;  // of all of them, more than there is room for if it comes to that
    int32_t* doubtful;        // (room, 3): number of the batch's head, row, sender
} SyncattnCount;

// The frequencies (M, m) and the values (M, d) of the senders that a query head listens to.
static inline const float* send_of(const SyncattnProblem* p, int64_t batch, int64_t head) {
    return p->send + batch * p->send_strides[0] + head / (p->heads / p->send_heads) * p->send_strides[1];
}

static inline const float* value_of(const SyncattnProblem* p, int64_t batch, int64_t head) {
    return p->value + batch * p->value_strides[0] + head / (p->heads / p->value_heads) * p->value_strides[1];
}

}
