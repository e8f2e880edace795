// Tasks on several threads. Standard C++: not for the instances.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace syncattn {

// GNU OpenMP's entry point: runs function(data) on a team of threads. Python hands over that of the runtime
// that torch uses, so that there is one pool of threads in the process.
typedef void (*Team)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

struct Threads {
    int count;
    Team team;  // null: threads are started for each call
};

// Large blocks are kept for the next call: the system would take those beyond 32 MiB back, and clear each page anew,
// a seventh of the time of a long call. At most so much is kept; sanitizers get every block new, so that they see what
// goes too far.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t MOST_KEPT = 0;
#else
constexpr size_t MOST_KEPT = (size_t)512 << 20;
#endif
constexpr size_t WORTH_KEEPING = (size_t)256 << 10;  // smaller ones the C library keeps

class Kept {
  public:
    // The smallest that suffices and is not twice as large as needed, or null.
    void* take(size_t bytes, size_t* found) {
        const std::lock_guard<std::mutex> lock(mutex);
        auto best = blocks.end();
        for (auto each = blocks.begin(); each != blocks.end(); ++each)
            if (each->first >= bytes && each->first / 2 <= bytes && (best == blocks.end() || each->first < best->first))
                best = each;
        if (best == blocks.end()) return nullptr;
        void* memory = best->second;
        *found = best->first, all -= best->first;
        blocks.erase(best);
        return memory;
    }
    // Those that were kept longest make room.
    void give(size_t bytes, void* memory) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (bytes > MOST_KEPT) return free(memory);
        while (all + bytes > MOST_KEPT || blocks.size() == blocks.capacity()) {
            free(blocks.front().second);
            all -= blocks.front().first;
            blocks.erase(blocks.begin());
        }
        blocks.emplace_back(bytes, memory);
        all += bytes;
    }
    static Kept& all_threads() {
        static Kept* const kept = new Kept;  // never destroyed: a thread may still be at work when the process ends
        return *kept;
    }

  private:
    Kept() { blocks.reserve(64); }
    std::mutex mutex;
    std::vector<std::pair<size_t, void*>> blocks;  // never more than there is room for: giving back cannot fail
    size_t all = 0;
};

struct Free {
    size_t bytes = 0;
    void operator()(void* memory) const {
        if (bytes >= WORTH_KEEPING) Kept::all_threads().give(bytes, memory);
        else free(memory);
    }
};
template <typename T>
using Memory = std::unique_ptr<T[], Free>;

// Holds anything.
template <typename T>
Memory<T> allocate(int64_t count) {
    size_t bytes = ((size_t)(count > 0 ? count : 1) * sizeof(T) + 63) / 64 * 64;
    void* memory = bytes >= WORTH_KEEPING ? Kept::all_threads().take(bytes, &bytes) : nullptr;
    if (!memory) memory = aligned_alloc(64, bytes);
    if (!memory) throw std::bad_alloc();
    return Memory<T>(static_cast<T*>(memory), Free{bytes});
}

template <typename Body>
struct Work {
    const Body& body;
    const int64_t tasks, chunk, scratch_floats;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};

    static void join(void* self) { static_cast<Work*>(self)->run(); }
    void run() {
        try {
            const Memory<float> scratch = allocate<float>(scratch_floats);
            for (int64_t first; (first = next.fetch_add(chunk, std::memory_order_relaxed)) < tasks;)
                for (int64_t task = first; task < first + chunk && task < tasks; ++task) body(task, scratch.get());
        } catch (const std::bad_alloc&) {  // must not leave a thread that is not ours
            failed = true;
        }
    }
};

// body(task, scratch) for every task, in any order, on threads that take `chunk` tasks at a time.
template <typename Body>
void for_each_task(int64_t tasks, int64_t chunk, Threads threads, int64_t scratch_floats, const Body& body) {
    Work<Body> work{body, tasks, chunk, scratch_floats};
    const int64_t chunks = (tasks + chunk - 1) / chunk;
    const int count = (int)(chunks < threads.count ? chunks : threads.count);
    if (count <= 1) {
        work.run();
    } else if (threads.team) {
        threads.team(Work<Body>::join, &work, (unsigned)count, 0);
    } else {
        std::vector<std::thread> others;
        try {
            for (int i = 1; i < count; ++i) others.emplace_back(Work<Body>::join, &work);
        } catch (const std::system_error&) {  // those that could be started do it all
        }
        work.run();
        for (auto& other : others) other.join();
    }
    if (work.failed) throw std::bad_alloc();
}

}  // namespace syncattn
