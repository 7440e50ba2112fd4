// What a rank will send in collectives that are known beforehand, counted as Communicator::bytes_sent counts it when
// they happen.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace notellm {

enum class CollectiveKind : uint8_t { gather, reduce_scatter, all_reduce };

// Of one group of ranks. In a group of one rank nothing is sent, and nothing is listed.
class Traffic {
 public:
  Traffic(int rank, int ranks) : rank_(rank), ranks_(ranks) {}

  // Bytes of the rank's own part, and of all parts together, in all `calls` collectives.
  void gather(const char* name, int64_t own_bytes, int64_t calls = 1);
  void reduce_scatter(const char* name, int64_t all_bytes, int64_t own_bytes, int64_t calls = 1);
  void all_reduce(const char* name, int64_t elements, int64_t element_bytes);
  void add(const Traffic& other, int64_t times = 1);

  // Those of one name and kind together, in the order of their first.
  struct Item {
    std::string name;
    CollectiveKind kind;
    int64_t bytes;  // that leave the rank
    int64_t calls;
  };
  const std::vector<Item>& items() const { return items_; }
  int64_t bytes(const std::string& name) const;  // of all kinds
  int64_t bytes() const;
  int ranks() const { return ranks_; }

 private:
  void add(const std::string& name, CollectiveKind kind, int64_t bytes, int64_t calls);
  int rank_, ranks_;
  std::vector<Item> items_;
};

}  // namespace notellm
