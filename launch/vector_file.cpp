#include "launch/vector_file.h"

#include <hdf5.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "data_pipeline/hdf5_file.h"
#include "runtime/files.h"

namespace notellm {
namespace {

namespace fs = std::filesystem;

// Beside a .npy file.
fs::path ids_path(fs::path path) { return path.replace_extension(".ids.txt"); }

constexpr const char* attribute_names[] = {"checkpoint", "step", "tokenizer"};

// An HDF5 identifier that is closed at its end; the call that made it must have gone well.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t), const char* what) : id_(id), close_(close) {
    NOTELLM_CHECK(id >= 0, "HDF5 cannot build {}", what);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { close_(id_); }
  operator hid_t() const { return id_; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

void built(herr_t result, const char* what) { NOTELLM_CHECK(result >= 0, "HDF5 cannot build {}", what); }

// The caller closes it.
hid_t text_type(size_t size) {
  const hid_t type = H5Tcopy(H5T_C_S1);
  NOTELLM_CHECK(type >= 0 && H5Tset_size(type, size) >= 0 && H5Tset_cset(type, H5T_CSET_UTF8) >= 0,
                "HDF5 cannot build a text type");
  return type;
}

void write_attribute(hid_t file, const std::string& name, const std::string& text) {
  const Handle type(text_type(std::max<size_t>(text.size(), 1)), H5Tclose, "a text type");
  built(H5Tset_strpad(type, H5T_STR_NULLPAD), "a text type");
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose, "an attribute");
  const Handle attribute(H5Acreate2(file, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose,
                         "an attribute");
  built(H5Awrite(attribute, type, text.c_str()), "an attribute");
}

void write_array(hid_t file, const char* name, hid_t type, std::initializer_list<hsize_t> sizes, hid_t memory_type,
                 const void* data) {
  const Handle space(H5Screate_simple(static_cast<int>(sizes.size()), sizes.begin(), nullptr), H5Sclose, name);
  const Handle create(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, name);
  built(H5Pset_obj_track_times(create, false), name);
  const Handle array(H5Dcreate2(file, name, type, space, H5P_DEFAULT, create, H5P_DEFAULT), H5Dclose, name);
  if (*sizes.begin() > 0) built(H5Dwrite(array, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data), name);
}

// Built in memory and then written, so that a disk that fills up leaves nothing behind.
void write_h5(const fs::path& path, std::span<const std::string> ids, Tensor vectors,
              const VectorAttributes& attributes) {
  const Handle file(create_hdf5(), H5Fclose, "a file");
  write_attribute(file, "format", vector_format);
  for (const auto& [name, text] : attributes) write_attribute(file, name, text);
  std::vector<const char*> texts;
  for (const std::string& id : ids) texts.push_back(id.c_str());
  const Handle type(text_type(H5T_VARIABLE), H5Tclose, "a text type");
  write_array(file, "ids", type, {texts.size()}, type, texts.data());
  write_array(file, "vectors", H5T_IEEE_F32LE, {hsize_t(vectors.rows()), hsize_t(vectors.cols())}, H5T_NATIVE_FLOAT,
              vectors.data);
  save_hdf5(file, path);
}

// numpy.lib.format version 1.0: magic, header length (u16, little endian), a Python dict padded with spaces to 64
// bytes.
void write_npy(const fs::path& path, std::span<const std::string> ids, Tensor vectors) {
  std::string lines;
  for (const std::string& id : ids) lines += id + "\n";
  std::string header =
      fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", vectors.rows(), vectors.cols());
  constexpr size_t before = 10;  // magic, version, length
  header.resize((before + header.size() + 1 + 63) / 64 * 64 - before - 1, ' ');
  header += '\n';
  std::string start = "\x93NUMPY";
  start += {'\x01', '\x00', static_cast<char>(header.size() & 0xff), static_cast<char>(header.size() >> 8)};
  start += header;
  write_file(ids_path(path), lines);
  const std::string_view pieces[] = {start,
                                     {static_cast<const char*>(vectors.data), static_cast<size_t>(vectors.bytes())}};
  write_file(path, pieces);
}

}  // namespace

void check_vector_file_name(const fs::path& path) {
  if (path.extension() != ".h5" && path.extension() != ".npy")
    fail(ErrorKind::usage, "--output {}: the name must end in .h5 or .npy", path.string());
}

void require_vectors_writable(const fs::path& path) {
  require_writable(path);
  if (path.extension() == ".npy") require_writable(ids_path(path));
}

void check_vector_ids(const fs::path& path, std::span<const std::string> ids) {
  const bool is_h5 = path.extension() == ".h5";
  for (const std::string& id : ids) {
    if (!is_h5 && id.find_first_of("\r\n") != id.npos)
      fail(ErrorKind::data,
           "the id '{}' holds a line break, which a file of one id a line cannot hold: write a .h5 file", id);
    if (const size_t at = id.find('\0'); is_h5 && at != id.npos)
      fail(ErrorKind::data, "the note's id '{}\\0{}' holds a NUL byte, where a .h5 file ends a text: write a .npy file",
           id.substr(0, at), id.substr(at + 1));
  }
}

void write_vectors(const fs::path& path, std::span<const std::string> ids, Tensor vectors,
                   const VectorAttributes& attributes) {
  check_vector_file_name(path);
  check_vector_ids(path, ids);
  NOTELLM_CHECK(vectors.rows() == std::ssize(ids), "{} for {} ids", describe(vectors), ids.size());
  if (path.extension() == ".h5")
    write_h5(path, ids, vectors, attributes);
  else
    write_npy(path, ids, vectors);
}

VectorFileInfo read_vector_file_info(const fs::path& path) {
  VectorFileInfo info;
  const Hdf5File file(path);
  if (const std::string format = file.text("format"); format != vector_format)
    fail(ErrorKind::data, "{}: format is \"{}\", not \"{}\"", path.string(), format, vector_format);
  for (const char* name : attribute_names)
    if (file.has_text(name)) info.attributes[name] = file.text(name);
  const auto damaged = [&](bool good) {
    if (!good) fail(ErrorKind::data, "{}: damaged, or not whole: write it again with 'notellm embed'", path.string());
  };
  const hid_t array = H5Dopen2(file.id(), "vectors", H5P_DEFAULT);
  damaged(array >= 0);
  const Handle closes_array(array, H5Dclose, "an array");
  const Handle space(H5Dget_space(array), H5Sclose, "an array");
  hsize_t sizes[2] = {};
  damaged(H5Sget_simple_extent_ndims(space) == 2 && H5Sget_simple_extent_dims(space, sizes, nullptr) == 2);
  info.notes = static_cast<int64_t>(sizes[0]);
  info.dimensions = static_cast<int64_t>(sizes[1]);
  std::vector<float> values(sizes[0] * sizes[1]);
  damaged(values.empty() || H5Dread(array, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) >= 0);
  for (int64_t i = 0; i < info.notes; ++i) {
    double square = 0;
    for (int64_t k = 0; k < info.dimensions; ++k)
      square += double(values[i * info.dimensions + k]) * values[i * info.dimensions + k];
    info.not_normalised += !(std::abs(std::sqrt(square) - 1) <= 1e-3);
  }
  return info;
}

}  // namespace notellm
