// One more token after a cached past. What is computed here is what PyTorch computes in the layer's long way, number
// by number: sums and products must not be contracted (setup.py says so to the compiler).
#include "token.h"

#include <cstring>
#include <new>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

extern "C" int syncattn_forward(const SyncattnProblem* problem, const char* name, int threads,
                                void (*team)(void (*)(void*), void*, unsigned, unsigned));

namespace {

constexpr double HIGHEST = 1e13;  // of a frequency, as backends/call.py has it
constexpr int CHANGED = 3, STRANGE = 4;

bool are_known(const SyncattnToken& t) {
    const uint8_t* known = t.known;
    for (int64_t k = 0; t.watched_bytes[k]; ++k) {
        if (memcmp(t.watched[k], known, (size_t)t.watched_bytes[k])) return false;
        known += t.watched_bytes[k];
    }
    return true;
}

// NaN fails.
bool all_finite(const float* x, int64_t n) {
    bool fine = true;
    for (int64_t k = 0; k < n; ++k) fine &= x[k] >= -HIGHEST && x[k] <= HIGHEST;
    return fine;
}

// kappa = K r, (B, H); false where one is not positive.
bool couple(const SyncattnToken& t, float* kappa) {
    bool fine = true;
    for (int64_t b = 0; b < t.batch; ++b)
        for (int64_t h = 0; h < t.heads; ++h) {
            float k = t.coupling[h];
            if (t.coherence) {
                float r = t.coherence[b * t.heads + h] / (float)(t.count[b] + 1);
                r = r > 1.0f ? 1.0f : r;
                k = r * k;
                k = k < 1e-6f ? 1e-6f : k;
            }
            kappa[b * t.heads + h] = k;
            fine &= k > 0;
        }
    return fine;
}

// Contents (B, H, m), and what their heads' drift adds at the token's position.
void drift(const SyncattnToken& t, const float* contents, float* moved) {
    const int64_t m = t.freq_dim;
    for (int64_t b = 0; b < t.batch; ++b)
        for (int64_t h = 0; h < t.heads; ++h) {
            const float by = t.slopes[h] * (float)t.count[b];
            const float *from = contents + (b * t.heads + h) * m, *direction = t.directions + h * m;
            float* to = moved + (b * t.heads + h) * m;
            for (int64_t k = 0; k < m; ++k) to[k] = from[k] + by * direction[k];
        }
}

int next_token(const SyncattnToken& t, const char* name, int threads,
               void (*team)(void (*)(void*), void*, unsigned, unsigned)) {
    if (!are_known(t)) return CHANGED;
    const int64_t m = t.freq_dim, d = t.value_dim, rows = t.batch * t.heads;
    for (int64_t b = 0; b < t.batch; ++b)
        if (t.count[b] < 1) return STRANGE;
    // kappa of all heads; then, of one group's, kappa, frequencies, row sums, frames and senders, results
    // and where the receivers' contents drifted to
    std::vector<float> memory((size_t)(rows * (5 + 2 * m + d)));
    float *kappa = memory.data(), *own_kappa = kappa + rows, *own_receive = own_kappa + rows;
    float *moved = own_receive + rows * m, *row_sum = moved + rows * m, *base = row_sum + rows, *own_out = base + rows;
    std::vector<int32_t> nearest((size_t)rows);
    const float *receive = t.content, *emitted = t.sent;
    if (t.slopes) {
        drift(t, t.sent ? t.sent : t.content, t.emitted);
        receive = emitted = t.emitted;
        if (t.sent) receive = moved, drift(t, t.content, moved);
    }
    if (!all_finite(receive, rows * m) || (emitted != receive && !all_finite(emitted, rows * m))) return STRANGE;
    if (!couple(t, kappa)) return STRANGE;
    for (int64_t g = 0; g < t.groups; ++g) {
        const SyncattnHeads& group = t.group[g];
        SyncattnProblem p = group.problem;
        const int64_t heads = p.heads;
        const bool whole = !group.heads;
        for (int64_t b = 0; b < t.batch; ++b)
            for (int64_t i = 0; i < heads; ++i) {
                const int64_t h = whole ? i : group.heads[i], at = b * t.heads + h, to = b * heads + i;
                const float* sent = (t.delayed && t.delayed[h] ? t.before : emitted) + at * m;
                memcpy(group.send + b * group.send_strides[0] + i * group.send_strides[1] + group.filled * m, sent,
                       sizeof(float) * (size_t)m);
                memcpy(group.value + b * group.value_strides[0] + i * group.value_strides[1] + group.filled * d,
                       t.value + at * d, sizeof(float) * (size_t)d);
                if (whole) continue;
                memcpy(own_receive + to * m, receive + at * m, sizeof(float) * (size_t)m);
                own_kappa[to] = kappa[at];
            }
        p.batch = t.batch, p.keys = group.filled + 1 - group.first;
        p.receive = whole ? receive : own_receive;
        p.coupling = whole ? kappa : own_kappa;
        p.coupling_strides[0] = heads, p.coupling_strides[1] = 1, p.coupling_strides[2] = 1;
        p.send = group.send + group.first * m, p.value = group.value + group.first * d;
        memcpy(p.send_strides, group.send_strides, sizeof p.send_strides);
        memcpy(p.value_strides, group.value_strides, sizeof p.value_strides);
        p.out = whole ? t.out : own_out, p.row_sum = row_sum;
        p.base = base, p.nearest_sender = nearest.data();
        const int failed = syncattn_forward(&p, name, threads, team);
        if (failed) return failed;
        for (int64_t b = 0; b < t.batch; ++b)
            for (int64_t i = 0; i < heads; ++i) {
                const int64_t at = b * t.heads + (whole ? i : group.heads[i]), from = b * heads + i;
                if (t.nearest) t.nearest[at] = base[from];
                if (!whole) memcpy(t.out + at * d, own_out + from * d, sizeof(float) * (size_t)d);
            }
    }
    return 0;
}

}  // namespace

// Writes the token behind its groups' others, which are not changed, and gives the layer's mixture for it. Returns
// as syncattn_forward, or 3 if what is watched has changed, or 4 where a frequency, a coupling or a count is none
// that can be computed with: the layer's long way has to say so.
EXPORT int syncattn_next_token(const SyncattnToken* token, const char* name, int threads,
                               void (*team)(void (*)(void*), void*, unsigned, unsigned)) {
    try {
        return next_token(*token, name, threads, team);
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

EXPORT int64_t syncattn_token_bytes() { return (int64_t)(sizeof(SyncattnToken) + sizeof(SyncattnHeads)); }
