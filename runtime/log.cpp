#include "runtime/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

namespace notellm {

void set_up_logging(int rank, int ranks) {
  auto logger = spdlog::stderr_color_mt("notellm");
  logger->set_pattern(ranks > 1 ? fmt::format("%H:%M:%S [rank {}] %^%l%$ %v", rank) : "%H:%M:%S %^%l%$ %v");
  logger->set_level(rank == 0 ? spdlog::level::info : spdlog::level::warn);
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(logger);
}

}  // namespace notellm
