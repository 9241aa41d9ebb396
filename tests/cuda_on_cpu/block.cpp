#include "block.h"

#include <algorithm>
#include <bit>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
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

struct Launch {
  const char* name = "";
  dim3 grid, block;
  size_t shared_bytes = 0;
  void (*body)(const void*) = nullptr;
  const void* arguments = nullptr;
  void (*destroy)(const void*) = nullptr;  // null: nothing to destroy
};

// What runs, and what is put aside while another kernel runs in the midst of it.
struct Running {
  Launch launch;
  Launch* before = nullptr;  // has not run: threads of this kernel wait for it
  std::vector<Thread> threads;
  unsigned block_size = 0;
  std::vector<std::pair<float, unsigned>> ready;  // a heap of keys and threads
  std::vector<float> warp_keys;
  Temper temper;
};

constexpr const char* kWaits = "wait_for_kernel_before()";

Running now, aside;
std::optional<Launch> pending;  // launched, all before it have run
uint64_t last_serial = 0;

void make_ready(Thread& thread) {
  float& warp_key = now.warp_keys[thread.number / kLanes];
  if (draw() < now.temper.restless) thread.key = draw();
  if (draw() < now.temper.restless) warp_key = draw();
  thread.waits_for = {};
  now.ready.emplace_back(thread.key + (now.temper.by_warp ? 4 * warp_key : 0), thread.number);
  std::push_heap(now.ready.begin(), now.ready.end());
}

// Leaves the current thread; another one, or none, goes on.
void leave() {
  land_some(now.temper.landing);
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
    if (first + i >= now.block_size)
      fail("%s with mask %08x names lane %u, which the block does not have", name, mask, i);
    const Collective& other = now.threads[first + i].waits_for;
    complete &= other.name != nullptr && other.mask == mask && std::strcmp(other.name, name) == 0;
  }
  if (complete) {
    exchange(&now.threads[first]);
    for (unsigned i = 0; i < kLanes; ++i)
      if (mask >> i & 1) make_ready(now.threads[first + i]);
  }
  leave();
}

// Is one thread after another, in block after block.
[[noreturn]] void run_thread() {
  arrived_on_new_fiber();
  for (;;) {
    now.launch.body(now.launch.arguments);
    if (now.launch.destroy != nullptr && !current->waited)
      fail("returned without a wait for the kernel before");
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
  for (unsigned i = 0; i < now.block_size; ++i) {
    const Collective& waits = now.threads[i].waits_for;
    char mask[32] = "";
    if (waits.mask != 0) std::snprintf(mask, sizeof mask, " with mask %08x", waits.mask);
    places[now.threads[i].done ? "have returned" : std::string("wait at ") + waits.name + mask]
        .push_back(i);
  }
  std::string report;
  for (const auto& [place, numbers] : places) report += "\n  " + place + ":" + ranges(numbers);
  current = nullptr;
  fail("deadlock: not all threads reach a barrier or collective; threads%s", report.c_str());
}

void run_all(const Launch& launch, Launch* before);

// Runs the kernel that threads of this block wait for, if they do, and lets them go on.
bool run_kernel_before() {
  if (now.before == nullptr) return false;
  bool waits = false;
  for (unsigned i = 0; i < now.block_size; ++i) waits |= now.threads[i].waits_for.name == kWaits;
  if (!waits) return false;
  const Launch before = *std::exchange(now.before, nullptr);
  const DynamicShared shared = put_dynamic_shared_aside();
  const dim3 block = block_index;
  const uint64_t serial = block_serial;
  std::swap(now, aside);
  run_all(before, nullptr);
  std::swap(now, aside);
  take_dynamic_shared_up(shared);
  grid_dim = now.launch.grid;
  block_dim = now.launch.block;
  block_index = block;
  block_serial = serial;
  for (unsigned i = 0; i < now.block_size; ++i)
    if (now.threads[i].waits_for.name == kWaits) make_ready(now.threads[i]);
  return true;
}

void run_block() {
  block_serial = ++last_serial;
  const float restless[] = {1, 0.2f, 0.02f};
  now.temper = {restless[random_bits() % 3], random_bits() % 2 == 0,
                static_cast<float>(random_bits() % 2) / 4};
  now.warp_keys.assign((now.block_size + kLanes - 1) / kLanes, 0);
  for (float& key : now.warp_keys) key = draw();
  for (unsigned i = 0; i < now.block_size; ++i) {
    Thread& thread = now.threads[i];
    thread.number = i;
    thread.index =
        dim3(i % block_dim.x, i / block_dim.x % block_dim.y, i / block_dim.x / block_dim.y);
    thread.done = false;
    thread.waited = false;
    thread.committed = 0;
    thread.key = draw();
    make_ready(thread);
  }
  unsigned finished = 0;
  do {
    while (!now.ready.empty()) {
      std::pop_heap(now.ready.begin(), now.ready.end());
      current = &now.threads[now.ready.back().second];
      now.ready.pop_back();
      thread_index = current->index;
      switch_fiber(scheduler, current->fiber);
      finished += current->done;
    }
    current = nullptr;
  } while (run_kernel_before());
  if (finished != now.block_size) report_deadlock();
}

void run_all(const Launch& launch, Launch* before) {
  const dim3 grid = launch.grid, block = launch.block;
  now.launch = launch;
  now.before = before;
  grid_dim = grid;
  block_dim = block;
  now.block_size = block.x * block.y * block.z;
  if (now.block_size == 0 || now.block_size > kMostThreads)
    fail("launched with %u threads", now.block_size);
  now.threads.resize(kMostThreads);  // once: fibers must not be moved
  for (unsigned i = 0; i < now.block_size; ++i)
    if (now.threads[i].fiber.bottom == nullptr) start_fiber(now.threads[i].fiber, run_thread);
  std::vector<uint64_t> blocks(uint64_t{grid.x} * grid.y * grid.z);
  if (blocks.empty()) fail("launched with an empty grid");
  for (uint64_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
  std::shuffle(blocks.begin(), blocks.end(), random_bits);
  for (const uint64_t i : blocks) {
    block_index = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
    set_dynamic_shared(launch.shared_bytes);
    run_block();
  }
  if (launch.destroy != nullptr) launch.destroy(launch.arguments);
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
  std::fprintf(stderr, "cuda_on_cpu: %s, block (%u, %u, %u)", now.launch.name, block_index.x,
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
                   void (*body)(const void*), const void* arguments) {
  finish_launches();
  run_all({name, grid, block, shared_bytes, body, arguments}, nullptr);
}

// Of two kernels that may overlap they do, or else the one before ends first and this one is left
// to overlap with the next.
void launch_next_blocks(const char* name, dim3 grid, dim3 block, size_t shared_bytes,
                        void (*body)(const void*), const void* arguments,
                        void (*destroy)(const void*)) {
  const Launch launch{name, grid, block, shared_bytes, body, arguments, destroy};
  if (!pending || random_bits() % 2 == 0) {
    finish_launches();
    pending = launch;
    return;
  }
  Launch before = *std::exchange(pending, std::nullopt);
  run_all(launch, &before);
}

void wait_for_kernel_before() {
  current->waited = true;
  if (now.before == nullptr) return pause_thread();
  current->waits_for = {kWaits, ~0u};
  leave();
}

void finish_launches() {
  if (pending) run_all(*std::exchange(pending, std::nullopt), nullptr);
}

void pause_thread() {
  make_ready(*current);
  leave();
}

void block_barrier() {
  current->waits_for = {"__syncthreads()", 0};
  const bool complete = std::all_of(
      now.threads.begin(), now.threads.begin() + now.block_size, [](const Thread& thread) {
        return thread.waits_for.name != nullptr && thread.waits_for.mask == 0;
      });
  if (complete)
    for (unsigned i = 0; i < now.block_size; ++i) make_ready(now.threads[i]);
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
