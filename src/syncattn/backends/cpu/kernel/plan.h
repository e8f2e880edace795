// How a call is cut, and the tables that are made once for all of its blocks. Plain C structs: they are shared
// by library.cpp and the instances.
#pragma once
#include "problem.h"

constexpr int64_t ROWS = 24;   // of a block: four times the six that a micro-kernel holds in registers
constexpr int64_t KEYS = 64;   // of a block: what it needs of them fits the first-level cache
constexpr int64_t GROUP = 16;  // tiles in a group, which is ruled out as one

constexpr int64_t MOST_COORDINATES = 512;  // that frequencies may have

// Pairs that may not attend stand at this squared detuning, and absent senders at these frequencies: neither
// locks from there, and all arithmetic stays finite.
constexpr float FAR_DETUNING = 1e30f, FAR_FREQUENCY = 1e18f;

// Bounding boxes of consecutive tokens' frequencies: one for each tile, and one for each group of tiles.
// low and high are (m + 1, tiles rounded up to GROUP), group_low and group_high (m + 1, groups rounded up to GROUP);
// the last is the extent along `direction`: where contents drift, it tells tiles apart that no single coordinate does.
typedef struct {
    int64_t tiles, stride, groups, group_stride;
    float *low, *high, *group_low, *group_high;
    float* direction;  // (m), no longer than 1
    float *limit, *group_limit;  // added to the caller's limit on the distance; null: nothing is
} Boxes;

constexpr int64_t MOST_SIEVED = 128;  // coordinates of frequencies that are sieved
// From the centre to the farthest: in 16 bits, of which squares of 128 coordinates add up in 32, and in 8.
constexpr float MOST_STEPS = 2047, MOST_BYTE_STEPS = 127;

// A head's tokens in whole steps from their group's centre: sieve.h. packed is null where there are none.
typedef struct {
    int32_t* packed;  // (tiles, words, KEYS): minus the steps of two coordinates in a word, or of four
    int32_t* norm;    // (tiles, KEYS): half of the sum of their squares, less half of the square of what may lock
    float* scale;     // (groups): steps in 1; 0: not to be counted in steps
} Steps;
typedef struct {
    Steps fine, coarse;  // of 16 and of 8 bits
    float* centre;       // (groups, m)
} Sieve;

// One head's tokens as the lanes of blocks: KEYS of them in each tile.
typedef struct {
    Boxes boxes;
    float* packed;  // (tiles, m, KEYS): their frequencies; null: each is packed when it is needed
    Sieve sieve;
} Lanes;

// What the backward needs of one head's receivers, which are the lanes of its blocks. All filled up to whole tiles.
typedef struct {
    Lanes lanes;
    float* frequency;       // (N, m + 2 rounded up to 16): the frequency, then 1, then 0
    float* gradient;        // (N, d): dO' = dO / (Z + eps)
    float* gradient_t;      // (tiles, d, KEYS): the same, transposed
    float* value_t;         // (tiles, d, KEYS): the values, transposed; symmetric form only
    float* offset;          // (N): <dO', out>
    float* base;            // (N): D of the nearest allowed sender; 0 in the absolute frame
    float* radius;          // (N): an upper bound of rho^2
    float* row_term;        // (N): margin.h
    uint32_t* word;         // (N): the row's part of the dropout hash
} Receivers;

// Sums over a part of the keys, of one head's receivers: of all, or of those that stand in the tiles from `first` to
// `last` (not included), where the others are not to be touched.
typedef struct {
    int64_t first, last;
    float* by_lane;     // (tiles, m + 2, KEYS): of dD (w^r - w^s), of dD, and of dF x
    float* by_row;      // (N, m + 2 rounded up to 16): more of the same
    double* bandwidth;  // one number
} PartSums;

// The texts in tiles of KEYS tokens, where a row holds several. By what stands before and after each tile, so that
// tiles are found by halving; where texts do not rise along the row, too many are.
typedef struct {
    int64_t count;
    int32_t *highest_so_far, *lowest_to_come;  // (tiles): up to each, and from it on; padding left out
} TileTexts;

typedef struct {
    const SyncattnProblem* p;
    const Lanes* senders;        // (B * Hs); forward only
    const Receivers* receivers;  // (B * H); backward only
    const PartSums* sums;        // (parts, B * H); backward only
    const TileTexts* sender_texts;    // (B), as the next; null: there is one text
    const TileTexts* receiver_texts;  // backward only
    int64_t parts;               // of the keys
    bool parts_in_a_row;         // whether each has keys that stand side by side, or every so-many-th of their tasks
    int64_t row_tasks;           // of the instance's rows: of receivers, or of senders
    int64_t key_tiles;           // of KEYS senders
    int64_t receiver_tiles;      // of KEYS receivers
} Plan;

// The larger; NaN if one of them is, so that what it limits is looked at and shows.
static inline float most(float a, float b) { return a != a || b <= a ? a : b; }

// Where a part of the tasks begins, if each has those that stand side by side.
static inline int64_t first_task_of(const Plan& plan, int64_t part) { return part * plan.row_tasks / plan.parts; }

// What each instance offers. `scratch` is the thread's own, of scratch_floats.
typedef struct {
    const char* name;
    int64_t rows;  // that a task takes
    int64_t (*scratch_floats)(const SyncattnProblem*);
    void (*pack)(const Lanes*, int64_t tile, const float* tokens, int64_t count, int64_t m, uint64_t counted);
    void (*sieve)(const Lanes*, int64_t tile, int64_t m, const float* farthest);
    void (*forward_rows)(const Plan*, int64_t batch, int64_t head, int64_t row_tile, float* scratch);
    void (*backward_prepare)(const Plan*, int64_t batch, int64_t head, int64_t receiver_tile);
    void (*backward_keys)(const Plan*, int64_t batch, int64_t head, int64_t part, float* scratch);
    int64_t rows_counted;  // that a task of count_rows takes
    int64_t (*count_floats)(const SyncattnProblem*);
    void (*count_rows)(const Plan*, const SyncattnCount*, int64_t batch, int64_t head, int64_t row_tile, float* scratch);
} Instance;
