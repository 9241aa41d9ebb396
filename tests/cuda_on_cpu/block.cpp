#include "block.h"

#include <algorithm>
#include <bit>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "thread.h"

namespace cuda_on_cpu {
namespace {

constexpr unsigned kMostThreads = 1024;

// How the threads of a block behave, drawn anew for each: where keys are drawn often they
// interleave finely, where seldom some run far ahead, alone or with their warp.
struct Temper {
  float restless = 1;  // how often a key is drawn anew
  bool by_warp = false;
  float landing = 0;  // how often a copy lands before it must
};

const char* kernel_name = "";
void (*body)(const void*) = nullptr;
const void* body_arguments = nullptr;
std::vector<Thread> threads;
unsigned block_size = 0;
std::vector<std::pair<float, unsigned>> ready;  // a heap of keys and threads
std::vector<float> warp_keys;
Temper temper;

void make_ready(Thread& thread) {
  float& warp_key = warp_keys[thread.number / kLanes];
  if (draw() < temper.restless) thread.key = draw();
  if (draw() < temper.restless) warp_key = draw();
  thread.waits_for = {};
  ready.emplace_back(thread.key + (temper.by_warp ? 4 * warp_key : 0), thread.number);
  std::push_heap(ready.begin(), ready.end());
}

// Leaves the current thread; another one, or none, goes on.
void leave() {
  land_some(temper.landing);
  switch_fiber(current->fiber, scheduler);
}

// Waits for all lanes of `mask` at the collective called `name`; the last one to arrive calls
// `exchange(first thread of the warp)`, which sets what each lane receives.
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

// Is one thread after another, in block after block.
[[noreturn]] void run_thread() {
  arrived_on_new_fiber();
  for (;;) {
    body(body_arguments);
    if (!current->copies.empty())
      fail("returned with %zu asynchronous copies under way", current->copies.size());
    current->done = true;
    switch_fiber(current->fiber, scheduler);
  }
}

std::string ranges(const std::vector<unsigned>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size(); ++i) {
    const size_t first = i;
    while (i + 1 < numbers.size() && numbers[i + 1] == numbers[i] + 1) ++i;
    text += " " + std::to_string(numbers[first]);
    if (i > first) text += "-" + std::to_string(numbers[i]);
  }
  return text;
}

[[noreturn]] void report_deadlock() {
  std::map<std::string, std::vector<unsigned>> places;
  for (unsigned i = 0; i < block_size; ++i) {
    const Collective& waits = threads[i].waits_for;
    char mask[32] = "";
    if (waits.mask != 0) std::snprintf(mask, sizeof mask, " with mask %08x", waits.mask);
    places[threads[i].done ? "have returned" : std::string("wait at ") + waits.name + mask]
        .push_back(i);
  }
  std::string report;
  for (const auto& [place, numbers] : places) report += "\n  " + place + ":" + ranges(numbers);
  current = nullptr;
  fail("deadlock: not all threads reach a barrier or collective; threads%s", report.c_str());
}

void run_block() {
  ++block_serial;
  const float restless[] = {1, 0.2f, 0.02f};
  temper = {restless[random_bits() % 3], random_bits() % 2 == 0,
            static_cast<float>(random_bits() % 2) / 4};
  warp_keys.assign((block_size + kLanes - 1) / kLanes, 0);
  for (float& key : warp_keys) key = draw();
  for (unsigned i = 0; i < block_size; ++i) {
    Thread& thread = threads[i];
    thread.number = i;
    thread.index =
        dim3(i % block_dim.x, i / block_dim.x % block_dim.y, i / block_dim.x / block_dim.y);
    thread.done = false;
    thread.committed = 0;
    thread.key = draw();
    make_ready(thread);
  }
  unsigned finished = 0;
  while (!ready.empty()) {
    std::pop_heap(ready.begin(), ready.end());
    current = &threads[ready.back().second];
    ready.pop_back();
    thread_index = current->index;
    switch_fiber(scheduler, current->fiber);
    finished += current->done;
  }
  if (finished != block_size) report_deadlock();
  current = nullptr;
}

// The first and the last lane of the segment that the running thread is in, and the lane itself.
struct Segment {
  int lane, first, last;
};

Segment segment_of(int width) {
  if (width < 1 || width > 32 || !std::has_single_bit(static_cast<unsigned>(width)))
    fail("shuffle of width %d", width);
  const int lane = static_cast<int>(current->number % kLanes), first = lane & ~(width - 1);
  return {lane, first, first + width - 1};
}

}  // namespace

const int mutation = [] {
  const char* number = std::getenv("CUDA_ON_CPU_MUTATION");
  return number == nullptr ? 0 : std::atoi(number);
}();

void fail(const char* format, ...) {
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

void launch_blocks(const char* name, dim3 grid, dim3 block, size_t shared_bytes,
                   void (*function)(const void*), const void* arguments) {
  kernel_name = name;
  body = function;
  body_arguments = arguments;
  grid_dim = grid;
  block_dim = block;
  block_size = block.x * block.y * block.z;
  if (block_size == 0 || block_size > kMostThreads) fail("launched with %u threads", block_size);
  threads.resize(kMostThreads);  // once: fibers must not be moved
  for (unsigned i = 0; i < block_size; ++i)
    if (threads[i].fiber.bottom == nullptr) start_fiber(threads[i].fiber, run_thread);
  std::vector<uint64_t> blocks(uint64_t{grid.x} * grid.y * grid.z);
  if (blocks.empty()) fail("launched with an empty grid");
  for (uint64_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
  std::shuffle(blocks.begin(), blocks.end(), random_bits);
  for (const uint64_t i : blocks) {
    block_index = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
    set_dynamic_shared(shared_bytes);
    run_block();
  }
}

void pause_thread() {
  make_ready(*current);
  leave();
}

void block_barrier() {
  current->waits_for = {"__syncthreads()", 0};
  const bool complete =
      std::all_of(threads.begin(), threads.begin() + block_size, [](const Thread& thread) {
        return thread.waits_for.name != nullptr && thread.waits_for.mask == 0;
      });
  if (complete)
    for (unsigned i = 0; i < block_size; ++i) make_ready(threads[i]);
  leave();
}

void warp_barrier(unsigned mask) {
  warp_collective("__syncwarp", mask, [](Thread*) {});
}

uint64_t shuffle(const char* name, unsigned mask, uint64_t value, int source) {
  if ((mask >> source & 1) == 0)
    fail("%s with mask %08x reads lane %d, which is not in it", name, mask, source);
  current->given = value;
  current->source = source;
  warp_collective(name, mask, [mask](Thread* lanes) {
    for (unsigned i = 0; i < kLanes; ++i)
      if (mask >> i & 1) lanes[i].received = lanes[lanes[i].source].given;
  });
  return current->received;
}

unsigned ballot(const char* name, unsigned mask, bool vote) {
  current->given = vote;
  warp_collective(name, mask, [mask](Thread* lanes) {
    uint64_t votes = 0;
    for (unsigned i = 0; i < kLanes; ++i)
      if (mask >> i & 1) votes |= lanes[i].given << i;
    for (unsigned i = 0; i < kLanes; ++i)
      if (mask >> i & 1) lanes[i].received = votes;
  });
  return static_cast<unsigned>(current->received);
}

void compute_by_warp(const char* name, void* given, void (*compute)(void* const* lanes)) {
  current->given = reinterpret_cast<uintptr_t>(given);
  warp_collective(name, ~0u, [compute](Thread* lanes) {
    void* all[kLanes];
    for (unsigned i = 0; i < kLanes; ++i) all[i] = reinterpret_cast<void*>(lanes[i].given);
    compute(all);
  });
}

int lane_xor(int lane_mask, int width) {
  const Segment s = segment_of(width);
  const int source = (s.lane ^ lane_mask) & 31;
  return source > s.last ? s.lane : source;
}

int lane_below(unsigned delta, int width) {
  const Segment s = segment_of(width);
  const int source = s.lane - static_cast<int>(delta);
  return source < s.first ? s.lane : source;
}

int lane_above(unsigned delta, int width) {
  const Segment s = segment_of(width);
  const int source = s.lane + static_cast<int>(delta);
  return source > s.last ? s.lane : source;
}

int lane_of_segment(int source, int width) {
  return segment_of(width).first + (source & (width - 1));
}

}  // namespace cuda_on_cpu
