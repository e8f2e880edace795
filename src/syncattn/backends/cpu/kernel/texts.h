// Several texts in one row: which tiles of a block's other side can hold tokens of its texts, and which pairs of
// a block are within one. Only blocks that more than one text touches look at pairs.
#pragma once
#include "plan.h"

namespace SYNCATTN_ISA {

// The texts of the M tokens of a batch's row; the receivers are the last N of them.
INLINE const int32_t* texts_of(const SyncattnProblem& p, int64_t batch) { return p.text + batch * p.text_stride; }

// Leaves of the tiles from `first` to `last` (not included) those that may hold a text of these `count` tokens.
static void narrow(const TileTexts& tiles, const int32_t* text, int64_t count, int64_t& first, int64_t& last) {
    int32_t low = INT32_MAX, high = -1;
    for (int64_t i = 0; i < count; ++i) {
        if (text[i] < 0) continue;
        low = text[i] < low ? text[i] : low;
        high = text[i] > high ? text[i] : high;
    }
    if (high < 0) {  // padding alone: it sees nobody
        last = first;
        return;
    }
    // the first tile up to which a text as high as the lowest stands, and the first from which on all are higher
    int64_t from = 0, to = tiles.count;
    for (int64_t end = tiles.count; from < end;) {
        const int64_t middle = (from + end) / 2;
        if (tiles.highest_so_far[middle] < low) from = middle + 1;
        else end = middle;
    }
    for (int64_t start = from; start < to;) {
        const int64_t middle = (start + to) / 2;
        if (tiles.lowest_to_come[middle] <= high) start = middle + 1;
        else to = middle;
    }
    first = from > first ? from : first;
    last = to < last ? to : last;
}

// Whether all of these tokens are of one text.
INLINE bool are_one_text(const int32_t* text, int64_t count, const int32_t* others, int64_t other_count) {
    const int32_t own = text[0];
    int32_t differ = 0;
    for (int64_t i = 1; i < count; ++i) differ |= text[i] ^ own;
    for (int64_t j = 0; j < other_count; ++j) differ |= others[j] ^ own;
    return differ == 0 && own >= 0;
}

// Takes from each token's bits those of other texts' tokens, and all if it is padding.
static void keep_own_text(const int32_t* text, int64_t count, const int32_t* others, int64_t other_count,
                          uint64_t* allowed) {
    uint64_t same = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (i == 0 || text[i] != text[i - 1]) {
            same = 0;
            for (int64_t j = 0; text[i] >= 0 && j < other_count; ++j) same |= (uint64_t)(others[j] == text[i]) << j;
        }
        allowed[i] &= same;
    }
}

}  // namespace SYNCATTN_ISA
