// Tasks on several threads. Standard C++: not for the instances.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace syncattn {

// GNU OpenMP's entry point: runs function(data) on a team of threads. Python hands over that of the runtime
// that torch uses, so that there is one pool of threads in the process.
typedef void (*Team)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

struct Threads {
    int count;
    Team team;  // null: threads are started for each call
};

struct Free {
    void operator()(void* memory) const { free(memory); }
};
template <typename T>
using Memory = std::unique_ptr<T[], Free>;

template <typename T>
Memory<T> allocate(int64_t count) {
    const size_t bytes = ((size_t)(count > 0 ? count : 1) * sizeof(T) + 63) / 64 * 64;
    void* memory = aligned_alloc(64, bytes);
    if (!memory) throw std::bad_alloc();
    return Memory<T>(static_cast<T*>(memory));
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
