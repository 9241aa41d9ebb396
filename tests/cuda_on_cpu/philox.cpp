// The CUDA kernel of philox_normal, and what it is made of.
#include "diffusion/cuda/philox.cuh"

#include "call.h"

namespace {

using namespace nnmf_cuda;

template <class T>
void draw(cuda_on_cpu::Call& call) {
  const DrawsShape s{call.integer("n_steps"), call.integer("n_rows"), call.integer("n_draws"),
                     call.integer("n_features")};
  T* draws = call.result<T>("draws", {s.n_steps, s.n_rows, s.n_draws, s.n_features});
  const auto seed = static_cast<uint64_t>(*call.tensor<int64_t>("seed"));
  launch_philox_normal(draws, s, seed, call.integer("multiprocessors"), nullptr);
}

// Row i of a tensor of words, each in an int64.
PhiloxWords words_of(const int64_t* words, int64_t i) {
  PhiloxWords row;
  for (int w = 0; w < 4; ++w) row.word[w] = static_cast<uint32_t>(words[4 * i + w]);
  return row;
}

}  // namespace

CUDA_ON_CPU_CALL(philox_normal) {
  call.number("wide") != 0 ? draw<double>(call) : draw<float>(call);
}

CUDA_ON_CPU_CALL(philox_4x32) {
  const int64_t n = call.size("counter", 0);
  const int64_t *counter = call.tensor<int64_t>("counter"), *key = call.tensor<int64_t>("key");
  int64_t* words = call.result<int64_t>("words", {n, 4});
  for (int64_t i = 0; i < n; ++i) {
    const PhiloxWords row = philox_4x32(words_of(counter, i), static_cast<uint32_t>(key[0]),
                                        static_cast<uint32_t>(key[1]));
    for (int w = 0; w < 4; ++w) words[4 * i + w] = row.word[w];
  }
}

CUDA_ON_CPU_CALL(normal_from_words) {
  const int64_t n = call.size("words", 0);
  const int64_t* words = call.tensor<int64_t>("words");
  float* normals = call.result<float>("scalar", {n});
  for (int64_t i = 0; i < n; ++i) normals[i] = normal_from_words(words_of(words, i));
}
