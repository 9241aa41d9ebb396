// ISA source (see foreach_isa.h): what nnmf_mu and nnmf_hals compile for each instruction set.
// clang-format off: each builds on those above it
#include "tiles.h"
#include "packed.h"
#include "terms.h"
#include "row_sums.h"
#include "column_sums.h"
#include "update.h"
#include "half_steps.h"
#include "iterate.h"
