// The order of a non-causal call's tokens: k-d order puts tokens of like frequency side by side, so that the boxes of
// tiles are small and most pairs of tiles are ruled out. It pays where frequencies have few coordinates or clusters.
#include <algorithm>
#include <utility>

#include "margin.h"
#include "plan.h"
#include "threads.h"

namespace {

using syncattn::Team;
using syncattn::Threads;

// Sorts the numbers of `count` tokens (., m): halves at the median of the widest coordinate, whole tiles each, until
// a tile is left.
void order(const float* tokens, int64_t m, int32_t* number, int64_t count, int64_t tile) {
    if (count <= tile) return;
    int64_t widest = 0;
    float most = -1;
    for (int64_t k = 0; k < m; ++k) {
        float low = tokens[number[0] * m + k], high = low;
        for (int64_t i = 1; i < count; ++i) {
            const float x = tokens[number[i] * m + k];
            low = std::min(low, x), high = std::max(high, x);
        }
        if (high - low > most) most = high - low, widest = k;
    }
    if (!(most > 0)) return;  // all the same, or NaN: any order will do
    const int64_t half = (count / tile + 1) / 2 * tile;
    std::nth_element(number, number + half, number + count, [&](int32_t a, int32_t b) {
        const float x = tokens[a * m + widest], y = tokens[b * m + widest];
        return x < y || (x == y && a < b);
    });
    order(tokens, m, number, half, tile);
    order(tokens, m, number + half, count - half, tile);
}

// The boxes (., m, 2), lowest and highest, of up to SAMPLED tiles, spread over all.
constexpr int64_t SAMPLED = 32;
std::vector<float> boxes(const float* tokens, int64_t m, const std::vector<int32_t>& number, int64_t tile) {
    const int64_t count = (int64_t)number.size(), tiles = (count + tile - 1) / tile, taken = std::min(tiles, SAMPLED);
    std::vector<float> all;
    for (int64_t t = 0; t < taken; ++t) {
        const int64_t first = t * tiles / taken * tile, end = std::min(first + tile, count);
        for (int64_t k = 0; k < m; ++k) {
            float low = tokens[number[(size_t)first] * m + k], high = low;
            for (int64_t i = first; i < end; ++i) {
                const float x = tokens[number[(size_t)i] * m + k];
                low = std::min(low, x), high = std::max(high, x);
            }
            all.push_back(low), all.push_back(high);
        }
    }
    return all;
}

// The share of pairs of tiles that are within the radius.
double within(const std::vector<float>& a, const std::vector<float>& b, int64_t m, float radius) {
    int64_t found = 0;
    for (size_t i = 0; i < a.size(); i += (size_t)(2 * m))
        for (size_t j = 0; j < b.size(); j += (size_t)(2 * m)) {
            float apart = 0;
            for (size_t k = 0; k < (size_t)(2 * m); k += 2) {
                const float gap = std::max(std::max(a[i + k] - b[j + k + 1], b[j + k] - a[i + k + 1]), 0.0f);
                apart += gap * gap;
            }
            found += !(apart > radius);
        }
    return (double)found * (double)(4 * m * m) / ((double)a.size() * (double)b.size());
}

// The numbers of every few of `count` tokens.
std::vector<int32_t> sample(int64_t count, int64_t stride) {
    std::vector<int32_t> number;
    for (int64_t i = 0; i < count; i += stride) number.push_back((int32_t)i);
    return number;
}

// rho^2 of the row that listens farthest.
float farthest(const SyncattnProblem& p, int64_t batch, int64_t head) {
    const float* kappa = p.coupling + batch * p.coupling_strides[0] + head * p.coupling_strides[1];
    double most = 0;
    for (int64_t i = 0; i < (p.coupling_strides[2] ? p.queries : 1); ++i)
        most = std::max(most, (double)kappa[i * p.coupling_strides[2]]);
    return (float)locking_radius_square(most, (double)p.bandwidth[head]);
}

// The share of pairs that lock in a sample of 32 x 32.
double density(const float* receive, int64_t queries, const float* send, int64_t keys, int64_t m, float radius) {
    const int64_t rows = std::min<int64_t>(queries, 32), columns = std::min<int64_t>(keys, 32);
    int64_t locked = 0;
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) {
            const float *a = receive + i * queries / rows * m, *b = send + j * keys / columns * m;
            float apart = 0;
            for (int64_t k = 0; k < m; ++k) apart += (a[k] - b[k]) * (a[k] - b[k]);
            locked += !(apart > radius);
        }
    return (double)locked / (double)(rows * columns);
}

}  // namespace

// Decides whether to order the tokens, and if so writes each head's order of receivers (B, H, N) and senders (B, H, M)
// and sets *ordered to 1, else to 0. It pays if it spares a fifth of the pairs of tiles, by an estimate: a sample of
// an eighth of the tokens is ordered, down to tiles of an eighth. Where more than half of the pairs lock, nothing can
// be spared. Returns 0, or 1 if memory ran out.
extern "C" __attribute__((visibility("default"))) int syncattn_order(const SyncattnProblem* problem, int count, Team team,
                                                                     int32_t* receive_order, int32_t* send_order,
                                                                     int32_t* ordered) {
    constexpr int64_t EIGHTH = 8;
    constexpr double WORTHWHILE = 0.8;
    const SyncattnProblem& p = *problem;
    const int64_t m = p.freq_dim, heads = p.batch * p.heads;
    const auto tokens_of = [&](int64_t h) {
        return std::pair(p.receive + h * p.queries * m, send_of(&p, h / p.heads, h % p.heads));
    };
    try {
        std::vector<double> as_they_stand((size_t)heads, 1.0), in_order((size_t)heads, 1.0);
        syncattn::for_each_task(heads, 1, Threads{count, team}, 0, [&](int64_t h, float*) {
            const auto [receive, send] = tokens_of(h);
            const float radius = farthest(p, h / p.heads, h % p.heads);
            if (density(receive, p.queries, send, p.keys, m, radius) > 0.5) return;
            as_they_stand[(size_t)h] = within(boxes(receive, m, sample(p.queries, 1), ROWS),
                                              boxes(send, m, sample(p.keys, 1), KEYS), m, radius);
            auto rows = sample(p.queries, EIGHTH), keys = sample(p.keys, EIGHTH);
            order(receive, m, rows.data(), (int64_t)rows.size(), ROWS / EIGHTH);
            if (receive == send) keys = rows;
            else order(send, m, keys.data(), (int64_t)keys.size(), KEYS / EIGHTH);
            in_order[(size_t)h] =
                within(boxes(receive, m, rows, ROWS / EIGHTH), boxes(send, m, keys, KEYS / EIGHTH), m, radius);
        });
        double before = 0, after = 0;
        for (int64_t h = 0; h < heads; ++h) before += as_they_stand[(size_t)h], after += in_order[(size_t)h];
        *ordered = after <= WORTHWHILE * before;
        if (!*ordered) return 0;
        syncattn::for_each_task(heads, 1, Threads{count, team}, 0, [&](int64_t h, float*) {
            const auto [receive, send] = tokens_of(h);
            int32_t *rows = receive_order + h * p.queries, *keys = send_order + h * p.keys;
            for (int64_t i = 0; i < p.queries; ++i) rows[i] = (int32_t)i;
            for (int64_t j = 0; j < p.keys; ++j) keys[j] = (int32_t)j;
            order(send, m, keys, p.keys, KEYS);
            // the symmetric form goes by positions: its two orders are one
            if (receive == send) std::copy(keys, keys + p.keys, rows);
            else order(receive, m, rows, p.queries, ROWS);
        });
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}
