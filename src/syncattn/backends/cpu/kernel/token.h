// One more token after a cached past: what there is to do between a layer's products, in one call. token.py mirrors
// these structs field by field, and checks their size by `syncattn_token_bytes`.
#pragma once
#include "problem.h"

extern "C" {

// Some heads, and the memory with room for more in which their tokens stand: (B, h, capacity, m) and (B, h, capacity,
// d), the tokens of one head contiguous.
typedef struct {
    SyncattnProblem problem;    // the call's options, sizes, and bandwidth; all else is filled in here
    const int64_t* heads;       // (h): which heads; null: all, in their order
    float* send;
    int64_t send_strides[2];    // of batch, head
    float* value;
    int64_t value_strides[2];
    int64_t filled;             // how many tokens stand there: the next one's place
    int64_t first;              // the first of them that is read
} SyncattnHeads;

// Of every head. Contiguous, float32 unless said otherwise.
typedef struct {
    int64_t batch, heads, freq_dim, value_dim, groups;
    SyncattnHeads* group;       // (groups)
    const float* content;       // (B, H, m)
    const float* slopes;        // (H): of heads that drift; null: content is what they listen with
    const float* directions;    // (H, m)
    float* emitted;             // (B, H, m): with slopes, where to write what the token emits
    const float* sent;          // (B, H, m): without, what it emits; with, what drifts to that, null: the content
    const uint8_t* delayed;     // (H): heads that send what the token before emitted; null: none
    const float* before;        // (B, H, m): that
    const float* value;         // (B, H, d)
    const float* coherence;     // (B, H): the length of the phases' sum; null: without an order parameter
    const float* coupling;      // (H): K
    const int64_t* count;       // (B): real tokens before this one, at least 1: its position, too
    float* out;                 // (B, H, d)
    float* nearest;             // (B, H): D of the nearest sender, in the nearest frame; null: nobody wants it
    const void* const* watched;    // memory that must hold what `known` does, one after the other
    const int64_t* watched_bytes;  // of each; the last is 0
    const uint8_t* known;
} SyncattnToken;

}
