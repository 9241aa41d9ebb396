// Stacks that can be left and taken up again: what a CUDA thread becomes here.
//
// AddressSanitizer is told of every change of stack. It also watches the arrays on each of them,
// which it stops doing where it sees swapcontext; so the processors we know have a switch of their
// own, and swapcontext serves the others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>

#if !defined(__x86_64__)
#define CUDA_ON_CPU_SWAPCONTEXT
#endif
#if defined(CUDA_ON_CPU_SWAPCONTEXT)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_cpu {

constexpr size_t kStackSize = 256 * 1024;

struct Fiber {
#if defined(CUDA_ON_CPU_SWAPCONTEXT)
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
  // What AddressSanitizer wants to know.
  const void* bottom = nullptr;
  size_t size = 0;
  void* fake_stack = nullptr;
};

inline Fiber scheduler;  // the stack that the process was born with

#if !defined(CUDA_ON_CPU_SWAPCONTEXT)
// Saves the registers that a called function must keep and the place to return to on this stack,
// and goes on where the other one was left.
__attribute__((naked, noinline)) inline void switch_stack(void** /*left*/, void* /*taken_up*/) {
  asm("pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
      "movq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
      "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tret");
}
#endif

inline void switch_fiber(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
#if defined(CUDA_ON_CPU_SWAPCONTEXT)
  swapcontext(&from.context, &to.context);
#else
  switch_stack(&from.stack_pointer, to.stack_pointer);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// To be called first thing on a new fiber.
inline void arrived_on_new_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.bottom, &scheduler.size);
#endif
}

// Makes a fiber that begins with `run`, which must never return. Below the stack lies a page that
// cannot be touched.
inline void start_fiber(Fiber& fiber, void (*run)()) {
  constexpr size_t kGuard = 4096;
  void* memory = mmap(nullptr, kStackSize + kGuard, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0) {
    std::perror("cuda_on_cpu: no memory for the stack of a thread");
    std::exit(1);
  }
  char* const bottom = static_cast<char*>(memory) + kGuard;
  fiber.bottom = bottom;
  fiber.size = kStackSize;
#if defined(CUDA_ON_CPU_SWAPCONTEXT)
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = bottom;
  fiber.context.uc_stack.ss_size = kStackSize;
  makecontext(&fiber.context, run, 0);
#else
  // As switch_stack leaves a stack: six registers, the place to go on, and one word that makes the
  // stack pointer what it is at the start of a function.
  void** const top = reinterpret_cast<void**>(bottom + kStackSize);
  top[-2] = reinterpret_cast<void*>(run);
  fiber.stack_pointer = top - 8;
#endif
}

}  // namespace cuda_on_cpu
