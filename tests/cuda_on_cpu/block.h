// The threads of one block, in random order.
//
// A thread runs until a switch point: a barrier, a warp collective, the commit of or the wait for
// asynchronous copies. Which thread goes on then is drawn at random, so an order that the kernel
// does not enforce is not kept: a missing barrier shows as a wrong result. A collective completes
// when all threads that it names have arrived; where that can never be, the run ends with a list
// of who waits where. Threads that have returned count as missing.
#pragma once

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cuda_on_cpu {

constexpr unsigned kLanes = 32;

// What a thread waits for. `mask` is 0 for the barrier of the block.
struct Collective {
  const char* name = nullptr;  // null: nothing
  unsigned mask = 0;
};

// One asynchronous copy under way. Only a wait for its group makes it certain to be there.
struct Copy {
  char* to;
  const char* from;
  size_t size, valid;
  size_t group;
};

struct Thread {
  Fiber fiber;
  unsigned number = 0;  // in the block
  dim3 index;
  bool done = false;
  float key = 0;  // who has the largest goes first
  Collective waits_for;
  uint64_t given = 0, received = 0;  // in a warp collective
  unsigned source = 0;               // the lane to receive from
  std::vector<Copy> copies;
  size_t committed = 0;  // groups of copies
};

// How the threads of a block behave, drawn anew for each: where keys are drawn often they
// interleave finely, where seldom some run far ahead, alone or with their warp.
struct Temper {
  float restless = 1;  // how often a key is drawn anew
  bool by_warp = false;
  float landing = 0;  // how often a copy lands before it must
};

inline std::mt19937 random_bits;
inline const char* kernel_name = "";
inline std::function<void()> body;
inline dim3 grid_dim, block_dim, block_index;
inline uint64_t block_serial = 0;  // counts blocks; tells static shared arrays of a new one
inline std::vector<Thread> threads;
inline unsigned block_size = 0;
inline Thread* current = nullptr;
inline std::vector<std::pair<float, unsigned>> ready;  // a heap of keys and threads
inline std::vector<float> warp_keys;
inline Temper temper;

inline float draw() {
  return static_cast<float>(random_bits() >> 8) / (1 << 24);
}

// Ends the run: the kernel has broken a rule.
[[noreturn, gnu::format(printf, 1, 2)]] inline void fail(const char* format, ...) {
  std::fprintf(stderr, "cuda_on_cpu: %s, block (%u, %u, %u)", kernel_name, block_index.x,
               block_index.y, block_index.z);
  if (current != nullptr) std::fprintf(stderr, ", thread %u", current->number);
  std::fprintf(stderr, ": ");
  std::va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "\n");
  std::fflush(nullptr);
  std::_Exit(70);
}

inline void make_ready(Thread& thread) {
  float& warp_key = warp_keys[thread.number / kLanes];
  if (draw() < temper.restless) thread.key = draw();
  if (draw() < temper.restless) warp_key = draw();
  thread.waits_for = {};
  ready.emplace_back(thread.key + (temper.by_warp ? 4 * warp_key : 0), thread.number);
  std::push_heap(ready.begin(), ready.end());
}

inline void land(const Copy& copy) {
  std::memcpy(copy.to, copy.from, copy.valid);
  std::memset(copy.to + copy.valid, 0, copy.size - copy.valid);
}

// Leaves the current thread; another one, or none, goes on.
inline void leave() {
  if (temper.landing > 0)
    std::erase_if(current->copies, [](const Copy& copy) {
      if (draw() >= temper.landing) return false;
      land(copy);
      return true;
    });
  switch_fiber(current->fiber, scheduler);
}

// A switch point at which the thread waits for nobody.
inline void pause() {
  make_ready(*current);
  leave();
}

inline void barrier() {
  current->waits_for = {"__syncthreads()", 0};
  const bool complete =
      std::all_of(threads.begin(), threads.begin() + block_size, [](const Thread& thread) {
        return thread.waits_for.name != nullptr && thread.waits_for.mask == 0;
      });
  if (complete)
    for (unsigned i = 0; i < block_size; ++i) make_ready(threads[i]);
  leave();
}

// Waits for all lanes of `mask` at the collective called `name`; the last one to arrive lets
// `exchange(first thread of the warp)` set what they receive.
template <class Exchange>
void warp_collective(const char* name, unsigned mask, const Exchange& exchange) {
  const unsigned lane = current->number % kLanes, first = current->number - lane;
  if ((mask >> lane & 1) == 0)
    fail("%s with mask %08x, which does not name the lane %u itself", name, mask, lane);
  current->waits_for = {name, mask};
  bool complete = true;
  for (unsigned i = 0; i < kLanes; ++i) {
    if ((mask >> i & 1) == 0) continue;
    if (first + i >= block_size)
      fail("%s with mask %08x names lane %u, which the block does not have", name, mask, i);
    const Collective& other = threads[first + i].waits_for;
    complete &= other.name != nullptr && other.mask == mask && std::strcmp(other.name, name) == 0;
  }
  if (complete) {
    exchange(&threads[first]);
    for (unsigned i = 0; i < kLanes; ++i)
      if (mask >> i & 1) make_ready(threads[first + i]);
  }
  leave();
}

// Runs thread after thread, block after block, on the fiber of one thread.
[[noreturn]] inline void run_thread() {
  arrived_on_new_fiber();
  for (;;) {
    body();
    if (!current->copies.empty())
      fail("returned with %zu asynchronous copies under way", current->copies.size());
    current->done = true;
    switch_fiber(current->fiber, scheduler);
  }
}

inline void report_deadlock() {
  std::map<std::string, std::vector<unsigned>> places;
  for (unsigned i = 0; i < block_size; ++i) {
    const Collective& waits = threads[i].waits_for;
    char mask[32] = "";
    if (waits.mask != 0) std::snprintf(mask, sizeof mask, " with mask %08x", waits.mask);
    places[threads[i].done ? "have returned" : std::string("wait at ") + waits.name + mask]
        .push_back(i);
  }
  std::string report;
  for (const auto& [place, numbers] : places) {
    report += "\n  " + place + ":";
    for (size_t i = 0; i < numbers.size(); ++i) {
      size_t last = i;
      while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
      report += " " + std::to_string(numbers[i]);
      if (last > i) report += "-" + std::to_string(numbers[last]);
      i = last;
    }
  }
  current = nullptr;
  fail("deadlock: not all threads reach a barrier or collective; threads%s", report.c_str());
}

inline void run_block() {
  ++block_serial;
  const float restless[] = {1, 0.2f, 0.02f};
  temper = {restless[random_bits() % 3], random_bits() % 2 == 0, random_bits() % 2 * 0.25f};
  warp_keys.assign((block_size + kLanes - 1) / kLanes, 0);
  for (unsigned i = 0; i < block_size; ++i) {
    Thread& thread = threads[i];
    thread.number = i;
    thread.index =
        dim3(i % block_dim.x, i / block_dim.x % block_dim.y, i / block_dim.x / block_dim.y);
    thread.done = false;
    thread.key = draw();
    warp_keys[i / kLanes] = draw();
    thread.committed = 0;
    make_ready(thread);
  }
  while (!ready.empty()) {
    std::pop_heap(ready.begin(), ready.end());
    current = &threads[ready.back().second];
    ready.pop_back();
    switch_fiber(scheduler, current->fiber);
  }
  const auto finished = std::count_if(threads.begin(), threads.begin() + block_size,
                                      [](const Thread& thread) { return thread.done; });
  if (finished != block_size) report_deadlock();
  current = nullptr;
}

}  // namespace cuda_on_cpu
