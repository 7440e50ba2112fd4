// What a pass of the transformer takes and sends, from sizes alone: for whoever makes its arena, and for plans of ranks
// that are not there.
#pragma once

#include "model/parameters.h"
#include "runtime/device.h"
#include "runtime/dtype.h"
#include "runtime/traffic.h"

namespace notellm {

// A rank's part of the model, as Transformer has it.
struct TransformerShape {
  ModelConfig part;  // config_of_part
  DType compute;
  Device device;
  bool recompute;
  TensorPart tensor;
};

struct BatchSize {
  int64_t tokens = 0, hidden_rows = 0;
};

// Bytes of arena, of whichever rank of the tensor group; a little more than is used.
struct TransformerMemory {
  int64_t kept = 0;      // what forward leaves there: with keep what backward needs, else the hidden states
  int64_t forward = 0;   // most that forward has beyond that
  int64_t backward = 0;  // … and backward; without keep 0
};
// attention_floats: f32 elements of attention's workspace.
TransformerMemory transformer_memory(const TransformerShape& shape, BatchSize size, bool keep,
                                     int64_t attention_floats);

// Collectives of the tensor group. backward: of a pass with what `recompute` makes of it.
void add_forward(const TransformerShape& shape, BatchSize size, Traffic& tensor);
void add_backward(const TransformerShape& shape, BatchSize size, Traffic& tensor);
// Transformer::sum_copies of all layers and of the rest. kv_copies: the ranks that hold the same kv head.
void add_sums_of_copies(const ParameterLayout& layout, Traffic& tensor, Traffic& kv_copies);
// The rank's place among the ranks that hold the same kv head.
TensorPart kv_copies_of(const ModelConfig& config, TensorPart tensor);

}  // namespace notellm
