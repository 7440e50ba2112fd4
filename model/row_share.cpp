#include "model/row_share.h"

namespace notellm {

RowShare::RowShare(TensorPart part, Device device) : part_(part), tile_(tile_rows_of(device)) {
  if (tile_ % part.count != 0)
    fail(ErrorKind::usage, "parallel.tensor {} does not divide {}, the rows of a tile: take a power of 2", part.count,
         tile_);
}

int64_t RowShare::before(int64_t rows) const {
  const int64_t rest = rows % tile_;
  return rows / tile_ * (tile_ / part_.count) + begin_of(part_.index + 1, rest) - begin_of(part_.index, rest);
}

Tensor RowShare::own_part(Tensor all) const {
  return all.slice(begin_of(part_.index, all.rows()), begin_of(part_.index + 1, all.rows()));
}

int64_t RowShare::place_of(int64_t row, int64_t rows) const {
  const int64_t tile = row / tile_, in_tile = row % tile_, of_tile = std::min(tile_, rows - tile * tile_);
  const int64_t begin = begin_of(part_.index, of_tile), end = begin_of(part_.index + 1, of_tile);
  return begin <= in_tile && in_tile < end ? tile * (tile_ / part_.count) + in_tile - begin : -1;
}

std::vector<int64_t> RowShare::rows_of(int64_t rows) const {
  std::vector<int64_t> counts;
  for (int r = 0; r < part_.count; ++r) counts.push_back(begin_of(r + 1, rows) - begin_of(r, rows));
  return counts;
}

void RowShare::gather(Stream& stream, Communicator& group, const char* name, Tensor all) const {
  if (part_.count > 1) group.all_gather_rows(stream, name, own_part(all), rows_of(all.rows()), all);
}

void RowShare::reduce(Stream& stream, Communicator& group, const char* name, Tensor all) const {
  if (part_.count > 1) group.reduce_scatter_rows(stream, name, all, rows_of(all.rows()), own_part(all));
}

}  // namespace notellm
