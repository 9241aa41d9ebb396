// Iterations of Kullback-Leibler on tensor cores: the cut of their half-steps and the launches. All
// but the sums over X is as in iterations.cuh.
#pragma once

#include <algorithm>
#include <cstdint>

#include "iterations.cuh"
#include "tensor_half_step.cuh"

namespace nnmf_cuda {

// How a half-step is cut into blocks of `items` rows; see Cut. Times are told in what a
// multiprocessor needs for one tile of one block where it has as many blocks as it can hold.
inline Cut tensor_cut_of(int64_t batch, int64_t length, int64_t depth, int items, int step,
                         int64_t multiprocessors) {
  constexpr int64_t kLongest = 512;  // float32 sums that go on further would lose digits
  constexpr double kStart = 1;       // of a block: its first copies, its last stores
  constexpr double kAlone = 0.3;     // what a block that has a multiprocessor to itself loses
  constexpr double kSplit = 0.02;    // to write and add up the sums of one more split
  Cut cut{length, depth, blocks_of(length, items), 1, blocks_of(depth, step)};
  const int64_t tiles = cut.tiles_of_split;
  double best = -1;
  for (int64_t each = 1; each <= std::min(tiles, kLongest / step); ++each) {
    const int64_t splits = blocks_of(tiles, each);
    const int64_t blocks = blocks_of(batch * cut.tiles * splits, multiprocessors);
    const double turns = static_cast<double>(blocks) + (blocks % kTensorResident != 0 ? kAlone : 0);
    const double time =
        turns * (static_cast<double>(each) + kStart) + kSplit * static_cast<double>(splits);
    if (best >= 0 && time >= best) continue;
    best = time;
    cut.splits = splits;
    cut.tiles_of_split = each;
  }
  return cut;
}

template <class Data>
class TensorIterations {
 public:
  // Whether there are kernels for so many components.
  static bool serves(int64_t n_components) { return n_components <= kTensorComponents; }

  // Memory has get<T>(size), as DeviceMemory.
  template <class Memory>
  TensorIterations(const DeviceProblem<float, Data>& problem, Memory& memory)
      : problem_(problem), W_(cut_for<Factor::kW>()), H_(cut_for<Factor::kH>()) {
    const int64_t rows = problem.shape.batch * kTensorComponents;
    W_packed_ = memory.template get<float>(rows * W_.length);
    H_packed_ = memory.template get<float>(rows * H_.length);
    W_parts_ = memory.template get<float>(rows * 2 * length_in_parts(W_.length));
    H_parts_ = memory.template get<float>(rows * 2 * length_in_parts(H_.length));
    numerators_ =
        memory.template get<float>(rows * std::max(W_.splits * W_.length, H_.splits * H_.length));
    sums_ = memory.template get<double>(rows * std::max(W_.splits, H_.splits));
  }

  // As Iterations::run.
  void run(const Update& update_W, const Update& update_H, int64_t n_iter, bool updates_H, float* W,
           float* H, cudaStream_t stream) const {
    const Shape& s = problem_.shape;
    const FactorLayout of_W = layout_of_W(s, kTensorComponents);
    const FactorLayout of_H = layout_of_H(s, kTensorComponents);
    launch_pack_parts(problem_.W, W_packed_, W_parts_, kInFours<Factor::kH>, s.batch, of_W, stream,
                      Starts::kAfter);
    launch_pack_parts(problem_.H, H_packed_, H_parts_, kInFours<Factor::kW>, s.batch, of_H, stream,
                      Starts::kEarly);
    for (int64_t i = 0; i < n_iter; ++i) {
      update<Factor::kW>(update_W, stream);
      if (updates_H) update<Factor::kH>(update_H, stream);
    }
    launch_unpack(W_packed_, W, s.batch, of_W, stream);
    launch_unpack(H_packed_, H, s.batch, of_H, stream);
  }

 private:
  // How a factor's half-step reads the other one.
  template <Factor factor>
  static constexpr bool kInFours = TensorTile<factor, Data>::kInFours;

  template <Factor factor>
  Cut cut_for() const {
    using Tile = TensorTile<factor, Data>;
    const Shape& s = problem_.shape;
    const bool rows = Tile::kIsW;
    return tensor_cut_of(s.batch, rows ? s.n_samples : s.n_features,
                         rows ? s.n_features : s.n_samples, Tile::kItems, Tile::kDepth,
                         problem_.device.multiprocessors);
  }

  template <Factor factor>
  void update(const Update& rule, cudaStream_t stream) const {
    const Shape& s = problem_.shape;
    constexpr bool kIsW = factor == Factor::kW;
    TensorStep<Data> step{};
    step.X = problem_.X;
    step.x_stride = s.x_stride;
    step.x_row_stride = s.x_row_stride;
    step.other = kIsW ? H_parts_ : W_parts_;
    step.own = kIsW ? W_packed_ : H_packed_;
    step.own_parts = kIsW ? W_parts_ : H_parts_;
    step.numerators = numerators_;
    step.sums = sums_;
    step.active = problem_.active;
    step.cut = kIsW ? W_ : H_;
    step.update = rule;
    step.terms = rule.terms.as<float>();
    step.n_components = static_cast<int>(s.n_components);
    step.n_fixed = static_cast<int>(rule.n_fixed);
    step.at_once = copied_at_once(problem_, kPiece, 0);
    launch_tensor_half_step<factor>(step, s.batch, stream);

    auto task = update_task(step, nullptr, kTensorComponents);
    task.parts = kIsW ? W_parts_ : H_parts_;
    task.parts_in_fours = kInFours < kIsW ? Factor::kH : Factor::kW > ;
    launch_update<Loss::kKullbackLeibler, true>(task, s.batch, stream);
  }

  DeviceProblem<float, Data> problem_;
  Cut W_, H_;
  float *W_packed_, *H_packed_, *W_parts_, *H_parts_, *numerators_;
  double* sums_;
};

}  // namespace nnmf_cuda
