// crown_bounds, once for both devices: what it is given is checked here and its results are
// allocated; an Implementation, constructed from a tensor of the device, computes them where there
// is anything to compute.
//
//   crown_bounds(Tensor lower, Tensor upper, Tensor[] weights, Tensor objective, Tensor?
//   center=None,
//     Tensor? radius=None, Tensor? hidden_lower=None, Tensor? hidden_upper=None)
//       -> (Tensor, Tensor, Tensor, Tensor)
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../common/arguments.h"
#include "problem.h"

namespace nnmf_cuda {

// Everything crown_bounds is given, as float64 side by side on one device.
class CrownArguments {
 public:
  // lower, upper [B, n]; weights as FeatureCNN or an MLP has them; objective [B, classes]
  CrownArguments(const Tensor& lower, const Tensor& upper, const std::vector<Tensor>& weights,
                 const Tensor& objective)
      : lower_(lower) {
    lower_ = real({"lower", lower}, 2);
    upper_ = real({"upper", upper}, 2);
    objective_ = real({"objective", objective}, 2);
    check_size({"upper", upper_}, 0, n_boxes(), "boxes");
    check_size({"upper", upper_}, 1, lower_.size(1), "n_features");
    check_size({"objective", objective_}, 0, n_boxes(), "boxes");
    STD_TORCH_CHECK(weights.size() >= 4 && weights.size() % 2 == 0,
                    "weights must be weight and bias of at least two layers, got ", weights.size(),
                    " tensors");
    is_cnn_ = weights[0].dim() == 3;
    STD_TORCH_CHECK(!is_cnn_ || weights.size() == 8, "weights of a FeatureCNN must be 8, got ",
                    weights.size());
    for (std::size_t i = 0; i < weights.size(); ++i)
      weights_.push_back(real({"weights", weights[i]}, i % 2 ? 1 : is_cnn_ && i < 4 ? 3 : 2));
    check_layers();
  }

  CrownArguments& within_balls(const std::optional<Tensor>& center,
                               const std::optional<Tensor>& radius) {
    STD_TORCH_CHECK(center.has_value() == radius.has_value(),
                    "center and radius must be given together");
    if (!center.has_value()) return *this;
    center_ = real({"center", *center}, 2);
    radius_ = real({"radius", *radius}, 1);
    check_size({"center", *center_}, 0, n_boxes(), "boxes");
    check_size({"center", *center_}, 1, lower_.size(1), "n_features");
    check_size({"radius", *radius_}, 0, n_boxes(), "boxes");
    return *this;
  }

  CrownArguments& with_hidden(const std::optional<Tensor>& lower,
                              const std::optional<Tensor>& upper) {
    STD_TORCH_CHECK(lower.has_value() == upper.has_value(),
                    "hidden_lower and hidden_upper must be given together");
    if (!lower.has_value()) return *this;
    hidden_lower_ = real({"hidden_lower", *lower}, 2);
    hidden_upper_ = real({"hidden_upper", *upper}, 2);
    for (const Tensor& hidden : {*hidden_lower_, *hidden_upper_}) {
      check_size({"hidden", hidden}, 0, n_boxes(), "boxes");
      check_size({"hidden", hidden}, 1, n_hidden(), "hidden units");
    }
    return *this;
  }

  bool is_cnn() const { return is_cnn_; }
  int64_t n_boxes() const { return lower_.size(0); }
  int64_t n_hidden() const { return weights_[weights_.size() - 3].size(0); }
  const Tensor& like() const { return lower_; }

  std::vector<CrownLayer> layers() const {
    std::vector<CrownLayer> layers;
    for (std::size_t i = 0; i < weights_.size(); i += 2) {
      const Tensor& weight = weights_[i];
      layers.push_back({weight.const_data_ptr<double>(), weights_[i + 1].const_data_ptr<double>(),
                        weight.size(0), inputs_of(weight)});
    }
    return layers;
  }

  CnnShape cnn_shape() const {
    return {lower_.size(1), weights_[0].size(0), weights_[2].size(0), weights_[4].size(0),
            weights_[6].size(0)};
  }

  // All but the results.
  CrownBoxes boxes() const {
    CrownBoxes boxes{};
    boxes.n_boxes = n_boxes();
    boxes.n_features = lower_.size(1);
    boxes.n_classes = objective_.size(1);
    boxes.n_hidden = n_hidden();
    boxes.lower = lower_.const_data_ptr<double>();
    boxes.upper = upper_.const_data_ptr<double>();
    boxes.objective = objective_.const_data_ptr<double>();
    const auto pointer = [](const std::optional<Tensor>& tensor) {
      return tensor.has_value() ? tensor->const_data_ptr<double>() : nullptr;
    };
    boxes.center = pointer(center_);
    boxes.radius = pointer(radius_);
    boxes.hidden_lower = pointer(hidden_lower_);
    boxes.hidden_upper = pointer(hidden_upper_);
    return boxes;
  }

 private:
  Tensor real(const Argument& a, int64_t dim) const {
    STD_TORCH_CHECK(a.tensor.scalar_type() == ScalarType::Double, a.name, " must be float64, got ",
                    dtype_name(a.tensor.scalar_type()));
    check_same_device(a, {"lower", lower_});
    check_dim(a, dim);
    return adjacent(a.tensor);
  }

  static int64_t inputs_of(const Tensor& weight) {
    return weight.dim() == 2 ? weight.size(1) : weight.size(1) * weight.size(2);
  }

  void check_layers() const {
    int64_t given = is_cnn_ ? 1 : lower_.size(1);
    STD_TORCH_CHECK(!is_cnn_ || lower_.size(1) >= 2,
                    "lower must have at least 2 features for a max-pool of 2, got ",
                    lower_.size(1));
    for (std::size_t i = 0; i < weights_.size(); i += 2) {
      const Tensor& weight = weights_[i];
      if (is_cnn_ && i == 4) given *= lower_.size(1) / 2;
      check_size({"weights", weight}, 1, given, "outputs of the layer before");
      if (weight.dim() == 3) check_size({"weights", weight}, 2, 3, "taps");
      check_size({"weights", weights_[i + 1]}, 0, weight.size(0), "outputs of its layer");
      given = weight.size(0);
      STD_TORCH_CHECK(given > 0, "weights must have outputs in every layer");
    }
    check_size({"objective", objective_}, 1, given, "classes");
  }

  bool is_cnn_ = false;
  Tensor lower_, upper_, objective_;
  std::vector<Tensor> weights_;
  std::optional<Tensor> center_, radius_, hidden_lower_, hidden_upper_;
};

// Implementation: bound(arguments, boxes).
template <class Implementation>
std::tuple<Tensor, Tensor, Tensor, Tensor> crown_bounds(
    const Tensor& lower, const Tensor& upper, std::vector<Tensor> weights, const Tensor& objective,
    std::optional<Tensor> center, std::optional<Tensor> radius, std::optional<Tensor> hidden_lower,
    std::optional<Tensor> hidden_upper) {
  CrownArguments a(lower, upper, weights, objective);
  a.within_balls(center, radius).with_hidden(hidden_lower, hidden_upper);
  Implementation device(a.like());
  CrownBoxes boxes = a.boxes();
  const auto result = [&](std::vector<int64_t> shape) {
    return torch::stable::new_empty(a.like(), shape);
  };
  const Tensor bound = result({boxes.n_boxes}), slope = result({boxes.n_boxes, boxes.n_features}),
               new_lower = result({boxes.n_boxes, boxes.n_hidden}),
               new_upper = result({boxes.n_boxes, boxes.n_hidden});
  if (boxes.n_boxes > 0) {
    boxes.bound = bound.mutable_data_ptr<double>();
    boxes.slope = slope.mutable_data_ptr<double>();
    boxes.new_hidden_lower = new_lower.mutable_data_ptr<double>();
    boxes.new_hidden_upper = new_upper.mutable_data_ptr<double>();
    device.bound(a, boxes);
  }
  return {bound, slope, new_lower, new_upper};
}

}  // namespace nnmf_cuda
