// The C interface: which instance runs, on which threads, and the tables that are made before it does.
#include <cstring>

#include "margin.h"
#include "plan.h"
#include "threads.h"

extern const Instance instance_plain;
#if defined(__x86_64__)
extern const Instance instance_avx2, instance_avx512;
#endif

namespace {

using syncattn::allocate;
using syncattn::for_each_task;
using syncattn::Memory;
using syncattn::Team;
using syncattn::Threads;

const Instance* const every_instance[] = {
    &instance_plain,
#if defined(__x86_64__)
    &instance_avx2,
    &instance_avx512,
#endif
};

bool runs_here(const Instance* instance) {
#if defined(__x86_64__)
    if (instance == &instance_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt");
    if (instance == &instance_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("fma");
#endif
    return instance == &instance_plain;
}

// Whether it has, here, an instruction for products of four bytes.
bool multiplies_bytes(const Instance* instance) {
#if defined(__x86_64__)
    return instance == &instance_avx512 && __builtin_cpu_supports("avx512vnni");
#endif
    return false;
}

const Instance* find(const char* name) {
    const Instance* best = nullptr;
    for (const Instance* instance : every_instance)
        if (runs_here(instance) && (!name || !strcmp(name, instance->name))) best = instance;
    return best;
}

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Floats of one head's boxes; lays them out if `boxes` is given.
int64_t lay_out(Boxes* boxes, float* memory, int64_t tiles, int64_t m, bool limits) {
    const int64_t stride = round_up(tiles, GROUP), groups = stride / GROUP, group_stride = round_up(groups, GROUP);
    const int64_t extents = m + 1;  // one along the direction
    const int64_t floats = 2 * extents * (stride + group_stride) + (limits ? stride + group_stride : 0) + m;
    if (!boxes) return floats;
    *boxes = Boxes{tiles, stride, groups, group_stride};
    boxes->low = memory, boxes->high = memory + extents * stride;
    boxes->group_low = boxes->high + extents * stride;
    boxes->group_high = boxes->group_low + extents * group_stride;
    boxes->direction = boxes->group_high + extents * group_stride;
    if (limits) boxes->limit = boxes->direction + m, boxes->group_limit = boxes->limit + stride;
    return floats;
}

void make_groups(const Boxes& boxes, int64_t m) {
    for (int64_t group = 0; group < boxes.groups; ++group) {
        const int64_t first = group * GROUP, end = first + GROUP < boxes.tiles ? first + GROUP : boxes.tiles;
        for (int64_t k = 0; k <= m; ++k) {
            float low = __builtin_inff(), high = -low;
            for (int64_t tile = first; tile < end; ++tile) {
                if (boxes.low[k * boxes.stride + tile] < low) low = boxes.low[k * boxes.stride + tile];
                if (boxes.high[k * boxes.stride + tile] > high) high = boxes.high[k * boxes.stride + tile];
            }
            // tiles that are not there are infinitely far away
            for (int64_t tile = end; tile < first + GROUP; ++tile)
                boxes.low[k * boxes.stride + tile] = __builtin_inff(),
                boxes.high[k * boxes.stride + tile] = -__builtin_inff();
            boxes.group_low[k * boxes.group_stride + group] = low;
            boxes.group_high[k * boxes.group_stride + group] = high;
        }
        if (!boxes.limit) continue;
        float limit = boxes.limit[first];
        for (int64_t tile = first; tile < end; ++tile) limit = most(limit, boxes.limit[tile]);
        for (int64_t tile = end; tile < first + GROUP; ++tile) boxes.limit[tile] = 0;
        boxes.group_limit[group] = limit;
    }
}

// Where most of the way from a head's first tokens to its last leads, (m): any direction would be right, and this one
// is that of a drift. Nowhere if something there is not finite.
void find_direction(const Boxes& boxes, const float* tokens, int64_t count, int64_t m) {
    const int64_t some = count / 2 < KEYS ? count / 2 : KEYS;
    double way[MOST_COORDINATES], square = 0;
    for (int64_t k = 0; k < m; ++k) {
        way[k] = 0;
        for (int64_t i = 0; i < some; ++i) way[k] += (double)tokens[(count - 1 - i) * m + k] - tokens[i * m + k];
        square += way[k] * way[k];
    }
    const double scale = square > 0 && square < 1e300 ? (1 - 1e-6) / __builtin_sqrt(square) : 0;
    for (int64_t k = 0; k < m; ++k) boxes.direction[k] = scale > 0 ? (float)(way[k] * scale) : 0;
}

// One block of memory for everything of one kind, handed out in pieces that start on cache lines.
struct Arena {
    Memory<float> memory;
    int64_t used = 0;
    float* take(int64_t floats) {
        float* at = memory ? memory.get() + used : nullptr;
        used += round_up(floats, 16);
        return at;
    }
};

// Memory for a head's sieve, from `take` of an arena: of nothing where there is none to be.
void lay_out_sieve(Lanes* lanes, Arena& arena, const Instance& instance, int64_t tiles, int64_t m) {
    if (!instance.sieve || m > MOST_SIEVED) return;
    const auto steps = [&](Steps& to, int64_t words) {
        to.packed = reinterpret_cast<int32_t*>(arena.take(tiles * words * KEYS));
        to.norm = reinterpret_cast<int32_t*>(arena.take(tiles * KEYS));
        to.scale = arena.take(lanes->boxes.groups);
    };
    steps(lanes->sieve.fine, (m + 1) / 2);
    if (multiplies_bytes(&instance)) steps(lanes->sieve.coarse, (m + 3) / 4);
    lanes->sieve.centre = arena.take(lanes->boxes.groups * m);
}

// The centre of each group, and how many steps are in 1, so that the most there are reach its farthest token.
void set_steps(const Lanes& lanes, int64_t m) {
    const Boxes& boxes = lanes.boxes;
    for (int64_t group = 0; lanes.sieve.centre && group < boxes.groups; ++group) {
        float farthest = 0, *centre = lanes.sieve.centre + group * m;
        for (int64_t k = 0; k < m; ++k) {
            const float low = boxes.group_low[k * boxes.group_stride + group];
            const float high = boxes.group_high[k * boxes.group_stride + group];
            centre[k] = low / 2 + high / 2;
            farthest = most(farthest, most(high - centre[k], centre[k] - low));
        }
        const float scale = farthest > 1e-30f && farthest < 1e30f ? 1 / (farthest * 1.0001f) : 0;
        lanes.sieve.fine.scale[group] = MOST_STEPS * scale;
        if (lanes.sieve.coarse.packed) lanes.sieve.coarse.scale[group] = MOST_BYTE_STEPS * scale;
    }
}

int64_t tiles_of(int64_t tokens, int64_t size) { return (tokens + size - 1) / size; }
int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The texts in tiles of `tokens` tokens, the last of each row of the batch; what the plan points to stays here.
struct Texts {
    std::vector<TileTexts> rows;
    std::vector<int32_t> bounds;
};

const TileTexts* prepare_texts(const SyncattnProblem& p, int64_t tokens, Texts& made) {
    if (!p.text) return nullptr;
    const int64_t tiles = tiles_of(tokens, KEYS), shared = p.text_stride == 0;
    made.bounds.resize((size_t)(2 * tiles * (shared ? 1 : p.batch)));
    for (int64_t b = 0; b < p.batch; ++b) {
        int32_t* highest = made.bounds.data() + 2 * tiles * (shared ? 0 : b);
        int32_t* lowest = highest + tiles;
        made.rows.push_back(TileTexts{tiles, highest, lowest});
        if (shared && b) continue;
        const int32_t* text = p.text + b * p.text_stride + p.keys - tokens;
        int32_t high = -1, low = INT32_MAX;
        for (int64_t i = 0; i < tokens; ++i) {
            if (text[i] > high) high = text[i];
            highest[i / KEYS] = high;
        }
        for (int64_t i = tokens - 1; i >= 0; --i) {
            if (text[i] >= 0 && text[i] < low) low = text[i];
            lowest[i / KEYS] = low;
        }
    }
    return made.rows.data();
}

// Runs `carve` twice: to measure the arena, and to cut it up.
template <typename Carve>
void cut(Arena& arena, const Carve& carve) {
    carve();
    arena.memory = allocate<float>(arena.used);
    arena.used = 0;
    carve();
}

// With so few rows, as in a decoding step, tables of the senders would cost more than they spare.
constexpr int64_t FEW_ROWS = ROWS;

// One head's senders as lanes of blocks, for all heads; what the plan points to stays here.
struct Senders {
    std::vector<Lanes> lanes;
    Arena arena;
    Texts texts;
};

void prepare_senders(const SyncattnProblem& p, const Instance& instance, Threads threads, Plan& plan, Senders& made) {
    const int64_t m = p.freq_dim, send_heads = p.batch * p.send_heads;
    const int64_t tiles = plan.key_tiles = tiles_of(p.keys, KEYS);
    std::vector<Lanes>& senders = made.lanes;
    senders.resize((size_t)send_heads);
    Arena& arena = made.arena;
    const bool few = p.queries <= FEW_ROWS;
    cut(arena, [&] {
        for (Lanes& lanes : senders) {
            if (few) continue;
            lanes.packed = arena.take(tiles * m * KEYS);
            lay_out(&lanes.boxes, arena.take(lay_out(nullptr, nullptr, tiles, m, false)), tiles, m, false);
            lay_out_sieve(&lanes, arena, instance, tiles, m);
        }
    });
    // A sender that no row may attend to does not stretch its tile's box.
    const bool by_key = p.mask && p.mask_strides[1] == 0 && p.mask_strides[2] == 0 && p.mask_strides[3] != 0;
    for (int64_t h = 0; h < send_heads && !few; ++h) {
        const int64_t head = h % p.send_heads * (p.heads / p.send_heads);
        find_direction(senders[(size_t)h].boxes, send_of(&p, h / p.send_heads, head), p.keys, m);
    }
    for_each_task(few ? 0 : send_heads * tiles, 16, threads, 0, [&](int64_t task, float*) {
        const int64_t h = task / tiles, tile = task % tiles, start = tile * KEYS;
        const int64_t valid = least(KEYS, p.keys - start), batch = h / p.send_heads;
        const int64_t head = h % p.send_heads * (p.heads / p.send_heads);  // the first that listens
        uint64_t counted = ~0ull;
        for (int64_t j = 0; by_key && j < valid; ++j) {
            const int64_t key = p.send_index ? p.send_index[h * p.keys + start + j] : start + j;
            if (!p.mask[batch * p.mask_strides[0] + key * p.mask_strides[3]]) counted &= ~(1ull << j);
        }
        for (int64_t j = 0; p.text && j < valid; ++j)
            if (p.text[batch * p.text_stride + start + j] < 0) counted &= ~(1ull << j);
        instance.pack(&senders[(size_t)h], tile, send_of(&p, batch, head) + start * m, valid, m, counted);
    });
    for (const Lanes& lanes : senders)
        if (!few) make_groups(lanes.boxes, m), set_steps(lanes, m);
    const bool sieved = !few && send_heads && senders[0].sieve.centre;
    for_each_task(sieved ? send_heads * tiles : 0, 16, threads, 0, [&](int64_t task, float*) {
        instance.sieve(&senders[(size_t)(task / tiles)], task % tiles, m, nullptr);
    });
    plan.senders = senders.data();
    plan.sender_texts = prepare_texts(p, p.keys, made.texts);
}

void forward(const SyncattnProblem& p, const Instance& instance, Threads threads) {
    Plan plan{};
    plan.p = &p;
    plan.row_tasks = tiles_of(p.queries, instance.rows);
    Senders senders;
    prepare_senders(p, instance, threads, plan, senders);
    const int64_t rows = p.symmetric ? 1 : plan.row_tasks;  // a symmetric head is one task
    for_each_task(p.batch * p.heads * rows, 1, threads, instance.scratch_floats(&p),
                  [&](int64_t task, float* scratch) {
                      // the last rows of a causal call have the most to do: they come first
                      const int64_t h = task / rows, tile = rows - 1 - task % rows;
                      instance.forward_rows(&plan, h / p.heads, h % p.heads, tile, scratch);
                  });
}

void count(const SyncattnProblem& p, const SyncattnCount& to, const Instance& instance, Threads threads) {
    Plan plan{};
    plan.p = &p;
    plan.row_tasks = tiles_of(p.queries, instance.rows_counted);
    Senders senders;
    prepare_senders(p, instance, threads, plan, senders);
    const int64_t rows = plan.row_tasks;
    for_each_task(p.batch * p.heads * rows, 4, threads, instance.count_floats(&p), [&](int64_t task, float* scratch) {
        // the last rows of a causal call have the most to do: they come first
        const int64_t h = task / rows, tile = rows - 1 - task % rows;
        instance.count_rows(&plan, &to, h / p.heads, h % p.heads, tile, scratch);
    });
}

// Whether a row holds so many texts that parts of the keys can go by them.
bool has_many_texts(const SyncattnProblem& p, int64_t parts) {
    if (!p.text || parts < 2) return false;
    for (int64_t b = 0; b < (p.text_stride ? p.batch : 1); ++b) {
        int64_t texts = 1;
        for (int64_t j = 1; j < p.keys; ++j) texts += p.text[b * p.text_stride + j] != p.text[b * p.text_stride + j - 1];
        if (texts < 2 * parts) return false;
    }
    return true;
}

// The tiles of receivers, from `first` to `last`, that texts of these keys may stand in.
void receivers_of(const Plan& plan, int64_t batch, int64_t first_key, int64_t end, int64_t& first, int64_t& last) {
    const SyncattnProblem& p = *plan.p;
    const TileTexts& tiles = plan.receiver_texts[batch];
    int32_t low = INT32_MAX, high = -1;
    for (int64_t j = first_key; j < end; ++j) {
        const int32_t text = p.text[batch * p.text_stride + j];
        if (text < 0) continue;
        if (text < low) low = text;
        if (text > high) high = text;
    }
    for (first = 0; first < tiles.count && tiles.highest_so_far[first] < low;) ++first;
    for (last = tiles.count; last > first && tiles.lowest_to_come[last - 1] > high;) --last;
}

// Adds up the parts of one head, and moves each row's frame with its nearest sender. `tile` is (m + 2, KEYS).
void finish_head(const SyncattnProblem& p, const Plan& plan, int64_t batch, int64_t head, float* tile) {
    const int64_t m = p.freq_dim, wide = round_up(m + 2, 16), heads = p.batch * p.heads, h = batch * p.heads + head;
    const float* send = send_of(&p, batch, head);
    float sum[MOST_COORDINATES + 2];
    for (int64_t i = 0; i < p.queries; ++i) {
        const int64_t number = i / KEYS, lane = i % KEYS;
        if (lane == 0) memset(tile, 0, sizeof(float) * (size_t)((m + 2) * KEYS));
        for (int64_t part = 0; part < plan.parts && lane == 0; ++part) {
            const PartSums& from = plan.sums[part * heads + h];
            if (number < from.first || number >= from.last) continue;
            for (int64_t k = 0; k < (m + 2) * KEYS; ++k) tile[k] += from.by_lane[number * (m + 2) * KEYS + k];
        }
        for (int64_t k = 0; k < m + 2; ++k) sum[k] = tile[k * KEYS + lane];
        for (int64_t part = 0; part < plan.parts; ++part) {
            const PartSums& from = plan.sums[part * heads + h];
            if (number < from.first || number >= from.last) continue;
            for (int64_t k = 0; k < m + 2; ++k) sum[k] += from.by_row[i * wide + k];
        }
        float* grad = p.grad_receive + (h * p.queries + i) * m;
        for (int64_t k = 0; k < m; ++k) grad[k] = 2 * sum[k];
        if (p.nearest && p.keys) {
            const int64_t j = p.nearest_sender[h * p.queries + i];
            const float* receive = p.receive + (h * p.queries + i) * m;
            float back = sum[m];
            // a row that has a nearest sender locks with it, so its sum is not 0
            if (p.grad_base && p.row_sum[h * p.queries + i] != 0) back -= p.grad_base[h * p.queries + i];
            for (int64_t k = 0; k < m; ++k) {
                const float moved = 2 * back * (receive[k] - send[j * m + k]);
                grad[k] -= moved;
                p.grad_send[(h * p.keys + j) * m + k] += moved;
            }
        }
        const int64_t* s = p.coupling_strides;
        const float kappa = p.coupling[batch * s[0] + head * s[1] + i * s[2]];
        p.grad_coupling[h * p.queries + i] = coupling_gradient(sum[m + 1], kappa);
    }
    double bandwidth = 0;
    for (int64_t part = 0; part < plan.parts; ++part) bandwidth += *plan.sums[part * heads + h].bandwidth;
    p.grad_bandwidth[h] = bandwidth_gradient(bandwidth);
}

void backward(const SyncattnProblem& p, const Instance& instance, Threads threads) {
    const int64_t m = p.freq_dim, wide = round_up(m + 2, 16), heads = p.batch * p.heads;
    Plan plan{};
    plan.p = &p;
    const int64_t tiles = plan.receiver_tiles = tiles_of(p.queries, KEYS);
    plan.row_tasks = tiles_of(p.keys, instance.rows);
    // By the shapes alone, never by the number of threads: the sums are the same for any of them.
    // And no more than memory of the size of the inputs and outputs twice over allows.
    const int64_t wanted = heads > 0 ? (32 + heads - 1) / heads : 1, floats = tiles * KEYS * (m + 2 + wide);
    const int64_t room = 2 * (p.queries + p.keys) * (p.value_dim + m) / (floats > 0 ? floats : 1);
    plan.parts = p.symmetric || !plan.row_tasks ? 1 : least(least(wanted, room > 0 ? room : 1), plan.row_tasks);
    std::vector<Receivers> receivers((size_t)heads);
    std::vector<PartSums> sums((size_t)(plan.parts * heads));
    Arena arena, summed;
    cut(arena, [&] {
        for (Receivers& r : receivers) {
            const int64_t rows = tiles * KEYS;
            r.lanes.packed = arena.take(rows * m);
            lay_out(&r.lanes.boxes, arena.take(lay_out(nullptr, nullptr, tiles, m, true)), tiles, m, true);
            lay_out_sieve(&r.lanes, arena, instance, tiles, m);
            r.frequency = arena.take(rows * wide);
            r.gradient = arena.take(rows * p.value_dim);
            r.gradient_t = arena.take(rows * p.value_dim);
            r.value_t = arena.take(p.symmetric ? rows * p.value_dim : 0);
            for (float** table : {&r.offset, &r.base, &r.radius, &r.row_term}) *table = arena.take(rows);
            r.word = reinterpret_cast<uint32_t*>(arena.take(rows));
        }
    });
    Texts texts;
    plan.receiver_texts = prepare_texts(p, p.queries, texts);
    plan.parts_in_a_row = has_many_texts(p, plan.parts);
    for (int64_t part = 0; part < plan.parts; ++part)
        for (int64_t h = 0; h < heads; ++h) {
            PartSums& s = sums[(size_t)(part * heads + h)];
            s.first = 0, s.last = tiles;
            const int64_t end = least(p.keys, first_task_of(plan, part + 1) * instance.rows);
            if (plan.parts_in_a_row)
                receivers_of(plan, h / p.heads, first_task_of(plan, part) * instance.rows, end, s.first, s.last);
        }
    cut(summed, [&] {
        for (PartSums& s : sums) {  // what comes before the first is not there
            float* const by_lane = summed.take((s.last - s.first) * (m + 2) * KEYS);
            float* const by_row = summed.take((s.last - s.first) * KEYS * wide);
            if (by_lane) s.by_lane = by_lane - s.first * (m + 2) * KEYS, s.by_row = by_row - s.first * KEYS * wide;
            s.bandwidth = reinterpret_cast<double*>(summed.take(2));
        }
    });
    memset(summed.memory.get(), 0, (size_t)summed.used * sizeof(float));
    plan.receivers = receivers.data();
    plan.sums = sums.data();
    for (int64_t h = 0; h < heads; ++h)
        find_direction(receivers[(size_t)h].lanes.boxes, p.receive + h * p.queries * m, p.queries, m);
    for_each_task(heads * tiles, 1, threads, 0, [&](int64_t task, float*) {
        const int64_t h = task / tiles, tile = task % tiles, start = tile * KEYS;
        const float* receive = p.receive + (h * p.queries + start) * m;
        instance.pack(&receivers[(size_t)h].lanes, tile, receive, least(KEYS, p.queries - start), m, ~0ull);
        instance.backward_prepare(&plan, h / p.heads, h % p.heads, tile);
    });
    for (const Receivers& r : receivers) make_groups(r.lanes.boxes, m), set_steps(r.lanes, m);
    const bool sieved = heads && receivers[0].lanes.sieve.centre;
    for_each_task(sieved ? heads * tiles : 0, 16, threads, 0, [&](int64_t task, float*) {
        const Receivers& r = receivers[(size_t)(task / tiles)];
        const int64_t tile = task % tiles, start = tile * KEYS;
        float farthest[KEYS];
        for (int64_t i = 0; i < KEYS; ++i) farthest[i] = r.base[start + i] + r.radius[start + i];
        instance.sieve(&r.lanes, tile, m, farthest);
    });
    for_each_task(heads * plan.parts, 1, threads, instance.scratch_floats(&p),
                  [&](int64_t task, float* scratch) {
                      const int64_t h = task / plan.parts;
                      instance.backward_keys(&plan, h / p.heads, h % p.heads, task % plan.parts, scratch);
                  });
    for_each_task(heads, 1, threads, (m + 2) * KEYS,
                  [&](int64_t h, float* tile) { finish_head(p, plan, h / p.heads, h % p.heads, tile); });
}

template <typename Pass>
int run(const SyncattnProblem* problem, const char* name, int threads, Team team, Pass pass) {
    const Instance* instance = find(name);
    if (!instance) return 2;
    try {
        pass(*problem, *instance, Threads{threads, team});
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Both return 0, 1 if memory ran out, 2 if this machine has no such instance. `name` chooses one; null: the best.
// `team` is GOMP_parallel, or null: then threads are started for the call.
EXPORT int syncattn_forward(const SyncattnProblem* problem, const char* name, int threads, Team team) {
    return run(problem, name, threads, team, forward);
}

EXPORT int syncattn_backward(const SyncattnProblem* problem, const char* name, int threads, Team team) {
    return run(problem, name, threads, team, backward);
}

// As the two above.
EXPORT int syncattn_count(const SyncattnProblem* problem, const SyncattnCount* to, const char* name, int threads,
                          Team team) {
    return run(problem, name, threads, team, [&](const SyncattnProblem& p, const Instance& instance, Threads on) {
        count(p, *to, instance, on);
    });
}

// The name of the k-th instance that this machine can run, the best last; null past the end.
EXPORT const char* syncattn_instance(int k) {
    for (const Instance* instance : every_instance)
        if (runs_here(instance) && k-- == 0) return instance->name;
    return nullptr;
}

EXPORT int64_t syncattn_problem_bytes() { return (int64_t)(sizeof(SyncattnProblem) + sizeof(SyncattnCount)); }
