// Stands in for CUDA, so that kernels can be compiled and run as host code on a machine without
// one.
//
// Every CUDA thread is a fiber. Blocks run one after another; the threads of a block are resumed in
// random order and run until a barrier, so a missing barrier shows as a wrong result, and a barrier
// that not all threads reach as an exception. `__shared__` arrays are static: all threads of the
// block that is running see the same one.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __shared__ static

using cudaStream_t = void*;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x) : x(x) {}  // NOLINT: a number is a grid, as in CUDA
};

namespace cuda_on_cpu {

struct Thread {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(64 * 1024);
  dim3 index{0};
  bool done = false;
};

inline ucontext_t scheduler;
inline Thread* current = nullptr;
inline dim3 block_index{0};
inline std::vector<Thread> threads;
inline std::function<void()> body;
inline std::mt19937 random_order;

inline void enter() {
  body();
  current->done = true;
  swapcontext(&current->context, &scheduler);
}

inline void barrier() {
  swapcontext(&current->context, &scheduler);
}

inline void start(Thread& thread, unsigned index) {
  thread.index.x = index;
  thread.done = false;
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.data();
  thread.context.uc_stack.ss_size = thread.stack.size();
  makecontext(&thread.context, enter, 0);
}

inline void run_block(unsigned size) {
  threads.resize(size);
  std::vector<unsigned> order(size);
  std::iota(order.begin(), order.end(), 0u);
  for (unsigned i = 0; i < size; ++i) start(threads[i], i);
  for (;;) {
    std::shuffle(order.begin(), order.end(), random_order);
    for (unsigned i : order) {
      current = &threads[i];
      swapcontext(&scheduler, &current->context);
    }
    const auto finished = std::count_if(threads.begin(), threads.end(),
                                        [](const Thread& thread) { return thread.done; });
    if (finished == static_cast<int64_t>(size)) return;
    if (finished > 0) throw std::runtime_error("a barrier that not all threads reach");
  }
}

template <class Kernel, class... Args>
void launch(Kernel kernel, dim3 grid, dim3 block, const Args&... args) {
  body = [=] { kernel(args...); };
  for (block_index.x = 0; block_index.x < grid.x; ++block_index.x) run_block(block.x);
}

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::current->index)
#define blockIdx (cuda_on_cpu::block_index)

inline void __syncthreads() {
  cuda_on_cpu::barrier();
}

#define NNMF_CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  cuda_on_cpu::launch(kernel, grid, block, __VA_ARGS__)
