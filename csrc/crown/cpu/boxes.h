// ISA source (see isa.h): bounds of both kinds of network over one box. The order matters: box.h
// has what the others share.
#include "box.h"
#include "cnn.h"
#include "mlp.h"
