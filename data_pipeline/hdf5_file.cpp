#include "data_pipeline/hdf5_file.h"

#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <type_traits>

#include "runtime/error.h"
#include "runtime/files.h"
#include "runtime/progress.h"

namespace notellm {
namespace {

constexpr hsize_t chunk_elements = 1 << 16;
// Deflate makes at most that many bytes of one (zlib.net/zlib_tech.html): a file that promises more lies.
constexpr uint64_t most_inflated = 1032;

// Closes what an HDF5 call opened.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  operator hid_t() const { return id_; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

// The library prints its error stack unless told not to.
void quiet() {
  static const bool done = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  NOTELLM_CHECK(done, "HDF5 cannot be initialised");
}

// What the library says about its last failure.
std::string reason() {
  std::string text;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned, const H5E_error2_t* error, void* text) {
        auto& out = *static_cast<std::string*>(text);
        if (out.empty() && error->desc) out = error->desc;
        return herr_t{0};
      },
      &text);
  return text;
}

template <class T>
hid_t stored_type() {
  if constexpr (std::is_same_v<T, uint8_t>) return H5T_STD_U8LE;
  if constexpr (std::is_same_v<T, int32_t>) return H5T_STD_I32LE;
  if constexpr (std::is_same_v<T, uint64_t>) return H5T_STD_U64LE;
  if constexpr (std::is_same_v<T, float>) return H5T_IEEE_F32LE;
}

template <class T>
hid_t memory_type() {
  if constexpr (std::is_same_v<T, uint8_t>) return H5T_NATIVE_UINT8;
  if constexpr (std::is_same_v<T, int32_t>) return H5T_NATIVE_INT32;
  if constexpr (std::is_same_v<T, uint64_t>) return H5T_NATIVE_UINT64;
  if constexpr (std::is_same_v<T, float>) return H5T_NATIVE_FLOAT;
}

const char* type_name(hid_t type) {
  if (H5Tequal(type, H5T_STD_U8LE) > 0) return "uint8";
  if (H5Tequal(type, H5T_STD_I32LE) > 0) return "int32";
  if (H5Tequal(type, H5T_STD_U64LE) > 0) return "uint64";
  if (H5Tequal(type, H5T_IEEE_F32LE) > 0) return "float32";
  return "another type";
}

// A step of building a file in memory: it fails only for lack of memory or a wrong name.
hid_t built(hid_t result, const char* what) {
  NOTELLM_CHECK(result >= 0, "HDF5 cannot build {}: {}", what, reason());
  return result;
}

}  // namespace

Hdf5Writer::Hdf5Writer() {
  quiet();
  const Handle access(built(H5Pcreate(H5P_FILE_ACCESS), "a file"), H5Pclose);
  built(H5Pset_fapl_core(access, 1 << 20, false), "a file in memory");
  file_ = built(H5Fcreate("in memory", H5F_ACC_TRUNC, H5P_DEFAULT, access), "a file");
}

Hdf5Writer::~Hdf5Writer() { H5Fclose(file_); }

template <class T>
void Hdf5Writer::write(const std::string& name, std::span<const T> values) {
  const hsize_t size = values.size();
  const Handle space(built(H5Screate_simple(1, &size, nullptr), name.c_str()), H5Sclose);
  const Handle create(built(H5Pcreate(H5P_DATASET_CREATE), name.c_str()), H5Pclose);
  const Handle link(built(H5Pcreate(H5P_LINK_CREATE), name.c_str()), H5Pclose);
  built(H5Pset_obj_track_times(create, false), name.c_str());
  built(H5Pset_create_intermediate_group(link, 1), name.c_str());
  // A chunk may not be larger than the array.
  const hsize_t chunk = std::clamp<hsize_t>(size, 1, chunk_elements);
  if (size > 0) {
    built(H5Pset_chunk(create, 1, &chunk), name.c_str());
    built(H5Pset_shuffle(create), name.c_str());
    built(H5Pset_deflate(create, 1), name.c_str());
  }
  const Handle data(
      built(H5Dcreate2(file_, name.c_str(), stored_type<T>(), space, link, create, H5P_DEFAULT), name.c_str()),
      H5Dclose);
  if (size > 0) built(H5Dwrite(data, memory_type<T>(), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), name.c_str());
}

void Hdf5Writer::write_text(const std::string& name, const std::string& text) {
  const Handle type(built(H5Tcopy(H5T_C_S1), name.c_str()), H5Tclose);
  built(H5Tset_size(type, std::max<size_t>(text.size(), 1)), name.c_str());
  built(H5Tset_strpad(type, H5T_STR_NULLPAD), name.c_str());
  built(H5Tset_cset(type, H5T_CSET_UTF8), name.c_str());
  const Handle space(built(H5Screate(H5S_SCALAR), name.c_str()), H5Sclose);
  const Handle attribute(built(H5Acreate2(file_, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT), name.c_str()),
                         H5Aclose);
  built(H5Awrite(attribute, type, text.c_str()), name.c_str());
}

void Hdf5Writer::save(const std::filesystem::path& path) {
  built(H5Fflush(file_, H5F_SCOPE_GLOBAL), "the file");
  const ssize_t size = H5Fget_file_image(file_, nullptr, 0);
  built(size, "the file's image");
  std::string image(size, '\0');
  built(H5Fget_file_image(file_, image.data(), image.size()), "the file's image");
  write_file(path, image);
}

Hdf5File::Hdf5File(const std::filesystem::path& path) : path_(path) {
  quiet();
  errno = 0;
  // So that a missing file and a foreign one are told apart.
  if (::access(path.c_str(), R_OK) != 0 || std::filesystem::is_directory(path))
    fail(ErrorKind::io, "{}: cannot be read: {}", path.string(), std::strerror(errno ? errno : EISDIR));
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  NOTELLM_CHECK(access >= 0 && H5Pset_file_locking(access, false, true) >= 0, "HDF5: {}", reason());
  file_ = H5Fopen(path.c_str(), H5F_ACC_RDONLY, access);
  if (file_ < 0)
    fail(ErrorKind::data, "{}: not an HDF5 file, or cut short ({}); make it again", path.string(), reason());
}

Hdf5File::~Hdf5File() { H5Fclose(file_); }

bool Hdf5File::has_text(const std::string& name) const { return H5Aexists(file_, name.c_str()) > 0; }

std::string Hdf5File::text(const std::string& name) const {
  const Handle attribute(H5Aopen(file_, name.c_str(), H5P_DEFAULT), H5Aclose);
  if (attribute < 0)
    fail(ErrorKind::data, "{}: no attribute \"{}\"; the file was not written by this program", path_.string(), name);
  const Handle type(H5Aget_type(attribute), H5Tclose);
  const Handle space(H5Aget_space(attribute), H5Sclose);
  if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) != 0 || H5Sget_simple_extent_npoints(space) != 1)
    fail(ErrorKind::data, "{}: attribute \"{}\" is not a text of fixed length", path_.string(), name);
  if (H5Tget_size(type) > std::filesystem::file_size(path_))
    fail(ErrorKind::data, "{}: attribute \"{}\" is damaged: longer than the file", path_.string(), name);
  std::string text(H5Tget_size(type), '\0');
  if (H5Aread(attribute, type, text.data()) < 0)
    fail(ErrorKind::data, "{}: attribute \"{}\" cannot be read: {}", path_.string(), name, reason());
  text.resize(std::strlen(text.c_str()));
  return text;
}

namespace {

// An array that is open for reading; fails naming the file and it.
class OpenArray {
 public:
  OpenArray(hid_t file, const std::filesystem::path& path, const std::string& name)
      : data_(H5Dopen2(file, name.c_str(), H5P_DEFAULT), H5Dclose), space_(open_space(path, name), H5Sclose) {
    const Handle type(H5Dget_type(data_), H5Tclose);
    const uint64_t most = std::filesystem::file_size(path) * most_inflated;
    if (static_cast<uint64_t>(length()) > most / std::max<size_t>(H5Tget_size(type), 1))
      fail(ErrorKind::data, "{}: array \"{}\" is damaged: {} elements are more than a file of its size can hold",
           path.string(), name, length());
    if (length() > 0 && !is_stored_as_written())
      fail(ErrorKind::data, "{}: array \"{}\" is damaged: it is not stored in chunks as this program writes them",
           path.string(), name);
  }
  hid_t data() const { return data_; }
  hid_t space() const { return space_; }
  int64_t length() const {
    hsize_t size = 0;
    H5Sget_simple_extent_dims(space_, &size, nullptr);
    return static_cast<int64_t>(size);
  }

 private:
  hid_t open_space(const std::filesystem::path& path, const std::string& name) const {
    if (data_ < 0) fail(ErrorKind::data, "{}: no array \"{}\", or damaged ({})", path.string(), name, reason());
    const hid_t space = H5Dget_space(data_);
    if (space < 0 || H5Sget_simple_extent_ndims(space) != 1) {
      if (space >= 0) H5Sclose(space);
      fail(ErrorKind::data, "{}: array \"{}\" must have one dimension", path.string(), name);
    }
    return space;
  }
  // As Hdf5Writer does it. Of a chunk whose header says less than its size, or that it is not deflated, HDF5 1.10 reads
  // as many bytes as the chunk should have, however few there are.
  bool is_stored_as_written() const {
    const Handle create(H5Dget_create_plist(data_), H5Pclose);
    hsize_t chunk = 0, chunks = 0;
    if (H5Pget_layout(create) != H5D_CHUNKED || H5Pget_chunk(create, 1, &chunk) != 1 ||
        chunk != std::min<hsize_t>(static_cast<hsize_t>(length()), chunk_elements) || H5Pget_nfilters(create) != 2 ||
        H5Dget_num_chunks(data_, space_, &chunks) < 0)
      return false;
    const H5Z_filter_t filters[] = {H5Z_FILTER_SHUFFLE, H5Z_FILTER_DEFLATE};
    for (unsigned i = 0; i < 2; ++i) {
      unsigned flags = 0;
      size_t values = 0;
      if (H5Pget_filter2(create, i, &flags, &values, nullptr, 0, nullptr, nullptr) != filters[i]) return false;
    }
    for (hsize_t i = 0; i < chunks; ++i) {
      hsize_t begin = 0, bytes = 0;
      unsigned left_out = 0;  // filters
      haddr_t place = 0;
      if (H5Dget_chunk_info(data_, space_, i, &begin, &left_out, &place, &bytes) < 0 || left_out != 0) return false;
    }
    return true;
  }

  Handle data_, space_;
};

}  // namespace

int64_t Hdf5File::length(const std::string& name) const { return OpenArray(file_, path_, name).length(); }

template <class T>
void Hdf5File::read(const std::string& name, int64_t begin, std::span<T> values) const {
  const OpenArray array(file_, path_, name);
  const Handle type(H5Dget_type(array.data()), H5Tclose);
  if (H5Tequal(type, stored_type<T>()) <= 0)
    fail(ErrorKind::data, "{}: array \"{}\" is of {}, not of {}", path_.string(), name, type_name(type),
         type_name(stored_type<T>()));
  const hsize_t first = begin, count = values.size();
  if (begin < 0 || static_cast<int64_t>(first + count) > array.length())
    fail(ErrorKind::data, "{}: array \"{}\" has {} elements, {} to {} are asked for", path_.string(), name,
         array.length(), first, first + count);
  if (count == 0) return;
  const Handle memory(H5Screate_simple(1, &count, nullptr), H5Sclose);
  if (H5Sselect_hyperslab(array.space(), H5S_SELECT_SET, &first, nullptr, &count, nullptr) < 0 ||
      H5Dread(array.data(), memory_type<T>(), memory, array.space(), H5P_DEFAULT, values.data()) < 0)
    fail(ErrorKind::data, "{}: array \"{}\" is damaged: {}", path_.string(), name, reason());
}

std::vector<std::string> Hdf5File::list() const {
  std::vector<std::string> names;
  const auto visit = [](hid_t file, const char* name, const H5L_info_t*, void* names) {
    H5O_info_t info;
    if (H5Oget_info_by_name2(file, name, &info, H5O_INFO_BASIC, H5P_DEFAULT) >= 0 && info.type == H5O_TYPE_DATASET)
      static_cast<std::vector<std::string>*>(names)->emplace_back(name);
    return herr_t{0};
  };
  if (H5Lvisit(file_, H5_INDEX_NAME, H5_ITER_INC, visit, &names) < 0)
    fail(ErrorKind::data, "{}: damaged: {}", path_.string(), reason());
  for (std::string& name : names) {
    const OpenArray array(file_, path_, name);
    const Handle type(H5Dget_type(array.data()), H5Tclose);
    name = fmt::format("{}  {} [{}]", name, type_name(type), format_count(array.length()));
  }
  return names;
}

template void Hdf5Writer::write(const std::string&, std::span<const uint8_t>);
template void Hdf5Writer::write(const std::string&, std::span<const int32_t>);
template void Hdf5Writer::write(const std::string&, std::span<const uint64_t>);
template void Hdf5Writer::write(const std::string&, std::span<const float>);
template void Hdf5File::read(const std::string&, int64_t, std::span<uint8_t>) const;
template void Hdf5File::read(const std::string&, int64_t, std::span<int32_t>) const;
template void Hdf5File::read(const std::string&, int64_t, std::span<uint64_t>) const;
template void Hdf5File::read(const std::string&, int64_t, std::span<float>) const;

}  // namespace notellm
