// ISA source (see foreach_isa.h): what nnmf_divergence compiles for each instruction set.
// clang-format off: each builds on those above it
#include "tiles.h"
#include "packed.h"
#include "../common/logarithm.h"
#include "divergence_tiles.h"
