// The factorisations and least squares of a launch plan.
#include "nnls/cuda/project.cuh"
#include "nnmf/cuda/iterations.cuh"
#include "nnmf/cuda/resident.cuh"
#include "nnmf/cuda/tensor_iterations.cuh"
#include "nnmf/cuda/weighted_iterations.cuh"
#include "plan.h"
#include "sparse/cuda/descent.cuh"
#include "sparse/cuda/iterations.cuh"

namespace {

using namespace nnmf_cuda;
using namespace launch_plan;

Shape shape() {
  const int64_t n = number("n"), f = number("f");
  return {number("batch"), n, f, number("k"), number("own_X") != 0 ? n * f : 0, f};
}

template <class T, class Data>
DeviceProblem<T, Data> problem() {
  return {somewhere<Data>(), somewhere<T>(), somewhere<T>(), shape(), nullptr, device()};
}

template <class Tiling, Factor factor, class Problem>
void note_cut(const char* name, const Problem& problem, int group) {
  const Cut cut = cut_for<Tiling, factor>(problem, group);
  const std::string of = name;
  note(of + "_tiles", cut.tiles);
  note(of + "_splits", cut.splits);
  note(of + "_each", cut.tiles_of_split);
  note(of + "_items", stage_of<Tiling, factor>(group).items);
  note(of + "_depth", Tiling::kDepth);
}

const TermRule<double> kRule{1, kEpsilon};

template <Factor factor, class Data>
void note_tensor_cut(const std::string& name, const Shape& s) {
  using Tile = TensorTile<factor, Data>;
  const int64_t length = Tile::kIsW ? s.n_samples : s.n_features;
  const int64_t depth = Tile::kIsW ? s.n_features : s.n_samples;
  const Cut cut =
      tensor_cut_of(s.batch, length, depth, Tile::kItems, Tile::kDepth, number("multiprocessors"));
  note(name + "_splits", cut.splits);
  note(name + "_each", cut.tiles_of_split);
  note(name + "_depth", Tile::kDepth);
}

template <class Data>
void mu() {
  const auto p = problem<float, Data>();
  const Update of_W = update_of_W(kRule, 0, 0, 1), of_H = update_of_H(kRule, 0, 0, 1, 0);
  if (number("tensor") != 0) {
    note_tensor_cut<Factor::kW, Data>("W", p.shape);
    note_tensor_cut<Factor::kH, Data>("H", p.shape);
    note("padded", kTensorComponents);
    Memory memory;
    return TensorIterations<Data>(p, memory).run(of_W, of_H, number("n_iter"), true,
                                                 somewhere<float>(), somewhere<float>(), nullptr);
  }
  if (stays_resident(p.shape, p.device))
    return launch_resident(p, of_W, of_H, number("n_iter"), true, somewhere<float>(),
                           somewhere<float>(), nullptr);
  dispatch_tiling<Loss::kKullbackLeibler, float, Data>(
      p.shape.n_components, [&]<class Tiling>(Tiling, int group) {
        note_cut<Tiling, Factor::kW>("W", p, group);
        note_cut<Tiling, Factor::kH>("H", p, group);
        note("padded", Tiling::kComponents * group);
        note("used", Tiling::kUsed * group);
        Memory memory;
        Iterations<Tiling>(p, group, memory)
            .run(of_W, of_H, number("n_iter"), true, somewhere<float>(), somewhere<float>(),
                 nullptr);
      });
}

ActiveSets sets(bool warm) {
  return {warm ? somewhere<bool>() : nullptr, 0, somewhere<bool>(), somewhere<int64_t>()};
}

template <class T>
void nnls() {
  const bool warm = number("warm") != 0;
  Memory memory;
  launch_nnls(somewhere<T>(), somewhere<T>(), somewhere<T>(), sets(warm),
              {1, number("n"), number("k")}, memory, nullptr);
}

template <class Data>
void project() {
  const auto p = problem<float, Data>();
  dispatch_tiling<Loss::kFrobenius, float, Data>(p.shape.n_components,
                                                 [&]<class Tiling>(Tiling, int group) {
                                                   note_cut<Tiling, Factor::kW>("W", p, group);
                                                   note("padded", Tiling::kComponents * group);
                                                   note("used", Tiling::kUsed * group);
                                                 });
  Memory memory;
  PreparedComponents<float> ready{};
  if (number("ready") != 0) {
    ready.packed = somewhere<float>();
    ready.grams = somewhere<double>();
  }
  launch_project(p, 1, somewhere<float>(), sets(false), ready, memory, nullptr);
}

SparseParams<float, int32_t> sparse(int64_t rows, int64_t columns) {
  return {somewhere<int32_t>(),
          somewhere<int32_t>(),
          somewhere<float>(),
          somewhere<float>(),
          somewhere<float>(),
          {number("batch"), rows, columns, number("k"), number("nonzeros")},
          nullptr};
}

void sparse_mu() {
  Memory memory;
  SparseIterations<Loss::kKullbackLeibler, float, int32_t>(sparse(number("n"), number("f")), true,
                                                           memory, nullptr)
      .run(update_of_W(kRule, 0, 0, 1), update_of_H(kRule, 0, 0, 1, 0), number("n_iter"), true,
           somewhere<float>(), somewhere<float>());
}

void sparse_cd() {
  Memory memory;
  const auto transposed = sparse(number("f"), number("n"));
  const Descent descent{0, 0, kEpsilon, 1, 0};
  SparseDescents<float, int32_t>(sparse(number("n"), number("f")), &transposed, memory, nullptr)
      .run(descent, descent, number("n_iter"), somewhere<float>(), somewhere<float>());
}

void weighted_mu() {
  Memory memory;
  const auto p = problem<float, float>();
  const Weights<float> bits{somewhere<uint8_t>(), nullptr, (p.shape.n_features + 7) / 8, 0};
  WeightedIterations<Loss::kKullbackLeibler, float, float>(p, bits, memory)
      .run(update_of_W(kRule, 0, 0, 1), update_of_H(kRule, 0, 0, 1, 0), number("n_iter"), true,
           somewhere<float>(), somewhere<float>(), nullptr);
}

const bool added[] = {add_call("nnmf_mu float32", mu<float>),
                      add_call("nnmf_mu uint8", mu<uint8_t>),
                      add_call("nnls float32", nnls<float>),
                      add_call("nnls float64", nnls<double>),
                      add_call("project float32", project<float>),
                      add_call("project uint8", project<uint8_t>),
                      add_call("nnmf_sparse_mu float32", sparse_mu),
                      add_call("nnmf_sparse_cd float32", sparse_cd),
                      add_call("nnmf_weighted_mu float32", weighted_mu)};

}  // namespace
