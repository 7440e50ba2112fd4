#include "runtime/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "runtime/edit_distance.h"

namespace notellm {
namespace {
using nlohmann::json;
constexpr uint64_t length_bytes = 8;
constexpr uint64_t max_header_bytes = 100'000'000;  // as the format's own library
constexpr size_t alignment = 8;

struct TypeName {
  const char* name;
  DType dtype;
};
constexpr std::array type_names = {TypeName{"F32", DType::f32}, TypeName{"BF16", DType::bf16},
                                   TypeName{"I32", DType::i32}, TypeName{"I64", DType::i64},
                                   TypeName{"F64", DType::f64}, TypeName{"F16", DType::f16}};

const char* safetensors_name(DType dtype) { return std::ranges::find(type_names, dtype, &TypeName::dtype)->name; }

std::optional<DType> dtype_named(const std::string& name) {
  for (const TypeName& type : type_names)
    if (name == type.name) return type.dtype;
  return std::nullopt;
}

// A tensor as the header describes it.
struct Entry {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  uint64_t begin, end;
};

// Reads the header's JSON; every error names the file and, once there is one, the tensor.
class HeaderParser {
 public:
  explicit HeaderParser(const std::filesystem::path& path) : file_(path.string()) {}

  // Sorted by place in the file.
  std::vector<Entry> parse(std::string_view text, std::map<std::string, std::string>& metadata) const {
    std::vector<Entry> entries;
    const json header = parse_json(text);
    for (const auto& [name, value] : header.items()) {
      if (name == "__metadata__")
        metadata = get<std::map<std::string, std::string>>(name, value, "must be texts named by texts");
      else
        entries.push_back(parse_entry(name, value));
    }
    std::ranges::sort(entries, {}, [](const Entry& e) { return std::tie(e.begin, e.end, e.name); });
    return entries;
  }

  // The tensors must fill the data from its beginning to its end, each once.
  void check_places(const std::vector<Entry>& entries, uint64_t data_bytes) const {
    uint64_t end = 0;
    for (const Entry& e : entries) {
      if (e.end > data_bytes)
        damaged("tensor {} ends at byte {} of the data, which has {} bytes: the file is cut short", e.name, e.end,
                data_bytes);
      if (e.begin < end) damaged("tensor {} begins at byte {}, inside the tensor before it", e.name, e.begin);
      if (e.begin > end) damaged("{} bytes before tensor {} belong to no tensor", e.begin - end, e.name);
      end = e.end;
    }
    if (end != data_bytes) damaged("{} bytes after the last tensor belong to no tensor", data_bytes - end);
  }

  template <class... Args>
  [[noreturn]] void damaged(fmt::format_string<Args...> format, Args&&... args) const {
    fail(ErrorKind::checkpoint, "{}: {}; take another copy of the file", file_,
         fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  json parse_json(std::string_view text) const {
    std::set<std::string> names;
    std::string twice;
    const auto watch_names = [&](int depth, json::parse_event_t event, json& parsed) {
      if (depth == 1 && event == json::parse_event_t::key && !names.insert(parsed.get<std::string>()).second)
        twice = parsed.get<std::string>();
      return true;
    };
    json header;
    try {
      header = json::parse(text, watch_names);
    } catch (const json::exception& error) {
      damaged("the header is not JSON: {}", error.what());
    }
    if (!header.is_object()) damaged("the header is not a JSON object");
    if (!twice.empty()) damaged("tensor {} is there twice", twice);
    return header;
  }

  template <class T>
  T get(const std::string& name, const json& value, const char* must) const {
    try {
      return value.get<T>();
    } catch (const json::exception&) {
      damaged("{} {}", name, must);
    }
  }

  Entry parse_entry(const std::string& name, const json& value) const {
    if (!value.is_object() || !value.contains("dtype") || !value.contains("shape") || !value.contains("data_offsets"))
      damaged("tensor {} needs dtype, shape and data_offsets", name);
    const auto type = get<std::string>(name, value["dtype"], "has a dtype that is no text");
    const std::optional<DType> dtype = dtype_named(type);
    if (!dtype)
      fail(ErrorKind::checkpoint, "{}: tensor {} has dtype {}, which is not supported; convert it to F32, BF16 or F16",
           file_, name, type);
    const std::vector<uint64_t> shape = unsigned_list(name, value["shape"], "shape");
    const std::vector<uint64_t> offsets = unsigned_list(name, value["data_offsets"], "data_offsets");
    if (shape.size() > Tensor().shape.size())
      fail(ErrorKind::checkpoint, "{}: tensor {} has {} dimensions, at most {} are supported", file_, name,
           shape.size(), Tensor().shape.size());
    if (offsets.size() != 2 || offsets[0] > offsets[1]) damaged("tensor {}: data_offsets must be [begin, end]", name);
    uint64_t bytes = static_cast<uint64_t>(size_of(*dtype));
    bool overflow = false;
    for (uint64_t size : shape) overflow |= __builtin_mul_overflow(bytes, size, &bytes);
    if (overflow || bytes != offsets[1] - offsets[0])
      damaged("tensor {}: {} [{}] does not take the {} bytes of its data_offsets", name, type, fmt::join(shape, ", "),
              offsets[1] - offsets[0]);
    return {name, *dtype, {shape.begin(), shape.end()}, offsets[0], offsets[1]};
  }

  std::vector<uint64_t> unsigned_list(const std::string& name, const json& value, const char* key) const {
    if (!value.is_array() || !std::ranges::all_of(value, [](const json& v) { return v.is_number_unsigned(); }))
      damaged("tensor {}: {} must be a list of integers, not negative", name, key);
    return value.get<std::vector<uint64_t>>();
  }

  std::string file_;
};

Tensor make_tensor(const Entry& entry, void* data) {
  Tensor t(data, entry.dtype, {});
  t.dims = std::max<int>(1, static_cast<int>(entry.shape.size()));
  t.shape[0] = 1;  // a scalar is one row
  std::ranges::copy(entry.shape, t.shape.begin());
  return t;
}

}  // namespace

SafetensorsPlan plan_safetensors(std::span<const NamedTensor> tensors,
                                 const std::map<std::string, std::string>& metadata) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::greater(), [&](size_t i) { return size_of(tensors[i].tensor.dtype); });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  SafetensorsPlan plan{.header = {}, .offsets = std::vector<int64_t>(tensors.size()), .bytes = 0};
  for (const size_t i : order) {
    const auto& [name, t] = tensors[i];
    NOTELLM_CHECK(t.dims > 0 && name != "__metadata__" && !header.contains(name), "cannot write tensor {} as {}",
                  describe(t), name);
    header[name] = {{"dtype", safetensors_name(t.dtype)},
                    {"shape", std::vector<int64_t>(t.shape.begin(), t.shape.begin() + t.dims)},
                    {"data_offsets", {plan.bytes, plan.bytes + t.bytes()}}};
    plan.offsets[i] = plan.bytes;
    plan.bytes += t.bytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + alignment - 1) / alignment * alignment, ' ');  // so that the data is aligned
  const uint64_t length = text.size();
  plan.header = std::string(reinterpret_cast<const char*>(&length), length_bytes) + text;
  const auto begin = static_cast<int64_t>(plan.header.size());
  for (int64_t& offset : plan.offsets) offset += begin;
  plan.bytes += begin;
  return plan;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path, Unaligned unaligned) : path_(path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status;
  if (descriptor < 0 || fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    const std::string reason = descriptor < 0 ? std::strerror(errno) : "not a regular file";
    if (descriptor >= 0) close(descriptor);
    fail(ErrorKind::io, "cannot read {}: {}", path.string(), reason);
  }
  const HeaderParser parser(path);
  const uint64_t file_bytes = static_cast<uint64_t>(status.st_size);
  void* data = file_bytes == 0 ? MAP_FAILED : mmap(nullptr, file_bytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
  const int error = errno;
  close(descriptor);
  if (file_bytes < length_bytes) parser.damaged("has only {} bytes", file_bytes);
  if (data == MAP_FAILED) fail(ErrorKind::io, "cannot map {} into memory: {}", path.string(), std::strerror(error));
  mapping_ = std::unique_ptr<void, Unmap>(data, Unmap{file_bytes});
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, data, length_bytes);
  if (header_bytes > max_header_bytes || header_bytes > file_bytes - length_bytes)
    parser.damaged("claims a header of {} bytes, in a file of {} bytes", header_bytes, file_bytes);
  char* const header = static_cast<char*>(data) + length_bytes;
  const std::vector<Entry> entries = parser.parse({header, header_bytes}, metadata_);
  parser.check_places(entries, file_bytes - length_bytes - header_bytes);
  for (const Entry& entry : entries)
    add_tensor(entry.name, make_tensor(entry, header + header_bytes + entry.begin), unaligned);
}

void SafetensorsFile::add_tensor(const std::string& name, Tensor t, Unaligned unaligned) {
  if (unaligned == Unaligned::copied &&
      reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(size_of(t.dtype)) != 0) {
    const Buffer& copy = copies_.emplace_back(t.bytes());
    std::memcpy(copy.data(), t.data, static_cast<size_t>(t.bytes()));
    t.data = copy.data();
  }
  tensors_.push_back({name, t});
}

Tensor SafetensorsFile::at(const std::string& name) const {
  const auto found = std::ranges::find(tensors_, name, &NamedTensor::name);
  if (found != tensors_.end()) return found->tensor;
  if (tensors_.empty()) fail(ErrorKind::checkpoint, "{}: has no tensor {}, nor any other", path_.string(), name);
  const auto nearest =
      std::ranges::min_element(tensors_, {}, [&](const NamedTensor& t) { return edit_distance(t.name, name); });
  fail(ErrorKind::checkpoint, "{}: has no tensor {}; the nearest name is {}; is this the checkpoint of another model?",
       path_.string(), name, nearest->name);
}

void SafetensorsFile::forget(const char* begin, size_t bytes) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), address = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t first = (address + page - 1) / page * page, end = (address + bytes) / page * page;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
}

void SafetensorsFile::Unmap::operator()(void* data) const { munmap(data, bytes); }

}  // namespace notellm
