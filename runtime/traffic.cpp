#include "runtime/traffic.h"

#include <algorithm>

#include "runtime/communicator.h"

namespace notellm {

void Traffic::gather(const char* name, int64_t own_bytes, int64_t calls) {
  add(name, CollectiveKind::gather, own_bytes * (ranks_ - 1), calls);
}

void Traffic::reduce_scatter(const char* name, int64_t all_bytes, int64_t own_bytes, int64_t calls) {
  add(name, CollectiveKind::reduce_scatter, all_bytes - own_bytes, calls);
}

void Traffic::all_reduce(const char* name, int64_t elements, int64_t element_bytes) {
  add(name, CollectiveKind::all_reduce, all_reduce_bytes(elements, element_bytes, rank_, ranks_), 1);
}

void Traffic::add(const Traffic& other, int64_t times) {
  for (const Item& item : other.items_) add(item.name, item.kind, item.bytes * times, item.calls * times);
}

void Traffic::add(const std::string& name, CollectiveKind kind, int64_t bytes, int64_t calls) {
  if (ranks_ == 1 || calls == 0) return;
  const auto found =
      std::ranges::find_if(items_, [&](const Item& item) { return item.name == name && item.kind == kind; });
  Item& item = found == items_.end() ? items_.emplace_back(Item{name, kind, 0, 0}) : *found;
  item.bytes += bytes;
  item.calls += calls;
}

int64_t Traffic::bytes(const std::string& name) const {
  int64_t sum = 0;
  for (const Item& item : items_) sum += item.name == name ? item.bytes : 0;
  return sum;
}

int64_t Traffic::bytes() const {
  int64_t sum = 0;
  for (const Item& item : items_) sum += item.bytes;
  return sum;
}

}  // namespace notellm
