// Iterations of Kullback-Leibler on tensor cores, and the product that they are made of.
#include "call.h"
#include "nnmf/cuda/tensor_iterations.cuh"
#include "nnmf_call.h"

namespace {

using namespace nnmf_cuda;

template <class Data>
void run(cuda_on_cpu::Call& call) {
  const Arguments<float, Data> arguments(call);
  Memory memory{call};
  const TensorIterations<Data> iterations(arguments.problem, memory);
  const Updates updates(call, scale_of<Data>());
  iterations.run(updates.of_W, updates.of_H, call.integer("n_iter"), call.integer("update_H") != 0,
                 arguments.result.W, arguments.result.H, nullptr);
}

// D = A B + C by one warp: A, C and D of 16 rows and 8 columns, B of 8 and 8.
__global__ void product_kernel(const float* A, const float* B, const float* C, float* D) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const MmaA a = {bits_of(A[g * 8 + t]), bits_of(A[(g + 8) * 8 + t]), bits_of(A[g * 8 + t + 4]),
                  bits_of(A[(g + 8) * 8 + t + 4])};
  const MmaB b = {bits_of(B[t * 8 + g]), bits_of(B[(t + 4) * 8 + g])};
  const int at[4] = {g * 8 + 2 * t, g * 8 + 2 * t + 1, (g + 8) * 8 + 2 * t,
                     (g + 8) * 8 + 2 * t + 1};
  MmaC c = {C[at[0]], C[at[1]], C[at[2]], C[at[3]]};
  mma(c, a, b);
  for (int i = 0; i < 4; ++i) D[at[i]] = c[i];
}

__global__ void split_kernel(const float* x, float* hi, float* lo, int64_t size) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  if (at >= size) return;
  uint32_t bits[2];
  split(x[at], bits[0], bits[1]);
  hi[at] = __builtin_bit_cast(float, bits[0]);
  lo[at] = __builtin_bit_cast(float, bits[1]);
}

}  // namespace

CUDA_ON_CPU_CALL(nnmf_tensor) {
#if !defined(FEW_KERNELS)
  if (call.is<uint8_t>("X")) return run<uint8_t>(call);
#endif
  run<float>(call);
}

CUDA_ON_CPU_CALL(tensor_cut) {
  const Cut cut =
      tensor_cut_of(call.integer("batch"), call.integer("length"), call.integer("depth"), 256,
                    call.integer("step"), call.integer("multiprocessors"));
  int64_t* const found = call.result<int64_t>("cut", {3});
  found[0] = cut.tiles;
  found[1] = cut.splits;
  found[2] = cut.tiles_of_split;
}

CUDA_ON_CPU_CALL(part_places) {
  int32_t* const first = call.result<int32_t>("first", {2, 2, kWarp});
  int32_t* const second = call.result<int32_t>("second", {2, 2, kWarp});
  for (int i = 0; i < 4 * kWarp; ++i) {
    const int deep = i / kWarp / 2, half = i / kWarp % 2, g = i % kWarp / 4, t = i % 4;
    first[i] = part_of_first(deep, half, g, t);
    second[i] = part_of_second(deep, half, g, t);
  }
}

CUDA_ON_CPU_CALL(mma) {
  NNMF_CUDA_LAUNCH(product_kernel, 1, kWarp, 0, nullptr, call.tensor<float>("A"),
                   call.tensor<float>("B"), call.tensor<float>("C"),
                   call.result<float>("D", {16, 8}));
}

CUDA_ON_CPU_CALL(split) {
  const int64_t n = call.size("x", 0);
  NNMF_CUDA_LAUNCH(split_kernel, grid_of(blocks_of(n, kWarp)), kWarp, 0, nullptr,
                   call.tensor<float>("x"), call.result<float>("hi", {n}),
                   call.result<float>("lo", {n}), n);
}
