// How the ranks of a tensor group share the rows of the residual stream (sequence parallelism, arXiv 2205.05198).
//
// Norms and residuals are computed for a rank's own rows alone; a product wants all rows, which are gathered before it,
// and gives sums over the ranks' inputs, which are reduced to the rows' owners behind it. Every tile's rows are shared
// out evenly, so that all ranks have the same to do in each tile. A rank keeps its own rows of all tiles one after the
// other. With one rank all rows are its own, and nothing is copied.
#pragma once

#include <vector>

#include "model/parameters.h"
#include "model/tiles.h"
#include "runtime/communicator.h"

namespace notellm {

// Rows [begin, end).
struct Rows {
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

class RowShare {
 public:
  // Rows in tiles of tile_rows_of(device). Throws Error(usage): the tile's rows do not divide by the group's size.
  RowShare(TensorPart part, Device device);

  // How many of `rows` rows are the rank's own.
  int64_t own_count(int64_t rows) const { return before(rows); }
  // The rank's rows of a tile, or of several neighbouring ones, as rows of what it keeps.
  Rows own(Rows tile) const { return {before(tile.begin), before(tile.end)}; }
  // Where the rank's rows stand in all rows of one tile: rows of `all` [tile's rows, …].
  Tensor own_part(Tensor all) const;
  // Where the rank keeps row `row` of `rows`; −1: it does not.
  int64_t place_of(int64_t row, int64_t rows) const;

  // `all` of one tile, in which the rank has written own_part(all): all ranks' rows are there afterwards.
  void gather(Stream& stream, Communicator& group, const char* name, Tensor all) const;
  // `all` of one tile: own_part(all) becomes the sum over the ranks; the other rows are lost.
  void reduce(Stream& stream, Communicator& group, const char* name, Tensor all) const;

  TensorPart part() const { return part_; }

 private:
  // Of a tile's `rows` rows those of the ranks before `rank`.
  int64_t begin_of(int rank, int64_t rows) const { return rows * rank / part_.count; }
  // The rank's rows among the first `rows`, which end with a tile.
  int64_t before(int64_t rows) const;
  std::vector<int64_t> rows_of(int64_t rows) const;

  TensorPart part_;
  int64_t tile_;
};

}  // namespace notellm
