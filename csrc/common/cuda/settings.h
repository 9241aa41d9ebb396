// Choices that environment variables make, for one visit to a GPU to time each of them.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace nnmf_cuda {

// The number that the environment variable `name` gives, one of `choices`; `standard` where it is
// not set.
inline int setting(const char* name, int standard, std::initializer_list<int> choices) {
  const char* const given = std::getenv(name);
  if (given == nullptr || *given == '\0') return standard;
  const auto* const found = std::find_if(
      choices.begin(), choices.end(), [&](int choice) { return std::to_string(choice) == given; });
  if (found != choices.end()) return *found;
  std::string error = std::string(name) + "=" + given + " is not a choice: unset it for " +
                      std::to_string(standard) + ", or set it to one of";
  for (const int choice : choices) error += " " + std::to_string(choice);
  throw std::runtime_error(error);
}

// Rows (or columns) of X that a lane owns where there are 9 to 16 components, in float32 and for
// Kullback-Leibler: 2 or 4, read once. Two leave registers for three warps a scheduler instead of
// two, but take a twelfth more instructions.
inline int own_rows() {
  static const int rows = setting("NNMF_CUDA_OWN_ROWS", 4, {2, 4});
  return rows;
}

}  // namespace nnmf_cuda
