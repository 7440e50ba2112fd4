// Times of single ops beside their floors: what `bench gemm` and `bench kernels` share.
#pragma once

#include <functional>
#include <map>

#include "launch/bench_report.h"
#include "launch/operands.h"

namespace notellm {

// On all ranks at once; the slowest counts. An op is called again and again with the same operands. So what fits into
// the caches is there, as it is in a step, where the op before has just written it; and the floor, a plain copy that
// moves as much in the same way, finds the same.
class OpTimer {
 public:
  OpTimer(const RunConfig& config, Communicator& ranks)
      : config_(config), ranks_(ranks), stream_(config.device), operands_(config.device) {}

  Stream& stream() { return stream_; }
  Operands& operands() { return operands_; }
  DType compute() const { return config_.compute(); }
  // The large product of this type, measured when it is first asked for.
  const LargeProduct& product(DType dtype);

  using Work = std::function<void()>;
  // An op that must read and write `bytes` bytes.
  BenchRow memory_op(std::string name, double bytes, const Work& work);
  // An op whose products of this type are `flops` operations.
  BenchRow product_op(std::string name, DType dtype, double flops, const Work& work);

  // The large products that were measured, by type, for the file.
  nlohmann::ordered_json products() const;
  std::string heading();

 private:
  double seconds(const Work& work);

  const RunConfig& config_;
  Communicator& ranks_;
  Stream stream_;
  Operands operands_;
  std::map<DType, LargeProduct> products_;
};

}  // namespace notellm
