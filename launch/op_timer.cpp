#include "launch/op_timer.h"

#include "launch/device_facts.h"

namespace notellm {
namespace {

constexpr double measured_seconds = 0.05;  // of each op

}  // namespace

const LargeProduct& OpTimer::product(DType dtype) {
  if (!products_.contains(dtype)) products_[dtype] = measure_large_product(ranks_, dtype, config_.device);
  return products_[dtype];
}

double OpTimer::seconds(const Work& work) {
  ranks_.barrier("kernel");
  return ranks_.max("slowest rank", seconds_of_call(stream_, measured_seconds, work));
}

BenchRow OpTimer::memory_op(std::string name, double bytes, const Work& work) {
  BenchRow row{.name = std::move(name), .kind = "memory", .bytes = bytes};
  {
    Operands buffers(config_.device);
    const auto half_bytes = static_cast<int64_t>(bytes / 2), elements = std::max<int64_t>(1, half_bytes / 2);
    const Tensor from = buffers.zeros(DType::bf16, {elements}), to = buffers.zeros(DType::bf16, {elements});
    row.copy_seconds = seconds([&] { copy_memory(stream_, from, to); });
  }
  row.seconds = seconds(work);
  return row;
}

BenchRow OpTimer::product_op(std::string name, DType dtype, double flops, const Work& work) {
  const double large_product = product(dtype).flops_per_second;
  return {.name = std::move(name),
          .kind = "product",
          .seconds = seconds(work),
          .flops = flops,
          .large_product = large_product,
          .peak = device_peak(config_.device, dtype)};
}

nlohmann::ordered_json OpTimer::products() const {
  nlohmann::ordered_json json;
  for (const auto& [dtype, product] : products_)
    json[name_of(dtype)] = product_json(product, device_peak(config_.device, dtype));
  return json;
}

std::string OpTimer::heading() {
  return fmt::format("{}; each rank: {}", bench_heading(config_, ranks_),
                     product_text(product(compute()), device_peak(config_.device, compute())));
}

}  // namespace notellm
