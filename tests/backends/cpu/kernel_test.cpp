// The kernel's own test: random problems of odd sizes with every option, on every instance that this machine runs,
// against the definition in double precision and plain loops. Tensors lie on the heap at their exact sizes and are
// filled with NaN before they are written, so that sanitizers see what goes too far. No torch, no Python.
// kernel_test [CASES [INSTANCE [FILE]]]: one instance alone; FILE gets all that it computed, as doubles.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <limits>
#include <string>
#include <vector>

#include "margin.h"
#include "token.h"

extern "C" {
int syncattn_forward(const SyncattnProblem*, const char* instance, int threads, void (*)(void (*)(void*), void*, unsigned, unsigned));
int syncattn_backward(const SyncattnProblem*, const char* instance, int threads, void (*)(void (*)(void*), void*, unsigned, unsigned));
int syncattn_count(const SyncattnProblem*, const SyncattnCount*, const char* instance, int threads, void (*)(void (*)(void*), void*, unsigned, unsigned));
int syncattn_next_token(const SyncattnToken*, const char* instance, int threads, void (*)(void (*)(void*), void*, unsigned, unsigned));
const char* syncattn_instance(int);
}

namespace {

using std::vector;

struct Random {
    uint64_t state;
    uint32_t next() {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return (uint32_t)(state >> 33);
    }
    int64_t below(int64_t n) { return next() % n; }
    bool coin() { return next() >> 5 & 1; }
    float uniform() { return (float)(next() & 0xFFFFFF) / 0x1000000; }
    float normal() {
        float sum = -6;
        for (int i = 0; i < 12; ++i) sum += uniform();
        return sum;
    }
};

uint32_t mix(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
}

vector<float> normals(Random& random, int64_t count) {
    vector<float> x(count);
    for (float& number : x) number = random.normal();
    return x;
}

// One problem with all of its memory.
struct Case {
    SyncattnProblem p{};
    vector<float> receive, send, value, coupling, bandwidth, grad_out, grad_base;
    vector<uint8_t> mask;
    vector<int32_t> text;
    // what the kernel writes
    vector<float> out, row_sum, base, grad_receive, grad_send, grad_value, grad_coupling;
    vector<int32_t> sender;
    vector<double> grad_bandwidth;

    int64_t rows() const { return p.batch * p.heads * p.queries; }
    double kappa(int64_t b, int64_t h, int64_t i) const {
        return coupling[b * p.coupling_strides[0] + h * p.coupling_strides[1] + i * p.coupling_strides[2]];
    }
    bool allowed(int64_t b, int64_t h, int64_t i, int64_t j) const {
        const int64_t own = i + p.keys - p.queries, *s = p.mask_strides;
        if (p.is_causal && j > own) return false;
        if (!p.self_coupling && j == own) return false;
        if (p.text && (text[b * p.text_stride + own] < 0 || text[b * p.text_stride + own] != text[b * p.text_stride + j]))
            return false;
        return !p.mask || mask[b * s[0] + h * s[1] + i * s[2] + j * s[3]];
    }
    const float* sent(int64_t b, int64_t h, int64_t j) const {
        return &send[((b * p.send_heads + h / (p.heads / p.send_heads)) * p.keys + j) * p.freq_dim];
    }
    const float* read(int64_t b, int64_t h, int64_t j) const {
        return &value[((b * p.value_heads + h / (p.heads / p.value_heads)) * p.keys + j) * p.value_dim];
    }
    const float* received(int64_t b, int64_t h, int64_t i) const {
        return &receive[((b * p.heads + h) * p.queries + i) * p.freq_dim];
    }
    double detuning(int64_t b, int64_t h, int64_t i, int64_t j) const {
        double sum = 0;
        for (int64_t k = 0; k < p.freq_dim; ++k) {
            const double apart = (double)received(b, h, i)[k] - sent(b, h, j)[k];
            sum += apart * apart;
        }
        return sum;
    }
    // The nearest allowed sender, the earlier on a tie, or -1.
    int64_t nearest(int64_t b, int64_t h, int64_t i, double* d) const {
        int64_t best = -1;
        *d = 0;
        for (int64_t j = 0; p.nearest && j < p.keys; ++j)
            if (allowed(b, h, i, j) && (best < 0 || detuning(b, h, i, j) < *d)) best = j, *d = detuning(b, h, i, j);
        return best;
    }
    // How near the row's pairs come to the locking edge, where gradients jump.
    double room(int64_t b, int64_t h, int64_t i) const {
        double base, least = 1;
        nearest(b, h, i, &base);
        for (int64_t j = 0; j < p.keys; ++j) {
            if (!allowed(b, h, i, j)) continue;
            const double x = detuning(b, h, i, j) - base, f = exp(-2.0 * bandwidth[h] * x) - x / pow(kappa(b, h, i), 2);
            if (fabs(f) < least) least = fabs(f);
        }
        return least;
    }
};

template <typename T>
void poison(vector<T>& memory, int64_t count) {
    memory = vector<T>();
    memory.reserve(count);
    memory.assign(count, std::numeric_limits<T>::has_quiet_NaN ? std::numeric_limits<T>::quiet_NaN() : (T)(1 << 30));
}

void make(Case& c, Random& random, int number) {
    static const int64_t lengths[] = {1, 2, 5, 23, 24, 25, 49, 63, 64, 65, 90, 130, 200};
    static const int64_t dims[] = {1, 2, 3, 4, 7, 8, 15, 16, 17, 33};
    SyncattnProblem& p = c.p;
    p.batch = 1 + random.below(2);
    p.heads = 1 << random.below(3);
    p.send_heads = random.coin() ? p.heads : 1;
    p.value_heads = random.coin() ? p.heads : 1;
    p.queries = lengths[random.below(13)];
    p.keys = lengths[random.below(13)];
    p.freq_dim = dims[random.below(10)];
    p.value_dim = 16 * (1 + random.below(number % 7 == 0 ? 9 : 3));
    p.power = 1 + random.below(2);
    p.edge = random.coin() ? 0.0f : 0.05f;
    p.eps = 1e-8f;
    p.nearest = random.coin();
    p.is_causal = p.keys >= p.queries && random.coin();
    p.self_coupling = p.keys < p.queries || random.coin();
    p.dropout = random.below(3) == 0;
    p.dropout_threshold = p.dropout ? 1000000000u : 0;
    p.dropout_scale = p.dropout ? (float)(1 / (1 - 1000000000.0 / 4294967296.0)) : 1;
    p.seed = ((uint64_t)random.next() << 31) ^ random.next();
    c.receive = normals(random, p.batch * p.heads * p.queries * p.freq_dim);
    c.send = normals(random, p.batch * p.send_heads * p.keys * p.freq_dim);
    c.value = normals(random, p.batch * p.value_heads * p.keys * p.value_dim);
    if (random.coin())  // along a drift: whole tiles are out of reach
        for (int side = 0; side < 2; ++side) {
            vector<float>& w = side ? c.send : c.receive;
            const int64_t tokens = side ? p.keys : p.queries;
            for (size_t t = 0; t < w.size() / p.freq_dim; ++t) w[t * p.freq_dim] += 0.2f * (t % tokens);
        }
    c.bandwidth.resize(p.heads);
    const float reach = random.coin() ? 0.6f : 3;  // few pairs or many
    for (float& alpha : c.bandwidth) alpha = (0.1f + random.uniform()) / (p.freq_dim * reach * reach);
    const bool by_query = p.edge > 0 || p.power == 1 || random.coin();
    const int64_t strides[] = {by_query ? p.heads * p.queries : 0, by_query ? p.queries : 1, by_query ? 1 : 0};
    for (int k = 0; k < 3; ++k) p.coupling_strides[k] = strides[k];
    c.coupling.resize(by_query ? c.rows() : p.heads);
    for (float& kappa : c.coupling) kappa = reach * sqrtf((float)p.freq_dim) * (1 + random.uniform());
    if (random.below(3) > 0) {
        const int64_t sizes[] = {p.batch, p.heads, p.queries, p.keys};
        int64_t count = 1;
        for (int k = 3; k >= 0; --k) {
            const bool broadcast = random.coin();
            p.mask_strides[k] = broadcast ? 0 : count;
            count *= broadcast ? 1 : sizes[k];
        }
        c.mask.resize(count);
        for (uint8_t& bit : c.mask) bit = random.below(4) > 0;
        p.mask = c.mask.data();
    }
    if (p.keys >= p.queries && random.below(3) == 0) {  // several texts, some padding; mostly in their order
        p.text_stride = random.coin() ? p.keys : 0;
        c.text.resize(p.text_stride ? p.batch * p.keys : p.keys);
        int32_t number = 0;
        for (int32_t& own : c.text) {
            number = random.below(20) == 0 ? (int32_t)random.below(9) : number + (random.below(25) == 0);
            own = random.below(30) == 0 ? -1 : number;
        }
        p.text = c.text.data();
    }
    for (int64_t b = 0; by_query && b < p.batch; ++b)
        for (int64_t h = 0; h < p.heads; ++h)
            for (int64_t i = 0; i < p.queries; ++i)
                for (int tries = 0; c.room(b, h, i) < 1e-3 && tries < 40; ++tries)
                    c.coupling[b * strides[0] + h * strides[1] + i * strides[2]] *= 1.013f;
    c.grad_out = normals(random, c.rows() * p.value_dim);
    p.send_strides[1] = p.keys * p.freq_dim, p.send_strides[0] = p.send_heads * p.send_strides[1];
    p.value_strides[1] = p.keys * p.value_dim, p.value_strides[0] = p.value_heads * p.value_strides[1];
    p.receive = c.receive.data(), p.send = c.send.data(), p.value = c.value.data();
    p.coupling = c.coupling.data(), p.bandwidth = c.bandwidth.data();
    p.grad_out = c.grad_out.data();
    if (!p.nearest || random.coin()) return;
    c.grad_base = normals(random, c.rows());
    p.grad_base = c.grad_base.data();
}

void clear(Case& c) {
    SyncattnProblem& p = c.p;
    poison(c.out, c.rows() * p.value_dim), poison(c.row_sum, c.rows());
    poison(c.base, p.nearest ? c.rows() : 0), poison(c.sender, p.nearest ? c.rows() : 0);
    poison(c.grad_receive, c.rows() * p.freq_dim), poison(c.grad_coupling, c.rows());
    poison(c.grad_send, p.batch * p.heads * p.keys * p.freq_dim);
    poison(c.grad_value, p.batch * p.heads * p.keys * p.value_dim);
    poison(c.grad_bandwidth, p.batch * p.heads);
    p.out = c.out.data(), p.row_sum = c.row_sum.data();
    p.base = c.base.data(), p.nearest_sender = c.sender.data();
    p.grad_receive = c.grad_receive.data(), p.grad_send = c.grad_send.data(), p.grad_value = c.grad_value.data();
    p.grad_coupling = c.grad_coupling.data(), p.grad_bandwidth = c.grad_bandwidth.data();
}

// What is wanted, and of each number the sum of the absolute values that it is a sum of: rounding is relative to it.
struct Sums {
    vector<double> sum, size;
    void resize(int64_t count) { sum.resize(count), size.resize(count); }
    void add(int64_t at, double term, double magnitude) { sum[at] += term, size[at] += fabs(magnitude); }
};
struct Answer {
    Sums out, receive, send, value, coupling, bandwidth;
};

Answer define(const Case& c) {
    const SyncattnProblem& p = c.p;
    Answer a;
    a.out.resize(c.rows() * p.value_dim), a.receive.resize(c.rows() * p.freq_dim), a.coupling.resize(c.rows());
    a.send.resize(p.batch * p.heads * p.keys * p.freq_dim), a.value.resize(p.batch * p.heads * p.keys * p.value_dim);
    a.bandwidth.resize(p.batch * p.heads);
    vector<double> strength(p.keys), kept(p.keys), slope(p.keys), x(p.keys), decay_square(p.keys);
    for (int64_t b = 0; b < p.batch; ++b)
        for (int64_t h = 0; h < p.heads; ++h)
            for (int64_t i = 0; i < p.queries; ++i) {
                const int64_t head = b * p.heads + h, row = head * p.queries + i;
                const double kappa = c.kappa(b, h, i), alpha = c.bandwidth[h];
                double base, sum = 0;
                const int64_t near = c.nearest(b, h, i, &base);
                const uint32_t word = mix(mix((uint32_t)(row ^ p.seed)) ^ (uint32_t)(((uint64_t)row >> 32) ^ (p.seed >> 32)));
                for (int64_t j = 0; j < p.keys; ++j) {
                    strength[j] = slope[j] = kept[j] = 0;
                    if (!c.allowed(b, h, i, j)) continue;
                    x[j] = c.detuning(b, h, i, j) - base, decay_square[j] = exp(-2 * alpha * x[j]);
                    const double margin = decay_square[j] - x[j] / (kappa * kappa);
                    if (margin <= 0) continue;
                    const double root = sqrt(margin + (double)p.edge * p.edge), sync = root - p.edge;
                    strength[j] = p.power == 1 ? sync : sync * sync;
                    slope[j] = p.power == 1 ? 0.5 / root : sync / root;
                    kept[j] = !p.dropout || mix((uint32_t)j * 0x9E3779B9u + word) >= p.dropout_threshold ? p.dropout_scale : 0;
                    sum += strength[j];
                }
                const double normaliser = sum == 0 ? 1 : sum + p.eps;
                const float* grad = &c.grad_out[row * p.value_dim];
                double offset = 0, all = 0, offset_size = 0, all_size = 0;
                for (int64_t j = 0; j < p.keys; ++j)
                    for (int64_t k = 0; k < p.value_dim; ++k) {
                        const double share = strength[j] * kept[j] / normaliser;
                        const double mixed = share * c.read(b, h, j)[k], back = share * grad[k];
                        a.out.add(row * p.value_dim + k, mixed, mixed);
                        a.value.add((head * p.keys + j) * p.value_dim + k, back, back);
                    }
                for (int64_t k = 0; k < p.value_dim; ++k) {
                    const double term = grad[k] * a.out.sum[row * p.value_dim + k];
                    offset += term, offset_size += fabs(term);
                }
                for (int64_t j = 0; j < p.keys; ++j) {
                    if (strength[j] == 0) continue;
                    double flow = 0, flow_size = offset_size;
                    for (int64_t k = 0; k < p.value_dim; ++k) {
                        const double term = grad[k] * c.read(b, h, j)[k] * kept[j];
                        flow += term, flow_size += fabs(term);
                    }
                    const double through = (flow - offset) / normaliser * slope[j];
                    const double size = flow_size / normaliser * slope[j];
                    const double rate = -2 * alpha * decay_square[j] - 1 / (kappa * kappa);
                    const double by_alpha = -2 * x[j] * decay_square[j], by_kappa = 2 * x[j] / (kappa * kappa * kappa);
                    a.bandwidth.add(head, through * by_alpha, size * by_alpha);
                    a.coupling.add(row, through * by_kappa, size * by_kappa);
                    all += through * rate, all_size += size * rate;
                    for (int64_t k = 0; k < p.freq_dim; ++k) {
                        const double apart = (double)c.received(b, h, i)[k] - c.sent(b, h, j)[k];
                        const double term = 2 * through * rate * apart, magnitude = 2 * size * rate * apart;
                        a.receive.add(row * p.freq_dim + k, term, magnitude);
                        a.send.add((head * p.keys + j) * p.freq_dim + k, -term, magnitude);
                    }
                }
                // what the frame takes back, and what is asked of its own D
                const double asked = p.grad_base ? p.grad_base[row] : 0, back = all - asked;
                for (int64_t k = 0; near >= 0 && k < p.freq_dim; ++k) {
                    const double apart = (double)c.received(b, h, i)[k] - c.sent(b, h, near)[k];
                    const double size = 2 * (all_size + fabs(asked)) * apart;
                    a.receive.add(row * p.freq_dim + k, -2 * back * apart, size);
                    a.send.add((head * p.keys + near) * p.freq_dim + k, 2 * back * apart, size);
                }
            }
    return a;
}

// To a thousandth of the largest sum: a pair may be so near the locking edge that its slope is no better.
template <typename T>
bool close(const char* name, const vector<T>& got, const Sums& want) {
    double largest = 1e-3, worst = 0;
    for (const double size : want.size) largest = fmax(largest, size);
    for (size_t k = 0; k < got.size(); ++k) {
        const double error = fabs(got[k] - want.sum[k]);
        if (!(error <= worst)) worst = error;  // NaN stays
        if (error != error) break;
    }
    if (worst <= 1e-3 * largest && got.size() == want.sum.size()) return true;
    printf("  %s: off by %g of %g\n", name, worst, largest);
    return false;
}

template <typename T>
void append(vector<double>& to, const vector<T>& from) {
    to.insert(to.end(), from.begin(), from.end());
}

// The counts, those in doubt settled in double precision: with as much room as they need, and with less.
bool counts(Case& c, const char* instance) {
    SyncattnProblem p = c.p;
    p.dropout = 0;
    vector<float> radius(c.rows());
    vector<int64_t> want(c.rows()), locked;
    vector<int32_t> doubtful;
    const auto locks = [&](int64_t row, int64_t j) {
        const int64_t b = row / p.queries / p.heads, h = row / p.queries % p.heads, i = row % p.queries;
        double base;
        c.nearest(b, h, i, &base);
        const double x = c.detuning(b, h, i, j) - base;
        return c.allowed(b, h, i, j) && exp(-2.0 * c.bandwidth[h] * x) - x / pow(c.kappa(b, h, i), 2) > 0;
    };
    for (int64_t row = 0; row < c.rows(); ++row) {
        const int64_t h = row / p.queries % p.heads;
        radius[row] = locking_radius_square(c.kappa(row / p.queries / p.heads, h, row % p.queries), c.bandwidth[h]);
        for (int64_t j = 0; j < p.keys; ++j) want[row] += locks(row, j);
    }
    int64_t found = 1;
    for (int run = 0; run < 3; ++run) {
        poison(locked, c.rows()), poison(doubtful, 3 * found);
        const int64_t room = found;
        found = 0;
        const SyncattnCount to{radius.data(), 1e-3f, 5e29f, locked.data(), room, &found, doubtful.data()};
        if (syncattn_count(&p, &to, instance, run ? 3 : 1, nullptr)) return false;
        if (found > room) continue;
        for (int64_t k = 0; k < found; ++k) {
            const int64_t row = doubtful[3 * k] * p.queries + doubtful[3 * k + 1];
            locked[row] += locks(row, doubtful[3 * k + 2]);
        }
        if (locked != want) printf("  counts are wrong\n");
        return locked == want;
    }
    return false;
}

bool passes(Case& c, const Answer& want, const char* instance, int number, FILE* file) {
    vector<double> bits[2];
    bool good = true;
    for (int run = 0; run < 2; ++run) {
        const int threads = run ? 3 : 1;
        clear(c);
        if (syncattn_forward(&c.p, instance, threads, nullptr) || syncattn_backward(&c.p, instance, threads, nullptr)) {
            printf("  it returned an error\n");
            return false;
        }
        append(bits[run], c.out), append(bits[run], c.grad_receive), append(bits[run], c.grad_send);
        append(bits[run], c.grad_value), append(bits[run], c.grad_coupling), append(bits[run], c.grad_bandwidth);
    }
    good &= close("out", c.out, want.out) & close("receive", c.grad_receive, want.receive);
    good &= close("send", c.grad_send, want.send) & close("value", c.grad_value, want.value);
    good &= close("coupling", c.grad_coupling, want.coupling) & close("bandwidth", c.grad_bandwidth, want.bandwidth);
    good &= counts(c, instance);
    if (file && fwrite(bits[0].data(), sizeof(double), bits[0].size(), file) != bits[0].size()) good = false;
    if (bits[0] != bits[1]) {
        printf("  one thread and three give different bits\n");
        good = false;
    }
    if (!good) {
        const SyncattnProblem& p = c.p;
        printf("case %d on %s: B %ld H %ld Hs %ld Hv %ld N %ld M %ld m %ld d %ld causal %d self %d nearest %d power %d edge %g "
               "dropout %d mask %d\n", number, instance, (long)p.batch, (long)p.heads, (long)p.send_heads, (long)p.value_heads,
               (long)p.queries, (long)p.keys, (long)p.freq_dim, (long)p.value_dim, p.is_causal, p.self_coupling, p.nearest,
               p.power, p.edge, p.dropout, p.mask != nullptr);
    }
    return good;
}

// The tokens that some heads hold, in memory with room for one more, which goes to its very end.
struct Past {
    vector<int64_t> heads;
    int64_t filled, first;
    vector<float> send, value, bandwidth;
};

// The larger one; NaN stays.
double grow(double worst, double error) { return error <= worst ? worst : error; }

// One more token after a past of random length in groups of heads.
bool next_token(Random& random, const char* instance) {
    SyncattnToken t{};
    t.batch = 1 + random.below(2), t.heads = 1 + random.below(4), t.freq_dim = 1 + random.below(17);
    t.value_dim = 16 * (1 + random.below(2));
    t.groups = t.heads > 1 ? 1 + random.below(2) : 1;
    const int64_t rows = t.batch * t.heads, m = t.freq_dim, d = t.value_dim;
    const bool drifts = random.coin(), directed = !drifts || random.coin();  // what is emitted is not what is heard
    const bool delays = random.coin(), coheres = random.coin();
    vector<float> content = normals(random, rows * m), slopes = normals(random, t.heads), sent = normals(random, rows * m);
    vector<float> directions = normals(random, t.heads * m), before = normals(random, rows * m);
    vector<float> value = normals(random, rows * d), coherence(rows), coupling(t.heads), emitted, out, nearest;
    vector<uint8_t> delayed(t.heads);
    vector<int64_t> count(t.batch);
    for (float& k : coupling) k = sqrtf((float)m) * (1 + random.uniform());
    for (int64_t b = 0; b < t.batch; ++b) count[b] = 1 + random.below(200);
    for (int64_t r = 0; r < rows; ++r) coherence[r] = (float)(count[r / t.heads] + 1) * random.uniform();
    for (uint8_t& flag : delayed) flag = random.coin();
    for (float& slope : slopes) slope *= 0.01f;
    poison(emitted, rows * m), poison(out, rows * d), poison(nearest, rows);
    vector<float> known = coupling;  // what is watched
    const void* watched[] = {coupling.data()};
    const int64_t watched_bytes[] = {(int64_t)(sizeof(float) * coupling.size()), 0};
    t.content = content.data(), t.value = value.data(), t.coupling = coupling.data(), t.count = count.data();
    t.emitted = emitted.data(), t.out = out.data();
    if (random.coin()) t.nearest = nearest.data();
    if (drifts) t.slopes = slopes.data(), t.directions = directions.data();
    if (directed) t.sent = sent.data();
    if (delays) t.delayed = delayed.data(), t.before = before.data();
    if (coheres) t.coherence = coherence.data();
    t.watched = watched, t.watched_bytes = watched_bytes, t.known = (const uint8_t*)known.data();
    vector<Past> pasts(t.groups);
    vector<SyncattnHeads> groups(t.groups);
    for (int64_t h = 0; h < t.heads; ++h) pasts[h % t.groups].heads.push_back(h);
    SyncattnProblem options{};
    options.queries = 1, options.freq_dim = m, options.value_dim = d, options.is_causal = 1, options.eps = 1e-8f;
    options.nearest = random.coin(), options.power = 1 + random.below(2), options.self_coupling = random.coin();
    for (int64_t g = 0; g < t.groups; ++g) {
        Past& past = pasts[g];
        const int64_t own = (int64_t)past.heads.size();
        past.filled = 1 + random.below(150), past.first = random.below(past.filled);
        for (int side = 0; side < 2; ++side) {
            vector<float>& w = side ? past.value : past.send;
            const int64_t width = side ? d : m;
            poison(w, t.batch * own * (past.filled + 1) * width);
            for (int64_t head = 0; head < t.batch * own; ++head)
                for (int64_t k = past.first * width; k < past.filled * width; ++k)
                    w[head * (past.filled + 1) * width + k] = random.normal();
        }
        for (int64_t k = 0; k < own; ++k) past.bandwidth.push_back((0.1f + random.uniform()) / m);
        SyncattnHeads& group = groups[g] = SyncattnHeads{};
        group.problem = options;
        group.problem.heads = group.problem.send_heads = group.problem.value_heads = own;
        group.problem.bandwidth = past.bandwidth.data();
        group.heads = t.groups > 1 ? past.heads.data() : nullptr;
        group.send = past.send.data(), group.value = past.value.data();
        group.send_strides[1] = (past.filled + 1) * m, group.send_strides[0] = own * group.send_strides[1];
        group.value_strides[1] = (past.filled + 1) * d, group.value_strides[0] = own * group.value_strides[1];
        group.filled = past.filled, group.first = past.first;
    }
    t.group = groups.data();
    if (syncattn_next_token(&t, instance, 1 + (int)random.below(3), nullptr)) return false;
    double worst = 0;
    for (int64_t b = 0; b < t.batch; ++b)
        for (const Past& past : pasts)
            for (size_t k = 0; k < past.heads.size(); ++k) {
                const int64_t h = past.heads[k], row = b * t.heads + h, held = past.filled + 1;
                vector<float> receive(&content[row * m], &content[row * m] + m);
                const float *send = &past.send[(b * past.heads.size() + k) * held * m], *read = &past.value[(b * past.heads.size() + k) * held * d];
                const float* own = delays && delayed[h] ? &before[row * m] : drifts ? &emitted[row * m] : &sent[row * m];
                const double r = coheres ? fmin(1, coherence[row] / (count[b] + 1)) : 1, kappa = fmax(1e-6, coupling[h] * r);
                for (int64_t c = 0; c < m; ++c) {
                    const double by = drifts ? (double)slopes[h] * count[b] * directions[h * m + c] : 0;
                    const double moved = (directed ? sent : content)[row * m + c] + by;
                    if (drifts) worst = grow(worst, fabs(emitted[row * m + c] - moved));
                    receive[c] = drifts && !directed ? emitted[row * m + c] : (float)(receive[c] + by);
                    if (send[past.filled * m + c] != own[c]) return false;
                }
                if (memcmp(read + past.filled * d, &value[row * d], sizeof(float) * d)) return false;
                const int64_t end = past.filled + (options.self_coupling ? 1 : 0);
                vector<double> detuning, mixed(d);
                double base = 1e300, sum = 0;
                for (int64_t j = past.first; j < end; ++j) {
                    double x = 0;
                    for (int64_t c = 0; c < m; ++c) x += pow((double)receive[c] - send[j * m + c], 2);
                    detuning.push_back(x), base = fmin(base, x);
                }
                if (t.nearest && options.nearest) worst = grow(worst, fabs(nearest[row] - base) / fmax(1, base));
                for (int64_t j = past.first; j < end; ++j) {
                    const double x = detuning[j - past.first] - (options.nearest ? base : 0);
                    const double margin = fmax(0, exp(-2.0 * past.bandwidth[k] * x) - x / (kappa * kappa));
                    const double strength = options.power == 1 ? sqrt(margin) : margin;
                    sum += strength;
                    for (int64_t c = 0; c < d; ++c) mixed[c] += strength * read[j * d + c];
                }
                // near the edge a strength is no better than its rounding, and in such a row it may be alone
                for (int64_t c = 0; c < d && sum > 0.05; ++c) worst = grow(worst, fabs(out[row * d + c] - mixed[c] / sum));
            }
    known[0] += 1;
    const bool noticed = syncattn_next_token(&t, instance, 1, nullptr) == 3;
    if (!(worst <= 1e-2) || !noticed) printf("  next token: off by %g, changes noticed: %d\n", worst, noticed);
    return worst <= 1e-2 && noticed;  // NaN fails
}

}  // namespace

int main(int count, char** arguments) {
    const int cases = count > 1 ? atoi(arguments[1]) : 60;
    const char* only = count > 2 ? arguments[2] : nullptr;
    FILE* file = count > 3 ? fopen(arguments[3], "wb") : nullptr;
    int failures = count > 3 && !file, runs = 0;
    for (int number = 0; number < cases; ++number) {
        Random random{(uint64_t)number * 977 + 1};
        Case c;
        make(c, random, number);
        const Answer want = define(c);
        for (int k = 0; const char* name = syncattn_instance(k); ++k) {
            if (only && strcmp(only, name)) continue;
            failures += !passes(c, want, name, number, file) + !next_token(random, name);
            ++runs;
        }
    }
    if (file && fclose(file)) ++failures;
    printf("%d cases, %d failures, %d runs\n", cases, failures, runs);
    return failures || !runs ? 1 : 0;
}
