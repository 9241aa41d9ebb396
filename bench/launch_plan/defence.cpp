// The defence of a launch plan.
#include "diffusion/cuda/launches.cuh"
#include "plan.h"

namespace {

using namespace nnmf_cuda;
using namespace launch_plan;

DefenceParams<float> defence() {
  const int64_t m = number("f"), hidden = number("hidden"), classes = 2;
  const auto layer = [](int64_t outputs, int64_t inputs) {
    return LayerParams<float>{somewhere<float>(), somewhere<float>(), outputs, inputs};
  };
  DefenceParams<float> p{};
  p.x = somewhere<float>();
  p.n_samples = number("n");
  p.n_draws = number("draws");
  p.n_features = m;
  p.noise = somewhere<float>();
  p.timesteps = somewhere<int64_t>();
  p.n_steps = 1;
  p.alphas_cumprod = somewhere<double>();
  p.n_alphas = 1000;
  p.denoiser = {layer(hidden, m + number("embedding")), layer(hidden, hidden), layer(m, hidden)};
  p.classifier = {layer(16, 3), layer(32, 48), layer(64, 32 * (m / 2)), layer(classes, 64)};
  return p;
}

void defended(bool gradient) {
  Memory memory;
  const DefenceParams<float> p = defence();
  note("rows_of_block", kBlockRows);
  note("words", p.n_words());
  // What a forward pass keeps is asked for where a gradient will be.
  float* const prepared = gradient ? somewhere<float>() : nullptr;
  launch_defence_forward(p, somewhere<float>(), gradient ? somewhere<uint32_t>() : nullptr,
                         prepared, device(), memory, nullptr);
  if (gradient)
    launch_defence_backward<float>(p, somewhere<float>(), somewhere<uint32_t>(), prepared,
                                   somewhere<float>(), nullptr, device(), memory, nullptr);
}

const bool added[] = {add_call("defended_logits float32", [] { defended(false); }),
                      add_call("defended_logits_gradient float32", [] { defended(true); })};

}  // namespace
