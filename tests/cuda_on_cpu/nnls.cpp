// The CUDA kernels of nnls and nnls_backward.
#include <algorithm>

#include "call.h"
#include "nnls/nnls_kernels.cuh"

namespace {

using namespace nnmf_cuda;

struct Problem {
  int64_t batch, n, k;
  DeviceGrams grams;
  double* matrices;
  uint8_t* unsolved;
};

Problem prepare(cuda_on_cpu::Call& call, const char* rows) {
  const int64_t batch = call.size(rows, 0), n = call.size(rows, 1), k = call.size(rows, 2);
  const DeviceGrams grams{call.scratch<double>(batch * doubles_of_gram(k)), k};
  if (call.is<double>("gram"))
    launch_prepare_grams(call.tensor<double>("gram"), batch, grams, nullptr);
  else
    launch_prepare_grams(call.tensor<float>("gram"), batch, grams, nullptr);
  return {batch,
          n,
          k,
          grams,
          call.scratch<double>(row_scratch_doubles(batch * n, k)),
          call.result<uint8_t>("unsolved", {batch, n})};
}

template <class T>
void solve(cuda_on_cpu::Call& call) {
  const Problem p = prepare(call, "cross");
  const NnlsRows<T, T> rows{call.tensor<T>("cross"),
                            call.result<T>("h", {p.batch, p.n, p.k}),
                            p.unsolved,
                            p.batch,
                            p.n,
                            p.k};
  if (call.number("slowly") == 0) {
    launch_nnls(rows, p.grams, p.matrices, nullptr);
  } else {
    std::fill_n(p.unsolved, p.batch * p.n, uint8_t{1});
    launch_lawson_hanson(rows, p.grams, p.matrices, nullptr);
  }
}

template <class T>
void solve_backward(cuda_on_cpu::Call& call) {
  const Problem p = prepare(call, "grad");
  const BackwardRows<T> rows{call.tensor<T>("h"),
                             call.tensor<T>("grad"),
                             call.result<double>("u", {p.batch, p.n, p.k}),
                             p.unsolved,
                             p.batch,
                             p.n,
                             p.k};
  launch_nnls_backward(rows, p.grams, p.matrices, nullptr);
}

}  // namespace

CUDA_ON_CPU_CALL(nnls) {
  if (call.is<double>("cross"))
    solve<double>(call);
  else
    solve<float>(call);
}

CUDA_ON_CPU_CALL(nnls_backward) {
  if (call.is<double>("grad"))
    solve_backward<double>(call);
  else
    solve_backward<float>(call);
}
