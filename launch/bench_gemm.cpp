#include <cstdio>

#include "kernels/gemm.h"
#include "launch/bench.h"
#include "launch/op_timer.h"
#include "launch/table.h"
#include "model/parameters.h"
#include "model/tiles.h"
#include "runtime/files.h"

namespace notellm {
namespace {

constexpr Transpose as_is = Transpose::no, transposed = Transpose::yes;

// One matrix of the model: y = x·Wᵀ with W [out, in].
struct Matrix {
  const char* name;
  int64_t rows, in, out;
  DType y;  // logits and note vectors are f32
};

std::vector<Matrix> matrices(const ModelConfig& model, DType compute, Device device, int64_t vocabulary, int64_t rows) {
  return {{"q", rows, model.dim, model.q_dim(), compute},
          {"k, v", rows, model.dim, model.kv_dim(), compute},
          {"o", rows, model.q_dim(), model.dim, compute},
          {"gate, up", rows, model.dim, 2 * model.ffn, compute},
          {"down", rows, model.ffn, model.dim, compute},
          {"LM head", std::min(rows, logit_rows(device, vocabulary)), model.dim, vocabulary, DType::f32},
          {"note vectors", rows, model.dim, model.note_dim, DType::f32}};
}

// The product forward, and the two of its backward pass: to the input, and to the weights, whose gradient is added up.
std::vector<BenchRow> time_matrix(OpTimer& timer, const Matrix& m) {
  Stream& stream = timer.stream();
  Operands& operands = timer.operands();
  const DType compute = timer.compute();
  const Tensor x = operands.random(compute, {m.rows, m.in}), w = operands.random(compute, {m.out, m.in}),
               dy = operands.random(compute, {m.rows, m.out});
  const Tensor y = operands.zeros(m.y, {m.rows, m.out}), dx = operands.zeros(compute, {m.rows, m.in}),
               dw = operands.zeros(DType::f32, {m.out, m.in});
  const auto row = [&](const char* pass, const OpTimer::Work& work) {
    BenchRow found = timer.product_op(fmt::format("{}, {}", m.name, pass), compute, 2.0 * m.rows * m.in * m.out, work);
    found.shape = fmt::format("{} × {} × {}", m.rows, m.in, m.out);
    return found;
  };
  std::vector<BenchRow> rows = {row("forward", [&] { gemm(stream, x, as_is, w, transposed, y); }),
                                row("to input", [&] { gemm(stream, dy, as_is, w, as_is, dx); }),
                                row("to weights", [&] { gemm(stream, dy, transposed, x, as_is, dw, true); })};
  operands.clear();
  return rows;
}

}  // namespace

void bench_gemm(const RunConfig& config, const BenchOptions& options, Communicator& ranks) {
  const int64_t rows = options.rows > 0 ? options.rows : tile_rows_of(config.device),
                vocabulary = padded_vocabulary(config.data.tokenizer.vocabulary + 1);
  OpTimer timer(config, ranks);
  const std::string heading = timer.heading();
  nlohmann::ordered_json json = bench_header("bench gemm", config, vocabulary, ranks);
  json["tile_rows"] = rows;
  json["large_product"] = timer.products();
  Table table("lrrrr");
  table.row({"product", "rows × in × out", "forward", "to input", "to weights"});
  for (const Matrix& matrix : matrices(config.model, config.compute(), config.device, vocabulary, rows)) {
    const std::vector<BenchRow> found = time_matrix(timer, matrix);
    std::vector<std::string> cells = {matrix.name, found[0].shape};
    for (const BenchRow& row : found) {
      cells.push_back(
          fmt::format("{} ({:.0f} %)", format_flops(row.flops_per_second()), 100 * row.share_of_large_product()));
      json["rows"].push_back(row.json());
    }
    table.row(std::move(cells));
  }
  if (ranks.rank() != 0) return;
  std::printf("%s\n\nmatrix products of the model (share of the large product)\n%s", heading.c_str(),
              table.text(2).c_str());
  if (!options.json.empty()) write_file(options.json, json.dump(2) + "\n");
}

}  // namespace notellm
