// The arguments of nnmf_mu, nnmf_hals and nnmf_divergence as a call from Python gives them.
#pragma once

#include "call.h"
#include "nnmf/cuda/device_problem.cuh"

namespace nnmf_cuda {

inline TermRule<double> terms_of(const cuda_on_cpu::Call& call) {
  return {call.number("beta_loss"), call.number("floor")};
}

// How both factors are updated: by coordinates where n_inner > 0.
struct Updates {
  Updates(const cuda_on_cpu::Call& call, double scale) {
    const int64_t n_inner = call.integer("n_inner"), n_fixed = call.integer("n_fixed");
    const double l1_W = call.number("l1_reg_W"), l1_H = call.number("l1_reg_H"),
                 l2_W = call.number("l2_reg_W"), l2_H = call.number("l2_reg_H");
    const TermRule<double> terms = terms_of(call);
    of_W = n_inner > 0 ? descent_of(l1_W, l2_W, scale, n_inner, 0)
                       : update_of_W(terms, l1_W, l2_W, scale);
    of_H = n_inner > 0 ? descent_of(l1_H, l2_H, scale, n_inner, n_fixed)
                       : update_of_H(terms, l1_H, l2_H, scale, n_fixed);
  }

  Update of_W, of_H;
};

template <class Data>
double scale_of() {
  return sizeof(Data) == 1 ? 1.0 / 255 : 1;
}

struct Memory {
  template <class T>
  T* get(int64_t size) {
    return call.scratch<T>(size);
  }
  cuda_on_cpu::Call& call;
};

template <class T>
struct Result {
  T* W;
  T* H;
};

inline Shape shape_of(const cuda_on_cpu::Call& call) {
  const bool shared = call.dims("X") == 2;
  const int64_t n = call.size("W", 1), f = call.size("H", 2);
  return {call.size("W", 0), n, f, call.size("W", 2), shared ? 0 : n * f, f};
}

template <class T, class Data>
struct Arguments {
  explicit Arguments(cuda_on_cpu::Call& call)
      : shape(shape_of(call)),
        // Bytes that are 0 or 1.
        problem{call.tensor<Data>("X"),
                call.tensor<T>("W"),
                call.tensor<T>("H"),
                shape,
                reinterpret_cast<const bool*>(call.tensor<uint8_t>("active")),
                {call.integer("multiprocessors"), 228 * 1024}},
        result{call.result<T>("W", {shape.batch, shape.n_samples, shape.n_components}),
               call.result<T>("H", {shape.batch, shape.n_components, shape.n_features})} {}

  DeviceProblem<T, Data> after() const {
    DeviceProblem<T, Data> updated = problem;
    updated.W = result.W;
    updated.H = result.H;
    return updated;
  }

  Shape shape;
  DeviceProblem<T, Data> problem;
  Result<T> result;
};

// Calls f(T, Data) for the types of the factors and of X.
template <class F>
void with_types(const cuda_on_cpu::Call& call, const F& f) {
  if (call.is<uint8_t>("X") && call.is<double>("W"))
    f(double{}, uint8_t{});
  else if (call.is<uint8_t>("X"))
    f(float{}, uint8_t{});
  else if (call.is<double>("X"))
    f(double{}, double{});
  else
    f(float{}, float{});
}

}  // namespace nnmf_cuda
